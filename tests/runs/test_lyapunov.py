"""`sdkeras.lyapunov`, with windows too, against closed forms, differenced `train_on_batch`, and itself interrupted."""

import os
import signal

import attrs
import keras
import numpy as np
import pytest

import sdkeras
from flows import RandomProducts
from sdkeras.errors import Interrupted, ModelError, OperatorSizeError, PluginError, SdkerasError
from sdkeras.linalg.probes import start_frame
from sdkeras.operators import precision
from sdkeras.results.codec import as_plain, from_plain
from sdkeras.results.lyapunov import LyapunovSummary
from sdkeras.results.progress import Progress
from sdkeras.runs import lyapunov
from sdkeras.runs.budget import Meter
from sdkeras.runs.lyapunov_options import LyapunovOptions
from small_trainings import RATE, X, Y, classifier, everything, quadratic


@pytest.fixture(autouse=True)
def _seed() -> None:
    keras.utils.set_random_seed(0)


@pytest.fixture(scope="module")
def trained() -> keras.Model:
    """A classifier after three steps of SGD with momentum; nothing changes it."""
    keras.utils.set_random_seed(0)
    return classifier(keras.optimizers.SGD(0.5, momentum=0.5))


@pytest.fixture(scope="module")
def step() -> sdkeras.UpdateMap:
    """Compiled once for the tests of what happens along the way; nothing changes it."""
    keras.utils.set_random_seed(0)
    model = classifier(keras.optimizers.SGD(0.5, momentum=0.5), dtype="float64")
    return sdkeras.UpdateMap(sdkeras.EmpiricalLoss(model, (X, Y), batch_size=4, dtype="float64"), model.optimizer)


def follow(step: sdkeras.UpdateMap, *, deadline: float | None = None, progress=None, **options) -> lyapunov.Followed:
    settings = LyapunovOptions(**({"num_steps": 8, "transient": 1} | options))
    budget = lyapunov.budget_of(step, Meter(lambda: step.num_products, progress, deadline=deadline))
    return lyapunov.follow(step, settings, about={}, budget=budget)


def told(answer: sdkeras.LyapunovRun | lyapunov.Followed) -> dict[str, str]:
    """Warnings by code."""
    return {warning.code: warning.message for warning in answer.warnings}


# Exponents


def test_momentum_on_a_quadratic_has_those_of_its_eigenvalues_and_the_volume_of_beta() -> None:
    beta, steps = 0.5, np.array([0.02, 0.05, 2.95, 3.2])
    model, data = quadratic(list(steps / RATE), keras.optimizers.SGD(RATE, momentum=beta))
    run = sdkeras.lyapunov(model, data, batch_size=16, num_steps=64, transient=400, dtype="float64")
    roots = np.concatenate([np.roots([1.0, -(1 + beta - step), beta]) for step in steps])
    np.testing.assert_allclose(run.lyapunov.values, np.sort(np.log(np.abs(roots)))[::-1], atol=1e-6)
    assert run.lyapunov.log_det == pytest.approx(4 * np.log(beta), abs=1e-9)
    assert run.lyapunov.num_weights == 4
    assert run.lyapunov.dimension.size == 8


def test_exponents_are_those_of_products_of_differences_of_train_on_batch() -> None:
    """Minibatches, momentum and decay: s beta is the volume of each pair, whatever the loss."""
    beta, decay, num_steps = 0.5, 0.25, 6
    model = classifier(keras.optimizers.SGD(RATE, momentum=beta, weight_decay=decay), dtype="float64")
    run = sdkeras.lyapunov(
        model, (X, Y), batch_size=5, num_exponents=24, num_steps=num_steps, transient=0, dtype="float64", seed=4
    )
    velocities = [v for v in model.optimizer.variables if "momentum" in v.path]
    variables = [*model.trainable_variables, *velocities]
    sizes = np.cumsum([int(np.prod(v.shape)) for v in variables])[:-1]
    source = sdkeras.EmpiricalLoss(model, (X, Y), batch_size=5, dtype="float64").source

    def put(state: np.ndarray) -> None:
        for variable, part in zip(variables, np.split(state, sizes), strict=True):
            variable.assign(part.reshape(variable.shape))

    def stepped(state: np.ndarray, index: int) -> np.ndarray:
        put(state)
        with precision.default_precision("float64"):
            model.train_on_batch(*source.minibatch(index, 4))
        return np.concatenate([np.asarray(v).ravel() for v in variables])

    state = np.concatenate([np.asarray(v).ravel() for v in variables])
    assert len(state) == 24
    frame, logs = start_frame(24, 24, seed=4, dtype=np.float64), np.zeros(24)
    for index in range(num_steps):
        shifts = 1e-5 * np.eye(24)
        jacobian = np.stack(
            [(stepped(state + shift, index) - stepped(state - shift, index)) / 2e-5 for shift in shifts], axis=1
        )
        frame, r = np.linalg.qr(jacobian @ frame)
        logs += np.log(np.abs(np.diagonal(r)))
        state = stepped(state, index)
    np.testing.assert_allclose(run.lyapunov.values, np.sort(logs / num_steps)[::-1], atol=1e-7)
    assert run.lyapunov.log_det == pytest.approx(12 * np.log(beta * (1 - RATE * decay)), abs=1e-9)


def interrupt_after(index: int, seen: list[str]):
    """Ctrl-C in this step of 35."""

    def watch(step: Progress) -> None:
        seen.append(step.stage)
        if step.stage == f"training step {index} of 35":
            os.kill(os.getpid(), signal.SIGINT)

    return watch


def test_a_resume_equals_an_uninterrupted_run(step: sdkeras.UpdateMap, tmp_path) -> None:
    """Stopped in the transient and again in the measured steps; the same file then takes it further."""
    options = {"num_exponents": 4, "num_steps": 30, "transient": 5}
    whole = follow(step, **options)
    options["checkpoint"] = str(tmp_path / "run.npz")
    seen = []
    with pytest.raises(Interrupted):
        follow(step, **options, progress=interrupt_after(3, seen))
    part = follow(step, **options, progress=interrupt_after(17, seen))
    assert part.interrupted
    assert (part.summary.num_steps, part.summary.num_steps_asked) == (12, 30)
    again = follow(step, **options, progress=interrupt_after(36, seen))
    assert [stage for stage in seen if "step " in stage and "of" in stage] == [
        f"training step {index} of 35" for index in range(1, 36)
    ]
    assert again.summary == whole.summary
    assert not again.interrupted
    assert follow(step, **(options | {"num_steps": 40})).summary.num_steps == 40


@pytest.mark.slow
def test_ctrl_c_keeps_the_steps_so_far_and_a_resume_equals_an_uninterrupted_run(trained, tmp_path) -> None:
    options = {"batch_size": 4, "num_exponents": 4, "num_steps": 30, "transient": 5}
    handler = signal.getsignal(signal.SIGINT)
    whole = sdkeras.lyapunov(trained, (X, Y), **options)
    assert signal.getsignal(signal.SIGINT) is handler
    options["checkpoint"] = tmp_path / "run.npz"
    seen = []
    with pytest.raises(KeyboardInterrupt):
        sdkeras.lyapunov(trained, (X, Y), **options, progress=interrupt_after(3, seen))
    assert signal.getsignal(signal.SIGINT) is handler
    part = sdkeras.lyapunov(trained, (X, Y), **options, progress=interrupt_after(17, seen))
    assert part.partial
    assert (part.lyapunov.num_steps, part.lyapunov.num_steps_asked) == (12, 30)
    again = sdkeras.lyapunov(trained, (X, Y), **options, progress=interrupt_after(36, seen))
    assert [stage for stage in seen if "step " in stage and "of" in stage] == [
        f"training step {index} of 35" for index in range(1, 36)
    ]
    assert again.lyapunov == whole.lyapunov
    assert not again.partial
    longer = sdkeras.lyapunov(trained, (X, Y), **(options | {"num_steps": 40}))
    assert longer.lyapunov.num_steps == 40


@pytest.fixture(scope="module")
def kept(trained: keras.Model, tmp_path_factory) -> dict[str, object]:
    """Options of a run whose checkpoint is there."""
    options = {"batch_size": 4, "num_exponents": 2, "num_steps": 4, "transient": 0}
    options["checkpoint"] = tmp_path_factory.mktemp("kept") / "run.npz"
    sdkeras.lyapunov(trained, (X, Y), **options)
    return options


SMOOTHED = keras.losses.SparseCategoricalCrossentropy(from_logits=True, name="smoothed")


@pytest.mark.parametrize(
    ("shift", "other"),
    [
        (1e-6, {}),
        *[
            pytest.param(0.0, other, marks=pytest.mark.slow)
            for other in ({"learning_rate": 0.25}, {"batch_size": 6}, {"loss": SMOOTHED})
        ],
    ],
    ids=["data", "rate", "batches", "loss"],
)
def test_a_checkpoint_of_another_run_is_refused(trained, kept, shift: float, other: dict) -> None:
    with pytest.raises(SdkerasError, match="another run"):
        sdkeras.lyapunov(trained, (X + shift, Y), **(kept | other))


def test_divergence_is_an_answer() -> None:
    model, data = quadratic([100.0], keras.optimizers.SGD(1e4))
    run = sdkeras.lyapunov(model, data, num_steps=500, transient=2, dtype="float32")
    assert run.lyapunov.stopped_at is not None
    assert run.lyapunov.num_steps == run.lyapunov.stopped_at - 3
    assert run.lyapunov.dimension.status == "undetermined"
    assert not run.partial
    assert "diverged" in told(run)
    assert f"at step {run.lyapunov.stopped_at}" in str(run)


@pytest.mark.slow
def test_an_optimizer_without_a_step_is_explained() -> None:
    model = classifier(keras.optimizers.Adam(0.01), steps=0)
    for rate in (None, 0.02):
        with pytest.raises(ModelError, match="has taken no step"):
            sdkeras.lyapunov(model, (X, Y), num_steps=2, learning_rate=rate)
    assert not model.optimizer.built
    run = sdkeras.lyapunov(
        model, (X, Y), num_steps=2, transient=0, num_exponents=1, learning_rate=0.02, initial_slots=True
    )
    assert run.optimizer.learning_rate == pytest.approx(0.02)
    assert "initial-slots" in told(run)
    assert not model.optimizer.built
    # Plain SGD has no slots to miss.
    assert sdkeras.lyapunov(classifier(keras.optimizers.SGD(0.5), steps=0), (X, Y), num_steps=2, num_exponents=1)


@pytest.mark.parametrize("scheduled", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_given_learning_rate_is_that_of_the_steps(scheduled: bool) -> None:
    """The multiplier of one direction, with a rate in the file and with a schedule that would have decayed."""
    rate = keras.optimizers.schedules.ExponentialDecay(0.25, 1, 0.5) if scheduled else 0.25
    model, data = quadratic([3.0], keras.optimizers.SGD(rate))
    run = sdkeras.lyapunov(model, data, num_steps=5, transient=0, dtype="float64", learning_rate=RATE)
    assert run.lyapunov.values[0] == pytest.approx(np.log(1 - 3 * RATE), abs=1e-9)
    assert run.optimizer.learning_rate_source == "given"
    assert run.optimizer.learning_rate == RATE
    assert float(np.asarray(model.optimizer.learning_rate)) == 0.25 * (0.5 if scheduled else 1.0)


@pytest.mark.slow
def test_exponents_that_drift_are_told() -> None:
    """A rate that decays: ln(1 - 3 rate) rises towards 0 all along."""
    rate = keras.optimizers.schedules.ExponentialDecay(RATE, 20, 0.5)
    model, data = quadratic([3.0], keras.optimizers.SGD(rate))
    run = sdkeras.lyapunov(model, data, num_steps=64, transient=0, dtype="float64")
    assert "drifting" in told(run)
    steady = sdkeras.lyapunov(model, data, num_steps=64, transient=0, dtype="float64", learning_rate=RATE)
    assert "drifting" not in told(steady)


def test_a_given_loss_is_that_of_the_steps() -> None:
    model, data = quadratic([3.0], keras.optimizers.SGD(RATE, momentum=0.5))
    before = everything(model)
    run = sdkeras.lyapunov(model, data, num_steps=4, transient=0, dtype="float64", loss="mae")
    assert run.model.loss == "mean_absolute_error"
    assert everything(model) == before
    # The absolute error has no curvature where it has one at all: eigenvalues of [[1, beta], [0, beta]].
    assert run.lyapunov.log_det == pytest.approx(np.log(0.5), abs=1e-9)


@pytest.mark.slow
def test_an_analysis_has_them_too(trained: keras.Model) -> None:
    """With the same steps and seed they are those of `lyapunov`, number by number."""
    before = everything(trained)
    options = {"lyapunov": 2, "lyapunov_steps": 40, "lyapunov_transient": 5}
    run = sdkeras.analyze(trained, (X, Y), batch_size=4, runs=1, seed=3, **options)
    assert everything(trained) == before
    alone = sdkeras.lyapunov(trained, (X, Y), batch_size=4, num_exponents=2, seed=3, num_steps=40, transient=5)
    assert run.lyapunov == alone.lyapunov
    assert not run.partial
    assert run.provenance.num_hvps > 2 * 45
    assert sdkeras.Analysis.from_json(run.to_json()) == run


def test_an_analysis_refuses_them_before_the_work() -> None:
    model = classifier(keras.optimizers.Adam(0.5), steps=0)
    with pytest.raises(ModelError, match="has taken no step"):
        sdkeras.analyze(model, (X, Y), lyapunov=2)
    for options in ({"params": "kernel"}, {"mode": "inference"}):
        with pytest.raises(SdkerasError, match="of all variables and in training mode"):
            sdkeras.analyze(model, (X, Y), lyapunov=2, **options)
    with pytest.raises(SdkerasError, match="lyapunov is 0"):
        sdkeras.analyze(model, (X, Y), lyapunov=0)
    with pytest.raises(SdkerasError, match="exceeds the size of the state, 12"):
        sdkeras.analyze(classifier(keras.optimizers.SGD(0.5)), (X, Y), lyapunov=13)


def test_a_standard_error_takes_ten_epochs(step: sdkeras.UpdateMap) -> None:
    """Three minibatches an epoch: of one permutation, so that blocks within it are no independent samples."""
    for num_steps, enough in ((29, False), (30, True)):
        found = follow(step, num_steps=num_steps, num_exponents=2).summary
        assert (found.block_size, len(found.history[0])) == (3, num_steps // 3)
        words = "blocks of whole epochs give no standard error; take 30 steps or more, or several forks"
        assert (words in found.dimension.reason) != enough


# Forks

FORKED = {"num_exponents": 2, "num_steps": 30, "transient": 5, "forks": 4}


@pytest.fixture(scope="module")
def forked(step: sdkeras.UpdateMap) -> lyapunov.Followed:
    return follow(step, **FORKED)


def test_forks_are_trajectories_with_minibatches_of_their_own(
    step: sdkeras.UpdateMap, forked: lyapunov.Followed
) -> None:
    found = forked.summary
    assert (found.forks.count, found.num_steps, found.num_steps_asked) == (4, 30, 30)
    assert len(set(found.forks.seeds)) == 4
    assert found.forks.seeds[0] == LyapunovOptions().seed
    alone = [follow(step, **(FORKED | {"forks": 1, "seed": seed})).summary for seed in found.forks.seeds]
    # One after the other, decomposed as seldom as their growth allows: the same but for rounding, and each sorted.
    sums = [each.values.sum() for each in alone]
    assert found.values.sum() == pytest.approx(np.mean(sums), abs=1e-9)
    assert np.ptp([each.values[0] for each in alone]) > 1e-3
    # After 5 steps the second frame has not yet turned to the directions of the first.
    assert np.all(found.forks.alignment > 1e-4)
    assert from_plain(as_plain(found), LyapunovSummary, "here") == found


def test_forks_cost_as_many_trajectories_and_one_more(step: sdkeras.UpdateMap, trained: keras.Model) -> None:
    before, stages = step.num_products, []
    follow(step, **(FORKED | {"num_steps": 4}), progress=lambda progress: stages.append(progress.stage))
    assert step.num_products - before == 5 * 2 * 9
    assert stages[0] == "fork 1 of 4, training step 1 of 9"
    assert stages[-1] == "second frame of fork 1, training step 9 of 9"
    several, one = (lyapunov.plan(trained, (X, Y), batch_size=4, **(FORKED | {"forks": k})) for k in (4, 1))
    assert (several.forks, one.forks) == (4, 1)
    assert several.num_hvps - one.num_hvps == 4 * 2 * 35
    gradients = [plan.seconds / plan.seconds_per_gradient for plan in (several, one)]
    assert gradients[0] / gradients[1] == pytest.approx(several.num_hvps / one.num_hvps)


def test_forks_go_on_where_they_ended(step: sdkeras.UpdateMap, forked: lyapunov.Followed, tmp_path) -> None:
    """Ctrl-C in the third: too few to be pooled. The same files end as the uninterrupted run, and go further."""
    options = FORKED | {"checkpoint": str(tmp_path / "run.npz")}
    stages: list[str] = []

    def stop(progress: Progress) -> None:
        stages.append(progress.stage)
        if progress.stage == "fork 3 of 4, training step 17 of 35":
            os.kill(os.getpid(), signal.SIGINT)

    part = follow(step, **options, progress=stop)
    assert part.interrupted
    assert part.summary.forks is None
    assert "3 of 4 forks have steps" in told(part)["too-few-forks"]
    assert part.summary.num_steps == 30
    del stages[-1]  # Ctrl-C came after it
    again = follow(step, **options, progress=lambda progress: stages.append(progress.stage))
    assert again.summary == forked.summary
    assert not again.interrupted
    assert len(stages) == 5 * 35 - 1
    longer = follow(step, **(options | {"num_steps": 40}))
    assert longer.summary == follow(step, **(FORKED | {"num_steps": 40})).summary
    with pytest.raises(SdkerasError, match="differs in: steps that are kept"):
        follow(step, **(options | {"forks": 1}))


def test_each_fork_has_its_share_of_the_time(step: sdkeras.UpdateMap, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(lyapunov.time, "monotonic", lambda: now[0])

    def tick(progress: Progress) -> None:
        now[0] += "training step" in progress.stage

    cut = follow(step, **FORKED, progress=tick, deadline=5 * 17.0)
    assert now[0] == 5 * 17.0
    assert cut.timed_out
    assert (cut.summary.num_steps, cut.summary.forks.count) == (12, 4)
    assert "12 of 30 steps were measured" in told(cut)["time-limit"]
    now[0] = 0.0
    assert not follow(step, **FORKED, progress=tick, deadline=5 * 35.0).timed_out


def test_forks_have_the_known_exponent_of_a_linear_map() -> None:
    """One weight and one sample a step: ell is the mean of ln |1 - 2 eta x^2| over the data."""
    x = np.linspace(0.5, 3.5, 8)[:, None]
    with precision.default_precision("float64"):
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
        model.compile(keras.optimizers.SGD(RATE), "mse")
        model.train_on_batch(x, np.sin(x))
    run = sdkeras.lyapunov(model, (x, np.sin(x)), batch_size=1, num_steps=60, transient=3, dtype="float64", forks=4)
    found, factors = run.lyapunov, np.log(np.abs(1 - 2 * RATE * x[:, 0] ** 2))
    assert found.forks.r_hat[0] < 1.01
    # Sampled by epochs, that is with less error than independent steps would have.
    assert abs(found.values[0] - factors.mean()) < found.forks.half_widths[0]
    assert 0 < found.stderr[0] <= factors.std() / np.sqrt(240) * 1.1
    assert found.forks.alignment[0] == pytest.approx(0.0, abs=1e-12)  # there is one direction
    assert run.provenance.num_hvps >= 5 * 63
    assert sdkeras.LyapunovRun.from_json(run.to_json()) == run
    shown = run.to_json()
    assert '"r_hat"' in shown


# Windows


@pytest.mark.parametrize(
    ("momentum", "nesterov"),
    [
        pytest.param(0.0, False, marks=pytest.mark.slow),
        (0.5, False),
        pytest.param(0.5, True, marks=pytest.mark.slow),
    ],
    ids=["sgd", "heavy-ball", "nesterov"],
)
def test_the_order_along_training(momentum: float, nesterov: bool) -> None:
    """SD^(m) <= SD, SD^(m') <= SD^(m) for m | m', D_s <= SD^(m): to roundoff, over the same steps."""
    decay = 0.25
    optimizer = keras.optimizers.SGD(RATE * 4, momentum=momentum, nesterov=nesterov, weight_decay=decay)
    model = classifier(optimizer, dtype="float64")
    before = everything(model)
    run = sdkeras.lyapunov(
        model, (X, Y), batch_size=4, num_steps=48, transient=5, dtype="float64", windows=(16, 2, 4, 3)
    )
    assert everything(model) == before
    found = run.lyapunov
    size = found.dimension.size
    assert found.coordinates == ("balanced" if momentum else "weights")
    assert size == len(found.values) == (24 if momentum else 12)
    value = {window.num_window_steps: window.dimension for window in found.windows}
    assert list(value) == [1, 2, 3, 4, 16]
    for m in value:
        for longer in value:
            if longer % m == 0:
                assert value[longer] <= value[m] + 1e-9 * size
        assert sdkeras.sharpness_dimension(found.values) <= value[m] + 1e-9 * size
    assert value[16] < value[1] - 0.5
    assert found.sharpest.value <= min(value.values())
    assert found.values.sum() == pytest.approx(found.log_det, abs=1e-10)
    if momentum and not nesterov:
        assert found.values.sum() == pytest.approx(12 * np.log(momentum * (1 - 4 * RATE * decay)), abs=1e-9)
        assert found.log_det_stderr == pytest.approx(0.0, abs=1e-12)
    assert told(run).keys().isdisjoint({"mixed-units", "other-steps"})
    assert sdkeras.LyapunovRun.from_json(run.to_json()) == run


@pytest.mark.parametrize("count", [None, 2])
def test_a_quadratic_has_the_dimension_of_its_multipliers(count: int | None) -> None:
    """Full batches of a linear model: J is constant and symmetric, so SD^(m) = SD, and D_s is the same number."""
    curvatures = [20.0, 17.0, 4.0, 6.0, 11.0]
    model, data = quadratic(curvatures, keras.optimizers.SGD(RATE))
    run = sdkeras.lyapunov(
        *(model, data),
        **{"batch_size": 20, "num_steps": 40, "transient": 60, "dtype": "float64"},
        windows=(2, 8, 20),
        num_exponents=count,
    )
    logs = np.sort(np.log(np.abs(1 - RATE * np.array(curvatures))))[::-1]
    np.testing.assert_allclose(run.lyapunov.values, logs[:count], atol=1e-9)
    assert not run.partial
    expected = sdkeras.sharpness_dimension(logs)
    assert expected == pytest.approx(2 + logs[:2].sum() / -logs[2])
    assert 2 < expected < 3
    for window in run.lyapunov.windows:
        assert window.dimension == pytest.approx(expected, abs=1e-7)
        # 20 steps as one span more than e^22: the smallest are hidden, not wrong.
        assert window.num_resolved == (3 if window.num_window_steps == 20 else 5)
        resolved = window.num_window_steps * logs[: window.num_resolved]
        np.testing.assert_allclose(window.exponents, resolved, atol=1e-6)
    assert run.lyapunov.log_det == pytest.approx(logs.sum(), abs=1e-9)
    low, high = run.lyapunov.dimension.interval
    if count is None:
        assert run.lyapunov.dimension.status == "determined"
        assert run.lyapunov.dimension.value == pytest.approx(expected, abs=1e-6)
        assert run.lyapunov.sharpest.value == pytest.approx(expected, abs=1e-6)
    else:
        # Two exponents and the determinant: the other three fall fastest where they are equal.
        total = logs[:2].sum()
        assert run.lyapunov.dimension.status == "bracketed"
        assert low == pytest.approx(2 + total * 3 / (total - logs.sum()), abs=1e-6)
        assert low < expected - 0.05
        assert high == pytest.approx(expected, abs=1e-7)


@pytest.mark.slow
def test_the_slots_of_other_optimizers_are_scaled_by_kind_and_it_is_said() -> None:
    model = classifier(keras.optimizers.AdamW(0.01))
    before = everything(model)
    run = sdkeras.lyapunov(model, (X, Y), batch_size=4, num_steps=12, transient=2, windows=(2,))
    assert everything(model) == before
    assert run.lyapunov.verification.passed
    assert "held" in told(run)
    assert run.lyapunov.coordinates.startswith("diagonal scaling: momentum x ")
    assert "12 weights and 24 slots" in told(run)["mixed-units"]
    assert run.lyapunov.windows[0].size == 36


def test_without_windows_nothing_is_dense(step: sdkeras.UpdateMap) -> None:
    before = step.num_products
    found = follow(step, num_exponents=2).summary
    assert (found.windows, found.sharpest, found.coordinates) == ((), None, None)
    assert step.num_products - before == 2 * 9


@pytest.mark.parametrize("cut", [False, True], ids=["once", "and among the singular values"])
def test_ctrl_c_keeps_the_windows_of_the_steps_so_far(step: sdkeras.UpdateMap, cut: bool) -> None:
    """Once it ends the trajectory; again it ends the evaluation of the windows, and the exponents stay."""
    stages = ["training step 27 of 45", *(["singular values of the steps and of their products"] if cut else [])]

    def stop(progress: Progress) -> None:
        if progress.stage in stages:
            os.kill(os.getpid(), signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    followed = follow(step, num_steps=40, transient=5, windows=(2, 4), progress=stop)
    assert signal.getsignal(signal.SIGINT) is handler
    assert followed.interrupted
    assert followed.summary.num_steps == 22
    assert len(followed.summary.values) == 24
    assert ("windows-interrupted" in told(followed)) == cut
    if cut:
        assert followed.summary.windows == ()
        return
    one, two, four = followed.summary.windows
    assert one.num_steps == two.num_steps == 22
    assert two.dimension <= one.dimension
    assert "ended after 22 steps" in four.reason


def test_the_time_limit_ends_it_as_ctrl_c_does(
    step: sdkeras.UpdateMap, monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    """By a clock that moves a second a step: no step begins after the limit."""
    now = [0.0]
    monkeypatch.setattr(lyapunov.time, "monotonic", lambda: now[0])

    def tick(progress: Progress) -> None:
        now[0] += progress.stage.startswith("training step")

    options = {"num_steps": 30, "transient": 5, "num_exponents": 2, "progress": tick}
    followed = follow(step, **options, deadline=17.0)
    assert followed.timed_out
    assert not followed.interrupted
    assert followed.summary.num_steps == 12
    assert "12 of 30 steps" in told(followed)["time-limit"]
    now[0] = 0.0
    assert not follow(step, **options, deadline=35.0).timed_out
    now[0] = 0.0
    kept = tmp_path / "run.npz"
    with pytest.raises(Interrupted, match=r"after step 3, before a step was measured \(the first 5"):
        follow(step, **options, deadline=3.0, checkpoint=str(kept))
    assert kept.exists()


def test_an_analysis_keeps_its_time_limit(trained: keras.Model) -> None:
    options = {"batch_size": 4, "lyapunov": 2, "lyapunov_steps": 10, "lyapunov_transient": 0}
    run = sdkeras.analyze(trained, (X, Y), **options, time_limit=1e-6)
    assert run.lyapunov is None
    assert not run.partial
    assert "no Lyapunov exponents" in told(run)["time-limit"]


@pytest.mark.slow
def test_the_bounds_of_an_analysis_take_d_s_where_it_is_determined() -> None:
    curvatures = [20.0, 17.0, 4.0, 6.0, 11.0]
    model, data = quadratic(curvatures, keras.optimizers.SGD(RATE))
    options = {"batch_size": 20, "dtype": "float64", "lyapunov_steps": 40, "lyapunov_transient": 60}
    options["estimators"] = ["exact"]
    run = sdkeras.analyze(model, data, **options, lyapunov=5, bound_inputs={"delta": 0.1, "loss_bound": 1.0})
    value = run.lyapunov.dimension.value
    for bound in run.bounds:
        assert bound.dimension_name == "D_s"
        assert "determined over 40 steps" in bound.dimension_reason
    term = run.bounds[0].terms[1]
    assert term.formula == "2 B sqrt(4 D_s ln(1/delta)/n)"
    assert term.value == pytest.approx(2 * np.sqrt(4 * value * np.log(10) / 20))
    run = sdkeras.analyze(model, data, **options, lyapunov=1, bound_inputs={"delta": 0.1, "loss_bound": 1.0})
    assert run.lyapunov.dimension.status == "bracketed"
    assert run.bounds[0].dimension_name == "SD"
    assert "D_s is bracketed" in run.bounds[0].dimension_reason
    assert run.bounds[0].terms[1].formula == "2 B sqrt(4 SD ln(1/delta)/n)"


def test_a_plan_has_the_products_and_the_memory(trained: keras.Model) -> None:
    before = everything(trained)
    plan = lyapunov.plan(trained, (X, Y), batch_size=4, num_steps=40, transient=5, windows=(1, 4))
    assert everything(trained) == before
    assert (plan.num_parameters, plan.state_size, plan.num_exponents) == (12, 24, 24)
    assert plan.windows == (1, 4)
    assert plan.num_hvps == pytest.approx(45 * 24, abs=40)
    plain = lyapunov.plan(trained, (X, Y), batch_size=4, num_steps=40, transient=5)
    assert plain.num_exponents == 10
    assert plan.num_hvps - plain.num_hvps == 45 * 14
    settings = LyapunovOptions(windows=(1, 4), num_steps=40)
    assert settings.dense_bytes(24, 4) == 24 * 24 * (40 * 4 + 64)
    more = lyapunov.plan(trained, (X, Y), batch_size=4, num_steps=400_000, windows=(1,))
    assert more.peak_memory - plan.peak_memory == pytest.approx(399_960 * 24 * 24 * 4, rel=0.1)


@sdkeras.lyapunov_estimator("another-start")
@attrs.frozen
class AnotherStart:
    """One exponent over the steps after a transient of its own."""

    num_steps: int = 10
    transient: int = 0
    skip: int = 0

    def estimate(self, source: sdkeras.TangentFlow, *, seed: int) -> sdkeras.LyapunovExponents:
        source.reset(seed)
        frame, logs = np.ones((source.size, 1), source.dtype), []
        for _ in range(self.transient + self.num_steps):
            frame = source.step(frame)
            logs.append(float(np.log(np.linalg.norm(frame))))
            frame = frame / np.linalg.norm(frame)
        start = self.transient + self.skip
        return sdkeras.LyapunovExponents(
            values=[np.mean(logs[start:])], stderr=[0.0], num_steps=len(logs) - start, seed=seed, transient=start
        )


def test_an_estimator_of_one_s_own_and_its_settings(step: sdkeras.UpdateMap) -> None:
    options = {"windows": (2,), "estimator": "another-start"}
    followed = follow(step, **options)
    assert followed.summary.estimator == "another-start"
    assert len(followed.summary.values) == 1
    assert "other-steps" not in told(followed)
    followed = follow(step, **options, settings={"another-start": {"skip": 2}})
    assert followed.summary.transient == 3
    assert "6 steps after 3, the windows are over 8 after 1" in told(followed)["other-steps"]
    assert followed.summary.sharpest.name in ("SD", "SD^(2)")
    followed = follow(step, num_steps=400, num_exponents=2, settings={"lyapunov-qr": {"tolerance": 10.0}})
    assert followed.summary.num_steps == 32 * 3  # epochs of three minibatches
    with pytest.raises(PluginError, match=r"'no-steps' .* failed on 24 dimensions: .*nothing here"):
        follow(step, estimator="no-steps")


@sdkeras.lyapunov_estimator("no-steps")
@attrs.frozen
class NoSteps:
    def estimate(self, source: sdkeras.TangentFlow, *, seed: int) -> sdkeras.LyapunovExponents:
        raise RuntimeError("nothing here")


BAD = [
    ({"num_steps": 100, "windows": (1, 3)}, SdkerasError, r"3 steps does not divide the 100 steps.*2 or 4.*99 or 102"),
    ({"num_steps": 100, "windows": (3, 4)}, SdkerasError, r"96 or 108 steps"),
    ({"num_steps": 4, "windows": (8,)}, SdkerasError, r"take 4 in its place, or 8 steps"),
    ({"windows": (0,)}, SdkerasError, "windows must be positive, got 0"),
    ({"windows": (2,), "checkpoint": "run.npz"}, SdkerasError, "holds no Jacobians"),
    ({"windows": (2,), "memory_gb": 4e-5}, OperatorSizeError, r"1,000 steps of a state of 24 dim.*at most \d+ steps"),
    ({"windows": (2,), "memory_gb": 4e-6}, OperatorSizeError, r"not even one step fits"),
    ({"memory_gb": 0.0}, SdkerasError, "memory_gb is 0.0"),
    ({"forks": 3}, SdkerasError, "forks is 3; it must be 1, or 4 or more"),
    ({"forks": 4, "windows": (2,)}, SdkerasError, "windows and forks cannot be combined"),
    ({"forks": 4, "estimator": "no-steps"}, SdkerasError, "has no field keep_steps, which forks need"),
    ({"forks": 4, "batch_size": 12}, SdkerasError, "every step is on the same 12 samples"),
    ({"time_limit": float("inf")}, SdkerasError, "time_limit is inf"),
    (
        {"windows": (2,), "num_exponents": 25},
        SdkerasError,
        r"25 exceeds .* 24 \(12 weights and 12 slots\)",
    ),
    ({"estimator": "lyapunov-qx"}, PluginError, "did you mean 'lyapunov-qr'"),
    ({"settings": {"slq": {"num_steps": 3}}}, SdkerasError, "'slq', which is not used here"),
    ({"settings": {"lyapunov-qr": {"num_steps": 3}}}, SdkerasError, "num_steps of .* is an option of the run"),
    ({"settings": {"lyapunov-qr": {"depth": 3}}}, SdkerasError, "its fields are: num_exponents"),
    ({"settings": {"lyapunov-qr": {"tolerance": -1.0}}}, SdkerasError, "tolerance"),
    ({"estimator": "no-steps", "windows": (2,)}, SdkerasError, "has no field num_steps, which windows need"),
    ({"estimator": "no-steps", "checkpoint": "run.npz"}, SdkerasError, "has no field checkpoint"),
    ({"num_exponents": 0}, SdkerasError, "num_exponents is 0; it must be a positive whole number"),
    ({"num_steps": 0}, SdkerasError, "num_steps is 0"),
    ({"transient": -1}, SdkerasError, "transient is -1"),
    ({"seed": -1}, SdkerasError, "seed is -1"),
    ({"learning_rate": float("nan")}, SdkerasError, "positive and finite"),
    ({"batch_size": 13}, SdkerasError, "larger than the data"),
    ({"dtype": "float16"}, SdkerasError, "float16"),
    ({"loss": "no_such_loss"}, SdkerasError, "no_such_loss"),
    ({"checkpoint": "/no/such/folder/run.npz"}, SdkerasError, "cannot be written"),
]


@pytest.mark.parametrize(("options", "kind", "message"), BAD, ids=lambda value: str(value)[:40])
def test_wrong_use_is_told_before_the_work(options: dict, kind, message: str, trained, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind, match=message):
        sdkeras.lyapunov(trained, (X, Y), **({"batch_size": 4} | options))
    assert list(tmp_path.iterdir()) == []


def test_a_state_too_large_for_dense_work_is_refused_before_the_step_is_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1000), keras.layers.Dense(2)])
    model.compile(keras.optimizers.SGD(0.5, momentum=0.5), "mse")
    model.train_on_batch(X, np.eye(2)[Y])
    monkeypatch.setattr(lyapunov, "UpdateMap", None)  # which cannot be called
    with pytest.raises(OperatorSizeError, match=r"10,004 dimensions; 5,000 are the most"):
        sdkeras.lyapunov(model, (X, np.eye(2)[Y]), batch_size=4, num_steps=2, windows=(1,))


# Effective samples


def exponents_of(means: np.ndarray) -> sdkeras.LyapunovExponents:
    """Exponents whose blocks, of one step each, have these means."""
    history = np.cumsum(means, axis=0) / np.arange(1, len(means) + 1)[:, None]
    values = np.sort(history[-1])[::-1]
    return sdkeras.LyapunovExponents(values, np.ones(len(values)), num_steps=len(means), seed=0, history=history)


def autoregressive(phi: float, length: int, count: int) -> np.ndarray:
    """x_t = phi x_(t-1) + noise, stationary, shape [length, count]."""
    noise = np.random.default_rng(3).standard_normal((length, count))
    series = np.empty_like(noise)
    series[0] = noise[0] / np.sqrt(1 - phi**2)
    for step in range(1, length):
        series[step] = phi * series[step - 1] + noise[step]
    return series


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9, -0.5])
def test_an_autoregressive_series_has_its_known_size(phi: float) -> None:
    samples = lyapunov.effective_samples(exponents_of(autoregressive(phi, 4001, 64)))
    # Single ones spread by 4 to 20 %: the mean of 64 is known to 3 %, and truncation loses a few more.
    assert samples is not None
    assert samples.mean() == pytest.approx(4001 * (1 - phi) / (1 + phi), rel=0.12)


def test_short_and_constant_series_have_none() -> None:
    assert lyapunov.effective_samples(exponents_of(np.ones((7, 2)))) is None
    assert lyapunov.effective_samples(sdkeras.LyapunovExponents([0.1], [0.1], num_steps=9, seed=0)) is None
    samples = lyapunov.effective_samples(exponents_of(np.ones((8, 2))))
    assert samples is not None
    assert np.all(np.isnan(samples))


@pytest.mark.parametrize("num_steps", [50, 600])
def test_blocks_of_independent_products_count_fully(num_steps: int) -> None:
    flow = RandomProducts(3, lambda rng: rng.standard_normal((3, 3)))
    qr = sdkeras.get_estimator("lyapunov", "lyapunov-qr")(num_exponents=3, num_steps=num_steps, transient=0)
    exponents = qr.estimate(flow, seed=0)
    samples = lyapunov.effective_samples(exponents)
    assert samples is not None
    assert samples.shape == (3,)
    assert np.all(samples > 0.4 * len(exponents.history))


def test_tensorflow_probability_works_with_the_installed_tensorflow() -> None:
    import scipy.special
    import tensorflow as tf
    import tensorflow_probability as tfp

    series = autoregressive(0.5, 512, 3)
    samples = tfp.mcmc.effective_sample_size(tf.constant(series), filter_beyond_positive_pairs=True)
    np.testing.assert_allclose(samples, lyapunov.effective_samples(exponents_of(series)), rtol=1e-6)
    normal = tfp.distributions.Normal(tf.constant(0.0, tf.float64), tf.constant(1.0, tf.float64))
    points = np.linspace(-4, 4, 9)
    np.testing.assert_allclose(normal.cdf(points), scipy.special.ndtr(points), rtol=1e-12)
