"""The spectrum as seen by a block of random probes."""

from __future__ import annotations

import attrs
import numpy as np

import sdkeras
from sdkeras.errors import NonFiniteError
from sdkeras.results.arrays import FloatArray

# What is left of a block counts as nothing below this many eps * |A|: three times the error of a network's products.
_DEFLATION = 30.0
# The coarser rule that checks num_steps has 7/10 of them; below this many steps it would say nothing.
_FEWEST_STEPS_FOR_NESTED = 4


@sdkeras.spectrum_estimator("block-slq")
@attrs.frozen
class BlockLanczosQuadrature:
    """Block Gauss quadrature with b random-sign probes, orthonormalised.

    Block Lanczos from Q_1 = orth(probes) gives T = Q' A Q, block tridiagonal. With T = Y diag(theta) Y', node j is
    theta[j] and its weight n/b * (Y[0, j]^2 + ... + Y[b - 1, j]^2). Probes with two coordinates swapped, or the sign
    of one turned, are as likely, so E[Q_1 Q_1'] = b/n * I and sum_j weight_j * f(theta_j) has the mean trace f(A) for
    polynomials f up to degree 2 * num_steps - 1. An eigenvalue of multiplicity k gets min(k, b) nodes, with a single
    probe just one; and a simple one's weight varies b times less.

    Attributes:
        num_steps: Block steps, each of b products; the analysis raises a field of this name where its check asks.
        block_size: Probes b (at most the operator's size). All the basis is kept: 8 * n * b * num_steps bytes.

    Reference: Golub and Meurant, Matrices, Moments and Quadrature with Applications (2010), chapter 6.
    """

    num_steps: int = attrs.field(default=20, validator=attrs.validators.ge(1))
    block_size: int = attrs.field(default=4, validator=attrs.validators.ge(1))

    def estimate(self, source: sdkeras.SymmetricOperator, *, seed: int) -> sdkeras.Spectrum:
        """One block's quadrature; weights sum to the operator's size.

        Raises:
            NonFiniteError: A product holds NaN or infinity.
        """
        size, eps = source.size, float(np.finfo(source.dtype).eps)
        most = min(size, self.num_steps * self.block_size)
        # Products come in source.dtype; all else is float64, which costs memory and spares the care that float32 needs.
        basis, t = np.zeros((size, most)), np.zeros((most + self.block_size, most))
        signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(size, min(self.block_size, size)))
        block, _ = _split(signs, basis[:, :0], smallest=eps * size)
        # ends[s]: columns of Q after s steps; a block that lost rank goes on narrower, an empty one ends the run.
        ends, scale = [0], 0.0
        while len(ends) <= self.num_steps and block.shape[1] > 0:
            start, end = ends[-1], ends[-1] + block.shape[1]
            ends.append(end)
            basis[:, start:end] = block
            product = np.asarray(source.matmat(block.astype(source.dtype)), np.float64)
            if not np.all(np.isfinite(product)):
                raise NonFiniteError(f"a product of block step {len(ends) - 1} holds NaN or infinity; try float64.")
            scale = max(scale, float(np.max(np.linalg.norm(product, axis=0))))
            along = basis[:, :end].T @ product
            block, coupling = _split(product - basis[:, :end] @ along, basis[:, :end], _DEFLATION * eps * scale)
            t[start:end, start:end] = along[start:]
            t[end : end + len(coupling), start:end] = coupling
        rule = self._rule(t, ends[1], ends[-1], size, eps * scale, seed)
        # After a breakdown the rule is exact for these probes: there is nothing to check.
        if block.shape[1] == 0 or len(ends) <= _FEWEST_STEPS_FOR_NESTED:
            return rule
        coarser = ends[(len(ends) - 1) * 7 // 10]
        return attrs.evolve(rule, nested=self._rule(t, ends[1], coarser, size, eps * scale, seed))

    def _rule(self, t: FloatArray, width: int, columns: int, size: int, rounding: float, seed: int) -> sdkeras.Spectrum:
        """The rule of T's leading columns; below them stands what couples them to the next block.

        With residuals the analysis knows converged, simple, extreme nodes and sets their weights, chi^2_b / b, to the
        mean 1; this made the error of a run 2 to 2.7 times smaller. Copies of a repeated eigenvalue must not count as
        simple: if there are k > b, each node carries k / b. Only rounding keeps these nodes apart, and couplings can be
        smaller still. With the rounding of a product in each residual, nodes so close never count as converged.
        """
        nodes, vectors = np.linalg.eigh(t[:columns, :columns])  # reads the lower triangle only
        left = np.linalg.norm(t[columns:, :columns] @ vectors, axis=0)
        return sdkeras.Spectrum(
            nodes=nodes,
            weights=size / width * np.sum(vectors[:width] ** 2, axis=0),
            residuals=left + rounding,
            num_matvecs=columns,
            seed=seed,
        )


def _split(block: FloatArray, basis: FloatArray, smallest: float) -> tuple[FloatArray, FloatArray]:
    """(Q, R) with Q R = block up to singular values of `smallest`; Q orthonormal, and orthogonal to the basis.

    Dividing by a small singular value magnifies what the block still has along the basis, hence the second pass.
    """
    left, values, right = np.linalg.svd(block, full_matrices=False)
    rank = min(int(np.sum(values > smallest)), len(basis) - basis.shape[1])
    left = left[:, :rank]
    q, r = np.linalg.qr(left - basis @ (basis.T @ left))
    return q, r @ (values[:rank, None] * right[:rank])
