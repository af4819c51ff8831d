"""The supremum over snapshots of real training: where they are, what is measured there, and what is refused."""

import re
import signal
from collections.abc import Callable

import attrs
import keras
import numpy as np
import pytest

import sdkeras
from sdkeras.dimension.bounds import Facts, facts_over
from sdkeras.errors import ModelError, SdkerasError
from sdkeras.estimators import registry
from sdkeras.operators import precision
from sdkeras.operators.controls import number
from sdkeras.runs import analyze, snapshots
from sdkeras.runs.budget import Meter, resources, whole_budget
from sdkeras.runs.options import Options
from sdkeras.runs.problem import read_problem
from sdkeras.training_step import settings
from small_trainings import everything

layers = keras.layers
X = np.random.default_rng(0).standard_normal((40, 4))
Y = np.random.default_rng(1).integers(0, 3, 40)
BATCH = 8
UNLIMITED = whole_budget(resources(1, 4, memory_gb=None, workers=1), Meter())


def net(optimizer: object, *inner: keras.layers.Layer, dtype: str = "float32", steps: int = 5) -> keras.Model:
    keras.utils.set_random_seed(0)
    with precision.default_precision(dtype):
        model = keras.Sequential([keras.Input((4,)), layers.Dense(4, "tanh"), *inner, layers.Dense(3)])
        model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        for index in range(steps):
            own = slice(8 * (index % 5), 8 * (index % 5) + 8)
            model.train_on_batch(X[own], Y[own])
    return model


def followed(model: keras.Model, count: int, every: int, dtype: str = "float64") -> snapshots.Trajectory:
    problem = read_problem(model, (X, Y), Options(batch_size=BATCH, dtype=dtype, snapshots=count, every=every))[0]
    step = sdkeras.UpdateMap(problem.loss, model.optimizer)
    return snapshots.follow(step, sdkeras.HessianOperator(problem.loss), problem, UNLIMITED)


@pytest.mark.parametrize(
    "made",
    [
        lambda: keras.optimizers.AdamW(keras.optimizers.schedules.ExponentialDecay(0.0625, 2, 0.5), weight_decay=0.01),
        pytest.param(lambda: keras.optimizers.Adam(0.0625, amsgrad=True), marks=pytest.mark.slow),
        pytest.param(lambda: keras.optimizers.RMSprop(0.0625, centered=True), marks=pytest.mark.slow),
        lambda: keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.125, 100), momentum=0.5),
    ],
    ids=["adamw-schedule", "amsgrad", "centered", "momentum-schedule"],
)
def test_snapshots_are_where_training_goes(made: Callable[[], keras.optimizers.Optimizer]) -> None:
    """Weights, learning rate and P after each stretch are those of `train_on_batch` with the same minibatches."""
    with precision.default_precision("float64"):
        optimizer = made()
        model = net(optimizer, dtype="float64")
        before = everything(model)
        found = followed(model, 3, 3)
        assert everything(model) == before
        loss = sdkeras.EmpiricalLoss(model, (X, Y), BATCH, dtype="float64")
        for index in range(7):
            if index % 3 == 0:
                snapshot = found.snapshots[index // 3]
                weights = np.concatenate([np.asarray(v).ravel() for v in model.trainable_variables])
                assert snapshot.step == index
                np.testing.assert_allclose(snapshot.hessian.loss.point, weights, rtol=1e-10, atol=1e-12)
                rate = float(np.asarray(model.optimizer.learning_rate))
                assert snapshot.exponents.learning_rate == pytest.approx(rate, rel=1e-7)
                diagonal = settings.preconditioner(model, loss.layout)
                if diagonal is not None:
                    np.testing.assert_allclose(snapshot.scaling, 1 / np.sqrt(diagonal), rtol=1e-8)
            model.train_on_batch(*loss.source.minibatch(index, 0))
    if isinstance(optimizer._learning_rate, keras.optimizers.schedules.LearningRateSchedule):
        assert len({snapshot.exponents.learning_rate for snapshot in found.snapshots}) == 3


def test_exact_supremum_is_its_definition_from_dense_spectra() -> None:
    """AdamW with a schedule: each snapshot by a model that was trained to it, its spectra by hand."""
    schedule = keras.optimizers.schedules.ExponentialDecay(0.25, 50, 0.5)
    with precision.default_precision("float64"):
        model = net(keras.optimizers.AdamW(schedule, weight_decay=0.01), dtype="float64", steps=100)
        before = everything(model)
        run = sdkeras.analyze(
            *(model, (X, Y)),
            batch_size=BATCH,
            exact_minibatches=4,
            estimators=["exact"],
            dtype="float64",
            snapshots=3,
            every=4,
        )
        assert everything(model) == before
        curves = []
        source = sdkeras.EmpiricalLoss(model, (X, Y), BATCH, dtype="float64").source
        for index in range(9):
            if index % 4 == 0:
                problem = read_problem(model, (X, Y), Options(batch_size=BATCH, dtype="float64"))[0]
                hessian = sdkeras.HessianOperator(problem.loss)
                rows = []
                for batch in range(4):
                    dense = hessian.on_minibatch(number(source, batch)).matmat(np.eye(problem.loss.size))
                    scaled = dense * np.outer(problem.scaling, problem.scaling)
                    rows.append(-np.sort(-problem.exponents(np.linalg.eigvalsh((scaled + scaled.T) / 2))))
                curves.append(rows)
            model.train_on_batch(*source.minibatch(index, 0))
    found, z = run.supremum, np.array(curves)
    assert found.value == pytest.approx(sdkeras.sharpness_dimension(z.max(axis=0).mean(axis=0)), abs=1e-5)
    alone = [sdkeras.sharpness_dimension(rows.mean(axis=0)) for rows in z]
    np.testing.assert_allclose(found.per_snapshot_values, alone, atol=1e-5)
    # The maximum of averages, or one learning rate for all, would show.
    assert found.value > sdkeras.sharpness_dimension(z.mean(axis=1).max(axis=0)) + 0.01
    assert found.learning_rates == pytest.approx([0.25 * 0.5 ** ((100 + s) / 50) for s in (0, 4, 8)])
    assert (found.steps, found.every, found.num_snapshots) == ((0, 4, 8), 4, 3)
    assert (found.map, found.coordinates) == ("adam", "preconditioned balanced")
    assert not found.approximate
    assert found.value >= found.per_snapshot_values.max()
    assert found.single_point_value == found.per_snapshot_values[0]
    assert found.single_point_value == pytest.approx(run.sharpness_dimension.definition_value, abs=1e-9)
    assert found.num_minibatches == 4
    assert sdkeras.Analysis.from_json(run.to_json()) == run
    for bound in run.bounds:
        assert bound.dimension_name == "sup SD"
        assert any("supremum over 3 snapshots" in each.remark for each in bound.assumptions)


@pytest.mark.parametrize("exact", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_quadratic_loss_has_one_spectrum(exact: bool) -> None:
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((32, 5)), generator.standard_normal((32, 1))
    with precision.default_precision("float64"):
        model = keras.Sequential([keras.Input((5,)), layers.Dense(1, use_bias=False)])
        model.compile(keras.optimizers.SGD(0.5), "mse")
        model.train_on_batch(x, y)
        run = sdkeras.analyze(
            model, (x, y), batch_size=8, exact=exact, dtype="float64", tolerance=0.5, snapshots=4, every=2
        )
    found = run.supremum
    assert found.value == found.single_point_value
    np.testing.assert_array_equal(found.per_snapshot_values, found.value)
    assert found.approximate != exact
    assert 0 < found.value < 5


@pytest.mark.slow
def test_dropout_masks_stay_with_their_minibatch() -> None:
    """Steps too small to move float32 weights: with masks drawn anew the spectra would differ."""
    model = net(keras.optimizers.SGD(1e-30), layers.Dropout(0.5))
    run = sdkeras.analyze(
        *(model, (X, Y)),
        **{"batch_size": BATCH, "learning_rate": 1e-30, "map": "hessian", "snapshots": 3, "every": 2},
        exact_minibatches=3,
        estimators=["exact"],
    )
    assert run.supremum.value == run.supremum.single_point_value


@pytest.mark.slow
def test_a_diverging_trajectory_keeps_what_it_reached() -> None:
    model = net(keras.optimizers.SGD(0.125))
    model.compile(keras.optimizers.SGD(0.125), "mse")
    y = np.eye(3)[Y]
    run = sdkeras.analyze(
        *(model, (X, y)),
        **{"batch_size": BATCH, "learning_rate": 1e6, "snapshots": 40, "every": 2},
        exact_minibatches=3,
        estimators=["exact"],
    )
    found = run.supremum
    assert found.num_snapshots == len(found.steps) < found.num_snapshots_asked == 40
    assert found.stopped_at is not None
    assert found.stopped_at >= found.steps[-1]
    (note,) = [each for each in run.warnings if each.code == "snapshots"]
    assert f"at step {found.stopped_at}" in note.message


def test_a_schedule_that_comes_down_to_nothing_ends_it() -> None:
    model = net(keras.optimizers.SGD(keras.optimizers.schedules.PolynomialDecay(0.125, 9, 0.0)))
    found = followed(model, 5, 2, "float32")
    assert [snapshot.step for snapshot in found.snapshots] == [0, 2]
    assert "learning rate is 0 after step 4" in found.reason


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"snapshots": 3}, "needs both"),
        ({"every": 3}, "needs both"),
        ({"snapshots": 1, "every": 3}, "2 or more"),
        ({"snapshots": 2, "every": 0}, "at least 1 step"),
        ({"snapshots": 2, "every": 1, "params": "dense"}, "leave out params and mode"),
        ({"snapshots": 2, "every": 1, "mode": "inference"}, "leave out params and mode"),
    ],
)
def test_refusals_come_before_the_work(options: dict[str, object], message: str) -> None:
    with pytest.raises(SdkerasError, match=message):
        sdkeras.analyze(None, None, **options)


def test_an_optimizer_without_a_step_has_no_trajectory() -> None:
    with pytest.raises(ModelError, match="has taken no step"):
        sdkeras.analyze(net(keras.optimizers.Adam(0.01), steps=0), (X, Y), snapshots=2, every=1)


@pytest.mark.slow
def test_a_budget_is_shared_among_the_snapshots_and_kept() -> None:
    model = net(keras.optimizers.SGD(0.125))
    limit = 3000
    run = sdkeras.analyze(model, (X, Y), batch_size=BATCH, tolerance=0.01, snapshots=3, every=2, max_hvps=limit)
    assert 3 <= run.supremum.num_minibatches <= run.sharpness_dimension.num_runs
    assert run.provenance.num_hvps <= limit
    none = sdkeras.analyze(model, (X, Y), batch_size=BATCH, snapshots=3, every=2, max_hvps=1)
    assert none.supremum is None
    assert any(note.code == "no-supremum" and "budget" in note.message for note in none.warnings)
    assert none.bounds[0].dimension_name == "SD"


def test_a_limit_on_products_ends_the_training_as_well() -> None:
    model = net(keras.optimizers.SGD(0.125))
    run = sdkeras.analyze(model, (X, Y), batch_size=BATCH, snapshots=2, every=10**6, max_hvps=600, tolerance=0.9)
    (words,) = [note.message for note in run.warnings if note.code == "snapshots"]
    assert re.search(r"1 snapshot: the limit on products ended the training at step \d{2,3}\.", words)


def test_ctrl_c_keeps_the_minibatches_that_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = registry.get_estimator("spectrum", "exact")
    plain, calls = exact.estimate, []

    def estimate(self: object, source: object, *, seed: int) -> object:
        calls.append(seed)
        if len(calls) == 5 + 2 * 3 + 2:  # the second snapshot of the fourth minibatch
            signal.raise_signal(signal.SIGINT)
        return plain(self, source, seed=seed)

    monkeypatch.setattr(exact, "estimate", estimate)
    model = net(keras.optimizers.SGD(0.125))
    run = sdkeras.analyze(model, (X, Y), batch_size=BATCH, exact_minibatches=5, snapshots=3, every=2, workers=1)
    assert run.partial
    assert run.supremum.num_minibatches == 3
    assert len(run.estimates) == 1
    assert any(note.code == "supremum-cut-short" for note in run.warnings)


@pytest.mark.slow
def test_the_plan_counts_the_snapshots() -> None:
    model = net(keras.optimizers.SGD(0.125))
    alone = analyze.plan(model, (X, Y), batch_size=BATCH)
    more = analyze.plan(model, (X, Y), batch_size=BATCH, snapshots=4, every=100)
    runs = 4 * snapshots.NUM_PROBES - 1  # the first probe at the checkpoint is the estimate's own
    assert more.num_hvps_pilot - alone.num_hvps_pilot == runs * alone.num_runs * alone.num_steps
    assert (more.num_snapshots, more.every) == (4, 100)


@pytest.mark.slow
def test_bounds_stay_local_where_only_the_checkpoint_was_reached() -> None:
    model = net(keras.optimizers.SGD(0.125))
    options = {"batch_size": BATCH, "exact_minibatches": 3, "estimators": ["exact"], "snapshots": 2, "every": 1}
    found = sdkeras.analyze(model, (X, Y), **options).supremum
    facts = Facts(dimension=1.0, state_size=found.state_size, num_samples=40)
    assert facts_over(facts, found).dimension == found.value
    first = attrs.evolve(
        found, num_snapshots=1, steps=(0,), learning_rates=(0.125,), per_snapshot_values=found.per_snapshot_values[:1]
    )
    assert facts_over(facts, first) == facts
