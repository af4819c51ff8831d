"""The estimated sharpness dimension against exact spectra, on three trained nets.

Trains a digits MLP (SGD), a convolutional net with BatchNormalization (SGD with momentum and weight decay) and a small
pre-LayerNormalization transformer on English text (AdamW), none with a batch size that divides its data. Prints for
each, under the paper's map |1 - eta*alpha|, the estimate and the exact value from 24 minibatches, and the largest
eigenvalue and trace of the data-set Hessian beside those of a dense finite-difference Hessian in float64.

    python examples/compare_with_exact.py [mlp|conv|transformer ...] [--results JSON]
"""

import argparse
import pydoc_data.topics
import time
from pathlib import Path

import keras
import numpy as np
from result_files import markdown, save

import sdkeras
from sdkeras.datasets import load_digits

layers = keras.layers
CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def mlp():
    x, y = load_digits()
    model = keras.Sequential([keras.Input((8, 8)), layers.Flatten(), layers.Dense(24, "tanh"), layers.Dense(10)])
    model.compile(keras.optimizers.SGD(0.2), CROSS_ENTROPY)
    model.fit(x, y, batch_size=50, epochs=20, verbose=0)
    return model, (x, y), 50, None


def conv():
    x, y = load_digits()
    x, y = x[:1500, :, :, None], y[:1500]
    inner = []
    for filters in (6, 8):
        inner += [layers.Conv2D(filters, 3), layers.BatchNormalization(), layers.ReLU()]
    model = keras.Sequential([keras.Input((8, 8, 1)), *inner, layers.Flatten(), layers.Dense(10)])
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9, weight_decay=1e-4), CROSS_ENTROPY)
    model.fit(x, y, batch_size=64, epochs=10, verbose=0)
    return model, (x, y), 64, None


def transformer():
    text = "".join(pydoc_data.topics.topics.values())[:20_000]
    letters = sorted(set(text))
    tokens = np.array([letters.index(letter) for letter in text], dtype="int32")
    length = 16
    count = (len(tokens) - 1) // length
    x, y = (tokens[k : k + count * length].reshape(count, length) for k in (0, 1))
    start = keras.Input((length,), dtype="int32")
    h = layers.Embedding(len(letters), 12)(start)
    a = layers.LayerNormalization()(h)
    h = layers.Add()([h, layers.MultiHeadAttention(2, 6)(a, a, use_causal_mask=True)])
    f = layers.Dense(24, "gelu")(layers.LayerNormalization()(h))
    h = layers.Add()([h, layers.Dense(12)(f)])
    model = keras.Model(start, layers.Dense(len(letters))(layers.LayerNormalization()(h)))
    model.compile(keras.optimizers.AdamW(3e-3, weight_decay=1e-2), CROSS_ENTROPY)
    model.fit(x, y, batch_size=50, epochs=15, verbose=0)
    return model, (x, y), 50, 0.1  # the map at a rate where it has something to say


def finite_difference_hessian(model, data) -> tuple[np.ndarray, sdkeras.EmpiricalLoss]:
    loss = sdkeras.EmpiricalLoss(model, data, batch_size=100, dtype="float64")
    step = 2e-8  # a longer one crosses a kink of some ReLU in some of the columns
    columns = []
    for k in range(loss.size):
        shift = np.zeros(loss.size)
        shift[k] = step
        columns.append((loss.gradient(loss.point + shift) - loss.gradient(loss.point - shift)) / (2 * step))
    matrix = np.stack(columns, axis=1)
    return (matrix + matrix.T) / 2, loss


def dimensions(make) -> tuple[dict, tuple]:
    """Trains a net and estimates its SD both ways: the row of the table, and (model, data)."""
    model, data, batch_size, rate = make()
    start = time.perf_counter()
    run = sdkeras.analyze(model, data, batch_size=batch_size, learning_rate=rate, map="hessian", exact_minibatches=24)
    exact, estimate = sorted(run.estimates, key=lambda one: one.estimator != "exact")
    row = {
        "net": make.__name__,
        "num_parameters": model.count_params(),
        "batch_size": batch_size,
        "optimizer": run.optimizer.name,
        "exact_pooled": exact.value,
        "exact_interval": exact.interval,
        "pooled": estimate.value,
        "interval": estimate.interval,
        "exact_definition": exact.definition_value,
        "definition_interval": estimate.definition_interval,
    }
    print(
        f"{make.__name__}: {run.edge_of_stability.verdict} {estimate.num_runs} runs, {estimate.num_hvps:,} "
        f"Hessian-vector products; exact: {exact.num_hvps:,}; {time.perf_counter() - start:.0f} s",
        flush=True,
    )
    return row, (model, data)


def extremes(name: str, model, data) -> dict:
    """Largest eigenvalue and trace of the Hessian of 250 samples, beside those of the dense matrix."""
    few = tuple(array[:250] for array in data)
    dense, loss = finite_difference_hessian(model, few)
    operator = sdkeras.HessianOperator(sdkeras.EmpiricalLoss(model, few, batch_size=100))
    pairs = sdkeras.get_estimator("eigenpairs", "lanczos")(tolerance=1e-5).estimate(operator, seed=0)
    values = np.linalg.eigvalsh(dense)
    trace = sum(
        float(operator.rows(block.astype("float32"))[np.arange(len(block)), first + np.arange(len(block))].sum())
        for first in range(0, loss.size, 64)
        for block in [np.eye(loss.size)[first : first + 64]]
    )
    return {
        "net": name,
        "largest": float(pairs.values[0]),
        "dense_largest": float(values[-1]),
        "smallest": float(pairs.values[1]),
        "dense_smallest": float(values[0]),
        "trace": trace,
        "dense_trace": float(np.trace(dense)),
    }


DIMENSIONS = {
    "net": "{net}",
    "parameters": "{num_parameters:,}",
    "batch size": "{batch_size}",
    "optimizer": "{optimizer}",
    "exact, pooled": "{exact_pooled:,.1f} [{exact_interval[0]:,.1f}, {exact_interval[1]:,.1f}]",
    "estimate, pooled": "{pooled:,.1f} [{interval[0]:,.1f}, {interval[1]:,.1f}]",
    "exact, definition": "{exact_definition:,.1f}",
    "estimate's bracket": "[{definition_interval[0]:,.1f}, {definition_interval[1]:,.1f}]",
}
EXTREMES = {
    "net": "{net}",
    "largest eigenvalue": "{largest:.5g}",
    "dense, largest": "{dense_largest:.5g}",
    "trace": "{trace:.5g}",
    "dense, trace": "{dense_trace:.5g}",
}


def main() -> None:
    nets = {make.__name__: make for make in (mlp, conv, transformer)}
    parser = argparse.ArgumentParser(description="The estimated sharpness dimension against exact spectra.")
    parser.add_argument("nets", nargs="*", metavar="NET", help=f"of {', '.join(nets)}; default all")
    parser.add_argument("--results", type=Path, metavar="JSON", help="save the numbers of the tables there")
    options = parser.parse_args()
    if unknown := set(options.nets) - set(nets):
        parser.error(f"unknown net {', '.join(sorted(unknown))}; choose from {', '.join(nets)}")
    rows, beside_dense = [], []
    for name in options.nets or nets:
        row, trained = dimensions(nets[name])
        rows.append(row)
        beside_dense.append(extremes(name, *trained))
    print(markdown(rows, DIMENSIONS), "", markdown(beside_dense, EXTREMES), sep="\n")
    if options.results is not None:
        save(options.results, rows, beside_dense)


if __name__ == "__main__":
    main()
