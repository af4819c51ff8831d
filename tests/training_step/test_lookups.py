"""Steps along gradients of lookups against `train_on_batch`, which gives them to the optimizer row by row."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import sdkeras
from sdkeras.errors import VerificationError
from sdkeras.operators import precision
from sdkeras.training_step.gradients import RowGradients
from sdkeras.training_step.jacobian import rule_and_gradients
from sdkeras.training_step.rule import UpdateRule
from trainer import RATE, Trainer, cases, dense, step_of, trained

layers = keras.layers
optimizers = keras.optimizers
TOKENS = np.array([[0, 1, 1], [3, 1, 5], [5, 2, 4]])  # of 6; rows 1 and 5 are looked up twice and more
DATA = (TOKENS, np.array([0, 1, 1]))
pytestmark = pytest.mark.usefixtures("double_precision")


class Tied(keras.Model):
    """Its embedding is the kernel of its output as well, or is looked up twice."""

    def __init__(self, as_kernel: bool) -> None:
        super().__init__()
        self.as_kernel = as_kernel
        self.table, self.inner = layers.Embedding(6, 2), layers.Dense(2, "tanh")

    def call(self, tokens):
        found = self.table(tokens)
        if self.as_kernel:
            return keras.ops.matmul(self.inner(keras.ops.mean(found, 1)), keras.ops.transpose(self.table.embeddings))
        other = self.table((keras.ops.flip(tokens, 1) + 1) % 6)
        return self.inner(keras.ops.sum(found * keras.ops.tanh(other) ** 2 + other, 1))


def sequential(*inner: keras.layers.Layer, regularizer: object = None) -> keras.Model:
    first = layers.Embedding(6, 2, embeddings_regularizer=regularizer)
    return keras.Sequential([keras.Input((3,), dtype="int32"), first, *inner, layers.Dense(2)])


def flat() -> keras.Model:
    return sequential(layers.Flatten(), layers.Dense(2, "tanh"))


def attention() -> keras.Model:
    tokens = keras.Input((3,), dtype="int32")
    at = layers.Embedding(6, 2)(tokens) + layers.Embedding(3, 2)(keras.ops.arange(3))
    at = layers.LayerNormalization()(at + layers.MultiHeadAttention(1, 2)(at, at))
    return keras.Model(tokens, layers.Dense(2)(layers.GlobalAveragePooling1D()(at)))


# Whether the gradient arrives row by row, whether the step depends on it.
OPTIMIZERS = {
    "adam": (True, lambda: optimizers.Adam(RATE)),
    "adamw amsgrad": (True, lambda: optimizers.AdamW(RATE, weight_decay=0.5, amsgrad=True)),
    "nadam": (True, lambda: optimizers.Nadam(RATE)),
    "adamax": (True, lambda: optimizers.Adamax(RATE)),
    "rmsprop centered momentum": (True, lambda: optimizers.RMSprop(RATE, centered=True, momentum=0.5)),
    "adagrad": (True, lambda: optimizers.Adagrad(RATE)),
    "adadelta": (True, lambda: optimizers.Adadelta(RATE)),
    "ftrl": (True, lambda: optimizers.Ftrl(RATE, l1_regularization_strength=1e-3, beta=0.1)),
    "lamb": (True, lambda: optimizers.Lamb(RATE)),
    "adafactor": (True, lambda: optimizers.Adafactor(RATE)),
    "lion": (False, lambda: optimizers.Lion(2.0**-6)),
    "sgd": (False, lambda: optimizers.SGD(RATE, momentum=0.5, nesterov=True, weight_decay=0.1)),
    "sgd clipnorm": (True, lambda: optimizers.SGD(RATE, clipnorm=0.02)),
    "sgd clipvalue": (True, lambda: optimizers.SGD(RATE, clipvalue=0.02)),
    "lion clipnorm": (True, lambda: optimizers.Lion(2.0**-6, clipnorm=0.02)),
    "adam global clipnorm": (True, lambda: optimizers.Adam(RATE, global_clipnorm=0.05)),
    "adam far below the clipnorm": (True, lambda: optimizers.Adam(RATE, clipnorm=100.0)),
}
SLOW = ", ".join(OPTIMIZERS.keys() - {"adam"})
MODELS = {
    "two lookups": (True, lambda: Tied(as_kernel=False)),
    "kernel as well": (False, lambda: Tied(as_kernel=True)),
    "regularized": (False, lambda: sequential(layers.Flatten(), regularizer=keras.regularizers.L2(0.1))),
    "batch normalization": (True, lambda: sequential(layers.Flatten(), layers.BatchNormalization())),
    "recurrent": (True, lambda: sequential(layers.GRU(2))),
    "attention": (True, attention),
}


@pytest.fixture(scope="module")
def by_adam() -> tuple[keras.Model, sdkeras.UpdateMap]:
    """A model and its step, for what only reads them."""
    keras.utils.set_random_seed(0)
    with precision.default_precision("float64"):
        model = trained(optimizers.Adam(RATE), flat(), DATA, 4)
        return model, step_of(model, DATA)


def check(model: keras.Model, by_row: bool, step: sdkeras.UpdateMap | None = None) -> None:
    step = step or step_of(model, DATA)
    trainer = Trainer(model, step.layout.names, DATA)
    start = trainer.state()
    assert np.max(np.abs(step.apply() - trainer(start))) < 1e-14
    jacobian = dense(step)
    truth, certain = trainer.jacobian(start, step)
    trainer.put(start)
    for name, part in zip(step.layout.names, step.layout.slices, strict=True):
        certain[part] &= "key_bias" not in name  # no gradient but rounding
    errors = np.max(np.abs(jacobian - truth), axis=0) - 1e-5 * np.max(np.abs(truth), axis=0)
    assert np.max(errors[certain]) <= 0
    assert np.count_nonzero(certain) >= 0.6 * step.size
    assert np.allclose(step.vjp(np.eye(step.size)), jacobian.T, rtol=1e-11, atol=1e-13 * np.max(np.abs(jacobian)))
    assert np.allclose(step.jvp(jacobian[:, 0]), jacobian @ jacobian[:, 0], rtol=1e-11, atol=1e-12)
    assert step.verification.passed
    assert step.verification.step_error < 1e-12
    assert isinstance(rule_and_gradients(model.optimizer, step.loss.engine())[1], RowGradients) == by_row


@pytest.mark.parametrize("case", cases(OPTIMIZERS, slow=SLOW))
def test_step_and_jacobian_where_rows_are_looked_up_twice(case: str, by_adam) -> None:
    by_row, make = OPTIMIZERS[case]
    if case == "adam":
        check(by_adam[0], by_row, by_adam[1])
    else:
        check(trained(make(), flat(), DATA, 4), by_row)


@pytest.mark.parametrize("case", cases(MODELS, slow=", ".join(MODELS.keys() - {"kernel as well"})))
def test_step_and_jacobian_of_other_lookups(case: str) -> None:
    by_row, make = MODELS[case]
    check(trained(optimizers.AdamW(RATE), make(), DATA, 4), by_row)


def test_training_goes_where_the_flow_goes() -> None:
    """Its tangents are the products of the Jacobians, and vectors one by one have those of a block."""
    model = trained(optimizers.AdamW(RATE, global_clipnorm=0.05), flat(), DATA, 4)
    step = step_of(model, DATA, 2)
    flow = sdkeras.TrainingFlow(step)
    tangents = np.random.default_rng(0).standard_normal((flow.size, 3))
    expected, state, held = tangents, step.state, step.held
    for index in range(3):
        view = step.at(state, held).on_minibatch(index)
        expected = np.stack([view.jvp(column) for column in expected.T], axis=1)
        state, held, _ = step.advance(state, held, step.training_batches(index))
        tangents = flow.step(tangents)
    np.testing.assert_allclose(tangents, expected, rtol=1e-11, atol=1e-12)
    for index in range(3):
        model.train_on_batch(*step.loss.source.minibatch(index, 0))
    weights = np.concatenate([np.ravel(v) for v in model.trainable_variables])
    np.testing.assert_allclose(flow.state()["state"][: len(weights)], weights, rtol=1e-11, atol=1e-13)


@pytest.mark.slow
def test_several_batches_are_one_step_along_all_their_rows(by_adam) -> None:
    model, whole = by_adam
    parts = step_of(model, DATA, 2)
    assert len(parts.loss.batches) == 2
    assert np.allclose(parts.apply(), whole.apply(), rtol=0, atol=1e-14)
    vectors = np.random.default_rng(0).standard_normal((whole.size, 2))
    for product, other in ((parts.jvp, whole.jvp), (parts.vjp, whole.vjp)):
        expected = other(vectors)
        assert np.allclose(product(vectors), expected, rtol=1e-11, atol=1e-12 * np.max(np.abs(expected)))


@pytest.mark.slow
def test_float32_map_is_the_float64_map_rounded() -> None:
    with precision.default_precision("float32"):
        model = trained(optimizers.Adam(RATE), flat(), DATA, 4)
        single, double = step_of(model, DATA, dtype="float32"), step_of(model, DATA)
    assert single.verification.checked == "update"
    scale = np.max(np.abs(dense(double)))
    for made, exact in ((single.jvp, double.jvp), (single.vjp, double.vjp)):
        assert np.allclose(made(np.eye(single.size)), exact(np.eye(double.size)), atol=1e-5 * scale)


@pytest.mark.slow
def test_products_row_by_row_need_reverse_over_reverse(by_adam) -> None:
    with pytest.raises(VerificationError, match=r"looks up twice.*forward-over-reverse"):
        step_of(by_adam[0], DATA, product_mode="forward-over-reverse")


@pytest.mark.parametrize("wrong", [pytest.param("order", marks=pytest.mark.slow), "diagonal"])
def test_wrong_rows_are_refused(monkeypatch: pytest.MonkeyPatch, wrong: str, by_adam) -> None:
    model = by_adam[0]
    if wrong == "order":
        right = RowGradients.gradient_and_push

        def gradient_and_push(self, *arguments):
            gradient, pushed = right(self, *arguments)
            columns = [2, 3, 0, 1, *range(4, pushed.shape[1])]  # the first two rows of the embedding's gradient
            return gradient, tf.gather(pushed, columns, axis=1)

        monkeypatch.setattr(RowGradients, "gradient_and_push", gradient_and_push)
    else:
        linearize = UpdateRule.linearize

        def wrong(self, *arguments):
            *new, derivative = linearize(self, *arguments)
            size = 2 * TOKENS.size  # of the embedding's gradient
            push = derivative.push
            derivative.push = lambda t, h: push(t, np.hstack([1.01 * h[:, :size], h[:, size:]]))
            return *new, derivative

        monkeypatch.setattr(UpdateRule, "linearize", wrong)
    with pytest.raises(VerificationError, match="failed its verification"):
        step_of(model, DATA)


@pytest.mark.parametrize("limit", [pytest.param(None, marks=pytest.mark.slow), 0.02])
def test_signs_of_exactly_zero(limit: float | None, by_adam) -> None:
    """An input that is always 0: its weights have neither gradient nor momentum, and their sign does not move them."""
    data = np.random.default_rng(0).standard_normal((8, 2)) * [1.0, 0.0], np.arange(8) % 2
    model = keras.Sequential([keras.Input((2,)), layers.Dense(2, "tanh"), layers.Dense(2)])
    step = step_of(trained(optimizers.Lion(2.0**-6, clipnorm=limit), model, data), data)
    assert step.verification.passed
    assert step.verification.zero_signs == 2
    assert "2 of 12" in dict(step.notes)["zero-signs"]
    jacobian = dense(step)
    assert np.array_equal(jacobian[: step.num_weights], np.eye(step.size)[: step.num_weights])
    decay = float(np.float32(0.99))
    assert np.allclose(np.diag(jacobian)[step.num_weights :], decay)
    assert "zero-signs" not in dict(by_adam[1].notes)
