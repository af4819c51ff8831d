"""One look at the runs: their pooled measure, its sharpness dimension, and the interval of their mean."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import attrs
import numpy as np
import scipy.stats

from sdkeras.dimension import pooling
from sdkeras.dimension.exponents import Exponents, is_unresolved, rds_sharpness, rounding
from sdkeras.dimension.pooling import Atoms, Measure
from sdkeras.dimension.sharpness import Crossing, crossing
from sdkeras.results.arrays import FloatArray, Value
from sdkeras.results.dimension import FrozenLyapunov, RdsSharpness, SharpnessDimension
from sdkeras.results.estimates import Spectrum

_CONFIDENCE = 0.95
FEWEST_RUNS_FOR_AN_INTERVAL = 3
_ABSOLUTE_TOLERANCE = 0.5
_NEUTRAL = 1e-3
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
class Pooled:
    """The runs as one measure of exponents.

    Attributes:
        runs: Their spectra.
        atoms: Their nodes and masses, exact masses corrected unless `excess` says that eigenvalues are repeated.
        measures: Exponents z and masses of each run.
        z: Exponents of all runs.
        masses: Their masses, divided by the number of runs; sum d.
        crossing: SD of this measure.
        excess: See `pooling.repeated_eigenvalues`.
    """

    context: Context
    runs: Sequence[Spectrum]
    atoms: Sequence[Atoms]
    measures: Sequence[Measure]
    z: FloatArray
    masses: FloatArray
    crossing: Crossing
    excess: float | None

    @property
    def size(self) -> float:
        return float(self.context.state_size)

    @property
    def largest(self) -> float:
        """Largest |eigenvalue| seen."""
        return max(float(np.max(np.abs(one.nodes))) for one in self.atoms)

    @property
    def growth(self) -> FloatArray:
        """E+, the sum of the positive exponents, of each run."""
        return np.array([float(masses @ np.maximum(z, 0.0)) for z, masses in self.measures])

    @property
    def totals(self) -> FloatArray:
        """The sum of all exponents of each run."""
        return np.array([float(masses @ z) for z, masses in self.measures])

    @property
    def exact(self) -> bool:
        return all(run.exact for run in self.runs)

    @property
    def have_ended(self) -> bool:
        """Whether more steps would change no run."""
        return all(map(pooling.has_ended, self.runs))


@attrs.frozen(eq=False)
class Summary:
    """The estimate of the runs so far.

    Attributes:
        pooled: The runs as one measure.
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
    scale: float
    half_width: float | None
    interval: tuple[float, float] | None
    total_interval: tuple[float, float]
    nested_difference: float | None

    def target(self, tolerance: float) -> float:
        """Target half-width, for a tolerance relative to the scale; at least 0.5 dimensions."""
        return max(tolerance * self.scale, _ABSOLUTE_TOLERANCE)

    def failed_nested_check(self, tolerance: float) -> tuple[float, float] | None:
        """(mean difference, allowed) if more steps would change the answer, else None."""
        if self.nested_difference is None or self.pooled.have_ended:
            return None
        # SE/2 of the estimate itself: a quadrature error below it cannot be told from sampling error.
        sampling_error = 0.0 if self.half_width is None else self.half_width / _quantile(len(self.pooled.runs)) / 2
        allowed = max(self.target(tolerance) / 4, sampling_error)
        return (self.nested_difference, allowed) if abs(self.nested_difference) > allowed else None


def summarise(runs: Sequence[Spectrum], context: Context) -> Summary:
    """Pools the runs and takes the interval of their mean; see `sampling.estimate_sharpness_dimension`."""
    pooled = _pooled(runs, context)
    total = half_width(pooled.totals)
    where, nested = pooled.crossing, pooling.coarser_rules(runs)
    if where.threshold_exponent is not None:
        judged = _inside(pooled, nested, 1.0 / abs(where.threshold_exponent))
    else:
        judged = (_saturated if where.value > 0 else _collapsed)(pooled, nested)
        if is_unresolved(context.exponents, pooled.largest):
            judged = attrs.evolve(judged, interval=(0.0, pooled.size))
    enough = len(runs) >= FEWEST_RUNS_FOR_AN_INTERVAL
    return Summary(
        pooled=pooled,
        scale=judged.scale,
        half_width=judged.half_width if enough else None,
        interval=judged.interval if enough else None,
        total_interval=(where.total - total, where.total + total),
        nested_difference=judged.nested_difference,
    )


def _pooled(runs: Sequence[Spectrum], context: Context) -> Pooled:
    exponents = context.exponents
    excess = pooling.repeated_eigenvalues(runs, exponents)
    atoms = [pooling.as_atoms(run, exponents, excess is None) for run in runs]
    measures = [(exponents(one.nodes), exponents.spread(one.weights)) for one in atoms]
    z = np.concatenate([values for values, _ in measures])
    masses = np.concatenate([values for _, values in measures]) / len(runs)
    where = crossing(z, masses)
    where = attrs.evolve(where, value=min(where.value, float(context.state_size)))  # masses sum to d up to rounding
    return Pooled(context, runs, atoms, measures, z, masses, where, excess)


@attrs.frozen
class _Judged:
    half_width: float
    interval: tuple[float, float]
    scale: float
    nested_difference: float | None


def _inside(pooled: Pooled, nested: Sequence[Spectrum] | None, tau: float) -> _Judged:
    """0 < SD < d: the mean over runs of phi = sum w (1 + tau z)_+, tau = 1/|t*|."""
    exponents, value = pooled.context.exponents, pooled.crossing.value
    half = half_width(np.array([_phi(masses, z, tau) for z, masses in pooled.measures]))
    lower = max(0.0, value - half)
    if pooled.z.max() <= rounding(exponents, pooled.largest, pooled.context.product_error):
        lower = 0.0  # not in the half-width: more runs do not help against rounding
    difference = None
    if nested is not None:
        fine, coarse = (
            np.array([_phi(exponents.spread(rule.weights), exponents(rule.nodes), tau) for rule in rules])
            for rules in (pooled.runs, nested)
        )
        difference = float((fine - coarse).mean())
    scale = _moved(pooled.atoms, exponents, tau) if exponents.branches > 1 else pooled.size - value
    return _Judged(half, (lower, min(pooled.size, value + half)), scale, difference)


def _saturated(pooled: Pooled, nested: Sequence[Spectrum] | None) -> _Judged:
    """SD = d: the lower bound is where the sum of all exponents would cross if it were smaller."""
    size, half = pooled.size, half_width(pooled.totals)
    low = min(_value_below(pooled, half), size) if math.isfinite(half) else 0.0
    difference = None
    if nested is not None:  # how far below d SD would be, were the sum to go on as it has changed
        exponents = pooled.context.exponents
        fine, coarse = (np.array([_total(exponents, rule) for rule in rules]) for rules in (pooled.runs, nested))
        change = abs(float(np.mean(fine - coarse)))
        difference = pooled.crossing.value - _value_below(pooled, _MORE_CHANGES * change)
    return _Judged(size - low, (low, size), size - pooled.crossing.value, difference)


def _collapsed(pooled: Pooled, nested: Sequence[Spectrum] | None) -> _Judged:
    """SD = 0: the upper bound is E+, or SD if every exponent were 0 that may be."""
    size, growth = pooled.size, pooled.growth
    half = min(size, growth.mean() + half_width(growth))
    neutral = _value_if_neutral(pooled, _neutral_bound(pooled))
    difference = None
    if nested is not None:  # the largest exponents, were they to go on rising as they have
        exponents = pooled.context.exponents
        tops = [
            (np.max(z), np.max(exponents(rule.nodes))) for (z, _), rule in zip(pooled.measures, nested, strict=True)
        ]
        rise = float(np.mean([fine - coarse for fine, coarse in tops]))
        risen = _value_if_neutral(pooled, _MORE_CHANGES * max(rise, 0.0))
        difference = min(0.0, neutral - risen)
        neutral = max(neutral, risen)
    # More runs do not help against rounding, so it does not count in the half-width.
    return _Judged(half, (0.0, max(half, neutral)), size - pooled.crossing.value, difference)


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


def _phi(weights: FloatArray, z: FloatArray, tau: float) -> float:
    return float(weights @ np.maximum(0.0, 1.0 + tau * z))


def _total(exponents: Exponents, rule: Spectrum) -> float:
    """Sum of all exponents, with raw weights."""
    return float(exponents.spread(rule.weights) @ exponents(rule.nodes))


def _moved(atoms: Sequence[Atoms], exponents: Exponents, tau: float) -> float:
    """Mean over runs of sum w |phi(alpha) - phi(0)|."""

    def phi(alpha: FloatArray) -> FloatArray:
        values: FloatArray = np.maximum(0.0, 1.0 + tau * exponents(alpha)).reshape(-1, len(alpha)).sum(axis=0)
        return values

    neutral = phi(np.zeros(1))
    return float(np.mean([one.weights @ np.abs(phi(one.nodes) - neutral) for one in atoms]))


def _quantile(count: int) -> float:
    """Student's t for the mean of this many values."""
    return float(scipy.stats.t.ppf(0.5 + _CONFIDENCE / 2, count - 1))


def standard_error(values: FloatArray) -> float | None:
    """Standard error of the mean of independent values; None for a single one."""
    return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None


def half_width(values: FloatArray) -> float:
    """Half-width of the 95 % confidence interval of the mean of independent values; infinite for a single one."""
    if len(values) < 2:
        return math.inf
    return _quantile(len(values)) * float(np.std(values, ddof=1)) / math.sqrt(len(values))


def conclusion(
    summary: Summary, *, num_steps: int | None, num_hvps: int, history: Sequence[tuple[float, float, float]]
) -> tuple[SharpnessDimension, RdsSharpness]:
    """The records of an estimate.

    Args:
        summary: The last look at the runs.
        num_steps: Steps of a run.
        num_hvps: Products spent, discarded runs included.
        history: Value, half-width and number of runs at each look.
    """
    pooled, context, where = summary.pooled, summary.pooled.context, summary.pooled.crossing
    exponents, size, interval, t_star = context.exponents, pooled.size, summary.interval, where.threshold_exponent
    average = pooling.quantile_average(pooled.measures, size)
    ordered, ordered_half = dimension_of_average(average, context.state_size)
    nodes = np.concatenate([one.nodes for one in pooled.atoms])
    gains = pooled.masses * np.maximum(pooled.z, 0.0)
    origins = np.concatenate([exponents.spread(one.nodes) for one in pooled.atoms])
    neutral = None if t_star is None else float(pooled.masses[np.abs(pooled.z) < _NEUTRAL * abs(t_star)].sum())
    expansion, unstable = float(gains.sum()), context.unstable_above
    values, half_widths, runs = np.array(history, dtype=np.float64).reshape(-1, 3).T
    estimate = SharpnessDimension(
        value=where.value,
        interval=interval,
        codimension=size - where.value,
        codimension_interval=None if interval is None else (size - interval[1], size - interval[0]),
        definition_value=ordered if pooled.exact else None,
        definition_interval=_definition_interval(summary, ordered, ordered_half),
        quantile_average=ordered,
        j_star=where.j_star,
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
        frozen_lyapunov=_frozen_lyapunov(pooled) if exponents.branches > 1 else None,
        settings=dict(context.settings),
    )
    return estimate, rds_sharpness(average.z, average.widths)


def _definition_interval(summary: Summary, ordered: float, half: float) -> tuple[float, float] | None:
    """Around the SD of averaged order statistics; up to the pooled interval's end where quadrature blurs them."""
    if summary.interval is None or not math.isfinite(half):
        return None
    lower = max(0.0, ordered - half)
    upper = min(summary.pooled.size, ordered + half) if summary.pooled.exact else summary.interval[1]
    return lower, max(lower, upper)


def _frozen_lyapunov(pooled: Pooled) -> FrozenLyapunov:
    """The formulas of SD and lambda_1 on ln |mu| in place of ln sigma."""
    measures = [
        (pooled.context.exponents.log_eigenvalues(one.nodes), masses)
        for one, (_, masses) in zip(pooled.atoms, pooled.measures, strict=True)
    ]
    where = crossing(np.concatenate([log_mu for log_mu, _ in measures]), pooled.masses)
    average = pooling.quantile_average(measures, pooled.size)
    return FrozenLyapunov(
        dimension=min(where.value, pooled.size), leading=float(rds_sharpness(average.z, average.widths).leading[0])
    )


def dimension_of_average(average: pooling.QuantileAverage, size: int) -> tuple[float, float]:
    """SD of the averaged quantile function and the half-width of its interval.

    SD = U + tau * integral of the average over (0, U), U where 1 + tau z turns negative; per run the same
    integral of its own quantile function varies about it.
    """
    where = crossing(average.z, average.widths)
    if where.threshold_exponent is None:
        # At 0 and d the value does not move with the runs until the sum changes sign.
        half = half_width(average.integrals(float(size)))
        if where.value <= 0 or abs(where.total) >= half:
            return where.value, 0.0
        return where.value, where.value - crossing(average.z, average.widths, offset=-half).value
    tau = 1.0 / abs(where.threshold_exponent)
    upper = float(average.widths[1.0 + tau * average.z > 0].sum())
    return where.value, half_width(upper + tau * average.integrals(upper))
