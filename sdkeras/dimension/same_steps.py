"""SD, SD^(m) and D_s over the same training steps, and the sharpest of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs
import numpy as np

from sdkeras.dimension.lyapunov import lyapunov_dimension, sharpest_dimension
from sdkeras.dimension.m_step import m_step_sharpness
from sdkeras.results.arrays import Array, FloatArray
from sdkeras.results.estimates import LyapunovExponents
from sdkeras.results.lyapunov import LyapunovDimension, MStepSharpness, SharpestDimension


@attrs.frozen
class SameSteps:
    """Dimensions of one trajectory over the same T steps.

    Attributes:
        windows: SD^(m) for each m, SD (m = 1) among them.
        lyapunov: D_s.
        sharpest: The smallest that is determined, or None.
        log_det: Mean of ln|det J| per step; None where rounding hides singular values.
        log_det_stderr: Its block standard error.
    """

    windows: tuple[MStepSharpness, ...]
    lyapunov: LyapunovDimension
    sharpest: SharpestDimension | None
    log_det: float | None
    log_det_stderr: float | None


def over_same_steps(
    jacobians: Sequence[Array], exponents: LyapunovExponents, windows: Sequence[int], *, comparable: bool = True
) -> SameSteps:
    """SD^(m) from the Jacobians of T steps, D_s from the exponents over them, and the sharpest.

    The determinant and the windows narrow D_s where its exponents are not all there are: Lambda_d = mean ln|det J| is
    known, and D_s <= SD^(m) for every m.

    Args:
        jacobians: C J_t C^-1 of the T steps, each [d, d]; an array, or anything with a length and an index.
        exponents: By QR along these steps, in the same coordinates, from an orthonormal start.
        windows: The lengths m, 1 among them. One that does not divide T (a run that was cut short) is undetermined.
        comparable: Whether the exponents are over these T steps; if not, D_s stands alone.
    """
    num_steps, size = len(jacobians), len(jacobians[0])
    whole = [m for m in windows if num_steps % m == 0]
    by_length = {result.num_window_steps: result for result in m_step_sharpness(jacobians, whole)}
    results = tuple(by_length[m] if m in by_length else _cut_short(m, num_steps, size) for m in windows)
    if not comparable:
        return SameSteps(results, lyapunov_dimension(exponents, size), sharpest_dimension(results), None, None)
    # Where the small singular values are rounding, so is the determinant.
    known = by_length[1].num_resolved == size
    log_det, stderr = _log_det(jacobians, exponents.block_size) if known else (None, None)
    upper = min((result.dimension for result in results if result.dimension is not None), default=None)
    lyapunov = lyapunov_dimension(
        exponents, size, log_det=log_det, log_det_stderr=stderr or 0.0, sharpness_dimension=upper
    )
    return SameSteps(results, lyapunov, sharpest_dimension(results, lyapunov), log_det, stderr)


def _cut_short(m: int, num_steps: int, size: int) -> MStepSharpness:
    return MStepSharpness(
        num_window_steps=m,
        num_steps=num_steps,
        exponents=np.zeros(0),
        num_resolved=0,
        size=size,
        dimension=None,
        method="",
        reason=f"the run ended after {num_steps:,} steps, which {m} does not divide",
    )


def _log_det(jacobians: Sequence[Array], block_size: int) -> tuple[float, float | None]:
    """Mean of ln|det J| over the steps, and its standard error from blocks of them (None below two blocks)."""
    logs: FloatArray = np.array([np.linalg.slogdet(np.asarray(jacobian, np.float64))[1] for jacobian in jacobians])
    blocks = logs[: len(logs) // block_size * block_size].reshape(-1, block_size).mean(axis=1)
    if len(blocks) < 2:
        return float(logs.mean()), None
    return float(logs.mean()), float(np.std(blocks, ddof=1) * math.sqrt(block_size / len(logs)))
