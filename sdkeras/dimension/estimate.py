"""One look at the runs: their pooled measure, its sharpness dimension, and the interval of their mean."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import attrs
import numpy as np

from sdkeras.dimension import pooling
from sdkeras.dimension.controls import UNKNOWN, Fit, Rows
from sdkeras.dimension.exponents import Exponents, is_unresolved, rds_sharpness, rounding
from sdkeras.dimension.pooling import Atoms, Measure, Reading
from sdkeras.dimension.sharpness import Crossing, crossing
from sdkeras.results.arrays import FloatArray, Value
from sdkeras.results.dimension import FrozenLyapunov, RdsSharpness, Sampled, SharpnessDimension
from sdkeras.results.estimates import Spectrum

FEWEST_RUNS_FOR_AN_INTERVAL = 3

# Of a measure of exponents: (z, masses) -> a number.
Functional: TypeAlias = Callable[[FloatArray, FloatArray], float]

_ABSOLUTE_TOLERANCE = 0.5
_NEUTRAL = 1e-3
# Rows from which on corrected and raw masses are compared, and how many standard errors apart they may be.
_FEWEST_FOR_SHIFT, _SHIFT = 20, 3.0
# Of the variance that is aimed at, what audits may leave.
_SHARE_OF_AUDITS = 0.05
# A sum of logarithms falls by about as much with each factor 1/0.7 in steps while small exponents are still missed
# (measured), and ten of these make 35 times the steps.
_MORE_CHANGES = 10


@attrs.frozen
class Context:
    """Setting of an estimate.

    Attributes:
        size: Dimension n of the operator.
        exponents: The map alpha -> z. For singular values of the whole step it is sigma -> z, and sigma is then what
            is called eigenvalues here. The state has d = branches * n dimensions.
        unstable_above: The optimizer's own upper threshold for alpha, or None; splits E+.
        ignored_decay: Weight decay that the map leaves out.
        product_error: Relative error of a product.
        estimator: Name of the spectrum estimator.
        settings: Its fields by name.
        own_rate: Whether it works on z itself, see `sdkeras.estimators.kinds.Capabilities`.
    """

    size: int
    exponents: Exponents
    unstable_above: float | None
    ignored_decay: float
    product_error: float
    estimator: str
    settings: Mapping[str, Value] = attrs.field(factory=dict)
    own_rate: bool = False

    @property
    def state_size(self) -> int:
        return self.exponents.branches * self.size


@attrs.frozen(eq=False)
class Sample:
    """The runs so far, as they are looked at.

    Attributes:
        runs: A rule of each run, all of the same number of steps.
        rows: Their minibatches, with the weights that these have.
        audits: Numbers of the runs that were made with more steps, `depth` rules more than those of `runs`.
        full: The rules of all steps of the audits; where `depth` is 0 all runs are.
        depth: How many rules coarser than the audits' the runs are.
        readings: Of rules under the map, by identity, so that each is read once however often it is looked at.
    """

    runs: Sequence[Spectrum]
    rows: Rows
    audits: Sequence[int]
    full: Sequence[Spectrum]
    depth: int = 0
    readings: dict[int, Reading] = attrs.field(factory=dict)

    @classmethod
    def of(cls, runs: Sequence[Spectrum]) -> Sample:
        """Runs of which nothing is known but that they are independent."""
        return cls(runs, Rows.of(len(runs), UNKNOWN), range(len(runs)), runs)

    def read(self, rules: Sequence[Spectrum], exponents: Exponents) -> list[Reading]:
        """The rules under a map, always the same one."""
        for rule in rules:
            if id(rule) not in self.readings:  # a reading keeps its rule, and with it the identity
                self.readings[id(rule)] = pooling.read(rule, exponents)
        return [self.readings[id(rule)] for rule in rules]


@attrs.frozen(eq=False)
class Pooled:
    """The runs as one measure of exponents.

    Attributes:
        sample: The runs.
        atoms: Their nodes and masses, exact masses corrected unless `excess` or `shift` says that they must not be.
        measures: Exponents z and masses of each run.
        z: Exponents of all runs.
        masses: Their masses times the weights of the runs; sum d.
        crossing: SD of this measure.
        excess: See `pooling.repeated_eigenvalues`.
        shift: Mean over runs of the dimensions by which the corrected masses move the answer, and its standard error,
            where that is too much for chance; else None.
    """

    context: Context
    sample: Sample
    atoms: Sequence[Atoms]
    measures: Sequence[Measure]
    z: FloatArray
    masses: FloatArray
    crossing: Crossing
    excess: float | None
    shift: tuple[float, float] | None = None

    @property
    def runs(self) -> Sequence[Spectrum]:
        return self.sample.runs

    @property
    def size(self) -> float:
        return float(self.context.state_size)

    @property
    def largest(self) -> float:
        """Largest |eigenvalue| seen."""
        return max(float(np.max(np.abs(one.nodes))) for one in self.atoms)

    @property
    def is_unresolved(self) -> bool:
        """Whether all exponents are rounding."""
        return is_unresolved(self.context.exponents, self.largest)

    @property
    def nothing_grows(self) -> bool:
        """Whether no exponent is above 0 by more than rounding, as where the loss is convex and the rate small."""
        return bool(self.z.max() <= rounding(self.context.exponents, self.largest, self.context.product_error))

    @property
    def growth(self) -> Fit:
        """E+, the sum of the positive exponents, of each run."""
        return self.fit(lambda z, masses: float(masses @ np.maximum(z, 0.0)))

    @property
    def totals(self) -> Fit:
        """The sum of all exponents of each run."""
        return self.fit(lambda z, masses: float(masses @ z))

    def values(self, function: Functional) -> FloatArray:
        """A function of each run's measure."""
        return np.array([function(z, masses) for z, masses in self.measures])

    def fit(self, function: Functional) -> Fit:
        """The mean of a function of a run's measure."""
        rows = self.sample.rows
        return rows.fit(self.values(function), noiseless=self.exact and not rows.population.is_random)

    def of_rules(self, function: Functional, rules: Sequence[Spectrum]) -> FloatArray:
        """The function of other rules, with raw weights."""
        readings = self.sample.read(rules, self.context.exponents)
        return np.array([function(one.z, one.raw_masses) for one in readings])

    def nested_change(self, function: Functional) -> float | None:
        """Mean over the runs of all steps of a function's change from their coarser rule to their own.

        Both have raw weights: the exact-mass correction would set the nodes that one of them accepts and the other does
        not to mass 1 in one alone: over a run this moves SD by some dimensions, hundreds of times the error of the
        quadrature. None where no run has a coarser rule.
        """
        full = self.sample.full
        if all(run.nested is None for run in full):
            return None
        coarse = [pooling.rule(run, 1) for run in full]
        return float(np.mean(self.of_rules(function, full) - self.of_rules(function, coarse)))

    @property
    def exact(self) -> bool:
        return all(run.exact for run in self.runs)

    @property
    def have_ended(self) -> bool:
        """Whether more steps would change no run."""
        return all(map(pooling.has_ended, self.sample.full))


@attrs.frozen(eq=False)
class Summary:
    """The estimate of the runs so far.

    Attributes:
        pooled: The runs as one measure.
        value: SD: the mean over minibatches by regression, with the audits' correction.
        fit: What the interval is from: phi of each run, or at SD = 0 and d what takes its place.
        audit: What more steps change, by the audits.
        scale: Scale for half-widths: the codimension. With momentum that holds the n directions of the
            velocity, which every step contracts, and SD may lie on either side of n; there the scale is the number of
            dimensions that curvature adds or takes, the sum over eigenvalues of w |phi(alpha) - phi(0)|, phi(alpha) the
            sum of (1 + z/|t*|)_+ over both exponents.
        half_width: Half-width of the interval, without the share of rounding; None below 3 runs.
        interval: 95 % confidence interval of SD, or None.
        total_interval: Interval of the sum of all exponents.
        nested_difference: Change of SD from the coarser rules to the runs' own, or None without any.
    """

    pooled: Pooled
    value: float
    fit: Fit
    audit: Audit
    scale: float
    half_width: float | None
    interval: tuple[float, float] | None
    total_interval: tuple[float, float]
    nested_difference: float | None

    @functools.cached_property
    def finest(self) -> Pooled:
        """The runs with all steps as one measure: what is shown beside `value`, which shorter rules blur."""
        pooled, sample = self.pooled, self.pooled.sample
        if sample.depth == 0:
            return pooled
        full = attrs.evolve(Sample.of(sample.full), readings=sample.readings)
        return _as_one(full, pooled.context, pooled.excess, correct=pooled.excess is None and pooled.shift is None)

    @property
    def stderr(self) -> float:
        """Standard error of `value`; at SD = 0 and d, of what its interval is from."""
        return _error(self.fit, self.audit)

    def target(self, tolerance: float) -> float:
        """Target half-width, for a tolerance relative to the scale; at least 0.5 dimensions."""
        return max(tolerance * self.scale, _ABSOLUTE_TOLERANCE)

    def failed_nested_check(self, tolerance: float) -> tuple[float, float] | None:
        """(mean difference, allowed) if more steps would change the answer, else None."""
        if self.nested_difference is None or self.pooled.have_ended:
            return None
        # SE/2 of the estimate itself: a quadrature error below it cannot be told from sampling error.
        sampling_error = 0.0 if self.half_width is None else self.half_width / self.fit.quantile / 2
        allowed = max(self.target(tolerance) / 4, sampling_error)
        return (self.nested_difference, allowed) if abs(self.nested_difference) > allowed else None


def summarise(sample: Sample, context: Context) -> Summary:
    """Pools the runs and takes the interval of their mean; see `sampling.estimate_sharpness_dimension`."""
    pooled = _pooled(sample, context)
    where, totals = pooled.crossing, pooled.totals
    if where.threshold_exponent is not None:
        judged = _inside(pooled, 1.0 / abs(where.threshold_exponent))
    else:
        judged = (_saturated if where.value > 0 else _collapsed)(pooled)
        if pooled.is_unresolved:
            judged = attrs.evolve(judged, interval=(0.0, pooled.size))
    enough = len(sample.runs) >= FEWEST_RUNS_FOR_AN_INTERVAL and math.isfinite(judged.half_width)
    return Summary(
        pooled=pooled,
        value=judged.value,
        fit=judged.fit,
        audit=judged.audit,
        scale=judged.scale,
        half_width=judged.half_width if enough else None,
        interval=judged.interval if enough else None,
        total_interval=(where.total - totals.half_width, where.total + totals.half_width),
        nested_difference=judged.nested_difference,
    )


def _pooled(sample: Sample, context: Context) -> Pooled:
    excess = pooling.repeated_eigenvalues(sample.read(sample.runs, context.exponents))
    corrected = _as_one(sample, context, excess, correct=excess is None)
    t_star = corrected.crossing.threshold_exponent
    if excess is not None or t_star is None or sample.rows.num_rows < _FEWEST_FOR_SHIFT:
        return corrected
    raw, phi = _as_one(sample, context, None, correct=False), _phi(1.0 / abs(t_star))
    change = sample.rows.fit(corrected.values(phi) - raw.values(phi))
    error = math.sqrt(change.squared_error)
    if abs(change.mean) <= _SHIFT * error:
        return corrected
    return attrs.evolve(raw, shift=(change.mean, error))


def _as_one(sample: Sample, context: Context, excess: float | None, *, correct: bool) -> Pooled:
    """The measure with or without exact masses."""
    readings = sample.read(sample.runs, context.exponents)
    atoms = [one.corrected if correct else one.raw for one in readings]
    measures = [(one.z, one.corrected_masses if correct else one.raw_masses) for one in readings]
    z = np.concatenate([values for values, _ in measures])
    weights = sample.rows.run_weights
    masses = np.concatenate([share * values for share, (_, values) in zip(weights, measures, strict=True)])
    where = crossing(z, masses)
    where = attrs.evolve(where, value=min(where.value, float(context.state_size)))  # masses sum to d up to rounding
    return Pooled(context, sample, atoms, measures, z, masses, where, excess)


@attrs.frozen(eq=False)
class Audit:
    """What the steps that most runs do without would change: Delta = phi of all steps less that of fewer.

    Attributes:
        mean: Mean of Delta over the audits; 0 where all runs have all steps.
        squared_error: Squared standard error of the mean, infinite for a single audit.
        largest: Largest |Delta| of an audit.
        count: How many audits there are.
        covariance: 2 cov(residual, Delta) / R, which the squared error of the sum of both means has beside theirs.
    """

    mean: float = 0.0
    squared_error: float = 0.0
    largest: float = 0.0
    count: int = 0
    covariance: float = 0.0

    @classmethod
    def of(cls, changes: FloatArray, residuals: FloatArray, num_rows: int) -> Audit:
        """From Delta and the residual of each audit's row."""
        count = len(changes)
        if count < 2:
            return cls(float(np.sum(changes)), math.inf, math.inf, count)
        return cls(
            mean=float(changes.mean()),
            squared_error=float(changes.var(ddof=1)) / count,
            largest=float(np.max(np.abs(changes))),
            count=count,
            covariance=2 * float(np.cov(changes, residuals)[0, 1]) / num_rows,
        )

    def suffices(self, target: float, variance: float) -> bool:
        """Whether no more audits are needed beside a target half-width and the variance that it asks for."""
        return self.squared_error < _SHARE_OF_AUDITS * variance and self.largest < self.count * target / 8


def audit(pooled: Pooled, fit: Fit, tau: float) -> Audit:
    """What the audits' own steps change over those of the other runs, with raw weights."""
    sample, phi = pooled.sample, _phi(tau)
    if sample.depth == 0:
        return Audit()
    coarse = [pooling.rule(run, sample.depth) for run in sample.full]
    changes = pooled.of_rules(phi, sample.full) - pooled.of_rules(phi, coarse)
    residuals = fit.residuals[sample.rows.membership[np.asarray(sample.audits, np.intp)]]
    return Audit.of(changes, residuals, sample.rows.num_rows)


def _error(fit: Fit, audited: Audit) -> float:
    """Standard error of the mean with the audits' correction."""
    return math.sqrt(max(0.0, fit.squared_error + audited.squared_error + audited.covariance))


@attrs.frozen(eq=False)
class _Judged:
    value: float
    fit: Fit
    half_width: float
    interval: tuple[float, float]
    scale: float
    nested_difference: float | None
    audit: Audit = Audit()


def _inside(pooled: Pooled, tau: float) -> _Judged:
    """0 < SD < d: the mean over minibatches of phi = sum w (1 + tau z)_+, tau = 1/|t*|."""
    exponents, phi = pooled.context.exponents, _phi(tau)
    fit = pooled.fit(phi)
    audited = audit(pooled, fit, tau)
    value = min(max(fit.mean + audited.mean, 0.0), pooled.size)
    half = fit.quantile * _error(fit, audited) if math.isfinite(fit.quantile) else math.inf
    scale = _moved(pooled.atoms, exponents, tau) if exponents.branches > 1 else pooled.size - value
    interval = max(0.0, value - half), min(pooled.size, value + half)
    if pooled.nothing_grows:  # not in the half-width: more runs do not help against rounding
        interval = 0.0, max(interval[1], _value_if_neutral(pooled, _neutral_bound(pooled)))
    return _Judged(value, fit, half, interval, scale, pooled.nested_change(phi), audited)


def _saturated(pooled: Pooled) -> _Judged:
    """SD = d: the lower bound is where the sum of all exponents would cross if it were smaller."""
    size, totals = pooled.size, pooled.totals
    half, value = totals.half_width, pooled.crossing.value
    low = min(_value_below(pooled, half), size) if math.isfinite(half) else 0.0
    change = pooled.nested_change(lambda z, masses: float(masses @ z))
    # How far below d SD would be, were the sum to go on as it has changed.
    difference = None if change is None else value - _value_below(pooled, _MORE_CHANGES * abs(change))
    return _Judged(value, totals, size - low, (low, size), size - value, difference)


def _collapsed(pooled: Pooled) -> _Judged:
    """SD = 0: the upper bound is E+, or SD if every exponent were 0 that may be."""
    size, growth, value = pooled.size, pooled.growth, pooled.crossing.value
    half = min(size, growth.mean + growth.half_width)
    neutral = _value_if_neutral(pooled, _neutral_bound(pooled))
    difference, rise = None, pooled.nested_change(lambda z, _: float(np.max(z)))
    if rise is not None:  # the largest exponents, were they to go on rising as they have
        risen = _value_if_neutral(pooled, _MORE_CHANGES * max(rise, 0.0))
        difference = min(0.0, neutral - risen)
        neutral = max(neutral, risen)
    # More runs do not help against rounding, so it does not count in the half-width.
    return _Judged(value, growth, half, (0.0, max(half, neutral)), size - value, difference)


def _value_below(pooled: Pooled, offset: float) -> float:
    """SD if the sum of all exponents were smaller by this much."""
    return crossing(pooled.z, pooled.masses, offset=-offset).value


def _neutral_bound(pooled: Pooled) -> float:
    """Up to which modulus exponents cannot be told from 0 where there is no t* to compare with.

    Exact null directions come out as +-1e-7 by rounding, and as one value with their nearly flat neighbours by too few
    steps: neutral is here what is below 1e-3 of the mean exponent.
    """
    context = pooled.context
    error = max(context.product_error, float(np.finfo(np.float64).eps))
    return max(
        10 * (context.exponents.rate * pooled.largest * error),
        _NEUTRAL * abs(float(pooled.masses @ pooled.z)) / context.state_size,
    )


def _value_if_neutral(pooled: Pooled, bound: float) -> float:
    """SD if every exponent of at most this modulus were 0."""
    return min(crossing(np.where(np.abs(pooled.z) <= bound, 0.0, pooled.z), pooled.masses).value, pooled.size)


def _phi(tau: float) -> Functional:
    """(z, masses) -> sum of the masses times (1 + tau z)_+."""
    return lambda z, masses: float(masses @ np.maximum(0.0, 1.0 + tau * z))


def _moved(atoms: Sequence[Atoms], exponents: Exponents, tau: float) -> float:
    """Mean over runs of sum w |phi(alpha) - phi(0)|."""

    def phi(alpha: FloatArray) -> FloatArray:
        values: FloatArray = np.maximum(0.0, 1.0 + tau * exponents(alpha)).reshape(-1, len(alpha)).sum(axis=0)
        return values

    neutral = phi(np.zeros(1))
    return float(np.mean([one.weights @ np.abs(phi(one.nodes) - neutral) for one in atoms]))


def conclusion(
    summary: Summary,
    *,
    num_steps: int | None,
    run_steps: int | None,
    num_hvps: int,
    history: Sequence[tuple[float, float, float]],
) -> tuple[SharpnessDimension, RdsSharpness]:
    """The records of an estimate.

    Args:
        summary: The last look at the runs.
        num_steps: Steps whose answer it is: those of the audits.
        run_steps: Steps of the other runs.
        num_hvps: Products spent, discarded runs included.
        history: Value, half-width and number of runs at each look.
    """
    pooled, context, where = summary.pooled, summary.pooled.context, summary.pooled.crossing
    exponents, size, interval, t_star = context.exponents, pooled.size, summary.interval, where.threshold_exponent
    finest, rows = summary.finest, pooled.sample.rows
    average = pooling.quantile_average(pooled.measures, size, rows.run_weights)
    ordered, ordered_half = dimension_of_average(average, context.state_size, rows)
    nodes = np.concatenate([one.nodes for one in finest.atoms])
    gains = finest.masses * np.maximum(finest.z, 0.0)
    origins = np.concatenate([exponents.spread(one.nodes) for one in finest.atoms])
    neutral = None if t_star is None else float(finest.masses[np.abs(finest.z) < _NEUTRAL * abs(t_star)].sum())
    expansion, unstable = float(gains.sum()), context.unstable_above
    values, half_widths, runs = np.array(history, dtype=np.float64).reshape(-1, 3).T
    estimate = SharpnessDimension(
        value=summary.value,
        interval=interval,
        codimension=size - summary.value,
        codimension_interval=None if interval is None else (size - interval[1], size - interval[0]),
        definition_value=ordered if pooled.exact else None,
        definition_interval=_definition_interval(summary, ordered, ordered_half),
        quantile_average=ordered,
        j_star=min(max(0.0, where.j_star + summary.value - where.value), size),  # moved as the value is
        threshold_exponent=t_star,
        expansion=expansion,
        expansion_negative_curvature=float(gains[origins < 0].sum()),
        expansion_unstable=0.0 if unstable is None else float(gains[origins > unstable].sum()),
        neutral_mass=neutral,
        margin=expansion / neutral if neutral else None,
        resolution=None if t_star is None else exponents.rate * float(np.ptp(nodes)) / abs(t_star),
        map=exponents.name,
        coordinates=exponents.coordinates,
        state_size=context.state_size,
        estimator=context.estimator,
        num_runs=len(pooled.runs),
        num_steps=None if pooled.exact else num_steps,
        num_hvps=num_hvps,
        history=values,
        history_half_width=half_widths,
        history_runs=runs,
        frozen_lyapunov=_frozen_lyapunov(finest) if exponents.branches > 1 else None,
        settings=dict(context.settings),
        sampled=_sampled(summary, run_steps),
    )
    shown = pooling.quantile_average(finest.measures, size, finest.sample.rows.run_weights)
    return estimate, rds_sharpness(shown.z, shown.widths)


def _sampled(summary: Summary, num_steps: int | None) -> Sampled:
    sample, fit = summary.pooled.sample, summary.fit
    finite = math.isfinite(fit.variance)
    return Sampled(
        stderr=summary.stderr if math.isfinite(summary.stderr) else None,
        num_minibatches=sample.rows.num_rows,
        num_probes=float(sample.rows.probes.mean()),
        num_controls=sample.rows.num_controls,
        no_controls="" if sample.rows.num_controls else sample.rows.population.reason,
        num_steps=num_steps,
        num_audits=len(sample.audits) if sample.depth else 0,
        audit=summary.audit.mean if sample.depth else None,
        audit_stderr=math.sqrt(summary.audit.squared_error) if sample.depth else None,
        residual_variance=fit.variance if finite else None,
        raw_variance=float(np.var(fit.means, ddof=1)) if finite else None,
        skewness=fit.skewness,
    )


def _definition_interval(summary: Summary, ordered: float, half: float) -> tuple[float, float] | None:
    """Around the SD of averaged order statistics; up to the pooled interval's end where quadrature blurs them."""
    if summary.interval is None or not math.isfinite(half):
        return None
    pooled = summary.pooled
    if pooled.nothing_grows or (pooled.crossing.threshold_exponent is None and pooled.is_unresolved):
        return summary.interval
    lower = max(0.0, ordered - half)
    upper = min(pooled.size, ordered + half) if pooled.exact else summary.interval[1]
    return lower, max(lower, upper)


def _frozen_lyapunov(pooled: Pooled) -> FrozenLyapunov:
    """The formulas of SD and lambda_1 on ln |mu| in place of ln sigma."""
    measures = [
        (pooled.context.exponents.log_eigenvalues(one.nodes), masses)
        for one, (_, masses) in zip(pooled.atoms, pooled.measures, strict=True)
    ]
    where = crossing(np.concatenate([log_mu for log_mu, _ in measures]), pooled.masses)
    average = pooling.quantile_average(measures, pooled.size, pooled.sample.rows.run_weights)
    return FrozenLyapunov(
        dimension=min(where.value, pooled.size), leading=float(rds_sharpness(average.z, average.widths).leading[0])
    )


def dimension_of_average(average: pooling.QuantileAverage, size: int, rows: Rows) -> tuple[float, float]:
    """SD of the averaged quantile function and the half-width of its interval.

    SD = U + tau * integral of the average over (0, U), U where 1 + tau z turns negative; per run the same
    integral of its own quantile function varies about it.
    """
    where = crossing(average.z, average.widths)
    if where.threshold_exponent is None:
        # At 0 and d the value does not move with the runs until the sum changes sign.
        half = rows.fit(average.integrals(float(size))).half_width
        if where.value <= 0 or abs(where.total) >= half:
            return where.value, 0.0
        return where.value, where.value - crossing(average.z, average.widths, offset=-half).value
    tau = 1.0 / abs(where.threshold_exponent)
    upper = float(average.widths[1.0 + tau * average.z > 0].sum())
    return where.value, rows.fit(upper + tau * average.integrals(upper)).half_width
