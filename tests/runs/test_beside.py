"""The Gauss-Newton and the Fisher matrix beside the Hessian: closed forms, dense matrices, costs and refusals."""

from pathlib import Path
from typing import Any

import attrs
import keras
import numpy as np
import pytest
import scipy.special
import tensorflow as tf

import sdkeras
from sdkeras.dimension.estimate import Sample, summarise
from sdkeras.dimension.expansion import expansion_beside
from sdkeras.errors import ModelError, SdkerasError
from sdkeras.reporting.html import as_html
from sdkeras.results.answers import Analysis, OperatorSpectrum
from sdkeras.runs import analyze, measure
from sdkeras.runs.options import Options

layers = keras.layers
ETA = 0.75
CE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
GENERATOR = np.random.default_rng(0)
X = GENERATOR.standard_normal((60, 5)) * np.array([6.0, 3.0, 1.0, 1.0, 0.5])
Y = GENERATOR.integers(0, 3, 60)
Z = np.sin(2 * X[:, :2]) + 0.5 * GENERATOR.standard_normal((60, 2))
BATCH = 12
FIXED: dict[str, Any] = {"dtype": "float64", "seed": 1, "preset": "quick"}


def model(*hidden: int, outputs: int = 3, loss: Any = CE, optimizer: Any = None, last: Any = ()) -> keras.Model:
    """Hidden layers of so many units with tanh."""
    keras.utils.set_random_seed(0)
    inner = [layers.Dense(units, "tanh") for units in hidden]
    found = keras.Sequential([keras.Input((5,)), *inner, layers.Dense(outputs), *last])
    found.compile(optimizer or keras.optimizers.SGD(ETA), loss)
    return found


def deep(**compiled: Any) -> keras.Model:
    """Of two outputs and squared error; its Hessian has negative curvature, and its steps overshoot."""
    return model(4, 4, outputs=2, **{"loss": "mse", **compiled})


def batches(x: Any, y: Any) -> tf.data.Dataset:
    """Five fixed batches, which are all the minibatches that there are."""
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH)


def growth(matrices: Any) -> np.ndarray:
    """E+ of each matrix: the sum of the positive ln |1 - eta alpha|."""
    eigenvalues = np.linalg.eigvalsh(np.array(matrices))
    return np.maximum(np.log(np.abs(1 - ETA * eigenvalues)), 0.0).sum(axis=1)


def jacobians(net: keras.Model, x: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """d outputs / d weights of each example by central differences of the model in float64, [examples, outputs, n]."""
    double = [layers.Dense(each.units, each.activation, dtype="float64") for each in net.layers]
    copy = keras.Sequential([keras.Input((5,), dtype="float64"), *double])
    copy.set_weights(net.get_weights())
    point = np.concatenate([np.ravel(each) for each in copy.get_weights()]).astype(float)

    def outputs(at: np.ndarray) -> np.ndarray:
        ends = np.cumsum([each.size for each in copy.get_weights()])[:-1]
        parts = np.split(at, ends)
        copy.set_weights([part.reshape(old.shape) for part, old in zip(parts, copy.get_weights(), strict=True)])
        return keras.ops.convert_to_numpy(copy(x))

    columns = [(outputs(point + e) - outputs(point - e)) / (2 * step) for e in step * np.eye(len(point))]
    return np.stack(columns, axis=-1)


def dense_gauss_newton(net: keras.Model, x: np.ndarray) -> np.ndarray:
    """J' H_out J of the mean squared error over two outputs, H_out = I for each example."""
    j = jacobians(net, x)
    return np.einsum("bci,bcj->ij", j, j) / len(x)


@pytest.fixture(scope="module")
def linear() -> Analysis:
    """A model that is linear in its weights, whose Hessian is its Gauss-Newton matrix; some steps overshoot."""
    return sdkeras.analyze(model(), (X, Y), batch_size=BATCH, operator=("fisher", "ggn"), runs=12, **FIXED)


@pytest.fixture(scope="module")
def exact() -> Analysis:
    """Exact spectra of all minibatches of a net that is not linear."""
    return sdkeras.analyze(deep(), batches(X, Z), operator="ggn", exact=True, exact_minibatches=5, **FIXED)


def only(run: Analysis) -> OperatorSpectrum:
    (found,) = run.operators
    return found


def test_of_a_linear_model_all_three_are_the_same(linear: Analysis) -> None:
    assert [each.kind for each in linear.operators] == ["ggn", "fisher"]
    hessian, estimate = linear.hessian, linear.sharpness_dimension
    assert estimate.expansion_unstable > 0.1
    assert estimate.expansion_negative_curvature < 1e-9
    for found in linear.operators:
        assert found.largest.value == pytest.approx(hessian.largest.value, rel=1e-9)
        assert found.smallest.value == pytest.approx(hessian.smallest.value, abs=1e-9)
        assert found.trace.value == pytest.approx(hessian.trace.value, rel=1e-9)
        assert found.spectrum.operator == {"ggn": "G", "fisher": "F"}[found.kind]
        assert found.spectrum.weights.sum() == pytest.approx(linear.model.num_parameters)
        assert found.verification.passed


def test_of_a_linear_model_each_run_is_that_of_the_hessian(linear: Analysis) -> None:
    """With other minibatches or probes the differences would be of the size of their own spread."""
    estimate = linear.sharpness_dimension
    for found in linear.operators:
        beside = found.expansion
        assert beside.num_runs == 12
        assert beside.num_steps == estimate.num_steps
        assert beside.hessian == pytest.approx(estimate.expansion, rel=1e-12)
        assert beside.value == pytest.approx(beside.hessian, rel=1e-9)
        assert beside.unstable == pytest.approx(beside.value, rel=1e-9)
        assert np.ptp(beside.interval) > 0.05 * beside.value
        assert np.ptp(beside.difference_interval) < 1e-8 * beside.value
        assert abs(beside.difference) < 1e-8 * beside.value


def test_exact_spectra_give_the_expansion_of_dense_matrices(exact: Analysis) -> None:
    """J by differences of the model, H_out of the squared error; all five minibatches, so that nothing is left out."""
    matrices = [dense_gauss_newton(deep(), X[k : k + BATCH]) for k in range(0, 60, BATCH)]
    found, beside = only(exact), only(exact).expansion
    whole = np.linalg.eigvalsh(np.mean(matrices, axis=0))
    assert found.largest.value == pytest.approx(whole[-1], rel=1e-7)
    assert abs(found.smallest.value - whole[0]) < found.smallest.residual + 1e-8 * whole[-1]
    assert abs(found.trace.value - whole.sum()) < 4 * found.trace.stderr + 1e-7 * whole.sum()
    assert beside.num_runs == 5
    assert beside.num_steps is None
    assert beside.value == pytest.approx(growth(matrices).mean(), rel=1e-6)
    assert beside.value > 0.05
    hessian = sdkeras.HessianOperator(sdkeras.EmpiricalLoss(deep(), batches(X, Z), dtype="float64"))
    of_hessian = growth([hessian.on_minibatch(k).as_matrix() for k in range(5)])
    assert beside.hessian == pytest.approx(of_hessian.mean(), rel=1e-6)
    assert beside.difference == pytest.approx(beside.hessian - beside.value)
    assert beside.difference_interval == pytest.approx((beside.difference, beside.difference), abs=1e-12)


def test_only_the_hessian_has_negative_curvature(exact: Analysis) -> None:
    found, beside = only(exact), only(exact).expansion
    assert exact.hessian.smallest.value < -0.01
    assert exact.sharpness_dimension.expansion_negative_curvature > 0.01
    assert found.smallest.value > -1e-9 * found.largest.value
    assert beside.negative_curvature <= beside.rounding < 1e-9
    assert beside.unstable == pytest.approx(beside.value)
    assert beside.is_resolved
    assert not [note for note in exact.warnings if note.code == "not-convex"]


@pytest.mark.slow
def test_the_interval_is_that_of_the_mean_over_minibatches() -> None:
    """Of arrays: 20 minibatches of the population, none of them certain."""
    net = model(4)
    found = only(sdkeras.analyze(net, (X, Y), batch_size=BATCH, operator="ggn", exact=True, runs=20, **FIXED))
    beside = found.expansion
    loss = sdkeras.EmpiricalLoss(net, (X, Y), batch_size=BATCH, dtype="float64", seed=1)
    operators = sdkeras.GaussNewtonOperator(loss), sdkeras.HessianOperator(loss)
    g, h = (growth([each.on_minibatch(k).as_matrix() for k in range(beside.num_runs)]) for each in operators)
    assert beside.value == pytest.approx(g.mean(), rel=0.5)
    quantile = scipy.special.stdtrit(len(g) - 1, 0.975)
    for values, interval in ((g, beside.interval), (h - g, beside.difference_interval)):
        half = quantile * values.std(ddof=1) / np.sqrt(len(values))
        assert np.ptp(interval) / 2 == pytest.approx(half, rel=0.35)
        assert interval[0] < values.mean() < interval[1]


@pytest.mark.slow
def test_the_answer_for_the_hessian_is_the_same_without(exact: Analysis) -> None:
    without = sdkeras.analyze(deep(), batches(X, Z), exact=True, exact_minibatches=5, **FIXED)
    assert without.operators == ()
    for name in ("hessian", "estimates", "rds_sharpness", "edge_of_stability", "spectrum", "verification", "warnings"):
        assert getattr(exact, name) == getattr(without, name), name
    checks = exact.provenance.num_hvps - without.provenance.num_hvps - only(exact).num_hvps
    assert 0 < checks < 30


@pytest.mark.slow
def test_a_regularizer_is_in_one_and_not_in_the_other() -> None:
    """L2 of 0.5 on every kernel adds 2 * 0.5 to its diagonal in G; the Fisher matrix is that of the likelihood."""
    net = keras.Sequential(
        [keras.Input((5,)), layers.Dense(2, use_bias=False, kernel_regularizer=keras.regularizers.L2(0.5))]
    )
    net.compile(keras.optimizers.SGD(0.01), "mse")
    run = sdkeras.analyze(net, (X, Z), batch_size=BATCH, operator=("ggn", "fisher"), runs=3, **FIXED)
    g, f = run.operators
    assert g.largest.value == pytest.approx(f.largest.value + 1, rel=1e-9)
    assert g.smallest.value == pytest.approx(f.smallest.value + 1, rel=1e-6)


@keras.saving.register_keras_serializable("tests")
class Wavy(keras.losses.Loss):
    """Not convex in the outputs."""

    def call(self, y_true: Any, y_pred: Any) -> Any:
        return keras.ops.mean(keras.ops.cos(y_pred - y_true), axis=-1)


def test_a_loss_that_is_not_convex_has_a_note() -> None:
    run = sdkeras.analyze(deep(loss=Wavy()), (X, Z), batch_size=BATCH, operator="ggn", runs=3, **FIXED)
    (note,) = [note for note in run.warnings if note.code == "not-convex"]
    assert only(run).smallest.value < 0
    assert "not convex in its outputs" in note.message
    assert only(run).expansion.negative_curvature > only(run).expansion.rounding


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "operator"),
    [(keras.optimizers.SGD(0.5, momentum=0.5), "G"), (keras.optimizers.Adam(0.125), "P^-1/2 G P^-1/2")],
    ids=["momentum", "adam"],
)
def test_the_map_is_the_optimizers_own(optimizer: keras.optimizers.Optimizer, operator: str) -> None:
    net = model(optimizer=optimizer)
    net.fit(X, Y, epochs=1, verbose=0)
    run = sdkeras.analyze(net, (X, Y), batch_size=BATCH, operator="ggn", runs=4, **FIXED)
    found = only(run)
    assert found.spectrum.operator == operator
    assert found.expansion.hessian == pytest.approx(run.sharpness_dimension.expansion)
    assert found.expansion.value == pytest.approx(found.expansion.hessian, rel=1e-8)


@pytest.mark.slow
def test_without_a_learning_rate_there_is_a_spectrum_and_no_expansion() -> None:
    net = deep(optimizer=keras.optimizers.SGD(0.0))
    run = sdkeras.analyze(net, (X, Z), batch_size=BATCH, operator="ggn", runs=3, **FIXED)
    found = only(run)
    assert run.sharpness_dimension is None
    assert found.expansion is None
    assert found.spectrum.nodes.min() > -1e-9
    assert run.spectrum.nodes.min() < -0.01
    assert "smallest eigenvalue" in str(run)


def test_products_are_planned_and_counted() -> None:
    """All but those of Lanczos, whose number of steps is known afterwards only: a batch has more outputs than that."""
    options = {**FIXED, "batch_size": 30, "runs": 6, "preset": "standard"}
    net, data = deep(), (X, Z)
    plans = [analyze.plan(net, data, **options, operator=each) for each in ((), ("ggn",), ("ggn", "fisher"))]
    run = sdkeras.analyze(net, data, **options, operator=("ggn", "fisher"))
    without = sdkeras.analyze(net, data, **options)
    per_run = run.sharpness_dimension.num_hvps
    assert [plan.num_hvps_pilot for plan in plans] == [per_run, 2 * per_run, 3 * per_run]
    more = run.provenance.num_hvps - without.provenance.num_hvps
    assert plans[2].num_hvps - plans[0].num_hvps == pytest.approx(more, rel=0.3)
    assert sum(each.num_hvps for each in run.operators) <= more
    assert run.edge_of_stability.mean_square_stability.kappa == without.edge_of_stability.mean_square_stability.kappa


@pytest.mark.parametrize("limit", [300, pytest.param(700, marks=pytest.mark.slow)])
def test_a_limit_on_products_holds(limit: int) -> None:
    options = {**FIXED, "batch_size": BATCH, "operator": ("ggn", "fisher")}
    run = sdkeras.analyze(deep(), (X, Z), **options, max_hvps=limit)
    assert run.provenance.num_hvps <= limit
    assert run.status == "limit on products"
    assert analyze.plan(deep(), (X, Z), **options, max_hvps=limit).num_hvps <= limit
    assert len(run.operators) == 2
    wanted, said = run.sharpness_dimension.num_runs, " ".join(note.message for note in run.warnings)
    short = [each for each in run.operators if each.expansion is None or each.expansion.num_runs < wanted]
    assert all(each.name in said for each in short)
    assert "matrix by matrix" in str(run)


@pytest.mark.slow
def test_a_checkpoint_goes_on_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ended in the middle of the other matrix' runs."""
    options = {**FIXED, "batch_size": BATCH, "operator": "ggn", "runs": 6}
    whole = sdkeras.analyze(deep(), (X, Z), **options)
    place = tmp_path / "kept.npz"

    def ended(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("sdkeras.runs.beside.expansion_beside", ended)
        with pytest.raises(KeyboardInterrupt):
            sdkeras.analyze(deep(), (X, Z), **options, checkpoint=place)
    again = sdkeras.analyze(deep(), (X, Z), **options, checkpoint=place)
    assert again.operators == whole.operators
    assert again.provenance.num_hvps == whole.provenance.num_hvps
    with pytest.raises(SdkerasError, match=r"another analysis \(it differs in: operator\)"):
        sdkeras.analyze(deep(), (X, Z), **{**options, "operator": "fisher"}, checkpoint=place)


def test_files_hold_it_and_reports_show_it(exact: Analysis, tmp_path: Path) -> None:
    exact.save(tmp_path / "run.json")
    assert Analysis.load(tmp_path / "run.json") == exact
    table = exact.summary()
    rows = {path: words for path, words in table["meaning"].items() if path.startswith("operators.")}
    assert rows == {
        "operators.0.largest.value": "largest eigenvalue (Gauss-Newton matrix of the loss)",
        "operators.0.smallest.value": "smallest eigenvalue (Gauss-Newton matrix of the loss)",
        "operators.0.trace.value": "trace (Gauss-Newton matrix of the loss)",
        "operators.0.expansion.value": "E+ with it in place of the Hessian (Gauss-Newton matrix of the loss)",
        "operators.0.expansion.difference": "E+ of the Hessian less that (Gauss-Newton matrix of the loss)",
        "operators.0.expansion.hessian": "E+ of the Hessian in the same runs (Gauss-Newton matrix of the loss)",
    }
    for text in (str(exact), as_html(exact)):
        assert "Gauss-Newton G" in text
        assert "by negative curvature" in text
    assert "Spectral densities of the matrices" in as_html(exact)


def test_two_runs_are_compared_matrix_by_matrix(linear: Analysis) -> None:
    """By the matrix, wherever it stands in the list; E+ only under the same map."""
    other = attrs.evolve(linear, operators=linear.operators[::-1])
    rows = {row.group: row for row in sdkeras.compare(linear, other).numbers if row.path.endswith("expansion.value")}
    assert set(rows) == {"Gauss-Newton matrix of the loss", "Fisher matrix of the loss"}
    assert all(row.outcome == "equal" for row in rows.values())
    estimate = attrs.evolve(linear.sharpness_dimension, map="hessian")
    apart = sdkeras.compare(linear, attrs.evolve(linear, sharpness_dimension=estimate))
    outcomes = {row.path: row.outcome for row in apart.numbers}
    assert outcomes["operators.0.expansion.value"] == "not comparable"
    assert outcomes["operators.0.largest.value"] == "equal"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"operator": "kfac"}, "operator is 'kfac'; it must be hessian, ggn or fisher, or several of them."),
        ({"operator": 3}, "operator is 3; it must be"),
        ({"operator": ("ggn", None)}, "operator is None; it must be"),
        ({"operator": "ggn", "map": "full"}, "leave out one of them"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], words: str) -> None:
    with pytest.raises(SdkerasError) as caught:
        Options(**options)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_hessian_is_always_there_and_no_other() -> None:
    assert Options(operator="hessian").operator == Options().operator == ()
    assert Options(operator=["fisher", "hessian", "ggn", "ggn"]).operator == ("ggn", "fisher")


@pytest.mark.parametrize(
    ("net", "options", "words"),
    [
        (lambda: deep(loss="huber"), {"operator": "fisher"}, r"Fisher matrix is not known; take .*`operator='ggn'`"),
        (
            deep,
            {"operator": "ggn", "loss_fn": lambda net, batch: keras.ops.mean(net(batch[0]) ** 2)},
            r"no Gauss-Newton matrix .`operator='ggn'`.*function of the model and the batch",
        ),
        (
            lambda: model(outputs=2, loss="mse", last=[layers.ActivityRegularization(0.1)]),
            {"operator": "fisher"},
            r"no Fisher matrix .*a layer adds a loss",
        ),
    ],
    ids=["no likelihood", "function", "activity"],
)
def test_what_has_no_such_matrix_is_refused_before_the_work(
    net: Any, options: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(analyze, "HessianOperator", None)  # nothing is made of the Hessian yet
    with pytest.raises(ModelError, match=words) as caught:
        sdkeras.analyze(net(), (X, Z), batch_size=BATCH, **options, **FIXED)
    assert "\n" not in str(caught.value)


def test_runs_with_all_steps_are_those_that_stand_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after an analysis whose later runs have fewer steps; of a linear model, whose pairs are equal."""
    measured, seen = measure.dimension, list[Any]()

    def every_other(*arguments: Any) -> Any:
        outcome, notes = measured(*arguments)
        few = Sample.of([outcome.runs[k] for k in (1, 3, 4, 7)])
        finest = summarise(few, outcome.finest.context).pooled
        return attrs.evolve(outcome, finest=finest, finest_runs=(1, 3, 4, 7)), notes

    def kept(*arguments: Any) -> Any:
        seen.append(arguments)
        return expansion_beside(*arguments)

    monkeypatch.setattr(measure, "dimension", every_other)
    monkeypatch.setattr("sdkeras.runs.beside.expansion_beside", kept)
    run = sdkeras.analyze(model(), (X, Y), batch_size=BATCH, operator="ggn", runs=8, **FIXED)
    beside = only(run).expansion
    assert beside.num_runs == 4
    assert beside.hessian != pytest.approx(run.sharpness_dimension.expansion, rel=1e-3)
    assert abs(beside.difference) < 1e-8 * beside.value
    assert np.ptp(beside.difference_interval) < 1e-8 * beside.value
    # Where a limit has ended the runs, the first pairs stay pairs.
    ((hessian, runs, context, steps),) = seen
    few = expansion_beside(hessian, runs[:3], context, steps)
    assert few.num_runs == 3
    assert np.ptp(few.difference_interval) < 1e-8
    assert few.hessian != pytest.approx(beside.hessian, rel=1e-3)
    assert expansion_beside(hessian, runs[:2], context, steps).interval is None
