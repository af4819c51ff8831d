"""Caveats of a sharpness dimension, each with its numbers: one small rule for each warning."""

from __future__ import annotations

import math
from collections.abc import Callable

import attrs

from sdkeras.dimension.estimate import Summary
from sdkeras.dimension.exponents import FLOOR, FULL, Exponents, is_unresolved, rounding
from sdkeras.results.dimension import SharpnessDimension
from sdkeras.results.note import Note

_WIDE = 0.1
_SIGNIFICANT = 3.0
# One of a few always holds a third.
_LARGEST_SHARE, _FEWEST_FOR_SHARES = 1 / 3, 20
# Minibatches that a skewness g of the residuals asks for, over g^2.
ROWS_FOR_SKEWNESS = 25.0
# Bins and kernels wider than this share of |t*| move the crossing.
_COARSE = 0.05


@attrs.frozen(eq=False)
class Evidence:
    """An estimate and what it rests on.

    Attributes:
        estimate: The estimate.
        summary: The look at the runs that it is from.
        nested: (mean difference, allowed) of a failed nested check, or None.
        ended: Reason why the runs ended before the tolerance was met, or "".
        target: Target half-width.
    """

    estimate: SharpnessDimension
    summary: Summary
    nested: tuple[float, float] | None
    ended: str
    target: float

    @property
    def exponents(self) -> Exponents:
        return self.summary.pooled.context.exponents

    @property
    def largest(self) -> float:
        """Largest |eigenvalue| seen."""
        return self.summary.pooled.largest

    @property
    def half_width(self) -> float | None:
        interval = self.estimate.interval
        return None if interval is None else 0.5 * (interval[1] - interval[0])

    def setting(self, name: str) -> float:
        """A setting of an estimator that works on z, in units of z; 0 where there is none."""
        context = self.summary.pooled.context
        value = context.settings.get(name) if context.own_rate else None
        return float(value) if isinstance(value, (int, float)) else 0.0


def _ill_conditioned(evidence: Evidence) -> Note | None:
    estimate, context, rate = evidence.estimate, evidence.summary.pooled.context, evidence.exponents.rate
    errors = (FLOOR, rate * evidence.largest * context.product_error, rate * context.ignored_decay)
    allowed = 10 * max(*errors, evidence.setting("offset"))
    if estimate.margin is None or estimate.margin >= allowed:
        return None
    return Note(
        "ill-conditioned",
        "the answer rests on neutral directions, which a step hardly changes: an error of "
        f"{estimate.margin:.2g} in the mean exponent of these {estimate.neutral_mass:.6g} directions would change it, "
        f"and that mean is known to about {allowed / 10:.2g} (rounding of the products, weight decay that the map "
        "leaves out, or the estimator's offset).",
    )


def _coarse(code: str, setting: str) -> Callable[[Evidence], Note | None]:
    """The rule for bins or kernels of this width."""

    def rule(evidence: Evidence) -> Note | None:
        estimate, width = evidence.estimate, evidence.setting(setting)
        scale, what = estimate.threshold_exponent, "the size of the exponent at SD, |t*| ="
        if scale is None:
            scale, what = evidence.summary.pooled.crossing.total / estimate.state_size, "the size of the mean exponent,"
        if width <= _COARSE * abs(scale):
            return None
        return Note(
            code,
            f"the {setting.replace('_', ' ')} {width:.3g} of {estimate.estimator} is more than {_COARSE} of {what} "
            f"{abs(scale):.3g}: it shifts neutral directions (exponents near 0) far enough to decide the answer; "
            "take a smaller one "
            f"(`settings={{'{estimate.estimator}': {{'{setting}': F}}}}`), or the estimator slq.",
        )

    return rule


def _coarse_quantiles(evidence: Evidence) -> Note | None:
    estimate, count = evidence.estimate, evidence.setting("num_quantiles")
    if not 0 < count < estimate.state_size:
        return None
    return Note(
        "coarse-quantiles",
        f"{count:,.0f} quantiles of {estimate.estimator} stand for {estimate.state_size:,} directions, "
        f"{estimate.state_size / count:.3g} each: an end of the spectrum with fewer than half as many is lost.",
    )


def _zero_or_neutral(evidence: Evidence) -> Note | None:
    estimate, error = evidence.estimate, math.sqrt(evidence.summary.pooled.growth.squared_error)
    upper = 0.0 if estimate.interval is None else estimate.interval[1]
    maybe_neutral = estimate.value <= 0 < upper
    if not math.isfinite(error) or not (estimate.expansion < _SIGNIFICANT * error or maybe_neutral):
        return None
    neutral = upper if maybe_neutral else estimate.neutral_mass or 0.0
    return Note(
        "zero-or-neutral",
        f"the sum of positive exponents E+ = {estimate.expansion:.3g} is not clearly above 0 (standard error "
        f"{error:.2g}): the dimension may be 0, or the number of neutral directions, which a step hardly changes "
        f"({neutral:.6g}).",
    )


def _nothing_grows(evidence: Evidence) -> Note | None:
    pooled, interval = evidence.summary.pooled, evidence.estimate.interval
    if interval is None or not (pooled.nothing_grows and 0 < evidence.estimate.value < evidence.estimate.state_size):
        return None
    return Note(
        "nothing-grows",
        f"no exponent is above 0 by more than rounding (the largest is {pooled.z.max():.2g}): the dimension is the "
        f"number of neutral directions, which a step hardly changes (at most {interval[1]:.6g} here; the sign of their "
        "exponents is rounding), or 0 if they contract.",
    )


def _unresolved_rate(evidence: Evidence) -> Note | None:
    exponents, largest = evidence.exponents, evidence.largest
    if evidence.estimate.threshold_exponent is not None or not is_unresolved(exponents, largest):
        return None
    return Note(
        "unresolved-rate",
        f"at this learning rate no exponent is larger than {exponents.rate * largest:.2g}, the size of the rounding "
        "error in a step's factors |1 - eta*alpha|: the dimension is undetermined between 0 and "
        f"{evidence.estimate.state_size}.",
    )


def _saturated(evidence: Evidence) -> Note | None:
    low, high = evidence.summary.total_interval
    if not (-math.inf < low <= 0 <= high and evidence.estimate.value > 0):
        return None
    return Note(
        "saturated",
        f"the sum of all exponents may be 0 (interval {low:.3g} to {high:.3g}): "
        f"the dimension may be the whole d = {evidence.estimate.state_size}.",
    )


def _nested_check_failed(evidence: Evidence) -> Note | None:
    if evidence.nested is None:
        return None
    difference, allowed = evidence.nested
    return Note(
        "nested-check-failed",
        f"with 70 % of the steps in each run the answer differs by {abs(difference):.3g} dimensions (allowed "
        f"{allowed:.2g}): {evidence.estimate.num_steps} steps may be too few.",
    )


def _nested_check_missing(evidence: Evidence) -> Note | None:
    if evidence.summary.nested_difference is not None or evidence.summary.pooled.have_ended:
        return None
    return Note(
        "nested-check-missing",
        f"the estimator {evidence.estimate.estimator} gives no answer after fewer steps, so whether its steps are "
        "enough was not checked.",
    )


def _wide_interval(evidence: Evidence) -> Note | None:
    half, scale = evidence.half_width, evidence.summary.scale
    if half is None or half <= _WIDE * max(scale, 5.0):
        return None
    one = evidence.exponents.branches == 1
    what = "codimension" if one else "number of dimensions that curvature adds or takes,"
    return Note(
        "wide-interval",
        f"the interval's half-width {half:.3g} is {half / max(scale, 1e-12):.0%} of the {what} {scale:.4g}.",
    )


def _negative_curvature(evidence: Evidence) -> Note | None:
    estimate, error = evidence.estimate, evidence.summary.pooled.context.product_error
    # Bins and kernels put neutral directions on either side of 0; half a width each is no curvature.
    widest = max(evidence.setting("bin_width"), evidence.setting("bandwidth"))
    curved = estimate.expansion_negative_curvature - 0.5 * widest * estimate.state_size
    if (
        estimate.expansion <= rounding(evidence.exponents, evidence.largest, error)
        or curved <= 0.5 * estimate.expansion
    ):
        return None
    share = estimate.expansion_negative_curvature / estimate.expansion
    return Note(
        "negative-curvature",
        f"{share:.0%} of E+, the sum of the positive exponents (how much a step expands in all), comes from directions "
        "in which the loss curves downwards. A leading exponent lambda_1 > 0 is then no sign of too high a learning "
        "rate.",
    )


def _transient_growth(evidence: Evidence) -> Note | None:
    estimate = evidence.estimate
    stable = estimate.expansion - estimate.expansion_negative_curvature - estimate.expansion_unstable
    if evidence.exponents.branches == 1 or stable <= 0.5 * estimate.expansion:
        return None
    words = (
        f"{stable / estimate.expansion:.0%} of E+, the sum of the positive exponents, comes from stable directions, in "
        "which momentum stretches distances for a step or two before they shrink. A leading exponent lambda_1 > 0 is "
        "then no instability"
    )
    if estimate.frozen_lyapunov is not None:
        words += f". If every step were the same, the leading exponent would be {estimate.frozen_lyapunov.leading:.3g}"
    return Note("transient-growth", f"{words}.")


def _mass_correction_off(evidence: Evidence) -> Note | None:
    pooled = evidence.summary.pooled
    if pooled.excess is not None:
        what = "singular values" if evidence.exponents.name == FULL else "eigenvalues"
        reason = (
            f"converged {what} weigh more than one direction each ({pooled.excess:.1f} standard deviations), so there "
            f"are repeated {what}"
        )
    elif pooled.shift is not None:
        shift, error = pooled.shift
        change = f"{shift:.3g} ± {error:.2g} dimensions"
        reason = f"counting each converged eigenvalue as one direction would move the answer by {change}"
    elif pooled.exact or all(run.residuals is not None for run in pooled.runs):
        return None
    else:
        reason = f"the estimator {evidence.estimate.estimator} reports no residuals"
    return Note("mass-correction-off", f"{reason}: the weights of the quadrature were used as they are.")


def _few_dominate(evidence: Evidence) -> Note | None:
    fit = evidence.summary.fit
    rows = fit.rows.num_rows
    if rows == fit.rows.population.num_batches:  # there are no others
        return None
    wanted, share = ROWS_FOR_SKEWNESS * fit.skewness**2, fit.largest_share
    reasons = []
    if share > _LARGEST_SHARE and rows >= _FEWEST_FOR_SHARES:
        reasons.append(f"one of {rows:,} accounts for {share:.0%} of the variance")
    if rows < wanted:
        reasons.append(f"the skewness {fit.skewness:.2g} of their values calls for {wanted:,.0f} of them, not {rows:,}")
    if not reasons or fit.freedom < 2:
        return None
    message = f"a few minibatches dominate the estimate ({'; '.join(reasons)}): the interval may be too narrow."
    return Note("few-minibatches-dominate", message)


def _budget_ended(evidence: Evidence) -> Note | None:
    half, estimate = evidence.half_width, evidence.estimate
    if not evidence.ended or (half is not None and half <= evidence.target):
        return None
    width = "no interval yet" if half is None else f"half-width {half:.3g}"
    runs = f"{estimate.num_runs:,} run" + ("" if estimate.num_runs == 1 else "s")
    message = f"{evidence.ended} stopped {estimate.estimator} after {runs}: {width} (target {evidence.target:.3g})."
    return Note("budget-ended", message)


def _interval_scope(evidence: Evidence) -> Note | None:
    if evidence.estimate.interval is None:
        return None
    steps, rows = evidence.estimate.num_steps, evidence.summary.fit.rows
    quadrature = "" if steps is None else f", the error of runs of only {steps} steps"
    known = " once their losses and predictions are accounted for" if rows.num_controls else ""
    covers = (
        "covers the random choice of minibatches and of each run's start vector, treated as independent draws"
        f"{known}. Minibatches of one epoch share no samples, so if anything it is too wide"
    )
    if rows.num_rows == rows.population.num_batches:
        starts = "" if evidence.summary.pooled.exact else ", and covers the random start vectors of the runs on them"
        covers = f"is for the data's own {rows.num_rows:,} full-size batches, which are all that there are{starts}"
    left_out = f"the difference between the pooled value and Definition 4.1{quadrature}, and a small bias"
    return Note("interval-scope", f"The interval {covers}. It leaves out {left_out} (of order 1/runs).")


# Most important first.
_RULES: tuple[Callable[[Evidence], Note | None], ...] = (
    _ill_conditioned,
    _coarse("coarse-bins", "bin_width"),
    _coarse("coarse-bandwidth", "bandwidth"),
    _coarse_quantiles,
    _zero_or_neutral,
    _nothing_grows,
    _unresolved_rate,
    _saturated,
    _nested_check_failed,
    _nested_check_missing,
    _wide_interval,
    _negative_curvature,
    _transient_growth,
    _mass_correction_off,
    _few_dominate,
    _budget_ended,
    _interval_scope,
)


def cautions(evidence: Evidence) -> tuple[Note, ...]:
    """The warnings of an estimate, most important first."""
    notes = (rule(evidence) for rule in _RULES)
    return tuple(note for note in notes if note is not None)
