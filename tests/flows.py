"""Tangent flows with known or independently computable exponents: random products, the Hénon map, a small training."""

from collections.abc import Callable
from typing import Any

import numpy as np


class RandomProducts:
    """Independent random matrices; `draw` makes one from a generator. The generator's state is the flow's."""

    def __init__(self, size: int, draw: Callable[[np.random.Generator], np.ndarray], dtype: Any = np.float64) -> None:
        self.size, self.dtype, self.draw = size, np.dtype(dtype), draw
        self.reset(0)

    def reset(self, seed: int) -> None:
        self.rng = np.random.default_rng([seed, 99])

    def step(self, tangents: np.ndarray) -> np.ndarray:
        return self.draw(self.rng).astype(self.dtype) @ tangents

    def state(self) -> Any:
        return self.rng.bit_generator.state

    def restore(self, state: Any) -> None:
        self.rng.bit_generator.state = state


class MatrixSequence:
    """The given Jacobians, one after the other."""

    def __init__(self, jacobians: list[np.ndarray] | np.ndarray) -> None:
        self.jacobians, self.position = jacobians, 0
        self.size, self.dtype = len(jacobians[0]), jacobians[0].dtype

    def reset(self, seed: int) -> None:
        self.position = 0

    def step(self, tangents: np.ndarray) -> np.ndarray:
        self.position += 1
        return self.jacobians[self.position - 1] @ tangents

    def state(self) -> Any:
        return self.position

    def restore(self, state: Any) -> None:
        self.position = state


class Henon:
    """(x, y) -> (1 - a x^2 + y, b x): det J = -b everywhere."""

    def __init__(self, a: float, b: float, start: tuple[float, float] = (0.1, 0.1)) -> None:
        self.a, self.b, self.start = a, b, start
        self.size, self.dtype = 2, np.dtype(np.float64)
        self.reset(0)

    def reset(self, seed: int) -> None:
        self.point = np.array(self.start)

    def step(self, tangents: np.ndarray) -> np.ndarray:
        x, y = self.point
        with np.errstate(over="ignore", invalid="ignore"):
            self.point = np.array([1 - self.a * x * x + y, self.b * x])
            return np.array([[-2 * self.a * x, 1.0], [self.b, 0.0]]) @ tangents

    def state(self) -> Any:
        return self.point.copy()

    def restore(self, state: Any) -> None:
        self.point = state


class TanhTraining:
    """SGD with decoupled decay on minibatches of a tanh network, f(x) = sum_j c_j tanh(a_j x + b_j), squared loss.

    The state is the weights (a, b) and the generator that draws the minibatches; c is fixed, so that with decay the
    weights stay bounded at every learning rate. The Jacobian of a step, (1 - eta decay) I - eta H, is written out by
    hand.
    """

    def __init__(
        self, num_units: int = 6, learning_rate: float = 1.0, decay: float = 0.01, batch_size: int = 5
    ) -> None:
        rng = np.random.default_rng(5)
        self.x = rng.uniform(-2, 2, 40)
        self.y = np.sin(2 * self.x) + 0.8 * rng.standard_normal(40)
        self.c = rng.standard_normal(num_units)
        self.learning_rate, self.decay, self.batch_size = learning_rate, decay, batch_size
        self.size, self.dtype = 2 * num_units, np.dtype(np.float64)
        self.reset(0)

    def reset(self, seed: int) -> None:
        self.weights = np.random.default_rng(8).standard_normal(self.size)
        self.rng = np.random.default_rng([seed, 98])

    def derivatives(self, weights: np.ndarray, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Gradient and Hessian of mean (f - y)^2 / 2 over a minibatch."""
        a, b = weights.reshape(2, -1)
        x, n = self.x[batch], len(batch)
        t = np.tanh(np.outer(x, a) + b)
        first = (1 - t**2) * self.c
        residual = t @ self.c - self.y[batch]
        jacobian = np.concatenate([first * x[:, None], first], axis=1)
        curvature = residual[:, None] * -2 * t * first
        hessian = jacobian.T @ jacobian + np.block(
            [
                [np.diag(x**2 @ curvature), np.diag(x @ curvature)],
                [np.diag(x @ curvature), np.diag(curvature.sum(axis=0))],
            ]
        )
        return jacobian.T @ residual / n, hessian / n

    def next_jacobian(self) -> np.ndarray:
        """The Jacobian of the next step, which is made."""
        batch = self.rng.choice(len(self.x), self.batch_size, replace=False)
        gradient, hessian = self.derivatives(self.weights, batch)
        keep = 1 - self.learning_rate * self.decay
        self.weights = keep * self.weights - self.learning_rate * gradient
        return keep * np.eye(self.size) - self.learning_rate * hessian

    def step(self, tangents: np.ndarray) -> np.ndarray:
        return self.next_jacobian() @ tangents

    def state(self) -> Any:
        return {"weights": self.weights, "rng": self.rng.bit_generator.state}

    def restore(self, state: Any) -> None:
        self.weights, self.rng.bit_generator.state = state["weights"], state["rng"]


def coin_flow() -> RandomProducts:
    """diag(3, .2) or diag(.5, .9), a fair coin for each step: oracle 'random_diagonal_map'."""
    choices = [np.diag([3.0, 0.2]), np.diag([0.5, 0.9])]
    return RandomProducts(2, lambda rng: choices[rng.integers(2)])
