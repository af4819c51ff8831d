"""Four optimizers, each at its own edge of stability, on 1,000 digits.

Trains a tanh MLP with the mean squared error by plain Keras and measures along the way, with the operators of sdkeras:
full-batch gradient descent at three learning rates (the sharpness rises, then hovers at 2/eta), SGD (its batch
sharpness is reported to settle at 2/eta), full-batch heavy ball (2(1+beta)/eta), the same in minibatches (its batch
sharpness is reported to settle at 2(1-beta)/eta in small and at 2(1+beta)/eta in large ones) and full-batch Adam
(preconditioned sharpness, 2(1+beta1)/((1-beta1) eta) = 38/eta). Plots the courses and prints a table over the last
quarter, each quantity beside the level that its source reports.

    python examples/edge_of_stability.py [--only NAME] [--steps N] [--quick] [--out PNG] [--results JSON]
"""

import argparse
from pathlib import Path

import attrs
import keras
import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure
from result_files import markdown, save

import sdkeras
from sdkeras.datasets import load_digits
from sdkeras.dimension.stability import plateaus, thresholds
from sdkeras.linalg.operators import DiagonallyScaledOperator
from sdkeras.training_step.settings import preconditioner

SAMPLES = 1000
MEASUREMENTS = 200  # along a training
MINIBATCHES = 48  # of one measurement of the batch sharpness
LATE = 0.75  # from this part of the steps on, measurements count as settled
LANCZOS = sdkeras.get_estimator("eigenpairs", "lanczos")(num_smallest=0, num_steps=60, tolerance=1e-3)


@attrs.frozen
class Setting:
    """One training: its optimizer, minibatch and steps, and what is compared with which level, by which source."""

    name: str
    optimizer: str
    learning_rate: float
    steps: int
    claim: str
    momentum: float = 0.0
    batch_size: int = SAMPLES
    watched: str = "sharpness"

    @property
    def threshold(self) -> float:
        """The level of the claim: the stability threshold, or a plateau of the batch sharpness."""
        if self.watched == "batch sharpness":
            levels = plateaus(self.optimizer, self.learning_rate, momentum=self.momentum)
            return next(each.level for each in levels if self.claim.startswith(f"{each.formula},"))
        return thresholds(self.optimizer, self.learning_rate, momentum=self.momentum).upper

    def build(self) -> keras.optimizers.Optimizer:
        if self.optimizer == "Adam":
            return keras.optimizers.Adam(self.learning_rate, beta_1=self.momentum)
        return keras.optimizers.SGD(self.learning_rate, momentum=self.momentum)


# Every threshold lies above what is watched at the first weights (sharpness 1), so that training can rise to it.
SETTINGS = (
    Setting("gradient descent", "SGD", 1.0, 8000, "2/eta, arXiv 2103.00065"),
    Setting("gradient descent", "SGD", 1.3, 8000, "2/eta, arXiv 2103.00065"),
    Setting("gradient descent", "SGD", 1.6, 8000, "2/eta, arXiv 2103.00065"),
    Setting("SGD", "SGD", 2.5, 60_000, "2/eta, arXiv 2412.20553", batch_size=16, watched="batch sharpness"),
    Setting("heavy ball", "SGD", 2.4, 8000, "2(1+beta)/eta, arXiv 2103.00065", momentum=0.9),
    Setting(
        *("heavy ball, batches of 4", "SGD", 0.25, 60_000, "2(1-beta)/eta, arXiv 2604.14108"),
        **{"momentum": 0.9, "batch_size": 4, "watched": "batch sharpness"},
    ),
    Setting(
        *("heavy ball, batches of 500", "SGD", 2.4, 8000, "2(1+beta)/eta, arXiv 2604.14108"),
        **{"momentum": 0.9, "batch_size": 500, "watched": "batch sharpness"},
    ),
    Setting(
        *("Adam", "Adam", 3e-3, 8000, "38/eta, arXiv 2207.14484"),
        **{"momentum": 0.9, "watched": "preconditioned sharpness"},
    ),
)


class Measure(keras.callbacks.Callback):
    """Every few steps the largest eigenvalue of the Hessian at the weights of now, and what else is watched."""

    def __init__(self, setting: Setting, data, every: int) -> None:
        super().__init__()
        self.setting, self.data, self.every = setting, data, every
        self.steps: list[int] = []
        self.courses: dict[str, list[float]] = {}

    def on_train_begin(self, logs=None) -> None:
        def hessian(batch_size):
            return sdkeras.HessianOperator(sdkeras.EmpiricalLoss(self.model, self.data, batch_size))

        self.whole = hessian(None)
        self.minibatches = hessian(self.setting.batch_size) if self.setting.watched == "batch sharpness" else None

    def on_train_batch_end(self, batch, logs=None) -> None:
        if (batch + 1) % self.every == 0:
            self.steps.append(batch + 1)
            for name, value in self.measure().items():
                self.courses.setdefault(name, []).append(value)

    def measure(self) -> dict[str, float]:
        loss = self.whole.loss.now()
        hessian = self.whole.at(loss)
        values = {"loss": loss.value(), "sharpness": largest(hessian)}
        if self.setting.watched == "preconditioned sharpness":
            scaled = DiagonallyScaledOperator(hessian, preconditioner(self.model, loss.layout) ** -0.5)
            values["preconditioned sharpness"] = largest(scaled)
        if self.minibatches is not None:
            values |= self.batch_sharpness()
        return values

    def batch_sharpness(self) -> dict[str, float]:
        """g'Hg/|g|^2, g and H of a minibatch: the mean of the ratios, and the ratio of the means."""
        hessian = self.minibatches.at(self.minibatches.loss.now())
        curvatures, squares = [], []
        for index in range(MINIBATCHES):
            view = hessian.on_minibatch(self.steps[-1] * MINIBATCHES + index)  # others at every measurement
            gradient = view.gradient()
            curvatures.append(gradient @ view.matvec(gradient.astype("float32")))
            squares.append(gradient @ gradient)
        ratios = np.divide(curvatures, squares)
        return {"batch sharpness": float(ratios.mean()), "ratio of the means": float(sum(curvatures) / sum(squares))}

    def late(self, name: str) -> np.ndarray:
        """A course over the last part of the steps, in units of the threshold."""
        values = np.array(self.courses[name]) / self.setting.threshold
        return values[np.array(self.steps) > LATE * self.setting.steps]


def largest(operator: sdkeras.SymmetricOperator) -> float:
    return float(LANCZOS.estimate(operator, seed=0).values[0])


def train(setting: Setting, every: int) -> Measure:
    """Trains from the same first weights in every setting."""
    keras.utils.set_random_seed(0)
    x, y = load_digits()
    x, y = x[:SAMPLES].reshape(SAMPLES, 64), np.eye(10, dtype="float32")[y[:SAMPLES]]
    x = x - x.mean(axis=0)  # the mean image would make one large eigenvalue, which training first takes away
    layers = [keras.layers.Dense(32, "tanh"), keras.layers.Dense(32, "tanh"), keras.layers.Dense(10)]
    model = keras.Sequential([keras.Input((64,)), *layers])
    model.compile(setting.build(), "mse", jit_compile=False)
    if setting.batch_size == SAMPLES:
        data = tf.data.Dataset.from_tensors((x, y)).repeat()
    else:
        data = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(SAMPLES, seed=0)
        data = data.batch(setting.batch_size, drop_remainder=True).repeat()
    measured = Measure(setting, (x, y), every)
    model.fit(data, steps_per_epoch=setting.steps, shuffle=False, verbose=0, callbacks=[measured])
    return measured


def settled(measured: list[Measure]) -> list[dict]:
    """Each watched quantity over the last part of the steps, in units of the threshold."""
    rows = []
    for one in measured:
        setting = one.setting
        beside = ["ratio of the means", "sharpness"] if setting.watched == "batch sharpness" else []
        for name in [setting.watched, *beside]:
            late = one.late(name)
            rows.append(
                {
                    "training": setting.name,
                    "learning_rate": setting.learning_rate,
                    "claim": setting.claim,
                    "threshold": setting.threshold,
                    "quantity": name,
                    "mean": float(late.mean()),
                    "range": [float(late.min()), float(late.max())],
                    "last_loss": one.courses["loss"][-1],
                }
            )
    return rows


COLUMNS = {
    "training": "{training}",
    "learning rate": "{learning_rate:g}",
    "level and source": "{claim}",
    "level": "{threshold:.4g}",
    "quantity": "{quantity}",
    "mean / level": "{mean:.3f}",
    "range / level": "{range[0]:.3f} to {range[1]:.3f}",
    "last loss": "{last_loss:.1e}",
}


def draw(measured: list[Measure]) -> Figure:
    """A panel for each optimizer and size of minibatch; dashed lines are the reported levels."""
    panels = {
        "gradient descent": "Full-batch gradient descent: sharpness, and 2/η",
        "SGD": "SGD, batches of 16: batch sharpness, and 2/η",
        "heavy ball": "Full-batch heavy ball, β = 0.9: sharpness, and 2(1+β)/η",
        "heavy ball, batches of 4": "Heavy ball, batches of 4: batch sharpness, and 2(1-β)/η",
        "heavy ball, batches of 500": "Heavy ball, batches of 500: batch sharpness, and 2(1+β)/η",
        "Adam": "Full-batch Adam: preconditioned sharpness, and 38/η",
    }
    panels = {name: title for name, title in panels.items() if any(one.setting.name == name for one in measured)}
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(6 * columns, 4 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flat
    for axes, (name, title) in zip(grid, panels.items(), strict=False):
        for position, one in enumerate(one for one in measured if one.setting.name == name):
            setting, color = one.setting, f"C{position}"
            label = f"{setting.watched}, η = {setting.learning_rate:g}"
            axes.plot(one.steps, one.courses[setting.watched], color=color, label=label)
            axes.axhline(setting.threshold, color=color, linestyle="--", linewidth=1)
            if setting.watched == "batch sharpness":
                axes.plot(one.steps, one.courses["sharpness"], color="C7", label="sharpness")
        axes.set_title(title, fontsize=12)
        axes.set_xlabel("step")
        axes.set_ylim(bottom=0)
        axes.legend(loc="lower right", frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description="Four optimizers at their edge of stability.")
    parser.add_argument("--only", default="", metavar="NAME", help="trainings whose names contain this")
    parser.add_argument("--steps", type=int, help="steps of every training; default 8,000 (small batches: 60,000)")
    parser.add_argument("--quick", action="store_true", help="200 steps, as a smoke test; far from any edge")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".png"), help="the figure")
    parser.add_argument("--results", type=Path, metavar="JSON", help="save the numbers of the table there")
    options = parser.parse_args()
    steps = 200 if options.quick else options.steps
    settings = [setting for setting in SETTINGS if options.only in setting.name]
    if not settings:
        parser.error(f"no training's name contains {options.only!r}; there are {[each.name for each in SETTINGS]}.")
    if steps is not None:
        settings = [attrs.evolve(setting, steps=steps) for setting in settings]
    measured = [train(setting, every=max(10, setting.steps // MEASUREMENTS)) for setting in settings]
    draw(measured).savefig(options.out, dpi=100)
    rows = settled(measured)
    print(markdown(rows, COLUMNS))
    if options.results is not None:
        save(options.results, rows)
    print(f"\nThe figure is in {options.out}.")


if __name__ == "__main__":
    main()
