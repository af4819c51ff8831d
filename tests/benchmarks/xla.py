"""Products compiled by XLA beside those that are not: `make bench-xla`.

Both are made in one process and timed in turn, in CPU time; the ratios are of medians. Compiling is timed apart.
"""

import statistics
import time
from collections.abc import Callable

import common
import keras
import numpy as np
import tensorflow as tf
from common import CE, NETS, batch_of, mlp

import sdkeras
from sdkeras.linalg.vectors import norm
from sdkeras.operators.lockstep import Rows
from sdkeras.operators.modes import JIT

_MODES = JIT[:0:-1]  # off, on
_REPEAT, _SECONDS, _ROWS = 40, 0.05, 32
# A small net beside those of the other benchmarks: what `sdkeras demo` trains.
_NETS: dict[str, tuple[Callable[[], keras.Model], int]] = {"MLP 3k": (lambda: mlp(64, 32, 2), 32), **NETS}
_HEAD = ("net", "gradient", "product", "the same, not linearised", "row of 32", "compiling and checks", "difference")


def operators(net: str, jit: str) -> tuple[list[sdkeras.HessianOperator], float]:
    """The Hessian linearised where that is faster, and not linearised; and seconds to compile and verify the first."""
    make, count = _NETS[net]
    keras.utils.set_random_seed(0)
    common.GENERATOR = np.random.default_rng(0)
    model = make()
    model.compile(keras.optimizers.SGD(0.1), CE)
    data, made = batch_of(model, count), []
    for mode in ("auto", "reverse-over-reverse"):
        start = time.perf_counter()
        loss = sdkeras.EmpiricalLoss(model, data, batch_size=count, jit=jit)
        found = sdkeras.HessianOperator(loss, product_mode=mode)
        for _ in range(3):  # a batch is linearised at its second product
            found.matvec(np.zeros(found.size, np.float32))
        made.append((found, time.perf_counter() - start))
    return [found for found, _ in made], made[0][1]


def calls(linearized: sdkeras.HessianOperator, whole: sdkeras.HessianOperator) -> list[Callable[[], object] | None]:
    """A gradient, a product, one that is not linearised, and a row of several minibatches in lockstep if it pays."""
    engine, batch = linearized.engine, linearized.batches[0]
    v = tf.constant(np.random.default_rng(1).standard_normal(linearized.size), tf.float32)
    rows = None
    if linearized.rows_together(10_000) > 1:
        rows = Rows.of(engine, [batch] * _ROWS)
    vectors = tf.repeat(v[None], _ROWS, axis=0)
    return [
        lambda: engine.gradient(engine.point, batch).numpy(),
        lambda: linearized.matvec(v).numpy(),
        lambda: whole.matvec(v).numpy(),
        None if rows is None else lambda: rows.products(engine, vectors).numpy(),
    ]


def row_of(net: str) -> list[str]:
    made = {jit: operators(net, jit) for jit in _MODES}
    functions = {jit: calls(*found) for jit, (found, _) in made.items()}
    cells = []
    for off, on in zip(*(functions[jit] for jit in _MODES), strict=True):
        if off is None or on is None:
            cells.append("")
            continue
        times: list[list[float]] = [[], []]
        off(), on()
        number = max(1, int(_SECONDS / common.seconds_of(off)))
        for _ in range(_REPEAT):
            for own, function in zip(times, (off, on), strict=True):
                own.append(common.seconds_of(function, calls=number))
        without, by_xla = (statistics.median(own) for own in times)
        cells.append(f"{by_xla / without:.2f}")
    v = np.random.default_rng(1).standard_normal(made["on"][0][0].size).astype(np.float32)
    off, on = (made[jit][0][0].matvec(v) for jit in _MODES)
    seconds = " / ".join(f"{made[jit][1]:.2g}" for jit in reversed(_MODES)) + " s"
    return [net, *cells, seconds, f"{norm(on - off) / norm(off):.0e}"]


def main() -> None:
    common.one_thread()
    common.write_by_net("xla.md", _HEAD, _NETS, row_of)


if __name__ == "__main__":
    main()
