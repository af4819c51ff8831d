"""Lyapunov exponents over several trajectories from one checkpoint: split R-hat, effective sample sizes, alignment."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import numpy as np
import scipy.special

from sdkeras.results.arrays import FloatArray
from sdkeras.results.estimates import LyapunovExponents
from sdkeras.results.lyapunov import Forks, LyapunovDimension

# Above it chains are not taken as samples of one distribution (Vehtari et al. 2021, with at least 4 chains).
MOST_R_HAT, FEWEST_FORKS = 1.01, 4
# Split R-hat takes two values in each half.
_FEWEST_STEPS = 4
_TAIL = 0.975
# Blocks of running means are merged in pairs from this number on, as those of a single trajectory are.
_MOST_BLOCKS = 64


def effective_size(series: FloatArray) -> FloatArray:
    """Effective number of independent values in each column of a series, shape [T, k] -> [k].

    T / (1 + 2 sum_t rho_t) with autocorrelations rho_t, summed over Geyer's initial positive sequence: more than T
    where successive values are anti-correlated, infinite where they are so much so that the sum is not positive. NaN
    where they do not vary.

    Reference: Geyer (1992); `tfp.mcmc.effective_sample_size`.
    """
    from tensorflow_probability.substrates import numpy as tfp

    with np.errstate(divide="ignore", invalid="ignore"):
        sizes = tfp.mcmc.effective_sample_size(series, filter_threshold=None, filter_beyond_positive_pairs=True)
    return np.where(np.asarray(sizes) <= 0, np.inf, np.asarray(sizes, np.float64))


def split_r_hat(forks: FloatArray) -> FloatArray:
    """Split R-hat of each column over several series of the same length, shape [M, T, k] -> [k]; T >= 4.

    The potential scale reduction of the 2 M halves: the spread of their means beside that within them, 1 where they
    are samples of one distribution. NaN where nothing varies.

    Reference: Gelman and Rubin (1992); Vehtari et al. (2021); `tfp.mcmc.potential_scale_reduction`, which returns the
    square.
    """
    from tensorflow_probability.substrates import numpy as tfp

    with np.errstate(divide="ignore", invalid="ignore"):
        squares = tfp.mcmc.potential_scale_reduction(
            np.moveaxis(forks, 0, 1), independent_chain_ndims=1, split_chains=True
        )
    return np.sqrt(np.asarray(squares, np.float64))


@attrs.frozen(eq=False)
class Combinations:
    """Means over all steps of all forks of weighted sums of the ln R_ii, with their evidence, each of shape [q].

    Attributes:
        values: The means.
        stderr: Standard deviation over the square root of `effective`.
        effective: Effective number of independent steps, summed over the forks; never more than the steps there are.
            NaN where nothing varies.
        r_hat: Split R-hat; 1 where nothing varies beyond rounding.
        alignment: How far the mean of the first fork is from that of a second start frame over the same steps; None
            without one.
        half_widths: Half-widths of 95 % intervals: sampling, by Student's t, plus alignment.
    """

    values: FloatArray
    stderr: FloatArray
    effective: FloatArray
    r_hat: FloatArray
    alignment: FloatArray | None
    half_widths: FloatArray


@attrs.frozen(eq=False)
class ForkedLogs:
    """ln R_ii of every step of M trajectories from one checkpoint, with independent minibatches.

    Attributes:
        logs: Shape [M, T, k], directions by descending mean over all of it.
        frames: The same of two start frames over the same steps, shape [2, T', k]; None without a second one.
        rounding: Bound on the error from rounding of each, per step, shape [k].
        seeds: Of the trajectories.
    """

    logs: FloatArray
    frames: FloatArray | None
    rounding: FloatArray
    seeds: tuple[int, ...]

    @property
    def num_steps(self) -> int:
        """Steps of all forks together."""
        forks, steps, _ = self.logs.shape
        return int(forks * steps)

    def combined(self, weights: FloatArray) -> Combinations:
        """The weighted sums with these columns, shape [k, q].

        Frames on one trajectory converge to the same directions: their difference is an error of its own, and never
        pooled into R-hat or the effective size.
        """
        series = self.logs @ weights
        values = series.mean(axis=(0, 1))
        apart = np.abs(series - values)
        effective = np.minimum(np.sum([effective_size(fork) for fork in series], axis=0), self.num_steps)
        deviation = np.std(series, axis=(0, 1), ddof=1)
        stderr = np.where(deviation > 0, deviation / np.sqrt(np.where(effective > 0, effective, 1.0)), 0.0)
        varies = apart.max(axis=(0, 1)) > np.abs(weights).T @ self.rounding
        r_hat = np.where(varies, split_r_hat(series), 1.0)
        quantile = scipy.special.stdtrit(np.maximum(np.nan_to_num(effective, nan=2.0) - 1.0, 1.0), _TAIL)
        alignment = None if self.frames is None else np.abs(np.diff((self.frames @ weights).mean(axis=1), axis=0)[0])
        half_widths = quantile * stderr + (0.0 if alignment is None else alignment)
        return Combinations(values, stderr, effective, r_hat, alignment, half_widths)


def forked(
    runs: Sequence[LyapunovExponents], second_frame: LyapunovExponents | None = None
) -> tuple[LyapunovExponents, ForkedLogs] | None:
    """The exponents of several trajectories as one record, and their steps; None where too few were followed far.

    Of trajectories that ended early those are taken, at least 4, that have the most steps in common.

    Args:
        runs: Each with its `steps`; the first is the one that `second_frame` has its steps in common with.
        second_frame: Another start frame over the same steps as those of the first.
    """
    lengths = sorted((run.num_steps for run in runs), reverse=True)
    counts = range(FEWEST_FORKS, len(runs) + 1)
    length = max((lengths[count - 1] for count in counts), key=lambda each: each * _reaching(lengths, each), default=0)
    if length < _FEWEST_STEPS:
        return None
    kept = [run for run in runs if run.num_steps >= length]
    logs = np.stack([_steps(run)[:length] for run in kept])
    order = np.argsort(-logs.mean(axis=(0, 1)), kind="stable")
    frames = None
    if second_frame is not None:
        common = min(runs[0].num_steps, second_frame.num_steps)
        frames = np.stack([_steps(run)[:common][:, order] for run in (runs[0], second_frame)])
    rounding = np.mean([_rounding(run) for run in kept], axis=0)
    pooled = ForkedLogs(logs[:, :, order], frames, rounding, tuple(run.seed for run in kept))
    single = pooled.combined(np.eye(len(order)))
    size = 1
    while length // size >= _MOST_BLOCKS:
        size *= 2
    blocks = pooled.logs.mean(axis=0)[: length // size * size].reshape(-1, size, len(order)).mean(axis=1)
    known = [run.num_resolved for run in kept if run.num_resolved is not None]
    ends = [run.stopped_at for run in runs if run.stopped_at is not None]
    record = LyapunovExponents(
        values=single.values,
        stderr=single.stderr,
        num_steps=length,
        seed=runs[0].seed,
        history=np.cumsum(blocks, axis=0) / np.arange(1.0, len(blocks) + 1)[:, None],
        block_size=size,
        transient=runs[0].transient,
        stopped_at=min(ends, default=None),
        log_det=None if any(run.log_det is None for run in kept) else float(single.values.sum()),
        rounding=rounding,
        num_resolved=min(known, default=None),
    )
    return record, pooled


def _reaching(lengths: Sequence[int], length: int) -> int:
    return sum(each >= length for each in lengths)


def _steps(run: LyapunovExponents) -> FloatArray:
    if run.steps is None:
        raise ValueError("a trajectory without its `steps` is no fork; keep them.")
    return run.steps


def _rounding(run: LyapunovExponents) -> FloatArray:
    return np.zeros(len(run.values)) if run.rounding is None else run.rounding


def of_dimension(values: FloatArray, j_star: int) -> FloatArray:
    """Weights of y = (S_j + delta x_(j+1))/|ell_(j+1)|, j = j*, delta = D_s - j*, shape [k, 1].

    The error of y's mean is D_s' to first order: the mean itself is 0, since Lambda_j = -delta ell_(j+1).
    """
    weights = np.zeros((len(values), 1))
    following = abs(float(values[j_star]))
    weights[:j_star] = 1.0 / following
    weights[j_star] = float(values[:j_star].sum()) / following**2
    return weights


def unmixed(pooled: ForkedLogs, values: FloatArray, j_star: int) -> str:
    """Why what D_s rests on, the exponents up to j* + 1 and their sum, is of no one distribution; "" where it is."""
    count = min(j_star + 1, len(values))
    single = pooled.combined(np.eye(len(values))[:, :count])
    worst = int(np.nanargmax(single.r_hat))
    name, r_hat = f"ell_{worst + 1}", float(single.r_hat[worst])
    if 0 < j_star < len(values):
        of_sum = float(pooled.combined(of_dimension(values, j_star)).r_hat[0])
        name, r_hat = (name, r_hat) if r_hat >= of_sum else ("D_s", of_sum)
    if r_hat <= MOST_R_HAT:
        return ""
    return (
        f"not stationary or not mixed: split R-hat of {name} over {len(pooled.logs)} forks is {r_hat:.3f}, above "
        f"{MOST_R_HAT}; discard a longer transient, or take more steps"
    )


def evidence(pooled: ForkedLogs, answer: LyapunovDimension) -> Forks:
    """What the exponents and D_s of several trajectories rest on, for the answer."""
    size = pooled.logs.shape[2]
    single, sums = pooled.combined(np.eye(size)), pooled.combined(np.triu(np.ones((size, size))))
    of_d_s = None
    if answer.value is not None and answer.j_star is not None and 0 < answer.j_star < size:
        of_d_s = pooled.combined(of_dimension(single.values, answer.j_star))
    return Forks(
        count=len(pooled.logs),
        seeds=pooled.seeds,
        r_hat=single.r_hat,
        effective_steps=single.effective,
        alignment=single.alignment,
        half_widths=single.half_widths,
        sum_stderr=sums.stderr,
        dimension_stderr=None if of_d_s is None else float(of_d_s.stderr[0]),
        dimension_r_hat=None if of_d_s is None else float(of_d_s.r_hat[0]),
        dimension_effective_steps=None if of_d_s is None else float(of_d_s.effective[0]),
    )
