"""MLflow: the active run, or a new one where its tracking URI points to."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping

import attrs
import mlflow

from sdkeras.reporting.data_tables import as_csv
from sdkeras.reporting.html import as_html
from sdkeras.reporting.report import Report
from sdkeras.reporting.trackers.reporter import Setting
from sdkeras.results.answers import SpectrumSummary


def begin(folder: str | os.PathLike[str] | None) -> MLflow:
    """The active run, or a new one: tracking URI and experiment by MLflow's environment variables."""
    active = mlflow.active_run()
    return MLflow((active or mlflow.start_run()).info.run_id, is_own=active is None)


@attrs.frozen
class MLflow:
    """A run of MLflow. It has no histograms: nodes and weights of a spectrum are a table among the artifacts."""

    run_id: str
    is_own: bool

    def settings(self, values: Mapping[str, Setting]) -> None:
        # A run keeps its first value of each, and refuses another one.
        with contextlib.suppress(mlflow.MlflowException):
            mlflow.log_params({f"sdkeras/{name}": value for name, value in values.items()}, run_id=self.run_id)

    def numbers(self, numbers: Mapping[str, float], spectrum: SpectrumSummary | None, step: int) -> None:
        # A slash is a folder in its stores of files, and no name is both a file and a folder.
        named = {f"sdkeras/{name.replace('/', '.')}": value for name, value in numbers.items()}
        mlflow.log_metrics(named, step=step, run_id=self.run_id)
        if spectrum is not None:
            rows = [("eigenvalue", "mass"), *zip(spectrum.nodes.tolist(), spectrum.weights.tolist(), strict=True)]
            mlflow.log_text(as_csv(rows), f"sdkeras/spectrum/step-{step:08d}.csv", run_id=self.run_id)

    def page(self, name: str, report: Report) -> None:
        mlflow.log_text(as_html(report), f"sdkeras/{name}.html", run_id=self.run_id)

    def close(self, *, failed: bool) -> None:
        if self.is_own:
            mlflow.end_run("FAILED" if failed else "FINISHED")
