"""Grokking of addition modulo 97, and which measures change before it (arXiv 2604.19740, Figures 4 and 7).

Trains, by plain Keras and on 40 % of all pairs, (i) a 2-layer GELU network by SGD with momentum and weight decay, over
rates, decays and seeds, and (ii) a 3-layer ReLU network by SGD with weight decay only, over seeds. At checkpoints,
uniformly spaced: sharpness dimension and lambda_1 of the step that is taken and of the paper's map, sharpness and
trace of the Hessian on the training data, E_alpha of all iterates since the last checkpoint, and the accuracies. Draws
the first training of each network over the steps, and prints Kendall's tau-b of each measure with the gaps over the
checkpoints: its median over the trainings, and its least and greatest.

    python examples/grokking.py [--quick] [--full] [--jobs N] [--out DIR] [--figure PNG] [--results JSON]

DIR holds a log for `sdkeras track` and a checkpoint of each training; the same command resumes from there.
"""

import argparse
import itertools
import math
import os
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")

import attrs
import keras
import numpy as np
import tensorflow as tf
from joblib import Parallel, delayed
from matplotlib.figure import Figure
from result_files import markdown, save

from sdkeras.datasets import modular_addition
from sdkeras.results.log import FILE_NAME, Measurement, append, read_run_log, trajectory
from sdkeras.runs.monitor import Monitor
from sdkeras.study import TrajectoryRecorder
from sdkeras.study.correlations import coefficient, kendall_tau_b
from sdkeras.study.topology import e_alpha, euclidean_distances, loss_distances

MODULUS = 97
TRAIN_FRACTION = 0.4
HIDDEN = 32
CHECKPOINTS = 40
LOSSES_ON = 200  # training examples of the data-dependent distance
FITTED = 0.95  # train accuracy from which on the training data count as fitted
MEASURES = {
    "SD": "sharpness dimension",
    "lambda_1": "RDS sharpness λ₁",
    "sharpness": "sharpness",
    "trace": "Hessian trace",
    "E_alpha": "E_alpha, Euclidean",
    "E_alpha, data": "E_alpha, data-dependent",
    "SD, paper": "SD of the paper's map",
    "lambda_1, paper": "λ₁ of the paper's map",
}
# In the table beside the measures: what any quantity that only falls, or only rises, with time would score.
CONTROL = "step"
KEYS = {"SD": "sharpness_dimension", "lambda_1": "rds_sharpness", "sharpness": "sharpness", "trace": "hessian_trace"}
# Of |1 - eta*alpha| for each eigenvalue alpha of a minibatch Hessian, whatever the optimizer.
PAPERS = {f"{name}, paper": KEYS[name] for name in ("SD", "lambda_1")}


@attrs.frozen
class Setting:
    """One training of a network: its optimizer, and how long."""

    network: str
    title: str
    layers: int
    activation: str
    learning_rate: float
    momentum: float
    weight_decay: float
    seed: int = 0
    steps: int = 20_000
    batches: int = 4  # in an epoch
    modulus: int = MODULUS

    @property
    def name(self) -> str:
        """Network and settings, as the name of a folder."""
        return f"{self.network}-lr{self.learning_rate:g}-wd{self.weight_decay:g}-seed{self.seed}"

    def build(self) -> keras.Model:
        """The network, compiled; Keras' weight decay is decoupled: w shrinks by rate x decay in a step."""
        keras.utils.set_random_seed(self.seed)
        hidden = [keras.layers.Dense(HIDDEN, self.activation) for _ in range(self.layers - 1)]
        model = keras.Sequential(
            [keras.Input((2 * self.modulus,)), *hidden, keras.layers.Dense(self.modulus)], name=self.network
        )
        model.compile(
            keras.optimizers.SGD(self.learning_rate, self.momentum, weight_decay=self.weight_decay),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
            jit_compile=True,
        )
        return model


GELU = Setting("gelu", "2 layers, GELU, momentum and weight decay", 2, "gelu", 1.0, 0.9, 5e-4)
RELU = Setting("relu", "3 layers, ReLU, weight decay only", 3, "relu", 0.3, 0.0, 1e-3, steps=30_000)
SETTINGS = (
    *(
        attrs.evolve(GELU, learning_rate=rate, weight_decay=decay, seed=seed)
        for rate, decay, seed in itertools.product((1.0, 0.5), (5e-4, 1e-3), (0, 1))
    ),
    *(attrs.evolve(RELU, seed=seed) for seed in (0, 1)),
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
        if name in PAPERS:
            return np.array([each.metrics.get(name, math.nan) for each in self.measurements])
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
    monitor = papers = None
    for number in range(int(model.optimizer.iterations) // segment, checkpoints):
        data = minibatches(x, y, batch_size, segment, seed=number + 1_000_000 * setting.seed)
        model.fit(data, steps_per_epoch=segment, shuffle=False, verbose=0, callbacks=[recorder])
        metrics = dict(zip(("loss", "accuracy"), evaluated(model, x, y), strict=True))
        metrics |= dict(zip(("test_loss", "test_accuracy"), evaluated(model, *test), strict=True))
        metrics["E_alpha"] = e_alpha(euclidean_distances(recorder.trajectory.iterates))
        metrics["E_alpha, data"] = e_alpha(loss_distances(recorder.trajectory.losses))
        if monitor is None or papers is None:
            of_both = {"batch_size": batch_size, "samples": len(x), "seed": setting.seed}
            monitor = Monitor(model, (x, y), measures=tuple(KEYS.values()), **of_both)
            papers = Monitor(model, (x, y), measures=tuple(PAPERS.values()), map="hessian", **of_both)
            append(log, monitor.header())
        of_papers = papers.measure().values
        found = {name: of_papers[key].value for name, key in PAPERS.items()}
        metrics |= {name: value for name, value in found.items() if value is not None}
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

    @tf.autograph.experimental.do_not_convert
    def gathered(rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.gather(x, rows), tf.gather(y, rows)

    return tf.data.Dataset.from_tensor_slices(chosen).map(gathered)


def evaluated(model: keras.Model, x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Loss and accuracy on all of the data."""
    logits = model.predict_on_batch(x)
    return float(model.compute_loss(y=y, y_pred=logits)), float(np.mean(logits.argmax(axis=1) == y))


def taus(trained: Trained, chosen: np.ndarray) -> dict[str, dict[str, float]]:
    """tau-b over the chosen checkpoints, by measure and gap; those without it are left out."""
    coefficients: dict[str, dict[str, float]] = {}
    for name in (*MEASURES, CONTROL):
        coefficients[name] = {}
        for gap in ("accuracy", "loss"):
            pairs = np.stack([trained.measure(name)[chosen], trained.gaps(gap)[chosen]])
            tau = float(kendall_tau_b(*pairs[:, ~np.any(np.isnan(pairs), axis=0)])[0])
            if not math.isnan(tau):
                coefficients[name][f"{gap}_gap"] = tau
    return coefficients


def correlations(all_trained: Sequence[Trained]) -> list[dict]:
    """For each network and measure, tau-b with the gaps over its trainings: median, least and greatest.

    Over all checkpoints of a training and over those from the fit on; trainings without the number are left out.
    """
    rows = []
    for network in dict.fromkeys(each.setting.network for each in all_trained):
        of_network = [each for each in all_trained if each.setting.network == network]
        every = [taus(each, np.full(len(each.measurements), True)) for each in of_network]
        fitted = [taus(each, each.fitted()) for each in of_network]
        rows += [
            {"network": network, "measure": name, "all": spread(every, name), "fitted": spread(fitted, name)}
            for name in every[0]
        ]
    return rows


def spread(coefficients: Sequence[dict[str, dict[str, float]]], name: str) -> dict[str, dict]:
    """Median and range over the trainings of one measure's tau-b with each gap that has any."""
    found = {}
    for gap in ("accuracy_gap", "loss_gap"):
        values = [each[name][gap] for each in coefficients if gap in each[name]]
        if values:
            found[gap] = {"median": float(np.median(values)), "range": [min(values), max(values)]}
            found[gap] |= {"trainings": len(values)} if len(values) < len(coefficients) else {}
    return found


def table(rows: Sequence[dict]) -> str:
    """The correlations as a markdown table; '-' where no training has two checkpoints."""

    def cell(known: dict) -> str:
        if not known:
            return "-"
        few = f" ({known['trainings']})" if "trainings" in known else ""
        return coefficient(known["median"], tuple(known["range"])) + few

    parts = [(gap, checkpoints) for checkpoints in ("all", "fitted") for gap in ("accuracy", "loss")]
    columns = {"network": "{network}", "measure": "{measure}"}
    columns |= {f"{gap} gap, {checkpoints}": f"{{{gap} {checkpoints}}}" for gap, checkpoints in parts}
    cells = [
        row | {f"{gap} {checkpoints}": cell(row[checkpoints].get(f"{gap}_gap")) for gap, checkpoints in parts}
        for row in rows
    ]
    return markdown(cells, columns)


def course(trained: Trained) -> dict:
    """When the training data were fitted and when the test data were, the last accuracies, and what it cost."""
    steps, setting = trained.steps, trained.setting

    def first(name: str, level: float) -> int | None:
        reached = steps[trained.metric(name) >= level]
        return int(reached[0]) if len(reached) else None

    return {
        "network": setting.network,
        "rate": setting.learning_rate,
        "decay": setting.weight_decay,
        "seed": setting.seed,
        "fitted": first("accuracy", FITTED),
        "half of test": first("test_accuracy", 0.5),
        "90 % of test": first("test_accuracy", 0.9),
        "train accuracy": float(trained.metric("accuracy")[-1]),
        "test accuracy": float(trained.metric("test_accuracy")[-1]),
        "SD not converged at": sum(not each.values["sharpness_dimension"].converged for each in trained.measurements),
        "seconds": round(sum(each.seconds for each in trained.measurements)),
    }


COURSE = {
    **{name: f"{{{name}}}" for name in ("network", "rate", "decay", "seed", "fitted", "half of test", "90 % of test")},
    "train accuracy": "{train accuracy:.3f}",
    "test accuracy": "{test accuracy:.3f}",
}


def courses(rows: Sequence[dict]) -> str:
    """The courses as a markdown table, steps with thousands separators."""

    def cell(value: object) -> object:
        return "never" if value is None else f"{value:,}" if isinstance(value, int) else value

    return markdown([{name: cell(value) for name, value in row.items()} for row in rows], COURSE)


def draw(all_trained: Sequence[Trained]) -> Figure:
    """A panel for each measure, with the accuracies behind it; two rows for each training."""
    figure = Figure(figsize=(16, 5.6 * len(all_trained)), layout="constrained")
    for part, trained in zip(figure.subfigures(len(all_trained), 1, squeeze=False)[:, 0], all_trained, strict=True):
        part.suptitle(f"{trained.setting.title} ({trained.setting.name})")
        for axes, (name, title) in zip(part.subplots(2, 4).flat, MEASURES.items(), strict=True):
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
    parser.add_argument(
        "--full", action="store_true", help="full-batch steps, 20,000 epochs, 100 checkpoints as in the paper"
    )
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="trainings at once (default 2)")
    parser.add_argument("--out", type=Path, default=Path("grokking-run"), help="folder of logs and checkpoints")
    parser.add_argument("--figure", type=Path, default=Path(__file__).with_suffix(".png"))
    parser.add_argument("--results", type=Path, metavar="JSON", help="save the numbers of the tables there")
    options = parser.parse_args()
    settings, checkpoints, folder = SETTINGS, CHECKPOINTS, options.out
    if options.quick:
        settings = [attrs.evolve(each, steps=40, modulus=11) for each in (SETTINGS[0], SETTINGS[1], SETTINGS[-1])]
        checkpoints, folder = 4, folder / "quick"
    elif options.full:
        settings = [attrs.evolve(each, steps=20_000, batches=1) for each in SETTINGS]
        checkpoints, folder = 100, folder / "full"
    each = delayed(train)
    trained = Parallel(n_jobs=options.jobs)(each(setting, folder / setting.name, checkpoints) for setting in settings)
    firsts = {each.setting.network: each for each in reversed(trained)}
    draw(list(firsts.values())[::-1]).savefig(options.figure, dpi=100)
    tables = [course(each) for each in trained], correlations(trained)
    print(courses(tables[0]), "", table(tables[1]), sep="\n")
    if options.results is not None:
        save(options.results, *tables)
    print(f"\nThe figure is in {options.figure}.")


if __name__ == "__main__":
    main()
