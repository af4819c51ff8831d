"""Class weights: the same sample weights as Keras' fit makes, and the curvature of the loss that fit minimised."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import sdkeras
from sdkeras.errors import DataError, SdkerasError
from sdkeras.files import class_weights
from sdkeras.operators.minibatches import as_source
from sdkeras.reporting.terminal import as_text

WEIGHTS = {0: 1.0, 1: 9.0}
GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=(48, 4)).astype("float32")
Y = GENERATOR.integers(0, 3, 48)


class Batches(keras.utils.PyDataset):
    """Batches of 8."""

    def __init__(self, x: np.ndarray, y: np.ndarray) -> None:
        super().__init__()
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x) // 8

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.x[8 * index : 8 * index + 8], self.y[8 * index : 8 * index + 8]


class Received(keras.Model):
    """Keeps the sample weights that its training steps are handed."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = keras.layers.Dense(3)
        self.seen: list[np.ndarray] = []

    def call(self, x):
        return self.dense(x)

    def train_step(self, data):
        self.seen.append(np.asarray(data[2]))
        return {"loss": 0.0}


def given_by_fit(data: object, class_weight: dict[int, float]) -> np.ndarray:
    """The weights of all samples in their order, from a real `fit`."""
    model = Received()
    model.compile("sgd", "mse", run_eagerly=True)
    arrays = isinstance(data, tuple)
    x, y = data if arrays else (data, None)
    model.fit(x, y, batch_size=8 if arrays else None, shuffle=False, verbose=0, class_weight=class_weight)
    return np.concatenate(model.seen)


@pytest.mark.parametrize("kind", ["arrays", "dataset", "PyDataset"])
@pytest.mark.parametrize("form", ["integers", "column", "floats", "one-hot"])
def test_the_sample_weights_are_those_of_fit(kind: str, form: str) -> None:
    forms = {
        "integers": Y,
        "column": Y[:, None],
        "floats": Y.astype("float32") + 0.3,
        "one-hot": np.eye(3, dtype="float32")[Y],
    }
    y = forms[form]
    data = {
        "arrays": (X, y),
        "dataset": tf.data.Dataset.from_tensor_slices((X, y)).batch(8),
        "PyDataset": Batches(X, y),
    }[kind]
    weights = {0: 0.5, 2: 3.0}
    source = as_source(
        data, batch_size=8 if kind == "arrays" else None, default_batch_size=None, limit=None, class_weight=weights
    )
    expected = given_by_fit(data, weights)
    assert source.arrays[-1].dtype == np.float32
    assert np.array_equal(source.arrays[-1], expected.astype("float32"))
    assert np.array_equal(source.arrays[-1], np.array([0.5, 1.0, 3.0], "float32")[Y])
    assert source.class_weight == weights
    plain = as_source(data, batch_size=None, default_batch_size=8, limit=None)
    assert source.digest() != plain.digest()


def test_every_step_of_a_sequence_is_weighted_in_a_dataset_and_refused_in_arrays() -> None:
    x, y = np.zeros((8, 5, 2), "float32"), GENERATOR.integers(0, 3, (8, 5))
    onehot = np.eye(3, dtype="float32")[y]
    dataset = tf.data.Dataset.from_tensor_slices((x, onehot)).batch(4)
    options = {"batch_size": None, "default_batch_size": None, "limit": None, "class_weight": WEIGHTS}
    assert np.array_equal(as_source(dataset, **options).arrays[-1], np.where(y == 1, 9.0, 1.0))
    with pytest.raises(DataError, match=r"the targets have the shape \(8, 5, 3\)"):
        as_source((x, onehot), **options)


def test_the_curvature_is_that_of_the_weighted_loss() -> None:
    """The largest eigenvalue against second differences of a NumPy loss in float64."""
    keras.utils.set_random_seed(0)
    y = GENERATOR.integers(0, 2, 48)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "tanh"), keras.layers.Dense(2)])
    model.compile(keras.optimizers.SGD(0.2), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(X, y, batch_size=48, epochs=2, verbose=0, class_weight=WEIGHTS)
    shapes = [tuple(variable.shape) for variable in model.trainable_variables]
    point = np.concatenate([np.ravel(variable) for variable in model.trainable_variables]).astype(float)

    def loss(q: np.ndarray, weights: np.ndarray) -> float:
        ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
        a, b, c, d = (part.reshape(shape) for part, shape in zip(np.split(q, ends[:-1]), shapes, strict=True))
        z = np.tanh(X @ a + b) @ c + d
        return float(np.mean(weights * (np.log(np.exp(z).sum(1)) - z[np.arange(48), y])))

    def largest(weights: np.ndarray, step: float = 1e-3) -> float:
        size, steps = len(point), step * np.eye(len(point))
        hessian = np.empty((size, size))
        for i in range(size):
            for j in range(i, size):
                corners = [(1, 1), (1, -1), (-1, 1), (-1, -1)]
                values = [u * v * loss(point + u * steps[i] + v * steps[j], weights) for u, v in corners]
                hessian[i, j] = hessian[j, i] = sum(values) / (4 * step**2)
        return float(np.linalg.eigvalsh(hessian)[-1])

    run = sdkeras.analyze(model, (X, y), batch_size=48, class_weight=WEIGHTS, dtype="float64", runs=3)
    # Second differences err by step^2 times fourth derivatives, and by 4 eps |loss|/step^2 = 1e-9.
    assert run.hessian.largest.value == pytest.approx(largest(np.where(y == 1, 9.0, 1.0)), rel=1e-4)
    assert abs(run.hessian.largest.value / largest(np.ones(48)) - 1) > 0.3
    assert run.data.class_weight == {"0": 1.0, "1": 9.0}
    assert "class weights 0: 1, 1: 9" in as_text(run, verbose=True)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((X, Y, np.ones(48)), "class_weight and sample weights in the data cannot be combined"),
        ((X, {"a": Y, "b": Y}), "class_weight needs data with one array of targets"),
    ],
)
def test_what_fit_refuses_is_refused(data: tuple[object, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        as_source(data, batch_size=None, default_batch_size=None, limit=None, class_weight=WEIGHTS)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({}, "must map classes to weights"),
        ([1.0, 9.0], "must map classes to weights"),
        ({"1": 9.0}, "has the class '1'"),
        ({-1: 9.0}, "has the class -1"),
        ({1: float("nan")}, "gives class 1 the weight nan"),
        ({1: -2.0}, "gives class 1 the weight -2.0"),
        ({1: "9"}, "gives class 1 the weight '9'"),
    ],
)
def test_wrong_class_weights_are_refused(weights: object, message: str) -> None:
    with pytest.raises(SdkerasError, match=message):
        class_weights.checked(weights)


def test_the_text_of_the_command_line() -> None:
    assert class_weights.parsed("1=9.0, 0=1") == {0: 1.0, 1: 9.0}
    for text, message in {
        "1": "'1' is not CLASS=WEIGHT",
        "a=1": "'a=1' is not CLASS=WEIGHT",
        "0=1,0=2": "class 0 is named twice",
        "0=-1": "gives class 0 the weight -1.0",
        "": "is not CLASS=WEIGHT",
    }.items():
        with pytest.raises(SdkerasError, match=message):
            class_weights.parsed(text)


def test_numpy_numbers_are_taken() -> None:
    """As of sklearn.utils.class_weight.compute_class_weight."""
    assert class_weights.checked(dict(zip(np.array([1, 0]), np.array([9.0, 1.0]), strict=True))) == {0: 1.0, 1: 9.0}
    json.dumps(class_weights.checked({np.int64(1): np.float32(2)}))


def test_a_weight_of_a_class_without_samples_is_told() -> None:
    targets = np.array([0, 1, 1])
    for y, weights, told in ((targets, {0: 1.0, 2: 3.0, 7: 1.0}, "2, 7"), (np.eye(3)[targets], {2: 3.0}, "2")):
        source = as_source((np.zeros((3, 2)), y), batch_size=3, class_weight=weights)
        assert source.note == f"class_weight has weights of classes that no sample of the data has: {told}"
    assert not as_source((np.zeros((3, 2)), targets), batch_size=3, class_weight={0: 2.0}).note
