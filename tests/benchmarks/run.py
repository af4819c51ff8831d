"""Ratios that say what the parts cost, each taken in one process: `make bench`.

Every figure is the median over repetitions of interleaved measurements, in process CPU time where a ratio of work
is meant and in wall time where threads are. Prints a Markdown table.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as the command line does

import platform
import statistics
import time
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

import sdkeras
from sdkeras.datasets import load_digits
from sdkeras.linalg.lanczos import lanczos
from sdkeras.linalg.probes import rademacher_probes

tf.config.threading.set_intra_op_parallelism_threads(1)
layers = keras.layers
CE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
GENERATOR = np.random.default_rng(0)


def mlp(inputs: int, width: int, depth: int) -> keras.Model:
    hidden = [layers.Dense(width, "tanh") for _ in range(depth)]
    return keras.Sequential([keras.Input((inputs,)), *hidden, layers.Dense(10)])


def cnn() -> keras.Model:
    blocks = [layers.Conv2D(16, 3, activation="relu"), layers.MaxPooling2D(2), layers.Conv2D(32, 3, activation="relu")]
    return keras.Sequential([keras.Input((28, 28, 1)), *blocks, layers.Flatten(), layers.Dense(10)])


def transformer(length: int = 64, width: int = 128, depth: int = 3) -> keras.Model:
    x = keras.Input((length,), dtype="int32")
    h = layers.Embedding(80, width)(x)
    for _ in range(depth):
        a = layers.LayerNormalization()(h)
        h = layers.Add()([h, layers.MultiHeadAttention(4, width // 4)(a, a, use_causal_mask=True)])
        f = layers.Dense(4 * width, "gelu")(layers.LayerNormalization()(h))
        h = layers.Add()([h, layers.Dense(width)(f)])
    return keras.Model(x, layers.Dense(80)(layers.LayerNormalization()(h)))


def operator(model: keras.Model, batch: int, tokens: bool = False) -> sdkeras.HessianOperator:
    keras.utils.set_random_seed(0)
    model.compile(keras.optimizers.SGD(0.1), CE)
    shape = model.input_shape[1:]
    x = GENERATOR.integers(0, 80, (batch, *shape)) if tokens else GENERATOR.standard_normal((batch, *shape))
    y = GENERATOR.integers(0, 80, (batch, *shape)) if tokens else GENERATOR.integers(0, 10, batch)
    return sdkeras.HessianOperator(sdkeras.EmpiricalLoss(model, (x, y), batch_size=batch))


def medians(
    *functions: Callable[[], object], repeat: int, clock: Callable[[], float] = time.process_time
) -> list[float]:
    """Median seconds of each function, called in turn."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(repeat + 2):
        for own, function in zip(times, functions, strict=True):
            start = clock()
            function()
            own.append(clock() - start)
    return [statistics.median(own[2:]) for own in times]


def product_over_gradient(found: sdkeras.HessianOperator, repeat: int) -> float:
    engine, batch = found._engine, found.batches[0]
    v = tf.constant(GENERATOR.standard_normal(found.size), tf.float32)
    gradient, product = medians(
        lambda: engine.gradient(engine.point, batch), lambda: engine.product(engine.point, v, batch), repeat=repeat
    )
    return product / gradient


def probes_over_gradient(found: sdkeras.HessianOperator, probes: int = 64) -> float:
    engine, batch = found._engine, found.batches[0]
    rows = tf.constant(GENERATOR.standard_normal((probes, found.size)), tf.float32)
    gradient, block = medians(
        lambda: engine.gradient(engine.point, batch), lambda: engine.products(engine.point, rows, batch), repeat=15
    )
    return block / probes / gradient


def run_over_products(found: sdkeras.HessianOperator, steps: int = 40) -> float:
    start = rademacher_probes(found.size, 1, seed=0, dtype=np.float32)[0]

    def bare() -> None:
        for _ in range(steps):
            found.matvec(start)

    products, run = medians(bare, lambda: lanczos(found.matvec, start, steps), repeat=7)
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
    product, tangent = medians(lambda: hessian.matvec(v[: hessian.size]), lambda: step.jvp(v), repeat=repeat)
    return tangent / product


def block_over_singles(step: sdkeras.UpdateMap, tangents: int = 32) -> float:
    block = GENERATOR.standard_normal((step.size, tangents)).astype("float32")
    columns = list(np.ascontiguousarray(block.T))
    singles, several = medians(lambda: [step.jvp(v) for v in columns], lambda: step.jvp(block), repeat=9)
    return several / singles


def fit_with_callback_over_alone(epochs: int = 60, copies: int = 48, repeat: int = 3) -> tuple[float, int]:
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


def main() -> None:
    rows: list[tuple[str, str, str, bool]] = []

    def add(what: str, value: float, target: float | None, unit: str) -> None:
        met = target is None or value <= target
        wanted = "" if target is None else f"<= {target:g} {unit}"
        rows.append((what, f"{value:.2f} {unit}", wanted, met))
        print(f"{what}: {value:.3f} {unit}", flush=True)

    small, large = operator(mlp(784, 16, 2), 128), operator(mlp(784, 256, 2), 128)
    add(f"product / gradient, MLP {small.size:,}", product_over_gradient(small, 200), 2.0, "gradients")
    add(f"product / gradient, MLP {large.size:,}", product_over_gradient(large, 60), 2.0, "gradients")
    conv = operator(cnn(), 128)
    add(f"product / gradient, CNN {conv.size:,}", product_over_gradient(conv, 15), 2.4, "gradients")
    former = operator(transformer(), 8, tokens=True)
    add(f"product / gradient, transformer {former.size:,}", product_over_gradient(former, 9), 2.3, "gradients")
    add(f"64 probes on one minibatch, MLP {small.size:,}", probes_over_gradient(small), 0.3, "gradients each")
    add(f"SLQ run of 40 steps / its products, MLP {large.size:,}", run_over_products(large), 1.3, "times")

    for width, repeat in ((16, 200), (256, 60)):
        for name, step in update_maps(width).items():
            where = f"{name}, MLP {step.num_weights:,}"
            add(f"step JVP / Hessian product, {where}", tangent_over_product(step, repeat), 1.3, "times")
            target = 0.7 if width == 16 else None
            add(f"32 step JVPs at once / one by one, {where}", block_over_singles(step), target, "times")

    exact = sdkeras.get_estimator("spectrum", "exact")()
    exact.estimate(small, seed=0)
    (seconds,) = medians(lambda: exact.estimate(small, seed=0), repeat=3, clock=time.perf_counter)
    add(f"exact spectrum of one minibatch, MLP {small.size:,}", seconds, 2.0, "s")

    images, y = digit_images()
    model = mlp(784, 256, 2)
    model.compile(keras.optimizers.SGD(0.1), CE)
    model.fit(images, y, epochs=5, batch_size=128, verbose=0)
    start = time.perf_counter()
    run = sdkeras.analyze(model, (images, y), batch_size=128)
    seconds = time.perf_counter() - start
    estimate = run.sharpness_dimension
    assert estimate is not None
    what = f"whole analyze, trained MLP {large.size:,} ({estimate.num_runs} runs, {run.provenance.num_hvps:,} products)"
    add(what, seconds, 30.0, "s")

    ratio, measurements = fit_with_callback_over_alone()
    what = f"fit with the callback / fit alone, 60 epochs, MLP {large.size:,} ({measurements} measurements)"
    add(what, ratio, 1.1, "times")

    print(
        f"\n{platform.processor() or platform.machine()}, {os.cpu_count()} cores, TensorFlow {tf.__version__}, ", end=""
    )
    print(f"Keras {keras.__version__}, NumPy {np.__version__}\n\n| what | measured | target | met |\n|---|---|---|---|")
    for name, value, wanted, met in rows:
        print(f"| {name} | {value} | {wanted or '-'} | {('yes' if met else '**no**') if wanted else '-'} |")


if __name__ == "__main__":
    main()
