"""Four optimizers, each at its own edge of stability, on 1,000 digits.

Trains a tanh MLP with the mean squared error by plain Keras and measures along the way, with the operators of sdkeras:
full-batch gradient descent at three learning rates (the sharpness rises, then hovers at 2/eta), SGD (the batch
sharpness settles at 2/eta), full-batch heavy ball (2(1+beta)/eta) and full-batch Adam (the preconditioned sharpness,
2(1+beta1)/((1-beta1) eta) = 38/eta). Draws the courses and prints what came out over the last quarter of the steps.

    python examples/edge_of_stability.py [--steps N] [--quick] [--out PNG]
"""

import attrs
import keras
import numpy as np
import tensorflow as tf

import sdkeras
from sdkeras.datasets import load_digits
from sdkeras.dimension.stability import thresholds
from sdkeras.operators.base import DiagonallyScaledOperator, FunctionOperator
from sdkeras.operators.update import preconditioner

SAMPLES = 1000
MINIBATCHES = 48  # of one measurement of the batch sharpness
LATE = 0.75  # from this part of the steps on, what is seen counts as settled
LANCZOS = sdkeras.get_estimator("eigenpairs", "lanczos")(num_smallest=0, num_steps=60, tolerance=1e-3)


@attrs.frozen
class Setting:
    """One training: its optimizer, minibatch and number of steps, and which course is compared with the threshold."""

    name: str
    optimizer: str
    learning_rate: float
    steps: int
    momentum: float = 0.0
    batch_size: int = SAMPLES
    watched: str = "sharpness"

    @property
    def threshold(self) -> float:
        return thresholds(self.optimizer, self.learning_rate, momentum=self.momentum).upper

    def build(self):
        if self.optimizer == "Adam":
            return keras.optimizers.Adam(self.learning_rate, beta_1=self.momentum)
        return keras.optimizers.SGD(self.learning_rate, momentum=self.momentum)


SETTINGS = (
    Setting("gradient descent", "SGD", 2.0, 4000),
    Setting("gradient descent", "SGD", 1.0, 4000),
    Setting("gradient descent", "SGD", 0.5, 4000),
    Setting("SGD, batches of 16", "SGD", 0.5, 8000, batch_size=16, watched="batch sharpness"),
    Setting("heavy ball", "SGD", 0.5, 4000, momentum=0.9),
    Setting("Adam", "Adam", 1e-3, 4000, momentum=0.9, watched="preconditioned sharpness"),
)


class Measure(keras.callbacks.Callback):
    """Every few steps the largest eigenvalue of the Hessian at the weights of now, and what else is watched."""

    def __init__(self, setting: Setting, data, every: int) -> None:
        super().__init__()
        self.setting, self.data, self.every = setting, data, every
        self.steps: list[int] = []
        self.courses: dict[str, list[float]] = {"loss": [], "sharpness": []}
        self.step = 0

    def on_train_begin(self, logs=None) -> None:
        self.loss = sdkeras.EmpiricalLoss(self.model, self.data)
        self.hessian = sdkeras.HessianOperator(self.loss)  # verified here, once; below only its point moves
        self.engine = self.loss.engine()
        if self.setting.batch_size < SAMPLES:
            self.minibatches = sdkeras.EmpiricalLoss(self.model, self.data, batch_size=self.setting.batch_size)

    def on_train_batch_end(self, batch, logs=None) -> None:
        self.step += 1
        if self.step % self.every == 0:
            self.measure()

    def measure(self) -> None:
        point = tf.concat([tf.reshape(v, [-1]) for v in self.model.trainable_variables], axis=0)
        (whole,) = self.loss.batches

        def product(vector):
            return self.engine.product(point, tf.constant(vector), whole).numpy()

        hessian = FunctionOperator(self.loss.size, product, self.loss.dtype)
        self.steps.append(self.step)
        self.courses["loss"].append(float(self.engine.evaluate(point, whole)[0]))
        self.courses["sharpness"].append(largest(hessian))
        if self.setting.watched == "batch sharpness":
            for name, value in self.batch_sharpness(point).items():
                self.courses.setdefault(name, []).append(value)
        if self.setting.watched == "preconditioned sharpness":
            scaled = DiagonallyScaledOperator(hessian, preconditioner(self.model, self.loss.layout) ** -0.5)
            self.courses.setdefault("preconditioned sharpness", []).append(largest(scaled))

    def batch_sharpness(self, point) -> dict[str, float]:
        """g'Hg/|g|^2, g and H of a minibatch: the mean of the ratios, and the ratio of the means."""
        curvatures, squares = [], []
        for index in range(MINIBATCHES):
            batch = self.minibatches.minibatch(self.step * MINIBATCHES + index)
            gradient = self.engine.gradient(point, batch)
            curvatures.append(float(tf.tensordot(gradient, self.engine.product(point, gradient, batch), 1)))
            squares.append(float(tf.tensordot(gradient, gradient, 1)))
        ratios = np.divide(curvatures, squares)
        return {
            "batch sharpness": float(np.mean(ratios)),
            "ratio of means": float(np.sum(curvatures) / np.sum(squares)),
        }

    @property
    def late(self) -> np.ndarray:
        """The watched course over the last part of the steps, in units of its threshold."""
        course = np.array(self.courses[self.setting.watched]) / self.setting.threshold
        return course[np.array(self.steps) > LATE * self.setting.steps]


def largest(operator) -> float:
    return float(LANCZOS.estimate(operator, seed=0).values[0])


def train(setting: Setting, every: int, width: int = 32) -> Measure:
    """Trains from the same first weights in every setting."""
    keras.utils.set_random_seed(0)
    x, y = load_digits()
    x, y = x[:SAMPLES].reshape(SAMPLES, 64), np.eye(10, dtype="float32")[y[:SAMPLES]]
    x = x - x.mean(axis=0)  # the mean image would make a large eigenvalue that training first takes away
    layers = [keras.layers.Dense(width, "tanh"), keras.layers.Dense(width, "tanh"), keras.layers.Dense(10)]
    model = keras.Sequential([keras.Input((64,)), *layers])
    model.compile(setting.build(), "mse", jit_compile=False)
    if setting.batch_size == SAMPLES:
        data = tf.data.Dataset.from_tensors((x, y)).repeat()
    else:
        data = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(SAMPLES, seed=0)
        data = data.batch(setting.batch_size, drop_remainder=True).repeat()
    measure = Measure(setting, (x, y), every)
    model.fit(data, steps_per_epoch=setting.steps, epochs=1, verbose=0, callbacks=[measure])
    return measure
