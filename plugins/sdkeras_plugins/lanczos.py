"""Extreme eigenpairs by Lanczos with full reorthogonalisation."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np

from sdkeras.kinds import eigenpairs_estimator
from sdkeras.linalg.lanczos import lanczos
from sdkeras.linalg.probes import start_vector
from sdkeras.linalg.tridiagonal import ritz
from sdkeras.operators.base import SymmetricOperator
from sdkeras.records import Eigenpairs, FloatArray

# Solving the projected problem costs O(m^2); looking every few steps keeps that below the products.
_CHECK_EVERY = 5


@eigenpairs_estimator("lanczos")
@attrs.frozen
class Lanczos:
    """Both ends of the spectrum from one Krylov space.

    A Ritz pair counts as converged when its residual is at most tolerance * (largest |Ritz value|). The run
    ends when all wanted pairs are, or at num_steps. From a random start one copy of a repeated eigenvalue is
    found.

    Attributes:
        num_largest: Eigenvalues wanted from the upper end.
        num_smallest: From the lower end.
        num_steps: Products at most.
        tolerance: See above.
        eigenvectors: Return unit eigenvectors.
        start: Start vector [n], or eigenvectors of an earlier run [n, k] whose sum is used.

    Reference: Golub and Van Loan, Matrix Computations (4th ed.), section 10.1; Paige (1971).
    """

    num_largest: int = attrs.field(default=1, validator=attrs.validators.ge(0))
    num_smallest: int = attrs.field(default=1, validator=attrs.validators.ge(0))
    num_steps: int = attrs.field(default=100, validator=attrs.validators.ge(1))
    tolerance: float = attrs.field(default=1e-3, validator=attrs.validators.gt(0.0))
    eigenvectors: bool = False
    start: Any = attrs.field(default=None, eq=False, repr=False)

    def estimate(self, source: SymmetricOperator, *, seed: int) -> Eigenpairs:
        """The wanted eigenvalues, largest first.

        Raises:
            NonFiniteError: A product holds NaN or infinity.
        """
        start = initial_vector(self.start, source, seed)
        run = lanczos(source.matvec, start, self.num_steps, until=self._converged)
        theta, vectors = ritz(run.alpha, run.beta[:-1])
        # Rounding of the products bounds what a residual can mean.
        scale = float(np.max(np.abs(theta)))
        floor = float(np.finfo(source.dtype).eps) * scale
        residuals = np.maximum(run.beta[-1] * np.abs(vectors[-1]), floor)
        wanted = self._wanted(len(theta))
        found = None
        if self.eigenvectors and run.basis is not None:
            found = np.asarray(run.basis.T @ vectors[:, wanted].astype(source.dtype))
            found /= np.linalg.norm(found, axis=0)
        return Eigenpairs(
            values=theta[wanted],
            residuals=residuals[wanted],
            converged=residuals[wanted] <= max(self.tolerance * scale, floor),
            num_matvecs=run.num_steps,
            seed=seed,
            vectors=found,
        )

    def _wanted(self, count: int) -> list[int]:
        """Positions in ascending order of theta, largest first, none twice."""
        upper = [count - 1 - k for k in range(min(self.num_largest, count))]
        lower = [k for k in reversed(range(min(self.num_smallest, count))) if k not in upper]
        return upper + lower

    def _converged(self, alpha: FloatArray, beta: FloatArray) -> bool:
        if len(alpha) % _CHECK_EVERY or len(alpha) < self.num_largest + self.num_smallest:
            return False
        theta, vectors = ritz(alpha, beta[:-1])
        residuals = beta[-1] * np.abs(vectors[-1, self._wanted(len(theta))])
        return bool(np.all(residuals <= self.tolerance * np.max(np.abs(theta))))


def initial_vector(start: Any, source: SymmetricOperator, seed: int) -> Any:
    """The warm start as one unit vector, or a random one.

    Raises:
        ValueError: The warm start does not fit the operator, or is zero or not finite.
    """
    if start is None:
        return start_vector(source.size, seed=seed, dtype=source.dtype)
    vector = np.asarray(start, dtype=source.dtype)
    vector = vector.sum(axis=1) if vector.ndim == 2 else vector
    norm = np.linalg.norm(vector)
    if vector.shape != (source.size,) or not 0 < norm < np.inf:
        raise ValueError(
            f"the warm start has shape {np.shape(start)} and norm {norm:g}; expected a finite, non-zero vector of "
            f"shape ({source.size},) or vectors of shape ({source.size}, k)."
        )
    return vector / norm
