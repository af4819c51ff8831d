"""The Lanczos kernel where it is delicate: the end of a Krylov space, rounding, restarts, unusable products."""

import numpy as np
import pytest

from oracles import rotated
from sdkeras.errors import NonFiniteError
from sdkeras.linalg.lanczos import lanczos

DTYPES = [np.float32, np.float64]
# Three different values only: a Krylov space has three dimensions.
REPEATED = np.repeat([-1.0, 2.0, 5.0], [4, 7, 3])
VALUES = np.linspace(-2, 5, 30)


def product_with(eigenvalues, dtype=np.float64):
    matrix = rotated(eigenvalues).astype(dtype)
    return lambda vector: matrix @ vector


def start(size, dtype, seed=0):
    return np.random.default_rng(seed).standard_normal(size).astype(dtype)


def tridiagonal(run):
    return np.diag(run.alpha) + np.diag(run.beta[:-1], 1) + np.diag(run.beta[:-1], -1)


@pytest.mark.parametrize("reorthogonalize", [True, False])
def test_ritz_values_of_the_second_dimension_by_hand(reorthogonalize):
    # A = diag(1, 3), v = (1, 1) / sqrt(2): alpha_1 = 2, beta_1 = 1, alpha_2 = 2.
    run = lanczos(lambda v: np.array([1.0, 3.0]) * v, np.ones(2), 2, reorthogonalize=reorthogonalize)
    np.testing.assert_allclose(run.alpha, [2, 2], atol=1e-15)
    np.testing.assert_allclose(run.beta, [1, 0], atol=1e-15)


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e15])
@pytest.mark.parametrize("dtype", DTYPES)
def test_breakdown_is_found_at_any_scale_and_no_sooner(dtype, scale):
    scale = dtype(scale)
    size = 2000
    # Outliers at 1 and a bulk of radius 200 eps, whose betas are half of that: small beside them, but not rounding.
    bulk = 200 * float(np.finfo(dtype).eps)
    values = (np.concatenate([[1.0, 1.0, -1.0], np.linspace(-bulk, bulk, size - 3)]) * scale).astype(dtype)
    run = lanczos(lambda v: values * v, np.ones(size, dtype), 6)
    assert (run.num_steps, run.invariant) == (6, False)
    # A bulk of exact zeros is a breakdown after the three different eigenvalues.
    values[3:] = 0
    run = lanczos(lambda v: values * v, np.ones(size, dtype), 6)
    assert (run.num_steps, run.invariant) == (3, True)


def test_low_rank_in_many_dimensions_breaks_down():
    # Rounding in float32 must not hide the end of the Krylov space, whatever n.
    size, rank = 200_000, 4
    generator = np.random.default_rng(0)
    factor = generator.standard_normal((size, rank)).astype(np.float32) / np.float32(np.sqrt(size))
    run = lanczos(lambda v: factor @ (factor.T @ v), start(size, np.float32), 30)
    assert run.invariant
    # The null space is one more eigenvalue; a step or two more made of rounding do no harm.
    assert rank + 1 <= run.num_steps <= rank + 3
    exact = np.linalg.eigvalsh(factor.T.astype(np.float64) @ factor)
    np.testing.assert_allclose(np.linalg.eigvalsh(tridiagonal(run))[-rank:], exact, rtol=1e-5)


def test_without_reorthogonalisation_n_steps_are_not_called_exact():
    values = np.concatenate([np.linspace(0, 1, 57), [50.0, 60.0, 70.0]])
    matvec = product_with(values, np.float32)
    run = lanczos(matvec, start(60, np.float32), 60, reorthogonalize=False)
    assert run.basis is None
    assert not run.invariant
    # Ghosts: more Ritz values near 70 than the one eigenvalue there. Full reorthogonalisation has one.
    assert np.sum(np.abs(np.linalg.eigvalsh(tridiagonal(run)) - 70) < 0.01) > 1
    run = lanczos(matvec, start(60, np.float32), 60)
    assert np.sum(np.abs(np.linalg.eigvalsh(tridiagonal(run)) - 70) < 0.01) == 1


def test_orthogonality_in_float32_over_a_long_run():
    # Converging outliers are what makes plain Lanczos lose orthogonality.
    size = 20_000
    generator = np.random.default_rng(0)
    values = np.concatenate([np.linspace(10, 1000, 30), 0.1 * generator.standard_normal(size - 30)]).astype(np.float32)
    axis = start(size, np.float32, 1)
    axis /= np.linalg.norm(axis)

    def matvec(v):  # a Householder reflection of a diagonal matrix
        w = values * (v - 2 * (axis @ v) * axis)
        return w - 2 * (axis @ w) * axis

    run = lanczos(matvec, start(size, np.float32), 100)
    q = run.basis.astype(np.float64)
    assert np.max(np.abs(q @ q.T - np.eye(100))) < np.sqrt(np.finfo(np.float32).eps)
    plain = lanczos(matvec, start(size, np.float32), 100, reorthogonalize=False)
    assert np.sum(np.abs(np.linalg.eigvalsh(tridiagonal(plain)) - 1000) < 1) > 1


def test_restart_finds_the_copies_of_repeated_eigenvalues():
    seen = []

    def another(steps_done):
        seen.append(steps_done)
        return start(len(REPEATED), np.float64, 100 + steps_done)

    run = lanczos(product_with(REPEATED), start(len(REPEATED), np.float64), 14, restart=another)
    assert seen[0] == 3
    np.testing.assert_allclose(run.basis @ run.basis.T, np.eye(14), atol=1e-13)
    np.testing.assert_allclose(np.linalg.eigvalsh(tridiagonal(run)), REPEATED, atol=1e-12)


def test_until_sees_every_step_and_ends_the_run():
    calls = []

    def until(alpha, beta):
        calls.append((alpha.copy(), beta.copy()))
        return len(alpha) == 4

    run = lanczos(product_with(VALUES), start(len(VALUES), np.float64), 20, until=until)
    assert [len(alpha) for alpha, _ in calls] == [1, 2, 3, 4]
    assert run.num_steps == 4
    assert not run.invariant
    np.testing.assert_array_equal(calls[1][1], run.beta[:2])
    longer = lanczos(product_with(VALUES), start(len(VALUES), np.float64), 20)
    for part, whole in zip(longer.leading(4), (run.alpha, run.beta), strict=True):
        np.testing.assert_array_equal(part, whole)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("reorthogonalize", [True, False])
def test_a_product_that_is_not_finite_says_at_which_step(bad, reorthogonalize):
    multiply, count = product_with(VALUES, np.float32), 0

    def matvec(v):
        nonlocal count
        count += 1
        product = multiply(v)
        if count == 3:
            product[7] = bad
        return product

    with pytest.raises(NonFiniteError, match=r"Lanczos step 3 .* check the weights"):
        lanczos(matvec, start(len(VALUES), np.float32), 9, reorthogonalize=reorthogonalize)


@pytest.mark.parametrize("bad", [np.zeros(4), np.array([1, np.nan, 0, 0]), np.array([1, np.inf, 0, 0])])
def test_a_start_vector_must_point_somewhere(bad):
    with pytest.raises(ValueError, match="start vector has norm"):
        lanczos(lambda v: v, bad, 2)


def test_a_product_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"shape \(4, 1\), expected \(4,\)"):
        lanczos(lambda v: v[:, None], np.ones(4), 2)


def test_products_may_be_read_only_and_are_not_changed():
    kept = np.arange(1.0, 5.0)
    kept.flags.writeable = False
    run = lanczos(lambda v: kept, np.ones(4), 2)
    assert run.alpha[0] == pytest.approx(5.0)
