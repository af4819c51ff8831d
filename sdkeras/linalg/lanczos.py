"""The Lanczos process with full reorthogonalisation, for vectors too long to waste a pass over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from sdkeras.errors import NonFiniteError
from sdkeras.records import FloatArray

# One Gram-Schmidt pass leaves an error of eps / (remaining norm); when the pass removed most of the vector, a
# second one is needed ("twice is enough", Parlett 1980; Giraud et al. 2005 for the bound).
_CANCELLATION = 0.5


@attrs.frozen(eq=False)
class Tridiagonalization:
    """A Q = Q T + beta[m - 1] q e_m' with orthonormal Q: what one run found.

    Attributes:
        alpha: Diagonal of T, shape [m].
        beta: Off-diagonal of T and, last, the norm of the residual, shape [m]; 0 there after a breakdown.
        basis: The Lanczos vectors as rows, shape [m, n], or None without reorthogonalisation.
        invariant: True if the process ended because the Krylov space is invariant: T's eigenvalues are exact.
    """

    alpha: FloatArray
    beta: FloatArray
    basis: NDArray[Any] | None
    invariant: bool

    @property
    def num_steps(self) -> int:
        return len(self.alpha)

    def leading(self, num_steps: int) -> tuple[FloatArray, FloatArray]:
        """alpha and beta of the first steps: T_m contains every smaller T."""
        return self.alpha[:num_steps], self.beta[:num_steps]


def lanczos(
    matvec: Callable[[NDArray[Any]], NDArray[Any]],
    start: NDArray[Any],
    num_steps: int,
    *,
    reorthogonalize: bool = True,
    until: Callable[[FloatArray, FloatArray], bool] | None = None,
) -> Tridiagonalization:
    """Tridiagonalises a symmetric operator on the Krylov space of a start vector.

    Each step takes one product, subtracts the local three-term recurrence and then makes one classical
    Gram-Schmidt pass against the whole basis, and a second one only after heavy cancellation. Vectors stay in
    the dtype of `start`; scalars are float64.

    Args:
        matvec: Product with the operator, [n] -> [n].
        start: Start vector, shape [n], not zero.
        num_steps: Steps m, 1 <= m <= n.
        reorthogonalize: Keep the basis and orthogonalise against all of it. Without it the density stays
            right, but converged Ritz values come back as ghosts.
        until: Called after each step with alpha and beta; a true answer ends the run.

    Returns:
        The tridiagonalisation; fewer steps than asked for after a breakdown.

    Raises:
        NonFiniteError: A product holds NaN or infinity.
    """
    size, dtype = len(start), start.dtype
    num_steps = min(num_steps, size)
    eps = float(np.finfo(dtype).eps)
    # A 124M-parameter basis is large: pages are touched only as steps are made.
    basis = np.empty((num_steps if reorthogonalize else 2, size), dtype)
    basis[0] = start / np.linalg.norm(start)
    alpha, beta = np.zeros(num_steps), np.zeros(num_steps)
    scale = 0.0
    for step in range(num_steps):
        current = basis[step if reorthogonalize else step % 2]
        residual = np.array(matvec(current), dtype=dtype)
        alpha[step] = _dot(current, residual)
        if not np.isfinite(alpha[step]):
            raise NonFiniteError(
                f"the product of Lanczos step {step + 1} holds NaN or infinity; check the weights and the data "
                "for extreme values, or work in float64."
            )
        residual -= dtype.type(alpha[step]) * current
        if step > 0:
            residual -= dtype.type(beta[step - 1]) * basis[step - 1 if reorthogonalize else (step - 1) % 2]
        norm = np.sqrt(_dot(residual, residual))
        if reorthogonalize:
            known = basis[: step + 1]
            for _ in range(2):
                residual -= (known @ residual) @ known
                before, norm = norm, np.sqrt(_dot(residual, residual))
                if norm > _CANCELLATION * before:
                    break
        scale = max(scale, abs(alpha[step]) + norm + (beta[step - 1] if step > 0 else 0.0))
        # What is left of an invariant space's residual is rounding: eps * |A| * sqrt(n) at most, since the n
        # entries' errors are independent.
        if norm <= eps * np.sqrt(size) * scale:
            return _cut(alpha, beta, basis, step + 1, reorthogonalize, invariant=True)
        beta[step] = norm
        if step + 1 < num_steps:
            np.divide(residual, dtype.type(norm), out=basis[step + 1 if reorthogonalize else (step + 1) % 2])
        if until is not None and until(alpha[: step + 1], beta[: step + 1]):
            return _cut(alpha, beta, basis, step + 1, reorthogonalize, invariant=False)
    return _cut(alpha, beta, basis, num_steps, reorthogonalize, invariant=num_steps == size)


def _dot(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Inner product; float32 BLAS sums in blocks, good to a few eps, which is what the vectors carry."""
    return float(np.dot(first, second))


def _cut(
    alpha: FloatArray, beta: FloatArray, basis: NDArray[Any], count: int, keep: bool, *, invariant: bool
) -> Tridiagonalization:
    beta = beta[:count].copy()
    if invariant:
        beta[-1] = 0.0
    return Tridiagonalization(alpha[:count].copy(), beta, basis[:count] if keep else None, invariant)
