"""The sharpness dimension of several training steps taken as one: SD^(m) from the Jacobians of a trajectory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from sdkeras.dimension.sharpness import crossing
from sdkeras.linalg.products import log_singular_values
from sdkeras.results.arrays import Array, FloatArray
from sdkeras.results.lyapunov import MStepSharpness

# ln of how far below the largest a singular value of an explicit product may lie. Its error is eps times the largest:
# in float64 eps e^30 = 2e-3 of it is the most that could be called right, and e^22 leaves 1e-6; in float32 e^12 is as
# far as 0.02 of it goes.
_EXPLICIT_RANGE = {np.dtype(np.float64): 22.0, np.dtype(np.float32): 12.0}


def m_step_sharpness(jacobians: Sequence[Array], windows: Sequence[int] = (1,)) -> tuple[MStepSharpness, ...]:
    """SD^(m) over one trajectory for several window lengths m.

    The T steps are cut into T/m consecutive windows; z^(m)_k is the mean over them of the k-th largest ln sigma of
    the window's product, and SD^(m) is Def. 4.2 of z^(m) (dividing by m changes nothing). Over the same T steps
    SD^(m) <= SD^(1), and SD^(m') <= SD^(m) where m divides m'; where neither divides the other they have no order.

    Products are multiplied out in float64 while m * (z_1 - t*) < 22 (12 for float32 Jacobians), t* the threshold
    exponent of SD^(1), and kept as stabilised QR factors beyond. A singular value that is lost in rounding counts as
    unknown, and where the dimension depends on it it is None.

    Args:
        jacobians: J_1, ..., J_T in the order of the steps, each [d, d], float32 or float64; a list, an array
            [T, d, d], or anything with a length and an index (each is read once for m = 1 and once for each m).
        windows: The lengths m; each divides T.

    Returns:
        One result for each m, in this order.

    Raises:
        ValueError: No Jacobian, one that is not square or not finite, or an m that does not divide T.

    Reference: Tuci et al. (2026), arXiv 2604.19740, Def. 4.2 and eqs. 50-71.
    """
    num_steps = len(jacobians)
    if num_steps == 0:
        raise ValueError("give at least one Jacobian.")
    for m in windows:
        if m < 1 or num_steps % m != 0:
            raise ValueError(
                f"a window of {m} steps does not divide the {num_steps} steps: the windows must cover all of them; "
                "leave some steps out or choose a divisor."
            )
    dtype = np.asarray(jacobians[0]).dtype
    if dtype not in _EXPLICIT_RANGE:
        raise ValueError(f"the Jacobians are {dtype}, expected float32 or float64.")
    reach = _EXPLICIT_RANGE[dtype]
    steps = _per_window(jacobians, 1, lambda factors: _explicit(factors, reach))
    spread = _spread(steps)
    return tuple(_of_windows(jacobians, m, steps, reach, explicit=m == 1 or m * spread < reach) for m in windows)


def _of_windows(
    jacobians: Sequence[Array], m: int, steps: FloatArray, reach: float, *, explicit: bool
) -> MStepSharpness:
    if explicit:
        logs = steps if m == 1 else _per_window(jacobians, m, lambda factors: _explicit(factors, reach))
        result = _result(logs, m, "explicit products")
        if m == 1 or result.dimension is not None:
            return result
    logs = _per_window(jacobians, m, log_singular_values)
    # A step whose own Jacobian hides some singular values hides as many of the product's, and at the worst others
    # than the step before it.
    hidden = np.isinf(steps).sum(axis=1).reshape(-1, m).sum(axis=1)
    logs = np.where(np.arange(logs.shape[1]) >= logs.shape[1] - hidden[:, None], -np.inf, logs)
    return _result(logs, m, "stabilised products")


def _per_window(jacobians: Sequence[Array], m: int, logs: Callable[[Sequence[Array]], FloatArray]) -> FloatArray:
    """ln singular values of every window's product, descending in each row, shape [T / m, d]."""
    starts = range(0, len(jacobians), m)
    return np.stack([logs([_checked(jacobians[k]) for k in range(start, start + m)]) for start in starts])


def _checked(jacobian: Array) -> Array:
    if np.ndim(jacobian) != 2 or np.shape(jacobian)[0] != np.shape(jacobian)[1]:
        raise ValueError(f"a Jacobian has shape {np.shape(jacobian)}, expected a square matrix.")
    if not np.all(np.isfinite(jacobian)):
        raise ValueError("a Jacobian holds NaN or infinity; give only the steps before the trajectory diverged.")
    return np.asarray(jacobian, np.float64)


def _explicit(factors: Sequence[Array], reach: float) -> FloatArray:
    """ln singular values of the product multiplied out; -inf for those that rounding hides."""
    product = factors[0]
    with np.errstate(over="ignore", invalid="ignore"):
        for factor in factors[1:]:
            product = factor @ product
    if not np.all(np.isfinite(product)):
        return np.full(len(product), -np.inf)
    with np.errstate(divide="ignore"):
        logs = np.log(np.linalg.svd(product, compute_uv=False))
    return np.where(logs < logs[0] - reach, -np.inf, logs)


def _spread(steps: FloatArray) -> float:
    """z_1 - t* of one step: what the dimension needs to be resolved in each. Infinite if t* itself is unknown."""
    z = steps.mean(axis=0)
    if z[0] < 0:
        return 0.0
    crossed = crossing(z, np.ones(len(z)))
    return float(z[0] - (z[-1] if crossed.threshold_exponent is None else crossed.threshold_exponent))


def _result(logs: FloatArray, m: int, method: str) -> MStepSharpness:
    z = logs.mean(axis=0)
    size, num_resolved = len(z), int(np.isfinite(z).sum())
    crossed = crossing(z, np.ones(size))
    known = num_resolved > crossed.j_star if crossed.value < size else num_resolved == size
    if z[0] == -np.inf:
        reason = "a product is zero, or every singular value of one is hidden by rounding"
    elif not known:
        reason = (
            f"the sum of the {num_resolved} exponents that rounding has left, of {size}, is still "
            f"{float(z[:num_resolved].sum()):.3g} >= 0"
        )
    else:
        reason = ""
    return MStepSharpness(
        num_window_steps=m,
        num_steps=m * len(logs),
        exponents=z[:num_resolved],
        num_resolved=num_resolved,
        size=size,
        dimension=None if reason else crossed.value,
        method=method,
        reason=reason,
    )
