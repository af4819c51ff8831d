"""sd-slq, sd-kde and sd-ps against the paper's formulas written out from the same Ritz values, and in their limits."""

import attrs
import numpy as np
import pytest
import scipy.optimize
import scipy.stats

import sdkeras
from oracles import one_by_one, rotated
from sdkeras.dimension.estimate import Context
from sdkeras.dimension.exponents import ExponentMap
from sdkeras.dimension.sampling import AdaptiveSettings, Outcome, estimate_sharpness_dimension
from sdkeras.estimators.select import estimator_of_spectrum, settings_of
from sdkeras.linalg.operators import DenseOperator
from sdkeras.results.estimates import Spectrum
from sdkeras_plugins.paper_estimators import density

ETA = 0.125
EPS = 1e-6
NUM_RUNS = 6
# Flat directions, a bulk, negative curvature and three steps beyond 2/eta = 16.
VALUES = np.concatenate([np.linspace(-2e-3, 2e-3, 60), np.linspace(0.2, 1.0, 20), [-1.5, -0.7, -0.3], [4, 9, 16.5, 18]])
SIZE = len(VALUES)
MATRICES = [rotated(VALUES * (1 + 0.02 * k), seed=k) for k in range(NUM_RUNS)]
PLAIN = ExponentMap("hessian", ETA)


def ritz(index: int, steps: int = 25) -> Spectrum:
    slq = sdkeras.get_estimator("spectrum", "slq")(num_steps=steps)
    return slq.estimate(DenseOperator(MATRICES[index]), seed=index)


RITZ = [ritz(index) for index in range(NUM_RUNS)]
THETA = np.concatenate([run.nodes for run in RITZ])
MASS = np.concatenate([run.weights for run in RITZ]) / NUM_RUNS
Z = np.log(np.abs(1 - ETA * THETA) + EPS)


def found(name: str, **settings: object) -> Outcome:
    """The pooled answer of the analysis' own loop."""
    estimator = estimator_of_spectrum(name, {"num_steps": 25, **settings}, PLAIN)

    def run(index: int, steps: int | None) -> Spectrum:
        return estimator.estimate(DenseOperator(MATRICES[index]), seed=index)

    context = Context(
        size=SIZE,
        exponents=PLAIN,
        unstable_above=2 / ETA,
        ignored_decay=0.0,
        product_error=1e-16,
        estimator=name,
        settings=settings_of(estimator),
        own_rate=True,
    )
    return estimate_sharpness_dimension(one_by_one(run), context, AdaptiveSettings(fixed_runs=NUM_RUNS), num_steps=25)


def value(name: str, **settings: object) -> float:
    return found(name, **settings).sharpness_dimension.value


def codes(outcome: Outcome) -> set[str]:
    return {warning.code for warning in outcome.warnings}


def formula(z: np.ndarray, mass: np.ndarray) -> float:
    """Def. 4.2 with weights, one entry after the other."""
    order = sorted(range(len(z)), key=lambda k: -z[k])
    upper, total, last = 0.0, 0.0, 0.0
    kept = (0.0, 0.0, None)
    for k in order:
        if total >= 0 and total + mass[k] * z[k] < 0:
            kept = (upper, total, z[k])
        upper, total, last = upper + mass[k], total + mass[k] * z[k], z[k]
    if total >= 0:
        return upper
    upper, total, last = kept
    return 0.0 if last is None else upper + total / abs(last)


UNCHANGED = formula(np.log(np.abs(1 - ETA * THETA)), MASS)


@pytest.mark.parametrize(("width", "edge"), [(0.015, 0.0), (0.015, 0.0075), (0.1, 0.02), (1e-4, 0.0)])
def test_sd_slq_is_the_formula_on_the_histogram_of_all_runs(width: float, edge: float) -> None:
    edges = edge + width * np.arange(np.floor(-15 / width), np.ceil(2 / width))
    heights, _ = np.histogram(Z, edges, weights=MASS)
    expected = formula(edges[:-1] + width / 2, heights)
    assert value("sd-slq", bin_width=width, bin_edge=edge) == pytest.approx(expected, abs=1e-6)


def crossing_of_density(points: np.ndarray, mass: np.ndarray, bandwidth: float) -> float:
    """SD of a Gaussian mixture by closed forms: U(t) and L(t) of each Gaussian above t, and the root of L."""

    def upper(t: float) -> float:
        return float(mass @ scipy.stats.norm.sf((t - points) / bandwidth))

    def moment(t: float) -> float:
        where = (t - points) / bandwidth
        return float(mass @ (points * scipy.stats.norm.sf(where) + bandwidth * scipy.stats.norm.pdf(where)))

    if mass @ points >= 0:
        return float(mass.sum())
    return upper(scipy.optimize.brentq(moment, -40.0, 0.0, xtol=1e-14))


@pytest.mark.parametrize("bandwidth", [1e-4, 1e-3, 1e-2, 0.1])
def test_sd_kde_is_the_crossing_of_the_smoothed_density(bandwidth: float) -> None:
    """Midpoints of cells of h/4 integrate a kink of slope 1/|t*| to (h/4)^2/8/|t*| of the density there."""
    outcome = found("sd-kde", bandwidth=bandwidth)
    expected = crossing_of_density(Z, MASS, bandwidth)
    t_star = abs(outcome.sharpness_dimension.threshold_exponent)
    density = float(MASS @ scipy.stats.norm.pdf((-t_star - Z) / bandwidth)) / bandwidth
    # Twice, since the density changes over a cell; 1e-5 for tails beyond 6 h.
    tolerance = 1e-5 + 2 * (bandwidth / 4) ** 2 / 8 / t_star * density
    assert outcome.sharpness_dimension.value == pytest.approx(expected, abs=tolerance)
    assert tolerance < 1e-3 * expected


def test_the_density_is_the_closed_form_and_the_cells_hold_its_mass() -> None:
    bandwidth, run = 0.05, RITZ[0]
    mixture = density(np.log(1 - ETA * run.nodes[:5]), run.weights[:5], bandwidth)
    points, mass = np.log(1 - ETA * run.nodes[:5]), run.weights[:5] / run.weights[:5].sum()
    at = np.linspace(points.min() - 0.3, points.max() + 0.3, 41)
    scaled = (at[:, None] - points) / bandwidth
    np.testing.assert_allclose(mixture.cdf(at), scipy.stats.norm.cdf(scaled) @ mass, atol=1e-14)
    np.testing.assert_allclose(mixture.prob(at), scipy.stats.norm.pdf(scaled) @ mass / bandwidth, rtol=1e-10)
    smoothed = estimator_of_spectrum("sd-kde", {"num_steps": 25, "bandwidth": bandwidth, "offset": 1e-13}, PLAIN)
    cells = smoothed.estimate(DenseOperator(MATRICES[0]), seed=0)
    whole = density(np.log(np.abs(1 - ETA * run.nodes)), run.weights, bandwidth)
    z = np.log(np.abs(1 - ETA * cells.nodes))
    edges = (np.unique(np.round(z / (bandwidth / 4))) + 0.5) * bandwidth / 4
    below = [cells.weights[z < edge].sum() / SIZE for edge in edges]
    np.testing.assert_allclose(below, whole.cdf(edges), atol=4e-9)  # 2e-9 beyond 6 h at either end


@pytest.mark.parametrize(("count", "bandwidth"), [(7, 1e-3), (50, 1e-2), (150, 1e-3)])
def test_sd_ps_is_the_formula_on_the_quantiles_of_each_run(count: int, bandwidth: float) -> None:
    z = []
    for run in RITZ:
        points = ETA * run.nodes
        for level in (np.arange(count) + 0.5) / count * SIZE:

            def excess(x: float, points=points, run=run, level=level) -> float:
                return float(run.weights @ scipy.stats.norm.cdf((x - points) / bandwidth)) - level

            step = scipy.optimize.brentq(excess, points[0] - 1, points[-1] + 1, xtol=1e-14)
            z.append(np.log(abs(1 - step) + EPS))
    expected = formula(np.array(z), np.full(len(z), SIZE / count / NUM_RUNS))
    outcome = found("sd-ps", num_quantiles=count, bandwidth=bandwidth)
    # Mass is even within a cell of h/4, over which the density changes by a quarter or so: a quantile is off by an
    # eighth of that, h/128.
    allowed = SIZE * bandwidth / 128 / abs(outcome.sharpness_dimension.threshold_exponent)
    assert outcome.sharpness_dimension.value == pytest.approx(expected, abs=allowed)
    assert abs(expected - UNCHANGED) > 3 * allowed
    assert ("coarse-quantiles" in codes(outcome)) == (count < SIZE)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("sd-slq", {"bin_width": 1e-9}),
        ("sd-kde", {"bandwidth": 1e-8}),
        ("sd-ps", {"bandwidth": 1e-8, "num_quantiles": 200_000}),
    ],
)
def test_fine_bins_kernels_and_quantiles_leave_the_quadrature(name: str, settings: dict[str, float]) -> None:
    outcome = found(name, offset=1e-13, **settings)
    estimate = outcome.sharpness_dimension
    assert estimate.value == pytest.approx(UNCHANGED, abs=2e-3)
    assert not {code for code in codes(outcome) if code.startswith("coarse")}
    # Negative curvature and steps beyond 2/eta have the same z > 0 and stay apart.
    slq = np.log(np.abs(1 - ETA * THETA))
    assert estimate.expansion_negative_curvature == pytest.approx((MASS * slq)[(slq > 0) & (THETA < 0)].sum(), rel=1e-2)
    assert estimate.expansion_unstable == pytest.approx((MASS * slq)[(slq > 0) & (THETA > 2 / ETA)].sum(), rel=1e-2)
    assert estimate.expansion_unstable > 0.01


def test_the_offset_moves_neutral_directions_up() -> None:
    fine = {"bin_width": 1e-9}
    shifted = np.log(np.abs(1 - ETA * THETA) + 1e-4)
    assert value("sd-slq", offset=1e-4, **fine) == pytest.approx(formula(shifted, MASS), abs=1e-3)
    assert value("sd-slq", offset=1e-4, **fine) > UNCHANGED + 0.01


@pytest.mark.parametrize(
    ("name", "settings"),
    [("sd-slq", {"bin_width": 0.2}), ("sd-kde", {"bandwidth": 3e-4}), ("sd-ps", {"num_quantiles": 13})],
)
def test_a_run_has_the_mass_of_the_operator_and_the_products_of_its_lanczos_run(
    name: str, settings: dict[str, float]
) -> None:
    estimator = estimator_of_spectrum(name, settings, PLAIN)
    assert estimator.num_steps == 100
    run = attrs.evolve(estimator, num_steps=20).estimate(DenseOperator(MATRICES[0]), seed=4)
    assert run.size == pytest.approx(SIZE, rel=1e-14)
    assert run.num_matvecs == 20
    assert run.nested is None
    assert run.residuals is None
    assert run == attrs.evolve(estimator, num_steps=20).estimate(DenseOperator(MATRICES[0]), seed=4)


def test_widths_that_decide_the_answer_are_told() -> None:
    for name, setting, code in (
        ("sd-slq", "bin_width", "coarse-bins"),
        ("sd-kde", "bandwidth", "coarse-bandwidth"),
        ("sd-ps", "bandwidth", "coarse-bandwidth"),
    ):
        assert code in codes(found(name, **{setting: 0.05}))
        assert code not in codes(found(name, **{setting: 1e-5}))
    # All neutral directions in one bin whose middle is above 0: saturated, and without t*.
    saturated = found("sd-slq", bin_width=0.5, bin_edge=-0.1)
    assert saturated.sharpness_dimension.value == SIZE
    assert "coarse-bins" in codes(saturated)


def test_a_kernel_makes_no_negative_curvature() -> None:
    """Neutral directions smeared to both sides of 0 add h/sqrt(2 pi) each to E+ and are not reported as curvature."""
    convex = [rotated(np.concatenate([np.zeros(70), np.linspace(0.5, 2, 10)]), seed=k) for k in range(4)]
    estimator = estimator_of_spectrum("sd-kde", {"num_steps": 20}, PLAIN)
    context = Context(80, PLAIN, 2 / ETA, 0.0, 1e-16, "sd-kde", settings_of(estimator), own_rate=True)

    def run(index: int, steps: int | None) -> Spectrum:
        return estimator.estimate(DenseOperator(convex[index]), seed=index)

    outcome = estimate_sharpness_dimension(one_by_one(run), context, AdaptiveSettings(fixed_runs=4), num_steps=20)
    assert outcome.sharpness_dimension.expansion == pytest.approx(70 * 1e-3 / np.sqrt(2 * np.pi), rel=0.2)
    assert "negative-curvature" not in codes(outcome)


@pytest.mark.parametrize("name", ["sd-slq", "sd-kde", "sd-ps"])
@pytest.mark.parametrize(
    "other",
    [ExponentMap("heavy-ball", ETA, momentum=0.5), ExponentMap("sgd", ETA, 1e-3), ExponentMap("adam", ETA, 0, 0.9)],
)
def test_another_map_is_refused(name: str, other: ExponentMap) -> None:
    with pytest.raises(sdkeras.SdkerasError, match="`map='hessian'`"):
        estimator_of_spectrum(name, {}, other)


def test_the_rate_is_that_of_the_analysis() -> None:
    assert estimator_of_spectrum("sd-kde", {}, ExponentMap("sgd", ETA)).learning_rate == ETA
    assert estimator_of_spectrum("sd-kde", {"learning_rate": ETA}, PLAIN).learning_rate == ETA
    with pytest.raises(sdkeras.SdkerasError, match=r"learning_rate is 0\.5"):
        estimator_of_spectrum("sd-kde", {"learning_rate": 0.5}, PLAIN)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("sd-slq", {"bin_width": 0.0}),
        ("sd-slq", {"offset": 0.0}),
        ("sd-kde", {"bandwidth": float("inf")}),
        ("sd-kde", {"bandwidth": float("nan")}),
        ("sd-ps", {"num_quantiles": 0}),
    ],
)
def test_settings_out_of_range_are_refused(name: str, settings: dict[str, float]) -> None:
    with pytest.raises(sdkeras.SdkerasError, match=r"settings of \w+: "):
        estimator_of_spectrum(name, settings, PLAIN)
