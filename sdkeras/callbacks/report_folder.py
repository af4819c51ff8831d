"""The folder with the report of a training: the last measurement as an analysis, and all of them over time."""

from __future__ import annotations

import os
from pathlib import Path

from sdkeras.errors import SdkerasError
from sdkeras.reporting.html import save_html
from sdkeras.results.answers import Analysis
from sdkeras.results.log import RunLog

RUN, REPORT, TRACK = "run.json", "report.html", "track.html"


class ReportFolder:
    """run.json, report.html and track.html in a folder, which is made; each is replaced as a whole.

    Raises:
        SdkerasError: The folder cannot be made or written to.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SdkerasError(
                f"the report's folder {self.folder} cannot be made: {error.strerror or error}; choose another one."
            ) from error
        if not os.access(self.folder, os.W_OK):
            raise SdkerasError(f"the report's folder {self.folder} cannot be written to; choose another one.")

    def write(self, answer: Analysis, log: RunLog) -> None:
        """The last measurement's answer, and the log with it.

        Raises:
            SdkerasError: A file cannot be written.
        """
        answer.save(self.folder / RUN)
        save_html(answer, self.folder / REPORT)
        save_html(log, self.folder / TRACK)
