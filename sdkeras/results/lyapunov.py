"""Results along a trajectory of training: Lyapunov exponents and the dimensions that they determine."""

from __future__ import annotations

import attrs

from sdkeras.results.arrays import ARRAYS_EQUAL, FloatArray, optional_interval
from sdkeras.results.verification import StepVerification


@attrs.frozen
class LyapunovDimension:
    """D_s of a trajectory, as far as it is known.

    Attributes:
        status: 'determined' (a point), 'bracketed' (only an interval) or 'undetermined'.
        value: D_s, in dimensions; None unless determined.
        interval: 95 % interval of D_s (sampling of steps, and rounding) if determined; if bracketed one that also
            holds what the leading exponents do not show. None if undetermined.
        reason: Why it is no point; empty if determined.
        j_star: Last j with ell_1 + ... + ell_j >= 0 among the exponents that were computed; None if undetermined.
        threshold_exponent: ell_(j*+1), or None where it was not computed.
        size: d, the dimension of the state.
        num_exponents: k, exponents known.
        num_steps: Steps they were averaged over.
    """

    status: str = attrs.field(validator=attrs.validators.in_(("determined", "bracketed", "undetermined")))
    value: float | None
    interval: tuple[float, float] | None = attrs.field(converter=optional_interval)
    reason: str
    j_star: int | None
    threshold_exponent: float | None
    size: int
    num_exponents: int
    num_steps: int

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
    """The smallest dimension that is known for a trajectory.

    Attributes:
        name: 'D_s', 'upper end of D_s', 'SD^(m)' with its m, 'SD' or 'SD over snapshots'.
        value: In dimensions.
        reason: Why it may be used, and what was left out.
    """

    name: str
    value: float
    reason: str


@attrs.frozen
class MStepSharpness:
    """SD^(m): the sharpness dimension of the products of m consecutive Jacobians.

    Attributes:
        num_window_steps: m, steps in a window.
        num_steps: T, steps covered by the windows: every one, once.
        exponents: z^(m), the mean over windows of the k-th largest ln singular value of a window's product, natural
            logarithm per window, descending, shape [num_resolved].
        num_resolved: Number of exponents above rounding, of the d there are.
        size: d.
        dimension: SD^(m), or None where it is undetermined.
        method: 'explicit products' or 'stabilised products'.
        reason: Why it is undetermined; empty otherwise.
    """

    num_window_steps: int
    num_steps: int
    exponents: FloatArray = attrs.field(eq=ARRAYS_EQUAL, repr=False)
    num_resolved: int
    size: int
    dimension: float | None
    method: str
    reason: str = ""

    @property
    def name(self) -> str:
        """'SD', or 'SD^(m)' with its m."""
        return "SD" if self.num_window_steps == 1 else f"SD^({self.num_window_steps})"


@attrs.frozen
class LyapunovSummary:
    """Leading Lyapunov exponents along real training steps from the checkpoint on.

    Attributes:
        values: Natural logarithm per step, descending, shape [k].
        stderr: Standard errors from blocks of steps, shape [k].
        rounding: Bound on the error from rounding of each, shape [k], or None.
        num_resolved: The leading exponents that rounding left intact, or None for all.
        history: For each exponent its running means at the ends of the blocks.
        block_size: Steps in a block.
        num_steps: Steps averaged over.
        num_steps_asked: Steps that were asked for.
        transient: Burn-in steps, discarded.
        stopped_at: Step at which the trajectory diverged, counted from 1 with the transient, or None.
        log_det: Mean of ln|det J| per step where the exponents are all there are or the Jacobians dense, or None.
        dimension: D_s, as far as it is known.
        num_weights: Weights in the state; the rest are the optimizer's slots.
        verification: Checks of the step and its Jacobian.
        windows: SD (m = 1) and SD^(m) over the same steps, where windows were asked for.
        sharpest: The smallest dimension that is determined over these steps, or None.
        coordinates: Coordinates of the singular values behind `windows` and of the exponents beside them: 'weights',
            'balanced' (momentum) or 'raw'. None without windows.
        log_det_stderr: Standard error of log_det from blocks of steps, from dense Jacobians.
        estimator: Lyapunov estimator.
        effective_samples: Effective number of independent blocks behind each exponent, shape [k], from the
            autocorrelations of the block means: well below their number, the standard errors are too small. NaN where
            the means do not vary; None for too few blocks, and in files of version 0.1.
    """

    values: FloatArray = attrs.field(eq=ARRAYS_EQUAL)
    stderr: FloatArray = attrs.field(eq=ARRAYS_EQUAL)
    rounding: FloatArray | None = attrs.field(eq=ARRAYS_EQUAL)
    num_resolved: int | None
    history: tuple[FloatArray, ...] = attrs.field(eq=ARRAYS_EQUAL, repr=False)
    block_size: int
    num_steps: int
    num_steps_asked: int
    transient: int
    stopped_at: int | None
    log_det: float | None
    dimension: LyapunovDimension
    num_weights: int
    verification: StepVerification
    windows: tuple[MStepSharpness, ...] = ()
    sharpest: SharpestDimension | None = None
    coordinates: str | None = None
    log_det_stderr: float | None = None
    estimator: str = "lyapunov-qr"
    effective_samples: FloatArray | None = attrs.field(default=None, eq=ARRAYS_EQUAL)

    def __attrs_post_init__(self) -> None:
        k = len(self.values)
        optional = [known for known in (self.rounding, self.effective_samples) if known is not None]
        lengths = [len(self.stderr), len(self.history), *map(len, optional)]
        if k == 0 or set(lengths) != {k}:
            raise ValueError(f"LyapunovSummary: {k} values, and lists beside them of {lengths} entries.")
        if len({len(means) for means in self.history}) > 1:
            raise ValueError("LyapunovSummary.history has exponents of different length.")
