"""The definition: exact vectors, its three equivalent forms, and its invariances."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import sdkeras
from oracles import VECTORS
from sdkeras.dimension.exponents import ExponentMap, rds_sharpness
from sdkeras.dimension.pooling import quantile_average
from sdkeras.dimension.sharpness import crossing

exponents = arrays(np.float64, st.integers(1, 30), elements=st.floats(-5, 5).map(lambda x: round(x, 3)))


@pytest.mark.parametrize("case", VECTORS["sd_unweighted"])
def test_exact_vectors(case: dict) -> None:
    assert sdkeras.sharpness_dimension(case["exponents"]) == pytest.approx(case["sd"], abs=1e-12)
    assert sdkeras.sharpness_dimension(case["exponents"][::-1]) == pytest.approx(case["sd"], abs=1e-12)


@pytest.mark.parametrize("case", VECTORS["sd_weighted"])
def test_exact_weighted_vectors(case: dict) -> None:
    assert sdkeras.sharpness_dimension(case["exponents"], case["weights"]) == pytest.approx(case["sd"], abs=1e-12)


def test_diagonal_hessian() -> None:
    case = VECTORS["diagonal_hessian"]
    z = ExponentMap("sgd", case["learning_rate"])(np.array(case["eigenvalues"]))
    assert np.allclose(np.sort(z)[::-1], case["rds_sharpness"], atol=1e-14)
    found = crossing(z, np.ones(len(z)))
    assert found.value == pytest.approx(case["sd"], abs=1e-12)
    assert found.j_star == case["j_star"]
    assert found.threshold_exponent == pytest.approx(case["rds_sharpness"][case["j_star"]])


def test_two_minibatches() -> None:
    case = VECTORS["two_minibatches"]
    runs = [(np.array(z), np.ones(3)) for z in case["log_singular_values"]]
    average = quantile_average(runs, 3)
    assert np.allclose(rds_sharpness(average.z, average.widths).leading, case["rds_sharpness"])
    assert sdkeras.sharpness_dimension(average.z, average.widths) == pytest.approx(case["sd_definition"])
    pooled = np.concatenate(case["log_singular_values"])
    assert sdkeras.sharpness_dimension(pooled, np.full(6, 0.5)) == pytest.approx(case["sd_pooled"])
    single = [sdkeras.sharpness_dimension(z) for z in case["log_singular_values"]]
    assert np.mean(single) == pytest.approx(case["mean_of_sds"])


def test_zeros_are_added_to_every_minibatch() -> None:
    case = VECTORS["zeros_and_minibatches"]
    for z, expected in (
        (case["log_singular_values"], case),
        ([[*row, 0.0] for row in case["log_singular_values"]], case["with_one_zero_each"]),
    ):
        d = len(z[0])
        average = quantile_average([(np.array(row), np.ones(d)) for row in z], d)
        definition = sdkeras.sharpness_dimension(average.z, average.widths)
        assert definition == pytest.approx(expected["sd_definition"])
        pooled = sdkeras.sharpness_dimension(np.concatenate(z), np.full(2 * d, 0.5))
        assert pooled == pytest.approx(expected["sd_pooled"])


def test_continuous_uniform() -> None:
    for case in VECTORS["continuous_uniform"]["cases"]:
        count = 200_001
        z = np.linspace(-case["b"], case["a"], count)
        assert sdkeras.sharpness_dimension(z) / count == pytest.approx(case["sd_over_d"], abs=1e-4)


@given(exponents)
def test_minimum_form(z: np.ndarray) -> None:
    """SD = min over tau >= 0 of sum max(0, 1 + tau z); the kinks are at tau = -1/z."""
    kinks = np.concatenate([[0.0], -1.0 / z[z < 0]])
    least = min(np.sum(np.maximum(0.0, 1.0 + tau * z)) for tau in kinks)
    if z.max() < 0:
        least = min(least, 0.0)
    assert sdkeras.sharpness_dimension(z) == pytest.approx(least, abs=1e-9)


@given(exponents)
def test_codimension_form(z: np.ndarray) -> None:
    taus = np.concatenate([[0.0], -1.0 / z[z < 0], [1e12]])
    most = max(np.sum(np.minimum(1.0, -tau * z)) for tau in taus)
    assert len(z) - sdkeras.sharpness_dimension(z) == pytest.approx(most, abs=1e-6)


@given(exponents, st.integers(1, 20), st.floats(0.1, 10))
def test_zeros_and_scale(z: np.ndarray, zeros: int, scale: float) -> None:
    value = sdkeras.sharpness_dimension(z)
    assert sdkeras.sharpness_dimension(scale * z) == pytest.approx(value, abs=1e-6)
    assert sdkeras.sharpness_dimension(np.concatenate([z, np.zeros(zeros)])) == pytest.approx(value + zeros, abs=1e-9)


@pytest.mark.parametrize("bad", [[], [np.nan], [np.inf]])
def test_bad_exponents(bad: list) -> None:
    with pytest.raises(ValueError):
        sdkeras.sharpness_dimension(bad)


def test_bad_weights() -> None:
    with pytest.raises(ValueError, match="equally long"):
        sdkeras.sharpness_dimension([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match=">= 0"):
        sdkeras.sharpness_dimension([1.0], [-1.0])


def test_zero_singular_value_takes_no_part() -> None:
    assert sdkeras.sharpness_dimension([1.0, -np.inf]) == 1.0


def test_neutral_directions_are_not_shifted() -> None:
    assert np.all(ExponentMap("sgd", 0.125)(np.zeros(5)) == 0.0)
    assert ExponentMap("sgd", 0.125)(np.array([8.0]))[0] == pytest.approx(np.log(1e-12))
    assert ExponentMap("sgd", 0.125, weight_decay=0.5)(np.zeros(1))[0] == pytest.approx(np.log(0.9375))
