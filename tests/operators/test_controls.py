"""Controls of minibatches: their mean is 0 whatever masks, weights and denominators do, and they are what they say."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import sdkeras
from sdkeras.dimension.controls import Population
from sdkeras.operators import controls
from sdkeras.runs.options import Options
from sdkeras.runs.problem import read_problem
from small_losses import CE, X, Y, compiled, mlp

RNG = np.random.default_rng(3)
TOKENS = RNG.integers(0, 9, (48, 5))
TOKENS[:, 3:] *= RNG.random((48, 1)) > 0.5  # 0 is masked
WEIGHTS = RNG.uniform(0.2, 3.0, 48).astype("float32")


def tagger(**options: object) -> keras.Model:
    layers = keras.layers
    return compiled(
        keras.Input((5,), dtype="int32"),
        layers.Embedding(9, 4, mask_zero=True),
        layers.Dense(3, activation="tanh"),
        layers.Dense(4),
        **options,
    )


def two_outputs() -> keras.Model:
    inputs = keras.Input((6,))
    hidden = keras.layers.Dense(4, activation="tanh")(inputs)
    model = keras.Model(inputs, [keras.layers.Dense(3, name="a")(hidden), keras.layers.Dense(2, name="b")(hidden)])
    model.compile("sgd", [CE, "mse"], loss_weights=[2.0, 0.5])
    return model


def images() -> keras.Model:
    layers = keras.layers
    return compiled(keras.Input((6, 1)), layers.Conv1D(3, 3), layers.BatchNormalization(), layers.Dropout(0.5),
                    layers.Flatten(), layers.Dense(3))  # fmt: skip


CASES = {
    "softmax": lambda: (mlp(), (X, Y)),
    "probabilities": lambda: (
        compiled(keras.Input((6,)), keras.layers.Dense(3, activation="softmax"), loss="categorical_crossentropy"),
        (X, np.eye(3)[Y]),
    ),
    "sigmoid": lambda: (
        compiled(keras.Input((6,)), keras.layers.Dense(2, activation="sigmoid"), loss="binary_crossentropy"),
        (X, (X[:, :2] > 0).astype("float32")),
    ),
    "regression": lambda: (
        compiled(keras.Input((6,)), keras.layers.Dense(2, activation="tanh"), loss=keras.losses.Huber(0.3)),
        (X, X[:, :2]),
    ),
    "batch normalization and dropout": lambda: (images(), (X[:, :, None], Y)),
    "sample weights": lambda: (mlp(), (X, Y, WEIGHTS[:22])),
    "mean with sample weights": lambda: (
        mlp(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="mean_with_sample_weight")),
        (X, Y, WEIGHTS[:22]),
    ),
    "sum": lambda: (
        mlp(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")),
        (X, Y),
    ),
    "mask": lambda: (tagger(), (TOKENS, TOKENS % 4)),
    "mask and weights": lambda: (tagger(), (TOKENS, TOKENS % 4, WEIGHTS[:, None] * np.ones(5))),
    "ignored class": lambda: (
        tagger(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)),
        (TOKENS, TOKENS % 4 - (TOKENS % 4 == 1) * 2),
    ),
    "two outputs": lambda: (two_outputs(), (X, [Y, X[:, :2]])),
}


def population(name: str, batch_size: int = 2, **options: object) -> tuple[Population, sdkeras.EmpiricalLoss]:
    model, data = CASES[name]()
    problem, _ = read_problem(model, data, Options(batch_size=batch_size, learning_rate=0.1, **options))
    return controls.population(problem.loss), problem.loss


@pytest.mark.parametrize("name", CASES)
def test_the_mean_over_an_epoch_of_the_data_is_zero(name: str) -> None:
    found, loss = population(name)
    assert found.controls is not None, found.reason
    epoch = found.controls(range(loss.source.minibatches_per_epoch))
    assert epoch.shape[1] >= 1
    eps = np.finfo(np.float32).eps
    assert np.abs(epoch.mean(axis=0)).max() < len(epoch) * eps * np.abs(epoch).max()
    assert 0.2 < epoch.var(axis=0).min() < epoch.var(axis=0).max() < 5.0


@pytest.mark.parametrize("name", CASES)
def test_the_numbers_and_denominators_are_those_of_keras_own_loss(name: str) -> None:
    """Sum of N over sum of D, with the losses' weights, is the loss of all the data in one batch in inference mode."""
    model, data = CASES[name]()
    problem, _ = read_problem(model, data, Options(batch_size=2, learning_rate=0.1))
    examples = controls._Examples.of(problem.loss)
    whole = sdkeras.EmpiricalLoss(model, data, mode="inference", dtype="float64").value()
    ratios = examples.ratios[:, 0]
    if name == "sum":
        ratios = ratios * examples.source.num_samples  # D is 1 for each example
    assert examples.weights @ ratios == pytest.approx(whole, rel=1e-4)


def test_softmax_controls_are_loss_distance_and_variance_of_the_prediction() -> None:
    model, (x, y) = CASES["softmax"]()
    problem, _ = read_problem(model, (x, y), Options(batch_size=2, learning_rate=0.1))
    centred = controls._Examples.of(problem.loss).centred
    p = tf.nn.softmax(model(x)).numpy().astype(np.float64)
    kinds = np.column_stack([-np.log(p[np.arange(22), y]), 1 - p[np.arange(22), y], np.sum(p * (1 - p), axis=1)])
    assert centred == pytest.approx(kinds - kinds.mean(axis=0), abs=1e-5)


def test_regression_controls_are_loss_slope_and_curvature_in_the_outputs() -> None:
    model, (x, y) = CASES["regression"]()
    problem, _ = read_problem(model, (x, y), Options(batch_size=2, learning_rate=0.1))
    centred = controls._Examples.of(problem.loss).centred
    error = model(x).numpy().astype(np.float64) - y
    inside = np.abs(error) <= 0.3
    loss = np.where(inside, error**2 / 2, 0.3 * np.abs(error) - 0.045).mean(axis=1)
    slope = np.linalg.norm(np.where(inside, error, 0.3 * np.sign(error)) / 2, axis=1)
    kinds = np.column_stack([loss, slope, inside.sum(axis=1) / 2])
    assert centred == pytest.approx(kinds - kinds.mean(axis=0), abs=1e-5)


def test_fixed_batches_are_the_population_and_centred_over_it() -> None:
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(2)
    problem, _ = read_problem(mlp(), data, Options(learning_rate=0.1))
    found = controls.population(problem.loss)
    assert (found.num_batches, found.per_epoch) == (11, 11)
    batches = [found.batch(index) for index in range(11)]
    assert sorted(batches) == list(range(11))
    assert batches != list(range(11))  # a random permutation, not the order in which they were read
    assert [found.batch(index) for index in range(11, 22)] != batches
    epoch = found.controls(range(11))
    assert epoch.mean(axis=0) == pytest.approx(np.zeros(epoch.shape[1]), abs=1e-10)
    again = dict(zip([found.batch(index) for index in range(11, 22)], found.controls(range(11, 22)), strict=True))
    for batch, row in zip(batches, epoch, strict=True):
        assert np.array_equal(again[batch], row)


def test_large_data_are_known_from_a_sample_whose_error_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).standard_normal((600, 6)).astype("float32")
    y = np.random.default_rng(1).integers(0, 3, 600)
    problem, _ = read_problem(mlp(), (x, y), Options(batch_size=10, learning_rate=0.1))
    exact = controls.population(problem.loss)
    monkeypatch.setattr(controls, "_MOST_EXAMPLES", 150)
    sampled = controls.population(problem.loss.now())  # another view, and another pass
    assert exact.error == 0.0
    assert sampled.error == pytest.approx(10 / 150 * (1 - 150 / 600))
    assert sampled.controls is not None
    means = sampled.controls(range(60)).mean(axis=0)  # of the whole data: 0 but for the sample's error
    assert 0 < np.abs(means).max() < 5 * np.sqrt(sampled.error)


def test_where_there_are_no_controls_it_is_said_why() -> None:
    def user_loss(model: keras.Model, batch: tuple[tf.Tensor, ...]) -> tf.Tensor:
        return tf.reduce_mean(tf.square(model(batch[0], training=True)))

    assert "all the data" in population("softmax", 22)[0].reason
    # A batch of 16 of the 22 is another one in each epoch.
    part, _ = population("softmax", 16)
    assert (part.per_epoch, part.num_batches, part.reason) == (None, None, "")
    problem, _ = read_problem(mlp(), (X, Y), Options(batch_size=2, learning_rate=0.1, loss_fn=user_loss))
    assert "the user's" in controls.population(problem.loss).reason
    endless = tf.data.Dataset.from_tensor_slices((X, Y)).batch(2).repeat()
    problem, _ = read_problem(mlp(), endless, Options(learning_rate=0.1, samples=22))
    assert "no end" in controls.population(problem.loss).reason
    assert controls.population(problem.loss).num_batches is None


def test_with_few_minibatches_in_an_epoch_each_is_from_a_permutation_of_its_own() -> None:
    _, loss = population("softmax", 8)
    source = loss.source
    assert source.minibatches_per_epoch == 2
    assert [controls.number(source, index) for index in range(3)] == [0, 2, 4]
    assert [controls.number(population("softmax", 2)[1].source, index) for index in range(3)] == [0, 1, 2]
