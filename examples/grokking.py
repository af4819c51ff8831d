"""Grokking of addition modulo 97, and which measures change before it (arXiv 2604.19740, Figures 4 and 7).

Trains (i) a 2-layer GELU network by SGD with momentum and weight decay and (ii) a 3-layer ReLU network by SGD with
weight decay only, by plain Keras, on 40 % of all pairs. At 100 checkpoints, uniformly spaced: sharpness dimension,
lambda_1, sharpness and trace of the Hessian on the training data, E_alpha of all iterates since the last checkpoint,
and the accuracies. Draws them over the steps and prints Kendall's tau-b of each with the gaps over the checkpoints.

    python examples/grokking.py [--quick] [--full] [--out DIR] [--figure PNG] [--results JSON]

DIR holds a log for `sdkeras track` and a checkpoint of each training; the same command resumes from there.
"""

import argparse
import math
import os
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import attrs
import keras
import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure
from result_files import markdown, save

from sdkeras.datasets import modular_addition
from sdkeras.results.log import FILE_NAME, Measurement, append, read_run_log, trajectory
from sdkeras.runs.monitor import Monitor
from sdkeras.study import TrajectoryRecorder
from sdkeras.study.correlations import Run, coefficient, correlate
from sdkeras.study.topology import e_alpha, euclidean_distances, loss_distances

MODULUS = 97
TRAIN_FRACTION = 0.4
HIDDEN = 32
CHECKPOINTS = 100
LOSSES_ON = 200  # training examples of the data-dependent distance
FITTED = 0.95  # train accuracy from which on the training data count as fitted
MEASURES = {
    "SD": "sharpness dimension",
    "lambda_1": "RDS sharpness λ₁",
    "sharpness": "sharpness",
    "trace": "Hessian trace",
    "E_alpha": "E_alpha, Euclidean",
    "E_alpha, data": "E_alpha, data-dependent",
}
# In the table beside the measures: what any quantity that only falls, or only rises, with time would score.
CONTROL = "step"
KEYS = {"SD": "sharpness_dimension", "lambda_1": "rds_sharpness", "sharpness": "sharpness", "trace": "hessian_trace"}


@attrs.frozen
class Setting:
    """One training: network, optimizer, and how long."""

    name: str
    title: str
    layers: int
    activation: str
    learning_rate: float
    momentum: float
    weight_decay: float
    steps: int = 20_000
    batches: int = 4  # in an epoch
    modulus: int = MODULUS

    def build(self) -> keras.Model:
        """The network, compiled; Keras' weight decay is decoupled: w shrinks by rate x decay in a step."""
        keras.utils.set_random_seed(0)
        hidden = [keras.layers.Dense(HIDDEN, self.activation) for _ in range(self.layers - 1)]
        model = keras.Sequential(
            [keras.Input((2 * self.modulus,)), *hidden, keras.layers.Dense(self.modulus)], name=self.name
        )
        model.compile(
            keras.optimizers.SGD(self.learning_rate, self.momentum, weight_decay=self.weight_decay),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
            jit_compile=True,
        )
        return model


SETTINGS = (
    Setting("gelu", "2 layers, GELU, momentum and weight decay", 2, "gelu", 1.0, 0.9, 5e-4),
    Setting("relu", "3 layers, ReLU, weight decay only", 3, "relu", 0.3, 0.0, 1e-3, steps=30_000),
)


@attrs.frozen
class Trained:
    """A training and what was measured along it."""

    setting: Setting
    measurements: tuple[Measurement, ...]

    @property
    def steps(self) -> np.ndarray:
        return np.array([each.step for each in self.measurements])

    def metric(self, name: str) -> np.ndarray:
        return np.array([each.metrics[name] for each in self.measurements])

    def measure(self, name: str) -> np.ndarray:
        if name == CONTROL:
            return self.steps
        if name not in KEYS:
            return self.metric(name)
        return np.array([each.values[KEYS[name]].value for each in self.measurements])

    def gaps(self, of: str) -> np.ndarray:
        return np.abs(self.metric(of) - self.metric(f"test_{of}"))

    def fitted(self) -> np.ndarray:
        """Which checkpoints come after the training data were first fitted."""
        return np.maximum.accumulate(self.metric("accuracy")) >= FITTED


def train(setting: Setting, folder: Path, checkpoints: int = CHECKPOINTS) -> Trained:
    """Trains and measures; resumes from what the folder holds."""
    folder.mkdir(parents=True, exist_ok=True)
    log, kept = folder / FILE_NAME, folder / "checkpoint.keras"
    (x, y), test = modular_addition(setting.modulus, TRAIN_FRACTION)
    model = keras.models.load_model(kept) if kept.exists() else setting.build()
    batch_size = len(x) // setting.batches
    segment = setting.steps // checkpoints
    recorder = TrajectoryRecorder(last=segment, losses_on=(x[:LOSSES_ON], y[:LOSSES_ON]))
    monitor = None
    for number in range(int(model.optimizer.iterations) // segment, checkpoints):
        data = minibatches(x, y, batch_size, segment, seed=number)
        model.fit(data, steps_per_epoch=segment, shuffle=False, verbose=0, callbacks=[recorder])
        metrics = dict(zip(("loss", "accuracy"), evaluated(model, x, y), strict=True))
        metrics |= dict(zip(("test_loss", "test_accuracy"), evaluated(model, *test), strict=True))
        metrics["E_alpha"] = e_alpha(euclidean_distances(recorder.trajectory.iterates))
        metrics["E_alpha, data"] = e_alpha(loss_distances(recorder.trajectory.losses))
        if monitor is None:
            monitor = Monitor(
                model, (x, y), measures=tuple(KEYS.values()), batch_size=batch_size, samples=len(x), seed=0
            )
            append(log, monitor.header())
        measurement = monitor.measure(epoch=(number + 1) * segment // setting.batches, metrics=metrics)
        append(log, measurement)
        model.save(folder / "next.keras")
        os.replace(folder / "next.keras", kept)
        print(
            f"{setting.name}, checkpoint {number + 1} of {checkpoints}: train {metrics['accuracy']:.3f}, "
            f"test {metrics['test_accuracy']:.3f}, {measurement.seconds:.1f} s",
            flush=True,
        )
    return Trained(setting, trajectory(read_run_log(log)))


def minibatches(x: np.ndarray, y: np.ndarray, size: int, count: int, *, seed: int) -> tf.data.Dataset:
    """`count` minibatches of permuted epochs, the same for the same seed."""
    generator = np.random.default_rng(seed)
    in_epoch = len(x) // size
    epochs = [generator.permutation(len(x))[: in_epoch * size] for _ in range(math.ceil(count / in_epoch))]
    chosen = np.concatenate(epochs).reshape(-1, size)[:count]
    x, y = tf.constant(x), tf.constant(y)
    return tf.data.Dataset.from_tensor_slices(chosen).map(lambda rows: (tf.gather(x, rows), tf.gather(y, rows)))


def evaluated(model: keras.Model, x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Loss and accuracy on all of the data."""
    logits = model.predict_on_batch(x)
    return float(model.compute_loss(y=y, y_pred=logits)), float(np.mean(logits.argmax(axis=1) == y))


def taus(trained: Trained, chosen: np.ndarray) -> dict[str, dict[str, dict]]:
    """tau-b and its bootstrap interval over the chosen checkpoints, by measure and gap."""
    courses = {name: trained.measure(name) for name in (*MEASURES, CONTROL)}
    accuracy, loss = trained.gaps("accuracy"), trained.gaps("loss")
    runs = [
        Run(
            settings={"step": int(trained.steps[k])},
            measures={name: float(course[k]) for name, course in courses.items()},
            accuracy_gap=float(accuracy[k]),
            loss_gap=float(loss[k]),
        )
        for k in np.flatnonzero(chosen)
    ]
    coefficients: dict[str, dict[str, dict]] = {name: {} for name in courses}
    for row in correlate(runs, held=("step",)).rows if len(runs) > 1 else ():
        coefficients[row.measure][row.target] = {"tau_b": row.tau_b, "interval": row.interval}
    return coefficients


def correlations(all_trained: Sequence[Trained]) -> list[dict]:
    """Kendall's tau-b of each measure with the gaps, over all checkpoints and over those from the fit on."""
    rows = []
    for trained in all_trained:
        every, fitted = taus(trained, np.full(len(trained.measurements), True)), taus(trained, trained.fitted())
        rows += [
            {"training": trained.setting.name, "measure": name, "all": every[name], "fitted": fitted[name]}
            for name in every
        ]
    return rows


def table(rows: Sequence[dict]) -> str:
    """The correlations as a markdown table; '-' where there are fewer than two checkpoints."""

    def cell(known: dict) -> str:
        return coefficient(known["tau_b"], known["interval"]) if known else "-"

    parts = [(gap, checkpoints) for checkpoints in ("all", "fitted") for gap in ("accuracy", "loss")]
    columns = {"training": "{training}", "measure": "{measure}"}
    columns |= {f"{gap} gap, {checkpoints}": f"{{{gap} {checkpoints}}}" for gap, checkpoints in parts}
    cells = [
        row | {f"{gap} {checkpoints}": cell(row[checkpoints].get(f"{gap}_gap")) for gap, checkpoints in parts}
        for row in rows
    ]
    return markdown(cells, columns)


def summary(trained: Trained) -> str:
    """When the training data were fitted and when the test data were, and what it cost, in a line."""
    setting, steps = trained.setting, trained.steps

    def first(name: str, level: float) -> str:
        reached = steps[trained.metric(name) >= level]
        return f"first at step {reached[0]:,}" if len(reached) else "never reached"

    seconds = sum(each.seconds for each in trained.measurements)
    unconverged = sum(not each.values["sharpness_dimension"].converged for each in trained.measurements)
    return (
        f"{setting.name}: {setting.title}; {len(trained.measurements)} checkpoints; train accuracy {FITTED:.0%} "
        f"{first('accuracy', FITTED)}, test accuracy 50% {first('test_accuracy', 0.5)}, 90% "
        f"{first('test_accuracy', 0.9)}; last: train {trained.metric('accuracy')[-1]:.3f}, test "
        f"{trained.metric('test_accuracy')[-1]:.3f}; {int(trained.fitted().sum())} checkpoints from the fit on; SD not "
        f"converged at {unconverged}; {seconds:.0f} s of measurements."
    )


def draw(all_trained: Sequence[Trained]) -> Figure:
    """A panel for each measure, with the accuracies behind it; two rows for each training."""
    figure = Figure(figsize=(13, 5.6 * len(all_trained)), layout="constrained")
    for part, trained in zip(figure.subfigures(len(all_trained), 1, squeeze=False)[:, 0], all_trained, strict=True):
        part.suptitle(trained.setting.title)
        for axes, (name, title) in zip(part.subplots(2, 3).flat, MEASURES.items(), strict=True):
            behind = axes.twinx()
            behind.plot(
                trained.steps, trained.metric("test_accuracy"), color="C1", linewidth=1.4, label="test accuracy"
            )
            behind.plot(
                trained.steps,
                trained.metric("accuracy"),
                color="C7",
                linewidth=1,
                linestyle=":",
                label="train accuracy",
            )
            behind.set_ylim(-0.02, 1.02)
            axes.plot(trained.steps, trained.measure(name), color="C0", linewidth=1.6)
            axes.set_zorder(1)
            axes.patch.set_visible(False)
            axes.set_title(title, fontsize=12, color="C0")
            axes.set_xlabel("step")
            for each in (axes, behind):
                each.spines["top"].set_visible(False)
        behind.legend(loc="center right", frameon=False)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description="Grokking, and the measures along it.")
    parser.add_argument("--quick", action="store_true", help="modulus 11, 4 checkpoints, as a smoke test")
    parser.add_argument("--full", action="store_true", help="full-batch steps, 20,000 epochs as in the paper")
    parser.add_argument("--out", type=Path, default=Path("grokking-run"), help="folder of logs and checkpoints")
    parser.add_argument("--figure", type=Path, default=Path(__file__).with_suffix(".png"))
    parser.add_argument("--results", type=Path, metavar="JSON", help="save the numbers of the table there")
    options = parser.parse_args()
    settings, checkpoints = SETTINGS, CHECKPOINTS
    if options.quick:
        settings = [attrs.evolve(each, name=f"{each.name}-quick", steps=40, modulus=11) for each in SETTINGS]
        checkpoints = 4
    elif options.full:
        settings = [attrs.evolve(each, name=f"{each.name}-full", steps=20_000, batches=1) for each in SETTINGS]
    trained = [train(each, options.out / each.name, checkpoints) for each in settings]
    draw(trained).savefig(options.figure, dpi=100)
    rows = correlations(trained)
    print(*map(summary, trained), "", table(rows), sep="\n")
    if options.results is not None:
        save(options.results, rows)
    print(f"\nThe figure is in {options.figure}.")


if __name__ == "__main__":
    tf.config.threading.set_intra_op_parallelism_threads(1)
    main()
