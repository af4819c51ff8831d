"""Training is the same with the callback, bit for bit, and its numbers are those of `analyze`."""

import random

import keras
import numpy as np
import pytest
import tensorflow as tf

import sdkeras
from oracles import overlap
from sdkeras.callbacks import SharpnessDimension
from small_nets import X, Y, net, state

FIT = {"batch_size": 16, "verbose": 0, "shuffle": True, "validation_split": 0.2}


def trained(
    callbacks: list[keras.callbacks.Callback],
) -> tuple[keras.Model, list[np.ndarray], dict[str, list[float]], float]:
    model = net(keras.optimizers.AdamW(keras.optimizers.schedules.ExponentialDecay(0.02, 5, 0.5)))
    model.fit(X, Y, epochs=1, callbacks=callbacks, **FIT)
    history = model.fit(X, Y, epochs=3, initial_epoch=1, callbacks=callbacks, **FIT).history
    draws = random.random() + np.random.random() + float(tf.random.uniform([]))  # noqa: NPY002
    return model, state(model), history, draws


@pytest.fixture(scope="module")
def with_and_without(tmp_path_factory):
    """With all that a measurement can do: estimates from single examples, and drawing."""
    more = {"estimate_bound_inputs": True, "report": tmp_path_factory.mktemp("report")}
    callback = SharpnessDimension((X, Y), batch_size=16, max_overhead=None, samples=80, tolerance=0.3, **more)
    return trained([]), trained([callback]), callback


def test_weights_optimizer_seeds_history_and_global_generators_are_bit_identical(with_and_without) -> None:
    (_, alone, history, draws), (_, watched, other, other_draws), _ = with_and_without
    assert [part for part in alone if part.dtype.kind in "iu" and part.shape == (2,)]  # a seed generator's state
    assert all(np.array_equal(one, two) for one, two in zip(alone, watched, strict=True))
    for name, values in history.items():
        assert other[name] == values
    assert draws == other_draws


def test_the_second_fit_goes_on_with_the_first_ones_functions(with_and_without) -> None:
    _, _, callback = with_and_without
    assert [found.step for found in callback.measurements] == [5, 10, 15]
    assert [found.epoch for found in callback.measurements] == [1, 2, 3]
    first, *rest = (found.seconds for found in callback.measurements)
    assert max(rest) < first  # compiled once


def test_values_are_those_of_analyze_at_the_same_weights(with_and_without) -> None:
    _, (model, *_), callback = with_and_without
    found = callback.measurements[-1]
    run = sdkeras.analyze(model, (X, Y), batch_size=16, samples=80, tolerance=0.3)
    assert found.learning_rate == run.optimizer.learning_rate
    assert found.learning_rate == pytest.approx(0.02 * 0.5 ** (15 / 5))
    assert found.threshold == run.edge_of_stability.threshold
    # A residual of 1 % leaves an eigenvalue an error well below it.
    assert found.value("sharpness") == pytest.approx(run.hessian.largest.value, rel=2e-3)
    assert found.value("sharpness_ratio") == pytest.approx(run.edge_of_stability.ratio, rel=2e-3)
    trace, own = run.hessian.trace, found.values["hessian_trace"]
    assert abs(own.value - trace.value) < 5 * np.hypot(own.stderr, trace.stderr)
    assert overlap(found.values["sharpness_codimension"].interval, run.sharpness_dimension.codimension_interval)
    assert found.state_size == run.sharpness_dimension.state_size
    assert found.map == run.sharpness_dimension.map == "adam"
    assert found.value("rds_sharpness") == pytest.approx(run.rds_sharpness.leading[0], rel=0.2)


@pytest.mark.slow
def test_mixed_precision_is_measured_in_float32_and_counts_the_inner_optimizers_steps() -> None:
    policy = keras.mixed_precision.global_policy() if hasattr(keras.mixed_precision, "global_policy") else None
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        model = net()
    finally:
        keras.mixed_precision.set_global_policy(policy or "float32")
    callback = SharpnessDimension((X, Y), batch_size=16, max_overhead=None, measures=("sharpness", "sharpness_ratio"))
    model.fit(X, Y, epochs=2, batch_size=16, verbose=0, callbacks=[callback])
    assert type(model.optimizer).__name__ == "LossScaleOptimizer"
    steps = int(np.asarray(model.optimizer.inner_optimizer.iterations))
    run = sdkeras.analyze(model, (X, Y), batch_size=16, tolerance=0.9, max_hvps=400)
    assert callback.measurements[-1].step == steps
    assert callback.measurements[-1].value("sharpness") == pytest.approx(run.hessian.largest.value, rel=2e-3)
    assert callback.measurements[-1].value("sharpness_ratio") == pytest.approx(run.edge_of_stability.ratio, rel=2e-3)
