"""What to do next: an advice that the numbers of an answer give."""

from __future__ import annotations

import attrs

CONFIDENCES = ("high", "moderate", "low")


@attrs.frozen
class NextStep:
    """One thing to try, with the numbers that speak for it."""

    code: str  # stable identifier, for example 'rate-headroom'
    message: str  # a sentence or two with the numbers, which ends with the reason of the confidence
    confidence: str = attrs.field(validator=attrs.validators.in_(CONFIDENCES))
    # What to call next, as a Python caller writes it, 'sdkeras.analyze(model, data, tolerance=0.02)', or as a command
    # line where the answer is that of a command; "" where there is nothing to call.
    command: str = ""
