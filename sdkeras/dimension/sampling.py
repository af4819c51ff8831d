"""How many runs on fresh minibatches, and of how many steps.

The loop sees no model: it is given a callable run(i, num_steps) -> Spectrum, run i being the spectrum of a
fresh minibatch's Hessian as seen by a fresh probe.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable

import attrs
import numpy as np

from sdkeras.dimension.cautions import Evidence, cautions
from sdkeras.dimension.estimate import FEWEST_RUNS_FOR_AN_INTERVAL, Context, Summary, conclusion, summarise
from sdkeras.errors import BudgetError
from sdkeras.results.arrays import FloatArray
from sdkeras.results.dimension import RdsSharpness, SharpnessDimension
from sdkeras.results.estimates import Spectrum
from sdkeras.results.note import Note
from sdkeras.results.progress import PRODUCTS, TIME, Progress

Run = Callable[[int, int | None], Spectrum]
Mapper = Callable[[Callable[[int], Spectrum], Iterable[int]], Iterable[Spectrum]]

_STEP_GROWTH = 1.5
_RUN_GROWTH = 1.25
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
        group: Runs handed to the mapper at once; what an interruption can lose.
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
        nodes: Pooled spectrum of the operator, ascending, shape [k].
        weights: Its masses, sum n.
        warnings: Caveats.
        runs: The runs themselves, in order.
        out_of_time: The deadline ended the runs, or left no time for longer ones that the nested check asked for.
        ended: Which limit ended the runs, in the words of `AdaptiveSettings.stop`; "" if none did.
    """

    sharpness_dimension: SharpnessDimension
    rds_sharpness: RdsSharpness
    nodes: FloatArray
    weights: FloatArray
    warnings: tuple[Note, ...]
    runs: tuple[Spectrum, ...]
    out_of_time: bool = False
    ended: str = ""


@attrs.frozen(eq=False)
class PooledSpectrum:
    """The mean over runs of their measures: total mass n.

    Attributes:
        nodes: Eigenvalues, ascending, shape [k].
        weights: Their masses, shape [k].
        num_runs: Runs pooled, a minibatch and a probe each.
    """

    nodes: FloatArray
    weights: FloatArray
    num_runs: int


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
    and the runs start again. Where SD = d, the sum of all exponents takes the place of phi: a coarse rule misses the
    smallest exponents, and SD might fall below d with them. Where SD = 0, the largest exponent does: a coarse rule
    makes one value below 0 of neutral directions and their neighbours.

    Args:
        run: (i, num_steps) -> Spectrum of run i.
        context: See `Context`.
        settings: See `AdaptiveSettings`.
        num_steps: Steps to start with; None if the estimator has no such number.
        mapper: Applies a function to run numbers, in order; a thread pool's map, for example.
        progress: Called after each group of runs.

    Raises:
        BudgetError: The limits leave no room for one run, and none is required; or it was stopped before one.
    """
    loop = _Loop(_Runs(run, settings, mapper, None if num_steps is None else min(num_steps, context.size)), context)
    loop.progress = progress
    loop.until_narrow()
    runs = loop.runs
    summary = summarise(runs.spectra, context)
    estimate, rds = conclusion(summary, num_steps=runs.steps, num_hvps=runs.spent, history=loop.history)
    target = summary.target(settings.tolerance)
    pooled = _pooled_measure([(one.nodes, one.weights) for one in summary.pooled.atoms])
    return Outcome(
        sharpness_dimension=estimate,
        rds_sharpness=rds,
        nodes=pooled[0],
        weights=pooled[1],
        warnings=cautions(Evidence(estimate, summary, loop.nested_failed, runs.ended, target)),
        runs=tuple(runs.spectra),
        out_of_time=runs.out_of_time,
        ended=runs.ended,
    )


def pooled_spectrum(
    run: Callable[[int], Spectrum],
    *,
    num_runs: int,
    max_hvps: int | None = None,
    deadline: float | None = None,
    group: int = 1,
    mapper: Mapper = map,
) -> PooledSpectrum:
    """The spectra of a number of runs as one, where there is no map from eigenvalues to exponents.

    At least one run is made, and no more than the budget has room for.

    Args:
        run: i -> the spectrum of run i.
        num_runs: Runs to make.
        max_hvps: Budget of Hessian-vector products.
        deadline: `time.monotonic()` after which no run is begun.
        group: Runs handed to the mapper at once.
        mapper: Applies a function to run numbers, in order; a thread pool's map, for example.

    Raises:
        BudgetError: Stopped before the first run was complete.
    """
    settings = AdaptiveSettings(max_hvps=max_hvps, deadline=deadline, group=group)
    runs = _Runs(lambda index, _: run(index), settings, mapper, None)
    runs.extend(num_runs)
    nodes, weights = _pooled_measure([(spectrum.nodes, spectrum.weights) for spectrum in runs.spectra])
    return PooledSpectrum(nodes, weights, len(runs.spectra))


def _pooled_measure(measures: list[tuple[FloatArray, FloatArray]]) -> tuple[FloatArray, FloatArray]:
    """Nodes, ascending, and masses of the mean of several measures."""
    nodes = np.concatenate([values for values, _ in measures])
    weights = np.concatenate([values for _, values in measures]) / len(measures)
    order = np.argsort(nodes, kind="stable")
    return nodes[order], weights[order]


@attrs.define(eq=False)
class _Runs:
    """The runs so far, their steps, and what they cost.

    Attributes:
        steps: Lanczos steps of each run, or None.
        spectra: The runs.
        shorter: Steps and runs before the number of steps was raised, or None.
        spent: Products, discarded runs included.
        cost_per_step: Products a step of the dearest run; an estimator with several probes makes more than one.
        ended: Which limit ended the runs, or "".
        out_of_time: See `Outcome`.
    """

    run: Run
    settings: AdaptiveSettings
    mapper: Mapper
    steps: int | None
    spectra: list[Spectrum] = attrs.field(factory=list)
    shorter: tuple[int | None, list[Spectrum]] | None = None
    spent: int = 0
    cost_per_step: float | None = None
    ended: str = ""
    out_of_time: bool = False
    started: float = attrs.field(factory=lambda: time.monotonic())

    def extend(self, target: int, after_group: Callable[[], None] = lambda: None) -> None:
        """Adds runs up to the target, or to the end of the budget.

        Raises:
            BudgetError: The budget ends before the first run.
        """
        while len(self.spectra) < target and not self.ended:
            group = min(self.settings.group, target - len(self.spectra))
            if self.settings.max_hvps is not None:
                # What a run costs is known after the first.
                affordable = (self.settings.max_hvps - self.spent) // max(self._cost(self.steps), 1)
                group = min(group if self.cost_per_step is not None else 1, affordable)
            self.ended = self._reason() or ("" if group > 0 else PRODUCTS)
            if self.ended:
                self.out_of_time = self.ended == TIME
                if self.spectra or self.shorter is not None:
                    return
                if not self.settings.required or self.ended not in (TIME, PRODUCTS):
                    raise BudgetError(self.ended)
                group = 1
            self._add(group)
            if self.spectra:
                after_group()

    def _reason(self) -> str:
        """Why no further run is begun, whatever it costs; "" to go on."""
        deadline = self.settings.deadline
        return TIME if deadline is not None and time.monotonic() > deadline else self.settings.stop()

    def _add(self, group: int) -> None:
        """One group of runs, or those of it for which there is room."""
        first = len(self.spectra)
        try:
            for spectrum in self.mapper(lambda index: self.run(index, self.steps), range(first, first + group)):
                self.spectra.append(spectrum)
                self.spent += spectrum.num_matvecs
                # A run whose Krylov space ended costs less than the next one may.
                self.cost_per_step = max(self.cost_per_step or 0.0, spectrum.num_matvecs / (self.steps or 1))
        except BudgetError as error:
            self.ended, self.out_of_time = error.reason, error.reason == TIME
            if not self.spectra and self.shorter is None:
                raise

    def _cost(self, steps: int | None) -> int:
        """Products of a run of this many steps, by what the dearest run has cost."""
        return math.ceil((self.cost_per_step or 1) * (steps or 1))

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
        self.shorter = (self.steps, self.spectra)
        self.steps, self.spectra = longer, []
        return True

    def fall_back(self) -> None:
        """Takes the runs before the number of steps was raised, if there are too few after."""
        if len(self.spectra) < FEWEST_RUNS_FOR_AN_INTERVAL and self.shorter is not None:
            self.steps, self.spectra = self.shorter


@attrs.define(eq=False)
class _Loop:
    """The looks at the runs, until one is good enough."""

    runs: _Runs
    context: Context
    progress: Callable[[Progress], None] | None = None
    history: list[tuple[float, float, float]] = attrs.field(factory=list)
    nested_failed: tuple[float, float] | None = None
    reported: float = -math.inf

    def until_narrow(self) -> None:
        runs, settings = self.runs, self.runs.settings
        target = settings.fixed_runs or settings.min_runs
        while True:
            runs.extend(target, self._report)
            if runs.ended:
                runs.fall_back()
            summary = summarise(runs.spectra, self.context)
            width = math.nan if summary.half_width is None else summary.half_width
            self.history.append((summary.pooled.crossing.value, width, float(len(runs.spectra))))
            failed = summary.failed_nested_check(settings.tolerance)
            if not runs.ended and failed is not None and runs.lengthen(self.context.size):
                target = settings.fixed_runs or settings.min_runs
                continue
            self.nested_failed = failed
            if runs.ended or settings.fixed_runs is not None or self._is_narrow(summary):
                return
            target = math.ceil(_RUN_GROWTH * len(runs.spectra))

    def _is_narrow(self, summary: Summary) -> bool:
        half = summary.half_width
        return half is not None and half < summary.target(self.runs.settings.tolerance)

    def _report(self) -> None:
        if self.progress is None or time.monotonic() - self.reported < _REPORT_EVERY:
            return
        summary = summarise(self.runs.spectra, self.context)
        self.reported = time.monotonic()
        self.progress(
            Progress(
                stage=f"sharpness dimension ({self.context.estimator})",
                num_hvps=self.runs.spent,
                value=summary.pooled.crossing.value,
                half_width=summary.half_width,
                num_runs=len(self.runs.spectra),
                target=summary.target(self.runs.settings.tolerance),
            )
        )
