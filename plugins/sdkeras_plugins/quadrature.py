"""Stochastic Lanczos quadrature: the spectrum as seen by one random probe."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from sdkeras.estimators.kinds import spectrum_estimator
from sdkeras.linalg.lanczos import Tridiagonalization, lanczos, lanczos_many
from sdkeras.linalg.operators import OperatorBatch, SymmetricOperator
from sdkeras.linalg.probes import probes_of
from sdkeras.linalg.tridiagonal import nested_steps, quadrature
from sdkeras.results.estimates import Spectrum


@spectrum_estimator("slq", steps="num_steps", needs_basis=True)
@attrs.frozen
class StochasticLanczosQuadrature:
    """Stochastic Lanczos quadrature with one Rademacher probe.

    E over probes z of sum_j n * weight_j * f(theta_j) = trace f(A), exact in expectation for polynomials up to
    degree 2m - 1.

    Attributes:
        num_steps: Lanczos steps m (at most the operator's size).
        reorthogonalize: Keep the basis and orthogonalise against it. Without it the density stays right, but no
            residuals are reported.

    Reference: Ubaru, Chen, Saad (2017), Algorithm 1; Golub and Meurant (1994).
    """

    num_steps: int = attrs.field(default=40, validator=attrs.validators.ge(1))
    reorthogonalize: bool = True

    def estimate(self, source: SymmetricOperator, *, seed: int) -> Spectrum:
        """One probe's quadrature; weights sum to the operator's size."""
        probe = probes_of(source, 1, seed=seed)[0]
        run = lanczos(source.matvec, probe, self.num_steps, reorthogonalize=self.reorthogonalize)
        return self._spectrum(run, source.size, seed)

    def estimate_many(self, source: OperatorBatch, *, seeds: Sequence[int]) -> tuple[Spectrum, ...]:
        """One probe's quadrature of each operator, all runs in lockstep."""
        probes = [probes_of(source, 1, seed=seed)[0] for seed in seeds]
        runs = lanczos_many(source, probes, self.num_steps, reorthogonalize=self.reorthogonalize)
        return tuple(self._spectrum(run, source.size, seed) for run, seed in zip(runs, seeds, strict=True))

    def _spectrum(self, run: Tridiagonalization, size: int, seed: int) -> Spectrum:
        nested = None
        for steps in reversed(nested_steps(min(self.num_steps, size))):
            # Where the Krylov space ends sooner, the coarser rule is the run's own.
            nested = self._rule(run, min(steps, run.num_steps), size, seed, nested)
        return self._rule(run, run.num_steps, size, seed, nested)

    def _rule(self, run: Tridiagonalization, num_steps: int, size: int, seed: int, nested: Spectrum | None) -> Spectrum:
        nodes, weights, residuals = quadrature(*run.leading(num_steps))
        return Spectrum(
            nodes=nodes,
            weights=size * weights,
            num_matvecs=num_steps,
            seed=seed,
            residuals=residuals if self.reorthogonalize else None,
            nested=nested,
        )
