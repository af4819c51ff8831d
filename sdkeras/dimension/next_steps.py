"""What to do next: one small rule for each advice, a pure function of an analysis.

Here, and not beside the measurements, since rules need only what is in the answer and the optimizers' thresholds: both
`sdkeras.runs`, which puts them into an answer, and `sdkeras.reporting` can ask for them.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Collection

import attrs
import numpy as np

from sdkeras.dimension.cautions import ROWS_FOR_SKEWNESS
from sdkeras.dimension.exponents import FULL
from sdkeras.dimension.noise_limit import NoiseLimit, Span, is_full_batch, noise_limit
from sdkeras.dimension.stability import EDGE
from sdkeras.errors import counted
from sdkeras.results.answers import Analysis, LayerSharpness
from sdkeras.results.arrays import Value
from sdkeras.results.dimension import SharpnessDimension
from sdkeras.results.measured import STANDARD_ERRORS
from sdkeras.results.next_step import NextStep

MOST = 3
# Share of the threshold below which there is room for a larger rate. Rates are searched in factors of 2 or more, and
# with less room the sharpening of further training takes it.
HEADROOM = 0.5
# More room than this is not counted: long before, something else than the curvature at these weights decides.
MOST_ROOM = 100.0
# Batch sharpness over sharpness from which on minibatches differ much. Measured on digits trained with SGD: 3.2 for
# batches of 4, 1.4 for 16, 0.6 for 64.
FAR = 3.0
# A rate below this share of the schedule's peak is the end of it: it has trained nothing but the last steps.
END_OF_SCHEDULE = 0.1
# A block's largest eigenvalue is at most the whole's (Cauchy); above this share it is that layer's, and below it in all
# other layers.
MOST_OF_IT = 0.8
# Share of the data on which the Hessian is taken as known; and how near to the edge a smaller one leaves it open.
# Measured on digits: six random quarters of 1,347 samples have 0.85 to 1.39 times the sharpness of all.
FRACTION, NEAR = 0.5, 1.4
# Half-width of SD's interval over the codimension, in dimensions at least; and the tolerance to ask for then.
WIDE, FLOOR, NARROW = 0.1, 0.5, 0.05
# eta times the largest eigenvalue from which on float64 tells the factors from 1, with some digits.
RESOLVED = 1e-12
# Share of minibatches whose gradient is 0.
SKIPPED = 0.5
# Of a layer's eigenvalue and trace beside the largest ones: rounding in float32, and no curvature.
FLAT = 1e-6
# Parameters up to which exact spectra take seconds.
SMALL = 2000

# More products than this are written without digits that nobody counts.
_COUNTABLE = 1e15

Rule = Callable[[Analysis], NextStep | None]


def next_steps(run: Analysis) -> tuple[NextStep, ...]:
    """At most three steps that the numbers of an analysis give, the most important first; () where none do.

    Where no rule fires and the learning rate is a good one, that is said instead (`good_rate`). An operator that failed
    its verification gives none.
    """
    if not run.verification.passed:
        return ()
    steps = [step for rule in _RULES if (step := rule(run)) is not None]
    keep = None if steps else good_rate(run)
    return tuple(steps[:MOST]) if keep is None else (keep,)


# The learning rate


def schedule(run: Analysis) -> NextStep | None:
    """No learning rate, or one at the end of its schedule: which to give.

    A threshold is proportional to 1/eta but for weight decay, so that the ratio at the peak follows from that at the
    stored rate. The rate is at the end where it is less than `END_OF_SCHEDULE` of the peak of the steps so far.
    """
    optimizer = run.optimizer
    rate, peak = optimizer.learning_rate, optimizer.peak_learning_rate
    has_peak = peak is not None and 0 < peak < math.inf
    if optimizer.learning_rate_missing:
        if has_peak:
            advice, arguments = f"Judge by the peak of its schedule, {peak:.4g}", {"learning_rate": "peak"}
        elif optimizer.parts:
            advice, arguments = "Take the whole step with all its rates", {"map": FULL}
        else:
            advice, arguments = (
                "Give the rate that you trained with in place of F",
                {"learning_rate": _Placeholder("F")},
            )
        message = f"{advice}: without a learning rate there are neither threshold nor sharpness dimension"
        return _step(run, "give-a-rate", message, "high", "the rate in the file cannot be used", **arguments)
    if peak is None or not (has_peak and _is_end_of_schedule(run)):
        return None
    ratio = run.edge_of_stability.ratio
    at_peak = ""
    if ratio is not None and math.isfinite(ratio) and ratio > 0 and rate > 0 and _decays(run, peak):
        at_peak = (
            f"; at the peak the ratio would be about {ratio * _of_threshold(run, peak):.2g} in place of {ratio:.2g}"
        )
    message = (
        f"Judge by the peak of the schedule, {peak:.4g}: the stored rate {rate:.3g} is {rate / peak:.1%} of it, "
        f"and ratio and dimension are of steps that trained hardly anything{at_peak}"
    )
    return _step(run, "end-of-schedule", message, "high", "both rates are in the file", learning_rate="peak")


def learning_rate(run: Analysis) -> NextStep | None:
    """How much larger the rate could be, or how much smaller it must be for steps that settle.

    The largest rate of full-batch steps is where the sharpness reaches the threshold. Minibatch noise may limit it
    first, see `noise_limit`; the smaller of the two counts. Only where the whole interval of the ratio is on one side:
    below `HEADROOM`, within `EDGE`, or above it. The sharpness of some of the variables is a lower bound of that of
    all, and promises no room.

    Reference: Cohen et al. (2021), arXiv 2103.00065, also for progressive sharpening.
    """
    ratio, rate = _ratio(run), run.optimizer.learning_rate
    if ratio is None or ratio[1] <= 0 or "unresolved-rate" in _codes(run):
        return None
    low, high = ratio
    largest, of_h = _rounded_down(rate * _of_rate(run, high)), run.edge_of_stability.operator == "H"
    confidence = "high" if of_h else "moderate"
    sure = "the interval excludes the edge" if of_h else "the second moments are held, and they move with the rate"
    again = "a smaller rate lets the sharpness rise again as training goes on (progressive sharpening)"
    if low > EDGE[1]:
        message = (
            f"Lower the learning rate from {rate:.4g} to at most {largest:g} for steps that settle: the sharpness is "
            f"{low:.3g} times the threshold, where they overshoot along the steepest direction; {again}"
        )
        return _step(run, "above-the-edge", message, confidence, sure, learning_rate=largest)
    if low >= EDGE[0] and high <= EDGE[1]:
        half = _rounded_down(HEADROOM * largest)
        message = (
            f"Expect the loss to oscillate, or lower the learning rate from {rate:.4g} to about "
            f"{half:g}: training sits at the edge of stability (ratio {low:.3g}); {again}"
        )
        within = "the interval is within 0.9 to 1.1" if of_h else sure
        return _step(run, "at-the-edge", message, confidence, within, learning_rate=half)
    whole = run.model.num_trainable_analysed == run.model.num_parameters
    return _headroom(run, rate, high, confidence, sure) if high < HEADROOM and whole else None


def _headroom(run: Analysis, rate: float, high: float, confidence: str, sure: str) -> NextStep | None:
    full, noise = _of_rate(run, high), noise_limit(run)
    factor, limit = full, "before full-batch steps overshoot"
    if noise is not None:
        used = noise.share[1]
        if full * used > 1:
            factor, limit = 1 / used, f"before {noise.event}; full-batch steps alone would allow {_times(full)}"
        if factor < 1 / HEADROOM:
            return None
        confidence, sure = "moderate", noise.reason
    elif confidence == "high" and not is_full_batch(run):
        confidence, sure = "moderate", "minibatch noise, which may limit it sooner, is not known here"
    middle = _rounded_down(math.sqrt(min(factor, MOST_ROOM)) * rate)
    room = (
        f"up to {factor * rate:.2g}, {_times(factor)} this one" if factor <= MOST_ROOM else f"for {_times(factor)} it"
    )
    message = (
        f"Train again with a larger learning rate than {rate:.4g}, such as {middle:g}: there is room {room}, {limit}. "
        f"That is at the present sharpness (ratio {high:.2g}), which tends to rise in further training. The command "
        "judges these weights at the larger rate"
    )
    return _step(run, "rate-headroom", message, confidence, sure, learning_rate=middle)


def _times(factor: float) -> str:
    return f"{factor:.2g} times" if factor <= MOST_ROOM else f"more than {MOST_ROOM:g} times"


def small_batch(run: Analysis) -> NextStep | None:
    """Minibatch noise limits the learning rate, and not the loss of the whole data set.

    It does where the share that `noise_limit` finds in use is at the edge (0.9) and the ratio is not; or where it is
    above `HEADROOM` and the batch sharpness at least `FAR` times the sharpness of H. Error bars count against it. It
    may where an error bar holds 1.

    Between momentum's two levels the share is no error bar: taken for one, it would hold 1 in most trainings with
    momentum and send them to a smaller rate. There noise may limit the rate where even the higher level leaves no more
    room than `HEADROOM`; below that nothing is known against this rate, and nothing for a larger one.

    Where noise may take the room that the loss of all data leaves, the rate is a good one, and takes larger minibatches
    to be raised.
    """
    limit, ratio, edge = noise_limit(run), _ratio(run), run.edge_of_stability
    batch, largest, size = edge.batch_sharpness, run.hessian.largest, run.data.batch_size
    if limit is None or ratio is None or ratio[1] >= EDGE[0]:
        return None
    low, high = limit.share
    times = 0.0
    if batch is not None and edge.batch_sharpness_stderr is not None and largest is not None and largest.value > 0:
        times = (batch - STANDARD_ERRORS * edge.batch_sharpness_stderr) / (largest.value + (largest.residual or 0.0))
    limits = low >= EDGE[0] or (low >= HEADROOM and times >= FAR)
    may_limit = high >= 1 and (low >= HEADROOM or not limit.between)
    if not (limits or may_limit or high > HEADROOM > ratio[1]):
        return None
    share = f"{_noise_in_words(limit, batch or 0.0)} {ratio[1]:.2g} of what the loss of all data allows"
    along = f" (curvature along a minibatch's own gradient is {times:.2g} times the sharpness)" if times > 1 else ""
    if run.data.batch_size_source == "assumed":
        message = f"Give the batch size that you trained with in place of N: at the assumed {size}, {share}{along}"
        return _step(run, "small-batch", message, "low", "the batch size is assumed", batch_size=_Placeholder("N"))
    why = ("moderate", limit.reason)
    if limit.is_kappa and low > 1:
        why = ("high", "the interval of kappa is above 1")
    elif limit.between or (not limits and high >= 1):
        why = ("low", _unsure(limit))
    larger = min(2 * size, run.data.num_samples)
    if limits or may_limit:
        message = f"Take larger minibatches than {size}, or a smaller rate: {share}{along}"
        return _step(run, "small-batch", message, *why, batch_size=larger)
    message = f"Keep this learning rate, or raise it only with minibatches larger than {size}: {share}{along}"
    return _step(run, "noise-takes-the-room", message, *why, batch_size=larger)


def _noise_in_words(limit: NoiseLimit, batch_sharpness: float) -> str:
    """How much of what noise allows is in use, or between two levels the quotients by both; begins a list."""
    low, high = (f"{end:.2g}" for end in limit.share)
    if not limit.between:
        return f"the rate uses {low if low == high else f'{low} to {high}'} of what minibatch noise allows, and"
    small, large = (f"{batch_sharpness / each.level:.2g} times {each.formula}" for each in limit.between)
    return (
        f"the batch sharpness is {small}, where small minibatches settle, and {large}, where large ones do; the rate "
        "uses"
    )


def _unsure(limit: NoiseLimit) -> str:
    """Why a share that holds 1 decides nothing."""
    return limit.reason if limit.between else f"the interval holds 1, and {limit.reason}"


def good_rate(run: Analysis) -> NextStep | None:
    """Nothing to change in the rate: a ratio that may be above `HEADROOM`, and is not at the edge or beyond it."""
    ratio, limit = _ratio(run), noise_limit(run)
    if ratio is None or ratio[0] >= EDGE[0] or not HEADROOM <= ratio[1] < 1:
        return None
    if run.model.num_trainable_analysed < run.model.num_parameters:
        return None  # of all variables it is larger
    if limit is not None and limit.share[0] >= EDGE[0]:
        return None  # said by `small_batch`
    message = (
        f"Keep this learning rate: the sharpness is {ratio[1]:.2g} of its threshold, and the room that is left, less "
        f"than a factor of {1 / HEADROOM:g}, is what further training tends to take (progressive sharpening)"
    )
    sure = ("high", "both limits are known")
    if limit is None and not is_full_batch(run):
        sure = ("moderate", "minibatch noise is not known here")
    elif limit is not None and limit.share[1] >= 1:
        sure = ("moderate", _unsure(limit))
    return attrs.evolve(_step(run, "good-rate", message, *sure), command="")


# Where it sits


def layer(run: Analysis) -> NextStep | None:
    """The layer that holds most of the sharpness; or that layers should be measured, where training is at the edge.

    A diagonal block's largest eigenvalue is at most the whole matrix' (Cauchy interlacing): one of at least
    `MOST_OF_IT` of it, in one layer alone, is where the sharpness sits.
    """
    whole, ratio = run.hessian.largest, _ratio(run)
    if not run.layers:
        if ratio is None or ratio[1] < EDGE[0] or run.model.num_trainable_analysed < 2 or _map(run) == FULL:
            return None
        message = "Ask for the layers: at this ratio it matters which of them the sharpness sits in"
        return _step(run, "per-layer", message, "high", "the ratio reaches the edge", per_layer=True)
    known = [each for each in run.layers if each.largest is not None]
    if whole is None or not whole.value > 0 or len(known) < 2:
        return None
    first, second = sorted(known, key=_eigenvalue, reverse=True)[:2]
    share, other = (_eigenvalue(each) / whole.value for each in (first, second))
    if share < MOST_OF_IT or other >= MOST_OF_IT:
        return None
    message = (
        f"Look at the layer {first.name} first: its block alone has {min(share, 1.0):.0%} of the sharpness, the next, "
        f"{second.name}, {max(other, 0.0):.0%}; a smaller rate, a normalization or another scale acts there"
    )
    converged = whole.converged and all(each.largest is not None and each.largest.converged for each in (first, second))
    why = ("high", "all three eigenvalues have converged") if converged else ("low", "an eigenvalue has not converged")
    return _step(run, "layer", message, *why, params=f"^{re.escape(first.name)}/")


def _eigenvalue(layer: LayerSharpness) -> float:
    return -math.inf if layer.largest is None else layer.largest.value


# Too little to know


def few_samples(run: Analysis) -> NextStep | None:
    """The Hessian is of a part of the data, and the verdict is near enough to the edge to depend on which.

    Less than `FRACTION` of the samples, and a ratio within a factor `NEAR` of the edge.
    """
    ratio, data = run.edge_of_stability.ratio, run.data
    near = ratio is not None and EDGE[0] / NEAR <= ratio <= EDGE[1] * NEAR
    if not near or data.num_samples_hessian >= FRACTION * data.num_samples:
        return None
    more = min(data.num_samples, 4 * data.num_samples_hessian)
    message = (
        f"Measure the sharpness on more samples: it is of {data.num_samples_hessian:,} of {data.num_samples:,}, and at "
        f"ratio {ratio:.2g} that may decide the verdict; {more:,} take {more / data.num_samples_hessian:.2g} times "
        "the products of the eigenvalues"
    )
    return _step(run, "few-samples", message, "moderate", "how much a part is off is not measured", samples=more)


def open_verdict(run: Analysis) -> NextStep | None:
    """The interval of the ratio holds 1: the eigenvalue has not converged within the limit.

    Lanczos takes about 25 products with each batch of the data set.
    """
    ratio = _ratio(run)
    if ratio is None or not ratio[0] < 1 < ratio[1] or (ratio[0] >= EDGE[0] and ratio[1] <= EDGE[1]):
        return None
    batches = math.ceil(run.data.num_samples_hessian / run.data.batch_size)
    message = (
        f"Give the eigenvalue more products: the ratio is between {ratio[0]:.2g} and {ratio[1]:.2g}, on either side of "
        f"the edge; about 25 with each of at most {counted(batches, 'batch', 'batches')} settle it"
    )
    more = _more_products(run, 2 * run.provenance.num_hvps)
    step = _step(run, "open-verdict", message, "high", "the interval holds 1", **more)
    return step if more else attrs.evolve(step, command="")  # the memory has ended it, or rounding


def wide_interval(run: Analysis) -> NextStep | None:
    """The interval of SD is wide beside the codimension, or rests on too few minibatches: how many more it takes.

    Wide is a half-width above `WIDE` of the codimension (with momentum: of the distance from the number of weights) and
    above half a dimension. It falls as 1/sqrt(runs), and products grow as their number. A skewness g of the residuals
    asks for 25 g^2 minibatches (`dimension.cautions`).
    """
    estimate = run.sharpness_dimension
    if estimate is None or undetermined(run) is not None:
        return None
    if estimate.interval is None:
        per_run = estimate.num_hvps / max(1, estimate.num_runs)
        total = run.provenance.num_hvps + math.ceil(24 * per_run)
        message = f"Allow about {total:,} products: an interval of the sharpness dimension takes 3 runs, a good one 24"
        more = _more_products(run, total)
        return _step(run, "no-interval", message, "high", "there is no interval yet", **more) if more else None
    scale = _scale(run, estimate)
    half = 0.5 * (estimate.interval[1] - estimate.interval[0])
    if not (0 < half <= estimate.state_size and math.isfinite(scale)):
        return None  # without a width, as at d itself, nothing is left to narrow
    sampled, skewed = estimate.sampled, 1.0
    if sampled is not None and "few-minibatches-dominate" in _codes(run):
        skewed = ROWS_FOR_SKEWNESS * sampled.skewness**2 / max(1, sampled.num_minibatches)
    wide = half > max(WIDE * scale, FLOOR)
    if not wide and skewed <= 1:
        return None
    goal = max(NARROW * scale, FLOOR)
    if wide and half / goal > 4:
        goal = max(WIDE * scale, FLOOR)
    if wide:
        times = (half / goal) ** 2
        alone = estimate.state_size <= run.model.num_trainable_analysed
        of = "the codimension" if alone else "the number of dimensions that curvature adds or takes,"
        what = f"the half-width {half:.3g} is {half / max(scale, FLOOR):.0%} of {of} {scale:.3g}"
    else:
        times, goal = skewed, half / math.sqrt(skewed)
        what = "few minibatches dominate it, and it may miss the truth"
    products = round(times * estimate.num_hvps)
    shown = f"{products:,}" if products < _COUNTABLE else f"{products:.2g}"
    message = (
        f"Narrow the interval of the sharpness dimension: {what}; about {times:.2g} times the runs and {shown} "
        f"products, bring it to {goal:.2g}"
    )
    arguments: dict[str, Value] = {"runs": math.ceil(times * estimate.num_runs)}
    if wide:
        arguments = {"tolerance": _rounded_down(min(goal / max(scale, 10.0), 0.5))}
    arguments |= _more_products(run, run.provenance.num_hvps + products)
    return _step(run, "narrower-interval", message, "moderate", "half-widths fall as 1/sqrt(runs)", **arguments)


def ill_conditioned(run: Analysis) -> NextStep | None:
    """SD rests on neutral directions that are known to rounding only: the same in double precision.

    The rule is that of the caveat 'ill-conditioned'; in float64 nothing is left to do.
    """
    estimate = run.sharpness_dimension
    if estimate is None or "ill-conditioned" not in _codes(run) or run.provenance.dtype == "float64":
        return None
    message = (
        "Repeat it in double precision: the dimension rests on neutral directions, and an error of "
        f"{estimate.margin or 0.0:.1g} in each of their exponents would change it"
    )
    return _step(run, "double-precision", message, "moderate", "rounding is one of its reasons", dtype="float64")


# Nothing moves


def dead(run: Analysis) -> NextStep | None:
    """Half of the minibatches have no gradient, or layers have no curvature: dead units, or a loss that is fitted.

    A layer is flat where eigenvalue and trace are at most `FLAT` of the largest ones.
    """
    skipped, flat = run.edge_of_stability.batch_sharpness_skipped or 0.0, _flat_layers(run)
    if skipped < SKIPPED and not flat:
        return None
    reason = f"{skipped:.0%} of the minibatches have a gradient of 0 (or the loss is fitted exactly)"
    if flat:
        few = ", ".join(flat[:3]) + (", ..." if len(flat) > 3 else "")
        reason = f"the loss does not curve in {counted(len(flat), 'layer')} ({few})"
    message = (
        f"Look for dead units: {reason}. Each dead parameter adds one to the dimension and none to the codimension; "
        "try another initialisation, a smaller rate or a leaky activation"
    )
    more = {"at_init": True} if run.layers or _map(run) == FULL else {"per_layer": True}
    return _step(run, "dead-units", message, "high", "a gradient or a curvature of 0 is exact", **more)


def _flat_layers(run: Analysis) -> list[str]:
    """Layers without curvature, beside others that have some."""
    rows = [(each.name, each.largest, each.trace) for each in run.layers]
    sizes = [(name, abs(top.value), abs(trace.value)) for name, top, trace in rows if top and trace]
    most = max((top for _, top, _ in sizes), default=0.0), max((trace for *_, trace in sizes), default=0.0)
    return [name for name, top, trace in sizes if top <= FLAT * most[0] and trace <= FLAT * most[1]] if most[0] else []


def undetermined(run: Analysis) -> NextStep | None:
    """A codimension of 0 or that may be 0, or a dimension that may be 0: what it means.

    The sum of all exponents is about -eta times the trace: where it may not be negative, SD is d and tells nothing. The
    caveats 'saturated', 'zero-or-neutral', 'nothing-grows' and 'unresolved-rate' have the numbers.
    """
    estimate, codes = run.sharpness_dimension, _codes(run)
    if estimate is None or not math.isfinite(estimate.codimension):
        return None
    peak, rate = run.optimizer.peak_learning_rate, run.optimizer.learning_rate
    rated: dict[str, Value] = {"learning_rate": "peak"} if peak is not None and peak > rate else {}
    if "unresolved-rate" in codes:
        largest = run.hessian.largest
        resolves = run.provenance.dtype != "float64" and largest is not None and rate * largest.value > RESOLVED
        message = (
            f"Take a larger rate{' or double precision' if resolves else ''}: at {rate:.3g} every factor "
            "|1 - eta*alpha| is 1 to rounding, and the dimension is anything between 0 and all directions"
        )
        arguments = rated or ({"dtype": "float64"} if resolves else {})
        step = _step(run, "undetermined", message, "high", "no exponent exceeds rounding", **arguments)
        return step if arguments else attrs.evolve(step, command="")
    ratio = _ratio(run)
    if ratio is not None and ratio[0] > EDGE[1]:
        return None  # a rate that is too large is the reason, and said
    if estimate.interval is None and estimate.codimension > 0:
        return None  # too few runs to say so
    if estimate.codimension <= 0 or "saturated" in codes:
        message = (
            f"Do not compare this dimension: its codimension {estimate.codimension:.3g} is or may be 0, since steps "
            "from here do not contract volumes on average (the trace is not clearly positive, as early in training). "
            "Train further, and see whether it was so from the start"
        )
        sure = (
            ("high", "it is at its upper bound") if estimate.codimension <= 0 else ("moderate", "its interval holds 0")
        )
        return _step(run, "saturated", message, *sure, at_init=True)
    if "nothing-grows" in codes:
        message = (
            "Do not compare this dimension: no direction grows by more than rounding, so that it is the number of "
            "neutral directions or, if these contract, 0. More products do not tell the two apart"
        )
        step = _step(run, "undetermined", message, "high", "no positive exponent exceeds rounding")
        return attrs.evolve(step, command="")
    if "zero-or-neutral" in codes:
        message = (
            "Do not rely on this dimension yet: the growth E+ is not clearly above its own error, and without growth "
            "the dimension is 0 or the number of neutral directions"
        )
        exact = run.model.num_trainable_analysed <= SMALL and estimate.num_steps is not None and _map(run) != FULL
        more: dict[str, Value] = {"exact": True} if exact else {"tolerance": 0.02}
        return _step(run, "undetermined", message, "high", "3 standard errors hold 0", **more)
    return None


# Most important first.
_RULES: tuple[Rule, ...] = (
    schedule,
    dead,
    learning_rate,
    open_verdict,
    few_samples,
    small_batch,
    undetermined,
    layer,
    wide_interval,
    ill_conditioned,
)


# What the rules share


class _Placeholder(str):
    """A value that the reader puts in: a capital word."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _step(run: Analysis, code: str, message: str, confidence: str, reason: str, **arguments: Value) -> NextStep:
    """The step, with the call that repeats the analysis with these arguments."""
    call = {**_given(run), **arguments}
    words = ", ".join(f"{name}={value!r}" for name, value in call.items())
    return NextStep(
        code, f"{message}. Confidence {confidence}: {reason}.", confidence, f"sdkeras.analyze(model, data, {words})"
    )


def _given(run: Analysis) -> dict[str, Value]:
    """Arguments of this analysis, as far as its record tells that they are not the defaults."""
    optimizer, data, origin = run.optimizer, run.data, run.provenance
    source = optimizer.learning_rate_source
    given = {
        "batch_size": data.batch_size if data.batch_size_source == "given" else None,
        "learning_rate": None if source == "file" else optimizer.learning_rate if source == "given" else source,
        "mode": "inference" if run.model.mode == "inference" else None,
        "preset": origin.preset if origin.preset not in ("", "standard") else None,
        "dtype": origin.dtype if origin.dtype != "float32" else None,
    }
    return {name: value for name, value in given.items() if value is not None}


def _ratio(run: Analysis) -> Span | None:
    """The ratio's interval, from the residual of its eigenvalue; None where there is no ratio to judge."""
    edge, optimizer = run.edge_of_stability, run.optimizer
    if edge.ratio is None or edge.threshold is None or not math.isfinite(edge.ratio) or not edge.threshold > 0:
        return None
    if (
        not 0 < optimizer.learning_rate < math.inf
        or _is_end_of_schedule(run)
        or not _decays(run, optimizer.learning_rate)
    ):
        return None
    half = (edge.sharpness_residual or 0.0) / edge.threshold
    return (edge.ratio - half, edge.ratio + half) if math.isfinite(half) else None


def _is_end_of_schedule(run: Analysis) -> bool:
    optimizer = run.optimizer
    peak = optimizer.peak_learning_rate
    stored = optimizer.learning_rate_source == "file"
    return stored and peak is not None and optimizer.learning_rate < END_OF_SCHEDULE * peak


def _of_rate(run: Analysis, ratio: float) -> float:
    """The largest rate over this one, where the ratio is this at the latter.

    The threshold is c (2/eta - wd), so that it is the sharpness s at eta = 2c/(s + c wd).
    """
    eta, decay = run.optimizer.learning_rate, run.optimizer.weight_decay or 0.0
    part = eta * decay / (2 - eta * decay)
    return (1 + part) / (ratio + part)


def _of_threshold(run: Analysis, rate: float) -> float:
    """The threshold at this run's rate over the one at another rate."""
    eta, decay = run.optimizer.learning_rate, run.optimizer.weight_decay or 0.0
    return (2 / eta - decay) / (2 / rate - decay)


def _decays(run: Analysis, rate: float) -> bool:
    """Whether weight decay shrinks weights at this rate: beyond eta wd = 2 there is no threshold."""
    return rate * (run.optimizer.weight_decay or 0.0) < 2


def _map(run: Analysis) -> str:
    return "" if run.sharpness_dimension is None else run.sharpness_dimension.map


def _scale(run: Analysis, estimate: SharpnessDimension) -> float:
    """What half-widths are relative to: the codimension; with momentum, the dimensions that curvature adds or takes.

    The latter is the sum over eigenvalues of |phi(alpha) - phi(0)|, phi = sum over both exponents of (1 + z/|t*|)_+,
    as in `dimension.estimate`, by the nodes of the pooled spectrum.
    """
    spectrum, threshold, weights = run.spectrum, estimate.threshold_exponent, run.model.num_trainable_analysed
    if estimate.state_size <= weights:
        return estimate.codimension
    if estimate.frozen_lyapunov is None or spectrum is None or spectrum.exponents is None or not threshold:
        return abs(weights - estimate.value)
    order = np.argsort(spectrum.nodes)
    phi = np.maximum(0.0, 1.0 + spectrum.exponents / abs(threshold)).reshape(-1, len(order)).sum(axis=0)
    neutral = np.interp(0.0, spectrum.nodes[order], phi[order])
    return float(spectrum.weights @ np.abs(phi - neutral))


def _codes(run: Analysis) -> Collection[str]:
    return {note.code for note in run.warnings}


def _more_products(run: Analysis, products: int) -> dict[str, Value]:
    """The limit to raise, where one has ended the analysis: products, or twice the seconds."""
    if run.status == "limit on products":
        return {"max_hvps": products}
    return {"time_limit": math.ceil(2 * run.provenance.seconds)} if run.status == "time limit" else {}


def _rounded_down(value: float) -> float:
    """Two digits, not above the value; 0 and infinity as they are, and numbers that have fewer than two digits."""
    if not sys.float_info.min * 100 < value < math.inf:
        return value
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.floor(value / unit * (1 + 1e-12)) * unit:.2g}")
