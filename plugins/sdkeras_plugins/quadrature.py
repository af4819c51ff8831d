"""Stochastic Lanczos quadrature: the spectrum as seen by one random probe."""

from __future__ import annotations

import attrs

from sdkeras.estimators.kinds import spectrum_estimator
from sdkeras.linalg.lanczos import Tridiagonalization, lanczos
from sdkeras.linalg.operators import SymmetricOperator
from sdkeras.linalg.probes import rademacher_probes
from sdkeras.linalg.tridiagonal import coarser_steps, quadrature
from sdkeras.results.estimates import Spectrum


@spectrum_estimator("slq", steps="num_steps", needs_basis=True)
@attrs.frozen
class StochasticLanczosQuadrature:
    """Stochastic Lanczos quadrature with one Rademacher probe.

    E over probes z of sum_j n * weight_j * f(theta_j) = trace f(A), exact in expectation for polynomials up to
    degree 2m - 1.

    Attributes:
        num_steps: Lanczos steps m (at most the operator's size).
        reorthogonalize: Full reorthogonalisation. Without it the density stays right, but no residuals are
            reported and the basis is not kept in memory.

    Reference: Ubaru, Chen, Saad (2017), Algorithm 1; Golub and Meurant (1994).
    """

    num_steps: int = attrs.field(default=40, validator=attrs.validators.ge(1))
    reorthogonalize: bool = True

    def estimate(self, source: SymmetricOperator, *, seed: int) -> Spectrum:
        """One probe's quadrature; weights sum to the operator's size."""
        probe = rademacher_probes(source.size, 1, seed=seed, dtype=source.dtype)[0]
        run = lanczos(source.matvec, probe, self.num_steps, reorthogonalize=self.reorthogonalize)
        # Where the Krylov space ends sooner, the coarser rule is the run's own.
        coarser = coarser_steps(min(self.num_steps, source.size))
        nested = None if coarser is None else self._rule(run, min(coarser, run.num_steps), source.size, seed)
        return attrs.evolve(self._rule(run, run.num_steps, source.size, seed), nested=nested)

    def _rule(self, run: Tridiagonalization, num_steps: int, size: int, seed: int) -> Spectrum:
        nodes, weights, residuals = quadrature(*run.leading(num_steps))
        return Spectrum(
            nodes=nodes,
            weights=size * weights,
            num_matvecs=num_steps,
            seed=seed,
            residuals=residuals if self.reorthogonalize else None,
        )
