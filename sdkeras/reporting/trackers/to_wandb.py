"""Weights & Biases: the active run, or a new one."""

from __future__ import annotations

import os
from collections.abc import Mapping

import attrs
import wandb

from sdkeras.reporting.html import as_html
from sdkeras.reporting.report import Report
from sdkeras.reporting.trackers.histogram import histogram
from sdkeras.reporting.trackers.reporter import Setting
from sdkeras.results.answers import SpectrumSummary

_STEP = "sdkeras/step"


def begin(folder: str | os.PathLike[str] | None) -> WeightsAndBiases:
    """The active run, or a new one: project, mode and all else by wandb's environment variables."""
    active = wandb.run
    run = active or wandb.init(project=os.environ.get("WANDB_PROJECT", "sdkeras"))
    # Steps of their own: those of the run count calls of `log`, whoever makes them.
    run.define_metric(_STEP, hidden=True)
    run.define_metric("sdkeras/*", step_metric=_STEP)
    return WeightsAndBiases(run, is_own=active is None)


@attrs.frozen
class WeightsAndBiases:
    """A run of Weights & Biases."""

    run: wandb.Run
    is_own: bool

    def settings(self, values: Mapping[str, Setting]) -> None:
        self.run.config.update({"sdkeras": dict(values)}, allow_val_change=True)

    def numbers(self, numbers: Mapping[str, float], spectrum: SpectrumSummary | None, step: int) -> None:
        row: dict[str, float | wandb.Histogram] = {f"sdkeras/{name}": value for name, value in numbers.items()}
        if spectrum is not None:
            row["sdkeras/spectrum"] = wandb.Histogram(np_histogram=histogram(spectrum))
        self.run.log({**row, _STEP: step})

    def page(self, name: str, report: Report) -> None:
        self.run.log({f"sdkeras/{name}": wandb.Html(as_html(report), inject=False)})

    def close(self, *, failed: bool) -> None:
        if self.is_own:
            self.run.finish(exit_code=int(failed))
