"""Results along a trajectory of training: Lyapunov exponents and the dimensions that they determine."""

from __future__ import annotations

import attrs

from sdkeras.results.arrays import ARRAYS_EQUAL, FloatArray, check_same_length, optional_interval
from sdkeras.results.verification import StepVerification


@attrs.frozen
class LyapunovDimension:
    """D_s of a trajectory, as far as it is known."""

    # 'determined' (a point), 'bracketed' (only an interval) or 'undetermined'.
    status: str = attrs.field(validator=attrs.validators.in_(("determined", "bracketed", "undetermined")))
    value: float | None  # D_s, in dimensions; None unless determined
    # 95 % interval of D_s (sampling of steps, and rounding) if determined; if bracketed one that also holds what the
    # leading exponents do not show. None if undetermined.
    interval: tuple[float, float] | None = attrs.field(converter=optional_interval)
    reason: str  # why it is no point; empty if determined
    j_star: int | None  # last j with ell_1 + ... + ell_j >= 0 among the known exponents; None if undetermined
    threshold_exponent: float | None  # ell_(j*+1), or None where it was not computed
    size: int  # d, the dimension of the state
    num_exponents: int  # k, exponents known
    num_steps: int  # that they were averaged over

    def __attrs_post_init__(self) -> None:
        if (self.value is None) == (self.status == "determined"):
            raise ValueError(f"LyapunovDimension.value is {self.value} with status '{self.status}'.")
        if (self.interval is None) != (self.status == "undetermined"):
            raise ValueError(f"LyapunovDimension.interval is {self.interval} with status '{self.status}'.")

    @property
    def codimension(self) -> float | None:
        """size - value, or None."""
        return None if self.value is None else self.size - self.value


@attrs.frozen
class SharpestDimension:
    """The smallest dimension that is known for a trajectory."""

    name: str  # 'D_s', 'upper end of D_s', 'SD^(m)' with its m, 'SD' or 'SD over snapshots'
    value: float  # in dimensions
    reason: str  # why it may be used, and what was left out


@attrs.frozen
class MStepSharpness:
    """SD^(m): the sharpness dimension of the products of m consecutive Jacobians."""

    num_window_steps: int  # m, steps in a window
    num_steps: int  # T, steps covered by the windows: every one, once
    # z^(m), the mean over windows of the k-th largest ln singular value of a window's product, natural logarithm per
    # window, descending, shape [num_resolved].
    exponents: FloatArray = attrs.field(eq=ARRAYS_EQUAL, repr=False)
    num_resolved: int  # exponents above rounding, of the d there are
    size: int  # d
    dimension: float | None  # SD^(m), or None where it is undetermined
    method: str  # 'explicit products' or 'stabilised products'
    reason: str = ""  # why it is undetermined

    @property
    def name(self) -> str:
        """'SD', or 'SD^(m)' with its m."""
        return "SD" if self.num_window_steps == 1 else f"SD^({self.num_window_steps})"


@attrs.frozen
class Forks:
    """Evidence of exponents that are means over several trajectories, each with minibatches of its own.

    x_i is ln R_ii of a step, S_j = x_1 + ... + x_j, and D_s of j* = j has the error of the mean of
    y = (S_j + delta x_(j+1))/|ell_(j+1)|, delta = D_s - j.
    """

    count: int  # trajectories
    seeds: tuple[int, ...]  # of their minibatches
    r_hat: FloatArray = attrs.field(eq=ARRAYS_EQUAL)  # split R-hat of each x_i, shape [k]; above 1.01: not mixed
    # Effective number of independent steps behind each exponent, summed over the trajectories, shape [k]; NaN where
    # x_i does not vary.
    effective_steps: FloatArray = attrs.field(eq=ARRAYS_EQUAL)
    # |ell_i - ell_i'| of two start frames over the steps of the first trajectory, shape [k]; None without a second.
    alignment: FloatArray | None = attrs.field(eq=ARRAYS_EQUAL)
    half_widths: FloatArray = attrs.field(eq=ARRAYS_EQUAL)  # of the 95 % intervals: sampling and alignment, shape [k]
    sum_stderr: FloatArray = attrs.field(eq=ARRAYS_EQUAL)  # of ell_1 + ... + ell_j, from S_j, shape [k]
    # Of y; None where D_s is no point, or 0 or the size of the state.
    dimension_stderr: float | None
    dimension_r_hat: float | None
    dimension_effective_steps: float | None

    def __attrs_post_init__(self) -> None:
        check_same_length(self, "r_hat", "effective_steps", "alignment", "half_widths", "sum_stderr")


@attrs.frozen
class LyapunovSummary:
    """Leading Lyapunov exponents along real training steps from the checkpoint on."""

    values: FloatArray = attrs.field(eq=ARRAYS_EQUAL)  # natural logarithm per step, descending, shape [k]
    # From blocks of whole epochs of steps, of which fewer than 10 say nothing, or, with forks, from the effective
    # number of steps; shape [k].
    stderr: FloatArray = attrs.field(eq=ARRAYS_EQUAL)
    rounding: FloatArray | None = attrs.field(eq=ARRAYS_EQUAL)  # bound on the error from rounding of each, shape [k]
    num_resolved: int | None  # the leading exponents that rounding left intact; None for all
    # For each exponent its running means at the ends of the blocks.
    history: tuple[FloatArray, ...] = attrs.field(eq=ARRAYS_EQUAL, repr=False)
    block_size: int  # in steps
    num_steps: int  # averaged over, of each fork
    num_steps_asked: int
    transient: int  # burn-in steps, discarded
    stopped_at: int | None  # step at which the trajectory diverged, counted from 1 with the transient
    log_det: float | None  # mean of ln|det J| per step, where the exponents are all there are or the Jacobians dense
    dimension: LyapunovDimension
    num_weights: int  # in the state; the rest are the optimizer's slots
    verification: StepVerification
    windows: tuple[MStepSharpness, ...] = ()  # SD (m = 1) and SD^(m) over the same steps, where they were asked for
    sharpest: SharpestDimension | None = None  # that is determined over these steps
    # Of the singular values behind `windows` and the exponents beside them: 'weights', 'balanced' (momentum) or 'raw'.
    coordinates: str | None = None
    log_det_stderr: float | None = None  # from blocks of steps, for dense Jacobians
    estimator: str = "lyapunov-qr"
    # Effective number of independent blocks behind each exponent, shape [k], from the autocorrelations of the block
    # means: well below their number, the standard errors are too small. NaN where the means do not vary; None for too
    # few blocks, and in files of version 0.1.
    effective_samples: FloatArray | None = attrs.field(default=None, eq=ARRAYS_EQUAL)
    # Where several trajectories were asked for; the running means and their blocks are then means over all of them.
    forks: Forks | None = None

    def __attrs_post_init__(self) -> None:
        check_same_length(self, "values", "stderr", "history", "rounding", "effective_samples")
        if len(self.values) == 0:
            raise ValueError("LyapunovSummary.values is empty; a trajectory has at least one exponent.")
        if len({len(means) for means in self.history}) > 1:
            raise ValueError("LyapunovSummary.history has exponents of different length.")
