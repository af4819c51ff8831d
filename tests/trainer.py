"""Small trainings, and Keras' own training step as a function of the flat state, for finite differences."""

from typing import Any

import keras
import numpy as np
import pytest

import sdkeras

RATE = 0.125  # Keras keeps the rate in float32; this one is exact there


def trained(optimizer: Any, model: keras.Model, data: tuple[Any, Any], steps: int = 3) -> keras.Model:
    """The model after some steps on all the data; its loss is made anew, since it keeps the precision it is made in."""
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    for _ in range(steps):
        model.train_on_batch(*data)
    return model


def step_of(
    model: keras.Model, data: Any, batch_size: int | None = None, *, dtype: str = "float64", **options: Any
) -> sdkeras.UpdateMap:
    return sdkeras.UpdateMap(sdkeras.EmpiricalLoss(model, data, batch_size, dtype=dtype), model.optimizer, **options)


def dense(step: sdkeras.UpdateMap) -> np.ndarray:
    return step.jvp(np.eye(step.size))


def cases(table: dict[str, Any], *, slow: str) -> list[Any]:
    """The names of a table; those that only combine what others have are slow."""
    return [pytest.param(name, marks=pytest.mark.slow if name in slow.split(", ") else ()) for name in table]


def excluding(optimizer: Any, **what: Any) -> Any:
    optimizer.exclude_from_weight_decay(**what)
    return optimizer


def by_layer(weights: Any, biases: Any) -> Any:
    if not hasattr(keras.optimizers, "MultiOptimizer"):
        pytest.skip("this Keras has no MultiOptimizer")
    return keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(weights, {".*bias": biases}))


class Trainer:
    """`train_on_batch` as a function of the flat state: everything else is put back before each step."""

    def __init__(self, model: keras.Model, names: tuple[str, ...], data: tuple[np.ndarray, np.ndarray]) -> None:
        self.model = model
        self.data = data
        self.every = [*model.variables, *model.optimizer.variables]
        self.start = [np.asarray(v).copy() for v in self.every]
        by_path: dict[str, list] = {}
        for variable in (*model.trainable_variables, *model.optimizer.variables):
            by_path.setdefault(variable.path, []).append(variable)
        self.variables = [by_path[n.split("#")[0]][int((n + "#1").split("#")[1]) - 1] for n in names]

    def state(self) -> np.ndarray:
        return np.concatenate([np.asarray(v).ravel() for v in self.variables])

    def put(self, state: np.ndarray) -> None:
        for variable, value in zip(self.every, self.start, strict=True):
            variable.assign(value)
        sizes = np.cumsum([int(np.prod(v.shape)) for v in self.variables])[:-1]
        for variable, part in zip(self.variables, np.split(state, sizes), strict=True):
            variable.assign(part.reshape(variable.shape))

    def __call__(self, state: np.ndarray, *batches: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        self.put(state)
        for x, y in batches or (self.data,):
            self.model.train_on_batch(x, y)
        return self.state()

    def jacobian(self, state: np.ndarray, step: sdkeras.UpdateMap) -> tuple[np.ndarray, np.ndarray]:
        """Central differences, and which columns have one.

        Slots move in their own units; what is never negative (second moments) in proportion, so that 0 stays 0.
        """
        scale = np.ones(len(state))
        for part in step.layout.slices[len(self.model.trainable_variables) :]:
            scale[part] = state[part] if np.all(state[part] >= 0) else np.sqrt(np.mean(state[part] ** 2))
        columns = []
        for k, size in enumerate(scale):
            shift = np.zeros(len(state))
            shift[k] = 1e-5 * size
            columns.append((self(state + shift) - self(state - shift)) / (2e-5 * (size or 1.0)))
        return np.stack(columns, axis=1), scale != 0
