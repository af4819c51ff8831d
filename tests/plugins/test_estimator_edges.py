"""Estimators at their edges: breakdown, repeated eigenvalues, warm starts, memory, seeds, calibration."""

import tracemalloc

import attrs
import numpy as np
import pytest

import sdkeras
from oracles import rotated
from sdkeras.errors import NonFiniteError, OperatorSizeError, SdkerasError
from sdkeras.linalg.operators import DenseOperator, FunctionOperator
from sdkeras.linalg.probes import rademacher_probes
from sdkeras.testing import CountingOperator
from sdkeras_plugins.exact import Exact, memory_needed
from sdkeras_plugins.lanczos import Lanczos
from sdkeras_plugins.power_iteration import PowerIteration
from sdkeras_plugins.quadrature import StochasticLanczosQuadrature
from sdkeras_plugins.randomized_trace import RandomizedTrace

DTYPES = [np.float32, np.float64]
REPEATED = np.repeat([-1.0, 2.0, 5.0], [4, 7, 3])


def operator(eigenvalues, dtype=np.float64):
    return DenseOperator(rotated(eigenvalues).astype(dtype))


# Quadrature


@pytest.mark.parametrize("dtype", DTYPES)
def test_quadrature_after_a_breakdown_is_exact_for_its_probe(dtype):
    source = operator(REPEATED, dtype)
    found = StochasticLanczosQuadrature(num_steps=10).estimate(source, seed=2)
    eps = float(np.finfo(dtype).eps)
    np.testing.assert_allclose(found.nodes, [-1, 2, 5], atol=100 * eps)
    # The weight of an eigenvalue is the probe's part in its eigenspace, from the dense eigenvectors.
    values, vectors = np.linalg.eigh(source.matrix.astype(np.float64))
    parts = (vectors.T @ rademacher_probes(14, 1, seed=2, dtype=dtype)[0]) ** 2
    masses = [parts[np.abs(values - node) < 0.1].sum() for node in (-1, 2, 5)]
    np.testing.assert_allclose(found.weights, masses, atol=100 * eps)
    assert found.num_matvecs == 3
    assert found.nested == attrs.evolve(found, nested=None)  # it ended before the coarser rule did
    assert found.residuals.tolist() == [0, 0, 0]


def test_quadrature_that_is_exact_has_the_coarser_rule_of_the_steps_that_there_are():
    found = StochasticLanczosQuadrature(num_steps=20).estimate(operator(np.linspace(-2, 3, 12)), seed=2)
    assert len(found.nodes) == 12
    assert not np.any(found.residuals)
    assert len(found.nested.nodes) == 8


def test_quadrature_moments_are_the_probes_own():
    source = operator(np.linspace(-2, 3, 40))
    found = StochasticLanczosQuadrature(num_steps=6).estimate(source, seed=5)
    probe = moment = rademacher_probes(40, 1, seed=5, dtype=np.float64)[0]
    for degree in range(12):
        assert found.weights @ found.nodes**degree == pytest.approx(probe @ moment, rel=1e-11)
        moment = source.matvec(moment)
    assert found.weights @ found.nodes**12 != pytest.approx(probe @ moment, rel=1e-6)


@pytest.mark.parametrize(("num_steps", "coarse"), [(1, None), (3, None), (4, 2), (10, 7), (19, 13), (30, 21)])
def test_nested_rule_has_seven_tenths_of_the_steps(num_steps, coarse):
    found = StochasticLanczosQuadrature(num_steps=num_steps).estimate(operator(np.linspace(-2, 3, 40)), seed=5)
    assert len(found.nodes) == num_steps
    if coarse is None:
        assert found.nested is None
    else:
        assert len(found.nested.nodes) == coarse
        alone = StochasticLanczosQuadrature(num_steps=coarse).estimate(operator(np.linspace(-2, 3, 40)), seed=5)
        assert attrs.evolve(found.nested, nested=None) == attrs.evolve(alone, nested=None)
    bare = attrs.evolve(StochasticLanczosQuadrature(num_steps=num_steps), reorthogonalize=False)
    assert bare.estimate(operator(np.linspace(-2, 3, 40)), seed=5).residuals is None


# Lanczos


@pytest.mark.parametrize("dtype", DTYPES)
def test_lanczos_returns_all_of_a_small_operator_once(dtype):
    for values in ([3.0], [-2.0, 5.0], [1.0, 1.0, 1.0], [0.0, 0.0], [-1.0, -1.0, 4.0]):
        found = Lanczos(num_largest=2, num_smallest=2, eigenvectors=True).estimate(operator(values, dtype), seed=0)
        np.testing.assert_allclose(found.values, sorted(values, reverse=True), atol=50 * np.finfo(dtype).eps)
        np.testing.assert_allclose(found.vectors.T @ found.vectors, np.eye(len(values)), atol=50 * np.finfo(dtype).eps)
        assert found.converged.all()
        assert found.num_matvecs == len(values)


def test_lanczos_counts_a_repeated_eigenvalue_as_often_as_the_krylov_space_needs():
    found = Lanczos(num_largest=3, num_smallest=4).estimate(operator(REPEATED), seed=0)
    # Seven values, none of them made up; three different ones are there.
    assert len(found.values) == 7
    np.testing.assert_allclose(np.min(np.abs(found.values[:, None] - [-1, 2, 5]), axis=1), 0, atol=1e-10)
    np.testing.assert_allclose(found.values[[0, -1]], [5, -1], atol=1e-10)


def test_lanczos_ends_at_a_breakdown_that_holds_all_that_is_wanted():
    found = Lanczos().estimate(operator(REPEATED), seed=0)
    np.testing.assert_allclose(found.values, [5, -1], atol=1e-12)
    assert found.num_matvecs == 3


def test_lanczos_goes_on_from_a_warm_start_that_is_an_eigenvector():
    source = operator(np.concatenate([np.linspace(-1, 1, 60), [4.0]]))
    _, vectors = np.linalg.eigh(source.matrix)
    found = Lanczos(start=vectors[:, -1], tolerance=1e-6).estimate(source, seed=0)
    np.testing.assert_allclose(found.values, [4, -1], atol=1e-6)
    assert found.converged.all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_lanczos_residuals_are_honest_down_to_rounding(dtype):
    source = operator(np.concatenate([np.linspace(-1, 1, 60), [50.0, -30.0]]), dtype)
    for steps in (5, 10, 20, 62):
        found = Lanczos(num_steps=steps, tolerance=1e-12, eigenvectors=True).estimate(source, seed=1)
        vectors = found.vectors.astype(np.float64)
        true = np.linalg.norm(source.matrix.astype(np.float64) @ vectors - vectors * found.values, axis=0)
        eps = float(np.finfo(dtype).eps)
        assert np.all(found.residuals >= eps * 50 * 0.99)
        # Equal to 1 % while above rounding, which is 60 terms of eps * |A| at most.
        assert np.all(np.abs(true - found.residuals) <= 0.01 * true + 60 * eps * 50)


def test_lanczos_stops_as_soon_as_it_has_what_is_wanted():
    source = operator(np.concatenate([np.linspace(-1, 1, 200), [50.0, -30.0]]))
    loose = Lanczos(tolerance=1e-2).estimate(source, seed=0)
    tight = Lanczos(tolerance=1e-10).estimate(source, seed=0)
    assert loose.num_matvecs < tight.num_matvecs < 40
    assert loose.converged.all()
    assert tight.converged.all()


@pytest.mark.parametrize("cls", [Lanczos, PowerIteration])
@pytest.mark.parametrize(
    ("start", "message"),
    [
        (np.ones(4), r"shape \(4,\); expected \(3,\) or \(3, k\)"),
        (np.ones((2, 3)), r"shape \(2, 3\)"),
        (np.array([1.0, np.nan, 0.0]), "norm nan"),
        (np.stack([np.ones(3), -np.ones(3)], axis=1), "norm 0"),
    ],
)
def test_a_warm_start_that_does_not_fit_is_refused(cls, start, message):
    with pytest.raises(ValueError, match=message):
        cls(start=start).estimate(operator([1.0, 2.0, 3.0]), seed=0)


def test_lanczos_must_be_asked_for_something():
    with pytest.raises(ValueError, match="both 0"):
        Lanczos(num_largest=0, num_smallest=0)


# Power iteration


def test_power_iteration_says_when_plus_and_minus_sigma_keep_it_from_converging():
    found = PowerIteration(num_steps=50).estimate(operator([-3.0, -1.0, 1.0, 3.0]), seed=0)
    assert not found.converged.any()
    assert found.residuals[0] > 0.5
    both = PowerIteration(which="both", num_steps=500).estimate(operator([-3.0, -1.0, 1.0, 3.0]), seed=0)
    np.testing.assert_allclose(both.values, [3, -3], atol=1e-2)


def test_power_iteration_never_returns_more_pairs_than_dimensions():
    for which in ("magnitude", "largest", "smallest", "both"):
        found = PowerIteration(num_eigenpairs=5, which=which, num_steps=2000).estimate(
            operator([-2.0, 1.0, 5.0]), seed=0
        )
        np.testing.assert_allclose(found.values, [5, 1, -2], atol=2e-2)


# Trace


def test_seeds_share_no_probes():
    # 20 seeds of 4 chunks: equal first signs would show as equal rows.
    drawn = [rademacher_probes(64, 1, seed=seed, dtype=np.float64, stream=k)[0] for seed in range(20) for k in range(4)]
    assert len(np.unique(np.stack(drawn), axis=0)) == 80
    source = operator(np.linspace(-1, 3, 50))
    values = [RandomizedTrace(num_probes=32).estimate(source, seed=seed).value for seed in range(40)]
    assert len(set(values)) == 40


def test_hutchinson_has_the_variance_that_theory_gives():
    matrix = rotated(np.linspace(-1, 3, 50))
    values = np.array(
        [RandomizedTrace(num_probes=16).estimate(DenseOperator(matrix), seed=s).value for s in range(400)]
    )
    # Var z'Az = 2 (|A|_F^2 - sum A_ii^2) for random signs (Hutchinson 1990); 16 probes each.
    variance = 2 * (np.sum(matrix**2) - np.sum(np.diagonal(matrix) ** 2)) / 16
    # The sample variance of 400 nearly normal values has relative standard error sqrt(2 / 399).
    assert values.var(ddof=1) == pytest.approx(variance, rel=5 * np.sqrt(2 / 399))
    assert abs(values.mean() - np.trace(matrix)) < 5 * np.sqrt(variance / 400)


def test_the_standard_error_of_two_probes_by_hand():
    source = operator(np.linspace(-1, 3, 50))
    found = RandomizedTrace(num_probes=2).estimate(source, seed=4)
    first, second = (z @ source.matvec(z) for z in rademacher_probes(50, 2, seed=4, dtype=np.float64, stream=1))
    assert found.value == pytest.approx((first + second) / 2, rel=1e-12)
    # Standard deviation |first - second| / sqrt(2), divided by sqrt(2).
    assert found.stderr == pytest.approx(abs(first - second) / 2, rel=1e-12)


@pytest.mark.parametrize("method", ["hutchinson", "hutch++"])
@pytest.mark.parametrize("num_probes", [4, 17, 50])
def test_the_budget_of_products_is_kept(method, num_probes):
    found = RandomizedTrace(num_probes=num_probes, method=method).estimate(operator(np.linspace(0, 1, 80)), seed=0)
    assert found.num_matvecs == num_probes
    assert found.num_probes == (num_probes if method == "hutchinson" else num_probes - 2 * (num_probes // 3))


@pytest.mark.parametrize("dtype", DTYPES)
def test_hutch_plus_plus_is_exact_where_the_sketch_holds_everything(dtype):
    whole = RandomizedTrace(num_probes=60, method="hutch++").estimate(operator(np.linspace(-1, 2, 20), dtype), seed=0)
    assert (whole.stderr, whole.num_matvecs, whole.num_probes) == (0.0, 20, 0)
    assert whole.value == pytest.approx(10.0, abs=20 * 20 * 2 * float(np.finfo(dtype).eps))
    low_rank = operator([5.0, -3.0, 1.0] + [0.0] * 97, dtype)
    found = RandomizedTrace(num_probes=30, method="hutch++").estimate(low_rank, seed=0)
    assert found.value == pytest.approx(3.0, abs=100 * 10 * float(np.finfo(dtype).eps))


def test_hutch_plus_plus_needs_four_products():
    with pytest.raises(ValueError, match="num_probes=3 is too few"):
        RandomizedTrace(num_probes=3, method="hutch++")


# Exact


@pytest.mark.parametrize("size", [1, 63, 64, 65, 200])
def test_exact_symmetrises_whatever_the_block(size):
    matrix = np.random.default_rng(0).standard_normal((size, size))
    matrix += matrix.T
    skew = np.random.default_rng(1).standard_normal((size, size))
    skew = 1e-4 * (skew - skew.T)
    found = Exact(chunk=50).estimate(FunctionOperator(size, lambda v: (matrix + skew) @ v), seed=0)
    np.testing.assert_allclose(found.nodes, np.linalg.eigvalsh(matrix), atol=1e-12 * size)


@pytest.mark.parametrize(("relative", "refused"), [(0.9e-3, False), (1.1e-3, True)])
def test_exact_measures_asymmetry_in_the_frobenius_norm(relative, refused):
    size = 150
    matrix = rotated(np.linspace(-1, 2, size))
    skew = np.random.default_rng(0).standard_normal((size, size))
    skew -= skew.T
    # A - A' = 2 * skew.
    skew *= relative * np.linalg.norm(matrix) / np.linalg.norm(2 * skew)
    source = FunctionOperator(size, lambda v: (matrix + skew) @ v)
    if refused:
        with pytest.raises(SdkerasError, match="not symmetric"):
            Exact().estimate(source, seed=0)
    else:
        Exact().estimate(source, seed=0)


@pytest.mark.parametrize(("size", "chunk"), [(700, 64), (300, 300)])
def test_exact_stays_within_the_memory_it_announces(size, chunk):
    # A diagonal operator needs no memory of its own.
    diagonal = np.linspace(-1, 1, size)
    source = FunctionOperator(size, lambda v: diagonal * v)
    source.matmat = lambda m: diagonal[:, None] * m
    tracemalloc.start()
    found = Exact(chunk=chunk).estimate(source, seed=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_allclose(found.nodes, diagonal, atol=1e-14)
    assert 8 * size * size < peak <= memory_needed(size, chunk)


def test_exact_says_what_it_needs_and_what_to_do():
    source = operator(np.linspace(0, 1, 50))
    counting = CountingOperator(source)
    with pytest.raises(OperatorSizeError, match=r"50 dimensions .*may be used; take the slq estimator.*`params`"):
        Exact(memory_gb=1e-4).estimate(counting, seed=0)
    assert counting.count == 0
    assert Exact(memory_gb=memory_needed(50) / 1e9).estimate(source, seed=0).exact


@pytest.mark.parametrize("kind_and_name", [("spectrum", "exact"), ("trace", "randomized-trace")])
def test_one_bad_product_is_named(kind_and_name):
    def matmat(matrix):
        product = np.array(matrix)
        product[3, -1] = np.inf
        return product

    source = FunctionOperator(9, lambda v: v)
    source.matmat = matmat
    with pytest.raises(NonFiniteError, match="NaN or infinity; check the weights"):
        sdkeras.get_estimator(*kind_and_name)().estimate(source, seed=0)
