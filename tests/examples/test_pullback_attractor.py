"""The example of the pullback attractor: its map, its exponents, and the dimension of its boxes' entropy."""

from types import ModuleType

import numpy as np
import pytest

from example_scripts import load_script


@pytest.fixture(scope="module")
def example() -> ModuleType:
    return load_script("pullback_attractor")


def test_the_step_goes_down_the_loss_and_its_jacobian_is_that_of_differences(example: ModuleType) -> None:
    setting, w = example.Setting(1.1, 0.5), np.random.default_rng(0).standard_normal((20, 3))
    mean, h = np.array([0.1, -0.2, 0.3]), 1e-5

    def loss(w: np.ndarray) -> np.ndarray:
        return ((w - mean) ** 2).sum(axis=1) / 2 - 1.1 * np.cos(2 * w).prod(axis=1)

    jacobian = setting.jacobian(w)
    for k in range(3):
        ahead, behind = w + h * np.eye(3)[k], w - h * np.eye(3)[k]
        gradient = (loss(ahead) - loss(behind)) / (2 * h)
        step = setting.step(w, mean)
        assert np.allclose(w[:, k] - step[:, k], 0.5 * gradient, rtol=0, atol=1e-8)
        columns = (setting.step(ahead, mean) - setting.step(behind, mean)) / (2 * h)
        assert np.allclose(jacobian[:, :, k], columns, rtol=0, atol=1e-8)


def test_contracting_steps_end_at_one_point_and_have_dimension_0(example: ModuleType) -> None:
    """With A = 0 a step halves every distance: ln(1/2) are all exponents."""
    setting = example.Setting(0.0, 0.5)
    assert np.ptp(example.attractor(setting, 50, 60), axis=0).max() < 1e-15
    found = example.exponents(setting, 40, 0)
    for each in (found.lyapunov, found.local, found.supremum):
        assert np.allclose(each, np.log(0.5))
    assert example.with_interval([found.lyapunov] * 12) == (0.0, [0.0, 0.0])


@pytest.mark.parametrize(("columns", "dimension"), [(1, 1.0), (2, 2.0)])
def test_the_information_dimension_of_even_points(example: ModuleType, columns: int, dimension: float) -> None:
    points = np.random.default_rng(0).random((300_000, columns)) @ np.eye(3)[:columns]
    value, change = example.information_dimension(points)
    assert abs(value - dimension) < 0.1
    assert change < 0.2
