"""Extreme eigenpairs by Lanczos, with reorthogonalisation where the memory has room for it."""

from __future__ import annotations

import attrs
import numpy as np
from numpy.typing import ArrayLike

from sdkeras.estimators.kinds import eigenpairs_estimator
from sdkeras.linalg.lanczos import lanczos
from sdkeras.linalg.operators import SymmetricOperator
from sdkeras.linalg.probes import space_of, start_of
from sdkeras.linalg.tridiagonal import ritz
from sdkeras.linalg.vectors import combined, norm
from sdkeras.results.arrays import Array, FloatArray
from sdkeras.results.estimates import Eigenpairs

# Solving the projected problem costs O(m^2); looking every few steps keeps that below the products.
_CHECK_EVERY = 5


@eigenpairs_estimator("lanczos", steps="num_steps", needs_basis=True)
@attrs.frozen
class Lanczos:
    """Both ends of the spectrum from one Krylov space.

    A Ritz pair counts as converged when its residual is at most tolerance * (largest |Ritz value|). The run
    ends when all wanted pairs are, or at num_steps. A Krylov space sees one copy of a repeated eigenvalue; when
    it ends before all wanted pairs are found, the run continues from a new random vector orthogonal to it.

    Attributes:
        num_largest: Number of largest eigenvalues.
        num_smallest: Number of smallest eigenvalues.
        num_steps: Maximum number of products.
        min_steps: Minimum number of products: from a start near an eigenvector its residual is small at once,
            before the rest of the spectrum has been seen.
        tolerance: Relative residual of a converged pair, see above.
        eigenvectors: Return unit eigenvectors.
        reorthogonalize: Keep the basis. Without it three vectors are enough; the ends of the spectrum are as right
            (Paige 1971), but converged values come back as copies, so that only one at each end can be requested, and
            no eigenvectors.
        start: Start vector [n], or eigenvectors of an earlier run [n, k] whose sum is used. It must not be
            nearly orthogonal to the wanted eigenvectors, or it finds others.

    Reference: Golub and Van Loan, Matrix Computations (4th ed.), section 10.1; Paige (1971).
    """

    num_largest: int = attrs.field(default=1, validator=attrs.validators.ge(0))
    num_smallest: int = attrs.field(default=1, validator=attrs.validators.ge(0))
    num_steps: int = attrs.field(default=100, validator=attrs.validators.ge(1))
    min_steps: int = attrs.field(default=0, validator=attrs.validators.ge(0))
    tolerance: float = attrs.field(default=1e-3, validator=attrs.validators.gt(0.0))
    eigenvectors: bool = False
    reorthogonalize: bool = True
    start: ArrayLike | None = attrs.field(default=None, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        if self.num_largest + self.num_smallest == 0:
            raise ValueError("num_largest and num_smallest are both 0; ask for one eigenvalue at least.")
        if not self.reorthogonalize and (max(self.num_largest, self.num_smallest) > 1 or self.eigenvectors):
            raise ValueError(
                "without reorthogonalisation Lanczos gives the largest and the smallest eigenvalue alone; set "
                "num_largest and num_smallest to at most 1 and eigenvectors to False, or reorthogonalize to True."
            )

    def estimate(self, source: SymmetricOperator, *, seed: int) -> Eigenpairs:
        """The wanted eigenvalues, largest first; where the budget ends the run, as far as they have converged.

        The budget must have room for as many products as there are pairs wanted.
        """
        start = initial_vector(self.start, source, seed)

        def another(steps_done: int) -> Array:
            return start_of(source, seed=seed, stream=steps_done)

        keep = self.reorthogonalize
        run = lanczos(
            source.matvec,
            start,
            self.num_steps,
            reorthogonalize=keep,
            until=lambda alpha, beta: self._converged(alpha, beta, source.size),
            restart=another if keep else None,
            fewest=min(self.num_largest + self.num_smallest, source.size),
        )
        theta, vectors = ritz(run.alpha, run.beta[:-1])
        # Rounding of the products bounds what a residual can mean.
        scale = float(np.max(np.abs(theta)))
        floor = float(np.finfo(source.dtype).eps) * scale
        residuals = np.maximum(run.beta[-1] * np.abs(vectors[-1]), floor)
        wanted = self._wanted(len(theta))
        ritz_vectors = None
        if self.eigenvectors and run.basis is not None:
            ritz_vectors = combined(run.basis, vectors[:, wanted])
            ritz_vectors /= np.linalg.norm(ritz_vectors, axis=0)
        return Eigenpairs(
            values=theta[wanted],
            residuals=residuals[wanted],
            converged=residuals[wanted] <= max(self.tolerance * scale, floor),
            num_matvecs=run.num_steps,
            seed=seed,
            vectors=ritz_vectors,
        )

    def _wanted(self, count: int) -> list[int]:
        """Positions in ascending order of theta, largest first, none twice."""
        upper = [count - 1 - k for k in range(min(self.num_largest, count))]
        lower = [k for k in reversed(range(min(self.num_smallest, count))) if k not in upper]
        return upper + lower

    def _converged(self, alpha: FloatArray, beta: FloatArray, size: int) -> bool:
        count, broken = len(alpha), beta[-1] == 0.0
        fewest = max(self.num_largest + self.num_smallest, self.min_steps)
        if (count % _CHECK_EVERY and not broken) or count < min(fewest, size):
            return False
        theta, vectors = ritz(alpha, beta[:-1])
        residuals = beta[-1] * np.abs(vectors[-1, self._wanted(count)])
        return bool(np.all(residuals <= self.tolerance * np.max(np.abs(theta))))


def initial_vector(start: ArrayLike | None, source: SymmetricOperator, seed: int) -> Array:
    """The warm start as one unit vector, or a random one, where the operator's vectors live.

    Raises:
        ValueError: The warm start does not fit the operator, or is zero or not finite.
    """
    if start is None:
        return start_of(source, seed=seed)
    vector = np.asarray(start, dtype=source.dtype)
    vector = vector.sum(axis=1) if vector.ndim == 2 else vector
    if vector.shape != (source.size,):
        raise ValueError(
            f"the warm start has shape {np.shape(start)}; expected ({source.size},) or ({source.size}, k) for this "
            "operator."
        )
    length = norm(vector)
    if not 0 < length < np.inf:
        raise ValueError(f"the warm start has norm {length:g}; give finite vectors whose sum is not zero.")
    return space_of(source).moved(vector / source.dtype.type(length))
