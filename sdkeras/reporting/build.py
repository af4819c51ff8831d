"""The report of any record that has one."""

from __future__ import annotations

from typing import TypeAlias

from sdkeras.reporting.build_analysis import analysis_report
from sdkeras.reporting.build_lyapunov import lyapunov_report
from sdkeras.reporting.build_track import track_report
from sdkeras.reporting.comparison import Comparison, Quantity, comparison_report
from sdkeras.reporting.numbers import headline, number
from sdkeras.reporting.report import Report, Section, present, printable
from sdkeras.reporting.tables import plan_table
from sdkeras.reporting.words import is_limited
from sdkeras.results.answers import Analysis, LyapunovRun
from sdkeras.results.document import walk
from sdkeras.results.log import RunLog
from sdkeras.results.plans import LyapunovPlan, Plan

Reported: TypeAlias = Report | Analysis | LyapunovRun | Comparison | RunLog | Plan | LyapunovPlan


def report_of(record: Reported) -> Report:
    """The record as a report; a report as it is."""
    if isinstance(record, Report):
        return record
    if isinstance(record, Analysis):
        return analysis_report(record)
    if isinstance(record, LyapunovRun):
        return lyapunov_report(record)
    if isinstance(record, (Plan, LyapunovPlan)):
        return _plan_report(record)
    return comparison_report(record) if isinstance(record, Comparison) else track_report(record)


def _plan_report(plan: Plan | LyapunovPlan) -> Report:
    least = "at least" if isinstance(plan, Plan) and plan.most != plan.num_hvps else "about"
    words = (
        f"{plan.num_parameters:,} parameters: {least} {plan.num_hvps:,} Hessian-vector products "
        f"in {plan.seconds:.3g} s, {plan.peak_memory / 1e9:.2f} GB"
    )
    return Report("Plan", words, (f"{words}.",), (Section("Cost", "cost", tables=(plan_table(plan),)),))


def in_one_line(record: object, report: Report) -> str:
    """A record and its answer in one line, as a console shows it: alarms, the verdict in brief, the dimension."""
    words = [*(alarm.partition(":")[0].rstrip(".") for alarm in report.alarms), report.headline.rstrip(".")]
    if isinstance(record, Analysis):
        ratio, estimate = record.edge_of_stability.ratio, record.sharpness_dimension
        words += present(
            None if ratio is None else f"ratio {number(ratio, 3)}",
            None if estimate is None else headline(estimate, is_limited(record)),
        )
    if isinstance(record, LyapunovRun):
        answer = record.lyapunov.dimension
        words.append(f"D_s {Quantity.of(dict(walk(answer))['value'])} of {answer.size:,}")
    return printable(f"<{type(record).__name__} {report.name}: {'; '.join(words)}>")
