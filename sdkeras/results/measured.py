"""A number with its evidence."""

from __future__ import annotations

import math

import attrs

# Standard errors in half of a 95 % interval: the 0.975 quantile of a normal distribution.
STANDARD_ERRORS = 1.959963985


@attrs.frozen
class Measured:
    """A number with its evidence.

    Attributes:
        value: The number; NaN where it could not be measured, or where only an interval is known.
        converged: Whether the evidence met its tolerance.
        residual: Residual of an eigenvalue, which lies within it of the value.
        stderr: Standard error.
        interval: 95 % confidence interval; the bracket that the number lies in where the value is NaN.
    """

    value: float
    converged: bool
    residual: float | None = None
    stderr: float | None = None
    interval: tuple[float, float] | None = None

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
