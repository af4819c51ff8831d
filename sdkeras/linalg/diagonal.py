"""The diagonal of a symmetric operator from products with random signs: Hutchinson's estimator, and XDiag."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, TypeAlias, get_args

import numpy as np

from sdkeras import seeds
from sdkeras.linalg.leave_one_out import Sketch
from sdkeras.linalg.operators import SymmetricOperator
from sdkeras.linalg.probes import rademacher_probes
from sdkeras.linalg.vectors import finite
from sdkeras.results.arrays import Array, FloatArray, is_number
from sdkeras.results.estimates import DiagonalEstimate

DiagonalMethod: TypeAlias = Literal["xdiag", "hutchinson"]
METHODS: tuple[DiagonalMethod, ...] = get_args(DiagonalMethod)
# Two estimates are the fewest with a standard error, and those of xdiag take two products each.
_FEWEST = {"xdiag": 4, "hutchinson": 2}
# Probes multiplied at once.
_CHUNK = 16


def diagonal(
    operator: SymmetricOperator, method: DiagonalMethod = "xdiag", *, num_products: int = 64, seed: int = 0
) -> DiagonalEstimate:
    """The diagonal of a symmetric operator, with the standard error of each entry.

    hutchinson: the mean of z * (A z), entry by entry, over `num_products` random signs z. Entry k has the variance of
    the squares of A's other entries in its row, over the number of probes. xdiag: half of the products finds the
    dominant range Q of A, the other half its exact share diag(Q Q'A), and each probe, left out of Q in turn, corrects
    what is left: far better where the eigenvalues decay, and exact where half of the products do for the range of A.
    With as many products as A has columns either is exact.

    Vectors are NumPy arrays, wherever the operator computes; XDiag keeps as many as `num_products`.

    Args:
        operator: A, such as `HessianOperator`, `GaussNewtonOperator` or `FisherOperator`.
        method: 'xdiag' or 'hutchinson'.
        num_products: Products with A, at most; 2 are the fewest, of xdiag 4.
        seed: Seed for the random signs.

    Returns:
        Values and standard errors, shape [n]. Those of xdiag are from the spread of its estimates, which are not
        independent, and hold in order of magnitude.

    Raises:
        TypeError: Not a SymmetricOperator.
        ValueError: An unknown method, or too few products.

    Example:
        >>> import numpy as np
        >>> from sdkeras.linalg.operators import DenseOperator
        >>> A = DenseOperator(np.diag([1.0, 2.0, 3.0]) + np.ones((3, 3)))
        >>> estimate = diagonal(A, num_products=6)
        >>> np.round(estimate.values, 12), estimate.num_matvecs
        (array([2., 3., 4.]), 3)

    Reference: Bekas, Kokiopoulou, Saad (2007); Epperly, Tropp, Webber (2024), section 2.4.
    """
    if not isinstance(operator, SymmetricOperator):
        raise TypeError(f"diagonal takes a SymmetricOperator, got {type(operator).__name__}.")
    seeds.checked(seed)
    if method not in METHODS:
        raise ValueError(f"method must be {' or '.join(map(repr, METHODS))}, got {method!r}.")
    if not is_number(num_products, whole=True) or num_products < _FEWEST[method]:
        raise ValueError(
            f"num_products is {num_products!r}; {method} needs a whole number of at least {_FEWEST[method]}."
        )
    if num_products >= operator.size:
        return DiagonalEstimate(np.diagonal(operator.as_matrix()), np.zeros(operator.size), operator.size, seed)
    if method == "hutchinson":
        return _estimate(_hutchinson(operator, num_products, seed), num_products, seed)
    half = num_products // 2
    probes = rademacher_probes(operator.size, half, seed=seed, dtype=operator.dtype)
    sketch = Sketch.of(operator, probes)
    within = np.einsum("kn,kn->n", sketch.basis, sketch.images, dtype=np.float64)
    if sketch.directions is None:
        return DiagonalEstimate(within, np.zeros(operator.size), sketch.num_matvecs, seed)
    return _estimate(_left_out(sketch, sketch.directions, probes, within), sketch.num_matvecs, seed)


def _hutchinson(operator: SymmetricOperator, num_products: int, seed: int) -> Iterator[Array]:
    """z * (A z) of each probe z."""
    for stream, start in enumerate(range(0, num_products, _CHUNK), 1):
        count = min(_CHUNK, num_products - start)
        probes = rademacher_probes(operator.size, count, seed=seed, dtype=operator.dtype, stream=stream)
        yield from probes * finite(operator.rows(probes), "a product with random probes")


def _left_out(sketch: Sketch, directions: FloatArray, probes: Array, within: FloatArray) -> Iterator[Array]:
    """diag(Q_i Q_i'A) + w_i * (I - Q_i Q_i') A w_i of each probe w_i: the second is q_i (s_i' r_i) with q_i = Q s_i."""
    for probe, direction, column in zip(probes, directions.T, sketch.factor.T, strict=True):
        left_out = direction @ sketch.basis
        yield within - left_out * (direction @ sketch.images) + (direction @ column) * probe * left_out


def _estimate(samples: Iterator[Array], num_products: int, seed: int) -> DiagonalEstimate:
    """Mean and standard error, entry by entry, of estimates of which one is in memory at a time."""
    mean: FloatArray = next(samples).astype(np.float64)
    squares, count = np.zeros_like(mean), 1
    for count, sample in enumerate(samples, 2):  # the last one is their number
        departure = sample - mean
        mean += departure / count
        squares += departure * (sample - mean)
    return DiagonalEstimate(mean, np.sqrt(squares / (count - 1) / count), num_products, seed)
