"""Golub-Kahan-Lanczos bidiagonalisation: Lanczos for singular values, from products with J and with J'."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import numpy as np
import scipy.linalg

from sdkeras.errors import NonFiniteError
from sdkeras.linalg.lanczos import BREAKDOWN
from sdkeras.linalg.orthogonal import orthogonalize
from sdkeras.linalg.vectors import new_rows, norm, precision, put, stored, subtract, unit_start
from sdkeras.results.arrays import Array, FloatArray


@attrs.frozen(eq=False)
class Bidiagonalization:
    """J V = U B and J' U = V B' + beta[m - 1] v e_m' with orthonormal V and U: what one run found.

    Attributes:
        alpha: Diagonal of the upper bidiagonal B, shape [m], >= 0.
        beta: Its superdiagonal and, last, the norm of the residual, shape [m]; 0 there after a breakdown.
        invariant: True if V spans an invariant space of J'J: B's singular values are exact.
        num_products: Products made, with J and J' together.
    """

    alpha: FloatArray
    beta: FloatArray
    invariant: bool
    num_products: int

    @property
    def num_steps(self) -> int:
        return len(self.alpha)

    def rule(self, num_steps: int | None = None) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Gauss quadrature of the measure of J'J that the start vector sees, with nodes sigma.

        B = P diag(sigma) Q': node j is sigma[j], its weight Q[0, j]^2, since B'B is the tridiagonal matrix of Lanczos
        on J'J. With x = V Q[:, j] and y = U P[:, j], J x = sigma[j] y, and the residual |J' y - sigma[j] x| is
        beta[m - 1] |P[m - 1, j]|: a singular value lies within it of the node.

        Args:
            num_steps: The first m' <= m steps only; their B is the leading part of B. All by default.

        Returns:
            (nodes, weights, residuals), each of shape [m']; nodes ascending, weights with sum 1.

        Reference: Golub and Kahan (1965); Golub and Meurant (1994).
        """
        count = self.num_steps if num_steps is None else num_steps
        matrix = np.diag(self.alpha[:count]) + np.diag(self.beta[: count - 1], 1)
        left, nodes, right = scipy.linalg.svd(matrix)
        weights = right[:, 0] ** 2
        residuals = self.beta[count - 1] * np.abs(left[-1])
        return nodes[::-1], (weights / weights.sum())[::-1], residuals[::-1]


def bidiagonalize(
    jvp: Callable[[Array], Array],
    vjp: Callable[[Array], Array],
    start: Array,
    num_steps: int,
    *,
    reorthogonalize: bool = True,
) -> Bidiagonalization:
    """Bidiagonalises a square matrix on the Krylov space of J'J and a start vector.

    A step takes one product with J and one with J', subtracts the local two-term recurrence and orthogonalises against
    the whole of its own basis. Vectors stay in the dtype of `start`; scalars are float64.

    Args:
        jvp: J v, [n] -> [n], finite.
        vjp: J' u, [n] -> [n], finite.
        start: Start vector, shape [n], finite and not zero.
        num_steps: Steps m at most, m >= 1; never more than n are made.
        reorthogonalize: Keep both bases and orthogonalise against all of them. Without it the density stays right, but
            converged singular values come back as ghosts.

    Returns:
        The bidiagonalisation; fewer steps than asked for after a breakdown. alpha ~ 0 (J has a null vector in the
        Krylov space, B gets a zero row) and beta ~ 0 both mean that the space is invariant.

    Reference: Golub and Van Loan, Matrix Computations (4th ed.), section 10.4.
    """
    size = len(start)
    num_steps = min(num_steps, size)
    zero = BREAKDOWN * float(np.finfo(precision(start)).eps)
    residual, rows = unit_start(start), num_steps if reorthogonalize else 2
    right, left = new_rows(residual, rows), new_rows(residual, rows)
    put(residual, 1.0, right, 0)
    alpha, beta = np.zeros(num_steps), np.zeros(num_steps)
    scale = 0.0

    def without(basis: Array, count: int) -> tuple[Array, float]:
        """The residual once it is orthogonal to the basis, and its norm."""
        whole = reorthogonalize and count > 0
        return orthogonalize(residual, basis[:count]) if whole else (residual, norm(residual))

    for step in range(num_steps):
        now, before = step % rows, (step - 1) % rows
        residual = _multiplied(jvp, right[now], residual, step)
        coupling = beta[step - 1] if step > 0 else 0.0
        if coupling > 0.0:
            residual = subtract(residual, coupling, left[before])
        residual, alpha_k = without(left, step)
        # Row sums of B: within a factor of two of |B|, hence of what this space sees of |J|.
        scale = max(scale, alpha_k + coupling)
        if alpha_k <= zero * scale:
            return Bidiagonalization(alpha[: step + 1], beta[: step + 1], True, 2 * step + 1)
        alpha[step] = alpha_k
        put(residual, 1.0 / alpha_k, left, now)
        if step + 1 == size and reorthogonalize:  # n orthonormal vectors span everything
            return Bidiagonalization(alpha, beta, True, 2 * step + 1)
        residual = subtract(_multiplied(vjp, left[now], residual, step), alpha_k, right[now])
        residual, remaining = without(right, step + 1)
        scale = max(scale, alpha_k + remaining)
        if remaining <= zero * scale:
            return Bidiagonalization(alpha[: step + 1], beta[: step + 1], True, 2 * step + 2)
        beta[step] = remaining
        if step + 1 < num_steps:
            put(residual, 1.0 / remaining, right, (step + 1) % rows)
    return Bidiagonalization(alpha, beta, False, 2 * num_steps)


def _multiplied(product: Callable[[Array], Array], vector: Array, out: Array, step: int) -> Array:
    """The product, which must be finite; `out` may be overwritten."""
    moved = stored(out, product(vector), "map")
    # One NaN or infinity is enough to make the norm one.
    if not np.isfinite(norm(moved)):
        raise NonFiniteError(
            f"a product of Golub-Kahan step {step + 1} holds NaN or infinity; check the weights, the optimizer's slots "
            "and the data for extreme values, or work in float64."
        )
    return moved
