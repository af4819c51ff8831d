import numpy as np
import pytest

from sdkeras.errors import NonFiniteError
from sdkeras.linalg.orthogonal import orthogonalize, thin_qr
from sdkeras.linalg.vectors import dot, finite, norm


@pytest.mark.parametrize(("dtype", "count"), [(np.float32, 8_000), (np.float32, 20_000), (np.float64, 20_000)])
def test_dot_accumulates_in_float64(dtype, count):
    # The last block is ragged. A float32 running sum of 1e8 + many ones would stay at 1e8.
    values = np.ones(count, dtype)
    values[0] = 1e4
    # A few eps where long vectors are multiplied in float32: of the block that 1e8 is in.
    allowed = 4 * np.finfo(dtype).eps * 1e8 if count == 20_000 and dtype == np.float32 else 0.0
    assert abs(dot(values, values) - (1e8 + count - 1)) <= allowed
    assert dot(values, np.ones_like(values)) == 1e4 + count - 1


def test_dot_of_long_vectors_is_exact_to_much_less_than_eps():
    generator = np.random.default_rng(0)
    for count in (8_193, 100_000, 270_001):
        first, second = generator.standard_normal((2, count)).astype(np.float32)
        exact = float(first.astype(np.float64) @ second.astype(np.float64))
        assert abs(dot(first, second) - exact) < 0.05 * np.finfo(np.float32).eps * norm(first) * norm(second)
        assert dot(first[::2], second[::2]) == pytest.approx(float(first[::2].astype(float) @ second[::2]), rel=1e-4)


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_dot_of_long_vectors_neither_vanishes_nor_overflows(scale):
    values = np.full(20_000, scale, np.float32)
    assert dot(values, values) == pytest.approx(20_000 * float(values[0]) ** 2, rel=1e-12)


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
    vector, left = orthogonalize(vector, basis)
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
