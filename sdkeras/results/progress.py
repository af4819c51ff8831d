"""Where a running analysis is, and which limit ended it."""

from __future__ import annotations

import attrs

PRODUCTS, TIME = "the limit on products", "the time limit"


@attrs.frozen
class Progress:
    """Where a running analysis is; handed to a progress callback, which must be quick.

    Attributes:
        stage: What is being done, in words.
        num_hvps: Products on a minibatch done so far.
        value: Running estimate of the sharpness dimension, or None before the first.
        half_width: Half-width of its interval, or None.
        num_runs: Runs done of this estimate.
        target: Half-width at which the estimate is good enough, or None.
    """

    stage: str
    num_hvps: int
    value: float | None = None
    half_width: float | None = None
    num_runs: int = 0
    target: float | None = None
