"""Partial reorthogonalisation against full reorthogonalisation: the basis, what T says, and how much is read."""

from collections.abc import Callable

import numpy as np
import pytest

from oracles import rotated
from sdkeras.dimension.exponents import exponent_map
from sdkeras.dimension.pooling import read
from sdkeras.linalg import semiorthogonal
from sdkeras.linalg.lanczos import BREAKDOWN, lanczos
from sdkeras.linalg.orthogonal import orthogonalize
from sdkeras.linalg.probes import rademacher_probes, start_vector
from sdkeras.linalg.semiorthogonal import next_loss
from sdkeras.linalg.tridiagonal import quadrature, ritz
from sdkeras.results.estimates import Spectrum

DTYPES = [np.float32, np.float64]
MAP = exponent_map("sgd", 0.1)


@pytest.fixture(autouse=True)
def small_bases_are_no_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(semiorthogonal, "_IN_CACHE", 0)


def spectrum(kind: str, size: int) -> np.ndarray:
    bulk = np.random.default_rng(0).standard_normal(size - 12)
    return {
        "separated outliers": np.append(0.1 * bulk, np.geomspace(2, 50, 12)),
        "far outliers": np.append(1e-3 * bulk, np.geomspace(2, 50, 12)),
        "both ends": np.append(0.1 * bulk, np.geomspace(2, 50, 12) * (-1.0) ** np.arange(12)),
        "uniform": np.linspace(-1, 1, size),
        "decay": np.geomspace(1e-6, 10, size),
        "repeated outliers": np.append(0.1 * bulk, np.repeat([3.0, 10.0, 40.0], 4)),
    }[kind]


KINDS = ["separated outliers", "far outliers", "both ends", "uniform", "decay", "repeated outliers"]


def reflected(values: np.ndarray, dtype: type) -> Callable[[np.ndarray], np.ndarray]:
    """H diag(values) H with a Householder reflection H: a product of O(n) with rounding as in a network's."""
    values, axis = values.astype(dtype), start_vector(len(values), seed=7, dtype=dtype)

    def reflect(v: np.ndarray) -> np.ndarray:
        return v - 2 * (axis @ v) * axis

    return lambda v: reflect(values * reflect(v))


def dense(values: np.ndarray, dtype: type) -> Callable[[np.ndarray], np.ndarray]:
    matrix = rotated(values).astype(dtype)
    return lambda v: matrix @ v


def noisy(matvec: Callable[[np.ndarray], np.ndarray], along: bool) -> Callable[[np.ndarray], np.ndarray]:
    """Symmetric to 1e-6: an error of that size in a direction of its own each time, or always in the same one."""
    generator = np.random.default_rng(1)

    def multiply(v: np.ndarray) -> np.ndarray:
        product = matvec(v)
        direction = (np.random.default_rng(2) if along else generator).standard_normal(len(v))
        error = 1e-6 * np.linalg.norm(product.astype(np.float64)) / np.sqrt(len(v)) * direction
        return product + error.astype(v.dtype)

    return multiply


def full(
    matvec: Callable[[np.ndarray], np.ndarray], start: np.ndarray, num_steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """alpha and beta of Lanczos with two Gram-Schmidt passes in float64 against the whole basis at every step."""
    basis = [start.astype(np.float64) / np.linalg.norm(start.astype(np.float64))]
    alpha, beta = [], []
    for _ in range(num_steps):
        product = matvec(basis[-1].astype(start.dtype)).astype(np.float64)
        alpha.append(basis[-1] @ product)
        rows = np.array(basis)
        for _ in range(2):
            product -= rows.T @ (rows @ product)
        beta.append(np.linalg.norm(product))
        if beta[-1] <= BREAKDOWN * np.finfo(start.dtype).eps * np.max(np.abs(alpha)):
            beta[-1] = 0.0
            break
        basis.append(product / beta[-1])
    return np.array(alpha), np.array(beta)


def loss(basis: np.ndarray) -> float:
    q = basis.astype(np.float64)
    return float(np.max(np.abs(q @ q.T - np.eye(len(q)))))


def below(nodes: np.ndarray, weights: np.ndarray, points: np.ndarray) -> np.ndarray:
    return np.array([weights[nodes < point].sum() for point in points])


def assert_as_full(kind: str, matvec: Callable[[np.ndarray], np.ndarray], size: int, num_steps: int, dtype: type):
    """Semiorthogonal; nodes, masses of clusters of nodes and corrected masses as with full reorthogonalisation."""
    start, eps = rademacher_probes(size, 1, seed=0, dtype=dtype)[0], float(np.finfo(dtype).eps)
    run = lanczos(matvec, start, num_steps)
    assert run.basis is not None
    assert run.num_steps == num_steps
    assert loss(run.basis) < np.sqrt(eps)
    nodes, weights, residuals = quadrature(run.alpha, run.beta)
    expected, masses, bounds = quadrature(*full(matvec, start, num_steps))
    scale = np.max(np.abs(expected))
    wide = np.flatnonzero(np.diff(expected) > 1e-3 * scale)
    middles = 0.5 * (expected[wide] + expected[wide + 1])
    np.testing.assert_allclose(below(nodes, weights, middles), below(expected, masses, middles), atol=100 * eps)
    if kind == "repeated outliers":  # when a second copy comes out of rounding depends on the rounding
        return
    np.testing.assert_allclose(nodes, expected, rtol=0, atol=100 * eps * scale)
    corrected, truth = (
        read(Spectrum(x, size * w, num_matvecs=num_steps, seed=0, residuals=r), MAP).corrected.weights == 1.0
        for x, w, r in ((nodes, weights, residuals), (expected, masses, bounds))
    )
    np.testing.assert_array_equal(corrected, truth)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_steps", [100, 300])
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_is_that_of_full_reorthogonalisation(kind: str, num_steps: int, dtype: type) -> None:
    size = 2000
    matvec = reflected(spectrum(kind, size), dtype)
    assert_as_full(kind, matvec, size, num_steps, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_dense_products_whose_rounding_points_anywhere(kind: str, dtype: type) -> None:
    assert_as_full(kind, dense(spectrum(kind, 300), dtype), 300, 150, dtype)


@pytest.mark.parametrize("along", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_products_symmetric_to_1e_6(kind: str, along: bool) -> None:
    start = rademacher_probes(2000, 1, seed=0, dtype=np.float32)[0]
    matvec = reflected(spectrum(kind, 2000), np.float32)
    run = lanczos(noisy(matvec, along), start, 200)
    assert loss(run.basis) < np.sqrt(np.finfo(np.float32).eps)
    alpha, beta = full(matvec, start, 200)
    exact = ritz(alpha, beta[:-1])[0]
    found = ritz(run.alpha, run.beta[:-1])[0]
    np.testing.assert_allclose(found[[0, -1]], exact[[0, -1]], rtol=0, atol=1e-5 * exact[-1])


def test_the_recurrence_gives_the_inner_products_of_a_basis_that_is_not_orthogonal() -> None:
    # Plain Lanczos in float64, long after it has lost everything: rows of Q Q' follow from the two before.
    matvec, num_steps = reflected(spectrum("separated outliers", 500), np.float64), 80
    q, alpha, beta = [start_vector(500, seed=0, dtype=np.float64)], [], []
    for j in range(num_steps):
        product = matvec(q[j])
        alpha.append(q[j] @ product)
        product -= alpha[j] * q[j] + (beta[j - 1] * q[j - 1] if j else 0.0)
        beta.append(np.linalg.norm(product))
        q.append(product / beta[j])
    gram = np.array(q) @ np.array(q).T
    assert np.max(np.abs(gram - np.eye(num_steps + 1))) > 0.5
    for j in range(1, num_steps):
        known = gram[j, : j + 1].copy(), gram[j - 1, :j].copy()
        following = next_loss(np.array(alpha[: j + 1]), np.array(beta[: j + 1]), *known, np.zeros(j + 1))
        rounding = 100 * np.finfo(np.float64).eps * np.max(np.abs(alpha)) / beta[j]
        # Entry j is q_j' q_{j+1}, which is subtracted from the product: noise alone.
        np.testing.assert_allclose(following[:j], gram[j + 1, :j], rtol=1e-6, atol=rounding)


def test_the_recurrence_takes_several_runs_at_once() -> None:
    generator = np.random.default_rng(0)
    alpha, beta, current, noise = generator.uniform(0.1, 1, (4, 3, 6))
    before = generator.uniform(0, 1, (3, 5))
    together = next_loss(alpha, beta, current, before, noise)
    for run in range(3):
        alone = next_loss(alpha[run], beta[run], current[run], before[run], noise[run])
        np.testing.assert_array_equal(together[run], alone)


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of the basis that each orthogonalisation reads."""
    counts: list[int] = []

    def counted(vector: np.ndarray, basis: np.ndarray) -> tuple[np.ndarray, float]:
        counts.append(len(basis))
        return orthogonalize(vector, basis)

    monkeypatch.setattr(semiorthogonal, "orthogonalize", counted)
    return counts


@pytest.mark.parametrize(
    ("kind", "dtype", "most"),
    [("uniform", np.float64, 0.0), ("uniform", np.float32, 1 / 3), ("decay", np.float32, 1 / 3)],
)
def test_few_rows_of_the_basis_are_read(kind: str, dtype: type, most: float, rows: list[int]) -> None:
    """Of those that full reorthogonalisation reads, in the mean: a run's share follows its rounding errors."""
    for seed in range(10):
        start = rademacher_probes(2000, 1, seed=seed, dtype=dtype)[0]
        lanczos(reflected(spectrum(kind, 2000), dtype), start, 100)
    assert sum(rows) <= most * 10 * 100 * 101 / 2


def test_a_basis_that_fits_the_cache_is_read_whole(rows: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(semiorthogonal, "_IN_CACHE", 40 * 2000 * 8)
    start = rademacher_probes(2000, 1, seed=0, dtype=np.float64)[0]
    lanczos(reflected(spectrum("uniform", 2000), np.float64), start, 100)
    # Nothing is lost in the steps after those.
    assert rows == list(range(1, 41))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_run_that_starts_anew_stays_semiorthogonal(dtype: type) -> None:
    # Three different eigenvalues: a breakdown every three steps, and a new vector orthogonal to all before.
    values = [-1.0, 2.0, 5.0]

    def another(steps_done: int) -> np.ndarray:
        return start_vector(600, seed=1, dtype=dtype, stream=steps_done)

    run = lanczos(reflected(np.repeat(values, 200), dtype), another(0), 300, restart=another)
    assert run.num_steps == 300
    assert np.count_nonzero(run.beta == 0.0) >= 90
    assert loss(run.basis) < np.sqrt(np.finfo(dtype).eps)
    found = ritz(run.alpha, run.beta[:-1])[0]
    # The copies of an eigenvalue, one from each start.
    np.testing.assert_allclose(found, np.repeat(values, 100), atol=5 * 100 * np.finfo(dtype).eps)
