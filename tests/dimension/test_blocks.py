"""Standard errors of means along a trajectory, against processes of known variance."""

import numpy as np
import pytest

from sdkeras.dimension.lyapunov import half_width, standard_error


def autoregressive(correlation: float, num_steps: int, copies: int) -> np.ndarray:
    """x_(t+1) = c x_t + noise, stationary with variance 1: the mean's variance is (1 + c)/(1 - c)/num_steps."""
    draw = np.random.default_rng(0)
    x = np.empty((num_steps, copies))
    x[0] = draw.standard_normal(copies)
    for t in range(1, num_steps):
        x[t] = correlation * x[t - 1] + np.sqrt(1 - correlation**2) * draw.standard_normal(copies)
    return x


@pytest.mark.parametrize(("correlation", "least", "most"), [(0.0, 1.0, 1.3), (0.6, 0.95, 1.3), (0.9, 0.75, 1.2)])
def test_the_error_is_that_of_the_mean_though_blocks_are_short(correlation: float, least: float, most: float) -> None:
    steps = autoregressive(correlation, 192, 2000)
    means = steps.reshape(64, 3, -1).mean(axis=1)
    truth = np.std(steps.mean(axis=0))
    assert least < standard_error(means, 3, 192).mean() / truth < most
    if correlation == 0.9:  # the blocks themselves know half of it
        assert np.std(means, axis=0, ddof=1).mean() / 8 < 0.6 * truth
    covered = np.mean(np.abs(steps.mean(axis=0)) < half_width(means, 3, 192))
    assert (0.9 if correlation < 0.9 else 0.87) < covered < 0.995


def test_a_drift_is_no_precision() -> None:
    drifting = np.linspace(0.0, 1.0, 64)[:, None]
    plain = np.std(drifting, ddof=1) / 8
    assert standard_error(drifting, 1, 64)[0] > 2.5 * plain


def test_one_block_has_no_error() -> None:
    assert standard_error(np.ones((1, 2)), 5, 5).tolist() == [0.0, 0.0]
