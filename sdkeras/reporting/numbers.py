"""Numbers as people read them: as many digits as their uncertainty allows.

One notation in all reports: `1.86 ± 0.02` is a value with one standard error, `24.4 [23.2, 25.6]` one with a 95 %
interval; the residual of an eigenvalue stands beside it by that name.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from sdkeras.dimension.estimate import FEWEST_RUNS_FOR_AN_INTERVAL
from sdkeras.dimension.exponents import FULL
from sdkeras.errors import counted
from sdkeras.results.answers import OptimizerInfo, Run
from sdkeras.results.dimension import SharpnessDimension
from sdkeras.results.measured import Measured
from sdkeras.results.plans import LossPlan, LyapunovPlan, Plan

ABSENT = "-"
# From here on no digits are printed that a float does not hold.
_HUGE = 1e15


def number(value: float | None, digits: int = 4) -> str:
    """A number with a few significant digits, or a dash."""
    if value is None or math.isnan(value):
        return ABSENT
    if math.isinf(value):
        return f"{value}"
    if value == int(value) and abs(value) < _HUGE:
        return f"{int(value):,}"
    if 1e3 <= abs(value) < 1e9:
        return f"{value:,.{max(0, digits - math.floor(math.log10(abs(value))) - 1)}f}"
    return f"{value:.{digits}g}"


def dimension(value: float | None, half_width: float | None = None) -> str:
    """A dimension, rounded at the second digit of its uncertainty (a tenth without one)."""
    if value is None or math.isnan(value) or abs(value) >= _HUGE:
        return number(value)
    decimals = 1
    if half_width is not None and 0 < half_width < math.inf:
        decimals = min(4, max(0, 1 - math.floor(math.log10(half_width))))
    return f"{value:,.{decimals}f}"


def interval(value: tuple[float, float] | None) -> str:
    """[low, high], rounded at the second digit of the half-width."""
    if value is None:
        return ABSENT
    half = 0.5 * (value[1] - value[0])
    return f"[{dimension(value[0], half)}, {dimension(value[1], half)}]"


def estimated(value: float, span: tuple[float, float] | None) -> str:
    """The value with its interval, or alone where there is none."""
    if span is None:
        return f"{dimension(value)} (no interval)"
    half = 0.5 * (span[1] - span[0])
    return f"{dimension(value, half)} {interval(span)}"


def share_of_state(estimate: SharpnessDimension) -> str:
    """The codimension as a share of the state: "0.7 %"."""
    if not estimate.state_size:
        return ABSENT
    share = 100 * estimate.codimension / estimate.state_size
    return f"{share:.0f} %" if share >= 10 else f"{share:.2g} %"


def root_ratio(value: float, num_samples: int) -> float | None:
    """sqrt(SD/n), what the bounds grow with."""
    return math.sqrt(value / num_samples) if 0 <= value < math.inf and num_samples > 0 else None


def measured(value: Measured | None) -> tuple[str, str]:
    """A measured number, with its standard error where it has one, and its other evidence."""
    if value is None:
        return ABSENT, ""
    evidence = "" if value.residual is None else f"residual {value.residual:.1e}"
    return with_error(value.value, value.stderr), ", ".join(
        filter(None, (evidence, *([] if value.converged else ["not converged"])))
    )


def rate_in_words(optimizer: OptimizerInfo) -> str:
    """The learning rate and where it came from."""
    if math.isnan(optimizer.learning_rate):
        parts = ", ".join(f"{each.name} {number(each.learning_rate)}" for each in optimizer.parts)
        return f"learning rates {parts} ({optimizer.learning_rate_source})" if parts else "learning rate unknown"
    return f"learning rate {optimizer.learning_rate:.4g} ({rate_source_in_words(optimizer.learning_rate_source)})"


def rate_source_in_words(source: str) -> str:
    """'file' and 'given' as they are; 'peak', 'mean' and 'step:N' with what they are of."""
    return source if source in ("file", "given") else f"{source.replace(':', ' ')} of its schedule"


def batch_size_in_words(size: int, source: str, micro_batch: int | None = None) -> str:
    """The batch size, whether it was assumed, and in which parts batches were computed."""
    words = f"batch size {size:,}" + (" assumed" if source == "assumed" else "")
    return words if micro_batch is None or micro_batch >= size else f"{words}, in parts of {micro_batch:,}"


def taken_for_granted(run: Run | Plan | LyapunovPlan | LossPlan) -> str:
    """Settings that were not read from the model and its data: a learning rate given, a batch size assumed."""
    optimizer, data = run.optimizer, run.data
    words = []
    if optimizer is not None and optimizer.learning_rate_source != "file" and not optimizer.learning_rate_missing:
        words.append(rate_in_words(optimizer))
    if data is not None and data.batch_size_source == "assumed":
        words.append(batch_size_in_words(data.batch_size, data.batch_size_source))
    text = ", ".join(words)
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def undetermined(num_runs: int, limited: bool, noun: str = "run") -> str:
    """Why a dimension has no interval: "1 run within the limit; 3 are needed"."""
    runs = "no " + noun if not num_runs else counted(num_runs, noun)
    return f"{runs}{' within the limit' if limited else ''}; {FEWEST_RUNS_FOR_AN_INTERVAL} are needed"


def headline(estimate: SharpnessDimension, limited: bool = False) -> str:
    """The dimension in one line, without its value where it has no interval; `limited`: whether a limit ended runs."""
    if estimate.interval is None:
        return f"Sharpness dimension not determined ({undetermined(estimate.num_runs, limited)})"
    return (
        f"Sharpness dimension {estimated(estimate.value, estimate.interval)} of {estimate.state_size:,}; "
        f"codimension {estimated(estimate.codimension, estimate.codimension_interval)} ({share_of_state(estimate)})"
        + (f" (map full, {estimate.coordinates})" if estimate.map == FULL else "")
    )


def bar_lengths(values: Sequence[float | None]) -> tuple[float, ...]:
    """Lengths of bars as shares of the longest; 0 for what is absent, negative or not finite."""
    known = [value if value is not None and 0 < value < math.inf else 0.0 for value in values]
    longest = max(known, default=0.0)
    return tuple(value / longest if longest else 0.0 for value in known)


def with_error(value: float | None, error: float | None) -> str:
    """The number with its standard error, rounded at the second digit of that; alone where there is none."""
    if value is None or error is None or not (math.isfinite(value) and 0 < error < math.inf):
        return number(value)
    if max(abs(value), error) >= _HUGE:
        return f"{number(value)} ± {number(error, 2)}"
    return f"{_rounded(value, error)} ± {_rounded(error, error)}"


def with_interval(value: float, half_width: float | None) -> str:
    """The number with the 95 % interval of this half-width around it, as `with_error`."""
    if half_width is None or not (math.isfinite(value) and 0 < half_width < math.inf):
        return number(value)
    if max(abs(value), half_width) >= _HUGE:
        return f"{number(value)} [{number(value - half_width)}, {number(value + half_width)}]"
    low, high = (_rounded(end, half_width) for end in (value - half_width, value + half_width))
    return f"{_rounded(value, half_width)} [{low}, {high}]"


def with_span(value: float, span: tuple[float, float] | None) -> str:
    """The number with an interval that need not be even, rounded at the second digit of its half-width."""
    half = 0.0 if span is None else 0.5 * (span[1] - span[0])
    if span is None or not (math.isfinite(value) and 0 < half < math.inf):
        return number(value)
    if max(abs(value), *map(abs, span)) >= _HUGE:
        return f"{number(value)} [{number(span[0])}, {number(span[1])}]"
    return f"{_rounded(value, half)} [{_rounded(span[0], half)}, {_rounded(span[1], half)}]"


def _rounded(value: float, error: float) -> str:
    """The value to the second digit of its error."""
    decimals = 1 - math.floor(math.log10(error))
    if decimals > 6:
        digits = max(1, decimals + 1 + math.floor(math.log10(abs(value)))) if value else 1
        return f"{value:.{min(digits, 17)}g}"
    return f"{round(value, decimals) + 0.0:,.{max(decimals, 0)}f}"
