import numpy as np
import pytest

from sdkeras.linalg.tridiagonal import quadrature, ritz


def test_gauss_legendre_from_its_recurrence():
    # Legendre polynomials on [-1, 1]: alpha = 0, beta_k = k / sqrt(4 k^2 - 1) (Golub and Welsch 1969).
    k = np.arange(1, 9)
    beta = k / np.sqrt(4.0 * k**2 - 1)
    nodes, weights, residuals = quadrature(np.zeros(8), beta)
    expected_nodes, expected_weights = np.polynomial.legendre.leggauss(8)
    np.testing.assert_allclose(nodes, expected_nodes, atol=1e-14)
    np.testing.assert_allclose(2 * weights, expected_weights, atol=1e-14)
    # The next orthonormal polynomial at a node of the rule: residual = beta_m |Y[m - 1, j]|, and
    # Y[m - 1, j] = sqrt(weight_j) * p_{m-1}(node_j), p_7 = sqrt(15) * P_7.
    p7 = np.sqrt(15.0) * np.polynomial.legendre.Legendre.basis(7)(expected_nodes)
    np.testing.assert_allclose(residuals, beta[-1] * np.sqrt(expected_weights / 2) * np.abs(p7), atol=1e-13)


def test_chebyshev_closed_form():
    # T with diagonal 0 and off-diagonal 1/2 has eigenvalues cos(j pi / (m + 1)).
    theta, vectors = ritz(np.zeros(10), np.full(9, 0.5))
    np.testing.assert_allclose(theta, np.cos(np.arange(10, 0, -1) * np.pi / 11), atol=1e-14)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(10), atol=1e-13)


def test_one_step():
    nodes, weights, residuals = quadrature(np.array([3.0]), np.array([0.25]))
    assert (nodes.tolist(), weights.tolist(), residuals.tolist()) == ([3.0], [1.0], [0.25])


def test_split_tridiagonal_matrix():
    # A zero off-diagonal entry: two blocks, a repeated eigenvalue; the start vector sees the first block only.
    nodes, weights, _ = quadrature(np.array([1.0, 1.0]), np.array([0.0, 0.0]))
    assert nodes.tolist() == [1.0, 1.0]
    assert weights.sum() == pytest.approx(1.0)
