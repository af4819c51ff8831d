"""Correlation of measures with generalization over many runs: Kendall's tau-b and granulated coefficients."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import attrs
import numpy as np
import scipy.stats
from numpy.typing import NDArray

from sdkeras import seeds
from sdkeras.errors import SdkerasError, counted
from sdkeras.reporting.data_tables import as_csv
from sdkeras.reporting.numbers import ABSENT
from sdkeras.reporting.report import Report, Section, Table
from sdkeras.results.arrays import FloatArray, Value
from sdkeras.results.document import SCHEMA_VERSION, Document

# (unit of each member, stream, indices) -> how often each member occurs in each resample of the units, shape
# [resamples, members].
_Resampler = Callable[..., FloatArray]
IntArray = NDArray[np.int64]

TARGETS = ("accuracy_gap", "loss_gap")
_CONFIDENCE = 0.95
# Fewer units have too few distinct bootstrap resamples for an interval of 95 %; five have 126.
FEWEST_RESAMPLED = 5


@attrs.frozen(kw_only=True)
class Run:
    """One trained model: its hyperparameters (the seed among them if runs differ in it), measures and |train - test|.

    None or NaN stands for a number that is not there.
    """

    settings: Mapping[str, Value]
    measures: Mapping[str, float | None]
    accuracy_gap: float | None = None
    loss_gap: float | None = None


@attrs.frozen
class Granulated:
    """psi of one hyperparameter: the mean of tau-b over groups of runs that differ in nothing else.

    Attributes:
        psi: The mean, or None where no group has a tau-b.
        interval: 95 % bootstrap interval over groups, those that differ in the seed alone together; None below 5 such
            units, or where all have the same tau-b.
        num_groups: Groups in the mean.
        num_skipped: Groups left out: fewer than 2 runs with both values, or one of the two the same in all runs.
    """

    setting: str
    psi: float | None
    interval: tuple[float, float] | None
    num_groups: int
    num_skipped: int


@attrs.frozen
class MeasureCorrelation:
    """The correlation of one measure with one gap.

    Attributes:
        target: 'accuracy_gap' or 'loss_gap'.
        tau_b: Kendall's tau-b over all runs; None where it is undefined (fewer than 2 runs, or all values equal).
        interval: 95 % bootstrap interval of it over units, which are the runs of equal settings with all their seeds;
            None below 5 units.
        p_value: Two-sided, under independent units without association, of the units' mean ranks; None where tau_b is.
        num_usable: Bootstrap resamples in which tau-b is defined; the interval uses these.
        num_runs: Runs with both values.
        num_missing: Runs without one of them, left out.
        granulated: psi of each hyperparameter, in the order of `Correlations.settings`.
        psi_mean: Mean of those psi that are defined; None if all are undefined.
        psi_mean_interval: Bootstrap interval over the groups of each; None where one of them has none.
    """

    measure: str
    target: str
    tau_b: float | None
    interval: tuple[float, float] | None
    p_value: float | None
    num_usable: int
    num_runs: int
    num_missing: int
    granulated: tuple[Granulated, ...]
    psi_mean: float | None
    psi_mean_interval: tuple[float, float] | None


@attrs.frozen
class PairCorrelation:
    """Kendall's tau-b between two measures, or of a measure or gap with a gap, over the runs that have both.

    Attributes:
        tau_b: None where it is undefined, as in `MeasureCorrelation`; so are `interval` and `p_value`.
    """

    first: str
    second: str
    tau_b: float | None
    interval: tuple[float, float] | None
    p_value: float | None
    num_runs: int


@attrs.frozen(eq=False, repr=False)
class Correlations(Document):
    """The correlation of every measure with every gap, and with every other measure.

    Attributes:
        rows: One for each measure and gap.
        settings: Hyperparameters that vary and have a psi, in the order of the first run.
        num_resamples, seed: Of the bootstrap.
    """

    DOCUMENT = "correlations"
    WRITTEN_BY = ("correlations.json", "sdkeras study")

    rows: tuple[MeasureCorrelation, ...]
    settings: tuple[str, ...]
    num_runs: int
    num_resamples: int
    seed: int
    # One for each two of the measures and gaps, in their order; () in files of 0.1.0.
    between: tuple[PairCorrelation, ...] = ()
    schema_version: int = SCHEMA_VERSION

    def __str__(self) -> str:
        lines = [self.header(), *self.cells()]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)

    def _report(self) -> Report:
        table = Table("Coefficients", self.cells(), self.header(), wide=True)
        sections = (Section("Coefficients", "coefficients", tables=(table,)),)
        count = len({row.measure for row in self.rows})
        words = f"{counted(count, 'measure')} against the gaps of {counted(self.num_runs, 'run')}"
        return Report("Correlations", words, (f"{words}.",), sections)

    @property
    def adjusted(self) -> tuple[float | None, ...]:
        """p values of the rows, corrected by `holm` for there being so many."""
        return holm([row.p_value for row in self.rows])

    def header(self) -> tuple[str, ...]:
        """Titles of the columns of `cells`."""
        return (
            "measure",
            "gap",
            "tau-b",
            "p",
            "p (Holm)",
            *(f"psi {name}" for name in self.settings),
            "mean psi",
            "runs",
        )

    def cells(self) -> tuple[tuple[str, ...], ...]:
        """The rows as text, for a table."""
        return tuple(
            (
                row.measure,
                row.target.removesuffix("_gap"),
                coefficient(row.tau_b, row.interval),
                *(ABSENT if p is None else f"{p:.2g}" for p in (row.p_value, corrected)),
                *(coefficient(each.psi, each.interval) for each in row.granulated),
                coefficient(row.psi_mean, row.psi_mean_interval),
                f"{row.num_runs}" + (f" ({row.num_missing} missing)" if row.num_missing else ""),
            )
            for row, corrected in zip(self.rows, self.adjusted, strict=True)
        )

    def to_csv(self) -> str:
        """One line for each measure and gap; absent values are empty."""
        names = ["measure", "target", *_spread("tau_b"), "p_value", "num_usable", "num_runs", "num_missing"]
        for setting in self.settings:
            names += [*_spread(f"psi_{setting}"), f"num_groups_{setting}", f"num_skipped_{setting}"]
        rows: list[list[object]] = [[*names, *_spread("psi_mean")]]
        for row in self.rows:
            values = [row.measure, row.target, *_limits(row.tau_b, row.interval)]
            values += [row.p_value, row.num_usable, row.num_runs, row.num_missing]
            for each in row.granulated:
                values += [*_limits(each.psi, each.interval), each.num_groups, each.num_skipped]
            rows.append([*values, *_limits(row.psi_mean, row.psi_mean_interval)])
        return as_csv(rows)


def correlate(
    runs: Sequence[Run], *, held: Sequence[str] = ("seed",), num_resamples: int = 2000, seed: int = 0
) -> Correlations:
    """Kendall's tau-b and the granulated coefficients of every measure with every gap that the runs have.

    psi_h is the mean of tau-b over groups of runs that differ only in hyperparameter h. A group of fewer than 2 runs,
    or in which the measure or the gap does not vary, is skipped: it counts in no mean. Settings that are `held` have no
    psi of their own and are equal within every group. The bootstrap resamples runs for tau-b and groups for psi, and
    its intervals are percentiles. Runs and groups that differ in the setting `seed` alone tell much the same: they are
    one unit, resampled together, unless there is no other.

    Raises:
        SdkerasError: Runs that cannot be grouped, or no measure or gap at all.

    Reference: Jiang et al., "Fantastic Generalization Measures and Where to Find Them" (2019).
    """
    if num_resamples < 100:
        raise SdkerasError(f"num_resamples is {num_resamples}; an interval of 95 % needs at least 100.")
    names = _setting_names(runs)
    settings = tuple(name for name in names if name not in held and len({run.settings[name] for run in runs}) > 1)
    units = _units(runs, names)
    groups = {name: _groups(runs, name, names) for name in settings}
    measures = dict.fromkeys(name for run in runs for name in run.measures)
    gaps = {target: np.array([getattr(run, target) for run in runs], np.float64) for target in TARGETS}  # None is NaN
    gaps = {target: values for target, values in gaps.items() if not np.all(np.isnan(values))}
    if not measures or not gaps:
        raise SdkerasError("the runs have no measure, or neither an accuracy gap nor a loss gap; give both sides.")

    def counts(units: IntArray, stream: seeds.Stream, *indices: int) -> FloatArray:
        draw, size = seeds.generator(seed, stream, *indices).multinomial, _number_of(units)
        return draw(size, np.full(size, 1 / size), size=num_resamples).astype(np.float64)[:, units]

    columns = {name: np.array([run.measures.get(name) for run in runs], np.float64) for name in measures}
    rows = [
        _row((name, target), values, gap, units, groups, counts)
        for name, values in columns.items()
        for target, gap in gaps.items()
    ]
    between = [_pair(*two, units, counts) for two in itertools.combinations((columns | gaps).items(), 2)]
    return Correlations(tuple(rows), settings, len(runs), num_resamples, seed, tuple(between))


def holm(p_values: Sequence[float | None]) -> tuple[float | None, ...]:
    """Adjusted p values: below a level only as often as that level if there is no association at all.

    The k-th smallest of n is multiplied by n - k + 1 and is at least the one before (Holm 1979); None stays None and
    does not count.
    """
    adjusted: list[float | None] = [None] * len(p_values)
    known, least = sorted((p, place) for place, p in enumerate(p_values) if p is not None), 0.0
    for k, (p, place) in enumerate(known):
        adjusted[place] = least = max(least, min(1.0, p * (len(known) - k)))
    return tuple(adjusted)


def kendall_tau_b(first: FloatArray, second: FloatArray, counts: FloatArray | None = None) -> FloatArray:
    """Kendall's tau-b of repeated pairs, for many tables of counts at once, as the bootstrap needs it.

    tau-b = (C - D) / sqrt((pairs not tied in the first) (pairs not tied in the second)).

    Args:
        first: Shape [n]; infinities are ranks like others.
        second: Shape [n].
        counts: How often each occurs, shape [tables, n]; None for once.

    Returns:
        Shape [tables]; NaN where all values of one side are equal, or fewer than 2.
    """
    signs = []
    for values in (first, second):
        ranks = scipy.stats.rankdata(values, "dense")
        signs.append(np.sign(ranks[:, None] - ranks))
    weights = np.ones((1, len(first))) if counts is None else counts

    def total(matrix: FloatArray) -> FloatArray:
        return np.asarray(np.sum(weights @ matrix * weights, axis=1))

    untied = np.sqrt(total(np.abs(signs[0])) * total(np.abs(signs[1])))
    undefined = np.full(len(weights), np.nan)
    return np.asarray(np.divide(total(signs[0] * signs[1]), untied, out=undefined, where=untied > 0))


def coefficient(value: float | None, interval: tuple[float, float] | None = None) -> str:
    """A coefficient between -1 and 1 as text, with its interval."""
    if value is None or math.isnan(value):
        return ABSENT
    # Adding 0 leaves no -0.00.
    first, *ends = (f"{round(each, 2) + 0.0:+.2f}" for each in (value, *(interval or ())))
    return f"{first} [{', '.join(ends)}]" if ends else first


def _known(first: FloatArray, second: FloatArray) -> NDArray[np.bool_]:
    return np.asarray(~(np.isnan(first) | np.isnan(second)))


@attrs.frozen
class _Tau:
    """tau-b over runs that have both values, with its p value and bootstrap."""

    value: float | None
    interval: tuple[float, float] | None
    p_value: float | None
    num_usable: int
    num_runs: int


def _tau(first: FloatArray, second: FloatArray, units: IntArray, counts: _Resampler) -> _Tau:
    known = _known(first, second)
    count = int(np.count_nonzero(known))
    first, second, units = first[known], second[known], _without_gaps(units[known])
    if not count:
        return _Tau(None, None, None, 0, 0)
    tau = scipy.stats.kendalltau(first, second).statistic if count > 1 else math.nan
    resampled = kendall_tau_b(first, second, counts(units, seeds.Stream.RESAMPLED_RUNS))
    usable = int(np.count_nonzero(~np.isnan(resampled)))
    if math.isnan(tau):
        return _Tau(None, None, None, usable, count)
    interval = _interval(resampled, _number_of(units))
    return _Tau(float(tau), interval, _p_value(first, second, units), usable, count)


def _p_value(first: FloatArray, second: FloatArray, units: IntArray) -> float | None:
    """Kendall's test of the mean ranks of the units; None where those of one side are all equal, or of one unit."""
    sizes = np.bincount(units)
    means = [np.bincount(units, scipy.stats.rankdata(values)) / sizes for values in (first, second)]
    p_value = float(scipy.stats.kendalltau(*means).pvalue) if len(sizes) > 1 else math.nan
    return None if math.isnan(p_value) else p_value


def _pair(
    first: tuple[str, FloatArray], second: tuple[str, FloatArray], units: IntArray, counts: _Resampler
) -> PairCorrelation:
    tau = _tau(first[1], second[1], units, counts)
    return PairCorrelation(first[0], second[0], tau.value, tau.interval, tau.p_value, tau.num_runs)


def _row(
    names: tuple[str, str],
    values: FloatArray,
    gap: FloatArray,
    units: IntArray,
    groups: Mapping[str, tuple[Sequence[IntArray], IntArray]],
    counts: _Resampler,
) -> MeasureCorrelation:
    known, tau = _known(values, gap), _tau(values, gap, units, counts)
    granulated, means = [], []
    for position, (setting, (members, units_of_groups)) in enumerate(groups.items()):
        # SciPy's is off -1 and 1 by rounding, where groups that all say the same must be told from others.
        taus = np.array(
            [kendall_tau_b(values[each], gap[each])[0] for each in (group[known[group]] for group in members)]
        )
        defined, of = taus[~np.isnan(taus)], _without_gaps(units_of_groups[~np.isnan(taus)])
        psi, interval = None, None
        if len(defined):
            psi = float(np.mean(defined))
            weights = counts(of, seeds.Stream.RESAMPLED_GROUPS, position)
            resampled_means, size = weights @ defined / np.sum(weights, axis=1), _number_of(of)
            means.append((psi, resampled_means, size))
            # Groups that all say the same have no spread to resample, and few of them are no certainty.
            interval = _interval(resampled_means, size) if len(set(defined)) > 1 else None
        granulated.append(Granulated(setting, psi, interval, len(defined), len(taus) - len(defined)))
    interval = None
    if any(each.interval is not None for each in granulated):
        interval = _interval(np.mean([each for _, each, _ in means], axis=0), min(size for *_, size in means))
    return MeasureCorrelation(
        *names,
        tau_b=tau.value,
        interval=tau.interval,
        p_value=tau.p_value,
        num_usable=tau.num_usable,
        num_runs=tau.num_runs,
        num_missing=len(values) - tau.num_runs,
        granulated=tuple(granulated),
        psi_mean=float(np.mean([psi for psi, *_ in means])) if means else None,
        psi_mean_interval=interval,
    )


def _interval(resampled: FloatArray, size: int) -> tuple[float, float] | None:
    """Percentiles of the defined values of enough resampled units."""
    usable = resampled[~np.isnan(resampled)]
    if size < FEWEST_RESAMPLED or 2 * len(usable) < len(resampled):
        return None
    low, high = np.quantile(usable, [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2])
    return float(low), float(high)


def _setting_names(runs: Sequence[Run]) -> tuple[str, ...]:
    """Names of the settings; refuses runs that differ in them, or are alike in all values."""
    if len(runs) < 2:
        raise SdkerasError(f"a correlation needs at least 2 runs, got {len(runs)}.")
    names = tuple(runs[0].settings)
    seen: dict[tuple[Value, ...], int] = {}
    for number, run in enumerate(runs):
        if set(run.settings) != set(names):
            other = ", ".join(sorted(set(names) ^ set(run.settings)))
            raise SdkerasError(f"run {number} differs from run 0 in which settings it has ({other}); give all to all.")
        for name, value in run.settings.items():
            if not isinstance(value, (str, int, float, type(None))) or value != value:
                kinds = "a setting is text, a number that is not NaN, or None."
                raise SdkerasError(f"run {number}: the setting {name} is {value!r}; {kinds}")
        key = tuple(run.settings[name] for name in names)
        if key in seen:
            raise SdkerasError(
                f"runs {seen[key]} and {number} have the same settings; tell them apart by a setting (seed)."
            )
        seen[key] = number
    return names


def _groups(runs: Sequence[Run], setting: str, names: Sequence[str]) -> tuple[list[IntArray], IntArray]:
    """Groups of runs that differ in nothing but one setting, as indices, and the unit that each belongs to."""
    others = [name for name in names if name != setting]
    group_of = _labels(runs, others)
    members = [np.flatnonzero(group_of == group) for group in range(group_of.max() + 1)]
    return members, _units([runs[each[0]] for each in members], others)


def _units(runs: Sequence[Run], names: Sequence[str]) -> IntArray:
    """The unit of each run: one for all that differ in the seed alone, or one each where there would be no other."""
    units = _labels(runs, [name for name in names if name != "seed"])
    return units if np.any(units) else np.arange(len(runs))


def _without_gaps(units: IntArray) -> IntArray:
    """The same units, numbered from 0 on."""
    return np.asarray(np.unique(units, return_inverse=True)[1])


def _number_of(units: IntArray) -> int:
    return int(units.max()) + 1


def _labels(runs: Sequence[Run], names: Sequence[str]) -> IntArray:
    """Numbers from 0 on, in the order of the runs: equal where these settings are."""
    seen: dict[tuple[Value, ...], int] = {}
    return np.array([seen.setdefault(tuple(run.settings[name] for name in names), len(seen)) for run in runs])


def _spread(name: str) -> tuple[str, str, str]:
    return name, f"{name}_low", f"{name}_high"


def _limits(value: float | None, interval: tuple[float, float] | None) -> tuple[float | None, ...]:
    return (value, *(interval or (None, None)))
