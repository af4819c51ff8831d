"""R-hat, effective sizes and intervals over forks: series of known autocorrelation, random maps of known exponents."""

import attrs
import numpy as np
import pytest

import sdkeras
from flows import MatrixSequence, RandomProducts
from oracles import VECTORS
from sdkeras.dimension.forks import (
    MOST_R_HAT,
    ForkedLogs,
    effective_size,
    evidence,
    forked,
    of_dimension,
    split_r_hat,
    unmixed,
)
from sdkeras.dimension.lyapunov import lyapunov_dimension
from sdkeras.results.estimates import LyapunovExponents
from sdkeras.seeds import seed_of_run

LyapunovQr = sdkeras.get_estimator("lyapunov", "lyapunov-qr")


def autoregressive(rho: float, *shape: int, seed: int = 3) -> np.ndarray:
    """x_t = rho x_(t-1) + noise along axis 1, stationary with variance 1."""
    noise = np.random.default_rng(seed).standard_normal(shape) * np.sqrt(1 - rho**2)
    series = np.empty(shape)
    series[:, 0] = noise[:, 0] / np.sqrt(1 - rho**2)
    for step in range(1, shape[1]):
        series[:, step] = rho * series[:, step - 1] + noise[:, step]
    return series


def logs_of(series: np.ndarray, frames: np.ndarray | None = None) -> ForkedLogs:
    return ForkedLogs(series, frames, np.zeros(series.shape[2]), tuple(range(len(series))))


# Series


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_the_effective_size_of_an_autoregressive_series(rho: float) -> None:
    """n (1 - rho)/(1 + rho), summed over the forks. Single ones spread by up to 20 %, the mean of 80 by 3 %."""
    forks, steps, columns = 4, 2000, 20
    found = logs_of(autoregressive(rho, forks, steps, columns)).combined(np.eye(columns))
    truth = forks * steps * (1 - rho) / (1 + rho)
    assert found.effective.mean() == pytest.approx(truth, rel=0.1)
    # The mean over M n steps of variance 1 spreads by 1/sqrt(ESS): 20 columns know that to 16 %.
    assert found.values.std() == pytest.approx(found.stderr.mean(), rel=0.5)
    assert found.stderr.mean() == pytest.approx(1 / np.sqrt(truth), rel=0.1)


def test_anti_correlated_steps_count_once_at_most() -> None:
    """n (1 + .5)/(1 - .5) by the autocorrelations, which would be three times the steps there are."""
    series = autoregressive(-0.5, 4, 500, 20)
    assert effective_size(series[0]).mean() == pytest.approx(1500, rel=0.15)
    assert np.all(logs_of(series).combined(np.eye(20)).effective == 2000)
    # So much so that the sum of the autocorrelations is negative: no number of steps, and not a negative one.
    flipping = np.stack([(-1.0) ** np.arange(101), np.ones(101)], axis=1)
    assert np.array_equal(effective_size(flipping), [np.inf, np.nan], equal_nan=True)


def test_split_r_hat_by_hand() -> None:
    """Brooks and Gelman's (m + 1)/m V/W - (n - 1)/(m n) over the halves, written out."""
    series = np.random.default_rng(0).standard_normal((4, 51, 3)) + np.arange(4)[:, None, None] / 5
    halves = series[:, :50].reshape(8, 25, 3)
    within, means = halves.var(axis=1, ddof=1).mean(axis=0), halves.mean(axis=1).var(axis=0, ddof=1)
    squares = 9 / 8 * (24 / 25 * within + means) / within - 24 / (8 * 25)
    np.testing.assert_allclose(split_r_hat(series), np.sqrt(squares), rtol=1e-12)


def test_r_hat_tells_stationary_from_shifted_and_drifting_forks() -> None:
    steady = autoregressive(0.5, 4, 2000, 20)
    assert np.all(split_r_hat(steady) < MOST_R_HAT)
    shifted = steady + 0.5 * np.array([0, 0, 0, 1])[:, None, None]
    drifting = steady + np.linspace(-0.5, 0.5, 2000)[None, :, None]
    for series in (shifted, drifting):
        assert np.all(split_r_hat(series) > MOST_R_HAT)
    # Whole forks have the same mean: only their halves tell.
    assert np.all(np.abs(drifting.mean(axis=1) - steady.mean(axis=1)) < 1e-12)


def test_a_map_without_noise_is_mixed_whatever_rounding_does() -> None:
    steps = np.full((4, 60, 2), [0.25, -0.5])
    steps[:, 30:, 0] += 1e-15
    constant = attrs.evolve(logs_of(steps), rounding=np.full(2, 1e-13))
    found = constant.combined(np.eye(2))
    np.testing.assert_array_equal(found.r_hat, 1.0)
    assert np.all(found.stderr < 1e-14)
    # Each fork a constant of its own: there is no spread within them, and none of it is mixing.
    steps[0, :, 0] += 0.1
    assert attrs.evolve(constant, logs=steps).combined(np.eye(2)).r_hat[0] > 100


def test_alignment_is_added_to_half_widths_and_to_nothing_else() -> None:
    series = autoregressive(0.0, 4, 400, 2)
    other = np.stack([series[0], series[0] + [0.25, -0.5]])
    alone, framed = logs_of(series).combined(np.eye(2)), logs_of(series, other).combined(np.eye(2))
    np.testing.assert_allclose(framed.alignment, [0.25, 0.5], atol=1e-12)
    np.testing.assert_allclose(framed.half_widths, alone.half_widths + np.array([0.25, 0.5]), atol=1e-12)
    assert alone.alignment is None
    for name in ("values", "stderr", "effective", "r_hat"):
        np.testing.assert_array_equal(getattr(framed, name), getattr(alone, name))
    # Errors that cancel in the sum: of the sum itself, not the sum of errors.
    swapped = np.stack([series[0], series[0] + [0.25, -0.25]])
    assert logs_of(series, swapped).combined(np.ones((2, 1))).alignment[0] == pytest.approx(0.0, abs=1e-12)


# Trajectories


class Coins(RandomProducts):
    """diag(3, .2) or diag(.5, .9), a fair coin that is thrown again in `share` of the steps only."""

    def __init__(self, share: float) -> None:
        self.share = share
        super().__init__(2, lambda rng: np.eye(2))

    def reset(self, seed: int) -> None:
        super().reset(seed)
        self.side = int(self.rng.integers(2))

    def step(self, tangents: np.ndarray) -> np.ndarray:
        if self.rng.random() < self.share:
            self.side = int(self.rng.integers(2))
        return np.array([[3.0, 0.2], [0.5, 0.9]])[self.side][:, None] * tangents


class OfSeed:
    """A flow that keeps to the steps of one seed."""

    def __init__(self, flow: RandomProducts, seed: int) -> None:
        self.flow, self.seed, self.size, self.dtype = flow, seed, flow.size, flow.dtype

    def reset(self, seed: int) -> None:
        self.flow.reset(self.seed)

    def step(self, tangents: np.ndarray) -> np.ndarray:
        return self.flow.step(tangents)


def followed(flow: RandomProducts, seed: int, steps: int = 100, **fields: int) -> list[LyapunovExponents]:
    settings = LyapunovQr(num_steps=steps, keep_steps=True, **({"transient": 20} | fields))
    return [settings.estimate(flow, seed=seed_of_run(seed, fork)) for fork in range(4)]


@pytest.mark.parametrize("share", [1.0, 0.4])
def test_standard_errors_and_d_s_cover_the_known_exponents(share: float) -> None:
    """Coins that are kept for a while have the same exponents, and a quarter of the independent steps."""
    case, count = VECTORS["random_diagonal_map"], 30
    deviations, held = [], []
    for seed in range(count):
        record, logs = forked(followed(Coins(share), seed))
        found = logs.combined(np.eye(2))
        np.testing.assert_array_equal(record.stderr, found.stderr)
        deviations.append((found.values - case["lyapunov"]) / found.stderr)
        answer = lyapunov_dimension(record, 2, forks=logs)
        if answer.interval is not None:
            held.append(answer.interval[0] <= case["d_s"] <= answer.interval[1])
    # 30 deviations know their spread to 13 %; without the autocorrelation it would be 2 where coins are kept.
    assert 0.6 < np.std(deviations) < 1.5
    assert abs(np.mean(deviations)) < 0.7
    # 400 independent steps are about what R-hat below 1.01 takes; of 100 it is above by chance.
    assert len(held) > 0.6 * count if share == 1.0 else len(held) < 0.5 * count
    assert np.mean(held) > 0.8


def test_pooled_exponents_are_those_of_all_steps() -> None:
    runs = followed(Coins(1.0), 7, steps=130)
    flow = OfSeed(Coins(1.0), runs[0].seed)
    second = LyapunovQr(num_steps=130, transient=20, keep_steps=True).estimate(flow, seed=99)
    record, logs = forked(runs, second)
    steps = np.stack([run.steps for run in runs])
    np.testing.assert_allclose(record.values, steps.mean(axis=(0, 1)), atol=1e-14)
    np.testing.assert_allclose(record.values, np.mean([run.values for run in runs], axis=0), atol=1e-12)
    assert (record.num_steps, record.block_size, len(record.history)) == (130, 4, 32)
    np.testing.assert_allclose(record.history[-1], steps[:, :128].mean(axis=(0, 1)), atol=1e-12)
    assert record.log_det == pytest.approx(record.values.sum(), abs=1e-12)
    # Frames on one trajectory turn to the same directions, within 20 steps of ratio e^-1 each to 1e-9.
    found = evidence(logs, lyapunov_dimension(record, 2, forks=logs))
    assert found.seeds == tuple(run.seed for run in runs)
    assert np.all(found.alignment < 1e-6)
    # S_2 = ln |det J| is ln .6 or ln .45: its own error, though that of each exponent is five times as large.
    of_sum = np.log([0.6, 0.45]).std()
    assert found.sum_stderr[1] == pytest.approx(of_sum / np.sqrt(found.effective_steps[1]), rel=0.1)
    assert found.sum_stderr[1] < 0.3 * record.stderr[1]


def test_the_error_of_d_s_is_that_of_y_to_first_order() -> None:
    """D_s of exponents moved a little, against the weights: j* = 2, D_s = 2 + .3/.6."""
    values = np.array([0.5, -0.2, -0.6, -1.0])
    weights = of_dimension(values, 2)[:, 0]
    assert weights @ values == pytest.approx(0.0, abs=1e-12)
    for position in range(4):
        moved = values.copy()
        moved[position] += 1e-6
        slope = (sdkeras.sharpness_dimension(moved) - 2.5) / 1e-6
        assert weights[position] == pytest.approx(slope, abs=1e-4)


class Basins(MatrixSequence):
    """A training that ends in one of two basins by its seed, and wanders a little there."""

    def __init__(self) -> None:
        super().__init__([np.eye(2)])

    def reset(self, seed: int) -> None:
        self.rng, self.basin = np.random.default_rng(seed), seed % 2

    def step(self, tangents: np.ndarray) -> np.ndarray:
        noise = np.exp(0.1 * self.rng.standard_normal(2))
        return (np.array([[1.5, 0.4], [1.2, 0.5]])[self.basin] * noise)[:, None] * tangents


def test_two_basins_are_not_mixed_and_have_no_interval() -> None:
    settings = LyapunovQr(num_steps=200, transient=40, keep_steps=True)
    apart = [settings.estimate(Basins(), seed=seed) for seed in (0, 1, 2, 3)]
    record, logs = forked(apart)
    answer = lyapunov_dimension(record, 2, forks=logs)
    assert (answer.status, answer.value, answer.interval) == ("undetermined", None, None)
    assert answer.reason.startswith("not stationary or not mixed: split R-hat of ")
    found = evidence(logs, answer)
    assert np.all(found.r_hat > MOST_R_HAT)
    assert found.dimension_stderr is None
    # In one basin they are, and D_s is 1 + ln 1.5/ln 2.5.
    record, logs = forked([settings.estimate(Basins(), seed=seed) for seed in (0, 2, 4, 6)])
    answer = lyapunov_dimension(record, 2, forks=logs)
    low, high = answer.interval
    assert low < 1 + np.log(1.5) / np.log(2.5) < high
    found = evidence(logs, answer)
    assert (high - low) / 2 == pytest.approx(1.97 * found.dimension_stderr, rel=0.02)


def test_r_hat_of_what_d_s_does_not_rest_on_does_not_matter() -> None:
    """j* = 1 of three: the third exponent may drift."""
    series = 0.05 * autoregressive(0.0, 4, 800, 3) + [0.3, -0.6, -2.0]
    series[:, :, 2] += np.linspace(-1, 1, 800)
    assert unmixed(logs_of(series), series.mean(axis=(0, 1)), 1) == ""
    assert "ell_3" in unmixed(logs_of(series), series.mean(axis=(0, 1)), 2)
    series[0, :, 1] += 0.1
    assert "ell_2" in unmixed(logs_of(series), series.mean(axis=(0, 1)), 1)


def test_forks_that_ended_early() -> None:
    """Those with the most steps in common, at least four: 4 x 100 beat 5 x 60, and 5 x 90 the 4 x 100."""
    runs = followed(Coins(1.0), 1)
    for steps, kept in ((60, (4, 100)), (90, (5, 90))):
        short = LyapunovQr(num_steps=steps, transient=20, keep_steps=True).estimate(Coins(1.0), seed=5)
        record, logs = forked([*runs, short])
        assert (len(logs.logs), record.num_steps) == kept
    assert forked(runs[:3]) is None
    brief = LyapunovQr(num_steps=3, transient=20, keep_steps=True).estimate(Coins(1.0), seed=5)
    assert forked([*runs[:3], brief]) is None
    diverged = attrs.evolve(runs[3], stopped_at=121)
    record, logs = forked([*runs[:3], diverged])
    assert "diverged at step 121" in lyapunov_dimension(record, 2, forks=logs).reason
    with pytest.raises(ValueError, match="keep them"):
        forked([attrs.evolve(run, steps=None) for run in runs])
