"""What the reader of a sharpness dimension must know, each with its numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator

from sdkeras.dimension.exponents import FULL, Exponents
from sdkeras.results.dimension import SharpnessDimension
from sdkeras.results.note import Note

# A neutral exponent is known to the rounding of ln(|1 - x|) at x ~ 0.
_FLOOR = 1e-12
_WIDE = 0.1
_SIGNIFICANT = 3.0
# Bins and kernels wider than this share of |t*| move the crossing.
_COARSE = 0.05


def is_unresolved(exponents: Exponents, largest: float) -> bool:
    """Whether all exponents are rounding of factors |1 - eta*alpha| close to 1: their signs then mean nothing.

    Args:
        exponents: The map.
        largest: Largest |eigenvalue| seen.
    """
    return bool(0.0 < exponents.rate * largest < _FLOOR)


def rounding(exponents: Exponents, largest: float, product_error: float) -> float:
    """How far exponents of neutral directions are off by rounding: z above 0 within it may be none.

    Args:
        exponents: The map.
        largest: Largest |eigenvalue| seen.
        product_error: Relative error of a product.
    """
    return _FLOOR + exponents.rate * largest * product_error


def cautions(
    estimate: SharpnessDimension,
    *,
    exponents: Exponents,
    product_error: float,
    ignored_decay: float,
    largest: float,
    expansion_stderr: float | None,
    total_interval: tuple[float, float],
    mean_exponent: float,
    nested: tuple[float, float] | None,
    nested_checked: bool,
    guard: float | None,
    correctable: bool,
    ended: str | None,
    target: float,
    scale: float,
) -> tuple[Note, ...]:
    """The warnings of an estimate, most important first.

    Args:
        estimate: What was found.
        exponents: The map.
        product_error: Relative error of a product.
        ignored_decay: Weight decay the map leaves out.
        largest: Largest |eigenvalue| seen.
        expansion_stderr: Standard error of E+, or None.
        total_interval: Interval of the sum of all exponents.
        mean_exponent: Their mean; what a width is compared with where there is no t*.
        nested: (mean difference, allowed) of a failed nested check, or None.
        nested_checked: Whether the check could be made (or was not needed).
        guard: Excess of the accepted masses in standard deviations if the mass correction was switched off.
        correctable: Whether the estimator reports residuals.
        ended: What ended the runs before the tolerance was met, or None.
        target: Half-width asked for.
        scale: What half-widths are judged by, see `adaptive.summarise`.
    """
    notes: list[Note] = []

    def note(code: str, message: str) -> None:
        notes.append(Note(code, message))

    d = estimate.state_size
    rate = exponents.rate
    widest, offset = _width(estimate), _own(estimate, "offset")
    allowed = 10 * max(_FLOOR, rate * largest * product_error, rate * ignored_decay, offset)
    if estimate.margin is not None and estimate.margin < allowed:
        note(
            "ill-conditioned",
            f"the answer rests on neutral directions: an error of {estimate.margin:.2g} in the mean of "
            f"{estimate.neutral_mass:.6g} neutral exponents would change it, and they are known to about "
            f"{allowed / 10:.2g} (rounding of the products, weight decay that the map leaves out, or the estimator's "
            "offset).",
        )
    for code, message in _coarseness(estimate, mean_exponent):
        note(code, message)
    maybe_neutral = estimate.value <= 0 and estimate.interval is not None and estimate.interval[1] > 0
    if expansion_stderr is not None and (estimate.expansion < _SIGNIFICANT * expansion_stderr or maybe_neutral):
        neutral = 0.0 if estimate.neutral_mass is None else estimate.neutral_mass
        if maybe_neutral and estimate.interval is not None:
            neutral = estimate.interval[1]
        note(
            "zero-or-neutral",
            f"the sum of positive exponents E+ = {estimate.expansion:.3g} is not clearly above 0 (standard error "
            f"{expansion_stderr:.2g}): the dimension may be 0 or the number of neutral directions "
            f"({neutral:.6g}).",
        )
    if estimate.threshold_exponent is None and is_unresolved(exponents, largest):
        note(
            "unresolved-rate",
            f"at this learning rate no exponent exceeds {exponents.rate * largest:.2g}, which is rounding of the "
            f"factors |1 - eta*alpha|: the dimension is undetermined between 0 and {d}.",
        )
    if -math.inf < total_interval[0] <= 0 <= total_interval[1] and estimate.value > 0:
        note(
            "saturated",
            f"the sum of all exponents may be 0 (interval {total_interval[0]:.3g} to {total_interval[1]:.3g}): "
            f"the dimension may be saturated at d = {d}.",
        )
    if nested is not None:
        note(
            "nested-check-failed",
            f"with 0.7 of the steps the answer differs by {abs(nested[0]):.3g} dimensions (allowed "
            f"{nested[1]:.2g}): {estimate.num_steps} steps may be too few.",
        )
    if not nested_checked:
        note(
            "nested-check-missing",
            f"the estimator {estimate.estimator} gives no coarser rule, so the number of steps was not checked.",
        )
    half = None if estimate.interval is None else 0.5 * (estimate.interval[1] - estimate.interval[0])
    if half is not None and half > _WIDE * max(scale, 5.0):
        what = "codimension" if exponents.branches == 1 else "number of dimensions that curvature adds or takes,"
        note(
            "wide-interval",
            f"the interval's half-width {half:.3g} is {half / max(scale, 1e-12):.0%} of the {what} {scale:.4g}.",
        )
    # Bins and kernels put neutral directions on either side of 0; half a width each is no curvature.
    curved = estimate.expansion_negative_curvature - 0.5 * widest * d
    if estimate.expansion > rounding(exponents, largest, product_error) and curved > 0.5 * estimate.expansion:
        share = estimate.expansion_negative_curvature / estimate.expansion
        note(
            "negative-curvature",
            f"{share:.0%} of E+, the sum of the positive exponents, comes from negative curvature: lambda_1 > 0 here "
            "is negative curvature, not the edge of stability.",
        )
    stable = estimate.expansion - estimate.expansion_negative_curvature - estimate.expansion_unstable
    if exponents.branches > 1 and stable > 0.5 * estimate.expansion:
        note(
            "transient-growth",
            f"{stable / estimate.expansion:.0%} of E+ comes from stable directions, in which momentum stretches for a "
            "step or two before it contracts: lambda_1 > 0 here is no instability (see the frozen Lyapunov exponents).",
        )
    if guard is not None:
        what = "singular values" if exponents.name == FULL else "eigenvalues"
        note(
            "mass-correction-off",
            f"converged Ritz values carry more mass than simple {what} would ({guard:.1f} standard deviations): there "
            f"are repeated {what}, so raw quadrature weights were used.",
        )
    elif not correctable:
        note(
            "mass-correction-off",
            f"the estimator {estimate.estimator} reports no residuals, so raw quadrature weights were used.",
        )
    if ended is not None and (half is None or half > target):
        width = "no interval yet" if half is None else f"half-width {half:.3g}"
        runs = f"{estimate.num_runs:,} run" + ("" if estimate.num_runs == 1 else "s")
        note("budget-ended", f"{ended} stopped {estimate.estimator} after {runs}: {width} (target {target:.3g}).")
    scope = "the gap to the definition's value and a second-order bias (E[SD] <= SD, O(1/runs))"
    if estimate.num_steps is not None:
        scope = f"the gap to the definition, the quadrature error at {estimate.num_steps} steps, and a small bias"
    note(
        "interval-scope",
        "The interval covers sampling of minibatches and probes and takes runs as independent; minibatches of one "
        f"epoch partition the data, which makes it conservative. It excludes {scope}.",
    )
    return tuple(notes)


def _own(estimate: SharpnessDimension, name: str) -> float:
    """A setting of an estimator that works on z (it has a learning rate), in units of z; 0 where it has none."""
    value = estimate.settings.get(name) if "learning_rate" in estimate.settings else None
    return float(value) if isinstance(value, (int, float)) else 0.0


def _width(estimate: SharpnessDimension) -> float:
    return max(_own(estimate, "bin_width"), _own(estimate, "bandwidth"))


def _coarseness(estimate: SharpnessDimension, mean_exponent: float) -> Iterator[tuple[str, str]]:
    """What bins, kernels and quantiles may have done to the value."""
    t_star = estimate.threshold_exponent
    what = "|t*|" if t_star is not None else "the mean exponent's size"
    scale = abs(mean_exponent if t_star is None else t_star)
    for code, setting in (("coarse-bins", "bin_width"), ("coarse-bandwidth", "bandwidth")):
        width = _own(estimate, setting)
        if width > _COARSE * scale:
            yield (
                code,
                f"the {setting.replace('_', ' ')} {width:.3g} of {estimate.estimator} is more than {_COARSE} of {what} "
                f"{scale:.3g}: it moves neutral directions far enough to decide the answer; take a smaller one (--set "
                f"{estimate.estimator}.{setting}=F), or the estimator slq.",
            )
    count = _own(estimate, "num_quantiles")
    if 0 < count < estimate.state_size:
        yield (
            "coarse-quantiles",
            f"{count:,.0f} quantiles of {estimate.estimator} stand for {estimate.state_size:,} directions, "
            f"{estimate.state_size / count:.3g} each: fewer than half of that at an end of the spectrum are lost.",
        )
