"""Do the intervals of the sharpness dimension cover it? Four small nets whose minibatch Hessians are dense matrices.

For each net the Hessian of every example, as sum and denominator, is computed once, so that that of any minibatch is a
quotient of sums. The truth is the pooled dimension of the exact spectra of 1,500 minibatches and more; the
estimates are the product's own: its loop, its sampler of minibatches, its controls, Lanczos runs on the dense matrices.

    python examples/interval_coverage.py [sgd|adamw|momentum|sequence ...] [--seeds 400] [--apart] [--results JSON]

With --apart each run draws its own permutation, so that minibatches are independent.
"""

import argparse
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import attrs
import keras
import numpy as np
from result_files import markdown, save

import sdkeras
from sdkeras.datasets import load_digits
from sdkeras.dimension.controls import Population
from sdkeras.dimension.estimate import Context
from sdkeras.dimension.sampling import AdaptiveSettings, estimate_sharpness_dimension
from sdkeras.linalg.operators import DenseOperator
from sdkeras.operators import controls
from sdkeras.results.estimates import Spectrum
from sdkeras.runs.measure import HessianRuns
from sdkeras.runs.options import Options
from sdkeras.runs.problem import Problem, read_problem
from sdkeras_plugins.quadrature import StochasticLanczosQuadrature

layers = keras.layers
CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
# Fixed before the first look; nets and bars were tried with seeds below 1,000.
FIRST_SEED, TRUTH_SEED = 10_000, 10**6
TRUTH = 1512


def digits(optimizer, loss=CROSS_ENTROPY, last=10, targets=None, epochs=20):
    """An MLP on twelve principal components of digits."""
    x, y = load_digits()
    x, y = x.reshape(len(x), -1)[:1344], y[:1344]
    x = x - x.mean(axis=0)
    x = (x @ np.linalg.svd(x, full_matrices=False)[2][:12].T).astype("float32")
    y = y if targets is None else targets(y).astype("float32")
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((12,)), layers.Dense(12, "tanh"), layers.Dense(last)])
    model.compile(optimizer, loss)
    model.fit(x, y, batch_size=32, epochs=epochs, verbose=0)
    return model, (x, y), 32


def sequence():
    """Words with a mask and weights by word: the denominator of a minibatch is random."""
    generator = np.random.default_rng(0)
    x = generator.integers(1, 16, (900, 6))
    y = (np.cumsum(x, axis=1) // 3 + generator.integers(0, 2, x.shape)) % 5
    x[np.arange(6) >= generator.integers(2, 7, (900, 1))] = 0
    weights = generator.uniform(0.3, 2.0, x.shape).astype("float32")
    keras.utils.set_random_seed(0)
    words, recurrent = layers.Embedding(16, 6, mask_zero=True), layers.SimpleRNN(10, return_sequences=True, unroll=True)
    model = keras.Sequential([keras.Input((6,), dtype="int32"), words, recurrent, layers.Dense(5)])
    model.compile(keras.optimizers.SGD(0.3), CROSS_ENTROPY)
    model.fit(x, y, sample_weight=weights, batch_size=20, epochs=30, verbose=0)
    return model, (x, y, weights), 20


NETS = {
    "sgd": lambda: digits(keras.optimizers.SGD(0.2)),
    "adamw": lambda: digits(keras.optimizers.AdamW(2e-3, weight_decay=1e-3)),
    "momentum": lambda: digits(
        keras.optimizers.SGD(0.05, momentum=0.9), keras.losses.Huber(0.5), 2, lambda y: np.stack([y / 5, y % 2], axis=1)
    ),
    "sequence": sequence,
}


COLUMNS = {
    "net": "{net}",
    "d": "{state_size}",
    "truth": "{truth:.2f} +- {truth_stderr:.2f}",
    "sd": "{sd:.2f}",
    "misses": "{misses} of {seeds}",
    "mean of T": "{bias:.2f}",
    "sd of T": "{spread:.2f}",
    "half-width / 1.96 sd": "{width:.2f}",
    "runs": "{runs:.0f}",
    "products": "{products:,.0f}",
}


@attrs.frozen(eq=False)
class Net:
    """A trained net with the Hessians of its examples.

    `sums` are the second derivatives of each example's part of the loss's numerator, `shares` its parts of the
    denominator; `scaling` is P^-1/2 or 1.
    """

    problem: Problem
    context: Context
    sums: np.ndarray
    shares: np.ndarray
    scaling: np.ndarray

    def hessian(self, examples: np.ndarray) -> np.ndarray:
        matrix = self.sums[examples].sum(axis=0) / self.shares[examples].sum()
        return self.scaling[:, None] * matrix.astype(np.float64) * self.scaling


def dense(name: str) -> Net:
    """The net with dense Hessians of its examples, in float64."""
    model, data, batch_size = NETS[name]()
    problem, _ = read_problem(model, data, Options(batch_size=batch_size, dtype="float64"))
    hessian = sdkeras.HessianOperator(problem.loss)
    identity, sums, shares = np.eye(hessian.size), [], []
    for index in range(problem.source.num_samples):
        batch = problem.loss.batch(problem.source.take(slice(index, index + 1)), index)
        count = float(problem.loss.gradients.evaluate(problem.loss.gradients.point, batch)[2][0])
        sums.append((count * hessian.on_batch(batch).matmat(identity)).astype(np.float32))
        shares.append(count)
    context = HessianRuns(problem, hessian).context("slq")
    scaling = np.ones(hessian.size) if problem.scaling is None else problem.scaling
    return Net(problem, context, np.stack(sums), np.array(shares), scaling)


def runs(net: Net, seed: int, stride: int, indices: Sequence[int], steps: int | None) -> Iterator[Spectrum]:
    """Lanczos runs on the minibatches of these numbers, times the stride, each with a probe of its own."""
    for index in indices:
        examples = np.asarray(net.problem.source.examples(index * stride, seed))
        probe = int(np.random.default_rng([seed, index]).integers(2**31))
        operator = DenseOperator(net.hessian(examples))
        yield StochasticLanczosQuadrature(num_steps=steps).estimate(operator, seed=probe)


def estimates(net: Net, seeds: Sequence[int], *, apart: bool, tolerance: float = 0.05) -> Iterator[tuple[float, ...]]:
    """(value, lower end, upper end, standard error, runs, products) of each seed."""
    for seed in seeds:
        known, per_epoch = (
            controls.population(net.problem.loss.with_seed(seed)),
            net.problem.source.minibatches_per_epoch,
        )
        if apart:
            known = alone(known, per_epoch)
        outcome = estimate_sharpness_dimension(
            functools.partial(runs, net, seed, per_epoch if apart else 1),
            net.context,
            AdaptiveSettings(tolerance=tolerance),
            num_steps=40,
            population=known,
        )
        found = outcome.sharpness_dimension
        yield found.value, *found.interval, found.sampled.stderr, found.num_runs, found.num_hvps


def alone(known: Population, per_epoch: int) -> Population:
    """The population where run i has the first minibatch of epoch i."""
    of_runs: Callable[[Sequence[int]], np.ndarray] | None = known.controls
    if of_runs is None:
        return attrs.evolve(known, per_epoch=None)
    return attrs.evolve(
        known, per_epoch=None, controls=lambda indices: of_runs([index * per_epoch for index in indices])
    )


def truth(net: Net) -> tuple[float, float]:
    """Pooled SD of the exact spectra of whole epochs, and its standard error over epochs."""
    source = net.problem.source
    per_epoch, z = source.minibatches_per_epoch, []
    count = per_epoch * math.ceil(TRUTH / per_epoch)
    for index in range(count):
        spectrum = np.linalg.eigvalsh(net.hessian(np.asarray(source.examples(index, TRUTH_SEED))))
        z.append(net.context.exponents(spectrum))
    whole = np.concatenate(z)
    value = sdkeras.sharpness_dimension(whole, np.full(len(whole), 1 / count))
    parts = np.array_split(np.array(z), count // per_epoch)
    each = [sdkeras.sharpness_dimension(part.ravel(), np.full(part.size, 1 / len(part))) for part in parts]
    return value, float(np.std(each, ddof=1) / math.sqrt(len(each)))


@attrs.frozen
class Coverage:
    """What intervals of many seeds are like beside the truth."""

    misses: int
    seeds: int
    bias: float  # mean of T = (estimate - truth) / standard error
    spread: float  # standard deviation of T
    width: float  # mean half-width over 1.96 standard deviations of the estimates
    runs: float
    products: float

    @classmethod
    def of(cls, rows: Sequence[tuple[float, ...]], value: float) -> "Coverage":
        values, low, high, errors, runs, products = np.array(rows).T
        scores = (values - value) / errors
        return cls(
            misses=int(np.sum((low > value) | (high < value))),
            seeds=len(values),
            bias=float(scores.mean()),
            spread=float(scores.std(ddof=1)),
            width=float(np.mean(high - low) / 2 / (1.96 * values.std(ddof=1))),
            runs=float(runs.mean()),
            products=float(products.mean()),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nets", nargs="*", default=list(NETS), choices=[*NETS, []])
    parser.add_argument("--seeds", type=int, default=400)
    parser.add_argument("--apart", action="store_true")
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    rows = []
    for name in options.nets:
        net = dense(name)
        value, error = truth(net)
        made = list(estimates(net, range(FIRST_SEED, FIRST_SEED + options.seeds), apart=options.apart))
        found = Coverage.of(made, value)
        rows.append(
            {
                "net": name,
                "apart": options.apart,
                "state_size": net.context.state_size,
                "truth": value,
                "truth_stderr": error,
                "sd": float(np.std([row[0] for row in made], ddof=1)),
                **attrs.asdict(found),
            }
        )
        print(rows[-1], flush=True)
    print(markdown(rows, COLUMNS))
    if options.results is not None:
        save(options.results, rows)


if __name__ == "__main__":
    main()
