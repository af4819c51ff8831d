"""Small models whose training has exponents in closed form, or is quick to follow."""

import keras
import numpy as np

from sdkeras.operators import precision

layers = keras.layers
RATE = 0.125
X = np.random.default_rng(0).standard_normal((12, 2))
Y = np.random.default_rng(1).integers(0, 2, 12)


def quadratic(curvatures: list[float], optimizer: object) -> tuple[keras.Model, tuple[np.ndarray, np.ndarray]]:
    """A linear model whose full-batch Hessian has these eigenvalues, 2 X'X / n."""
    count = 4 * len(curvatures)
    frame = np.linalg.qr(np.random.default_rng(0).standard_normal((count, len(curvatures))))[0]
    turn = np.linalg.qr(np.random.default_rng(1).standard_normal((len(curvatures), len(curvatures))))[0]
    x = frame @ np.diag(np.sqrt(np.array(curvatures) * count / 2)) @ turn
    with precision.default_precision("float64"):
        model = keras.Sequential([keras.Input((len(curvatures),)), layers.Dense(1, use_bias=False)])
        model.compile(optimizer, "mse")
        y = np.random.default_rng(2).standard_normal((count, 1))
        model.train_on_batch(x, y)
    return model, (x, y)


def classifier(optimizer: object, steps: int = 3, dtype: str = "float32") -> keras.Model:
    with precision.default_precision(dtype):
        model = keras.Sequential([keras.Input((2,)), layers.Dense(2, "tanh"), layers.Dense(2)])
        model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        for _ in range(steps):
            model.train_on_batch(X, Y)
    return model


def two_checkpoints() -> keras.Model:
    """epoch_1.keras, epoch_2.keras and train.npz in the current folder, of one training; its last model."""
    model = classifier(keras.optimizers.SGD(0.1), steps=6)
    model.save("epoch_1.keras")
    for _ in range(6):
        model.train_on_batch(X, Y)
    model.save("epoch_2.keras")
    np.savez("train.npz", x=X, y=Y)
    return model


def everything(model: keras.Model) -> list[bytes]:
    return [np.asarray(v).tobytes() for v in (*model.variables, *model.optimizer.variables)]
