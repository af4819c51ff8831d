"""Exponents of the optimizers' steps: exact vectors, dense Jacobians of the step itself, and limits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import sdkeras
from oracles import VECTORS, rotated
from sdkeras.dimension.exponents import MAPS, ExponentMap, exponent_map

ETA = 0.125
SIZE = 12
MOMENTUM_MAPS = ("heavy-ball", "nesterov", "adam", "nadam", "rmsprop")
# Flat, nearly flat, between the thresholds, above the upper one, and negative.
EIGENVALUES = np.array([0.0, 0.0, 1e-9, -1e-7, 0.01, 0.3, 2.0, 9.0, 24.0, 28.0, -0.5, -3.0])


def gradient_step(name: str, beta: float, decay: float, h: np.ndarray, p: np.ndarray) -> tuple[Callable, np.ndarray]:
    """One step on the quadratic loss w'Hw/2 as the optimizer's code does it, and what its velocity is of the slot."""
    s = 1 - ETA * decay

    def heavy_ball(w, m):
        m = beta * m - ETA * (h @ w)
        return s * w + m, m

    def nesterov(w, m):
        gradient = h @ w
        m = beta * m - ETA * gradient
        return s * w + beta * m - ETA * gradient, m

    def adam(w, m):
        m = m + (h @ w - m) * (1 - beta)
        return s * w - ETA * m / p, m

    def nadam(w, m):
        gradient = h @ w
        m = m + (gradient - m) * (1 - beta)
        return s * w - ETA * (beta * m + (1 - beta) * gradient) / p, m

    def rmsprop(w, m):
        m = beta * m + ETA * (h @ w) / p
        return s * w - m, m

    steps = {"heavy-ball": heavy_ball, "nesterov": nesterov, "adam": adam, "nadam": nadam, "rmsprop": rmsprop}
    velocity = {"adam": -ETA / p, "nadam": -ETA / p, "rmsprop": -np.ones(len(p))}.get(name, np.ones(len(p)))
    return steps[name], velocity


def dense_jacobian(name: str, beta: float, decay: float, h: np.ndarray, p: np.ndarray) -> np.ndarray:
    """The step's 2n x 2n matrix in balanced coordinates of (P^1/2 w, P^1/2 v), from the step's action alone."""
    step, velocity = gradient_step(name, beta, decay, h, p)
    n = len(h)
    columns = [np.concatenate(step(unit[:n], unit[n:])) for unit in np.eye(2 * n)]
    raw = np.array(columns).T
    b = beta if name in ("nesterov", "nadam") else np.sqrt(beta)
    root = np.diag(np.sqrt(p))
    v = np.diag(np.sqrt(p) * velocity)
    into = np.block([[root, b**2 / (1 - beta) * v], [np.zeros((n, n)), b / (1 - beta) * v]])
    return into @ raw @ np.linalg.inv(into)


def preconditioned(name: str, eigenvalues: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """H and P such that the map's operator has these eigenvalues; P = 1 where there is none."""
    p = np.random.default_rng(1).uniform(0.2, 5.0, len(eigenvalues))
    p = p if name in ("adam", "nadam", "rmsprop") else np.ones(len(eigenvalues))
    return np.sqrt(np.outer(p, p)) * rotated(eigenvalues), p, eigenvalues


@pytest.mark.parametrize("block", ["momentum_blocks", "momentum_blocks_with_decay"])
def test_exact_vectors(block: str) -> None:
    vectors = VECTORS[block]
    for case in vectors["cases"]:
        for name, key in (("heavy-ball", "heavy_ball"), ("nesterov", "nesterov")):
            exponents = ExponentMap(name, vectors["learning_rate"], vectors["weight_decay"], vectors["momentum"])
            alpha = np.array([case["alpha"]])
            assert np.allclose(exponents(alpha), case[key]["balanced"], rtol=0, atol=1e-12)
            assert np.allclose(exponents.log_eigenvalues(alpha), case[key]["log_abs_eigenvalues"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("beta", [0.5, 0.9])
@pytest.mark.parametrize("decay", [0.0, 0.5])
@pytest.mark.parametrize("name", MOMENTUM_MAPS)
def test_all_exponents_of_the_dense_step(name: str, decay: float, beta: float) -> None:
    h, p, eigenvalues = preconditioned(name, EIGENVALUES)
    exponents = ExponentMap(name, ETA, decay, beta)
    jacobian = dense_jacobian(name, beta, decay, h, p)
    expected = np.log(np.linalg.svd(jacobian, compute_uv=False))
    # sigma_1 is up to 1e3 here, so that the SVD knows the smallest ones to 1e-13 / 1e-3.
    assert np.allclose(np.sort(exponents(eigenvalues)), np.sort(expected), rtol=0, atol=1e-9)
    moduli = np.log(np.abs(np.linalg.eigvals(jacobian)))
    # A non-normal eigenproblem: double eigenvalues (1 and beta) split by the root of rounding.
    assert np.allclose(np.sort(exponents.log_eigenvalues(eigenvalues)), np.sort(moduli), rtol=0, atol=1e-6)
    assert exponents.branches == 2


def test_without_momentum_it_is_one_exponent() -> None:
    h, p, eigenvalues = preconditioned("rmsprop", EIGENVALUES)
    step = np.diag(np.sqrt(p)) @ (0.9375 * np.eye(SIZE) - ETA * h / p[:, None]) @ np.diag(1 / np.sqrt(p))
    exponents = ExponentMap("rmsprop", ETA, 0.5)
    expected = np.log(np.linalg.svd(step, compute_uv=False))
    assert np.allclose(np.sort(exponents(eigenvalues)), np.sort(expected), rtol=0, atol=1e-12)
    assert np.array_equal(exponents.log_eigenvalues(eigenvalues), exponents(eigenvalues))
    assert exponents.branches == 1


@pytest.mark.parametrize("name", MOMENTUM_MAPS)
@pytest.mark.parametrize("beta", [0.5, 0.9, 0.99])
def test_a_flat_direction_is_exactly_neutral(name: str, beta: float) -> None:
    exponents = ExponentMap(name, ETA, momentum=beta)
    for z in (exponents(np.zeros(3)), exponents.log_eigenvalues(np.zeros(3))):
        assert np.all(z[:3] == 0.0)
        assert np.all(z[3:] == np.log(beta))


@pytest.mark.parametrize("name", [*MOMENTUM_MAPS, "sgd"])
def test_decay_makes_flat_directions_contract_by_ln_s(name: str) -> None:
    exponents = exponent_map(name, ETA, momentum=0.9, weight_decay=1e-3)
    # Balanced coordinates are those without decay: the singular value agrees to first order in eta * wd only.
    shrink = ETA * 1e-3
    assert exponents(np.zeros(1))[0] == pytest.approx(np.log(1 - shrink), rel=0.0 if name == "sgd" else 5 * shrink)
    assert exponents.log_eigenvalues(np.zeros(1))[0] == pytest.approx(np.log(1 - shrink), rel=1e-13)
    assert exponent_map("hessian", ETA, momentum=0.9, weight_decay=1e-3)(np.zeros(1))[0] == 0.0


@pytest.mark.parametrize("name", MOMENTUM_MAPS)
@pytest.mark.parametrize("beta", [0.1, 0.9])
def test_nearly_flat_directions_keep_their_digits(name: str, beta: float) -> None:
    """z = -r alpha + O(alpha^2): ln of a number rounded near 1 would leave 4 digits of it here, none below 1e-16."""
    exponents = ExponentMap(name, ETA, momentum=beta)
    for alpha in (1e-12, -1e-12, 1e-20):
        larger, smaller = exponents(np.array([alpha]))
        assert larger == pytest.approx(-exponents.rate * alpha, rel=1e-9)
        assert smaller == pytest.approx(np.log(beta), abs=1e-11)
        assert exponents.log_eigenvalues(np.array([alpha]))[0] == pytest.approx(-exponents.rate * alpha, rel=1e-9)


@pytest.mark.parametrize("decay", [0.0, 0.5])
@pytest.mark.parametrize("name", ["heavy-ball", "adam", "rmsprop"])
def test_heavy_ball_contracts_volume_the_same_whatever_the_loss(name: str, decay: float) -> None:
    alpha = np.random.default_rng(0).standard_normal(50) * 10.0 ** np.random.default_rng(1).uniform(-8, 3, 50)
    exponents = ExponentMap(name, ETA, decay, 0.9)
    total = 50 * np.log((1 - ETA * decay) * 0.9)
    assert exponents(alpha).sum() == pytest.approx(total, abs=1e-9)
    assert exponents.log_eigenvalues(alpha).sum() == pytest.approx(total, abs=1e-9)


@pytest.mark.parametrize("name", MOMENTUM_MAPS)
def test_vanishing_momentum_is_plain_sgd(name: str) -> None:
    exponents, plain = ExponentMap(name, ETA, 0.25, 1e-9), ExponentMap("sgd", ETA, 0.25)
    for z in (exponents(EIGENVALUES), exponents.log_eigenvalues(EIGENVALUES)):
        assert np.allclose(z[:SIZE], plain(EIGENVALUES), rtol=0, atol=1e-3)
        assert np.all(z[SIZE:] < np.log(1e-8))
    contracting = np.array([0.0, 0.0, 0.1, 2.0, 5.0, -0.5])
    with_velocity = sdkeras.sharpness_dimension(exponents(contracting))
    assert with_velocity == pytest.approx(sdkeras.sharpness_dimension(plain(contracting)), abs=1e-3)


def test_a_singular_step_has_the_floor() -> None:
    """Nesterov's determinant beta (s - a) vanishes at a = s; a step of sgd likewise."""
    assert ExponentMap("nesterov", ETA, momentum=0.5)(np.array([8.0]))[1] == pytest.approx(np.log(1e-12))
    assert ExponentMap("nesterov", ETA, momentum=0.5).log_eigenvalues(np.array([8.0]))[1] == pytest.approx(
        np.log(1e-12)
    )
    assert ExponentMap("sgd", ETA)(np.array([8.0]))[0] == pytest.approx(np.log(1e-12))


@pytest.mark.parametrize(
    ("name", "momentum", "coordinates", "branches"),
    [
        ("sgd", 0.0, "weights", 1),
        ("hessian", 0.0, "weights", 1),
        ("heavy-ball", 0.5, "balanced", 2),
        ("nesterov", 0.5, "balanced", 2),
        ("adam", 0.5, "preconditioned balanced", 2),
        ("adam", 0.0, "preconditioned weights", 1),
        ("nadam", 0.5, "preconditioned balanced", 2),
        ("nadam", 0.0, "preconditioned weights", 1),
        ("rmsprop", 0.5, "preconditioned balanced", 2),
        ("rmsprop", 0.0, "preconditioned weights", 1),
    ],
)
def test_what_a_record_says_of_a_map(name: str, momentum: float, coordinates: str, branches: int) -> None:
    exponents = exponent_map(name, ETA, momentum=momentum, weight_decay=0.5)
    assert (exponents.name, exponents.coordinates, exponents.branches) == (name, coordinates, branches)
    assert exponents.weight_decay == (0.0 if name == "hessian" else 0.5)
    assert len(exponents(np.ones(3))) == len(exponents.spread(np.ones(3))) == 3 * branches


def test_settings_a_map_does_not_have() -> None:
    assert exponent_map("sgd", ETA, momentum=0.9).momentum == 0
    assert set(MAPS) >= {"sgd", "hessian", *MOMENTUM_MAPS}
    for settings in (("full", ETA), ("sgd", 0.0), ("sgd", ETA, 0.0, 0.5), ("adam", ETA, 0.0, 1.0)):
        with pytest.raises(ValueError):
            ExponentMap(*settings)
    with pytest.raises(ValueError, match="momentum"):
        exponent_map("adam", ETA, momentum=-0.5)
