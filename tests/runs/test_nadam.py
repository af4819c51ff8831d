"""Nadam's map and threshold against steps that Keras itself takes on quadratic losses."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from oracles import rotated
from sdkeras.dimension.exponents import ExponentMap
from sdkeras.dimension.stability import thresholds

ETA = 0.125
# So late that the momentum schedule and both corrections have settled, with second moments that hardly move.
LATE, BETA_2 = 10**9, 1 - 1e-7


def late_nadam(start: np.ndarray, diagonal: np.ndarray, beta: float, decay: float) -> tuple:
    """Weights and their optimizer late in training, with P as given."""
    weights = keras.Variable(start, dtype="float64")
    optimizer = keras.optimizers.Nadam(ETA, beta_1=beta, beta_2=BETA_2, weight_decay=decay or None)
    optimizer.build([weights])
    optimizer.iterations.assign(LATE)
    optimizer._u_product.assign(0.0)
    optimizer._velocities[0].assign((diagonal - optimizer.epsilon) ** 2)
    return weights, optimizer


def growth_per_step(alpha: np.ndarray, beta: float, decay: float, num_steps: int = 200) -> np.ndarray:
    """ln of the factor by which weight and momentum of each eigenvalue grow a step, in the second half of the steps."""
    p = np.linspace(2.0, 4.0, len(alpha))
    weights, optimizer = late_nadam(np.full(len(alpha), 1e-12), p, beta, decay)
    sizes = []
    for _ in range(num_steps):
        optimizer.apply([tf.constant(alpha * p * weights.numpy())])
        sizes.append(np.hypot(weights.numpy(), ETA / p * optimizer._momentums[0].numpy()))
    return np.log(sizes[-1] / sizes[num_steps // 2]) / (num_steps - 1 - num_steps // 2)


@pytest.mark.parametrize(("beta", "decay"), [pytest.param(0.9, 0.0, marks=pytest.mark.slow), (0.5, 0.5)])
def test_real_steps_grow_outside_the_thresholds_and_decay_between_them(beta: float, decay: float) -> None:
    limits = thresholds("Nadam", ETA, momentum=beta, weight_decay=decay)
    near = 0.01 * limits.upper
    edges = np.array([limits.upper + near, limits.lower - near, limits.upper - near, limits.lower + near])
    growth = growth_per_step(edges, beta, decay)
    assert np.all(growth[:2] > 0.01)
    assert np.all(growth[2:] < -0.01)


@pytest.mark.parametrize(("beta", "decay"), [(0.9, 0.0), (0.5, 0.5)])
def test_exponents_are_those_of_the_step_that_keras_takes(beta: float, decay: float) -> None:
    alpha = np.array([-3.0, 0.0, 0.5, 9.0, 28.0])
    p = np.array([0.5, 1.0, 2.0, 4.0, 0.25])
    h = np.sqrt(np.outer(p, p)) * rotated(alpha)
    columns = []
    for unit in 1e-6 * np.eye(10):  # so small that squares of gradients leave P as it is
        weights, optimizer = late_nadam(unit[:5], p, beta, decay)
        optimizer._momentums[0].assign(unit[5:])
        optimizer.apply([tf.constant(h @ unit[:5])])
        columns.append(np.concatenate([weights.numpy(), optimizer._momentums[0].numpy()]) / 1e-6)
    root, velocity, zero = np.diag(np.sqrt(p)), -ETA * np.diag(1 / np.sqrt(p)), np.zeros((5, 5))
    into = np.block([[root, beta**2 / (1 - beta) * velocity], [zero, beta / (1 - beta) * velocity]])
    expected = np.log(np.linalg.svd(into @ np.array(columns).T @ np.linalg.inv(into), compute_uv=False))
    # P moves by beta_2's 1e-7 within the step.
    assert np.allclose(np.sort(ExponentMap("nadam", ETA, decay, beta)(alpha)), np.sort(expected), rtol=0, atol=1e-6)
