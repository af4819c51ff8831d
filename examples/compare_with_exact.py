"""The estimated sharpness dimension against exact spectra, on three trained nets.

Trains a digits MLP (SGD), a convolutional net with BatchNormalization (SGD with momentum and weight decay) and a small
pre-LayerNormalization transformer on English text (AdamW), none with a batch size that divides its data, and prints
for each, under the paper's map |1 - eta*alpha|, the estimate, the exact value from 24 minibatches, and the largest
eigenvalue and trace of the data-set Hessian beside those of a dense finite-difference Hessian in float64.

    python examples/compare_with_exact.py [mlp|conv|transformer ...]
"""

import pydoc_data.topics
import sys
import time

import keras
import numpy as np

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


def main() -> None:
    for make in [mlp, conv, transformer]:
        if len(sys.argv) > 1 and make.__name__ not in sys.argv[1:]:
            continue
        model, data, batch_size, rate = make()
        print(f"\n{make.__name__}: {model.count_params():,} parameters, {len(data[0]):,} samples, batch {batch_size}")
        start = time.perf_counter()
        run = sdkeras.analyze(
            model, data, batch_size=batch_size, learning_rate=rate, map="hessian", exact_minibatches=24
        )
        for estimate in run.estimates:
            low, high = estimate.interval
            print(f"  {estimate.estimator:6} pooled {estimate.value:.1f} [{low:.1f}, {high:.1f}]", end="")
            low, high = estimate.definition_interval
            value = "" if estimate.definition_value is None else f"{estimate.definition_value:.1f} "
            print(
                f"  definition {value}[{low:.1f}, {high:.1f}]  {estimate.num_runs} runs, {estimate.num_hvps:,} products"
            )
        print(f"  {run.edge_of_stability.verdict}\n  {time.perf_counter() - start:.0f} s")
        few = tuple(part[:250] for part in data)
        dense, loss = finite_difference_hessian(model, few)
        values = np.linalg.eigvalsh(dense)
        operator = sdkeras.HessianOperator(sdkeras.EmpiricalLoss(model, few, batch_size=100))
        pairs = sdkeras.get_estimator("eigenpairs", "lanczos")(tolerance=1e-5).estimate(operator, seed=0)
        trace = sum(
            float(operator.rows(block.astype("float32"))[np.arange(len(block)), first + np.arange(len(block))].sum())
            for first in range(0, loss.size, 64)
            for block in [np.eye(loss.size)[first : first + 64]]
        )
        print(f"  250 samples: largest {pairs.values[0]:.5g} (dense {values[-1]:.5g}), ", end="")
        print(
            f"smallest {pairs.values[1]:.4g} (dense {values[0]:.4g}), trace {trace:.5g} (dense {np.trace(dense):.5g})"
        )


if __name__ == "__main__":
    main()
