"""Balancing of a matrix in blocks: the diagonal scaling in which rows and columns weigh the same."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sdkeras.operators.base import Array

# A coupling in one direction only, J_ab = 0 and J_ba not, has no balance: the larger the factor, the smaller |J_ba|,
# without end. It ends where what is left of J_ba is this much in each direction, far below what SD can feel.
_RESIDUAL_COUPLING = 1e-6
_SWEEPS = 1000
_CONVERGED = 1e-10


def balancing_factors(norms: Array, sizes: Sequence[int]) -> Array:
    """Factors f > 0, f_0 = 1, for which the blocks f_a J_ab / f_b are balanced.

    For each group a but the first, the squares of the norms in its rows and in its columns then have the same sum
    (off the diagonal): the scaling of least Frobenius norm, unique where every group is coupled to the first, however
    indirectly. Other units of a group change its factor and nothing else. A group that is coupled to nothing keeps
    factor 1.

    Where the coupling of two groups goes one way only (a slot that nothing reads, or that reads nothing) the least
    norm is not attained. |J_ab| therefore counts as 1e-12 sqrt(n_a n_b) / |J_ba| at least, which is as free of units:
    what the scaling leaves of J_ba is then 1e-6 for each dimension.

    Args:
        norms: |J_ab| (Frobenius), shape [groups, groups].
        sizes: Dimensions n_a of each group.

    Reference: Osborne (1960); Parlett and Reinsch (1969).
    """
    squares = np.asarray(norms, np.float64) ** 2
    np.fill_diagonal(squares, 0.0)
    floor = _RESIDUAL_COUPLING**4 * np.outer(sizes, sizes).astype(np.float64)
    back = squares.T
    squares = squares + np.where(back > 0, floor / np.where(back > 0, back, 1.0), 0.0)
    logs = np.zeros(len(squares))  # of f^2
    for _ in range(_SWEEPS):
        moved = 0.0
        for a in range(1, len(squares)):
            scaled = squares * np.exp(logs[:, None] - logs[None, :])
            row, column = float(scaled[a].sum()), float(scaled[:, a].sum())
            if row > 0 and column > 0:
                change = 0.5 * float(np.log(column) - np.log(row))
                logs[a] += change
                moved = max(moved, abs(change))
        if moved < _CONVERGED:
            break
    factors: Array = np.exp(0.5 * logs)
    return factors
