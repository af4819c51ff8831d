"""The loss over the data is Keras' own of all the data in one batch, whatever the batches, for every loss of Keras."""

import inspect
import threading
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import sdkeras
from sdkeras.errors import ModelError
from sdkeras.operators.precision import default_precision

layers, losses = keras.layers, keras.losses
N, STEPS, CLASSES = 11, 4, 3
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(1, 7, (N, STEPS)) * (np.arange(STEPS) < RNG.integers(1, STEPS + 1, (N, 1)))  # 0: masked
UNIT = RNG.uniform(0.1, 0.9, (N, STEPS, CLASSES))
BITS = RNG.integers(0, 2, (N, STEPS, CLASSES)).astype(float)
ONE_HOT = np.eye(CLASSES)[RNG.integers(0, CLASSES, (N, STEPS))]
LABELS = RNG.integers(0, CLASSES, (N, STEPS))
# ignore_class: the last three examples, a batch of their own below, have no valid target at all.
IGNORED = np.where((RNG.random((N, STEPS)) < 0.5) | (np.arange(N)[:, None] >= 8), -1, LABELS)
WEIGHTS = {
    "no weights": None,
    "weights of examples": RNG.uniform(0.1, 3, (N, 1)),
    "weights of steps": RNG.uniform(0.1, 3, (N, STEPS)) * (RNG.random((N, STEPS)) < 0.7),
}
REDUCTIONS = ("sum_over_batch_size", "mean_with_sample_weight", "sum")
# Targets and options of every loss of Keras; CTC and Circle have shapes of their own.
LOSSES: dict[str, tuple[Any, dict[str, Any]]] = {
    "BinaryCrossentropy": (BITS, {}),
    "BinaryFocalCrossentropy": (BITS, {"apply_class_balancing": True}),
    "CategoricalCrossentropy": (ONE_HOT, {"label_smoothing": 0.1}),
    "CategoricalFocalCrossentropy": (ONE_HOT, {}),
    "CategoricalGeneralizedCrossEntropy": (LABELS, {}),
    "CategoricalHinge": (ONE_HOT, {}),
    "CosineSimilarity": (UNIT, {}),
    "Dice": (BITS, {"axis": (2,)}),
    "Hinge": (2 * BITS - 1, {}),
    "Huber": (UNIT, {"delta": 0.1}),
    "KLDivergence": (UNIT, {}),
    "LogCosh": (UNIT, {}),
    "MeanAbsoluteError": (UNIT, {}),
    "MeanAbsolutePercentageError": (UNIT, {}),
    "MeanSquaredError": (UNIT, {}),
    "MeanSquaredLogarithmicError": (UNIT, {}),
    "Poisson": (UNIT, {}),
    "SparseCategoricalCrossentropy": (LABELS, {}),
    "SparseCategoricalCrossentropy, ignore_class": (IGNORED, {"ignore_class": -1}),
    "SquaredHinge": (2 * BITS - 1, {}),
    "Tversky": (BITS, {"axis": (2,), "alpha": 0.3, "beta": 0.7}),
}


def of_sequences(name: str, data: Any, *, masked: bool, reduction: str) -> tuple[keras.Model, Any]:
    """Tokens -> probabilities of each step, in float64 so that only a wrong weight makes a difference."""
    keras.utils.set_random_seed(1)
    targets, options = LOSSES[name]
    inputs = keras.Input((STEPS,), dtype="int32")
    hidden = layers.Embedding(7, 3, mask_zero=masked, dtype="float64")(inputs)
    model = keras.Model(inputs, layers.Dense(CLASSES, "softmax", dtype="float64")(hidden))
    model.compile("sgd", getattr(losses, name.split(",")[0])(reduction=reduction, dtype="float64", **options))
    return model, (TOKENS, targets, *([] if WEIGHTS[data] is None else [WEIGHTS[data]]))


def check(model: keras.Model, data: Any, *, products: bool = True, rounding: float = 1e-12) -> None:
    """Batches of 4, 4 and 3 against all the data in one batch, and that against Keras."""
    loss = sdkeras.EmpiricalLoss(model, data, batch_size=4, dtype="float64")
    assert len(loss.batches) == 3
    assert not loss.notes
    whole = loss.batch(loss.source.take(slice(None)), 0)
    engine = loss.gradients
    value = float(engine.evaluate(engine.point, whole)[0])
    weights = data[2] if len(data) == 3 else None
    truth = model.evaluate(data[0], data[1], sample_weight=weights, batch_size=N, verbose=0, return_dict=True)["loss"]
    assert np.isclose(value, truth, rtol=1e-6)  # Keras' mean over batches is float32
    assert np.isclose(loss.value(), value, rtol=rounding)
    slope = engine.gradient(engine.point, whole).numpy()
    assert np.allclose(loss.gradient(), slope, rtol=0, atol=rounding * np.linalg.norm(slope))
    if products:
        operator = sdkeras.HessianOperator(loss)
        vector = np.random.default_rng(3).standard_normal(loss.size)
        image = operator.on_batch(whole).matvec(vector)
        assert np.linalg.norm(image) > 0
        assert np.allclose(operator.matvec(vector), image, rtol=0, atol=1e-12 * np.linalg.norm(image))


def test_every_loss_of_keras_is_here() -> None:
    public = {name for name, value in vars(losses).items() if inspect.isclass(value)} - {"Loss"}
    assert public == {name.split(",")[0] for name in LOSSES} | {"Circle", "CTC"}


FORMS = [(masked, weights, reduction) for masked in (False, True) for weights in WEIGHTS for reduction in REDUCTIONS]


# Quickly, some losses in one of the 18 forms, another one for each: of bits, of vectors, of classes, of classes with
# some ignored, and one that divides by sums over the targets.
QUICK = {
    "BinaryCrossentropy",
    "CosineSimilarity",
    "MeanSquaredError",
    "SparseCategoricalCrossentropy",
    "SparseCategoricalCrossentropy, ignore_class",
    "Tversky",
}


def is_tried(k: int, form: int) -> bool:
    """Whether loss k is tried in a form: those above in all, the others in a third, each reduction with all else."""
    masked, weights, reduction = np.unravel_index(form, (2, len(WEIGHTS), len(REDUCTIONS)))
    return list(LOSSES)[k] in QUICK or (masked + weights + reduction + k) % len(REDUCTIONS) == 0


@pytest.mark.parametrize(
    ("name", "form"),
    [
        pytest.param(name, form, marks=() if name in QUICK and form == 5 * k % len(FORMS) else pytest.mark.slow)
        for k, name in enumerate(LOSSES)
        for form in range(len(FORMS))
        if is_tried(k, form)
    ],
)
def test_batches_do_not_matter(name: str, form: int) -> None:
    masked, weights, reduction = FORMS[form]
    check(*of_sequences(name, weights, masked=masked, reduction=reduction))


@pytest.mark.slow
def test_batches_do_not_matter_to_ctc() -> None:
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((STEPS, 3)), layers.Dense(4, dtype="float64")])
    model.compile("sgd", losses.CTC(dtype="float64"))
    check(model, (UNIT, RNG.integers(1, 4, (N, 2))), products=False, rounding=1e-6)  # TensorFlow computes it in float32


def two_outputs(loss: Any, weights: Any = None) -> keras.Model:
    """One output with a mask, one without."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((STEPS,), dtype="int32")
    hidden = layers.Embedding(7, 3, mask_zero=True, dtype="float64")(inputs)
    steps = layers.Dense(CLASSES, dtype="float64", name="steps")(hidden)
    total = layers.Dense(CLASSES, dtype="float64", name="total")(layers.Flatten(dtype="float64")(hidden))
    model = keras.Model(inputs, {"steps": steps, "total": total})
    model.compile("sgd", loss, loss_weights=weights)
    return model


def cross_entropy(**options: Any) -> Any:
    return losses.SparseCategoricalCrossentropy(from_logits=True, dtype="float64", **options)


def double(model: keras.Model) -> keras.Model:
    """The compiled loss in float64, which Keras makes on its first call."""
    with default_precision("float64"):
        model.compile("sgd", model.loss, loss_weights=model._compile_loss._user_loss_weights)
    return model


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", pytest.param("sum", marks=pytest.mark.slow)])
def test_outputs_that_divide_by_different_counts_are_weighted_one_by_one(reduction: str) -> None:
    """The second output's targets are ignored for 60 %; the third batch has none."""
    loss = {"steps": cross_entropy(), "total": cross_entropy(ignore_class=-1, reduction=reduction)}
    model = double(two_outputs(loss, {"steps": 2.0, "total": 0.5}))
    check(model, (TOKENS, {"steps": LABELS, "total": IGNORED[:, 0]}))


def test_weights_of_two_outputs() -> None:
    model = double(two_outputs({"steps": cross_entropy(), "total": cross_entropy(reduction="mean_with_sample_weight")}))
    weights = {"steps": WEIGHTS["weights of steps"], "total": WEIGHTS["weights of examples"][:, 0]}
    loss = sdkeras.EmpiricalLoss(model, (TOKENS, {"steps": LABELS, "total": LABELS[:, 0]}, weights), 4, dtype="float64")
    whole = loss.batch(loss.source.take(slice(None)), 0)
    assert np.isclose(loss.value(), float(loss.gradients.evaluate(loss.gradients.point, whole)[0]), rtol=1e-12)


class Penalized(keras.Model):
    """A mean over valid targets, and beside it a mean over examples that is no loss of Keras."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return super().compute_loss(x, y, y_pred, sample_weight) + tf.reduce_mean(y_pred**2)


def test_a_compute_loss_of_the_users_own() -> None:
    keras.utils.set_random_seed(1)
    inputs = keras.Input((3,))
    model = Penalized(inputs, layers.Dense(CLASSES)(inputs))
    model.compile("sgd", losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1))
    data = UNIT[:, 0].astype("float32"), IGNORED[:, 0]
    parts, whole = (sdkeras.EmpiricalLoss(model, data, size) for size in (4, None))
    assert np.isclose(parts.value(), whole.value(), rtol=1e-6)


@keras.saving.register_keras_serializable("sdkeras.tests")
class Both(losses.Loss):
    """A loss made of two others, which are no losses of the model."""

    def call(self, y_true: Any, y_pred: Any) -> Any:
        inside = losses.MeanAbsoluteError(reduction=None)(y_true, y_pred) + losses.MeanSquaredError()(y_true, y_true)
        return inside + tf.reduce_mean((y_true - y_pred) ** 2, axis=-1)


def dense(loss: Any) -> keras.Model:
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((3,)), layers.Dense(4, "sigmoid")])
    model.compile("sgd", loss)
    return model


FLAT = UNIT[:, 0].astype("float32"), BITS[:, :, 0].astype("float32")


def mean_of_the_users(y_true: Any, y_pred: Any) -> Any:
    return tf.reduce_mean((y_true - y_pred) ** 2)


def root_of_the_users(y_true: Any, y_pred: Any) -> Any:
    return tf.sqrt(mean_of_the_users(y_true, y_pred))


@pytest.mark.parametrize(
    ("loss", "couples"),
    [
        (losses.Dice(), True),
        (losses.Tversky(), True),
        (losses.CosineSimilarity(axis=0), True),
        (root_of_the_users, True),
        (mean_of_the_users, False),
        (Both(), False),
        ("mse", False),
    ],
    ids=["dice", "tversky", "cosine over examples", "root", "mean", "nested", "mse"],
)
def test_a_loss_that_couples_examples_is_told(loss: Any, couples: bool) -> None:
    model = dense(loss)
    parts, whole = (sdkeras.EmpiricalLoss(model, FLAT, size) for size in (4, None))
    assert bool(parts.notes) == couples == (not np.isclose(parts.value(), whole.value(), rtol=1e-5))
    assert not whole.notes
    if couples:
        assert "depend on the batch size" in parts.notes[0]


def test_a_loss_function_is_a_mean_over_examples() -> None:
    def cubic(model: Any, batch: Any) -> Any:
        return tf.reduce_mean(tf.abs(model(batch[0]) - batch[1]) ** 3)

    parts, whole = (sdkeras.EmpiricalLoss(dense("mse"), FLAT, size, loss_fn=cubic) for size in (4, None))
    assert np.isclose(parts.value(), whole.value(), rtol=1e-6)
    assert np.allclose(parts.gradient(), whole.gradient(), atol=1e-6)
    assert not parts.notes


def test_circle_couples_examples() -> None:
    model = dense(losses.Circle())
    assert "circle" in sdkeras.EmpiricalLoss(model, (FLAT[0][:8], np.arange(8) % 2), 4).notes[0]


def test_all_targets_ignored() -> None:
    model = dense(losses.SparseCategoricalCrossentropy(ignore_class=-1))
    loss = sdkeras.EmpiricalLoss(model, (FLAT[0], np.full(N, -1)), 4)
    assert loss.value() == 0
    assert not loss.gradient().any()


def test_the_operator_is_verified_where_targets_count() -> None:
    """A dataset keeps its order: here its first batch says nothing of the Hessian."""
    model = dense(losses.SparseCategoricalCrossentropy(ignore_class=-1))
    data = FLAT[0], np.where(np.arange(N) < 4, -1, LABELS[:, 0])
    loss = sdkeras.EmpiricalLoss(model, tf.data.Dataset.from_tensor_slices(data).batch(4))
    assert sdkeras.HessianOperator(loss).verification.hvp_relative_error > 1e-7  # 0 for 0 against 0


def test_a_loss_without_reduction_is_refused() -> None:
    with pytest.raises(ModelError, match="reduction is not None"):
        sdkeras.EmpiricalLoss(dense(losses.MeanSquaredError(reduction=None)), FLAT, 4)


def test_keras_is_left_as_it_was() -> None:
    original = losses.Loss.__call__
    values = []

    def watching(y_true: Any, y_pred: Any) -> Any:
        def other() -> None:
            values.append(float(losses.MeanSquaredError()(np.ones((2, 1)), np.zeros((2, 1)))))

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        return tf.reduce_mean((y_true - y_pred) ** 2, axis=-1)

    loss = sdkeras.EmpiricalLoss(dense(watching), FLAT, 4)
    assert set(values) == {1.0}
    assert loss.function.reductions == ["sum_over_batch_size"]
    assert losses.Loss.__call__ is original
