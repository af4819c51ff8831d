"""A small net and its data, for the tests of the callback."""

import keras
import numpy as np

GENERATOR = np.random.default_rng(0)
X = GENERATOR.standard_normal((96, 5)).astype("float32")
Y = GENERATOR.integers(0, 3, 96)


def net(optimizer: object = None, **compiled: object) -> keras.Model:
    """Dropout, batch normalization and weight decay: everything that a measurement could disturb."""
    keras.utils.set_random_seed(3)
    layers = keras.layers
    hidden = [layers.Dense(6, "tanh"), layers.BatchNormalization(), layers.Dropout(0.3)]
    model = keras.Sequential([keras.Input((5,)), *hidden, layers.Dense(3)], name="small")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer or keras.optimizers.AdamW(0.01), loss, metrics=["accuracy"], **compiled)
    return model


def state(model: keras.Model) -> list[np.ndarray]:
    """Weights, seed generators, averages, and the optimizer's variables."""
    variables = [*model.trainable_variables, *model.non_trainable_variables, *model.optimizer.variables]
    return [np.asarray(variable) for variable in variables]
