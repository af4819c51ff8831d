"""How many runs on fresh minibatches, and of how many steps.

The loop sees no model: it is given a callable that makes several runs, run i being the spectrum of a fresh minibatch's
Hessian as seen by a fresh probe.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence

import attrs
import numpy as np

from sdkeras.dimension import pooling
from sdkeras.dimension.cautions import ROWS_FOR_SKEWNESS, Evidence, cautions
from sdkeras.dimension.controls import UNKNOWN, Population, Rows
from sdkeras.dimension.estimate import (
    FEWEST_RUNS_FOR_AN_INTERVAL,
    Context,
    Pooled,
    Sample,
    Summary,
    conclusion,
    summarise,
)
from sdkeras.dimension.pooling import Reading
from sdkeras.errors import BudgetError
from sdkeras.results.arrays import FloatArray
from sdkeras.results.dimension import RdsSharpness, SharpnessDimension
from sdkeras.results.estimates import Spectrum
from sdkeras.results.note import Note
from sdkeras.results.progress import PRODUCTS, TIME, Progress

# The runs of these numbers, of so many steps, in order: one by one, in threads or in lockstep.
Runner = Callable[[Sequence[int], int | None], Iterable[Spectrum]]

_STEP_GROWTH = 1.5
# Runs beyond what the last half-width asks for, so that most looks that are expected to be the last are.
_MARGIN = 1.03
# Where runs have fewer steps than the pilot's, every tenth of the later ones has all of them, for an audit.
_AUDIT_EVERY = 10
# Minibatches that skew residuals ask for at most, and of an epoch that is asked for where a few examples dominate the
# controls.
_MOST_ROWS_FOR_SHAPE = 400
# Looking at the runs costs a little with each of them: seconds between two progress reports.
_REPORT_EVERY = 0.2


def _never() -> str:
    return ""


@attrs.frozen
class AdaptiveSettings:
    """When the loop has seen enough.

    Attributes:
        tolerance: Half-width wanted, relative to `Summary.scale` (the codimension, or with momentum what curvature
            moves); 0.5 dimensions at the least.
        min_runs: Runs before the first look.
        fixed_runs: Exactly this many runs instead, or None.
        max_hvps: Budget of Hessian-vector products, discarded runs included, or None.
        deadline: time.monotonic() at which to stop, or None.
        stop: Reason to begin no further run, or "" to go on; asked before each group of runs.
        max_steps: Upper bound on the steps of a run.
        group: Runs asked for at once.
        required: Make one run even if there is no room for it; if not, a BudgetError says that there was none.
    """

    tolerance: float = 0.05
    min_runs: int = 24
    fixed_runs: int | None = None
    max_hvps: int | None = None
    deadline: float | None = None
    stop: Callable[[], str] = _never
    max_steps: int = 400
    group: int = 1
    required: bool = True


@attrs.frozen(eq=False)
class Outcome:
    """An estimate and the runs that it is from.

    Attributes:
        sharpness_dimension: The estimate with its evidence.
        rds_sharpness: RDS sharpness exponents from the same runs.
        nodes: Pooled spectrum of the operator, from the runs with all steps, ascending, shape [k].
        weights: Its masses, sum n.
        warnings: Caveats.
        runs: A rule of each run, in order, all of `num_steps` steps.
        finest: The runs with all steps as one measure, which E+ is of.
        finest_runs: Their numbers.
        num_steps: Steps of `runs`; None if the estimator has no such number.
        out_of_time: The deadline ended the runs, or left no time for longer ones that the nested check asked for.
        ended: Which limit ended the runs, in the words of `AdaptiveSettings.stop`; "" if none did.
    """

    sharpness_dimension: SharpnessDimension
    rds_sharpness: RdsSharpness
    nodes: FloatArray
    weights: FloatArray
    warnings: tuple[Note, ...]
    runs: tuple[Spectrum, ...]
    finest: Pooled
    finest_runs: tuple[int, ...]
    num_steps: int | None = None
    out_of_time: bool = False
    ended: str = ""


@attrs.frozen(eq=False)
class PooledSpectrum:
    """The mean over runs of their measures: total mass n.

    Attributes:
        nodes: Eigenvalues, ascending, shape [k].
        weights: Their masses, shape [k].
        runs: Runs pooled, a minibatch and a probe each.
        ended: Which limit ended them, or "".
    """

    nodes: FloatArray
    weights: FloatArray
    runs: tuple[Spectrum, ...]
    ended: str = ""

    @property
    def num_runs(self) -> int:
        return len(self.runs)


def estimate_sharpness_dimension(
    run: Runner,
    context: Context,
    settings: AdaptiveSettings,
    *,
    num_steps: int | None,
    population: Population = UNKNOWN,
    progress: Callable[[Progress], None] | None = None,
) -> Outcome:
    """Runs until the interval is as narrow as asked for.

    Pooled SD = SD of the mixture of all runs' measures of exponents: one or two for each node, with the node's weight.
    With phi_r = sum_l w_rl (1 + z_rl/|t*|)_+ at the pooled t*, SD is the mean of phi over minibatches, by regression on
    control variates whose expectation is known (`controls.Rows`), and its interval is that of a mean of independent
    residuals: minibatches of one epoch partition the data, which makes it conservative.

    The first runs, the pilot, have `num_steps` steps. Since T_m contains every smaller T, they tell what fewer steps
    would give: later runs have the number of steps with which steps times variance is smallest, and every tenth all of
    them, while the error of the mean difference Delta matters. Delta, with raw weights, is added. A run's
    coarser rule with 0.7 m steps checks m itself: if the two differ by more than max(tolerance/4, SE/2), m grows by
    half and the runs start again. Where SD = d, the sum of all exponents takes the place of phi: a coarse rule misses
    the smallest exponents, and SD might fall below d with them. Where SD = 0, the largest exponent does: a coarse rule
    makes one value below 0 of neutral directions and their neighbours.

    The runs end where the half-width is met and the residuals' skewness g is harmless, R >= 25 g^2.

    Args:
        run: (numbers, num_steps) -> spectra of these runs, in order.
        context: See `Context`.
        settings: See `AdaptiveSettings`.
        num_steps: Steps to start with; None if the estimator has no such number.
        population: What is known of the minibatches.
        progress: Called after each group of runs.

    Raises:
        BudgetError: The limits leave no room for one run, and none is required; or it was stopped before one.
    """
    steps = None if num_steps is None else min(num_steps, context.size)
    loop = _Loop(_Runs(run, settings, population, steps), context, progress)
    loop.until_narrow()
    runs = loop.runs
    summary = loop.look()
    estimate, rds = conclusion(
        summary, num_steps=runs.steps, run_steps=runs.run_steps, num_hvps=runs.spent, history=loop.history
    )
    target = summary.target(settings.tolerance)
    finest = summary.finest
    pooled = _pooled_measure([(one.nodes, one.weights) for one in finest.atoms], finest.sample.rows.run_weights)
    return Outcome(
        sharpness_dimension=estimate,
        rds_sharpness=rds,
        nodes=pooled[0],
        weights=pooled[1],
        warnings=cautions(Evidence(estimate, summary, loop.nested_failed, runs.ended, target)),
        runs=tuple(summary.pooled.runs),
        finest=finest,
        finest_runs=tuple(summary.pooled.sample.audits),
        num_steps=runs.run_steps,
        out_of_time=runs.out_of_time,
        ended=runs.ended,
    )


def pooled_spectrum(
    run: Runner,
    *,
    num_runs: int,
    num_steps: int | None,
    max_hvps: int | None = None,
    deadline: float | None = None,
    group: int = 1,
    required: bool = True,
) -> PooledSpectrum:
    """The spectra of a number of runs as one, without an estimate of SD.

    No more runs are made than the budget has room for, but one if that is `required`.

    Args:
        run: (numbers, num_steps) -> spectra of these runs, in order.
        num_runs: Runs to make.
        num_steps: Steps of each, or None.
        max_hvps: Budget of Hessian-vector products.
        deadline: `time.monotonic()` after which no run is begun.
        group: Runs asked for at once.
        required: Whether one run is made whatever the budget.

    Raises:
        BudgetError: Stopped before the first run was complete.
    """
    settings = AdaptiveSettings(max_hvps=max_hvps, deadline=deadline, group=group, required=required)
    runs = _Runs(run, settings, UNKNOWN, num_steps)
    runs.extend(num_runs)
    count = len(runs.spectra)
    measures = [(spectrum.nodes, spectrum.weights) for spectrum in runs.spectra]
    pooled = _pooled_measure(measures, np.full(count, 1.0 / count))
    return PooledSpectrum(*pooled, tuple(runs.spectra), runs.ended)


def _pooled_measure(measures: list[tuple[FloatArray, FloatArray]], shares: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Nodes, ascending, and masses of the mean of several measures, with these weights."""
    nodes = np.concatenate([values for values, _ in measures])
    weights = np.concatenate([share * values for share, (_, values) in zip(shares, measures, strict=True)])
    order = np.argsort(nodes, kind="stable")
    return nodes[order], weights[order]


@attrs.define(eq=False)
class _Runs:
    """The runs so far, their steps, and what they cost.

    Attributes:
        steps: Lanczos steps of the pilot's runs and of audits, or None.
        depth: How many rules coarser the other runs are.
        run_steps: Their steps.
        audited: Whether more audits are made.
        spectra: The runs, as they were made.
        audits: Numbers of those with all steps.
        readings: See `Sample.readings`.
        shorter: The state before the number of steps was raised, or None.
        spent: Products, discarded runs included.
        cost_per_step: Products a step of the dearest run; an estimator with several probes makes more than one.
        ended: Which limit ended the runs, or "".
        out_of_time: See `Outcome`.
    """

    run: Runner
    settings: AdaptiveSettings
    population: Population
    steps: int | None
    depth: int = 0
    run_steps: int | None = attrs.field(default=attrs.Factory(lambda self: self.steps, takes_self=True))
    audited: bool = True
    spectra: list[Spectrum] = attrs.field(factory=list)
    audits: list[int] = attrs.field(factory=list)
    readings: dict[int, Reading] = attrs.field(factory=dict)
    shorter: tuple[int | None, list[Spectrum]] | None = None
    spent: int = 0
    cost_per_step: float | None = None
    ended: str = ""
    out_of_time: bool = False
    started: float = attrs.field(factory=lambda: time.monotonic())

    def extend(self, target: int, after_group: Callable[[], None] = lambda: None) -> None:
        """Adds runs up to the target, or to the end of the budget: first those that are audits.

        Raises:
            BudgetError: The budget ends before the first run.
        """
        first, more = len(self.spectra), target - len(self.spectra)
        audits = more if self.depth == 0 else math.ceil(more / _AUDIT_EVERY) if self.audited else 0
        self._extend(first + audits, self.steps, after_group)
        self.audits += range(first, min(first + audits, len(self.spectra)))
        self._extend(target, self.run_steps, after_group)

    def _extend(self, target: int, steps: int | None, after_group: Callable[[], None]) -> None:
        """Adds runs of so many steps up to the target, or to the end of the budget."""
        while len(self.spectra) < target and not self.ended:
            group = min(self.settings.group, target - len(self.spectra))
            if self.settings.max_hvps is not None:
                # What a run costs is known after the first.
                affordable = (self.settings.max_hvps - self.spent) // max(self._cost(steps), 1)
                group = min(group if self.cost_per_step is not None else 1, affordable)
            self.ended = self._reason() or ("" if group > 0 else PRODUCTS)
            if self.ended:
                self.out_of_time = self.ended == TIME
                if self.spectra or self.shorter is not None:
                    return
                if not self.settings.required or self.ended not in (TIME, PRODUCTS):
                    raise BudgetError(self.ended)
                group = 1
            self._add(group, steps)
            if self.spectra:
                after_group()

    def _reason(self) -> str:
        """Why no further run is begun, whatever it costs; "" to go on."""
        deadline = self.settings.deadline
        return TIME if deadline is not None and time.monotonic() > deadline else self.settings.stop()

    def _add(self, group: int, steps: int | None) -> None:
        """One group of runs, or those of it for which there is room."""
        first = len(self.spectra)
        try:
            for spectrum in self.run(range(first, first + group), steps):
                self.spectra.append(spectrum)
                self.spent += spectrum.num_matvecs
                # A run whose Krylov space ended costs less than the next one may.
                self.cost_per_step = max(self.cost_per_step or 0.0, spectrum.num_matvecs / (steps or 1))
        except BudgetError as error:
            self.ended, self.out_of_time = error.reason, error.reason == TIME
            if not self.spectra and self.shorter is None:
                raise

    def _cost(self, steps: int | None) -> int:
        """Products of a run of this many steps, by what the dearest run has cost."""
        return math.ceil((self.cost_per_step or 1) * (steps or 1))

    def products_of(self, more: int) -> int:
        """What so many later runs will cost."""
        share = 0.0 if self.depth == 0 else 1.0 / _AUDIT_EVERY if self.audited else 0.0
        each = (1.0 - share) * self._cost(self.run_steps) + share * self._cost(self.steps)
        return max(0, math.ceil(more * each))

    def sample(self) -> Sample:
        """The runs, all at the resolution of most."""
        full = set(self.audits)
        runs = [pooling.rule(run, self.depth) if k in full else run for k, run in enumerate(self.spectra)]
        rows = Rows.of(len(runs), self.population)
        return Sample(runs, rows, tuple(self.audits), [self.spectra[k] for k in self.audits], self.depth, self.readings)

    def shorten(self, depth: int) -> None:
        """Gives later runs the steps of the rule at this depth of those with all steps."""
        self.depth = depth
        products = max(pooling.rule(self.spectra[k], depth).num_matvecs for k in self.audits)
        self.run_steps = max(1, round(products / (self.cost_per_step or 1)))

    def lengthen(self, size: int) -> bool:
        """Raises the number of steps and starts again; False at the cap or when the budget forbids it."""
        if self.steps is None:
            return False
        longer = min(math.ceil(_STEP_GROWTH * self.steps), self.settings.max_steps, size)
        needed = FEWEST_RUNS_FOR_AN_INTERVAL * self._cost(longer)
        limit, deadline, now = self.settings.max_hvps, self.settings.deadline, time.monotonic()
        if longer <= self.steps or (limit is not None and self.spent + needed > limit):
            return False
        if deadline is not None and now + needed * (now - self.started) / max(self.spent, 1) > deadline:
            self.out_of_time = True
            return False
        self.shorter = (self.steps, [self.spectra[k] for k in self.audits])
        self._begin(longer, [])
        return True

    def _begin(self, steps: int | None, spectra: list[Spectrum]) -> None:
        """Goes on from runs that all have so many steps."""
        self.steps = self.run_steps = steps
        self.depth, self.audited, self.spectra, self.audits = 0, True, spectra, list(range(len(spectra)))

    def fall_back(self) -> None:
        """Takes the runs before the number of steps was raised, if there are too few after."""
        if len(self.spectra) < FEWEST_RUNS_FOR_AN_INTERVAL and self.shorter is not None:
            self._begin(*self.shorter)


@attrs.define(eq=False)
class _Loop:
    """The looks at the runs, until one is good enough."""

    runs: _Runs
    context: Context
    progress: Callable[[Progress], None] | None = None
    history: list[tuple[float, float, float]] = attrs.field(factory=list)
    nested_failed: tuple[float, float] | None = None
    reported: float = -math.inf

    @property
    def pilot(self) -> int:
        """Runs before the first look, all of those whose number is given."""
        settings = self.runs.settings
        return settings.fixed_runs or self.runs.population.pilot(settings.min_runs)

    def until_narrow(self) -> None:
        runs, settings = self.runs, self.runs.settings
        target = self.pilot
        while True:
            runs.extend(target, self._report)
            if runs.ended:
                runs.fall_back()
            summary = self.look()
            width = math.nan if summary.half_width is None else summary.half_width
            self.history.append((summary.value, width, float(len(runs.spectra))))
            failed = summary.failed_nested_check(settings.tolerance)
            if not runs.ended and failed is not None and runs.lengthen(self.context.size):
                target = self.pilot
                continue
            self.nested_failed = failed
            if runs.ended or settings.fixed_runs is not None or self._is_good(summary):
                self._report(summary)
                return
            self._choose_steps(summary)
            self._report(summary)
            target = runs.population.next_look(len(runs.spectra), self._wanted(summary))

    def look(self) -> Summary:
        return summarise(self.runs.sample(), self.context)

    def _is_good(self, summary: Summary) -> bool:
        """Whether the interval is as narrow as it must be, and its rows enough for what their residuals are like."""
        half = summary.half_width
        narrow = half is not None and half < summary.target(self.runs.settings.tolerance)
        return narrow and summary.fit.rows.num_rows >= self._least_rows(summary)

    def _least_rows(self, summary: Summary) -> int:
        """Minibatches that skew residuals ask for, or controls that a few examples dominate."""
        population = self.runs.population
        epoch = population.per_epoch or 0 if population.needs_epoch else 0
        wanted = max(ROWS_FOR_SKEWNESS * summary.fit.skewness**2, epoch if epoch <= _MOST_ROWS_FOR_SHAPE else 0)
        return math.ceil(min(wanted, population.num_batches or _MOST_ROWS_FOR_SHAPE, _MOST_ROWS_FOR_SHAPE))

    def _wanted(self, summary: Summary) -> float:
        """Runs that the interval asks for, by its present width."""
        half, target = summary.half_width, summary.target(self.runs.settings.tolerance)
        wanted = math.inf if half is None else _MARGIN * len(self.runs.spectra) * (half / target) ** 2
        return wanted if half is None or half >= target else math.inf

    def _choose_steps(self, summary: Summary) -> None:
        """After the pilot: the steps of later runs. Later: whether audits are still needed."""
        runs, pooled, target = self.runs, summary.pooled, summary.target(self.runs.settings.tolerance)
        t_star = pooled.crossing.threshold_exponent
        wanted = (target / summary.fit.quantile) ** 2
        if runs.depth:
            runs.audited = not summary.audit.suffices(target, wanted)
            return
        if t_star is None or runs.steps is None or len(runs.audits) < len(runs.spectra):
            return
        costs = {}
        for depth in range(pooling.depths(runs.spectra) + 1):
            shorter = [pooling.rule(run, depth) for run in runs.spectra]
            at_depth = summarise(attrs.evolve(pooled.sample, runs=shorter, depth=depth), self.context)
            gap = wanted - at_depth.audit.squared_error
            steps = max(run.num_matvecs for run in shorter)
            if gap > 0 and at_depth.pooled.crossing.threshold_exponent is not None:
                audits = 0 if at_depth.audit.suffices(target, wanted) else 1 / _AUDIT_EVERY
                most = max(run.num_matvecs for run in runs.spectra)
                costs[depth] = (steps + audits * (most - steps)) * at_depth.fit.variance / gap
        if costs and (best := min(costs, key=lambda depth: costs[depth])):
            runs.shorten(best)
            runs.audited = not self.look().audit.suffices(target, wanted)

    def _report(self, summary: Summary | None = None) -> None:
        """Tells of a look at the runs, or where the last report is a while ago, takes one for it."""
        # At the pilot's end a look follows, which says how many steps later runs have.
        soon = len(self.runs.spectra) == self.pilot or time.monotonic() - self.reported < _REPORT_EVERY
        if self.progress is None or (summary is None and soon):
            return
        summary = summary or self.look()
        self.reported = time.monotonic()
        step = Progress(
            stage=f"sharpness dimension ({self.context.estimator})",
            num_hvps=self.runs.spent,
            value=summary.value,
            half_width=summary.half_width,
            num_runs=len(self.runs.spectra),
            pilot_runs=self.pilot,
            target=summary.target(self.runs.settings.tolerance),
            least_runs=self._least_rows(summary),
        )
        left = None if step.expected_runs is None else self.runs.products_of(step.expected_runs - step.num_runs)
        self.progress(attrs.evolve(step, hvps_left=left))
