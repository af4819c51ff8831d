"""A monitor follows its model without compiling anything again, and says what an optimizer does not allow."""

import signal

import keras
import numpy as np
import pytest
import tensorflow as tf

import sdkeras
from sdkeras.datasets import load_digits
from sdkeras.errors import SdkerasError
from sdkeras.runs.monitor import MEASURES, Monitor, check_measures, failed_measurement
from sdkeras.runs.options import Options
from sdkeras.runs.problem import Problem, read_problem
from small_nets import X, Y, net

OPTIONS = {"batch_size": 16, "samples": 64, "tolerance": 0.5}


class Counted(keras.layers.Layer):
    """Counts how often it is traced; the controls call it too, on the data themselves."""

    calls = 0

    def call(self, x):
        type(self).calls += not tf.executing_eagerly()
        return x


@pytest.fixture(scope="module")
def monitored() -> tuple[keras.Model, Monitor]:
    keras.utils.set_random_seed(0)
    layers = [keras.Input((5,)), keras.layers.Dense(6, "tanh"), Counted(), keras.layers.Dense(3)]
    model = keras.Sequential(layers)
    model.compile(
        keras.optimizers.SGD(0.25, momentum=0.5), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    return model, Monitor(model, (X, Y), **OPTIONS)


@pytest.mark.slow
def test_nothing_is_traced_after_the_first_measurement_and_the_numbers_move(monitored) -> None:
    model, monitor = monitored
    _, keys = check_measures(MEASURES)
    before = monitor.measure(epoch=1, metrics={"loss": 2.0})
    assert (before.step, before.epoch, before.metrics) == (0, 1, {"loss": 2.0})
    assert tuple(before.values) == keys == monitor.keys
    assert tuple(failed_measurement(keys, "out of memory").values) == keys
    model.fit(X, Y, batch_size=16, epochs=2, verbose=0)
    calls = Counted.calls
    after = monitor.measure(source="later.keras")
    assert Counted.calls == calls
    assert (after.step, after.source) == (12, "later.keras")
    fresh = sdkeras.HessianOperator(sdkeras.EmpiricalLoss(model, (X, Y), 16, num_samples=64))
    top = sdkeras.get_estimator("eigenpairs", "lanczos")(tolerance=1e-5).estimate(fresh, seed=0).values[0]
    assert after.value("sharpness") == pytest.approx(top, rel=2e-3)
    assert before.value("sharpness") != pytest.approx(top, rel=1e-2)
    assert after.threshold == 2 * 1.5 / 0.25
    assert after.value("sharpness_preconditioned") == after.value("sharpness")
    assert after.value("sharpness_threshold") == after.threshold
    assert after.value("sharpness_ratio") == after.value("sharpness") / after.threshold
    assert after.value("sharpness_dimension") + after.value("sharpness_codimension") == pytest.approx(2 * 57)


def test_linear_regression_has_its_closed_form() -> None:
    """H = 2/N X'X whatever the weights; one minibatch of all the data, so that the exponents are exact."""
    target = X @ np.arange(1.0, 6.0, dtype="float32")
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(1, use_bias=False)])
    model.compile(keras.optimizers.SGD(0.25), "mse")
    alphas = np.linalg.eigvalsh(2 / len(X) * X.T.astype(np.float64) @ X)
    monitor = Monitor(model, (X, target), batch_size=len(X))
    for _ in range(2):
        found = monitor.measure()
        assert found.value("sharpness") == pytest.approx(alphas[-1], rel=1e-5)
        assert found.value("sharpness_ratio") == pytest.approx(alphas[-1] * 0.25 / 2, rel=1e-5)
        z = np.log(np.abs(1 - 0.25 * alphas))
        assert np.sort(z)[-2] <= found.value("rds_sharpness") <= z.max() + 1e-6  # quadrature blurs neighbours
        assert found.value("sharpness_dimension") == sdkeras.sharpness_dimension(z) == 0.0
        trace = found.values["hessian_trace"]
        assert abs(trace.value - alphas.sum()) < 5 * trace.stderr
        model.fit(X, target, batch_size=len(X), epochs=3, verbose=0)


@pytest.mark.slow
def test_many_neutral_directions_are_not_called_none() -> None:
    """Constant pixels and softmax leave 117 exact zeros of 650; 20 steps alone are certain that all contract."""
    x, y = load_digits()
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8, 8)), keras.layers.Flatten(), keras.layers.Dense(10)])
    model.compile(keras.optimizers.SGD(0.5), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, y, batch_size=64, verbose=0)
    found = Monitor(model, (x, y), measures=("sharpness_dimension",), batch_size=64).measure()
    reading = found.values["sharpness_dimension"]
    assert reading.interval[0] == reading.value == 0.0
    assert reading.interval[1] > 161  # the definition's value, from exact spectra of 24 minibatches
    assert not reading.converged
    assert any("neutral directions" in note for note in found.notes)


def test_the_same_weights_give_the_same_numbers_up_to_the_start_of_lanczos(monitored) -> None:
    _, monitor = monitored
    first, second = monitor.measure(), monitor.measure()
    for name in ("sharpness_dimension", "hessian_trace", "rds_sharpness"):
        assert first.values[name] == second.values[name]
    assert second.value("sharpness") == pytest.approx(first.value("sharpness"), rel=2e-3)


def test_a_problem_follows_its_optimizer(monitored) -> None:
    model, monitor = monitored
    problem = monitor.problem
    model.optimizer.learning_rate = 0.5
    try:
        moved, _ = problem.now()
        assert (moved.rate, problem.rate) == (0.5, 0.25)
        assert moved.limits.upper == problem.limits.upper / 2
        assert moved.exponents.rate == 2 * problem.exponents.rate
        assert np.array_equal(moved.loss.point, problem.loss.now().point)
        model.optimizer.learning_rate = 0.0
        found = monitor.measure()
        assert "learning rate" in found.notes[0]
        assert found.values["sharpness"].converged
        assert np.isnan([found.value(name) for name in ("sharpness_threshold", *MEASURES[1:5])]).all()
        assert found.value("sharpness_preconditioned") == found.value("sharpness")
        assert np.isfinite(found.value("hessian_trace"))
        assert (found.learning_rate, found.threshold, found.operator) == (0.0, None, "H")
    finally:
        model.optimizer.learning_rate = 0.25


def test_second_moments_are_read_anew_and_their_absence_is_said() -> None:
    model = net(keras.optimizers.Adam(0.01))
    problem = read_problem(model, (X, Y), Options(batch_size=16, samples=64))[0]
    assert problem.scaling is None
    assert problem.exponents.name == "hessian"
    model.fit(X, Y, batch_size=16, verbose=0)
    moved, notes = problem.now()
    fresh = read_problem(model, (X, Y), problem.options)[0]
    assert moved.exponents == fresh.exponents
    assert moved.exponents.name == "adam"
    assert np.array_equal(moved.scaling, fresh.scaling)
    assert np.array_equal(moved.loss.point, fresh.loss.point)
    assert not notes


def test_numerator_and_threshold_of_an_adaptive_optimizer_are_of_its_own_operator() -> None:
    """Linear regression: H = 2/N X'X, and P = sqrt(v + eps) of RMSprop; H's own eigenvalue is another one."""
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(1, use_bias=False)])
    model.compile(keras.optimizers.RMSprop(0.125), "mse")
    target = X @ np.arange(1.0, 6.0, dtype="float32")
    model.fit(X, target, batch_size=16, verbose=0)
    found = Monitor(model, (X, target), batch_size=16, measures=("sharpness", "sharpness_ratio")).measure()
    curvature = 2 / len(X) * X.T.astype(np.float64) @ X
    slots = next(v for v in model.optimizer.variables if v.shape == (5, 1))
    scaling = (np.asarray(slots, np.float64).ravel() + model.optimizer.epsilon) ** -0.25
    largest = np.linalg.eigvalsh(curvature)[-1]
    preconditioned = np.linalg.eigvalsh(scaling[:, None] * curvature * scaling)[-1]
    assert abs(preconditioned - largest) > 0.1 * largest
    # The eigenvalue's error is the squared residual over a gap: 1e-4 of it at the monitor's tolerance.
    assert found.value("sharpness") == pytest.approx(largest, rel=1e-4)
    assert found.value("sharpness_preconditioned") == pytest.approx(preconditioned, rel=1e-4)
    assert found.value("sharpness_threshold") == found.threshold == 2 / 0.125
    assert found.value("sharpness_ratio") == found.value("sharpness_preconditioned") / found.threshold


def test_ctrl_c_ends_a_measurement_and_leaves_the_monitor_usable(monitored, monkeypatch: pytest.MonkeyPatch) -> None:
    _, monitor = monitored
    on_minibatch, made = Problem.on_minibatch, []

    def interrupted(self, hessian, index, scaling):
        made.append(index)
        if len(made) == 6:
            signal.raise_signal(signal.SIGINT)
        return on_minibatch(self, hessian, index, scaling)

    with monkeypatch.context() as patched:
        patched.setattr(Problem, "on_minibatch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            monitor.measure()
    assert np.isfinite(monitor.measure().value("sharpness_dimension"))


def test_measures_are_checked() -> None:
    assert check_measures(("hessian_trace", "sharpness"))[0] == ("sharpness", "hessian_trace")
    assert check_measures("sharpness")[0] == ("sharpness",)


def test_the_papers_map_is_measured_when_asked_for_and_the_whole_step_is_refused(monitored) -> None:
    model, _ = monitored
    measured = Monitor(model, (X, Y), measures="rds_sharpness", map="hessian", **OPTIONS).measure()
    assert (measured.map, measured.state_size) == ("hessian", model.count_params())
    with pytest.raises(SdkerasError, match="take the map auto or hessian here"):
        Monitor(model, (X, Y), map="full", **OPTIONS)
