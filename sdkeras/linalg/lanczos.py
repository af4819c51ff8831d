"""The Lanczos process with full reorthogonalisation, for vectors too long to waste a pass over."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import numpy as np

from sdkeras.errors import BudgetError, NonFiniteError
from sdkeras.linalg.orthogonal import orthogonalize
from sdkeras.linalg.vectors import dot, norm, store, unit_start
from sdkeras.results.arrays import Array, FloatArray

# A residual of this many eps * |A| counts as zero: three times the error of a network's products, 3 to 10 eps in norm
# whatever n (their entries' errors are relative), so Ritz values are then as exact as the products let them be.
# Rounding divided by a small beta on the way can leave more and hide the end of the Krylov space. This does little
# harm: the process goes on in a direction made of rounding, orthogonal to the basis and coupled to it by that little.
# A larger threshold would: it would end the run at a small bulk beside large outliers and call the result exact.
BREAKDOWN = 30.0


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
    basis: Array | None
    invariant: bool

    @property
    def num_steps(self) -> int:
        """Steps m made, each of one product."""
        return len(self.alpha)

    def leading(self, num_steps: int) -> tuple[FloatArray, FloatArray]:
        """alpha and beta of the first steps: T_m contains every smaller T."""
        return self.alpha[:num_steps], self.beta[:num_steps]


def lanczos(
    matvec: Callable[[Array], Array],
    start: Array,
    num_steps: int,
    *,
    reorthogonalize: bool = True,
    until: Callable[[FloatArray, FloatArray], bool] | None = None,
    restart: Callable[[int], Array] | None = None,
    fewest: int | None = None,
) -> Tridiagonalization:
    """Tridiagonalises a symmetric operator on the Krylov space of a start vector.

    Each step takes one product, subtracts the local three-term recurrence and then makes one classical
    Gram-Schmidt pass against the whole basis, and a second one only after heavy cancellation. Vectors stay in
    the dtype of `start`; scalars are float64.

    Args:
        matvec: Product with the operator, [n] -> [n].
        start: Start vector, shape [n], finite and not zero.
        num_steps: Steps m at most, m >= 1; never more than n are made.
        reorthogonalize: Keep the basis and orthogonalise against all of it. Without it the density stays
            right, but converged Ritz values come back as ghosts.
        until: Called after each step with alpha and beta; a true answer ends the run.
        restart: Makes a new vector [n] from the number of steps done: after a breakdown that `until` does not
            accept, the process goes on with its part orthogonal to the basis, and T gets a zero off-diagonal
            entry there. None ends the run at a breakdown. Needs reorthogonalisation.
        fewest: From this many steps on, a product that raises BudgetError ends the run; None passes the error on.

    Returns:
        The tridiagonalisation; fewer steps than asked for after a breakdown.

    Raises:
        NonFiniteError: A product holds NaN or infinity.
        BudgetError: From a product, see `fewest`.

    Reference: Golub and Van Loan, Matrix Computations (4th ed.), section 10.1; Paige (1972) for the local
    recurrence.
    """
    size, dtype = len(start), start.dtype
    num_steps = min(num_steps, size)
    eps = float(np.finfo(dtype).eps)
    # Allocated whole; the system touches pages only as steps are made.
    basis = np.empty((num_steps if reorthogonalize else 2, size), dtype)
    basis[0] = unit_start(start)
    alpha, beta = np.zeros(num_steps), np.zeros(num_steps)
    residual, work = np.empty(size, dtype), np.empty(size, dtype)
    scale = 0.0
    for step in range(num_steps):
        current = basis[step % len(basis)]
        try:
            store(matvec(current), residual, "operator")
        except BudgetError:
            if fewest is None or step < fewest:
                raise
            return _cut(alpha, beta, basis, step, keep=reorthogonalize, invariant=False)
        alpha[step] = dot(current, residual)
        # One NaN or infinity is enough to make the inner product one.
        if not np.isfinite(alpha[step]):
            raise NonFiniteError(
                f"the product of Lanczos step {step + 1} holds NaN or infinity; check the weights and the data for "
                "extreme values, or work in float64."
            )
        subtract(residual, alpha[step], current, work)
        coupling = beta[step - 1] if step > 0 else 0.0
        if coupling > 0.0:
            subtract(residual, coupling, basis[(step - 1) % len(basis)], work)
        left = orthogonalize(residual, basis[: step + 1], work) if reorthogonalize else norm(residual)
        # Row sums of T: within a factor of two of |T|, hence of what this space sees of |A|.
        scale = max(scale, abs(alpha[step]) + left + coupling)
        broken = left <= BREAKDOWN * eps * scale
        beta[step] = 0.0 if broken else left
        done = step + 1
        if done == num_steps:
            break
        ended = until is not None and until(alpha[:done], beta[:done])
        if ended or (broken and (restart is None or not reorthogonalize)):
            return _cut(alpha, beta, basis, done, keep=reorthogonalize, invariant=broken)
        if broken and restart is not None:
            residual[:] = restart(done)
            left = orthogonalize(residual, basis[:done], work)
        np.divide(residual, dtype.type(left), out=basis[done % len(basis)])
    # n orthonormal vectors span everything; without reorthogonalisation they are not orthonormal.
    complete = num_steps == size and reorthogonalize
    if complete:
        beta[-1] = 0.0
    return _cut(alpha, beta, basis, num_steps, keep=reorthogonalize, invariant=complete or bool(broken))


def subtract(vector: Array, factor: float, other: Array, work: Array) -> None:
    """vector <- vector - factor * other, in place."""
    np.multiply(other, vector.dtype.type(factor), out=work)
    vector -= work


def _cut(
    alpha: FloatArray, beta: FloatArray, basis: Array, count: int, *, keep: bool, invariant: bool
) -> Tridiagonalization:
    return Tridiagonalization(alpha[:count], beta[:count], basis[:count] if keep else None, bool(invariant))
