"""`sdkeras watch`: the page of a training, drawn again as its log grows; a file that reloads itself, no server."""

from __future__ import annotations

import contextlib
import math
import os
import time
from pathlib import Path

import attrs
import click

from sdkeras.errors import SdkerasError, counted
from sdkeras.files.atomic import holder_of, shown
from sdkeras.reporting.numbers import estimated, number
from sdkeras.results import log as run_log
from sdkeras.results.log import Measurement, RunLog
from sdkeras_cli import options
from sdkeras_cli.interrupts import INTERRUPTED
from sdkeras_cli.options import POSITIVE
from sdkeras_cli.output import check_outputs, say

_PAGE = "watch.html"  # not track.html, which the callback writes itself


@options.command("sdkeras watch run")
@click.argument("folder", type=options.PATH, metavar="RUN_DIR")
@options.option("--html", "html_path", type=click.Path(), metavar="FILE", help="The page; default: RUN_DIR/watch.html.")
@options.option(
    "--interval", type=POSITIVE, default=2.0, show_default=True, metavar="SECONDS", help="Time between two looks."
)
@options.option(
    "--timeout", type=POSITIVE, metavar="SECONDS", help="Give up if nothing has been measured after this time."
)
@options.quiet
@options.debug
def command(folder: str, html_path: str | None, interval: float, timeout: float | None, quiet: bool) -> int:
    """Follow the training that writes its log to RUN_DIR: a line for each measurement, and a page that is kept up.

    The log is that of sdkeras.callbacks.SharpnessDimension(..., log_dir=RUN_DIR) or of sdkeras track --out RUN_DIR. The
    page is that of sdkeras track; open it in a browser, which loads it again as it changes. Ends with the training, or
    by Ctrl-C.
    """
    place = Path(folder) / run_log.FILE_NAME
    page = os.path.join(folder, _PAGE) if html_path is None else html_path
    _check(place, page)
    watcher = _Watcher(place, page, interval, quiet)
    try:
        watcher.wait(timeout)
        watcher.follow()
        return 0
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        watcher.draw(reload=None)  # the last page rests


def _check(place: Path, page: str) -> None:
    """Refuses a file in the place of the folder, and a page that cannot be written."""
    folder = place.parent
    for each in (folder, *folder.parents):  # what a training may be yet to make is below a folder
        if each.exists() and not each.is_dir():
            raise SdkerasError(f"{shown(each)} is a file; give the folder of the log, or use sdkeras track.")
    if Path(page) != folder / _PAGE or folder.exists():  # the training may be yet to make its folder
        check_outputs([page], [str(place)])


@attrs.define
class _Watcher:
    """A log that is followed, and the page of what has been read of it."""

    place: Path
    page: str
    interval: float
    quiet: bool
    log: RunLog | None = None
    seen: tuple[int, int] = (0, 0)  # the log's size, and when it was written, at the last look

    def wait(self, timeout: float | None) -> None:
        """Waits for the first measurement.

        Raises:
            SdkerasError: There is none in time.
        """
        started, has_said = time.monotonic(), False
        while not run_log.has_lines(self.place):
            left = math.inf if timeout is None else started + timeout - time.monotonic()
            if left <= 0:
                raise SdkerasError(f"nothing was measured in {timeout:g} s: {self._missing()}.")
            if not has_said:
                has_said = True
                self._say(f"waiting for a measurement: {self._missing()}")
            time.sleep(min(self.interval, left))

    def follow(self) -> None:
        """Reads, tells and draws whatever is new, until nobody writes the log any more."""
        while True:
            writer = holder_of(self.place)  # before the log is read, so that its last line is not missed
            if self._has_changed():
                self._tell(run_log.read_run_log(self.place))
                if writer is not None:
                    self.draw(reload=max(1, round(self.interval)))
            if writer is None:
                self._say(f"no training writes {shown(self.place)} any more; the page is {shown(self.page)}")
                return
            time.sleep(self.interval)

    def draw(self, *, reload: int | None) -> None:
        """The page of what was read, which loads itself again after so many seconds."""
        if self.log is not None:
            from sdkeras.reporting.build import report_of
            from sdkeras.reporting.html import save_html

            save_html(attrs.evolve(report_of(self.log), reload=reload), self.page)

    def _has_changed(self) -> bool:
        before = self.seen
        with contextlib.suppress(FileNotFoundError):  # which its reader tells better
            status = os.stat(self.place)
            self.seen = status.st_size, status.st_mtime_ns
            return self.seen != before
        return True

    def _tell(self, log: RunLog) -> None:
        """A line for each measurement since the last look; at the first look for the last one."""
        before = None if self.log is None else len(self.log.measurements)
        new = log.measurements[-1:] if before is None else log.measurements[before:]
        if before is None:
            count = counted(len(log.measurements), "measurement")
            self._say(f"{log.header.model}: {count} so far; the page is {shown(self.page)}")
        self.log = log
        for measurement in new:
            self._say(_line(measurement))

    def _missing(self) -> str:
        if not self.place.parent.is_dir():
            return f"there is no folder {shown(self.place.parent)} yet"
        return f"{shown(self.place)} {'holds no line' if self.place.exists() else 'does not exist'} yet"

    def _say(self, message: str) -> None:
        if not self.quiet:
            say(message)


def _line(measurement: Measurement) -> str:
    """A measurement in a line: where it is, and its numbers by their keys."""
    epoch = "" if measurement.epoch is None else f", epoch {measurement.epoch:,}"
    source = "" if measurement.source == "fit" else f" ({shown(measurement.source)})"
    words = [
        f"{key} {number(each.value) if each.interval is None else estimated(each.value, each.interval)}"
        for key, each in measurement.values.items()
        if each.value == each.value
    ]
    reason = "; ".join(measurement.notes) or "no number"
    return f"step {measurement.step:,}{epoch}{source}: {', '.join(words) or reason}"
