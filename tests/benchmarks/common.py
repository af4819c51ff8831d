"""Nets, operators, clocks and tables of all benchmarks. Import it before TensorFlow: it limits the threads."""

import gc
import os

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))
os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", KERAS_BACKEND="tensorflow")

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import sdkeras

tf.config.threading.set_intra_op_parallelism_threads(1)


def one_thread() -> None:
    """Makes CPU time that of the work alone, where nothing is run side by side: TensorFlow waits without sleeping."""
    tf.config.threading.set_inter_op_parallelism_threads(1)


FOLDER = Path(__file__).parent
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


# The nets of the ratios: maker and batch size. Tokens are the inputs of the transformer, images those of the others.
NETS: dict[str, tuple[Callable[[], keras.Model], int]] = {
    "MLP 13k": (lambda: mlp(784, 16, 2), 128),
    "MLP 270k": (lambda: mlp(784, 256, 2), 128),
    "CNN 43k": (cnn, 128),
    "transformer 616k": (transformer, 8),
}


def batch_of(model: keras.Model, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Random inputs and targets."""
    shape = (count, *model.input_shape[1:])
    if len(model.output_shape) == 3:
        return GENERATOR.integers(0, 80, shape), GENERATOR.integers(0, 80, shape)
    return GENERATOR.standard_normal(shape).astype("float32"), GENERATOR.integers(0, 10, count)


def operator(net: str) -> tuple[sdkeras.HessianOperator, tuple[np.ndarray, np.ndarray]]:
    """The Hessian of one of `NETS` on one batch, and the batch."""
    make, count = NETS[net]
    keras.utils.set_random_seed(0)
    model = make()
    model.compile(keras.optimizers.SGD(0.1), CE)
    x, y = batch_of(model, count)
    return sdkeras.HessianOperator(sdkeras.EmpiricalLoss(model, (x, y), batch_size=count)), (x, y)


def seconds_of(function: Callable[[], object], clock: Callable[[], float] = time.process_time, calls: int = 1) -> float:
    """Seconds of one call, as a mean over several."""
    start = clock()
    for _ in range(calls):
        function()
    return (clock() - start) / calls


def minima(
    *functions: Callable[[], object], repeat: int, clock: Callable[[], float] = time.process_time
) -> list[float]:
    """Least seconds of each function, called in turn."""
    return [
        min(own) for own in zip(*([seconds_of(f, clock) for f in functions] for _ in range(repeat + 1)), strict=True)
    ]


def machine() -> str:
    """The processor and the versions that the numbers belong to."""
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    versions = f"TensorFlow {tf.__version__}, Keras {keras.__version__}, NumPy {np.__version__}"
    return f"{names[0] if names else 'unknown processor'}, {os.cpu_count()} cores; {versions}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write(file: str, text: str) -> None:
    """Prints Markdown and puts it between the two marks of a page."""
    path, mark = FOLDER / file, "<!-- measured -->\n"
    before, _, after = path.read_text().split(mark)
    path.write_text(mark.join([before, text, after]))
    print(f"\n{text}\nwritten: {path}")


def write_by_net(file: str, head: Sequence[str], nets: Iterable[str], row_of: Callable[[str], list[str]]) -> None:
    """Measures net after net, each row printed as it comes and its net released, and writes machine and table."""
    rows = []
    for net in nets:
        rows.append(row_of(net))
        print(*rows[-1], sep=" | ", flush=True)
        keras.backend.clear_session()
        gc.collect()
    write(file, f"{machine()}\n\n{table(head, rows)}")


def exponent(xs: Sequence[float], ys: Sequence[float]) -> float:
    """The p of y = c x^p, fitted to logarithms."""
    return float(np.polyfit(np.log(xs), np.log(np.maximum(ys, 1e-9)), 1)[0])
