"""The sharpness dimension from runs on fresh minibatches: how many, how long, and with what interval.

The loop sees no model: it is given a callable run(i, num_steps) -> Spectrum, run i being the spectrum of a
fresh minibatch's Hessian as seen by a fresh probe.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs
import numpy as np
import scipy.stats

from sdkeras.dimension import cautions, pooling
from sdkeras.dimension.exponents import Exponents, rds_sharpness
from sdkeras.dimension.sharpness import Crossing, crossing
from sdkeras.errors import BudgetError
from sdkeras.results.arrays import FloatArray
from sdkeras.results.dimension import FrozenLyapunov, RdsSharpness, SharpnessDimension
from sdkeras.results.estimates import Spectrum
from sdkeras.results.note import Note
from sdkeras.results.progress import PRODUCTS, TIME, Progress

Run = Callable[[int, int | None], Spectrum]
Mapper = Callable[[Callable[[int], Spectrum], Iterable[int]], Iterable[Spectrum]]

_CONFIDENCE = 0.95
FEWEST_RUNS_FOR_AN_INTERVAL = 3
_ABSOLUTE_TOLERANCE = 0.5
_STEP_GROWTH = 1.5
_RUN_GROWTH = 1.25
_NEUTRAL = 1e-3
# A sum of logarithms falls by about as much with each factor 1/0.7 in steps while small exponents are still missed
# (measured), and ten of these make 35 times the steps.
_MORE_CHANGES = 10
# Looking at the runs costs a little with each of them: seconds between two progress reports.
_REPORT_EVERY = 0.2


@attrs.frozen
class AdaptiveSettings:
    """When the loop has seen enough.

    Attributes:
        tolerance: Half-width wanted, relative to the codimension (with momentum to what curvature moves, see
            `summarise`); 0.5 dimensions at the least.
        min_runs: Runs before the first look.
        fixed_runs: Exactly this many runs instead, or None.
        max_hvps: Products at most, discarded runs included, or None.
        deadline: time.monotonic() at which to stop, or None.
        max_steps: Steps of a run at most.
        group: Runs handed to the mapper at once; what an interruption can lose.
        required: One run is made even if there is no room for it.
    """

    tolerance: float = 0.05
    min_runs: int = 24
    fixed_runs: int | None = None
    max_hvps: int | None = None
    deadline: float | None = None
    max_steps: int = 400
    group: int = 1
    required: bool = True


@attrs.frozen(eq=False)
class Outcome:
    """What the loop found.

    Attributes:
        sharpness_dimension: The estimate with its evidence.
        rds_sharpness: RDS sharpness exponents from the same runs.
        nodes: Pooled spectrum of the operator, ascending, shape [k].
        weights: Its masses, sum n.
        warnings: What the reader must know.
        interrupted: True after Ctrl-C.
        runs: The runs themselves, in order.
        out_of_time: The deadline ended the runs, or left no time for longer ones that the nested check asked for.
    """

    sharpness_dimension: SharpnessDimension
    rds_sharpness: RdsSharpness
    nodes: FloatArray
    weights: FloatArray
    warnings: tuple[Note, ...]
    interrupted: bool
    runs: tuple[Spectrum, ...]
    out_of_time: bool = False


@attrs.frozen
class Context:
    """What does not change while the loop runs.

    Attributes:
        size: Dimension n of the operator.
        exponents: The map alpha -> z, or sigma -> z for singular values of the whole step, which are then what is
            called eigenvalues here; the state has d = branches * n dimensions.
        unstable_above: The optimizer's own upper threshold for alpha, or None; splits E+.
        ignored_decay: Weight decay that the map leaves out.
        product_error: Relative error of a product.
        estimator: Name of the spectrum estimator.
        settings: Its fields by name.
    """

    size: int
    exponents: Exponents
    unstable_above: float | None
    ignored_decay: float
    product_error: float
    estimator: str
    settings: Mapping[str, Any] = attrs.field(factory=dict)

    @property
    def state_size(self) -> int:
        return self.exponents.branches * self.size


@attrs.frozen(eq=False)
class Summary:
    """One look at the runs so far; z and masses are those of each run's exponents."""

    atoms: list[pooling.Atoms]
    z: list[FloatArray]
    masses: list[FloatArray]
    crossing: Crossing
    scale: float
    half_width: float | None
    interval: tuple[float, float] | None
    total_interval: tuple[float, float]
    nested_difference: tuple[float, float] | None
    excess: float | None


def estimate_sharpness_dimension(
    run: Run,
    context: Context,
    settings: AdaptiveSettings,
    *,
    num_steps: int | None,
    mapper: Mapper = map,
    progress: Callable[[Progress], None] | None = None,
) -> Outcome:
    """Runs until the interval is as narrow as asked for.

    Pooled SD = SD of the mixture of all runs' measures of exponents: one or two for each node, with the node's weight.
    With phi_r = sum_l w_rl (1 + z_rl/|t*|)_+ at the pooled t*, SD = mean of phi_r, and its interval is that of a mean
    of independent values. Minibatches of one epoch are not independent: they partition the data, so that means over
    many of them vary less than means of independent draws, and the interval is conservative. A run's coarser rule gives
    the same with 0.7 m steps: if the two, with raw weights, differ by more than max(tolerance/4, SE/2), m grows by half
    and the runs start again. Where SD = d, the sum of all exponents takes the
    place of phi: a coarse rule misses the smallest exponents, and SD might fall below d with them. Where SD = 0, the
    largest exponent does: a coarse rule makes one value below 0 of neutral directions and their neighbours.

    Args:
        run: (i, num_steps) -> Spectrum of run i.
        context: See `Context`.
        settings: See `AdaptiveSettings`.
        num_steps: Steps to start with; None if the estimator has no such number.
        mapper: Applies a function to run numbers, in order; a thread pool's map, for example.
        progress: Called after each group of runs.

    Raises:
        KeyboardInterrupt: Ctrl-C before the first run was complete.
        BudgetError: The limits leave no room for one run, and none is required.
    """
    loop = _Loop(run, context, settings, num_steps, mapper, progress)
    return loop.outcome()


class _Loop:
    """State of the loop: the runs, the steps, and what they cost."""

    def __init__(
        self,
        run: Run,
        context: Context,
        settings: AdaptiveSettings,
        num_steps: int | None,
        mapper: Mapper,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self.run = run
        self.context = context
        self.settings = settings
        self.steps = None if num_steps is None else min(num_steps, context.size)
        self.mapper = mapper
        self.progress = progress
        self.runs: list[Spectrum] = []
        self.spent = 0
        self.cost_per_step: float | None = None  # products; an estimator with several probes makes more than one
        self.ended: str | None = None
        self.nested_failed: tuple[float, float] | None = None
        self.history: list[tuple[float, float, float]] = []
        self.interrupted = False
        self.shorter: tuple[int | None, list[Spectrum]] | None = None  # runs before the number of steps was raised
        self.reported = -math.inf
        self.started = time.monotonic()
        self.out_of_time = False

    def outcome(self) -> Outcome:
        try:
            self._loop()
        except KeyboardInterrupt:
            self._fall_back()
            if not self.runs:
                raise
            self.interrupted = True
        summary = summarise(self.runs, self.context)
        return _outcome(self, summary)

    def _loop(self) -> None:
        settings = self.settings
        target = settings.fixed_runs or settings.min_runs
        while True:
            self._extend(target)
            if self.ended is not None:
                self._fall_back()
            summary = summarise(self.runs, self.context)
            self._note(summary)
            if self.ended is not None:
                self.nested_failed = self._failed_nested_check(summary)
                return
            failed = self._failed_nested_check(summary)
            if failed is not None and self._longer_runs():
                target = settings.fixed_runs or settings.min_runs
                continue
            self.nested_failed = failed
            if settings.fixed_runs is not None:
                return
            if summary.half_width is not None and summary.half_width < self.wanted(summary):
                return
            target = math.ceil(_RUN_GROWTH * len(self.runs))

    def _fall_back(self) -> None:
        """Takes the runs before the number of steps was raised, if there are too few after."""
        if len(self.runs) < FEWEST_RUNS_FOR_AN_INTERVAL and self.shorter is not None:
            self.steps, self.runs = self.shorter

    def wanted(self, summary: Summary) -> float:
        return max(self.settings.tolerance * summary.scale, _ABSOLUTE_TOLERANCE)

    def _extend(self, target: int) -> None:
        """Adds runs up to the target, or to the end of the budget."""
        deadline = self.settings.deadline
        while len(self.runs) < target and self.ended is None:
            late = deadline is not None and time.monotonic() > deadline
            group = min(self.settings.group, target - len(self.runs))
            if self.settings.max_hvps is not None and self.cost_per_step is None:
                group = 1  # what a run costs is known after the first
            affordable = self._affordable()
            if affordable is not None and affordable < group:
                group = affordable
            if group <= 0 or late:
                self.ended, self.out_of_time = (TIME, True) if late else (PRODUCTS, False)
                if self.runs or self.shorter is not None:
                    return
                if not self.settings.required:
                    raise BudgetError(self.ended)
                group = 1
            self._add(group)
            if self.runs:
                self._report()

    def _add(self, group: int) -> None:
        """One group of runs, or those of it for which there is room."""
        first = len(self.runs)
        try:
            for result in self.mapper(self._one, range(first, first + group)):
                self.runs.append(result)
                self.spent += result.num_matvecs
                # A run whose Krylov space ended costs less than the next one may.
                self.cost_per_step = max(self.cost_per_step or 0.0, result.num_matvecs / (self.steps or 1))
        except BudgetError as error:
            self.ended, self.out_of_time = error.reason, error.reason == TIME
            if not self.runs and self.shorter is None:
                raise

    def _one(self, index: int) -> Spectrum:
        return self.run(index, self.steps)

    def _affordable(self) -> int | None:
        if self.settings.max_hvps is None:
            return None
        return (self.settings.max_hvps - self.spent) // max(self._cost(self.steps), 1)

    def _cost(self, steps: int | None) -> int:
        """Products of a run of so many steps, by what the dearest run has cost."""
        return math.ceil((self.cost_per_step or 1) * (steps or 1))

    def _report(self) -> None:
        if self.progress is None or time.monotonic() - self.reported < _REPORT_EVERY:
            return
        summary = summarise(self.runs, self.context)
        self.reported = time.monotonic()
        self.progress(
            Progress(
                stage=f"sharpness dimension ({self.context.estimator})",
                num_hvps=self.spent,
                value=summary.crossing.value,
                half_width=summary.half_width,
                num_runs=len(self.runs),
                target=self.wanted(summary),
            )
        )

    def _note(self, summary: Summary) -> None:
        width = math.nan if summary.half_width is None else summary.half_width
        self.history.append((summary.crossing.value, width, float(len(self.runs))))

    def _failed_nested_check(self, summary: Summary) -> tuple[float, float] | None:
        """(mean difference, allowed) if more steps would change the answer, else None."""
        if summary.nested_difference is None or all(map(pooling.has_ended, self.runs)):
            return None
        mean, _ = summary.nested_difference
        # SE/2 of the estimate itself: a quadrature error below it cannot be told from sampling error.
        own_error = 0.0 if summary.half_width is None else _standard_error(summary, self.context) / 2
        allowed = max(self.wanted(summary) / 4, own_error)
        return (mean, allowed) if abs(mean) > allowed else None

    def _longer_runs(self) -> bool:
        """Raises the number of steps and starts again; False at the cap or when the budget forbids it."""
        if self.steps is None:
            return False
        longer = min(math.ceil(_STEP_GROWTH * self.steps), self.settings.max_steps, self.context.size)
        if longer <= self.steps:
            return False
        limit = self.settings.max_hvps
        needed = FEWEST_RUNS_FOR_AN_INTERVAL * self._cost(longer)
        if limit is not None and self.spent + needed > limit:
            return False
        deadline, now = self.settings.deadline, time.monotonic()
        if deadline is not None and now + needed * (now - self.started) / max(self.spent, 1) > deadline:
            self.out_of_time = True
            return False
        self.shorter = (self.steps, self.runs)
        self.steps = longer
        self.runs = []
        return True


def summarise(runs: list[Spectrum], context: Context) -> Summary:
    """Pools the runs and takes the interval of their mean.

    `scale` is what the half-width is judged by: the codimension. With momentum that holds the n directions of the
    velocity, which every step contracts, and SD may lie on either side of n; there the scale is the number of
    dimensions that curvature adds or takes, sum over eigenvalues of w |phi(alpha) - phi(0)|, phi(alpha) the sum of
    (1 + z/|t*|)_+ over both exponents.
    """
    exponents, size = context.exponents, float(context.state_size)
    excess = pooling.repeated_eigenvalues(runs, exponents)
    correct = excess is None
    atoms = [pooling.as_atoms(run, exponents, correct) for run in runs]
    z = [exponents(one.nodes) for one in atoms]
    masses = [exponents.spread(one.weights) for one in atoms]
    pooled_z, pooled_w = np.concatenate(z), np.concatenate(masses) / len(runs)
    where = crossing(pooled_z, pooled_w)
    where = attrs.evolve(where, value=min(where.value, size))  # masses sum to d up to rounding
    totals = np.array([float(w @ own) for w, own in zip(masses, z, strict=True)])
    total_half = _half_width(totals)
    total_interval = (where.total - total_half, where.total + total_half)
    difference, scale = None, size - where.value
    nested = pooling.coarser_rules(runs)
    largest = max(float(np.max(np.abs(one.nodes))) for one in atoms)
    half: float | None
    interval: tuple[float, float] | None
    if where.threshold_exponent is None:
        if where.value > 0:  # saturated: the lower end is where the sum would cross if it were smaller
            low = crossing(pooled_z, pooled_w, offset=-total_half).value if math.isfinite(total_half) else 0.0
            interval = (min(low, size), size)
            if nested is not None:  # how far below d SD would be, were the sum to go on as it has changed
                totals_of = [np.array([_total(exponents, rule) for rule in rules]) for rules in (runs, nested)]
                change = abs(float(np.mean(totals_of[0] - totals_of[1])))
                difference = (where.value - crossing(pooled_z, pooled_w, offset=-_MORE_CHANGES * change).value, 0.0)
        else:
            growth = _growth(z, masses)
            interval = (0.0, min(size, growth.mean() + _half_width(growth)))
        half = interval[1] - interval[0]
        if where.value <= 0:  # more runs do not help against rounding, so it does not count in the half-width
            neutral = _if_neutral(pooled_z, pooled_w, atoms, context)
            if nested is not None:  # the largest exponents, were they to go on rising as they have
                tops = [(np.max(own), np.max(exponents(rule.nodes))) for own, rule in zip(z, nested, strict=True)]
                rise = float(np.mean([fine - coarse for fine, coarse in tops]))
                risen = _if_within(_MORE_CHANGES * max(rise, 0.0), pooled_z, pooled_w, size)
                difference = (min(0.0, neutral - risen), 0.0)
                neutral = max(neutral, risen)
            interval = (0.0, max(interval[1], neutral))
        if cautions.is_unresolved(exponents, largest):
            interval = (0.0, size)
    else:
        tau = 1.0 / abs(where.threshold_exponent)
        phi = np.array([_phi(w, own, tau) for w, own in zip(masses, z, strict=True)])
        half = _half_width(phi)
        interval = (max(0.0, where.value - half), min(size, where.value + half))
        if pooled_z.max() <= cautions.rounding(exponents, largest, context.product_error):
            interval = (0.0, interval[1])  # not in the half-width: more runs do not help against rounding
        if exponents.branches > 1:
            scale = _moved(atoms, exponents, tau)
        if nested is not None:
            fine, coarse = (
                np.array([_phi(exponents.spread(rule.weights), exponents(rule.nodes), tau) for rule in rules])
                for rules in (runs, nested)
            )
            changes = fine - coarse
            difference = (float(changes.mean()), _half_width(changes))
    if len(runs) < FEWEST_RUNS_FOR_AN_INTERVAL:
        half = interval = None
    return Summary(atoms, z, masses, where, scale, half, interval, total_interval, difference, excess)


def _if_neutral(z: FloatArray, masses: FloatArray, atoms: list[pooling.Atoms], context: Context) -> float:
    """SD if every exponent were 0 that cannot be told from 0.

    Exact null directions come out as +-1e-7 by rounding, and as one value with their nearly flat neighbours by too few
    steps: neutral is here what is below 1e-3 of the mean exponent, since there is no t* to compare with.
    """
    largest = max(float(np.max(np.abs(one.nodes))) for one in atoms)
    rounding = context.exponents.rate * largest * max(context.product_error, float(np.finfo(np.float64).eps))
    neutral = max(10 * rounding, _NEUTRAL * abs(float(masses @ z)) / context.state_size)
    return _if_within(neutral, z, masses, float(context.state_size))


def _if_within(bound: float, z: FloatArray, masses: FloatArray, size: float) -> float:
    """SD if every exponent of at most this modulus were 0."""
    return min(crossing(np.where(np.abs(z) <= bound, 0.0, z), masses).value, size)


def _phi(weights: FloatArray, z: FloatArray, tau: float) -> float:
    return float(weights @ np.maximum(0.0, 1.0 + tau * z))


def _total(exponents: Exponents, rule: Spectrum) -> float:
    """Sum of all exponents, with raw weights."""
    return float(exponents.spread(rule.weights) @ exponents(rule.nodes))


def _moved(atoms: list[pooling.Atoms], exponents: Exponents, tau: float) -> float:
    """Mean over runs of sum w |phi(alpha) - phi(0)|."""

    def phi(alpha: FloatArray) -> FloatArray:
        values: FloatArray = np.maximum(0.0, 1.0 + tau * exponents(alpha)).reshape(-1, len(alpha)).sum(axis=0)
        return values

    neutral = phi(np.zeros(1))
    return float(np.mean([one.weights @ np.abs(phi(one.nodes) - neutral) for one in atoms]))


def _growth(z: list[FloatArray], masses: list[FloatArray]) -> FloatArray:
    """E+ of each run."""
    return np.array([float(w @ np.maximum(own, 0.0)) for w, own in zip(masses, z, strict=True)])


def _half_width(values: FloatArray) -> float:
    """Half-width of the confidence interval of the mean; infinite for a single value."""
    if len(values) < 2:
        return math.inf
    quantile = float(scipy.stats.t.ppf(0.5 + _CONFIDENCE / 2, len(values) - 1))
    return quantile * float(np.std(values, ddof=1)) / math.sqrt(len(values))


def _standard_error(summary: Summary, context: Context) -> float:
    """Standard error of the pooled SD, from its half-width."""
    runs = len(summary.atoms)
    if summary.half_width is None or runs < 2:
        return float(context.state_size)
    return summary.half_width / float(scipy.stats.t.ppf(0.5 + _CONFIDENCE / 2, runs - 1))


def _outcome(loop: _Loop, summary: Summary) -> Outcome:
    context, where, exponents = loop.context, summary.crossing, loop.context.exponents
    size = float(context.state_size)
    exact = all(run.exact for run in loop.runs)
    average = pooling.quantile_average(list(zip(summary.z, summary.masses, strict=True)), size)
    ordered, ordered_half = dimension_of_average(average, context.state_size)
    lower = max(0.0, ordered - ordered_half)
    definition_interval = None
    if summary.interval is not None and math.isfinite(ordered_half):
        upper = min(size, ordered + ordered_half) if exact else summary.interval[1]
        definition_interval = (lower, max(lower, upper))
    nodes = np.concatenate([one.nodes for one in summary.atoms])
    weights = np.concatenate([one.weights for one in summary.atoms]) / len(summary.atoms)
    z, masses = np.concatenate(summary.z), np.concatenate(summary.masses) / len(summary.atoms)
    gains, origins = masses * np.maximum(z, 0.0), np.concatenate([exponents.spread(one.nodes) for one in summary.atoms])
    t_star = where.threshold_exponent
    neutral = None if t_star is None else float(masses[np.abs(z) < _NEUTRAL * abs(t_star)].sum())
    expansion = float(gains.sum())
    margin = expansion / neutral if neutral else None
    unstable = 0.0 if context.unstable_above is None else float(gains[origins > context.unstable_above].sum())
    interval = summary.interval
    history = np.array(loop.history, dtype=np.float64).reshape(-1, 3)
    estimate = SharpnessDimension(
        value=where.value,
        interval=interval,
        codimension=size - where.value,
        codimension_interval=None if interval is None else (size - interval[1], size - interval[0]),
        definition_value=ordered if exact else None,
        definition_interval=definition_interval,
        quantile_average=ordered,
        j_star=where.j_star,
        threshold_exponent=t_star,
        expansion=expansion,
        expansion_negative_curvature=float(gains[origins < 0].sum()),
        expansion_unstable=unstable,
        neutral_mass=neutral,
        margin=margin,
        resolution=None if t_star is None else exponents.rate * float(np.ptp(nodes)) / abs(t_star),
        map=exponents.name,
        coordinates=exponents.coordinates,
        state_size=context.state_size,
        estimator=context.estimator,
        num_runs=len(loop.runs),
        num_steps=None if exact else loop.steps,
        num_hvps=loop.spent,
        history=history[:, 0],
        history_half_width=history[:, 1],
        history_runs=history[:, 2],
        frozen_lyapunov=_frozen_lyapunov(summary, context) if exponents.branches > 1 else None,
        settings=dict(context.settings),
    )
    growth = _growth(summary.z, summary.masses)
    notes = cautions.cautions(
        estimate,
        exponents=exponents,
        product_error=context.product_error,
        ignored_decay=context.ignored_decay,
        largest=float(np.max(np.abs(nodes))),
        expansion_stderr=float(np.std(growth, ddof=1) / math.sqrt(len(growth))) if len(growth) > 1 else None,
        total_interval=summary.total_interval,
        mean_exponent=where.total / size,
        nested=loop.nested_failed,
        nested_checked=summary.nested_difference is not None or all(map(pooling.has_ended, loop.runs)),
        guard=summary.excess,
        correctable=exact or all(run.residuals is not None for run in loop.runs),
        ended=loop.ended,
        target=loop.wanted(summary),
        scale=summary.scale,
    )
    order = np.argsort(nodes, kind="stable")
    return Outcome(
        sharpness_dimension=estimate,
        rds_sharpness=rds_sharpness(average.z, average.widths),
        nodes=nodes[order],
        weights=weights[order],
        warnings=notes,
        interrupted=loop.interrupted,
        runs=tuple(loop.runs),
        out_of_time=loop.out_of_time,
    )


def _frozen_lyapunov(summary: Summary, context: Context) -> FrozenLyapunov:
    """The formulas of SD and lambda_1 on ln |mu| in place of ln sigma."""
    size = float(context.state_size)
    runs = [
        (context.exponents.log_eigenvalues(one.nodes), masses)
        for one, masses in zip(summary.atoms, summary.masses, strict=True)
    ]
    log_mu = np.concatenate([own for own, _ in runs])
    pooled = crossing(log_mu, np.concatenate(summary.masses) / len(runs))
    average = pooling.quantile_average(runs, size)
    return FrozenLyapunov(
        dimension=min(pooled.value, size), leading=float(rds_sharpness(average.z, average.widths).leading[0])
    )


def dimension_of_average(average: pooling.QuantileAverage, size: int) -> tuple[float, float]:
    """SD of the averaged quantile function and the half-width of its interval.

    SD = U + tau * integral of the average over (0, U), U where 1 + tau z turns negative; per run the same
    integral of its own quantile function varies about it.
    """
    where = crossing(average.z, average.widths)
    if where.threshold_exponent is None:
        # At 0 and d the value does not move with the runs until the sum changes sign.
        totals = average.integrals(float(size))
        slack = abs(where.total) - _half_width(totals) if where.value > 0 else math.inf
        if slack >= 0:
            return where.value, 0.0
        low = crossing(average.z, average.widths, offset=-_half_width(totals)).value
        return where.value, where.value - low
    tau = 1.0 / abs(where.threshold_exponent)
    upper = float(average.widths[1.0 + tau * average.z > 0].sum())
    phi = upper + tau * average.integrals(upper)
    return where.value, _half_width(phi)
