"""How often a measurement may be made: its share of the time that training takes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import attrs


@attrs.define(eq=False)
class Spacing:
    """Two clocks, of training and of measurements, and what the next measurement is expected to take.

    Attributes:
        max_overhead: Maximum seconds of measurement per second of training, or None for no limit.
        clock: Seconds since some moment.
        training: Seconds of training until the clock last changed hands.
        spent: Seconds of measurements; compilation counts only if it failed.
        expected: Seconds that the next one will take: what the last one took, unless its user knows better.
    """

    max_overhead: float | None
    clock: Callable[[], float] = time.perf_counter
    training: float = 0.0
    spent: float = 0.0
    expected: float = 0.0
    _since: float | None = None

    def resume(self) -> None:
        """Resumes the clock of training."""
        self._since = self.clock()

    def pause(self) -> None:
        """Stops the clock of training."""
        if self._since is not None:
            self.training += self.clock() - self._since
        self._since = None

    @contextlib.contextmanager
    def spending(self, *, more: bool = False, compiling: bool = False) -> Iterator[None]:
        """Scope of a measurement, or of `more` that belongs to the one just made.

        What is done once, `compiling`, is no overhead of the measurements unless it fails and is tried again.
        """
        self.pause()
        started, failed = self.clock(), True
        try:
            yield
            failed = False
        finally:
            if failed or not compiling:
                took = self.clock() - started
                self.expected = took + (self.expected if more else 0.0)
                self.spent += took
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


@attrs.define
class Plan:
    """A number of measurements, spread evenly over each training from its first opportunity to its end."""

    count: int
    num_made: int = 0
    first: float = 0.0  # the part of the training that is done at its first opportunity

    def begin(self) -> None:
        """Starts the plan of a training."""
        self.num_made, self.first = 0, 0.0

    def due(self, progress: float | None) -> bool:
        """Whether to measure with this part of the training done, up to 1; None where its length is not known yet."""
        if self.num_made >= self.count:
            return False
        if progress is None:
            return self.num_made == 0 and self.count > 1
        if self.count == 1:
            return progress >= 1.0
        if self.num_made == 0:
            self.first = progress
        # Rounding of a quotient must not put the end of an epoch before it.
        return progress >= self.first + self.num_made * (1.0 - self.first) / (self.count - 1) - 1e-9
