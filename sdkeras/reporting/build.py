"""The report of any record that has one."""

from __future__ import annotations

from typing import TypeAlias

from sdkeras.reporting.build_analysis import analysis_report
from sdkeras.reporting.build_critical import critical_report
from sdkeras.reporting.build_landscape import landscape_report
from sdkeras.reporting.build_lyapunov import lyapunov_report
from sdkeras.reporting.build_track import track_report
from sdkeras.reporting.comparison import Comparison, Quantity, comparison_report
from sdkeras.reporting.numbers import headline, number
from sdkeras.reporting.report import Report, Section, present, printable
from sdkeras.reporting.tables import plan_table
from sdkeras.reporting.words import is_limited
from sdkeras.results.answers import Analysis, CriticalRun, LandscapeRun, LyapunovRun, Run
from sdkeras.results.document import walk
from sdkeras.results.log import RunLog
from sdkeras.results.plans import LossPlan, LyapunovPlan, Plan

Reported: TypeAlias = Report | Run | Comparison | RunLog | Plan | LyapunovPlan | LossPlan


def report_of(record: Reported) -> Report:
    """The record as a report; a report as it is."""
    if isinstance(record, Report):
        return record
    if isinstance(record, Analysis):
        return analysis_report(record)
    if isinstance(record, LyapunovRun):
        return lyapunov_report(record)
    if isinstance(record, CriticalRun):
        return critical_report(record)
    if isinstance(record, LandscapeRun):
        return landscape_report(record)
    if isinstance(record, (Plan, LyapunovPlan, LossPlan)):
        return _plan_report(record)
    return comparison_report(record) if isinstance(record, Comparison) else track_report(record)


def _plan_report(plan: Plan | LyapunovPlan | LossPlan) -> Report:
    least = "at least" if isinstance(plan, Plan) and plan.most != plan.num_hvps else "about"
    work = f"{plan.num_hvps:,} Hessian-vector products"
    if isinstance(plan, LossPlan):
        work = f"{plan.num_evaluations:,} losses"
    words = (
        f"{plan.num_parameters:,} parameters: {least} {work} in {plan.seconds:.3g} s, {plan.peak_memory / 1e9:.2f} GB"
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
    if isinstance(record, CriticalRun) and record.critical.ratio is not None:
        words.append(f"ratio {number(record.critical.ratio.value, 3)}")
    return printable(f"<{type(record).__name__} {report.name}: {'; '.join(words)}>")
