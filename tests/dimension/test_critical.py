"""The search for the first rise of the loss, on functions whose rise is known."""

import math

import numpy as np
import pytest

from sdkeras.dimension.critical import MOST_DOUBLINGS, first_rise, median_interval

EPS = float(np.finfo(np.float64).eps)


def parabola(root: float, scale: float = 1.0):
    """1 before the step, and 1 again at this factor."""
    return lambda factor: 1 + scale * factor * (factor - root)


@pytest.mark.parametrize("root", [1e-5, 0.3, 0.5, 0.999, 1.0, 1.001, 7.0, 2e6])
def test_the_bracket_holds_the_root_and_is_as_narrow_as_asked(root: float) -> None:
    found = first_rise(parabola(root), 1.0, -root, tolerance=1e-3, rounding=0.0)
    low, high = found.bracket
    assert found.outcome == "measured"
    assert low <= root <= high
    assert high - low <= 1e-3 * found.factor
    assert low <= found.factor <= high
    assert np.all(np.diff(found.factors) > 0)
    np.testing.assert_array_equal(found.losses, [parabola(root)(each) for each in found.factors])


def test_about_ten_losses_are_enough() -> None:
    for root in (0.2, 1.3, 9.0):
        assert len(first_rise(parabola(root), 1.0, -root, tolerance=0.02, rounding=0.0).factors) <= 11


def test_nan_and_infinity_are_rises() -> None:
    for beyond in (math.nan, math.inf):
        found = first_rise(lambda f, b=beyond: 1 - f if f < 3 else b, 1.0, -1.0, tolerance=1e-3, rounding=0.0)
        assert found.bracket[0] <= 3 <= found.bracket[1]


def test_a_loss_that_never_rises_or_always_has_a_bound_alone() -> None:
    falls = first_rise(lambda factor: -factor, 0.0, -1.0, tolerance=0.02, rounding=0.0)
    assert (falls.outcome, falls.bracket, falls.factor) == ("lower", None, 2.0**MOST_DOUBLINGS)
    flat = first_rise(lambda _: 1.0, 1.0, -1e-30, tolerance=0.02, rounding=0.0)
    assert flat.outcome == "lower"
    rises = first_rise(lambda _: 2.0, 1.0, -1.0, tolerance=0.02, rounding=0.0)
    assert (rises.outcome, rises.bracket, rises.factor) == ("upper", None, 0.5**MOST_DOUBLINGS)


def test_uphill_and_flat_updates_are_not_searched() -> None:
    uphill = first_rise(parabola(1.0), 1.0, 0.5, tolerance=0.02, rounding=0.0)
    assert (uphill.outcome, uphill.factor, len(uphill.factors)) == ("ascent", 0.0, 0)
    still = first_rise(parabola(1.0), 1.0, 0.0, tolerance=0.02, rounding=0.0)
    assert still.outcome == "no step"
    assert math.isnan(still.factor)


def test_rounding_widens_the_bracket_and_is_told() -> None:
    """A loss in float32 beside a slope of 1e-4: rounding 6e-8 moves the root by some 6e-4 of it."""
    for root in np.linspace(0.5, 2.0, 40):
        rounded = lambda factor, root=root: float(np.float32(parabola(root, 1e-4)(factor)))  # noqa: E731
        found = first_rise(rounded, 1.0, -1e-4 * root, tolerance=1e-5, rounding=float(np.finfo(np.float32).eps))
        assert found.bracket[0] <= root <= found.bracket[1]
        assert found.is_rounded
    assert not first_rise(parabola(1.3), 1.0, -1.3, tolerance=1e-3, rounding=EPS).is_rounded


def test_the_interval_of_a_median_covers_it() -> None:
    """Order statistics of six and more: 95 % at least, by the binomial."""
    assert median_interval([1.0, 2.0, 3.0, 4.0, 5.0]) is None
    assert median_interval([6.0, 1.0, 2.0, 5.0, 3.0, 4.0]) == (1.0, 6.0)
    assert median_interval(list(range(1, 21))) == (6, 15)  # Conover's table for n = 20
    draws = np.random.default_rng(0).exponential(size=(2000, 15))
    ends = [median_interval(list(row)) for row in draws]
    covered = np.mean([low <= math.log(2) <= high for low, high in ends])
    assert covered > 0.95 - 3 * math.sqrt(0.05 * 0.95 / 2000)
