"""The report of any record that has one."""

from __future__ import annotations

from typing import TypeAlias

from sdkeras.reporting.build_analysis import analysis_report
from sdkeras.reporting.build_lyapunov import lyapunov_report
from sdkeras.reporting.build_track import track_report
from sdkeras.reporting.comparison import Comparison, comparison_report
from sdkeras.reporting.report import Report
from sdkeras.results.answers import Analysis, LyapunovRun
from sdkeras.results.log import RunLog

Reported: TypeAlias = Report | Analysis | LyapunovRun | Comparison | RunLog


def report_of(record: Reported) -> Report:
    """The record as a report; a report as it is."""
    if isinstance(record, Report):
        return record
    if isinstance(record, Analysis):
        return analysis_report(record)
    if isinstance(record, LyapunovRun):
        return lyapunov_report(record)
    return comparison_report(record) if isinstance(record, Comparison) else track_report(record)
