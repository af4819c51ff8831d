"""Shared truths: exact test vectors, matrices of chosen spectrum, dense Hessians by finite differences."""

import json
from pathlib import Path
from typing import Any

import numpy as np

VECTORS: dict[str, Any] = json.loads((Path(__file__).parent / "oracles.json").read_text())


def rotated(eigenvalues: Any, seed: int = 0) -> np.ndarray:
    """Q diag(eigenvalues) Q' with a random orthogonal Q: never diagonal, so that random signs say something."""
    values = np.asarray(eigenvalues, dtype=np.float64)
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(values), len(values))))
    q = q * np.sign(np.diag(r))
    return (q * values) @ q.T


def one_by_one(run: Any) -> Any:
    """What the loop over runs takes, from a function of one run's number and steps."""
    return lambda indices, steps: (run(index, steps) for index in indices)


def overlap(one: tuple[float, float], two: tuple[float, float]) -> bool:
    """Whether two intervals have a point in common."""
    return one[0] <= two[1] and two[0] <= one[1]


def finite_difference_hessian(loss: Any, step: float = 2e-6) -> np.ndarray:
    """Dense Hessian of an EmpiricalLoss from its gradient alone (first derivatives, central differences)."""
    columns = []
    for k in range(loss.size):
        shift = np.zeros(loss.size)
        shift[k] = step
        columns.append((loss.gradient(loss.point + shift) - loss.gradient(loss.point - shift)) / (2 * step))
    matrix = np.stack(columns, axis=1)
    return (matrix + matrix.T) / 2


def matrix_of(singular_values: Any, seed: int = 0, *, with_right: bool = False) -> Any:
    """U diag(singular_values) V' with random orthogonal U and V, never symmetric; and V if asked."""
    values = np.asarray(singular_values, dtype=np.float64)
    draws = np.random.default_rng(seed).standard_normal((2, len(values), len(values)))
    left, right = (np.linalg.qr(draw)[0] for draw in draws)
    matrix = (left * values) @ right.T
    return (matrix, right) if with_right else matrix
