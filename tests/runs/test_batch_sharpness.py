"""Batch sharpness of linear regression, whose gradient and Hessian on a minibatch are known, by the real sampler."""

import copy
from collections.abc import Sequence
from types import SimpleNamespace

import attrs
import keras
import numpy as np
import pytest
import tensorflow as tf

import sdkeras
from sdkeras.dimension.controls import UNKNOWN, Population
from sdkeras.errors import BudgetError
from sdkeras.operators.minibatches import Source, as_source
from sdkeras.results.estimates import Eigenpairs
from sdkeras.runs.budget import Meter, resources, whole_budget
from sdkeras.runs.edge import batch_sharpness, edge, num_minibatches, target_error
from sdkeras.runs.options import Options
from sdkeras.runs.problem import read_problem

WEIGHTS = np.array([0.5, -1.0, 0.25])


def regression(num_samples: int, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Inputs of unequal scale and targets, so that ratios differ between minibatches."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal((num_samples, 3)) * np.array([2.0, 1.0, 0.5])
    return x, x @ np.array([1.0, 1.0, -1.0]) + noise * generator.standard_normal(num_samples)


def closed_form(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """g'Hg and |g|^2 of the mean squared error on stacks of minibatches, [..., b, 3] and [..., b] -> [...]."""
    gradient = 2 * np.mean(x * (x @ WEIGHTS - y)[..., None], axis=-2)
    steepened = 2 * np.mean(x * (x @ gradient[..., None]), axis=-2)
    return np.sum(gradient * steepened, axis=-1), np.sum(gradient**2, axis=-1)


class Regression:
    """What `batch_sharpness` asks of a HessianOperator, in NumPy; minibatches are drawn by the real `Source`."""

    weights = WEIGHTS

    def __init__(self, source: Source, seed: int = 0, is_random: bool = False) -> None:
        self.loss = SimpleNamespace(source=source, function=SimpleNamespace(is_random=is_random))
        self.seed, self.dtype, self.batches = seed, np.dtype("float64"), []

    def rows_together(self, products: int) -> int:
        return 1

    def on_minibatch(self, index: int) -> "Regression":
        view = copy.copy(self)
        view.x, view.y = self.loss.source.minibatch(index, self.seed)
        return view

    def gradient(self) -> np.ndarray:
        return 2 * self.x.T @ (self.x @ self.weights - self.y) / len(self.x)

    def matvec(self, vector: np.ndarray) -> np.ndarray:
        return 2 * self.x.T @ (self.x @ vector) / len(self.x)


@attrs.frozen
class Room:
    """A budget that ends at this number of products."""

    hessian: sdkeras.HessianOperator
    most: int

    def require(self, products: int = 0) -> None:
        if self.hessian.num_products + products > self.most:
            raise BudgetError("the budget")


def source_of(num_samples: int, batch_size: int, **settings: float) -> Source:
    data = regression(num_samples, **settings)
    return as_source(data, batch_size=batch_size, default_batch_size=None, limit=None)


def test_both_forms_against_the_closed_form() -> None:
    x, y = regression(200)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, use_bias=False)])
    model.layers[0].set_weights([WEIGHTS[:, None]])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    loss = sdkeras.EmpiricalLoss(model, (x, y[:, None]), batch_size=8, dtype="float64", seed=3)
    hessian = sdkeras.HessianOperator(loss)
    found = batch_sharpness(hessian, 60)
    # 25 minibatches an epoch: blocks of one epoch, so that of 60 at most two epochs are taken.
    assert found.batch_sharpness_minibatches == 50
    drawn = [loss.source.minibatch(index, 3) for index in range(50)]
    products, squares = closed_form(np.array([a for a, _ in drawn]), np.array([b[:, 0] for _, b in drawn]))
    ratios, quotient = products / squares, products.mean() / squares.mean()
    assert found.batch_sharpness == pytest.approx(ratios.mean(), rel=1e-9)
    assert found.batch_sharpness_stderr == pytest.approx(ratios.std(ddof=1) / np.sqrt(50), rel=1e-9)
    assert found.batch_sharpness_ratio_of_means == pytest.approx(quotient, rel=1e-9)
    error = np.std(products - quotient * squares, ddof=1) / np.sqrt(50) / squares.mean()
    assert found.batch_sharpness_ratio_of_means_stderr == pytest.approx(error, rel=1e-9)
    assert found.batch_sharpness_skipped == 0
    # Several are measured together, and where the budget has no room for them all, fewer.
    assert hessian.rows_together(50 * len(hessian.batches)) == 32
    some = batch_sharpness(hessian.within(Room(hessian, hessian.num_products + 30)), 60)
    assert some.batch_sharpness == pytest.approx(ratios[:30].mean(), rel=1e-9)


@pytest.mark.parametrize(
    ("batch_size", "target"), [(8, 0.05), *(pytest.param(size, 0.02, marks=pytest.mark.slow) for size in (16, 40))]
)
def test_two_per_cent_are_two_per_cent_over_seeds(batch_size: int, target: float) -> None:
    """60 seeds: a root mean square beyond 1.35 of the target has a chance of 1e-4 for normal errors."""
    source = source_of(400, batch_size)
    x, y = source.arrays
    subsets = np.argsort(np.random.default_rng(1).random((20_000, 400)), axis=1)[:, :batch_size]
    products, squares = closed_form(x[subsets], y[subsets])
    true = np.mean(products / squares)
    estimates = [batch_sharpness(Regression(source, seed), target=target) for seed in range(60)]
    errors = np.array([one.batch_sharpness for one in estimates]) / true - 1
    assert np.sqrt(np.mean(errors**2)) < 1.35 * target
    counts = [one.batch_sharpness_minibatches for one in estimates]
    assert {one.batch_sharpness_target for one in estimates} == {target}
    assert all(one.batch_sharpness_stderr <= target * one.batch_sharpness for one in estimates)
    needed = (np.std(products / squares) / true / target) ** 2
    assert 0.6 * needed < np.mean(counts) < 1.4 * needed + 50  # no more than the target asks for, to a block


def test_standard_errors_are_the_spread_over_seeds() -> None:
    """Less than a tenth of an epoch, so that minibatches are nearly independent; 300 seeds know a spread to 4 %."""
    source = source_of(4000, 8)
    estimates = [batch_sharpness(Regression(source, seed), 48, target=0.0) for seed in range(300)]
    for form in ("batch_sharpness", "batch_sharpness_ratio_of_means"):
        spread = np.std([getattr(one, form) for one in estimates], ddof=1)
        said = np.sqrt(np.mean([getattr(one, f"{form}_stderr") ** 2 for one in estimates]))
        assert spread == pytest.approx(said, rel=0.17)
    # Two quantities, not one.
    assert np.mean([one.batch_sharpness_ratio_of_means / one.batch_sharpness for one in estimates]) > 1.2


def test_whole_epochs_are_known_better_than_the_standard_error_says() -> None:
    source = source_of(200, 20)
    estimates = [batch_sharpness(Regression(source, seed), 30, target=0.0) for seed in range(100)]
    assert {one.batch_sharpness_minibatches for one in estimates} == {30}
    spread = np.std([one.batch_sharpness for one in estimates], ddof=1)
    assert spread < 0.9 * np.mean([one.batch_sharpness_stderr for one in estimates])


def test_a_limit_below_what_the_target_needs_binds() -> None:
    operator = Regression(source_of(400, 8))
    assert batch_sharpness(operator, 5).batch_sharpness_minibatches == 5
    assert batch_sharpness(operator, target=1e-6).batch_sharpness_minibatches == 1000
    assert batch_sharpness(Regression(source_of(80, 8)), target=1e-6).batch_sharpness_minibatches == 990


def test_one_minibatch_has_no_error_unless_it_is_all_there_is() -> None:
    one = batch_sharpness(Regression(source_of(400, 8)), 1)
    assert one.batch_sharpness is not None
    assert one.batch_sharpness_stderr is None
    assert one.batch_sharpness_ratio_of_means_stderr is None
    source = source_of(40, 40)
    whole = batch_sharpness(Regression(source), population=Population(1, 1, lambda _: 0))
    products, squares = closed_form(*source.arrays)
    assert whole.batch_sharpness == pytest.approx(products / squares, rel=1e-12)
    assert (whole.batch_sharpness_minibatches, whole.batch_sharpness_stderr) == (1, 0.0)
    noisy = batch_sharpness(Regression(source, is_random=True))  # dropout differs between passes over the same batch
    assert noisy.batch_sharpness_minibatches == 24


def test_fixed_batches_are_measured_once_each() -> None:
    dataset = tf.data.Dataset.from_tensor_slices(regression(120)).batch(8)
    source = as_source(dataset, batch_size=None, default_batch_size=None, limit=None)
    found = batch_sharpness(Regression(source), target=1e-6)
    assert found.batch_sharpness_minibatches == 15
    x, y = (part.reshape(15, 8, *part.shape[1:]) for part in source.arrays)
    products, squares = closed_form(x, y)
    assert found.batch_sharpness == pytest.approx(np.mean(products / squares), rel=1e-12)


def test_minibatches_without_a_gradient_are_skipped_and_counted() -> None:
    x, y = regression(120)
    x[:40] = 0.0
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    source = as_source(dataset, batch_size=None, default_batch_size=None, limit=None)
    found = batch_sharpness(Regression(source))
    assert found.batch_sharpness_skipped == pytest.approx(5 / 15)
    products, squares = closed_form(x[40:].reshape(10, 8, 3), y[40:].reshape(10, 8))
    assert found.batch_sharpness == pytest.approx(np.mean(products / squares), rel=1e-12)
    assert found.batch_sharpness_ratio_of_means == pytest.approx(products.sum() / squares.sum(), rel=1e-12)
    nothing = batch_sharpness(Regression(attrs.evolve(source, arrays=(0 * x, y))))
    assert (nothing.batch_sharpness, nothing.batch_sharpness_skipped) == (None, 1.0)


def test_gradients_of_any_size_count_by_their_ratio() -> None:
    source = source_of(400, 8)
    x, y = source.arrays
    usual = batch_sharpness(Regression(source), 50)
    for scale in (1e-120, 1e100):  # squares of |g| would be 0, or infinite
        scaled = Regression(attrs.evolve(source, arrays=(x, scale * y)))
        scaled.weights = scale * WEIGHTS
        found = batch_sharpness(scaled, 50)
        assert found.batch_sharpness_ratio_of_means == pytest.approx(usual.batch_sharpness_ratio_of_means, rel=1e-6)


def test_limits_and_targets() -> None:
    assert (num_minibatches(None), num_minibatches(10), num_minibatches(2000), num_minibatches(10**6)) == (
        1000,
        3,
        100,
        1000,
    )
    assert (target_error(0.01), target_error(0.05), target_error(0.5)) == (0.02, 0.02, pytest.approx(0.2))


def test_controls_halve_the_error_and_a_whole_fixed_population_has_none() -> None:
    source = source_of(400, 8)
    x, y = source.arrays
    examples = (x @ WEIGHTS - y) ** 2 * np.sum(x**2, axis=1)  # |g|^2 of each example, up to 4
    centred = (examples - examples.mean()) / examples.std() * np.sqrt(8)

    def of_runs(indices: Sequence[int]) -> np.ndarray:
        return np.array([[centred[source.examples(index, 0)].mean()] for index in indices])

    known = Population(per_epoch=50, controls=of_runs)
    plain, helped = (
        batch_sharpness(Regression(source), 200, target=1e-9, population=each) for each in (UNKNOWN, known)
    )
    assert plain.batch_sharpness_minibatches == helped.batch_sharpness_minibatches == 200
    # Four whole epochs: the controls' mean is 0, and the values are the plain means.
    assert helped.batch_sharpness == pytest.approx(plain.batch_sharpness, rel=1e-12)
    assert helped.batch_sharpness_stderr < plain.batch_sharpness_stderr
    assert helped.batch_sharpness_ratio_of_means_stderr < plain.batch_sharpness_ratio_of_means_stderr
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    fixed = as_source(dataset, batch_size=None, default_batch_size=None, limit=None)
    whole = Population(50, 50, lambda index: fixed.fixed_batch(index, 0))
    part, all_of_them = (batch_sharpness(Regression(fixed), most, target=1e-9, population=whole) for most in (24, 50))
    ratios = np.divide(*closed_form(x.reshape(50, 8, 3), y.reshape(50, 8)))
    assert all_of_them.batch_sharpness == pytest.approx(ratios.mean(), rel=1e-12)
    assert all_of_them.batch_sharpness_stderr == 0.0
    assert part.batch_sharpness_stderr > 0.0


@pytest.mark.parametrize("converged", [True, False])
def test_the_verdict_of_momentum_on_a_plateau(converged: bool) -> None:
    """The rate at which the batch sharpness of this regression is 2(1 - beta)/eta; an open sharpness leaves it open."""
    x, y = regression(200)
    curvatures, squares = closed_form(*(each.reshape(25, 8, *each.shape[1:]) for each in (x, y)))
    rate = 2 * (1 - 0.9) / np.mean(curvatures / squares)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, use_bias=False)])
    model.layers[0].set_weights([WEIGHTS[:, None]])
    model.compile(keras.optimizers.SGD(rate, momentum=0.9), "mse")
    largest = np.linalg.eigvalsh(2 * x.T @ x / 200)[-1:]
    pairs = Eigenpairs(largest, np.array([0.0]), np.array([converged]), num_matvecs=1, seed=0)
    for size, plateaus in ((8, 2), (200, 0)):
        problem, _ = read_problem(model, (x, y[:, None]), Options(batch_size=size, dtype="float64"))
        hessian = sdkeras.HessianOperator(problem.loss)
        room = resources(3, 8, memory_gb=None, workers=1)
        budget = whole_budget(room, Meter(most=None if converged else 10_000))
        found, _ = edge(problem, hessian, budget, pairs)
        assert len(found.plateaus) == plateaus
        assert found.threshold == pytest.approx(2 * 1.9 / rate, rel=1e-6)
        decided = size == 8 and converged
        assert found.verdict.startswith("At the edge of stochastic stability: batch sharpness ") == decided
        assert ("No verdict within the limit" in found.verdict) == (not converged)
