"""What trackers are sent, and that a failing one stops neither a training nor an analysis."""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Protocol, TypeAlias, TypeVar

import attrs

from sdkeras.errors import SdkerasError
from sdkeras.files.user_code import last_line
from sdkeras.reporting.build import Reported, report_of
from sdkeras.reporting.report import Report
from sdkeras.reporting.trackers.names import ADAPTERS, check_trackers
from sdkeras.results.answers import Analysis, SpectrumSummary
from sdkeras.results.document import walk
from sdkeras.results.log import Header, Measurement, RunLog, trajectory
from sdkeras.results.measured import Measured

Setting = str | int | float
_T = TypeVar("_T")
_Handler: TypeAlias = Callable[[int, FrameType | None], object]
_LOG = logging.getLogger("sdkeras")
# The leading exponent: the one entry of an array that is a number of its own.
_LAMBDA_1 = "rds_sharpness.leading.0"


class Tracker(Protocol):
    """One run of a tracker. Whatever a method raises ends the reporting to this tracker, and nothing else.

    Every name that it is given begins a group 'sdkeras', apart from the names that others report to the same run.
    """

    def settings(self, values: Mapping[str, Setting]) -> None:
        """Hyper-parameters, once."""

    def numbers(self, numbers: Mapping[str, float], spectrum: SpectrumSummary | None, step: int) -> None:
        """Finite numbers and a spectrum after this many updates of the weights."""

    def page(self, name: str, report: Report) -> None:
        """The page of a report, or its first lines where the tracker shows no pages."""

    def close(self, *, failed: bool) -> None:
        """Ends the run if it was begun here; a run that was active before goes on."""


@attrs.define
class Reporter:
    """The open trackers; one that fails is named in a warning of the logger 'sdkeras' and left out from then on."""

    _trackers: dict[str, Tracker] = attrs.field(factory=dict)
    _has_settings: bool = False

    def __bool__(self) -> bool:
        return bool(self._trackers)

    def analysis(self, run: Analysis) -> None:
        """An analysis: settings, every number by its path in run.json, spectrum and page."""
        optimizer = run.optimizer
        self._settings(
            optimizer=optimizer.name,
            learning_rate=optimizer.learning_rate,
            batch_size=run.data.batch_size,
            preset=run.provenance.preset,
            seed=run.provenance.seed,
        )
        numbers = numbers_of(run)
        self._each(lambda tracker: tracker.numbers(numbers, run.spectrum, optimizer.iterations or 0))
        self.page("report", run)

    def measurement(self, header: Header, measured: Measurement, spectrum: SpectrumSummary | None = None) -> None:
        """One measurement of a training: its numbers by the callback's keys, and the spectrum behind them."""
        self._settings(
            optimizer=header.optimizer,
            learning_rate=measured.learning_rate,
            batch_size=header.batch_size,
            preset=header.preset,
            seed=header.seed,
        )
        # What `fit` logs is told by others, at steps of their own.
        metrics = {} if measured.source == "fit" else measured.metrics
        ours = numbers_of(attrs.evolve(measured, metrics=metrics, began=None))
        numbers = {_key(path): value for path, value in ours.items()}
        self._each(lambda tracker: tracker.numbers(numbers, spectrum, measured.step))

    def log(self, log: RunLog) -> None:
        """A whole log: the measurements along its training, and the page."""
        for measured in trajectory(log):
            self.measurement(log.header, measured)
        self.page("track", log)

    def page(self, name: str, record: Reported) -> None:
        """The report of a record."""
        if self:
            report = report_of(record)
            self._each(lambda tracker: tracker.page(name, report))

    def close(self, *, failed: bool = False) -> None:
        """Ends the runs that were begun here."""
        self._each(lambda tracker: tracker.close(failed=failed))
        self._trackers.clear()

    def _settings(self, **values: Setting | None) -> None:
        known = {name: value for name, value in values.items() if value not in (None, "") and value == value}
        if not self._has_settings:
            self._has_settings = True
            self._each(lambda tracker: tracker.settings(known))

    def _each(self, act: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            failure = _attempt(functools.partial(act, tracker))
            if failure is not None:
                del self._trackers[name]
                _LOG.warning("sdkeras: nothing more is reported to %s, which failed: %s", name, last_line(failure))
                # A run left open would get what others report later.
                _attempt(functools.partial(tracker.close, failed=True))


def _attempt(act: Callable[[], _T]) -> _T | BaseException:
    """What a tracker's library returns, or else raises, be it meant to end the process (SystemExit, a cancellation).

    A Ctrl-C of the user is not the library's failure, and goes on.
    """
    with _signals() as received:
        try:
            return act()
        except BaseException as error:
            if received and not isinstance(error, Exception):
                raise
            return error


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Scope that notes the signals that arrive in it before their handlers act, which may raise KeyboardInterrupt."""
    received: list[int] = []
    handlers: dict[signal.Signals, tuple[_Handler, _Handler]] = {}

    def noting(handler: _Handler) -> _Handler:
        def note(number: int, frame: FrameType | None) -> object:
            received.append(number)
            return handler(number, frame)

        return note

    if threading.current_thread() is threading.main_thread():  # the only one that signals interrupt
        for number in (signal.SIGINT, signal.SIGTERM):
            handler = signal.getsignal(number)
            if callable(handler):
                handlers[number] = noting(handler), handler
                signal.signal(number, handlers[number][0])
    try:
        yield received
    finally:
        for number, (ours, handler) in handlers.items():
            if signal.getsignal(number) is ours:  # and the library has set none of its own
                signal.signal(number, handler)


@contextlib.contextmanager
def reporting(
    report_to: str | Sequence[str] | None, folder: str | os.PathLike[str] | None = None
) -> Iterator[Reporter]:
    """Scope of `open_reporter`; the runs that it began have failed where the scope is left by an exception."""
    reporter = open_reporter(report_to, folder)
    failed = True
    try:
        yield reporter
        failed = False
    finally:
        reporter.close(failed=failed)


def open_reporter(report_to: str | Sequence[str] | None, folder: str | os.PathLike[str] | None = None) -> Reporter:
    """A reporter to these trackers, see `check_trackers`.

    Args:
        report_to: The trackers.
        folder: Folder of TensorBoard's events, where 'tensorboard:DIR' names no other; default a new one in logs.

    Raises:
        SdkerasError: There is no such tracker, or it cannot begin a run.
    """
    trackers: dict[str, Tracker] = {}
    for each in check_trackers(report_to):
        tracker = _attempt(functools.partial(_begun, each, folder))
        if isinstance(tracker, BaseException):  # no room, no login, no server
            Reporter(trackers).close(failed=True)
            raise SdkerasError(
                f"`report_to`: {each} cannot be reported to: {last_line(tracker).rstrip('.')}."
            ) from tracker
        trackers[each] = tracker
    return Reporter(trackers)


def _begun(each: str, folder: str | os.PathLike[str] | None) -> Tracker:
    name, _, place = each.partition(":")
    tracker: Tracker = importlib.import_module(ADAPTERS[name]).begin(place or folder)
    return tracker


def numbers_of(record: Analysis | Measurement) -> dict[str, float]:
    """The finite numbers of a record by their JSON paths, with PATH/lower and PATH/upper where there is an interval.

    Entries of arrays are left out, but for lambda_1.
    """
    numbers: dict[str, float] = {}
    for path, value in walk(record):
        if isinstance(value, (bool, str)) or (path.rpartition(".")[2].isdigit() and path != _LAMBDA_1):
            continue
        reading = value if isinstance(value, Measured) else Measured(math.nan if value is None else value, True)
        numbers[path] = reading.value
        if reading.interval is not None:
            numbers[f"{path}/lower"], numbers[f"{path}/upper"] = reading.interval
    return {path: float(value) for path, value in numbers.items() if math.isfinite(value)}


def _key(path: str) -> str:
    """The callback's key in place of the path of its number: sharpness for values.sharpness.value."""
    if not path.startswith("values."):
        return path
    head, _, tail = path.removeprefix("values.").partition("/")
    return head.removesuffix(".value") + (f"/{tail}" if tail else "")
