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


class State:
    """The present effect of a signal."""

    installed = False
    ends = True  # the process, or raises
    raised = False  # as a KeyboardInterrupt, whatever has become of it
    said = False  # the message, which a later signal need not repeat
    stderr = 2


def install() -> None:
    """Takes over both signals in a process of our own, unless it was started to ignore them (nohup)."""
    if State.installed:
        return
    State.installed = True
    with contextlib.suppress(OSError):  # closed
        State.stderr = os.dup(2)  # which is silenced while TensorFlow is imported
    with contextlib.suppress(ValueError):  # not the main thread: somebody else's program
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, _handle)


@contextlib.contextmanager
def signals(*, end: bool) -> Iterator[None]:
    """Scope of imports, in which a signal ends the process; or of a command's work, in which the first one raises."""
    before, State.ends = State.ends, end
    try:
        yield
    finally:
        State.ends = before


def _handle(*_: object) -> None:
    if not State.ends and not State.raised:
        State.raised = True
        raise KeyboardInterrupt
    with contextlib.suppress(OSError):
        if os.isatty(State.stderr):
            os.write(State.stderr, _SHOW_CURSOR)  # a progress line hides it
        if not State.said:
            os.write(State.stderr, _MESSAGE)
    os._exit(INTERRUPTED)
