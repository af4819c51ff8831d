"""Where a running analysis is, and what ended it."""

from __future__ import annotations

import math

import attrs

PRODUCTS, TIME, INTERRUPT = "the limit on products", "the time limit", "Ctrl-C"
# The status of an answer, by what ended or cut short a part of it.
STATUS = {"": "finished", INTERRUPT: "interrupted", PRODUCTS: "limit on products", TIME: "time limit"}


@attrs.frozen
class Progress:
    """Where a running analysis is; handed to a progress callback, which must be quick."""

    stage: str  # the work under way, in words
    num_hvps: int  # products on a minibatch done so far
    value: float | None = None  # running estimate of the sharpness dimension
    half_width: float | None = None  # of its interval
    num_runs: int = 0  # done of this estimate
    target: float | None = None  # half-width at which the estimate is good enough
    pilot_runs: int = 0  # before anything is made of their spread
    least_runs: int = 0  # that the spread of the minibatches asks for whatever the half-width
    hvps_left: int | None = None  # products of the runs that are expected still; None while that is not known
    reading: str = ""  # a measurement that has just been completed, in words
    seconds_left: float | None = None  # by the plan and the pace so far; None where that is not known

    @property
    def expected_runs(self) -> int | None:
        """Runs until the target is met, as half-widths fall like 1/sqrt(runs); first the pilot's; None if unknown."""
        if self.num_runs < self.pilot_runs:
            return self.pilot_runs
        if self.half_width is None or not self.target or not math.isfinite(self.half_width):
            return None
        return max(self.least_runs, math.ceil(self.num_runs * max(1.0, self.half_width / self.target) ** 2))
