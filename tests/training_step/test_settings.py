"""The optimizer's settings as its model has them: which learning rate a step has, and which were asked for."""

import math

import keras
import numpy as np
import pytest

from sdkeras.errors import ModelError, SdkerasError
from sdkeras.runs.declare import parse_learning_rate
from sdkeras.training_step.settings import StepNotTaken, check_rates, peak_rate, read_settings, scheduled_rate

optimizers = keras.optimizers
schedules = optimizers.schedules
# Keras computes schedules in float32, with a handful of operations.
EPS = 8 * float(np.finfo(np.float32).eps)


def after(steps: int, optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """The optimizer as it is after this many updates."""
    optimizer.build([keras.Variable(np.zeros(2, "float32"), name="weight")])
    optimizer._iterations.assign(steps * (getattr(optimizer, "gradient_accumulation_steps", None) or 1))
    return optimizer


RATES = {"0.1": 0.1, 0.1: 0.1, 1: 1.0, "1e-300": 1e-300, " peak ": "peak", "mean": "mean", "step:007": "step:7"}
NO_RATES = ["", "0", 0.0, -0.1, "nan", math.inf, True, None, "Peak", "step", "step:", "step:-1", "step:1.5", "step:²"]


@pytest.mark.parametrize(("text", "expected"), RATES.items())
def test_a_rate_is_a_number_or_a_place_of_the_schedule(text, expected) -> None:
    assert parse_learning_rate(text) == expected
    assert parse_learning_rate(parse_learning_rate(text)) == expected


@pytest.mark.parametrize("text", [*NO_RATES, "max", []])
def test_anything_else_is_refused_with_what_may_be_given(text) -> None:
    with pytest.raises(SdkerasError, match=r"positive and finite.*'peak', 'mean' or 'step:N'"):
        parse_learning_rate(text)


class Halving(schedules.LearningRateSchedule):
    """Runs eagerly only: a graph has no float of a tensor."""

    def __call__(self, step):
        return 2.0 ** -float(step)


def test_rates_of_a_schedule_are_those_that_the_steps_used() -> None:
    """Cosine with a warm-up: the peak is neither at the start nor at the end. In closed form."""
    taken = 25
    optimizer = after(taken, optimizers.SGD(schedules.CosineDecay(0.1, 20, warmup_target=0.4, warmup_steps=5)))
    t = np.arange(taken)
    expected = np.where(t < 5, 0.1 + 0.3 * t / 5, 0.2 * (1 + np.cos(np.pi * np.minimum(t - 5, 20) / 20)))
    assert scheduled_rate(optimizer, "peak") == pytest.approx(0.4, rel=EPS)
    assert scheduled_rate(optimizer, "mean") == pytest.approx(expected.mean(), rel=EPS)
    for step in (0, 3, 5, 24):
        assert scheduled_rate(optimizer, f"step:{step}") == pytest.approx(expected[step], abs=0.4 * EPS)
    assert scheduled_rate(after(2, optimizers.SGD(Halving())), "mean") == 0.75
    # So many that they are evaluated in a graph, where there is one.
    assert scheduled_rate(after(400, optimizers.SGD(Halving())), "mean") == pytest.approx(2 / 400, rel=EPS)
    long = after(300, optimizers.SGD(schedules.InverseTimeDecay(0.5, 1, 1.0)))
    assert scheduled_rate(long, "mean") == pytest.approx(np.mean(0.5 / np.arange(1, 301)), rel=EPS)
    assert scheduled_rate(after(0, optimizers.SGD(Halving())), "peak") == 1.0


def test_the_peak_of_a_long_training_is_found_on_some_of_its_steps() -> None:
    """The peak of a warm-up over 500,000 steps is met to one of 2,000 parts of the training."""
    warm = schedules.CosineDecay(0.0, 1_000_000, warmup_target=0.5, warmup_steps=500_000)
    assert peak_rate(after(1_400_000, optimizers.SGD(warm))) == pytest.approx(0.5, rel=2e-3)
    short = after(25, optimizers.SGD(schedules.CosineDecay(0.1, 20, warmup_target=0.4, warmup_steps=5)))
    assert peak_rate(short) == scheduled_rate(short, "peak")
    assert peak_rate(after(0, optimizers.SGD(Halving()))) == 1.0
    for without in (None, optimizers.Adam(0.1), several()):
        assert peak_rate(without) is None


def test_with_accumulation_a_step_uses_the_rate_of_its_last_batch() -> None:
    optimizer = after(3, optimizers.SGD(Halving(), gradient_accumulation_steps=2))
    assert [scheduled_rate(optimizer, f"step:{n}") for n in range(3)] == [2.0**-1, 2.0**-3, 2.0**-5]


def several() -> keras.optimizers.Optimizer:
    return optimizers.MultiOptimizer(optimizers.OptimizerMap(optimizers.SGD(0.5), {"w.*": optimizers.Adam(0.25)}))


def test_what_has_no_schedule_or_has_not_come_that_far_is_refused() -> None:
    with pytest.raises(StepNotTaken, match=r"step 3, and training has taken 3 steps so far, 0 to 2"):
        scheduled_rate(after(3, optimizers.SGD(Halving())), "step:3")
    with pytest.raises(ModelError, match="Adam has no learning-rate schedule"):
        scheduled_rate(optimizers.Adam(0.1), "peak")
    with pytest.raises(ModelError, match="MultiOptimizer has several learning rates"):
        scheduled_rate(several(), "mean")


def test_a_multioptimizer_has_the_rates_of_its_parts() -> None:
    # Also of parts that train nothing here: after loading, patterns may match other variables than while fitting.
    for found in (read_settings(several()), read_settings(after(1, several()))):
        assert found is not None
        assert (found.name, found.learning_rate) == ("MultiOptimizer", None)
        assert sorted(found.rates) == [("Adam", 0.25), ("SGD", 0.5)]


def test_a_step_at_rate_0_is_refused_unless_a_later_one_moves() -> None:
    restarting = schedules.CosineDecayRestarts(0.5, 4, t_mul=1.0)
    zero = after(9, optimizers.SGD(schedules.PiecewiseConstantDecay([5, 12], [0.5, 0.0, 0.25])))
    for steps in (1, 3):
        with pytest.raises(ModelError, match=r"the learning rate of SGD is 0 .* identity"):
            check_rates(zero, steps)
    check_rates(zero, 5)
    check_rates(after(4, optimizers.SGD(restarting)), 1)
    check_rates(several(), 1)
    still = optimizers.MultiOptimizer(optimizers.OptimizerMap(optimizers.SGD(0.0), {"b.*": optimizers.Adam(0.0)}))
    with pytest.raises(ModelError, match="all learning rates of MultiOptimizer are 0 now"):
        check_rates(still, 1)
