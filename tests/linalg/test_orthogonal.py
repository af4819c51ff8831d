import numpy as np
import pytest

from sdkeras.errors import NonFiniteError
from sdkeras.linalg.orthogonal import orthogonalize, thin_qr
from sdkeras.linalg.vectors import dot, finite, norm


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dot_accumulates_in_float64(dtype):
    # 3 blocks, the last one ragged. A float32 running sum of 1e8 + many ones would stay at 1e8.
    values = np.ones(20_000, dtype)
    values[0] = 1e4
    assert dot(values, values) == 1e8 + 19_999
    assert dot(values, np.ones_like(values)) == 1e4 + 19_999


def test_norm_of_a_saturated_networks_product_does_not_vanish():
    # Squares of 1e-25 are below float32's smallest number.
    assert norm(np.full(100, 1e-25, np.float32)) == pytest.approx(1e-24, rel=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("share", [1.0, 1e-3])
def test_orthogonalize_leaves_eps_of_the_rest(dtype, share):
    generator = np.random.default_rng(0)
    basis = np.ascontiguousarray(thin_qr(generator.standard_normal((500, 30)))[0].T.astype(dtype))
    outside = generator.standard_normal(500)
    outside -= basis.astype(np.float64).T @ (basis.astype(np.float64) @ outside)
    vector = (basis.T.astype(np.float64) @ generator.standard_normal(30) + share * outside).astype(dtype)
    left = orthogonalize(vector, basis, np.empty(500, dtype))
    assert left == pytest.approx(np.linalg.norm(vector), rel=1e-6)
    assert left == pytest.approx(share * np.linalg.norm(outside), rel=1e-3)
    # Two passes: eps of what is left, for each of 30 rows, themselves orthonormal to a few eps. One pass would leave
    # eps * |before| = eps / share * left.
    assert np.max(np.abs(basis.astype(np.float64) @ vector)) <= 10 * np.finfo(dtype).eps * left


def test_thin_qr_is_unique():
    matrix = np.random.default_rng(0).standard_normal((9, 4))
    q, r = thin_qr(matrix)
    np.testing.assert_allclose(q @ r, matrix, atol=1e-14)
    np.testing.assert_allclose(q.T @ q, np.eye(4), atol=1e-14)
    assert np.all(np.diagonal(r) > 0)
    assert np.all(np.tril(r, -1) == 0)
    # An orthogonal matrix with positive diagonal R is its own Q.
    np.testing.assert_allclose(thin_qr(-q)[0], -q, atol=1e-14)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_finite_finds_one_bad_entry(bad):
    array = np.ones(100, np.float32)
    assert finite(array, "a product") is array
    array[37] = bad
    with pytest.raises(NonFiniteError, match="a product holds NaN or infinity"):
        finite(array, "a product")


def test_finite_accepts_entries_whose_sum_overflows():
    finite(np.full(10, 3e38, np.float32), "a product")
