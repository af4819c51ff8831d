"""Data that do not fit the model are refused before anything expensive, and the model is left alone."""

import keras
import numpy as np
import pytest

from file_checks import X, Y, refused, tiny
from sdkeras.files.data_fit import check_data


def test_data_that_fit():
    model = tiny()
    check_data(model, X, Y)
    check_data(model, X.astype(np.float64), Y[:, None], np.ones(8))
    check_data(model, X, Y.astype(float))
    check_data(tiny(loss=None), X, np.zeros((5, 5)))
    check_data(tiny(loss=lambda y, p: keras.ops.sum(p)), X, Y[:, None, None] + 100)


class Counting(keras.layers.Layer):
    """Counts its calls and penalises its input."""

    def build(self, shape):
        self.calls = self.add_weight(initializer="zeros", trainable=False, name="calls")

    def call(self, inputs):
        self.calls.assign_add(1.0)
        self.add_loss(keras.ops.sum(inputs))
        return inputs


def test_check_leaves_the_model_as_it_was():
    inner = [keras.layers.BatchNormalization(), Counting(), keras.layers.Dropout(0.5)]
    model = keras.Sequential([keras.Input((3,)), *inner, keras.layers.Dense(4)])
    model.compile(loss="sparse_categorical_crossentropy")
    before = [np.asarray(v).copy() for v in model.variables]
    check_data(model, X, Y)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.variables, strict=True))
    assert not model.losses


def test_input_of_the_wrong_shape():
    model = keras.Sequential([keras.Input((8, 8)), keras.layers.Flatten(), keras.layers.Dense(4)])
    for width, says in ((64, "x.reshape((10, 8, 8))"), (63, "trained on")):
        shapes = ("(None, 8, 8)", f"x of shape (10, {width})")
        refused(check_data, model, np.zeros((10, width)), np.zeros(10), says=(*shapes, says))
    for fits in (np.zeros((10, 8, 8)), np.zeros((10, 8, 8, 1))):
        check_data(model, fits, np.zeros(10))


def test_axes_that_keras_adds_and_unknown_axes():
    column = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    column.compile(loss="mse")
    check_data(column, np.zeros(6), np.zeros(6))
    check_data(column, np.zeros((6, 1)), np.zeros((6, 1)))
    sequence = keras.Sequential([keras.Input((None, 2)), keras.layers.GlobalAveragePooling1D(), keras.layers.Dense(1)])
    check_data(sequence, np.zeros((6, 5, 2)), np.zeros(6))
    refused(check_data, sequence, np.zeros((6, 5, 3)), np.zeros(6), says=("(None, None, 2)", "(6, 5, 3)"))
    fixed = keras.Sequential([keras.Input(batch_shape=(4, 3)), keras.layers.Dense(1)])
    check_data(fixed, X, Y)
    stateful = keras.Sequential([keras.Input(batch_shape=(4, 3, 1)), keras.layers.LSTM(2, stateful=True)])
    check_data(stateful, X, Y)


def two_inputs(as_dict):
    a, b = keras.Input((3,), name="a"), keras.Input((2,), name="b")
    outputs = keras.layers.Dense(4)(keras.layers.Concatenate()([a, b]))
    model = keras.Model({"a": a, "b": b} if as_dict else [a, b], outputs)
    model.compile(loss="sparse_categorical_crossentropy")
    return model


@pytest.mark.parametrize("as_dict", [False, True])
def test_two_inputs(as_dict):
    model = two_inputs(as_dict)
    other = np.ones((8, 2))
    check_data(model, {"b": other, "a": X}, Y)
    check_data(model, (X, other), Y)
    refused(check_data, model, X, Y, says=("2 inputs", "a (None, 3)", "b (None, 2)", "data have 1"))
    refused(check_data, model, {"a": X, "c": other}, Y, says=("named a, b", "have a, c"))
    refused(check_data, model, {"a": X, "b": X}, Y, says=("input 'b'", "(None, 2)", "(8, 3)"))
    refused(check_data, model, (other, X), Y, says=("input 'a'",))
    if as_dict:
        refused(check_data, model, {"a": X, "aa": X, "b": other}, Y, says=("named a, b", "have a, aa, b"))


def test_dict_keys_need_not_be_the_names_of_the_inputs():
    a, b = keras.Input((3,), name="a"), keras.Input((2,), name="b")
    model = keras.Model({"left": a, "right": b}, keras.layers.Concatenate()([a, b]))
    check_data(model, {"left": X, "right": np.ones((8, 2))}, Y)
    refused(check_data, model, {"a": X, "b": np.ones((8, 2))}, Y, says=("named left, right", "have a, b"))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(4)

    def call(self, inputs):
        return self.dense(inputs)


class WithoutCall(keras.Model):
    pass


def test_subclassed_models():
    model = Subclassed()
    model.compile(loss="sparse_categorical_crossentropy")
    check_data(model, np.zeros((5, 9)), np.zeros(5))  # not built: nothing is known
    assert not model.built
    model(X)
    check_data(model, X, Y)
    refused(check_data, model, np.zeros((8, 7)), Y, says=("cannot be called on the data", "(8, 7)"))
    refused(check_data, model, X, Y + 1, says=("label 4", "sample 3", "4 classes", "0 to 3"))
    uncalled = WithoutCall()
    uncalled.built = True
    check_data(uncalled, X, Y)


SPARSE = keras.losses.SparseCategoricalCrossentropy


@pytest.mark.parametrize(
    "loss",
    [
        "sparse_categorical_crossentropy",
        keras.losses.sparse_categorical_crossentropy,
        SPARSE(from_logits=True),
        {"output": SPARSE()},
        [SPARSE()],
    ],
)
def test_labels_out_of_range(loss):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, name="output")])
    model.compile(loss=loss)
    for wrong, label, sample in ((Y + 1, 4, 3), (Y - 1, -1, 0), (Y + 0.5, 0.5, 0)):
        refused(check_data, model, X, wrong, says=(f"label {label} (sample {sample})", "4 classes", "0 to 3"))
    check_data(model, X, Y)


def test_ignored_class_may_be_out_of_range():
    check_data(tiny(loss=SPARSE(ignore_class=-1)), X, np.where(Y == 2, -1, Y))
    refused(check_data, tiny(loss=SPARSE(ignore_class=-1)), X, np.where(Y == 2, -2, Y), says=("label -2 (sample 2)",))


@pytest.mark.parametrize(
    ("loss", "targets", "says"),
    [
        ("sparse_categorical_crossentropy", np.eye(4)[Y], ("(8, 4)", "categorical_crossentropy", "argmax")),
        ("categorical_crossentropy", Y, ("(8,)", "sparse_categorical_crossentropy")),
        (keras.losses.MeanSquaredError(), np.zeros((8, 5)), ("(8, 5)", "agree")),
    ],
    ids=["one-hot", "labels", "wide"],
)
def test_targets_of_the_wrong_shape(loss, targets, says):
    refused(check_data, tiny(loss=loss), X, targets, says=("(None, 4)", *says))
    check_data(tiny(loss="mse"), X, np.eye(4)[Y])


def test_negative_sample_weights():
    refused(check_data, tiny(), X, Y, np.linspace(-0.5, 1, 8), says=("sample_weight", "negative", "-0.5"))


@pytest.mark.parametrize("as_dict", [False, True])
def test_two_outputs(as_dict):
    inputs = keras.Input((3,))
    first, second = keras.layers.Dense(4, name="p")(inputs), keras.layers.Dense(1, name="q")(inputs)
    model = keras.Model(inputs, {"p": first, "q": second} if as_dict else [first, second])
    sparse = "sparse_categorical_crossentropy"
    model.compile(loss={"p": sparse, "q": "mse"} if as_dict else [sparse, "mse"])
    good = {"p": Y, "q": np.zeros(8)} if as_dict else (Y, np.zeros(8))
    check_data(model, X, good)
    bad = {"p": Y + 1, "q": np.zeros(8)} if as_dict else (Y + 1, np.zeros(8))
    refused(check_data, model, X, bad, says=("y of output 'p'", "label 4"))
    refused(check_data, model, X, Y, says=("2 outputs (p, q)", "shape (8,)", "one array of targets per output"))
