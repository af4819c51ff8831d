"""Trackers that keep what they are sent, in place of Weights & Biases and MLflow."""

import sys
from collections.abc import Mapping

import attrs
import pytest

from sdkeras.reporting.report import Report
from sdkeras.reporting.trackers import names
from sdkeras.results.answers import SpectrumSummary


@attrs.define
class Kept:
    """A tracker that keeps what it is sent, until it breaks."""

    breaks: bool = False
    settings_of: dict[str, object] = attrs.field(factory=dict)
    rows: list[tuple[int, dict[str, float], SpectrumSummary | None]] = attrs.field(factory=list)
    pages: dict[str, Report] = attrs.field(factory=dict)
    ended: list[bool] = attrs.field(factory=list)

    def settings(self, values: Mapping[str, object]) -> None:
        self.settings_of |= values

    def numbers(self, numbers: Mapping[str, float], spectrum: SpectrumSummary | None, step: int) -> None:
        if self.breaks and self.rows:
            raise ConnectionError("the server\nis gone")
        self.rows.append((step, dict(numbers), spectrum))

    def page(self, name: str, report: Report) -> None:
        if self.breaks:
            raise ConnectionError("the server\nis gone")
        self.pages[name] = report

    def close(self, *, failed: bool) -> None:
        self.ended.append(failed)


def stand_ins(monkeypatch: pytest.MonkeyPatch) -> dict[str, Kept]:
    """Stand-ins for both; 'mlflow' breaks at its second row and at a page."""
    trackers = {"wandb": Kept(), "mlflow": Kept(breaks=True)}
    for name, tracker in trackers.items():
        module = type(sys)(f"stand_in_{name}")
        setattr(module, "begin", lambda folder, tracker=tracker: tracker)  # noqa: B010
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(names.ADAPTERS, name, module.__name__)
    monkeypatch.setattr(names, "_is_installed", lambda name: True)
    return trackers
