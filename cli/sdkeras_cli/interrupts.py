"""Ctrl-C and SIGTERM at any moment: one message, exit status 130.

While a command works, the first one is a KeyboardInterrupt, so that what was measured is kept, and the second ends the
process. Before and after, and while libraries are imported, already the first ends it: a KeyboardInterrupt that
arrives inside an import or the shutdown of the interpreter may be printed, turned into another error, or lost.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

INTERRUPTED = 130
_MESSAGE = b"sdkeras: interrupted.\n"
_SHOW_CURSOR = b"\x1b[?25h"


class _State:
    """The present effect of a signal."""

    installed = False
    ends = True  # or raises
    raised = False
    said = False
    stderr = 2


def install() -> None:
    """Takes over both signals in a process of our own, unless it was started to ignore them (nohup)."""
    if _State.installed:
        return
    _State.installed = True
    with contextlib.suppress(OSError):  # closed
        _State.stderr = os.dup(2)  # which is silenced while TensorFlow is imported
    with contextlib.suppress(ValueError):  # not the main thread: somebody else's program
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, _handle)


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Scope of a command's work: the first signal is a KeyboardInterrupt."""
    with _ending(False):
        yield


@contextlib.contextmanager
def ending() -> Iterator[None]:
    """Scope of imports inside the work: the first signal ends the process."""
    with _ending(True):
        yield


@contextlib.contextmanager
def _ending(value: bool) -> Iterator[None]:
    before, _State.ends = _State.ends, value
    try:
        yield
    finally:
        _State.ends = before


def was_raised() -> bool:
    """Whether a signal has come as a KeyboardInterrupt, whatever has become of it."""
    return _State.raised


def said() -> None:
    """The message has been written; a later signal needs none."""
    _State.said = True


def _handle(*_: object) -> None:
    if not _State.ends and not _State.raised:
        _State.raised = True
        raise KeyboardInterrupt
    with contextlib.suppress(OSError):
        if os.isatty(_State.stderr):
            os.write(_State.stderr, _SHOW_CURSOR)  # a progress line hides it
        if not _State.said:
            os.write(_State.stderr, _MESSAGE)
    os._exit(INTERRUPTED)
