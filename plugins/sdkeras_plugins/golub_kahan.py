"""Singular values as seen by one random probe: Golub-Kahan-Lanczos quadrature."""

from __future__ import annotations

import attrs
import numpy as np

from sdkeras.estimators.kinds import singular_values_estimator
from sdkeras.linalg.bidiagonal import Bidiagonalization, bidiagonalize
from sdkeras.linalg.operators import LinearMap
from sdkeras.linalg.probes import probes_of
from sdkeras.linalg.tridiagonal import nested_steps
from sdkeras.results.arrays import SMALLEST_FACTOR
from sdkeras.results.estimates import SingularValues


@singular_values_estimator("golub-kahan", steps="num_steps", needs_basis=True)
@attrs.frozen
class GolubKahan:
    """Golub-Kahan-Lanczos quadrature with one Rademacher probe.

    E over probes of sum_j weight_j f(sigma_j^2) = trace f(J'J), exact in expectation for polynomials f up to degree
    2m - 1; each of the m steps takes a product with J and one with J'. All n steps give all singular values.

    The bidiagonal form keeps what J itself resolves, down to about eps * sigma_1 (1e-7 sigma_1 in float32), where
    Lanczos on J'J would end at sqrt(eps) * sigma_1. Below that a value is rounding, and values that differ by less than
    30 eps sigma_1 count as one: work in float64 where sigma_1 is far above the rest. The nodes are Ritz values of J'J,
    which resolve the largest singular values first: many small ones of different size near 0 come out as few nodes
    among them, since J'J hardly tells 1e-3 from 1e-5. `nested` shows when a sum over nodes needs more steps. Values
    below 1e-12 count as 1e-12.

    Attributes:
        num_steps: Steps m (at most the map's size), two products each.
        reorthogonalize: Full reorthogonalisation of both bases. Without it the density stays right, but no residuals
            are reported and the bases are not kept in memory.

    Reference: Golub and Kahan (1965); Golub and Meurant (1994); Ubaru, Chen, Saad (2017).
    """

    num_steps: int = attrs.field(default=40, validator=attrs.validators.ge(1))
    reorthogonalize: bool = True

    def estimate(self, source: LinearMap, *, seed: int) -> SingularValues:
        """One probe's quadrature; weights sum to the map's size."""
        probe = probes_of(source, 1, seed=seed)[0]
        run = bidiagonalize(source.jvp, source.vjp, probe, self.num_steps, reorthogonalize=self.reorthogonalize)
        nested = None
        for steps in reversed(nested_steps(min(self.num_steps, source.size))):
            # Where the Krylov space ends sooner, the coarser rule is the run's own.
            nested = self._rule(run, min(steps, run.num_steps), source.size, seed, nested)
        return self._rule(run, run.num_steps, source.size, seed, nested)

    def _rule(
        self, run: Bidiagonalization, num_steps: int, size: int, seed: int, nested: SingularValues | None
    ) -> SingularValues:
        nodes, weights, residuals = run.rule(num_steps)
        return SingularValues(
            log_values=np.log(np.maximum(nodes, SMALLEST_FACTOR))[::-1],
            weights=size * weights[::-1],
            num_matvecs=run.num_products if num_steps == run.num_steps else 2 * num_steps,
            seed=seed,
            residuals=residuals[::-1] if self.reorthogonalize else None,
            nested=nested,
        )
