"""The Lanczos process against its identities and dense eigenvalues."""

import numpy as np
import pytest

from oracles import rotated
from sdkeras.linalg.lanczos import lanczos
from sdkeras.linalg.probes import rademacher_probes, start_vector
from sdkeras.linalg.tridiagonal import quadrature, ritz


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("num_steps", [1, 2, 25])
def test_recurrence_and_orthogonality(dtype: type, num_steps: int) -> None:
    matrix = rotated(np.concatenate([np.linspace(-1, 1, 57), [20.0, 30.0, 50.0]])).astype(dtype)
    run = lanczos(lambda v: matrix @ v, start_vector(60, seed=1, dtype=dtype), num_steps)
    q = run.basis.astype(np.float64)
    m = run.num_steps
    assert m == num_steps
    # Semiorthogonal; the recurrence holds up to what a vector loses along the basis.
    eps = np.finfo(dtype).eps
    assert np.max(np.abs(q @ q.T - np.eye(m))) < np.sqrt(eps)
    t = np.diag(run.alpha) + np.diag(run.beta[:-1], 1) + np.diag(run.beta[:-1], -1)
    remainder = matrix.astype(np.float64) @ q.T - q.T @ t
    assert np.max(np.abs(remainder[:, :-1]), initial=0.0) < np.sqrt(eps) * 50
    assert np.isclose(np.linalg.norm(remainder[:, -1]), run.beta[-1], rtol=1e-4)


def test_full_run_gives_all_eigenvalues() -> None:
    values = np.sort(np.random.default_rng(3).standard_normal(30))
    matrix = rotated(values)
    run = lanczos(lambda v: matrix @ v, start_vector(30, seed=0, dtype=np.float64), 30)
    assert run.invariant
    assert run.beta[-1] == 0.0
    assert np.allclose(ritz(run.alpha, run.beta[:-1])[0], values, atol=1e-10)


def test_zero_operator_and_size_one() -> None:
    run = lanczos(lambda v: 0 * v, start_vector(5, seed=0, dtype=np.float32), 5)
    assert run.invariant
    assert run.num_steps == 1
    single = lanczos(lambda v: 3 * v, start_vector(1, seed=0, dtype=np.float64), 4)
    assert single.num_steps == 1
    assert np.isclose(single.alpha[0], 3.0)


def test_residuals_are_true_residuals() -> None:
    matrix = rotated(np.concatenate([np.linspace(-1, 1, 50), [9.0]]))
    run = lanczos(lambda x: matrix @ x, start_vector(51, seed=2, dtype=np.float64), 12)
    theta, vectors = ritz(run.alpha, run.beta[:-1])
    found = run.basis.T @ vectors
    true = np.linalg.norm(matrix @ found - found * theta, axis=0)
    assert np.allclose(quadrature(run.alpha, run.beta)[2], true, atol=1e-12)


def test_without_reorthogonalisation_the_density_stays_right() -> None:
    values = np.concatenate([np.linspace(0, 1, 180), np.geomspace(10, 1000, 20)])
    matrix = rotated(values).astype(np.float32)
    start = start_vector(200, seed=0, dtype=np.float32)
    kept = lanczos(lambda x: matrix @ x, start, 80)
    lost = lanczos(lambda x: matrix @ x, start, 80, reorthogonalize=False)
    assert lost.basis is None
    means = [np.sum(w * np.log1p(np.abs(x))) for x, w, _ in (quadrature(r.alpha, r.beta) for r in (kept, lost))]
    assert np.isclose(*means, rtol=1e-4)


def test_probes_are_signs_and_reproducible() -> None:
    probes = rademacher_probes(1000, 3, seed=4, dtype=np.float32)
    assert probes.shape == (3, 1000)
    assert set(np.unique(probes)) == {-1.0, 1.0}
    assert np.array_equal(probes, rademacher_probes(1000, 3, seed=4, dtype=np.float32))
    assert not np.array_equal(probes, rademacher_probes(1000, 3, seed=5, dtype=np.float32))
    assert np.max(np.abs(probes.mean(axis=1))) < 5 / np.sqrt(1000)
