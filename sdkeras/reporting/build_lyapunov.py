"""The report of Lyapunov exponents along training, and their section in an analysis."""

from __future__ import annotations

import math

from sdkeras.reporting import words
from sdkeras.reporting.lyapunov_figures import lyapunov_figures
from sdkeras.reporting.numbers import ABSENT, dimension, estimated, interval, number, taken_for_granted
from sdkeras.reporting.report import Card, Report, Section, Table, split
from sdkeras.reporting.tables import footer, provenance_table, setting_in_words, training_table, verification_table
from sdkeras.results.answers import LyapunovRun
from sdkeras.results.lyapunov import LyapunovSummary

# Exponents with rows of their own; the figure has them all.
_MOST_EXPONENTS = 12


def lyapunov_report(run: LyapunovRun) -> Report:
    """Where training goes from a checkpoint."""
    summary = run.lyapunov
    verdict = words.trajectory_in_words(summary)
    lines = [verdict]
    if summary.dimension.interval is not None:
        value, remark = _attractor_dimension(summary)
        lines.append(f"Attractor dimension D_s {value} ({remark}).")
    if summary.windows:
        lines.append(f"Sharpest dimension over the same steps: {_sharpest(summary)[0]}.")
    alarms = []
    if not (run.verification.passed and summary.verification.passed):
        alarms.append("UNVERIFIED: the training step failed its check; do not trust these numbers.")
    if run.partial:
        alarms.append("Interrupted: only the steps so far are in these numbers.")
    headline, detail = split(verdict)
    return Report(
        name=run.model.name,
        about=setting_in_words(run),
        eyebrow="Where training goes from here",
        headline=headline,
        detail=detail,
        lines=tuple(lines),
        assumed=taken_for_granted(run),
        alarms=tuple(alarms),
        cards=_cards(summary),
        notes=run.warnings,
        sections=(
            trajectory_section(summary),
            Section(
                "What they rest on",
                "numbers",
                "Numbers",
                tables=(training_table(run), verification_table(run), provenance_table(run)),
            ),
        ),
        footer=footer(run),
    )


def trajectory_section(summary: LyapunovSummary) -> Section:
    """Figures and tables of a trajectory."""
    return Section(
        "Along training",
        "training",
        "Training",
        lede=words.attractor_in_words(summary),
        figures=lyapunov_figures(summary),
        tables=(_exponents(summary), *([_windows(summary)] if summary.windows else [])),
    )


def _cards(summary: LyapunovSummary) -> tuple[Card, ...]:
    first, _, evidence = _exponent(summary, 0).partition(" ")
    return (
        Card(
            "Leading exponent ell_1",
            first,
            evidence,
            "per step: above 0 nearby trajectories come apart, below 0 together",
        ),
        Card(
            "Attractor dimension D_s",
            *_attractor_dimension(summary),
            "where volumes stop growing along this training",
        ),
        Card(
            "Steps",
            f"{summary.num_steps:,}",
            f"of {summary.num_steps_asked:,}, after {summary.transient:,} discarded",
            "real training steps, on copies, from the checkpoint on",
        ),
    )


def _exponent(summary: LyapunovSummary, position: int) -> str:
    """An exponent with its standard error, where there are enough blocks for one."""
    value = number(summary.values[position], 3)
    if len(summary.history[position]) < 2:
        return f"{value} (no standard error)"
    return f"{value} ± {summary.stderr[position]:.2g}"


def _attractor_dimension(summary: LyapunovSummary) -> tuple[str, str]:
    """D_s, as far as it is known, and why it is not known better."""
    answer = summary.dimension
    if answer.value is not None:
        return estimated(answer.value, answer.interval), f"d = {answer.size:,}"
    if answer.interval is not None:
        return f"in {interval(answer.interval)}", f"d = {answer.size:,}; {answer.reason}"
    return "undetermined", answer.reason


def _sharpest(summary: LyapunovSummary) -> tuple[str, str]:
    """The smallest dimension that is determined over the same steps, and why it may be taken."""
    if summary.sharpest is None:
        return "none is determined", ""
    return f"{summary.sharpest.name} {dimension(summary.sharpest.value)}", summary.sharpest.reason


def _effective(summary: LyapunovSummary, k: int) -> str:
    samples = summary.effective_samples
    return "" if samples is None or not math.isfinite(samples[k]) else f"{samples[k]:.3g} effective blocks"


def _exponents(summary: LyapunovSummary) -> Table:
    count, size = len(summary.values), summary.dimension.size
    resolved = count if summary.num_resolved is None else summary.num_resolved
    rows = [
        (
            f"ell_{k + 1}",
            _exponent(summary, k),
            _effective(summary, k) if k < resolved else "an upper bound, by rounding",
        )
        for k in range(min(count, _MOST_EXPONENTS))
    ]
    if count > _MOST_EXPONENTS:
        rows.append((f"ell_{count}", _exponent(summary, count - 1), f"the last of {count:,}"))
    rows.append(("D_s", *_attractor_dimension(summary)))
    if summary.log_det is not None and count == size:
        rows.append(("sum of all", number(summary.log_det), "mean of ln |det J|"))
    slots = size - summary.num_weights
    blocks = f"{len(summary.history[0]):,} blocks of {summary.block_size:,}"
    rows += [
        ("state", f"{size:,}", f"{summary.num_weights:,} weights, {slots:,} of the optimizer"),
        (
            "steps",
            f"{summary.num_steps:,} of {summary.num_steps_asked:,}",
            f"after {summary.transient:,}; standard errors from {blocks}",
        ),
    ]
    if summary.stopped_at is not None:
        rows.append(("stopped", f"at step {summary.stopped_at:,}", "the trajectory diverged: NaN or infinity"))
    check = summary.verification
    jacobian = f"its Jacobian {check.finite_difference_error:.1e} against differences"
    rows.append(
        (
            "step verified" if check.passed else "step NOT verified",
            f"{check.step_error:.1e}",
            f"against the optimizer's own; {jacobian}",
        )
    )
    return Table("Lyapunov exponents along training (per step)", tuple(rows))


def _windows(summary: LyapunovSummary) -> Table:
    rows = []
    for window in summary.windows:
        count = window.num_steps // window.num_window_steps
        averaged = f"mean over {count:,} windows; {window.method}" if window.num_window_steps > 1 else "of single steps"
        known = window.dimension is not None
        value = dimension(window.dimension) if known else "undetermined"
        rows.append((window.name, value, averaged if known else window.reason))
    rows += [
        ("D_s", *_attractor_dimension(summary)),
        ("sharpest", *_sharpest(summary)),
        ("coordinates", summary.coordinates or ABSENT, "of the singular values, and of the exponents above"),
    ]
    if summary.log_det is not None and summary.log_det_stderr is not None:
        volume = f"{number(summary.log_det)} ± {summary.log_det_stderr:.2g}"
        rows.append(("mean of ln |det J|", volume, "per step"))
    return Table(f"Dimensions over the same {summary.num_steps:,} steps", tuple(rows))
