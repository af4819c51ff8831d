"""The Lanczos process with partial reorthogonalisation, for vectors too long to waste a pass over."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

import attrs
import numpy as np

from sdkeras.errors import BudgetError, NonFiniteError
from sdkeras.linalg.operators import OperatorBatch
from sdkeras.linalg.orthogonal import orthogonalize
from sdkeras.linalg.semiorthogonal import SemiOrthogonality
from sdkeras.linalg.vectors import dot, new_rows, norm, precision, put, stacked, stored, subtract, unit_start
from sdkeras.results.arrays import Array, FloatArray

# A residual of this many eps * |A| counts as zero: three times the error of a network's products, 3 to 10 eps in norm
# whatever n (their entries' errors are relative), so Ritz values are then as exact as the products let them be.
# Rounding divided by a small beta on the way can leave more and hide the end of the Krylov space. This does little
# harm: the process goes on in a direction made of rounding, orthogonal to the basis and coupled to it by that little.
# A larger threshold would: it would end the run at a small bulk beside large outliers and call the result exact.
BREAKDOWN = 30.0


@attrs.frozen(eq=False)
class Tridiagonalization:
    """A Q = Q T + beta[m - 1] q e_m' with max |Q'Q - I| < sqrt(eps): what one run found.

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

    Each step takes one product and subtracts the local three-term recurrence; where the basis would lose its
    semiorthogonality, it orthogonalises the new vector and the next one against the rows concerned. T is the
    projection of the operator on the Krylov space up to a few eps * |A|, as with a basis orthonormal to rounding.
    Vectors stay in the dtype of `start`, float32 or float64; scalars are float64.

    Args:
        matvec: Product with the operator, [n] -> [n].
        start: Start vector, shape [n], finite and not zero.
        num_steps: Steps m at most, m >= 1; never more than n are made.
        reorthogonalize: Keep the basis and orthogonalise against it. Without it the density stays right,
            but converged Ritz values come back as ghosts.
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
    recurrence; Simon (1984) for the reorthogonalisation.
    """
    process = _process(start, num_steps, reorthogonalize, until, restart, fewest)
    vector = next(process)
    while True:
        try:
            try:
                product = matvec(vector)
            except BudgetError as error:
                vector = process.throw(error)
            else:
                vector = process.send(product)
        except StopIteration as end:
            run: Tridiagonalization = end.value
            return run


def lanczos_many(
    batch: OperatorBatch, starts: Sequence[Array], num_steps: int, *, reorthogonalize: bool = True
) -> tuple[Tridiagonalization, ...]:
    """Runs `lanczos` on each operator of a batch, in lockstep: all of a step's products are made together.

    A run that breaks down leaves the group, which goes on without its operator.

    Args:
        batch: The operators, of size n.
        starts: Start vector of each, shape [n].
        num_steps: As in `lanczos`.
        reorthogonalize: As in `lanczos`.

    Returns:
        The tridiagonalisation of each, equal to that of a single run to the rounding of the products.

    Raises:
        NonFiniteError: A product holds NaN or infinity.
        BudgetError: From the products.
    """
    processes = [_process(start, num_steps, reorthogonalize) for start in starts]
    runs: dict[int, Tridiagonalization] = {}
    waiting = {row: next(process) for row, process in enumerate(processes)}
    while waiting:
        products = batch.matvecs(stacked(*waiting.values()))
        following = {}
        for row, product in zip(waiting, products, strict=True):
            try:
                following[row] = processes[row].send(product)
            except StopIteration as end:
                runs[row] = end.value
        if 0 < len(following) < len(waiting):
            batch = batch.subset([place for place, row in enumerate(waiting) if row in following])
        waiting = following
    return tuple(runs[row] for row in range(len(processes)))


def _process(
    start: Array,
    num_steps: int,
    reorthogonalize: bool,
    until: Callable[[FloatArray, FloatArray], bool] | None = None,
    restart: Callable[[int], Array] | None = None,
    fewest: int | None = None,
) -> Generator[Array, Array, Tridiagonalization]:
    """`lanczos` as a process that yields each vector to be multiplied and is sent the product."""
    size = len(start)
    num_steps = min(num_steps, size)
    eps = float(np.finfo(precision(start)).eps)
    residual, rows = unit_start(start), num_steps if reorthogonalize else 2
    basis = new_rows(residual, rows)
    put(residual, 1.0, basis, 0)
    alpha, beta = np.zeros(num_steps), np.zeros(num_steps)
    semi = SemiOrthogonality(num_steps, eps)
    scale = 0.0
    for step in range(num_steps):
        current = basis[step % rows]
        try:
            residual = stored(residual, (yield current), "operator")
        except BudgetError:
            if fewest is None or step < fewest:
                raise
            return _cut(alpha, beta, basis, step, keep=reorthogonalize, invariant=False)
        done = step + 1
        residual, alpha[step] = _removed(residual, current, done)
        coupling = beta[step - 1] if step > 0 else 0.0
        if coupling > 0.0:
            residual = subtract(residual, coupling, basis[(step - 1) % rows])
        if reorthogonalize:
            residual, left = semi.restore(residual, basis[:done], alpha[:done], beta[:step])
        else:
            left = norm(residual)
        # Row sums of T: within a factor of two of |T|, hence of what this space sees of |A|.
        scale = max(scale, abs(alpha[step]) + left + coupling)
        broken = left <= BREAKDOWN * eps * scale
        beta[step] = 0.0 if broken else left
        if done == num_steps:
            break
        ended = until is not None and until(alpha[:done], beta[:done])
        if ended or (broken and (restart is None or not reorthogonalize)):
            return _cut(alpha, beta, basis, done, keep=reorthogonalize, invariant=broken)
        if broken and restart is not None:
            residual, left = orthogonalize(stored(residual, restart(done), "restart"), basis[:done])
            semi.restart(done)
        put(residual, 1.0 / left, basis, done % rows)
    # n orthonormal vectors span everything; without reorthogonalisation they are not orthonormal.
    complete = num_steps == size and reorthogonalize
    if complete:
        beta[-1] = 0.0
    return _cut(alpha, beta, basis, num_steps, keep=reorthogonalize, invariant=complete or bool(broken))


def _removed(product: Array, vector: Array, step: int) -> tuple[Array, float]:
    """A product without its component along the vector, and that component, alpha."""
    alpha = dot(vector, product)
    # One NaN or infinity is enough to make the inner product one.
    if not np.isfinite(alpha):
        raise NonFiniteError(
            f"the product of Lanczos step {step} holds NaN or infinity; check the weights and the data for extreme "
            "values, or work in float64."
        )
    return subtract(product, alpha, vector), alpha


def _cut(
    alpha: FloatArray, beta: FloatArray, basis: Array, count: int, *, keep: bool, invariant: bool
) -> Tridiagonalization:
    return Tridiagonalization(alpha[:count], beta[:count], basis[:count] if keep else None, bool(invariant))
