"""The targets of the README, and what the parts cost: `make bench`.

Ratios are taken in one process, interleaved, in CPU time where work is meant and in wall time where threads are; the
least of several repetitions counts. Whole commands run in a process of their own.
"""

import contextlib
import math
import os
import pty
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import common
import keras
import numpy as np
import tensorflow as tf
from common import CE, GENERATOR, layers, minima, mlp

import sdkeras
from sdkeras.datasets import load_digits
from sdkeras.linalg.probes import rademacher_probes
from sdkeras.results.progress import Progress
from sdkeras.runs.analyze import plan

# The demo, told when TensorFlow is there; its settings of the environment are made before.
_DEMO = "import tensorflow, keras; print('imported', flush=True); from sdkeras_cli.main import main; main()"


def product_over_gradient(found: sdkeras.HessianOperator, repeat: int) -> float:
    engine, batch, view = found.engine, found.batches[0], found.on_minibatch(0)
    v = tf.constant(GENERATOR.standard_normal(found.size), tf.float32)
    gradient, product = minima(lambda: engine.gradient(engine.point, batch), lambda: view.matvec(v), repeat=repeat)
    return product / gradient


def probes_over_gradient(found: sdkeras.HessianOperator, probes: int = 64) -> float:
    engine, batch = found.engine, found.batches[0]
    rows = tf.constant(GENERATOR.standard_normal((probes, found.size)), tf.float32)
    gradient, block = minima(
        lambda: engine.gradient(engine.point, batch), lambda: engine.products(engine.point, rows, batch), repeat=15
    )
    return block / probes / gradient


def run_over_products(found: sdkeras.HessianOperator, steps: int) -> float:
    start = rademacher_probes(found.size, 1, seed=0, dtype=np.float32)[0]
    slq = sdkeras.get_estimator("spectrum", "slq")(num_steps=steps)

    def bare() -> None:
        for _ in range(steps):
            found.matvec(start)

    products, run = minima(bare, lambda: slq.estimate(found, seed=0), repeat=5)
    return run / products


def update_maps(width: int) -> dict[str, sdkeras.UpdateMap]:
    """Training steps of an MLP on one minibatch, one per optimizer."""
    x, y = GENERATOR.standard_normal((256, 784)).astype("float32"), GENERATOR.integers(0, 10, 256)
    made = {}
    for name, optimizer in {
        "SGD with momentum": keras.optimizers.SGD(0.1, momentum=0.9),
        "AdamW": keras.optimizers.AdamW(1e-3),
        "AdamW, global_clipnorm": keras.optimizers.AdamW(1e-3, global_clipnorm=1.0),
    }.items():
        keras.utils.set_random_seed(0)
        model = mlp(784, width, 2)
        model.compile(optimizer, CE)
        model.fit(x, y, batch_size=128, verbose=0)
        loss = sdkeras.EmpiricalLoss(model, (x, y), batch_size=128)
        made[name] = sdkeras.UpdateMap(loss, model.optimizer).on_minibatch(0)
    return made


def tangent_over_product(step: sdkeras.UpdateMap, repeat: int) -> float:
    """One product with the step's Jacobian over one with the Hessian of the same batch, arrays in and out."""
    hessian = sdkeras.HessianOperator(step.loss).on_batch(step.loss.minibatch(0))
    v = GENERATOR.standard_normal(step.size).astype("float32")
    product, tangent = minima(lambda: hessian.matvec(v[: hessian.size]), lambda: step.jvp(v), repeat=repeat)
    return tangent / product


def block_over_singles(step: sdkeras.UpdateMap, tangents: int = 32) -> float:
    block = GENERATOR.standard_normal((step.size, tangents)).astype("float32")
    columns = list(np.ascontiguousarray(block.T))
    singles, several = minima(lambda: [step.jvp(v) for v in columns], lambda: step.jvp(block), repeat=9)
    return several / singles


def fit_with_callback_over_alone(epochs: int = 30, copies: int = 48, repeat: int = 2) -> tuple[float, int]:
    """Wall time of fit with the callback at its defaults over fit alone, and measurements made; epochs of seconds.

    Wall time, since that is what the callback promises: its measurements use both cores.
    """
    x, y = digit_images()
    x, y = np.tile(x, (copies, 1)), np.tile(y, copies)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeat):
        for own, watched in zip(times, (False, True), strict=True):
            keras.utils.set_random_seed(0)
            model = mlp(784, 256, 2)
            model.compile(keras.optimizers.AdamW(1e-3), CE)
            watch = sdkeras.callbacks.SharpnessDimension((x, y), batch_size=128)
            start = time.perf_counter()
            model.fit(x, y, batch_size=128, epochs=epochs, verbose=0, callbacks=[watch] * watched)
            own.append(time.perf_counter() - start)
    alone, both = map(statistics.median, times)
    return both / alone, len(watch.measurements)


def digit_images() -> tuple[np.ndarray, np.ndarray]:
    """The digits as flat images of 28 x 28."""
    x, y = load_digits()
    return np.repeat(np.repeat(np.pad(x, ((0, 0), (3, 3), (3, 3))), 2, 1), 2, 2).reshape(len(x), -1), y


def demo(folder: str) -> tuple[sdkeras.Analysis, float]:
    """The demo's analysis, and seconds from TensorFlow's import to the first measurement on its screen."""
    screen, terminal = pty.openpty()
    command = [sys.executable, "-c", _DEMO, "demo", "--output-dir", folder]
    environment = {**os.environ, "COLUMNS": "80", "TERM": "xterm", "TF_ENABLE_ONEDNN_OPTS": "0"}
    shown, imported, first = "", math.nan, math.nan
    with subprocess.Popen(command, stdout=terminal, stderr=terminal, env=environment):
        os.close(terminal)
        with contextlib.suppress(OSError):  # raised on Linux when the other end is closed
            while read := os.read(screen, 4096):
                shown += read.decode(errors="replace")
                if math.isnan(imported) and "imported" in shown:
                    imported = time.perf_counter()
                if math.isnan(first) and re.search(r"eigenvalue[^\n]*? -?\d", shown):
                    first = time.perf_counter()
    os.close(screen)
    return sdkeras.Analysis.load(str(Path(folder) / "run.json")), first - imported


class Forecast:
    """What an analysis expected when its pilot of so many runs was done, against what came; a progress callback."""

    def __init__(self, pilot: int) -> None:
        self.pilot, self.done, self.end = pilot, 0, 0.0
        self.at: tuple[float, Progress] | None = None

    def __call__(self, step: Progress) -> None:
        if step.num_runs:  # reports between them are of single products
            self.done, self.end = step.num_runs, time.perf_counter()
            if self.at is None and step.num_runs >= self.pilot and step.expected_runs is not None:
                self.at = self.end, step

    def ratios(self) -> tuple[float, float]:
        """Predicted over actual runs after the pilot, and their seconds; NaN where the pilot was enough."""
        if self.at is None or self.done <= self.at[1].num_runs:
            return math.nan, math.nan
        when, step = self.at
        runs = (step.expected_runs or 0) - step.num_runs
        return runs / (self.done - step.num_runs), (step.seconds_left or math.nan) / (self.end - when)


def fixed_stages(model: keras.Model, data: tuple[np.ndarray, np.ndarray], batch_size: int) -> tuple[float, float]:
    """Planned over actual products and seconds of an analysis whose number of runs is given.

    Products without the batch sharpness, which takes as many as its minibatches differ.
    """
    planned = plan(model, data, batch_size=batch_size, runs=24)
    start = time.perf_counter()
    run = sdkeras.analyze(model, data, batch_size=batch_size, runs=24)
    seconds, edge = time.perf_counter() - start, run.edge_of_stability
    spent = run.provenance.num_hvps - (0 if edge is None else edge.batch_sharpness_minibatches)
    return (planned.num_hvps - planned.num_minibatches) / spent, planned.seconds / seconds


def recurrent_over_dense() -> tuple[float, float]:
    """Seconds of analyses of 24 runs: of a masked GRU and LSTM, and of a dense net; 252 weights, 7 time steps each."""
    x, y = GENERATOR.standard_normal((512, 7, 3)).astype("float32"), GENERATOR.integers(0, 4, 512)
    x[:256, 4:] = 0.0  # masked
    recurrent = [layers.Masking(), layers.GRU(4, return_sequences=True), layers.LSTM(4)]
    dense = [layers.Dense(31, "tanh"), layers.GlobalAveragePooling1D(), layers.Dense(4)]
    taken = []
    for body in (recurrent, dense):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((7, 3)), *body])
        assert model.count_params() == 252
        model.compile(keras.optimizers.SGD(0.1), CE)
        model.fit(x, y, verbose=0)
        taken += minima(lambda model=model: sdkeras.analyze(model, (x, y), runs=24), repeat=0, clock=time.perf_counter)
    return taken[0], taken[1]


class Rows:
    """Rows of the table, printed as they come."""

    def __init__(self) -> None:
        self.rows: list[list[str]] = []

    def add(
        self, what: str, value: float, target: float | None, unit: str = "", *, first: str = "", least: float = 0.0
    ) -> None:
        """A measured value, which is to lie between `least` and `target`; `first`, what the first version took."""
        wanted = "-" if target is None else f"{least:g} to {target:g}" if least else f"<= {target:,g} {unit}".rstrip()
        met = "-" if target is None or math.isnan(value) else "yes" if least <= value <= target else "**no**"
        measured = "-" if math.isnan(value) else f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
        self.rows.append([what, first or "-", f"{measured} {unit}".rstrip(), wanted, met])
        print(" | ".join(self.rows[-1]), flush=True)


def rows_of(measure: Callable[[Rows], None]) -> list[list[str]]:
    rows = Rows()
    measure(rows)
    return rows.rows


def whole_analyses(rows: Rows) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run, first_number = demo(folder)
        model = keras.models.load_model(Path(folder) / "model.keras")
        data = tuple(np.load(Path(folder) / "data.npz").values())
    estimate = run.sharpness_dimension
    assert estimate is not None
    rows.add("products for the demo's SD at 5 %", estimate.num_hvps, 8000, first="28,400")
    rows.add("the demo's analysis", run.provenance.seconds, 10, "s", first="57 s")
    rows.add("first number of the demo after TensorFlow's import", first_number, 5, "s", first="20-60 s")
    images, y = digit_images()
    keras.utils.set_random_seed(0)
    large = mlp(784, 256, 2)
    large.compile(keras.optimizers.SGD(0.1), CE)
    large.fit(images, y, epochs=5, batch_size=128, verbose=0)
    for name, (net, pair, batch_size) in {"demo": (model, data, 32), "MLP 270k": (large, (images, y), 128)}.items():
        forecast, start = Forecast(plan(net, pair, batch_size=batch_size).num_runs), time.perf_counter()
        run = sdkeras.analyze(net, pair, batch_size=batch_size, progress=forecast)
        seconds = time.perf_counter() - start
        if net is large:
            what = f"analyze, trained {name} ({forecast.done} runs, {run.provenance.num_hvps:,} products)"
            rows.add(what, seconds, 12, "s", first="36 s")
        kinds = ("products, fixed stages", "seconds, fixed stages", "runs after the pilot", "seconds after the pilot")
        for what, value in zip(kinds, (*fixed_stages(net, pair, batch_size), *forecast.ratios()), strict=True):
            rows.add(f"predicted / actual {what}, {name}", value, 1.4, least=0.7, first="0.28-0.7")
    recurrent, dense = recurrent_over_dense()
    what = f"24 runs, masked GRU + LSTM of 252 weights ({recurrent:.3g} s) / dense net as large ({dense:.3g} s)"
    rows.add(what, recurrent / dense, 5, first="25")


def single_products(rows: Rows) -> None:
    operators = {name: common.operator(name)[0] for name in common.NETS}
    repeats, wanted = (200, 60, 15, 9), (1.2, 1.35, 1.5, 1.6)
    for (name, H), repeat, target, first in zip(
        operators.items(), repeats, wanted, ("1.35", "1.84", "2.15-2.99", "2.7-3.1"), strict=True
    ):
        rows.add(f"HVP / gradient, {name}", product_over_gradient(H, repeat), target, first=first)
    for steps, target, first in ((40, 1.1, "1.46-2.24"), (100, 1.2, "")):
        what = f"SLQ run of {steps} steps / its products, MLP 270k"
        rows.add(what, run_over_products(operators["MLP 270k"], steps), target, first=first)


def parts_alone(rows: Rows) -> None:
    small = common.operator("MLP 13k")[0]
    rows.add("64 probes on one minibatch, MLP 13k", probes_over_gradient(small), 0.3, "gradients each")
    for width, repeat in ((16, 200), (256, 60)):
        for name, step in update_maps(width).items():
            where = f"{name}, MLP {step.num_weights:,}"
            rows.add(f"step JVP / Hessian product, {where}", tangent_over_product(step, repeat), 1.3)
            target = 0.7 if width == 16 else None
            rows.add(f"32 step JVPs at once / one by one, {where}", block_over_singles(step), target)
    exact = sdkeras.get_estimator("spectrum", "exact")()
    (seconds,) = minima(lambda: exact.estimate(small, seed=0), repeat=3, clock=time.perf_counter)
    rows.add("exact spectrum of one minibatch, MLP 13k", seconds, 2.0, "s")


def callback(rows: Rows) -> None:
    ratio, measurements = fit_with_callback_over_alone()
    what = f"fit with the callback / fit alone, 30 epochs, MLP 270k ({measurements} measurements)"
    rows.add(what, ratio, 1.1)


def main() -> None:
    with ProcessPoolExecutor(1, get_context("spawn"), common.one_thread) as alone:
        targets = [*rows_of(whole_analyses), *alone.submit(rows_of, single_products).result()]
        parts = [*alone.submit(rows_of, parts_alone).result(), *rows_of(callback)]
    header = ["what", "first version", "measured", "target", "met"]
    text = f"{common.machine()}\n\n{common.table(header, targets)}\nParts:\n\n"
    common.write("README.md", text + common.table([header[0], *header[2:]], [[r[0], *r[2:]] for r in parts]))


if __name__ == "__main__":
    main()
