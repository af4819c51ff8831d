"""Intervals of SD cover with minibatches drawn as the product draws them: cut from one permutation per epoch.

The net is a softmax regression, whose Hessian for each example is a closed form in NumPy, so that a minibatch's Hessian
is the mean of its examples' and every spectrum is dense.
"""

from collections.abc import Callable

import attrs
import keras
import numpy as np
import pytest
import scipy.stats

import sdkeras
from oracles import one_by_one
from sdkeras.dimension.controls import UNKNOWN, Population
from sdkeras.dimension.estimate import Context
from sdkeras.dimension.exponents import ExponentMap
from sdkeras.dimension.sampling import AdaptiveSettings, estimate_sharpness_dimension
from sdkeras.operators.controls import population
from sdkeras.operators.minibatches import Source
from sdkeras.results.estimates import Spectrum

NUM_EXAMPLES, NUM_FEATURES, NUM_CLASSES, BATCH = 384, 8, 3, 16
SIZE = NUM_FEATURES * NUM_CLASSES
RATE = 12.0
EXPONENTS = ExponentMap("sgd", RATE)
# Chosen before the first look; the population was tried with seeds below 100.
SEEDS = range(1000, 1400)
TRUTH_SEED = 10**6
# More misses have a chance of 0.3 % at a coverage of 0.95, and of 86 % at 0.90.
MOST_MISSES = 33


def probabilities(weights: np.ndarray, x: np.ndarray) -> np.ndarray:
    scores = np.exp(x @ weights)
    return scores / scores.sum(axis=1, keepdims=True)


def gradient(weights: np.ndarray, x: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return x.T @ (probabilities(weights, x) - targets) / len(x)


@pytest.fixture(scope="module")
def trained() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs, one-hot targets, and weights after 300 steps of gradient descent."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, NUM_CLASSES, NUM_EXAMPLES)
    centres = generator.standard_normal((NUM_CLASSES, NUM_FEATURES - 1))
    noise = generator.standard_normal((NUM_EXAMPLES, NUM_FEATURES - 1)) * np.geomspace(2, 0.3, NUM_FEATURES - 1)
    x = np.c_[centres[labels] + noise, np.ones(NUM_EXAMPLES)]
    targets, weights = np.eye(NUM_CLASSES)[labels], np.zeros((NUM_FEATURES, NUM_CLASSES))
    for _ in range(300):
        weights -= 0.3 * gradient(weights, x, targets)
    return x, targets, weights


@pytest.fixture(scope="module")
def hessians(trained: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
    """(diag(p) - p p') (x) x x' of each example, shape [examples, n, n]."""
    x, _, weights = trained
    p = probabilities(weights, x)
    of_scores = p[:, :, None] * np.eye(NUM_CLASSES) - p[:, :, None] * p[:, None, :]
    return np.einsum("icd,ij,ik->ijckd", of_scores, x, x).reshape(NUM_EXAMPLES, SIZE, SIZE)


def test_the_hessians_are_those_of_the_loss(
    trained: tuple[np.ndarray, np.ndarray, np.ndarray], hessians: np.ndarray
) -> None:
    x, targets, weights = trained
    step, columns = 1e-5, []
    for k in range(SIZE):
        shift = step * np.eye(SIZE)[k].reshape(weights.shape)
        both = (gradient(weights + sign * shift, x, targets).ravel() for sign in (1, -1))
        columns.append(np.subtract(*both) / (2 * step))
    # Third derivatives are of the order of |x|^3 ~ 100: differences are good to step^2 * 100, and to eps/step.
    assert np.allclose(hessians.mean(axis=0), np.array(columns), atol=1e-7)


Indices = Callable[[int, int], np.ndarray]


def by_epochs(seed: int, index: int) -> np.ndarray:
    """As the product draws them."""
    return Source((np.arange(NUM_EXAMPLES),), None, BATCH).minibatch(index, seed)[0]


def by_themselves(seed: int, index: int) -> np.ndarray:
    """A permutation for each run: independent."""
    return np.random.default_rng([seed, 7, index]).permutation(NUM_EXAMPLES)[:BATCH]


def eigenvalues(hessians: np.ndarray, indices: np.ndarray) -> np.ndarray:
    return np.linalg.eigvalsh(hessians[indices].mean(axis=0))


@attrs.frozen
class Estimates:
    """Values and intervals over all seeds, and the truth: the pooled SD of the exact spectra of 4,800 minibatches."""

    values: np.ndarray
    intervals: np.ndarray
    errors: np.ndarray
    truth: float

    @property
    def misses(self) -> int:
        return int(np.sum((self.intervals[:, 0] > self.truth) | (self.intervals[:, 1] < self.truth)))

    @property
    def width(self) -> float:
        """Mean half-width over 1.96 standard deviations of the values."""
        half = 0.5 * np.diff(self.intervals, axis=1).mean()
        return float(half / (scipy.stats.norm.ppf(0.975) * self.values.std(ddof=1)))


def estimates(hessians: np.ndarray, indices: Indices, known: Callable[[int], Population]) -> Estimates:
    context = Context(SIZE, EXPONENTS, 2 / RATE, 0.0, float(np.finfo(np.float64).eps), "exact")
    values, intervals, errors = [], [], []
    for seed in SEEDS:

        def run(index: int, steps: int | None, seed: int = seed) -> Spectrum:
            nodes = eigenvalues(hessians, indices(seed, index))
            return Spectrum(nodes, np.ones(SIZE), num_matvecs=SIZE, seed=index, exact=True)

        outcome = estimate_sharpness_dimension(
            one_by_one(run), context, AdaptiveSettings(), num_steps=None, population=known(seed)
        )
        values.append(outcome.sharpness_dimension.value)
        intervals.append(outcome.sharpness_dimension.interval)
        errors.append(outcome.sharpness_dimension.sampled.stderr)
    z = EXPONENTS(np.concatenate([eigenvalues(hessians, by_epochs(TRUTH_SEED, index)) for index in range(4800)]))
    truth = sdkeras.sharpness_dimension(z, np.full(len(z), 1 / 4800))
    return Estimates(np.array(values), np.array(intervals), np.array(errors), truth)


@pytest.fixture(scope="module")
def loss(trained: tuple[np.ndarray, np.ndarray, np.ndarray]) -> sdkeras.EmpiricalLoss:
    """The same net in Keras, from which the controls are made."""
    x, targets, weights = trained
    model = keras.Sequential([keras.Input((NUM_FEATURES,)), keras.layers.Dense(NUM_CLASSES, use_bias=False)])
    model.layers[0].set_weights([weights])
    model.compile(keras.optimizers.SGD(RATE), keras.losses.CategoricalCrossentropy(from_logits=True))
    return sdkeras.EmpiricalLoss(model, (x, targets), BATCH, dtype="float64")


@pytest.fixture(scope="module")
def in_epochs(hessians: np.ndarray, loss: sdkeras.EmpiricalLoss) -> Estimates:
    return estimates(hessians, by_epochs, lambda seed: population(loss.with_seed(seed)))


@pytest.fixture(scope="module")
def independent(hessians: np.ndarray) -> Estimates:
    return estimates(hessians, by_themselves, lambda seed: UNKNOWN)


@pytest.mark.slow
def test_intervals_cover_with_the_products_own_sampler(in_epochs: Estimates) -> None:
    assert 0 < in_epochs.truth < SIZE
    assert in_epochs.misses <= MOST_MISSES


@pytest.mark.slow
def test_intervals_cover_independent_minibatches(independent: Estimates) -> None:
    assert independent.misses <= MOST_MISSES


@pytest.mark.slow
def test_intervals_of_independent_minibatches_are_as_wide_as_they_must_be(independent: Estimates) -> None:
    assert independent.width <= 1.15


@pytest.mark.slow
@pytest.mark.xfail(strict=True, reason="exact spectra over exactly one epoch: 1.86, without controls 1.98")
def test_intervals_are_not_much_wider_than_they_must_be(in_epochs: Estimates) -> None:
    """Minibatches of one epoch partition the data, which the interval does not know; controls take part of that away.

    Lanczos runs, whose probes are independent, are nearer: see examples/interval_coverage.py.
    """
    assert in_epochs.width <= 1.75


@pytest.mark.slow
def test_studentised_errors_are_centred_and_no_wider_than_students(in_epochs: Estimates) -> None:
    scores = (in_epochs.values - in_epochs.truth) / in_epochs.errors
    assert abs(scores.mean()) <= 0.25
    assert scores.std(ddof=1) <= 1.15
