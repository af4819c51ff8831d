"""Products of several minibatches in one call: each row is the single product, or they are made one by one."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from sdkeras.errors import BudgetError
from sdkeras.linalg.operators import DiagonallyScaledOperator, OperatorBatch
from sdkeras.operators.hessian import HessianOperator
from sdkeras.operators.lockstep import HessianBatch, Rows
from sdkeras.operators.loss import EmpiricalLoss
from small_nets import X, Y

layers = keras.layers
TOKENS = np.random.default_rng(2).integers(0, 9, (96, 5))  # 0 is masked


def compiled(inputs, *hidden, units=3, **settings):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([inputs, *hidden, layers.Dense(units)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), **settings)
    return model


def vector_net(*hidden):
    return compiled(keras.Input((5,)), *hidden), (X, Y)


def masked():
    hidden = [layers.Embedding(9, 4, mask_zero=True), layers.GlobalAveragePooling1D(), layers.LayerNormalization()]
    return compiled(keras.Input((5,), dtype="int32"), *hidden), (TOKENS, Y)


def attention():
    inputs = keras.Input((5,), dtype="int32")
    x = layers.Embedding(9, 4, mask_zero=True)(inputs)
    x = layers.GlobalAveragePooling1D()(layers.MultiHeadAttention(2, 3)(x, x))
    model = keras.Model(inputs, layers.Dense(3)(x))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model, (TOKENS, Y)


NETS = {
    "dense": lambda: vector_net(layers.Dense(6, "tanh", kernel_regularizer="l2")),
    "batch normalization and dropout": lambda: vector_net(
        layers.Dense(6, "gelu"), layers.BatchNormalization(), layers.Dropout(0.3), layers.GaussianNoise(0.1)
    ),
    "masks": masked,
    "attention": attention,
    "sample weights": lambda: (vector_net(layers.Dense(6, "softplus"))[0], (X, Y, np.linspace(0, 2, 96))),
}


def hessians(model, data, count, dtype="float64", **settings):
    hessian = HessianOperator(EmpiricalLoss(model, data, batch_size=16, dtype=dtype), **settings)
    return [hessian.on_minibatch(index) for index in range(count)]


@pytest.mark.parametrize(("net", "dtype"), [*((net, "float64") for net in NETS), ("dense", "float32")])
def test_each_row_is_the_product_of_its_minibatch_with_its_vector_and_masks(net, dtype):
    operators = hessians(*NETS[net](), count=4, dtype=dtype)
    batch = HessianOperator.batch(operators)
    assert isinstance(batch, HessianBatch)
    rows = np.random.default_rng(3).standard_normal((4, batch.size)).astype(dtype)
    before = operators[0].num_products
    together = batch.matvecs(rows)
    assert operators[0].num_products == before + 4
    single = np.stack([operator.matvec(row) for operator, row in zip(operators, rows, strict=True)])
    # Rounding of products of a few hundred terms each.
    atol = 100 * np.finfo(dtype).eps * np.abs(single).max()
    np.testing.assert_allclose(together, single, rtol=0, atol=atol)
    # The minibatches and their masks differ by far more.
    assert np.abs(operators[0].matvec(rows[0]) - operators[1].matvec(rows[0])).max() > 1000 * atol
    # Whichever rows are beside it, and alone.
    np.testing.assert_allclose(batch.subset([2, 0]).matvecs(rows[[2, 0]]), single[[2, 0]], rtol=0, atol=atol)
    np.testing.assert_allclose(batch.subset([3]).matvecs(rows[[3]]), single[[3]], rtol=0, atol=atol)


def test_the_preconditioned_hessian_is_multiplied_together_as_well():
    operators = hessians(*NETS["dense"](), count=3)
    diagonal = np.linspace(0.5, 2, operators[0].size)
    scaled = [DiagonallyScaledOperator(operator, diagonal) for operator in operators]
    rows = np.random.default_rng(3).standard_normal((3, len(diagonal)))
    expected = [diagonal * operator.matvec(diagonal * row) for operator, row in zip(operators, rows, strict=True)]
    np.testing.assert_allclose(DiagonallyScaledOperator.batch(scaled).matvecs(rows), expected, atol=1e-13)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("net", ["batch normalization and dropout", "sample weights"])
def test_the_data_set_hessian_is_the_weighted_sum_over_its_batches_the_last_one_ragged(net, workers):
    model, data = NETS[net]()
    loss = EmpiricalLoss(model, tuple(each[:94] for each in data), batch_size=4, dtype="float64")
    hessian = HessianOperator(loss, workers=workers)
    vector = np.random.default_rng(3).standard_normal(hessian.size)
    before = hessian.num_products
    product = hessian.matvec(vector)
    assert hessian.num_products - before == len(loss.batches) == 24
    expected = sum(hessian.on_batch(batch).matvec(vector) for batch in loss.batches)
    np.testing.assert_allclose(product, expected, atol=1e-13 * np.abs(expected).max() * 24)
    assert sum(isinstance(group, Rows) for group in hessian._groups) == workers  # 23 batches; the last has 2 examples


def test_a_budget_binds_between_the_steps_of_a_group():
    class Limit:
        asked = 0

        def require(self, products=0):
            self.asked += products
            if self.asked > 6:
                raise BudgetError("the budget")

    operators = [operator.within(limit) for limit in [Limit()] for operator in hessians(*NETS["dense"](), count=3)]
    batch = HessianOperator.batch(operators)
    rows = np.ones((3, batch.size))
    batch.matvecs(rows)
    batch.matvecs(rows)
    before = operators[0].num_products
    with pytest.raises(BudgetError):
        batch.matvecs(rows)
    assert operators[0].num_products == before


@keras.saving.register_keras_serializable("lockstep")
class Sequenced(layers.Layer):
    """x, by way of an operation that has no vectorized form."""

    def call(self, inputs):
        return tf.math.cumulative_logsumexp(inputs, axis=1)


@keras.saving.register_keras_serializable("lockstep")
class Shared(layers.Layer):
    """x plus a number that is wrong in a vectorized graph, and there only."""

    def call(self, inputs):
        inside = "loop_body" in tf.constant(0.0).graph.get_name_scope() if not tf.executing_eagerly() else False
        return inputs * (1.5 if inside else 1.0)


@pytest.mark.parametrize("layer", [Sequenced, Shared])
def test_what_cannot_be_vectorized_or_is_wrong_then_is_made_one_by_one(layer):
    operators = hessians(*vector_net(layers.Dense(6, "tanh"), layer()), count=3)
    batch = HessianOperator.batch(operators)
    assert type(batch) is OperatorBatch
    rows = np.random.default_rng(3).standard_normal((3, batch.size))
    np.testing.assert_array_equal(batch.matvecs(rows)[2], operators[2].matvec(rows[2]))


def test_convolutions_loops_large_nets_and_differences_are_left_alone():
    image = compiled(keras.Input((6, 6, 1)), layers.Conv2D(2, 3), layers.Flatten())
    operators = hessians(image, (np.ones((32, 6, 6, 1)), np.zeros(32)), count=1)
    assert operators[0].rows_together(800, memory=1e12, vectors=40) == 1
    small = hessians(*NETS["dense"](), count=1)[0]
    assert small.rows_together(800, memory=1e12, vectors=40) == 32
    assert (
        small.rows_together(800, memory=40 * 8 * small.size * 10, vectors=40) == 1
    )  # ten bases, but not their tensors
    assert small.rows_together(799, memory=1e12, vectors=40) == 1  # tracing would take longer
    by_differences = hessians(*NETS["dense"](), count=1, product_mode="finite-differences")[0]
    assert by_differences.rows_together(800, memory=1e12, vectors=40) == 1
    large = hessians(*vector_net(layers.Dense(16_000)), count=1, dtype="float32", allow_unverified=True)[0]
    assert large.rows_together(800, memory=1e12, vectors=40) == 13  # 8 MB over 144,003 parameters
