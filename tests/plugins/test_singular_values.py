"""The estimators of singular values: quadrature against all of them, evidence, refusals; and their use for SD."""

import attrs
import numpy as np
import pytest

import sdkeras
from oracles import matrix_of, one_by_one
from sdkeras.dimension import pooling
from sdkeras.dimension.estimate import Context
from sdkeras.dimension.exponents import SingularValueMap
from sdkeras.dimension.sampling import AdaptiveSettings, estimate_sharpness_dimension
from sdkeras.errors import NonFiniteError, OperatorSizeError
from sdkeras.runs.measure import as_spectrum
from sdkeras.testing.operators import MatrixMap

# A step: some growth, much that is neutral, averages that forget, and what lies below every threshold.
STEP = np.concatenate([[1.9, 1.5, 1.2], np.ones(60), np.linspace(0.999, 0.7, 60), np.full(24, 0.1), [1e-9, 0, 0]])
COUNT = len(STEP)


def estimator(name: str, **settings: object):
    return sdkeras.get_estimator("singular_values", name)(**settings)


def sharpness(values) -> float:
    return sdkeras.sharpness_dimension(values.log_values, weights=values.weights)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_both_estimators_give_all_singular_values(dtype: type) -> None:
    distinct = np.linspace(0.01, 2, 40)
    source = MatrixMap(matrix_of(distinct).astype(dtype))
    exact, full = estimator("dense-svd").estimate(source, seed=0), estimator("golub-kahan").estimate(source, seed=0)
    assert exact.exact
    assert not full.exact
    for found in (exact, full):
        assert np.allclose(np.exp(found.log_values), distinct[::-1], rtol=0, atol=100 * np.finfo(dtype).eps)
        assert found.weights.sum() == pytest.approx(40)
    assert np.array_equal(exact.weights, np.ones(40))
    assert np.all(full.residuals == 0)
    assert len(full.nested.log_values) == 28
    assert (exact.num_matvecs, full.num_matvecs) == (40, 79)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_zeros_stand_at_the_floor_or_at_rounding(dtype: type) -> None:
    found = estimator("dense-svd").estimate(MatrixMap(matrix_of(STEP).astype(dtype)), seed=0)
    assert np.all(np.exp(found.log_values[-3:]) < 1e-6)
    assert np.all(found.log_values >= np.log(1e-12) - 1e-12)
    zero = estimator("golub-kahan").estimate(MatrixMap(np.zeros((5, 5), dtype)), seed=0)
    assert np.allclose(zero.log_values, np.log(1e-12))
    assert zero.weights.sum() == 5


def test_the_coarser_rule_is_that_of_fewer_steps() -> None:
    source = MatrixMap(matrix_of(STEP))
    found = estimator("golub-kahan", num_steps=20).estimate(source, seed=3)
    shorter = estimator("golub-kahan", num_steps=14).estimate(source, seed=3)
    assert np.array_equal(found.nested.log_values, shorter.log_values)
    assert np.array_equal(found.nested.weights, shorter.weights)
    assert (found.num_matvecs, found.nested.num_matvecs) == (40, 28)
    assert found.residuals is not None
    local = estimator("golub-kahan", num_steps=20, reorthogonalize=False).estimate(source, seed=3)
    assert local.residuals is None
    assert local.nested is not None


@pytest.mark.slow
def test_sums_over_the_rules_are_unbiased() -> None:
    """Mean over probes of sum w f(sigma), with f SD's own (1 + ln sigma / |t|)_+, within 5 standard errors."""
    source, t = MatrixMap(matrix_of(STEP)), 0.3
    z = np.log(np.maximum(STEP, 1e-12))
    truth = np.maximum(0, 1 + z / t).sum()
    sums = []
    for seed in range(240):
        found = estimator("golub-kahan", num_steps=30).estimate(source, seed=seed)
        sums.append(found.weights @ np.maximum(0, 1 + found.log_values / t))
    error = np.std(sums, ddof=1) / np.sqrt(240)
    assert abs(np.mean(sums) - truth) < 5 * error
    assert 5 * error < 0.04 * truth


def test_memory_and_nan_are_refused() -> None:
    with pytest.raises(OperatorSizeError, match=r"150 dimensions need .* take the golub-kahan estimator"):
        estimator("dense-svd", memory_gb=1e-5).estimate(MatrixMap(np.eye(150)), seed=0)
    for name in ("dense-svd", "golub-kahan"):
        with pytest.raises(NonFiniteError):
            estimator(name).estimate(MatrixMap(np.full((3, 3), np.nan)), seed=0)


def loop(matrices: list, name: str, runs: int, *, correct: bool = True, num_steps: int | None = None):
    made = estimator(name) if num_steps is None else estimator(name, num_steps=num_steps)

    def run(index: int, steps: int | None):
        found = as_spectrum(made.estimate(MatrixMap(matrices[index % len(matrices)]), seed=index))
        return found if correct else sdkeras.Spectrum(found.nodes, found.weights, num_matvecs=1, seed=0)

    context = Context(COUNT, SingularValueMap("weights"), None, 0.0, 1e-16, name)
    return estimate_sharpness_dimension(
        one_by_one(run), context, AdaptiveSettings(fixed_runs=runs), num_steps=num_steps
    )


def test_the_loop_finds_sd_of_maps_and_mass_correction_narrows_it() -> None:
    """The largest three carry mass 1 each once they have converged: what they add to SD no longer varies."""
    matrices = [matrix_of(STEP, seed) for seed in range(6)]
    truth = sharpness(estimator("dense-svd").estimate(MatrixMap(matrices[0]), seed=0))
    exact = loop(matrices, "dense-svd", 6).sharpness_dimension
    assert exact.value == pytest.approx(truth, abs=1e-6)
    assert exact.definition_value == pytest.approx(truth, abs=1e-6)
    assert (exact.map, exact.coordinates, exact.state_size) == ("full", "weights", COUNT)
    assert exact.frozen_lyapunov is None
    with_masses = loop(matrices, "golub-kahan", 48, num_steps=40).sharpness_dimension
    without = loop(matrices, "golub-kahan", 48, correct=False, num_steps=40).sharpness_dimension
    assert with_masses.interval[0] < truth < with_masses.interval[1]
    assert without.interval[0] < truth < without.interval[1]
    widths = [found.interval[1] - found.interval[0] for found in (with_masses, without)]
    assert widths[0] < 0.8 * widths[1]


def test_repeated_singular_values_switch_the_correction_off() -> None:
    repeated = np.concatenate([[2.0, 2.0, 2.0], STEP[3:]])
    found = loop([matrix_of(repeated, seed) for seed in range(4)], "golub-kahan", 40, num_steps=30)
    notes = {note.code: note.message for note in found.warnings}
    assert "repeated singular values" in notes["mass-correction-off"]


def test_neutral_singular_values_are_never_taken_as_simple() -> None:
    """A sigma of 1 to 1e-6 stands for many directions; the same node away from 1 is accepted."""

    def masses(top: float):
        run = sdkeras.Spectrum([0.5, top, 3.0], [1.2, 0.8, 1.4], num_matvecs=1, seed=0, residuals=[1e-9, 1e-9, 0.1])
        return pooling.read(run, SingularValueMap("weights")).corrected.weights

    assert masses(1.0 + 1e-7) == pytest.approx([1.0, 0.8 * 2.4 / 2.2, 1.4 * 2.4 / 2.2])
    assert masses(1.01) == pytest.approx([1.0, 1.0, 1.4])
    assert SingularValueMap("weights")(np.array([0.0, 1.0]))[0] == np.log(1e-12)


def test_a_few_steps_that_miss_the_small_ones_do_not_make_sd_saturated() -> None:
    """As of Adam: singular values up to 100, and small ones that the first Krylov spaces do not tell from the bulk."""
    values = np.concatenate([np.geomspace(100, 3, 30), np.linspace(1.2, 0.85, 120), np.geomspace(0.1, 0.005, 50)])
    matrices = [matrix_of(values, seed) for seed in range(6)]
    truth = sharpness(estimator("dense-svd").estimate(MatrixMap(matrices[0]), seed=0))
    assert truth < 195
    made = estimator("golub-kahan", num_steps=20)

    def run(index: int, steps: int):
        one = attrs.evolve(made, num_steps=steps)
        return as_spectrum(one.estimate(MatrixMap(matrices[index % 6]), seed=index))

    context = Context(200, SingularValueMap("weights"), None, 0.0, 1e-16, "golub-kahan")
    short = AdaptiveSettings(fixed_runs=24, max_steps=20)
    missed = estimate_sharpness_dimension(one_by_one(run), context, short, num_steps=20)
    assert missed.sharpness_dimension.value > 199.9
    assert "nested-check-failed" in {note.code for note in missed.warnings}
    found = estimate_sharpness_dimension(one_by_one(run), context, AdaptiveSettings(fixed_runs=24), num_steps=20)
    assert found.sharpness_dimension.num_steps > 20
    low, high = found.sharpness_dimension.interval
    assert low - 0.5 < truth < high + 0.5
    assert high < 200
    assert "nested-check-failed" not in {note.code for note in found.warnings}
