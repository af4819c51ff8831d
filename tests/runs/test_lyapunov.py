"""`sdkeras.lyapunov` against closed forms, products of differenced `train_on_batch`, and itself interrupted."""

import os
import signal

import keras
import numpy as np
import pytest

import sdkeras
from sdkeras.errors import ModelError, SdkerasError
from sdkeras.linalg.probes import start_frame
from sdkeras.operators import precision
from small_trainings import RATE, X, Y, classifier, everything, quadratic

layers = keras.layers


@pytest.fixture(autouse=True)
def _seed() -> None:
    keras.utils.set_random_seed(0)


def test_sgd_on_a_quadratic_has_the_logarithms_of_its_multipliers() -> None:
    curvatures = [20.0, 3.0, 6.0, 12.0]
    model, data = quadratic(curvatures, keras.optimizers.SGD(RATE))
    run = sdkeras.lyapunov(model, data, batch_size=16, num_steps=64, transient=100, dtype="float64")
    expected = np.sort(np.log(np.abs(1 - RATE * np.array(curvatures))))[::-1]
    np.testing.assert_allclose(run.lyapunov.values, expected, atol=1e-9)
    dimension = run.lyapunov.dimension
    assert dimension.status == "determined"
    assert dimension.value == pytest.approx(1 + expected[0] / -expected[1], abs=1e-6)
    assert run.lyapunov.log_det == pytest.approx(expected.sum(), abs=1e-9)
    assert not run.partial
    assert run.optimizer.name == "SGD"


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


def test_adamw_runs_and_leaves_the_model_as_it_was() -> None:
    model = classifier(keras.optimizers.AdamW(0.01))
    before = everything(model)
    run = sdkeras.lyapunov(model, (X, Y), batch_size=4, num_exponents=3, num_steps=40, transient=5)
    assert everything(model) == before
    assert len(run.lyapunov.values) == 3
    assert run.lyapunov.dimension.size == 3 * run.lyapunov.num_weights == 36
    assert run.lyapunov.verification.passed
    assert run.provenance.num_hvps > 3 * 45
    assert any(warning.code == "held" for warning in run.warnings)
    assert sdkeras.LyapunovRun.from_json(run.to_json()) == run


def test_ctrl_c_keeps_the_steps_so_far_and_a_resume_equals_an_uninterrupted_run(tmp_path) -> None:
    """Stopped in the transient and again in the measured steps; the same file then takes it further."""
    model = classifier(keras.optimizers.SGD(0.5, momentum=0.5))
    options = {"batch_size": 4, "num_exponents": 4, "num_steps": 30, "transient": 5}
    handler = signal.getsignal(signal.SIGINT)
    whole = sdkeras.lyapunov(model, (X, Y), **options)
    assert signal.getsignal(signal.SIGINT) is handler
    options["checkpoint"] = tmp_path / "run.npz"
    seen = []

    def interrupt_after(index: int):
        def watch(step: sdkeras.results.progress.Progress) -> None:
            seen.append(step.stage)
            if step.stage == f"training step {index} of 35":
                os.kill(os.getpid(), signal.SIGINT)

        return watch

    with pytest.raises(KeyboardInterrupt):
        sdkeras.lyapunov(model, (X, Y), **options, progress=interrupt_after(3))
    assert signal.getsignal(signal.SIGINT) is handler
    part = sdkeras.lyapunov(model, (X, Y), **options, progress=interrupt_after(17))
    assert part.partial
    assert (part.lyapunov.num_steps, part.lyapunov.num_steps_asked) == (12, 30)
    again = sdkeras.lyapunov(model, (X, Y), **options, progress=interrupt_after(36))
    assert [stage for stage in seen if "step " in stage and "of" in stage] == [
        f"training step {index} of 35" for index in range(1, 36)
    ]
    assert again.lyapunov == whole.lyapunov
    assert not again.partial
    longer = sdkeras.lyapunov(model, (X, Y), **(options | {"num_steps": 40}))
    assert longer.lyapunov.num_steps == 40


def test_a_checkpoint_of_another_run_is_refused(tmp_path) -> None:
    options = {"batch_size": 4, "num_exponents": 2, "num_steps": 4, "transient": 0, "checkpoint": tmp_path / "run.npz"}
    model = classifier(keras.optimizers.SGD(0.5))
    sdkeras.lyapunov(model, (X, Y), **options)
    for other in (
        {"learning_rate": 0.25},
        {"batch_size": 6},
        {"loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True, name="smoothed")},
    ):
        with pytest.raises(SdkerasError, match="another run"):
            sdkeras.lyapunov(model, (X, Y), **(options | other))
    with pytest.raises(SdkerasError, match="another run"):
        sdkeras.lyapunov(model, (X + 1e-6, Y), **options)


def test_divergence_is_an_answer() -> None:
    model, data = quadratic([100.0], keras.optimizers.SGD(1e4))
    run = sdkeras.lyapunov(model, data, num_steps=500, transient=2, dtype="float32")
    assert run.lyapunov.stopped_at is not None
    assert run.lyapunov.num_steps == run.lyapunov.stopped_at - 3
    assert run.lyapunov.dimension.status == "undetermined"
    assert not run.partial
    assert "diverged" in {warning.code for warning in run.warnings}
    assert f"at step {run.lyapunov.stopped_at}" in str(run)


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
    assert "initial-slots" in {warning.code for warning in run.warnings}
    assert not model.optimizer.built
    # Plain SGD has no slots to miss.
    assert sdkeras.lyapunov(classifier(keras.optimizers.SGD(0.5), steps=0), (X, Y), num_steps=2, num_exponents=1)


@pytest.mark.parametrize("scheduled", [False, True])
def test_a_given_learning_rate_is_that_of_the_steps(scheduled: bool) -> None:
    """The multiplier of one direction, with a rate in the file and with a schedule that would have decayed."""
    rate = keras.optimizers.schedules.ExponentialDecay(0.25, 1, 0.5) if scheduled else 0.25
    model, data = quadratic([3.0], keras.optimizers.SGD(rate))
    run = sdkeras.lyapunov(model, data, num_steps=5, transient=0, dtype="float64", learning_rate=RATE)
    assert run.lyapunov.values[0] == pytest.approx(np.log(1 - 3 * RATE), abs=1e-9)
    assert run.optimizer.learning_rate_source == "given"
    assert run.optimizer.learning_rate == RATE
    assert float(np.asarray(model.optimizer.learning_rate)) == 0.25 * (0.5 if scheduled else 1.0)


def test_exponents_that_drift_are_told() -> None:
    """A rate that decays: ln(1 - 3 rate) rises towards 0 all along."""
    rate = keras.optimizers.schedules.ExponentialDecay(RATE, 20, 0.5)
    model, data = quadratic([3.0], keras.optimizers.SGD(rate))
    run = sdkeras.lyapunov(model, data, num_steps=64, transient=0, dtype="float64")
    assert "drifting" in {warning.code for warning in run.warnings}
    steady = sdkeras.lyapunov(model, data, num_steps=64, transient=0, dtype="float64", learning_rate=RATE)
    assert "drifting" not in {warning.code for warning in steady.warnings}


def test_a_given_loss_is_that_of_the_steps() -> None:
    model, data = quadratic([3.0], keras.optimizers.SGD(RATE, momentum=0.5))
    before = everything(model)
    run = sdkeras.lyapunov(model, data, num_steps=4, transient=0, dtype="float64", loss="mae")
    assert run.model.loss == "mean_absolute_error"
    assert everything(model) == before
    # The absolute error has no curvature where it has one at all: eigenvalues of [[1, beta], [0, beta]].
    assert run.lyapunov.log_det == pytest.approx(np.log(0.5), abs=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_exponents": 13}, r"num_exponents=13 exceeds the size of the state, 12 \(12 weights and 0 slots\)"),
        ({"num_exponents": 0}, "num_exponents is 0; it must be a positive whole number"),
        ({"num_steps": 0}, "num_steps is 0"),
        ({"transient": -1}, "transient is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"learning_rate": float("nan")}, "positive and finite"),
        ({"batch_size": 13}, "larger than the data"),
        ({"dtype": "float16"}, "float16"),
        ({"loss": "no_such_loss"}, "no_such_loss"),
        ({"checkpoint": "/no/such/folder/run.npz"}, "cannot be written"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_use_is_told(options: dict, message: str) -> None:
    with pytest.raises(SdkerasError, match=message):
        sdkeras.lyapunov(classifier(keras.optimizers.SGD(0.5)), (X, Y), **options)


def test_an_analysis_has_them_too() -> None:
    """With the same steps and seed they are those of `lyapunov`, number by number."""
    model = classifier(keras.optimizers.SGD(0.5, momentum=0.5))
    before = everything(model)
    options = {"lyapunov": 2, "lyapunov_steps": 40, "lyapunov_transient": 5}
    run = sdkeras.analyze(model, (X, Y), batch_size=4, runs=1, seed=3, **options)
    assert everything(model) == before
    alone = sdkeras.lyapunov(model, (X, Y), batch_size=4, num_exponents=2, seed=3, num_steps=40, transient=5)
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
