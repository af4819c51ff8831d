"""What K-FAC would give beside the Gauss-Newton operator: how far its block-Kronecker matrix is from the exact one.

Two dense nets on digits, before and after training. K-FAC (Martens and Grosse 2015) replaces a layer's block of the
Gauss-Newton matrix, the mean over examples of (a a') x (g g'), by (mean of a a') x (mean of g g'), a the layer's input
with a 1 for the bias and g the derivative of a root of the loss in its output; blocks between layers are left out. All
outputs are taken, so that nothing is left to chance. Compared are what sdkeras reports of the matrix, and the log
determinant that a Laplace posterior needs, beside the product's own leading eigenpairs with a diagonal.

    python tests/benchmarks/kfac.py
"""

import keras
import numpy as np
from common import CE, machine, table, write

import sdkeras
from sdkeras.datasets import load_digits

layers = keras.layers
PRIOR, RANK = 1.0, 100  # delta, and eigenpairs beside the diagonal
WIDTHS = (16, 32)


def trained(width: int, epochs: int) -> tuple[keras.Model, np.ndarray, np.ndarray]:
    x, y = load_digits()
    x = x.reshape(len(x), -1)[:1347].astype("float32")
    keras.utils.set_random_seed(0)
    hidden = [layers.Dense(width, "tanh") for _ in range(2)]
    model = keras.Sequential([keras.Input((64,)), *hidden, layers.Dense(10)])
    model.compile(keras.optimizers.SGD(0.2), CE)
    model.fit(x, y[:1347], batch_size=32, epochs=epochs, verbose=0)
    return model, x, y[:1347]


def factors(model: keras.Model, x: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """K-FAC's two factors of each layer: mean of a a', and of g g' summed over the outputs."""
    weights, inputs = [layer.get_weights() for layer in model.layers], [x.astype(np.float64)]
    for kernel, bias in weights[:-1]:
        inputs.append(np.tanh(inputs[-1] @ kernel + bias))
    logits = inputs[-1] @ weights[-1][0] + weights[-1][1]
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    # The root of diag(p) - p p', one column for each output: diag(sqrt p) - p sqrt(p)'.
    slopes = np.sqrt(shares)[:, None, :] * (np.eye(10) - shares[:, :, None])  # [examples, logits, columns]
    found = []
    for depth in reversed(range(len(weights))):
        a = np.hstack([inputs[depth], np.ones((len(x), 1))])
        found.append((a.T @ a / len(x), np.einsum("nic,njc->ij", slopes, slopes) / len(x)))
        if depth:
            slopes = np.einsum("ij,njc->nic", weights[depth][0], slopes) * (1 - inputs[depth] ** 2)[:, :, None]
    return found[::-1]


def log_det(values: np.ndarray, examples: int, size: int) -> float:
    """ln det(n G + delta I) from eigenvalues, the others 0."""
    return float(np.log(examples * np.maximum(values, 0) + PRIOR).sum() + (size - len(values)) * np.log(PRIOR))


def row(width: int, epochs: int) -> list[str]:
    model, x, y = trained(width, epochs)
    loss = sdkeras.EmpiricalLoss(model, (x, y), batch_size=len(x), mode="inference", dtype="float64")
    exact = sdkeras.GaussNewtonOperator(loss).as_matrix()
    kronecker, start, errors = np.zeros_like(exact), 0, []
    for a, g in factors(model, x):
        stop = start + len(a) * len(g)
        kronecker[start:stop, start:stop] = np.kron(a, g)  # kernel [in, out] row by row, then the bias
        block = exact[start:stop, start:stop]
        errors.append(np.linalg.norm(kronecker[start:stop, start:stop] - block) / np.linalg.norm(block))
        start = stop
    assert start == len(exact)
    values, vectors = np.linalg.eigh(exact)
    of_kronecker = np.linalg.eigvalsh(kronecker)
    top = (vectors[:, -RANK:] * values[-RANK:]) @ vectors[:, -RANK:].T
    rest = np.maximum(np.diag(exact) - np.diag(top), 0)
    size, count = len(exact), len(x)
    truth = log_det(values, count, size)
    low_rank = np.linalg.slogdet(count * (top + np.diag(rest)) + PRIOR * np.eye(size))[1]
    return [
        f"{width}, {epochs} epochs",
        f"{size:,}",
        ", ".join(f"{error:.2f}" for error in errors),
        f"{np.linalg.norm(kronecker - exact) / np.linalg.norm(exact):.2f}",
        f"{of_kronecker[-1] / values[-1]:.2f}",
        f"{np.trace(kronecker) / np.trace(exact):.3f}",
        f"{log_det(of_kronecker, count, size) - truth:+,.0f}",
        f"{low_rank - truth:+,.0f}",
    ]


def main() -> None:
    heads = [
        "widths of two hidden layers",
        "weights",
        "error of each layer's block, Frobenius",
        "error of the whole matrix",
        "largest eigenvalue / exact",
        "trace / exact",
        "K-FAC: ln det - exact",
        f"{RANK} eigenpairs and a diagonal: ln det - exact",
    ]
    rows = [row(width, epochs) for width in WIDTHS for epochs in (0, 20)]
    write("kfac.md", f"{machine()}\n\n{table(heads, rows)}")


if __name__ == "__main__":
    main()
