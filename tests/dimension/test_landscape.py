"""Directions, quadratic models and worst cases, against closed forms and an exact trust-region problem."""

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize

from sdkeras.dimension.landscape import (
    ascend,
    ball_maximum,
    filter_normalized,
    holds_to,
    principal_components,
    quadratic_change,
)


def test_filters_have_the_lengths_of_the_weights_own() -> None:
    generator = np.random.default_rng(0)
    weights = [generator.standard_normal(shape) for shape in ((3, 3, 2, 4), (5, 3), (3,))]
    weights[1][:, 1] = 0.0
    direction = [generator.standard_normal(weight.shape) for weight in weights]
    direction[0][..., 2] = 0.0
    kernel, dense, bias = filter_normalized(direction, weights)
    for k in (0, 1, 3):
        assert np.linalg.norm(kernel[..., k]) == pytest.approx(np.linalg.norm(weights[0][..., k]))
        assert np.vdot(kernel[..., k], direction[0][..., k]) > 0
    assert not kernel[..., 2].any()
    assert not dense[:, 1].any()
    assert not bias.any()
    # A filter and the direction through it scaled together give the same loss in a scale-invariant net.
    scaled = filter_normalized(direction[:1], [weights[0] * 7.0])[0]
    np.testing.assert_allclose(scaled, 7.0 * kernel)


def test_principal_components_are_those_of_the_centered_matrix() -> None:
    generator = np.random.default_rng(0)
    iterates = np.cumsum(generator.standard_normal((12, 40)), axis=0).astype("float32")
    origin = iterates[-1].astype(float)
    components, shares, path = principal_components(iterates, origin, 2)
    centered = iterates - iterates.mean(axis=0, dtype=float)
    _, values, vectors = np.linalg.svd(centered, full_matrices=False)
    np.testing.assert_allclose(np.abs(np.sum(components * vectors[:2], axis=1)), 1, rtol=1e-6)
    np.testing.assert_allclose(components @ components.T, np.eye(2), atol=1e-6)
    np.testing.assert_allclose(shares, values[:2] ** 2 / np.sum(values**2), rtol=1e-6)
    np.testing.assert_allclose(path, components @ (iterates - origin).T, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="span 1 dimensions"):
        principal_components(np.outer(np.arange(4.0), np.ones(5)), np.zeros(5), 2)


def test_a_quadratic_holds_as_far_as_its_cubic_is_small() -> None:
    """x^2 + a x^3 is off by a|x| of the quadratic: a tenth at |x| = 1/(10 a)."""
    at = np.linspace(-1, 1, 401)[:, None]
    changes = at[:, 0] ** 2 + 0.25 * at[:, 0] ** 3
    assert holds_to(at, changes, np.zeros(1), np.array([[2.0]]), rounding=0.0) == pytest.approx(0.4, abs=0.006)
    unknown = np.where(np.abs(at[:, 0]) > 0.2, np.nan, changes)
    assert holds_to(at, unknown, np.zeros(1), np.array([[2.0]]), rounding=0.0) == pytest.approx(0.2, abs=0.006)
    assert holds_to(at, changes + 1.0 * (at[:, 0] != 0), np.zeros(1), np.eye(1), rounding=0.0) == 0.0
    model, scale = quadratic_change(np.array([1.0, -2.0]), np.diag([2.0, 4.0]), np.array([[3.0, 1.0]]))
    assert (model[0], scale[0]) == (3 - 2 + 9 + 2, 1 + 11)


def exact(gradient: np.ndarray, hessian: np.ndarray, radius: float) -> float:
    """The maximum on the boundary by the secular equation, from SciPy's eigenvalues and a bracket of its own."""
    values, vectors = scipy.linalg.eigh(hessian)
    parts = vectors.T @ gradient
    norm = lambda mu: np.sum((parts / (mu - values)) ** 2) - radius**2  # noqa: E731
    mu = scipy.optimize.brentq(norm, values[-1] + 1e-12, values[-1] + np.linalg.norm(gradient) / radius + 1)
    e = vectors @ (parts / (mu - values))
    return float(gradient @ e + 0.5 * e @ hessian @ e)


def symmetric(values: list[float], seed: int) -> np.ndarray:
    turn = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(values), len(values))))[0]
    return turn @ np.diag(values) @ turn.T


SPECTRA = {
    "convex": [0.1, 0.5, 1.0, 3.0, 9.0, 10.0],
    "indefinite": [-20.0, -3.0, 0.0, 1.0, 4.0, 5.0],
    "flat": [0.0, 0.0, 0.0, 0.0, 1e-3, 1.0],
}


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("radius", [0.05, 1.0, 30.0])
def test_ascent_on_a_quadratic_reaches_the_maximum_over_the_ball(spectrum: str, radius: float) -> None:
    for seed in range(5):
        hessian = symmetric(SPECTRA[spectrum], seed)
        gradient = np.random.default_rng(100 + seed).standard_normal(6)
        truth = exact(gradient, hessian, radius)
        found, where = ball_maximum(gradient, hessian, radius)
        assert found == pytest.approx(truth, rel=1e-8)
        assert np.linalg.norm(where) == pytest.approx(radius, rel=1e-8)
        top = np.linalg.eigh(hessian)[1][:, -1]
        ascent = ascend(
            lambda e, g=gradient, h=hessian: 1.5 + g @ e + 0.5 * e @ h @ e,
            lambda e, g=gradient, h=hessian: g + h @ e,
            (1.5, gradient),
            radius,
            [top, -top],
            200,
        )
        assert ascent.value - 1.5 <= truth * (1 + 1e-9)
        assert ascent.value - 1.5 == pytest.approx(truth, rel=1e-4)
        assert ascent.distance <= radius * (1 + 1e-9)
        sam = radius * gradient / np.linalg.norm(gradient)
        assert ascent.first == pytest.approx(1.5 + gradient @ sam + 0.5 * sam @ hessian @ sam)


def test_the_maximum_over_a_ball_where_there_is_no_gradient_or_it_lies_inside() -> None:
    """The hard case: radius^2 lambda/2 along the top eigenvector; and a concave function's own maximum."""
    hessian = symmetric([-1.0, 2.0, 8.0], 0)
    assert ball_maximum(np.zeros(3), hessian, 0.5)[0] == pytest.approx(0.5 * 8 * 0.25)
    top = np.linalg.eigh(hessian)[1]
    value, where = ball_maximum(0.1 * top[:, 1], hessian, 2.0)
    assert value == pytest.approx(0.1**2 / (2 * (8 - 2)) + 0.5 * 8 * 4, rel=1e-8)
    assert np.linalg.norm(where) == pytest.approx(2.0)
    concave, gradient = symmetric([-3.0, -2.0, -1.0], 1), np.array([0.1, 0.0, 0.1])
    inside = 0.5 * gradient @ np.linalg.solve(-concave, gradient)
    assert ball_maximum(gradient, concave, 5.0)[0] == pytest.approx(inside, rel=1e-6)
    ascent = ascend(
        lambda e: gradient @ e + 0.5 * e @ concave @ e, lambda e: gradient + concave @ e, (0.0, gradient), 5.0, [], 200
    )
    assert ascent.value == pytest.approx(inside, rel=1e-3)
    assert ascent.distance < 5
    assert ball_maximum(np.zeros(2), np.zeros((2, 2)), 1.0)[0] == 0


def test_ascent_stops_when_asked_and_survives_infinite_values() -> None:
    asked = []
    ascend(
        lambda e: float(e @ e),
        lambda e: 2 * e,
        (0.0, np.zeros(2)),
        1.0,
        [np.ones(2)],
        50,
        lambda: asked.append(1) or len(asked) < 4,
    )
    assert len(asked) == 4
    ascent = ascend(lambda _: np.nan, lambda e: e, (1.0, np.ones(2)), 1.0, [], 5)
    assert (ascent.value, ascent.distance) == (1.0, 0.0)
