"""How often a measurement may be made: its share of the time that training takes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator


class Spacing:
    """Two clocks, of training and of measurements, and what the next measurement is expected to take.

    Args:
        max_overhead: Seconds of measurements for one of training at most, or None for no limit.
        clock: Seconds since some moment.

    Attributes:
        training: Seconds of training until the clock last changed hands.
        spent: Seconds of measurements, compilation included.
        expected: Seconds that the next one will take: what the last one took, unless its user knows better.
    """

    def __init__(self, max_overhead: float | None, clock: Callable[[], float] = time.perf_counter) -> None:
        self.max_overhead = max_overhead
        self.clock = clock
        self.training = 0.0
        self.spent = 0.0
        self.expected = 0.0
        self._since: float | None = None

    def resume(self) -> None:
        """Training goes on."""
        self._since = self.clock()

    def pause(self) -> None:
        """Training stands still."""
        if self._since is not None:
            self.training += self.clock() - self._since
        self._since = None

    @contextlib.contextmanager
    def spending(self, *, again: bool = True) -> Iterator[None]:
        """Scope of a measurement; `again` is False for what is done once, as compilation."""
        self.pause()
        started = self.clock()
        try:
            yield
        finally:
            took = self.clock() - started
            self.spent += took
            if again:
                self.expected = took
            self.resume()

    def wait(self) -> float:
        """Seconds of training until the next measurement is within the limit; 0 if it is now."""
        allowed = self.allowed()
        if self.max_overhead is None or allowed is None:
            return 0.0
        return max(0.0, (self.expected - allowed) / self.max_overhead)

    def allowed(self) -> float | None:
        """Seconds that a measurement may take now; None for no limit, and before the first."""
        if self.max_overhead is None or self.spent == 0.0:
            return None
        going = 0.0 if self._since is None else self.clock() - self._since
        return self.max_overhead * (self.training + going) - self.spent
