"""An accelerator's kernels on the processor, and two logical devices of it: `make bench-devices`.

All are made in one process and timed in turn, in wall-clock time since two devices work side by side; ratios are of
medians. Look at them on a machine with two idle cores.
"""

import statistics
import time
from collections.abc import Callable

import common
import keras
import numpy as np
import tensorflow as tf
from common import CE, NETS, batch_of

from sdkeras.operators.device import devices

devices("cpu:0,cpu:1")  # made before anything else of TensorFlow

import sdkeras  # noqa: E402

_PLACES = ("cpu", "cpu:0", "cpu:0,cpu:1")
_BATCHES, _RUNS, _REPEAT, _STEPS = 8, 4, 5, 20
_NETS = ("MLP 13k", "MLP 270k", "CNN 43k")
_HEAD = (
    *("net", "data-set product, device's kernels / host's", f"run of {_STEPS} steps, likewise"),
    *("data-set product, two devices / one", f"{_RUNS} runs, two devices / one"),
)


def _calls(net: str, place: str) -> list[Callable[[], object]]:
    """A product with the data set, a run on a minibatch, and some side by side on as many devices as there are."""
    make, count = NETS[net]
    keras.utils.set_random_seed(0)
    common.GENERATOR = np.random.default_rng(0)
    model = make()
    model.compile(keras.optimizers.SGD(0.1), CE)
    data = batch_of(model, _BATCHES * count)
    loss = sdkeras.EmpiricalLoss(model, data, batch_size=count, device=place)
    where = loss.devices
    with where.scope():
        hessian = sdkeras.HessianOperator(loss)
        v: np.ndarray | tf.Tensor = np.random.default_rng(1).standard_normal(hessian.size).astype(np.float32)
        v = v if hessian.space is None else hessian.space.moved(v)
    estimator = sdkeras.get_estimator("spectrum", "slq")(num_steps=_STEPS)

    def product() -> object:
        with where.scope():
            return np.asarray(hessian.matvec(v))

    def run(index: int) -> object:
        return estimator.estimate(hessian.on_minibatch(index), seed=index)

    def one() -> object:
        with where.scope():
            return run(0)

    def several() -> object:
        with where.executor(max(1, len(where.names))) as pool:
            return list(pool.map(run, range(_RUNS)))

    return [product, one, several]


def _row(net: str) -> list[str]:
    calls = {place: _calls(net, place) for place in _PLACES}
    times: dict[tuple[str, int], list[float]] = {}
    for repeat in range(_REPEAT + 2):
        for place, functions in calls.items():
            for number, function in enumerate(functions):
                start = time.perf_counter()
                function()
                if repeat > 1:  # the first ones compile and linearise
                    times.setdefault((place, number), []).append(time.perf_counter() - start)
    median = {key: statistics.median(own) for key, own in times.items()}
    host, one, two = _PLACES
    ratios = [(one, host, 0), (one, host, 1), (two, one, 0), (two, one, 2)]
    return [net, *(f"{median[a, number] / median[b, number]:.2f}" for a, b, number in ratios)]


def main() -> None:
    common.write_by_net("devices.md", _HEAD, _NETS, _row)


if __name__ == "__main__":
    main()
