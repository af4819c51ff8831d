"""The report of Lyapunov exponents along training, and their section in an analysis."""

from __future__ import annotations

import math

import attrs

from sdkeras.dimension.lyapunov import FEWEST_BLOCKS
from sdkeras.reporting import words
from sdkeras.reporting.figures import lyapunov_figures
from sdkeras.reporting.numbers import ABSENT, dimension, estimated, interval, number, with_error
from sdkeras.reporting.report import Card, Report, Row, Section, Table, present
from sdkeras.reporting.tables import frame, provenance_table, training_table, verification_table
from sdkeras.results.answers import LyapunovRun
from sdkeras.results.lyapunov import Forks, LyapunovSummary, MStepSharpness

# Exponents with rows of their own, and in a brief table; the figure has them all.
_MOST_EXPONENTS, _FEWEST_EXPONENTS = 12, 4


def lyapunov_report(run: LyapunovRun) -> Report:
    """Where training goes from a checkpoint."""
    summary, verdict = run.lyapunov, words.trajectory_in_words(run.lyapunov)
    known, remark = _attractor_dimension(summary)
    reason = f"; {summary.dimension.reason}" if summary.dimension.value is None else ""
    tables = (training_table(run), verification_table(run), provenance_table(run))
    return attrs.evolve(
        frame(run, verdict, "training step", "steps"),
        eyebrow="Where training goes from here",
        lines=present(
            verdict,
            None if summary.dimension.interval is None else f"Attractor dimension D_s {known} ({remark}{reason}).",
            f"Sharpest dimension over the same steps: {_sharpest(summary)[0]}." if summary.windows else None,
        ),
        cards=_cards(summary),
        sections=(
            trajectory_section(summary, after_verdict=True),
            Section("What they rest on", "numbers", "Numbers", tables=tables),
        ),
    )


def trajectory_section(summary: LyapunovSummary, after_verdict: bool = False) -> Section:
    """Figures and tables of a trajectory; `after_verdict`: on a page that has its verdict."""
    return Section(
        "Along training",
        "training",
        "Training",
        lede=words.attractor_in_words(summary, after_verdict),
        figures=lyapunov_figures(summary),
        tables=present(_exponents(summary), _windows(summary) if summary.windows else None),
    )


def _cards(summary: LyapunovSummary) -> tuple[Card, ...]:
    first, _, evidence = _exponent(summary, 0).partition(" ")
    apart = "per step: above 0 nearby trajectories come apart, below 0 together"
    stop = "where volumes stop growing along this training"
    asked = f"of {summary.num_steps_asked:,}, after {summary.transient:,} discarded"
    asked += "" if summary.forks is None else f", in each of {summary.forks.count} forks"
    steps = "real training steps, on copies, from the checkpoint on"
    return (
        Card("Leading exponent ell_1", first, evidence, apart),
        Card("Attractor dimension D_s", *_attractor_dimension(summary), stop),
        Card("Steps", f"{summary.num_steps:,}", asked, steps),
    )


def _exponent(summary: LyapunovSummary, position: int) -> str:
    """An exponent with its standard error, where there are enough blocks for one."""
    value = summary.values[position]
    if summary.forks is None and len(summary.history[position]) < FEWEST_BLOCKS:
        return f"{number(value, 3)} (no standard error)"
    return with_error(value, summary.stderr[position])


def _attractor_dimension(summary: LyapunovSummary) -> tuple[str, str]:
    """D_s, as far as it is known, and the size of the state."""
    answer, known = summary.dimension, "undetermined"
    if answer.value is not None:
        known = estimated(answer.value, answer.interval)
    elif answer.interval is not None:
        known = f"in {interval(answer.interval)}"
    return known, f"d = {answer.size:,}"


def _sharpest(summary: LyapunovSummary) -> tuple[str, str]:
    """The smallest dimension that is determined over the same steps, and why it may be taken."""
    if summary.sharpest is None:
        return "none is determined", ""
    return f"{summary.sharpest.name} {dimension(summary.sharpest.value)}", summary.sharpest.reason


def _exponents(summary: LyapunovSummary) -> Table:
    count, size = len(summary.values), summary.dimension.size
    resolved = count if summary.num_resolved is None else summary.num_resolved
    samples, forks, check = summary.effective_samples, summary.forks, summary.verification

    def remark(k: int) -> str:
        if k >= resolved:
            return "an upper bound, by rounding"
        if forks is not None:
            return _over_forks(forks, k)
        return "" if samples is None or not math.isfinite(samples[k]) else f"{samples[k]:.3g} effective blocks"

    weights = f"{summary.num_weights:,} weights, {size - summary.num_weights:,} of the optimizer"
    blocks = f"standard errors from {len(summary.history[0]):,} blocks of {summary.block_size:,}"
    steps = f"{summary.num_steps:,} of {summary.num_steps_asked:,}"
    if forks is not None:
        steps, blocks = f"{steps} of each of {forks.count} forks", "standard errors from ESS, the steps that count"
    volume = ("sum of all", number(summary.log_det), "mean of ln |det J|")
    stopped = f"at step {summary.stopped_at or 0:,}", "the trajectory diverged: NaN or infinity"
    jacobian = f"its Jacobian {check.finite_difference_error:.1e} against differences"
    rows = present(
        ("D_s", *_attractor_dimension(summary)),
        None if forks is None or forks.dimension_r_hat is None else _sampled_dimension(forks),
        *((f"ell_{k + 1}", _exponent(summary, k), remark(k)) for k in range(min(count, _MOST_EXPONENTS))),
        (f"ell_{count}", _exponent(summary, count - 1), f"the last of {count:,}") if count > _MOST_EXPONENTS else None,
        volume if summary.log_det is not None and count == size else None,
        ("state", f"{size:,}", weights),
        ("steps", steps, f"after {summary.transient:,}; {blocks}"),
        None if summary.stopped_at is None else ("stopped", *stopped),
        (
            "step verified" if check.passed else "step NOT verified",
            f"{check.step_error:.1e}",
            f"against the optimizer's own; {jacobian}",
        ),
    )
    first = [row[0] for row in rows].index("ell_1")
    return Table("Lyapunov exponents along training (per step)", rows, brief=first + _FEWEST_EXPONENTS)


def _over_forks(forks: Forks, k: int) -> str:
    """R-hat, effective steps and alignment of an exponent."""
    size, alignment = forks.effective_steps[k], forks.alignment
    known = present(
        f"R-hat {forks.r_hat[k]:.3f}",
        f"ESS {size:,.0f}" if math.isfinite(size) else None,
        None if alignment is None else f"alignment {number(float(alignment[k]), 2)}",
    )
    return ", ".join(known)


def _sampled_dimension(forks: Forks) -> Row:
    size, error = forks.dimension_effective_steps, number(forks.dimension_stderr, 2)
    counted = f", ESS {size:,.0f}" if size is not None and math.isfinite(size) else ""
    return "its standard error", error, f"R-hat {forks.dimension_r_hat:.3f}{counted}"


def _windows(summary: LyapunovSummary) -> Table:
    volume = with_error(summary.log_det, summary.log_det_stderr)
    rows = present(
        *map(_window, summary.windows),
        ("D_s", *_attractor_dimension(summary)),
        ("sharpest", *_sharpest(summary)),
        ("coordinates", summary.coordinates or ABSENT, "of the singular values, and of the exponents above"),
        None
        if summary.log_det is None or summary.log_det_stderr is None
        else ("mean of ln |det J|", volume, "per step"),
    )
    return Table(f"Dimensions over the same {summary.num_steps:,} steps", rows)


def _window(window: MStepSharpness) -> Row:
    if window.dimension is None:
        return window.name, "undetermined", window.reason
    count = window.num_steps // window.num_window_steps
    averaged = f"mean over {count:,} windows; {window.method}" if window.num_window_steps > 1 else "of single steps"
    return window.name, dimension(window.dimension), averaged
