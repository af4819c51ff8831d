"""Products that are linearised once per batch: equal to the whole products, never of another point, batch or mask."""

import gc
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
import tensorflow as tf

import sdkeras
from sdkeras.operators import linearized
from sdkeras.operators.linearized import Flat
from small_losses import CE, X, Y, compiled, dense, hessian, mlp

layers = keras.layers
TOKENS = np.random.default_rng(2).integers(0, 7, (22, 5))


@pytest.fixture(autouse=True)
def _seeds() -> None:
    keras.utils.set_random_seed(0)


def attention() -> keras.Model:
    """Broadcast matrices, einsums, gelu, layer normalization and a lookup: control edges and colocated shapes."""
    tokens = keras.Input((5,), dtype="int32")
    h = layers.Embedding(7, 6)(tokens)
    h = layers.Add()([h, layers.MultiHeadAttention(2, 3)(*[layers.LayerNormalization()(h)] * 2)])
    h = layers.Dropout(0.2)(layers.Dense(6, "gelu")(layers.LayerNormalization()(h)))
    return compiled(keras.Model(tokens, layers.Dense(3)(layers.GlobalAveragePooling1D()(h))))


def convolution() -> keras.Model:
    parts = [layers.Reshape((3, 2, 1)), layers.Conv2D(3, 2, activation="tanh"), layers.MaxPooling2D((2, 1))]
    return compiled(keras.Input((6,)), *parts, layers.BatchNormalization(), layers.Flatten(), layers.Dense(3))


NETS = {
    "attention": (attention, TOKENS),
    "convolution": (convolution, X),
    "dropout and batch statistics": (lambda: mlp(layers.BatchNormalization(), layers.Dropout(0.4)), X),
    "mixed precision": (lambda: mlp(layers.Dense(4, "gelu", dtype="mixed_bfloat16")), X),
}


def thrice(operator: sdkeras.HessianOperator, vector: np.ndarray) -> list[np.ndarray]:
    """The first product is whole, the second linearises, the third holds."""
    return [operator.matvec(vector) for _ in range(3)]


def is_linearized(operator: sdkeras.HessianOperator) -> bool:
    """Whether every batch of the operator is held."""
    held = operator._linearized._by_batch
    return len(held) == len(operator.batches) and all(held.values())


def close(first: np.ndarray, second: np.ndarray, dtype: str = "float64") -> bool:
    """Equal up to what another order of the sums rounds."""
    return bool(np.linalg.norm(first - second) <= 1e3 * np.finfo(dtype).eps * np.linalg.norm(second))


@pytest.mark.parametrize("dtype", ["float64", pytest.param("float32", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "attention" else name for name in NETS]
)
def test_products_equal_the_whole_ones(name: str, dtype: str) -> None:
    make, x = NETS[name]
    model = make()
    operator = hessian(model, (x, Y), 8, dtype=dtype, product_mode="linearized")  # batches of 8, 8 and 6
    whole = hessian(model, (x, Y), 8, dtype=dtype, product_mode="reverse-over-reverse")
    assert operator.verification.linearized
    assert not whole.verification.linearized
    v = np.random.default_rng(0).standard_normal(operator.size).astype(dtype)
    for one, other in ((operator, whole), (operator.on_minibatch(1), whole.on_minibatch(1))):
        reference = other.matvec(v)
        assert np.linalg.norm(reference) > 1e-3
        assert all(close(product, reference, dtype) for product in thrice(one, v))
        assert is_linearized(one)
    assert not is_linearized(whole)


def test_the_product_of_a_linear_model_is_in_closed_form() -> None:
    model = compiled(keras.Input((6,)), layers.Dense(1, use_bias=False), loss="mse")
    part = hessian(model, (X, X[:, :1]), dtype="float64", product_mode="linearized").on_minibatch(0)
    v = np.arange(6.0)
    truth = 2 * X.T.astype(float) @ (X @ v) / 22
    assert all(np.allclose(product, truth, rtol=1e-6) for product in thrice(part, v))


def test_nothing_is_held_beyond_its_point_batch_masks_and_averages() -> None:
    """Each view is compared with whole products of a loss that is made from scratch."""
    model = mlp(layers.BatchNormalization(), layers.Dropout(0.4))
    v = np.ones(hessian(model).size)

    def made(mode: str, product_mode: str, seed: int = 0) -> sdkeras.HessianOperator:
        return hessian(model, (X, Y), 8, mode=mode, seed=seed, dtype="float64", product_mode=product_mode)

    trained, still = (made(mode, "linearized") for mode in ("train", "inference"))
    assert all(operator.verification.linearized for operator in (trained, still))
    before = [thrice(operator, v)[-1] for operator in (trained, still)]
    parts = [thrice(trained.on_minibatch(k), v)[-1] for k in (0, 1, 0)]
    assert np.array_equal(parts[0], parts[2])
    assert not np.allclose(parts[0], parts[1])
    reference = made("train", "reverse-over-reverse", seed=5)  # other masks, another order
    reseeded = trained.at(trained.loss.with_seed(5)).on_minibatch(0)
    assert all(close(product, reference.on_minibatch(0).matvec(v)) for product in thrice(reseeded, v))

    model.layers[1].moving_variance.assign(np.full(5, 3.0))  # a held value alone
    moved = still.at(still.loss.now())
    fresh = made("inference", "reverse-over-reverse").matvec(v)
    assert all(close(product, fresh) for product in thrice(moved, v))
    assert not np.allclose(fresh, before[1])
    model.fit(X, Y, epochs=1, verbose=0)
    for operator, mode, old in zip((trained, still), ("train", "inference"), before, strict=True):
        fresh = made(mode, "reverse-over-reverse").matvec(v)
        assert all(close(product, fresh) for product in thrice(operator.at(operator.loss.now()), v))
        assert not np.allclose(fresh, old)
        assert np.array_equal(operator.matvec(v), old)  # the first view stays where it was made


def test_minibatches_at_once_in_threads() -> None:
    operator = hessian(mlp(layers.Dropout(0.4)), (X, Y), 8, dtype="float64", product_mode="linearized")
    whole = hessian(operator.loss._model, (X, Y), 8, dtype="float64", product_mode="reverse-over-reverse")
    v = np.ones(operator.size)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda k: thrice(operator.on_minibatch(k), v)[-1], range(12)))
    assert all(close(product, whole.on_minibatch(k).matvec(v)) for k, product in enumerate(found))


def test_held_memory_is_bounded_and_given_back() -> None:
    model = mlp()
    operator = hessian(model, (X, Y), 4, product_mode="linearized")
    cut = operator.engine.cut
    assert cut is not None
    v = np.ones(operator.size, np.float32)
    whole = operator.matvec(v)
    operator.matvec(v)
    size = max(linear.size for linear in operator._linearized._by_batch.values() if linear is not None)
    assert cut.room.held == sum(operator._linearized._sizes) > 5 * size
    view = operator.within(None)
    assert view._linearized is operator._linearized
    del view, operator
    gc.collect()
    assert cut.room.held == 0

    tight = hessian(model, (X, Y), 4, product_mode="linearized")
    room = tight.engine.cut.room
    room.limit = 5.0 * size  # two batches of the data-set operator, and minibatches in the rest
    assert all(close(product, whole, "float32") for product in thrice(tight, v))
    assert sum(linear is not None for linear in tight._linearized._by_batch.values()) == 2
    views = [tight.on_minibatch(k) for k in range(5)]
    for minibatch in views:
        thrice(minibatch, v)
        assert room.held <= room.limit
    assert [is_linearized(minibatch) for minibatch in views] == [True, True, True, False, False]
    del views, minibatch
    gc.collect()
    assert room.held == sum(tight._linearized._sizes)


def test_products_are_counted_as_before() -> None:
    operator = hessian(mlp(), (X, Y), 8, product_mode="linearized")
    before = operator.num_products
    thrice(operator, np.ones(operator.size))
    after = operator.num_products
    # Nine products, and five that check the tangent for the ragged batch.
    assert after - before == 9 + 5
    thrice(operator.on_minibatch(0), np.ones(operator.size))
    assert operator.num_products - after == 3


def test_a_wrong_cut_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """An operation that is taken for independent, and one whose path from the vector is cut off."""
    right = linearized.Cut._tangent
    for wrong in (
        lambda f: lambda v, *b: 1.01 * f(v, *b),
        lambda f: lambda v, *b: f(v, *b) + 0.01 * tf.reverse(v, [0]),
    ):
        monkeypatch.setattr(linearized.Cut, "_tangent", lambda *a, wrong=wrong: wrong(right(*a)))
        operator = hessian(mlp(), (X, Y), product_mode="linearized")
        assert not operator.verification.linearized
        assert "differs from the whole" in operator.verification.details
        assert operator.verification.product_mode == "reverse-over-reverse"


def test_a_short_integer_that_depends_on_the_data_is_no_constant() -> None:
    """The column that the loss reads is the first label of the batch."""

    def loss_fn(model: keras.Model, batch: tuple) -> tf.Tensor:
        x, y = batch
        return tf.reduce_mean(model(x, training=True)[:, tf.cast(y[0], tf.int32)] ** 4)

    y = np.repeat([0, 1, 2], 8)[:22]
    data = tf.data.Dataset.from_tensor_slices((X, y)).batch(8)
    model = mlp()
    operator, whole = (
        sdkeras.HessianOperator(
            sdkeras.EmpiricalLoss(model, data, dtype="float64", loss_fn=loss_fn), product_mode=product_mode
        )
        for product_mode in ("linearized", "reverse-over-reverse")
    )
    v = np.ones(operator.size)
    assert operator.verification.linearized
    assert all(close(product, whole.matvec(v)) for product in thrice(operator, v))
    assert is_linearized(operator)
    assert operator.engine.cut._varying


def test_states_and_loops_are_left_whole() -> None:
    scale = tf.Variable(2.0, dtype=tf.float64)

    def loss_fn(model: keras.Model, batch: tuple) -> tf.Tensor:
        output = model(batch[0], training=True)
        return tf.reduce_mean(tf.cast(scale, output.dtype) * output**2)

    loss = sdkeras.EmpiricalLoss(mlp(), (X, Y), dtype="float64", loss_fn=loss_fn)
    operator = sdkeras.HessianOperator(loss, product_mode="linearized")
    assert "ReadVariableOp" in operator.verification.details
    v = np.ones(operator.size)
    first = thrice(operator, v)[-1]
    scale.assign(4.0)
    assert close(operator.matvec(v), 2 * first)

    model = compiled(keras.Input((6,)), layers.Reshape((3, 2)), layers.GRU(3, unroll=False), layers.Dense(3))
    operator, whole = (hessian(model, dtype="float64", product_mode=m) for m in ("linearized", "reverse-over-reverse"))
    v = np.ones(operator.size)
    assert all(close(product, whole.matvec(v)) for product in thrice(operator, v))


def test_auto_takes_the_faster_one_and_the_record_pins_it(monkeypatch: pytest.MonkeyPatch) -> None:
    small = hessian(mlp())
    assert not small.verification.linearized  # not worth the tracing, and nothing is said
    assert small.verification.details == ""
    assert small.engine.cut is None
    wide = compiled(keras.Input((6,)), layers.Dense(300, "tanh"), layers.Dense(300, "tanh"), layers.Dense(3))
    monkeypatch.setattr(linearized, "_SLOWER", np.inf)
    operator = hessian(wide)
    assert operator.verification.linearized
    assert operator.verification.mode == "reverse-over-reverse"
    pinned = hessian(wide, product_mode=operator.verification.product_mode)
    vector = np.ones(operator.size, np.float32)
    assert all(np.array_equal(*pair) for pair in zip(thrice(operator, vector), thrice(pinned, vector), strict=True))
    monkeypatch.setattr(linearized, "_SLOWER", 0.0)
    slower = hessian(wide).verification
    assert not slower.linearized
    assert slower.product_mode == "reverse-over-reverse"
    assert "not linearised: it takes" in slower.details
    assert pinned.verification.linearized
    assert hessian(wide, product_mode="linearized").verification.linearized  # asked for: whatever the time


def test_blocks_share_one_pass_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdkeras.operators.hessian._FEW_PRODUCTS", 0)
    operator = hessian(mlp(), dtype="float64", product_mode="linearized")
    matrix = dense(operator)
    assert not operator._linearized._by_batch
    assert all(close(product, matrix @ np.ones(operator.size)) for product in thrice(operator, np.ones(operator.size)))


def test_assertions_are_no_state() -> None:
    """Sparse labels of a sequence add an assertion, which is checked by the first, whole product."""
    tokens = keras.Input((5,), dtype="int32")
    model = compiled(keras.Model(tokens, layers.Dense(7)(layers.Embedding(7, 4)(tokens))), loss=CE)
    operator = hessian(model, (TOKENS, TOKENS[:, ::-1].copy()), dtype="float64", product_mode="linearized")
    assert operator.verification.linearized
    graph = operator.engine.compiled_product(None).graph.as_graph_def()
    assert any(node.op == "Assert" for node in graph.node)


def test_threads_share_a_function_for_which_memory_seems_short() -> None:
    def graph(x: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(tf.add_n([tf.sin(x), tf.cos(x), tf.exp(x)]) * x)

    x = tf.ones([20_000_000])
    flat = Flat(tf.function(graph, autograph=False).get_concrete_function(tf.TensorSpec(x.shape, x.dtype)))
    with ThreadPoolExecutor(2) as pool:
        values = [float(value) for value in pool.map(lambda _: flat(x), range(6))]
    assert values == [values[0]] * 6
    assert values[0] == pytest.approx(len(x) * (np.sin(1) + np.cos(1) + np.exp(1)), rel=1e-5)
