"""A number with its evidence."""

from __future__ import annotations

import math

import attrs

# Standard errors in half of a 95 % interval: the 0.975 quantile of a normal distribution.
STANDARD_ERRORS = 1.959963985


@attrs.frozen
class Measured:
    """A number with its evidence."""

    value: float  # NaN where it could not be measured, or where only an interval is known
    converged: bool  # whether the evidence met its tolerance
    residual: float | None = None  # of an eigenvalue, which lies within it of the value
    stderr: float | None = None
    interval: tuple[float, float] | None = None  # 95 %; the bracket that the number lies in where the value is NaN

    @property
    def evidence(self) -> str:
        """The source of `bounds`: 'interval', 'bracket', 'standard error', 'residual' or 'none'."""
        if self.interval is not None:
            return "bracket" if math.isnan(self.value) else "interval"
        return "standard error" if self.stderr is not None else "residual" if self.residual is not None else "none"

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Where the number lies: its interval, or the value ± 1.96 standard errors, or ± its residual; None without."""
        if self.interval is not None or self.evidence == "none":
            return self.interval
        half = self.residual or 0.0 if self.stderr is None else STANDARD_ERRORS * self.stderr
        return self.value - half, self.value + half
