"""A number with its evidence."""

from __future__ import annotations

import attrs


@attrs.frozen
class Measured:
    """A number with its evidence: `residual` for an eigenvalue, `stderr` for a trace."""

    value: float
    converged: bool
    residual: float | None = None
    stderr: float | None = None
