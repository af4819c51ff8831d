"""The built-in estimators on matrices of known spectrum, and against SciPy's eigsh."""

import attrs
import numpy as np
import pytest
import scipy.sparse.linalg

import sdkeras
from oracles import rotated
from sdkeras.linalg.operators import DenseOperator, DiagonallyScaledOperator, Reduction
from sdkeras.linalg.probes import warm_start
from sdkeras.testing import CountingOperator

VALUES = np.concatenate([np.linspace(-0.5, 1.0, 90), [-4.0, -3.0, 6.0, 8.0, 12.0]])


def make(kind: str, name: str, **settings: object) -> object:
    return sdkeras.get_estimator(kind, name)(**settings)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_lanczos_finds_both_ends(dtype: type) -> None:
    matrix = rotated(VALUES)
    estimator = make("eigenpairs", "lanczos", num_largest=3, num_smallest=2, tolerance=1e-5, eigenvectors=True)
    found = estimator.estimate(DenseOperator(matrix.astype(dtype)), seed=0)
    assert np.allclose(found.values, [12, 8, 6, -3, -4], atol=1e-3)
    assert found.converged.all()
    true = np.linalg.norm(matrix @ found.vectors - found.vectors * found.values, axis=0)
    assert np.all(true < 2e-4 * 12)
    top = scipy.sparse.linalg.eigsh(matrix, k=3, which="LA", return_eigenvectors=False)
    low = scipy.sparse.linalg.eigsh(matrix, k=2, which="SA", return_eigenvectors=False)
    assert np.allclose(found.values, [*sorted(top)[::-1], *sorted(low)[::-1]], atol=1e-3)


def test_lanczos_never_names_one_eigenvalue_twice_and_says_when_it_has_not_converged() -> None:
    single = make("eigenpairs", "lanczos").estimate(DenseOperator(np.array([[5.0]])), seed=0)
    assert np.allclose(single.values, [5.0])
    hard = DenseOperator(rotated(np.linspace(0, 1, 300)))
    short = make("eigenpairs", "lanczos", num_steps=5).estimate(hard, seed=0)
    assert not short.converged.any()
    assert np.all(np.abs(short.values - [1, 0]) <= short.residuals + 0.2)


def test_lanczos_warm_start_saves_products() -> None:
    operator = DenseOperator(rotated(np.concatenate([np.linspace(-1, 1, 200), [1.3, -1.2]])))
    cold = make("eigenpairs", "lanczos", tolerance=1e-6, eigenvectors=True).estimate(operator, seed=0)
    warm = make("eigenpairs", "lanczos", tolerance=1e-6, start=cold.vectors).estimate(operator, seed=0)
    assert warm.num_matvecs < cold.num_matvecs / 2
    assert np.allclose(warm.values, cold.values, atol=1e-5)
    with pytest.raises(ValueError, match="warm start"):
        make("eigenpairs", "lanczos", start=np.zeros(202)).estimate(operator, seed=0)


def test_lanczos_from_a_mixed_start_follows_a_moving_operator_with_fewer_products() -> None:
    size, generator = 400, np.random.default_rng(0)
    values = np.concatenate([np.linspace(0, 1, size - 3), [1.05, 1.1, 1.2]])
    frame, turn = np.linalg.qr(generator.standard_normal((size, size)))[0], generator.standard_normal((size, size))
    turn = 1e-3 * (turn - turn.T)
    cold = warm = 0
    known = None
    for step in range(6):
        vectors = np.linalg.qr(frame + step * frame @ turn)[0]
        operator = DenseOperator((vectors * values) @ vectors.T)
        options = {"num_largest": 1, "num_smallest": 0, "tolerance": 1e-3, "eigenvectors": True}
        alone = make("eigenpairs", "lanczos", **options).estimate(operator, seed=step)
        if known is not None:
            start = warm_start(known, seed=step, dtype=np.float64)
            found = make("eigenpairs", "lanczos", start=start, min_steps=10, **options).estimate(operator, seed=step)
            assert found.values[0] == pytest.approx(1.2, abs=1e-3)
            cold, warm = cold + alone.num_matvecs, warm + found.num_matvecs
            known = found.vectors
        else:
            known = alone.vectors
    assert warm < 0.8 * cold


def test_a_mixed_start_finds_an_eigenvalue_that_has_outgrown_the_old_one() -> None:
    size = 400
    values = np.concatenate([np.linspace(-1, 1, size - 2), [2.0, 2.2]])
    before, after = rotated(values), rotated(np.concatenate([values[:-2], [2.4, 2.2]]))
    options = {"num_largest": 1, "num_smallest": 0, "tolerance": 1e-2, "eigenvectors": True}
    known = make("eigenpairs", "lanczos", **options).estimate(DenseOperator(before), seed=0).vectors
    stuck = make("eigenpairs", "lanczos", start=known, **options).estimate(DenseOperator(after), seed=0)
    assert stuck.values[0] == pytest.approx(2.2, abs=0.01)  # what the mixture is for: converged, and wrong
    assert stuck.converged[0]
    for seed in range(20):
        start = warm_start(known, seed=seed, dtype=np.float64)
        found = make("eigenpairs", "lanczos", start=start, min_steps=10, **options)
        assert found.estimate(DenseOperator(after), seed=seed).values[0] == pytest.approx(2.4, abs=0.01)


@pytest.mark.parametrize(
    ("which", "expected"),
    [("magnitude", [12.0, 8.0]), ("largest", [12.0, 8.0]), ("smallest", [-3.0, -4.0]), ("both", [12, 8, -3, -4])],
)
def test_power_iteration(which: str, expected: list[float]) -> None:
    operator = DenseOperator(rotated(VALUES))
    estimator = make(
        "eigenpairs",
        "power-iteration",
        num_eigenpairs=2,
        which=which,
        num_steps=3000,
        tolerance=1e-5,
        eigenvectors=True,
    )
    found = estimator.estimate(operator, seed=0)
    assert np.allclose(found.values, expected, atol=1e-3)
    true = np.linalg.norm(operator.matmat(found.vectors) - found.vectors * found.values, axis=0)
    assert np.allclose(true, found.residuals, atol=1e-3)
    assert np.allclose(found.vectors.T @ found.vectors, np.eye(len(expected)), atol=1e-13)


def test_power_iteration_largest_of_a_negative_definite_matrix() -> None:
    operator = DenseOperator(rotated([-9.0, -5.0, -2.0, -1.0]))
    found = make("eigenpairs", "power-iteration", which="both", num_steps=2000).estimate(operator, seed=0)
    assert np.allclose(found.values, [-1, -9], atol=2e-2)


def test_slq_is_unbiased_and_its_nodes_are_ritz_values() -> None:
    operator = DenseOperator(rotated(VALUES))
    runs = [make("spectrum", "slq", num_steps=30).estimate(operator, seed=seed) for seed in range(150)]
    assert all(np.isclose(run.size, len(VALUES)) for run in runs)
    sums = np.array([np.sum(run.weights * 1 / (10 + run.nodes)) for run in runs])
    truth = np.sum(1 / (10 + VALUES))
    error = sums.std(ddof=1) / np.sqrt(len(sums))
    assert abs(sums.mean() - truth) < 5 * error
    assert error < 0.01 * truth
    assert abs(runs[0].nodes[-1] - 12) <= max(runs[0].residuals[-1], 1e-12)


def test_exact_spectrum() -> None:
    for dtype, tolerance in ((np.float32, 1e-4), (np.float64, 1e-11)):
        found = make("spectrum", "exact", chunk=7).estimate(DenseOperator(rotated(VALUES).astype(dtype)), seed=0)
        assert found.exact
        assert np.allclose(found.nodes, np.sort(VALUES), atol=tolerance)
        assert np.all(found.weights == 1)


def test_exact_uses_the_reduction() -> None:
    class Split(DenseOperator):
        def reduced(self) -> Reduction:
            return Reduction(DenseOperator(self.matrix[:4, :4]), 0.25, 6)

    block = np.zeros((10, 10))
    block[:4, :4] = rotated([-1.0, 0.5, 2.0, 3.0])
    block[4:, 4:] = 0.25 * np.eye(6)
    found = make("spectrum", "exact").estimate(Split(block), seed=0)
    assert np.allclose(found.nodes, [-1, 0.25, 0.5, 2, 3])
    assert np.allclose(found.weights, [1, 6, 1, 1, 1])
    whole = make("spectrum", "exact", reduce=False).estimate(Split(block), seed=0)
    assert len(whole.nodes) == 10


@pytest.mark.parametrize("method", [pytest.param("hutchinson", marks=pytest.mark.slow), "hutch++", "xtrace"])
def test_trace_is_unbiased_with_an_honest_standard_error(method: str) -> None:
    operator = DenseOperator(rotated(VALUES))
    runs = [
        make("trace", "randomized-trace", num_probes=30, method=method).estimate(operator, seed=seed)
        for seed in range(0, 60_000, 200)
    ]
    values = np.array([run.value for run in runs])
    truth = VALUES.sum()
    spread = values.std(ddof=1)
    assert abs(values.mean() - truth) < 5 * spread / np.sqrt(len(values))
    pulls = (values - truth) / np.array([run.stderr for run in runs])
    # 300 standardised values: their standard deviation is 1 within 5/sqrt(600), Student's tails aside.
    assert 0.75 < pulls.std() < 1.35


def test_hutch_plus_plus_has_the_smaller_error_on_a_decaying_spectrum() -> None:
    operator = DenseOperator(rotated(np.concatenate([np.geomspace(100, 1, 10), np.zeros(150)])))
    errors = {
        method: make("trace", "randomized-trace", num_probes=60, method=method).estimate(operator, seed=0).stderr
        for method in ("hutchinson", "hutch++")
    }
    assert errors["hutch++"] < 1e-3 * errors["hutchinson"]


def test_xtrace_has_the_smaller_error_at_equal_products_where_eigenvalues_decay() -> None:
    """Root mean square of the relative errors over 20 seeds, with 60 products each."""
    operator = DenseOperator(rotated(0.7 ** np.arange(200)))
    truth = np.trace(operator.matrix)

    def error(method: str) -> float:
        estimator = make("trace", "randomized-trace", num_probes=60, method=method)
        return float(
            np.sqrt(np.mean([(estimator.estimate(operator, seed=k).value / truth - 1) ** 2 for k in range(20)]))
        )

    hutchinson, hutch_plus_plus, xtrace = map(error, ("hutchinson", "hutch++", "xtrace"))
    assert xtrace < 0.1 * hutch_plus_plus < 0.01 * hutchinson


def test_xtrace_of_low_rank_and_of_few_dimensions_is_exact() -> None:
    estimator = make("trace", "randomized-trace", num_probes=60, method="xtrace")
    operator = CountingOperator(DenseOperator(rotated(np.concatenate([np.geomspace(100, 1, 10), np.zeros(150)]))))
    found = estimator.estimate(operator, seed=0)
    assert found.stderr == 0
    assert found.num_matvecs == operator.count < 45  # 30 of the probes, and the range that a few of them span
    assert found.value == pytest.approx(np.geomspace(100, 1, 10).sum(), rel=1e-12)
    small = estimator.estimate(DenseOperator(np.eye(30)), seed=0)
    assert (small.value, small.num_matvecs) == (30.0, 30)


def test_trace_stops_at_its_tolerance() -> None:
    operator = DenseOperator(rotated(np.linspace(1, 2, 200)))
    found = make("trace", "randomized-trace", num_probes=200, tolerance=0.05).estimate(operator, seed=0)
    assert found.num_matvecs < 200
    assert found.stderr <= 0.05 * found.value


def test_scaled_operator_has_the_spectrum_of_the_preconditioned_matrix() -> None:
    matrix, p = rotated(VALUES), np.random.default_rng(0).uniform(0.5, 2, len(VALUES))
    scaled = DiagonallyScaledOperator(DenseOperator(matrix), 1 / np.sqrt(p))
    found = make("spectrum", "exact").estimate(scaled, seed=0)
    assert np.allclose(found.nodes, np.sort(np.linalg.eigvals(matrix / p[:, None]).real))


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError):
        make("spectrum", "slq", num_steps=0)
    assert attrs.evolve(make("spectrum", "slq"), num_steps=7).num_steps == 7
