"""The operator as its users meet it: data in every form, modes, subsets, refusals; the model is never touched."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import sdkeras
from sdkeras.errors import DataError, ModelError, NonFiniteError, VerificationError
from sdkeras.linalg.operators import DiagonallyScaledOperator
from sdkeras.operators import precision
from sdkeras.operators.engine import Engine
from sdkeras.training_step import settings

layers = keras.layers
CE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
X = np.random.default_rng(0).standard_normal((22, 6)).astype("float32")
Y = np.random.default_rng(1).integers(0, 3, 22)


@pytest.fixture(autouse=True)
def _seeds() -> None:
    keras.utils.set_random_seed(0)


def mlp(*inner: object, optimizer: object = "sgd", loss: object = CE) -> keras.Model:
    model = keras.Sequential([keras.Input((6,)), layers.Dense(5, "tanh"), *inner, layers.Dense(3)])
    model.compile(optimizer, loss)
    return model


def dense(operator: sdkeras.SymmetricOperator) -> np.ndarray:
    return operator.matmat(np.eye(operator.size, dtype=operator.dtype))


class Sequence(keras.utils.PyDataset):
    def __init__(self) -> None:
        super().__init__()

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int):
        part = slice(8 * index, 8 * index + 8)
        return X[part], Y[part]


@pytest.mark.parametrize("form", ["arrays", "lists", "dataset", "pydataset"])
def test_every_form_of_data_gives_the_same_hessian(form: str) -> None:
    model = mlp()
    given = {
        "arrays": (X, Y),
        "lists": (X.tolist(), Y.tolist()),
        "dataset": tf.data.Dataset.from_tensor_slices((X, Y)).batch(8),
        "pydataset": Sequence(),
    }[form]
    size = 8 if form in ("arrays", "lists") else None
    loss = sdkeras.EmpiricalLoss(model, given, batch_size=size)
    assert sorted(batch.num_examples for batch in loss.batches) == [6, 8, 8]
    truth = dense(sdkeras.HessianOperator(sdkeras.EmpiricalLoss(model, (X, Y))))
    assert np.allclose(dense(sdkeras.HessianOperator(loss)), truth, atol=1e-6)


def test_multi_input_multi_output_dict_and_subclassed() -> None:
    a, b = keras.Input((6,), name="a"), keras.Input((2,), name="b")
    h = layers.Dense(4, "tanh")(layers.Concatenate()([a, b]))
    model = keras.Model({"a": a, "b": b}, {"p": layers.Dense(3, name="p")(h), "q": layers.Dense(1, name="q")(h)})
    model.compile("sgd", loss={"p": CE, "q": "mse"}, loss_weights={"p": 1.0, "q": 0.5})
    x = {"a": X, "b": X[:, :2]}
    y = {"p": Y, "q": X[:, :1]}
    loss = sdkeras.EmpiricalLoss(model, (x, y), batch_size=8)
    assert np.isclose(loss.value(), model.evaluate(x, y, verbose=0, return_dict=True, batch_size=22)["loss"], rtol=1e-5)
    assert sdkeras.HessianOperator(loss).verification.passed

    class Own(keras.Model):
        def __init__(self, **kwargs: object) -> None:
            super().__init__(**kwargs)
            self.inner, self.out = layers.Dense(4, "gelu"), layers.Dense(3)

        def call(self, x: object) -> object:
            h = self.inner(x)
            self.add_loss(0.1 * keras.ops.mean(h**2))
            return self.out(h)

    own = Own()
    own.compile("sgd", CE)
    operator = sdkeras.HessianOperator(sdkeras.EmpiricalLoss(own, (X, Y), batch_size=8))
    assert operator.verification.passed
    assert operator.verification.finite_difference_dtype == "float64"


def test_dropout_masks_are_fixed_within_and_fresh_between_minibatches() -> None:
    model = mlp(layers.Dropout(0.5))
    operator = sdkeras.HessianOperator(sdkeras.EmpiricalLoss(model, (X, Y), batch_size=22))
    v = np.ones(operator.size, np.float32)
    first, second = operator.on_minibatch(0), operator.on_minibatch(1)
    assert np.array_equal(first.matvec(v), first.matvec(v))
    assert not np.allclose(first.matvec(v), second.matvec(v))  # the same 22 samples, other masks
    still = sdkeras.HessianOperator(sdkeras.EmpiricalLoss(model, (X, Y), batch_size=22, mode="inference"))
    assert np.allclose(still.on_minibatch(0).matvec(v), still.on_minibatch(1).matvec(v), atol=1e-6)


def test_batch_normalization_modes_differ_and_nothing_is_touched() -> None:
    model = mlp(layers.BatchNormalization(), layers.Dropout(0.3), optimizer=keras.optimizers.Adam())
    model.fit(X, Y, epochs=2, verbose=0)
    before = [np.asarray(v).copy() for v in (*model.variables, *model.optimizer.variables)]
    state = keras.config.floatx(), keras.config.dtype_policy().name, tf.nn.moments
    found = [
        dense(sdkeras.HessianOperator(sdkeras.EmpiricalLoss(model, (X, Y), batch_size=8, mode=mode)))
        for mode in ("train", "inference")
    ]
    assert not np.allclose(*found, atol=1e-3)
    after = [np.asarray(v).copy() for v in (*model.variables, *model.optimizer.variables)]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert (keras.config.floatx(), keras.config.dtype_policy().name, tf.nn.moments) == state


def test_parameter_subset_is_the_diagonal_block() -> None:
    model = mlp()
    whole = sdkeras.EmpiricalLoss(model, (X, Y))
    part = sdkeras.EmpiricalLoss(model, (X, Y), params="dense_1/kernel|kernel$")
    positions = [k for k, name in enumerate(whole.layout.names) if name in part.layout.names]
    indices = np.concatenate([np.arange(whole.size)[whole.layout.slices[k]] for k in positions])
    block = dense(sdkeras.HessianOperator(whole))[np.ix_(indices, indices)]
    assert part.size < whole.size
    assert np.allclose(dense(sdkeras.HessianOperator(part)), block, atol=1e-6)
    with pytest.raises(ModelError, match="no trainable variable matches"):
        sdkeras.EmpiricalLoss(model, (X, Y), params="nothing")
    with pytest.raises(ModelError, match="regular expression"):
        sdkeras.EmpiricalLoss(model, (X, Y), params="(")


def test_unconnected_parameters_are_zero_rows_and_named() -> None:
    x = keras.Input((6,))
    used, idle = layers.Dense(3, name="used")(x), layers.Dense(2, name="idle")(x)
    model = keras.Model(x, [used, idle])
    model.compile("sgd", loss=[CE, None])
    loss = sdkeras.EmpiricalLoss(model, (X, Y))
    found = dense(sdkeras.HessianOperator(loss))
    assert {name.split("/")[0] for name in loss.engine("auto").unconnected} == {"idle"}
    rows = np.concatenate([found[s] for s, n in zip(loss.layout.slices, loss.layout.names, strict=True) if "idle" in n])
    assert np.all(rows == 0)


def test_tensor_in_tensor_out_and_wrong_shapes() -> None:
    operator = sdkeras.HessianOperator(sdkeras.EmpiricalLoss(mlp(), (X, Y), batch_size=8))
    v = np.random.default_rng(0).standard_normal(operator.size).astype("float32")
    assert tf.is_tensor(operator.matvec(tf.constant(v)))
    assert np.allclose(operator.matvec(tf.constant(v)), operator.matvec(v))
    pair = operator.matmat(np.stack([v, 2 * v], axis=1))
    assert np.allclose(pair[:, 1], 2 * pair[:, 0], atol=1e-5)
    with pytest.raises(ValueError, match="shape"):
        operator.matvec(v[:-1])
    with pytest.raises(ValueError, match="shape"):
        operator.matmat(v)


def test_bilinear_upsampling_is_refused_and_named() -> None:
    model = keras.Sequential(
        [
            keras.Input((4, 4, 1)),
            layers.Conv2D(2, 2),
            layers.UpSampling2D(interpolation="bilinear", name="up"),
            layers.Activation("tanh"),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )
    model.compile("sgd", CE)
    loss = sdkeras.EmpiricalLoss(model, (np.random.default_rng(0).standard_normal((22, 4, 4, 1)), Y))
    with pytest.raises(VerificationError, match=r"UpSampling2D \(up\)") as caught:
        sdkeras.HessianOperator(loss)
    assert caught.value.exit_status == 4
    with pytest.warns(UserWarning, match="failed its verification"):
        operator = sdkeras.HessianOperator(loss, allow_unverified=True)
    assert not operator.verification.passed
    assert operator.verification.finite_difference_error > 0.1
    right = sdkeras.HessianOperator(
        sdkeras.EmpiricalLoss(model, loss.source, dtype="float64"), product_mode="finite-differences"
    )
    assert right.verification.passed


def test_a_wrong_product_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the exact moments the error is a few per cent, symmetric and repeatable; it must not pass."""
    import contextlib

    from sdkeras.operators import engine as autodiff

    monkeypatch.setattr(autodiff, "exact_moments", contextlib.nullcontext)
    loss = sdkeras.EmpiricalLoss(mlp(layers.LayerNormalization()), (X, Y))
    by_differences = sdkeras.HessianOperator(loss).verification
    assert by_differences.mode == "finite-differences"
    assert "tf.nn.moments" in by_differences.details
    monkeypatch.setattr(autodiff, "inexact_moments", lambda graph: [])
    with pytest.raises(VerificationError):
        sdkeras.HessianOperator(sdkeras.EmpiricalLoss(mlp(layers.LayerNormalization()), (X, Y)))


@keras.saving.register_keras_serializable("tests")
class Secret(layers.Layer):
    """A layer that cannot be rebuilt: its configuration lacks an argument."""

    def __init__(self, factor: float, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, x: object) -> object:
        return self.factor * x

    def get_config(self) -> dict:
        return {}


def test_verification_without_a_float64_clone() -> None:
    operator = sdkeras.HessianOperator(sdkeras.EmpiricalLoss(mlp(Secret(2.0), layers.Activation("relu")), (X, Y)))
    assert operator.verification.finite_difference_dtype == "float32"
    assert operator.verification.passed
    assert "float64" in operator.verification.details
    with pytest.raises(ModelError, match="get_config"):
        sdkeras.EmpiricalLoss(mlp(Secret(2.0)), (X, Y), dtype="float64")


def test_float32_against_float64_and_mixed_precision() -> None:
    model = mlp(layers.LayerNormalization())
    double = dense(sdkeras.HessianOperator(sdkeras.EmpiricalLoss(model, (X, Y), dtype="float64")))
    single = dense(sdkeras.HessianOperator(sdkeras.EmpiricalLoss(model, (X, Y))))
    assert np.max(np.abs(double - single)) < 1e-5 * np.max(np.abs(double))
    mixed = keras.Sequential(
        [keras.Input((6,)), layers.Dense(5, "tanh", dtype="mixed_bfloat16"), layers.Dense(3, dtype="mixed_bfloat16")]
    )
    mixed.compile("sgd", CE)
    assert not precision.is_pure(mixed, "float32")
    plain = mlp()
    plain.set_weights(mixed.get_weights())
    found = [dense(sdkeras.HessianOperator(sdkeras.EmpiricalLoss(m, (X, Y)))) for m in (mixed, plain)]
    assert np.allclose(*found, atol=1e-6)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ((X, Y[:-1]), "numbers of samples"),
        ((X[:0], Y[:0]), "0 samples"),
        ((np.where(X > 2, np.nan, X), Y), "not finite"),
        ((X.astype(object), Y), "dtype object"),
        ("text", "must be"),
        (tf.data.Dataset.from_tensor_slices((X, Y)), "not batched"),
        (tf.data.Dataset.from_tensor_slices((X, Y)).batch(4).repeat(), "no end"),
    ],
)
def test_bad_data(form: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        sdkeras.EmpiricalLoss(mlp(), form)
    with pytest.raises(DataError, match="larger than the data"):
        sdkeras.EmpiricalLoss(mlp(), (X, Y), batch_size=23)


def test_bad_models() -> None:
    bare = keras.Sequential([keras.Input((6,)), layers.Dense(3)])
    with pytest.raises(ModelError, match="not compiled"):
        sdkeras.EmpiricalLoss(bare, (X, Y))
    with pytest.raises(ModelError, match=r"keras\.Model"):
        sdkeras.EmpiricalLoss("model", (X, Y))
    broken = mlp()
    broken.trainable_variables[0].assign(np.full((6, 5), np.inf))
    with pytest.raises(NonFiniteError, match="loss at the model's weights"):
        sdkeras.EmpiricalLoss(broken, (X, Y))


def test_minibatches_are_drawn_as_fit_draws_them() -> None:
    loss = sdkeras.EmpiricalLoss(mlp(), (X, Y), batch_size=5)
    per_epoch = loss.source.minibatches_per_epoch
    assert per_epoch == 4
    rows = [loss.minibatch(index).tensors[0].numpy() for index in range(per_epoch)]
    assert all(len(part) == 5 for part in rows)
    assert len(np.unique(np.concatenate(rows), axis=0)) == 20  # no sample twice within an epoch
    again = loss.minibatch(2).tensors[0].numpy()
    assert np.array_equal(again, rows[2])
    assert not np.array_equal(loss.minibatch(per_epoch + 2).tensors[0].numpy(), again)


@pytest.mark.parametrize("kernel", [None, "l2"])
def test_data_subspace_reduction_is_exact(kernel: str | None) -> None:
    model = keras.Sequential([keras.Input((30,)), layers.Dense(4, "tanh", kernel_regularizer=kernel), layers.Dense(3)])
    model.compile("sgd", CE)
    x = np.random.default_rng(0).standard_normal((22, 30))
    operator = sdkeras.HessianOperator(sdkeras.EmpiricalLoss(model, (x, Y), batch_size=8, dtype="float64"))
    view = operator.on_minibatch(0)
    split = view.reduced()
    assert split.multiplicity == (30 - 8) * 4
    assert split.eigenvalue == pytest.approx(0.02 if kernel else 0.0, abs=1e-9)
    small = np.linalg.eigvalsh(dense(split.operator))
    whole = np.linalg.eigvalsh(dense(view))
    expected = np.sort(np.concatenate([small, np.full(split.multiplicity, split.eigenvalue)]))
    assert np.allclose(whole, expected, atol=1e-10)


@pytest.mark.parametrize("first", ["dense", "embedding"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_reduction_of_a_diagonally_scaled_hessian_is_exact(first: str, dtype: str) -> None:
    generator = np.random.default_rng(0)
    if first == "dense":
        inputs, x = [keras.Input((30,)), layers.Dense(4, "tanh")], generator.standard_normal((22, 30))
    else:
        inputs = [keras.Input((3,), dtype="int32"), layers.Embedding(40, 3), layers.Flatten(), layers.Dense(4, "tanh")]
        x = generator.integers(0, 40, (22, 3))
    model = keras.Sequential([*inputs, layers.Dense(3)])
    model.compile("sgd", CE)
    operator = sdkeras.HessianOperator(sdkeras.EmpiricalLoss(model, (x, Y), batch_size=8, dtype=dtype))
    diagonal = np.exp(2 * generator.standard_normal(operator.size))
    scaled = DiagonallyScaledOperator(operator.on_minibatch(0), diagonal)
    split = scaled.reduced()
    assert split.multiplicity >= 22 * 3
    assert split.operator.size + split.multiplicity == operator.size
    whole = np.linalg.eigvalsh(dense(scaled).astype(np.float64))
    expected = np.sort(np.concatenate([np.linalg.eigvalsh(dense(split.operator)), np.zeros(split.multiplicity)]))
    assert np.allclose(whole, expected, atol={"float32": 1e-5, "float64": 1e-12}[dtype] * np.abs(whole).max())


def test_a_scaled_hessian_whose_complement_is_not_zero_has_no_reduction() -> None:
    model = keras.Sequential([keras.Input((30,)), layers.Dense(4, "tanh", kernel_regularizer="l2"), layers.Dense(3)])
    model.compile("sgd", CE)
    data = (np.random.default_rng(0).standard_normal((22, 30)), Y)
    operator = sdkeras.HessianOperator(sdkeras.EmpiricalLoss(model, data, batch_size=8, dtype="float64"))
    assert DiagonallyScaledOperator(operator.on_minibatch(0), np.ones(operator.size)).reduced() is None


def test_reduction_is_refused_where_the_kernel_is_felt_elsewhere() -> None:
    x = keras.Input((30,))
    shared = layers.Dense(30, "tanh")
    model = keras.Model(x, layers.Dense(3)(shared(shared(x))))
    model.compile("sgd", CE)
    data = (np.random.default_rng(0).standard_normal((22, 30)), Y)
    operator = sdkeras.HessianOperator(sdkeras.EmpiricalLoss(model, data, batch_size=8))
    assert operator.on_minibatch(0).reduced() is None


@pytest.mark.parametrize("name", ["Adam", "AdamW", "Nadam", "RMSprop", "amsgrad", "centered"])
def test_preconditioner_reproduces_the_last_step(name: str) -> None:
    """w_t - w_{t-1} = -eta (decay) - eta P^-1 m, with m and v from the slots: checked on a real train step."""
    optimizer = {
        "Adam": lambda: keras.optimizers.Adam(0.01),
        "AdamW": lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1),
        "Nadam": lambda: keras.optimizers.Nadam(0.01),
        "RMSprop": lambda: keras.optimizers.RMSprop(0.01),
        "amsgrad": lambda: keras.optimizers.Adam(0.01, amsgrad=True),
        "centered": lambda: keras.optimizers.RMSprop(0.01, centered=True),
    }[name]()
    model = mlp(optimizer=optimizer)
    model.fit(X, Y, epochs=3, batch_size=22, verbose=0)
    loss = sdkeras.EmpiricalLoss(model, (X, Y))
    before, gradient = loss.point.astype(np.float64), loss.gradient()
    model.train_on_batch(X, Y)
    after = sdkeras.EmpiricalLoss(model, (X, Y)).point.astype(np.float64)
    diagonal = settings.preconditioner(model, loss.layout)
    if "rms" in name.lower() or name == "centered":
        direction = gradient
    else:
        direction = loss.layout.flatten(model.optimizer._momentums, np.float64)
        # Keras divides m by 1 - beta1^t and P holds that factor.
    if name == "Nadam":  # m and the gradient by the momenta u_1 ... u_(t+1), whose product starts the next correction
        u = 0.9 * (1 - 0.5 * 0.96 ** np.arange(1, int(model.optimizer.iterations) + 2))
        direction = direction * u[-1] / (1 - np.prod(u)) + gradient * (1 - u[-2]) / (1 - np.prod(u[:-1]))
    decayed = before * (1 - 0.01 * 0.1) if name == "AdamW" else before
    assert np.allclose(after, decayed - 0.01 * direction / diagonal, atol=2e-6)


def test_a_copy_in_float64_keeps_the_names_of_the_model() -> None:
    class Own(keras.Model):
        def __init__(self, **kwargs: object) -> None:
            super().__init__(**kwargs)
            self.inner, self.out = layers.Dense(4, "tanh"), layers.Dense(3)

        def call(self, x: object) -> object:
            return self.out(self.inner(x))

    model = Own()
    model.compile(keras.optimizers.Adam(), CE)
    model.fit(X, Y, verbose=0)
    single = sdkeras.EmpiricalLoss(model, (X, Y))
    double = sdkeras.EmpiricalLoss(model, (X, Y), dtype="float64")
    assert double.layout == single.layout
    assert settings.preconditioner(model, double.layout).shape == (double.size,)
    kernel = model.trainable_variables[2].path
    assert sdkeras.EmpiricalLoss(model, (X, Y), params=kernel, dtype="float64").size == 12


def test_a_wrong_float32_product_does_not_pass_beside_a_right_float64_clone(monkeypatch: pytest.MonkeyPatch) -> None:
    loss = sdkeras.EmpiricalLoss(mlp(), (X, Y))
    right = Engine.product

    def product(engine: Engine, *arguments: object) -> object:
        """Symmetric and repeatable, and in float32 wrong by 2 %."""
        return (1.02 if engine.dtype == np.float32 else 1.0) * right(engine, *arguments)

    monkeypatch.setattr(Engine, "product", product)
    with pytest.raises(VerificationError, match="analyse in float64"):
        sdkeras.HessianOperator(loss)


def test_a_function_traced_earlier_keeps_its_wrong_moments_and_is_not_differentiated_twice() -> None:
    """A tf.function that has run holds TensorFlow's variance, whatever sdkeras puts in its place afterwards."""

    class Standardised(layers.Layer):
        @tf.function
        def call(self, x):
            mean, variance = tf.nn.moments(x, [-1], keepdims=True)
            return (x - mean) / tf.sqrt(variance + 1e-3)

    model = mlp(Standardised())
    model.predict(X, verbose=0)
    model(X[:3])
    operator = sdkeras.HessianOperator(sdkeras.EmpiricalLoss(model, (X, Y)))
    assert operator.verification.mode == "finite-differences"
    assert "tf.nn.moments" in operator.verification.details
    with pytest.raises(ModelError, match=r"tf\.nn\.moments"):
        sdkeras.HessianOperator(sdkeras.EmpiricalLoss(model, (X, Y)), product_mode="reverse-over-reverse")


def test_a_loss_keeps_its_options_in_float64() -> None:
    """Keras leaves Huber's delta out of its configuration."""
    model = mlp(loss=keras.losses.Huber(delta=0.1))
    single, double = (sdkeras.EmpiricalLoss(model, (X, np.eye(3)[Y]), dtype=dtype) for dtype in ("float32", "float64"))
    assert np.isclose(single.value(), double.value(), rtol=1e-6)


@keras.saving.register_keras_serializable("sdkeras.tests")
class Forgetful(layers.Layer):
    """Leaves its factor out of its configuration."""

    def __init__(self, factor: float = 1.0, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.factor = factor

    def get_config(self):
        return {"name": self.name, "dtype": self.dtype}

    def call(self, x):
        return self.factor * x


def test_a_copy_with_another_loss_is_refused() -> None:
    model = mlp(Forgetful(3.0))
    assert sdkeras.HessianOperator(sdkeras.EmpiricalLoss(model, (X, Y))).verification.passed
    with pytest.raises(ModelError, match=r"another loss .* get_config"):
        sdkeras.EmpiricalLoss(model, (X, Y), dtype="float64")


def test_what_a_layer_raises_becomes_one_message() -> None:
    class Picky(layers.Layer):
        def compute_output_spec(self, x):
            return keras.KerasTensor(x.shape, x.dtype)

        def call(self, x):
            raise RuntimeError("not today")

    with pytest.raises(ModelError, match=r"cannot be computed in float32: RuntimeError: .*not today"):
        sdkeras.EmpiricalLoss(mlp(Picky()), (X, Y))


def test_a_layer_that_stops_gradients_is_named() -> None:
    class OneSided(layers.Layer):
        def call(self, x):
            return x * keras.ops.stop_gradient(keras.ops.flip(x, axis=-1))

    with pytest.raises(VerificationError, match=r"OneSided \(side\); .* stop gradients on purpose"):
        sdkeras.HessianOperator(sdkeras.EmpiricalLoss(mlp(OneSided(name="side")), (X, Y)))


def test_max_pooling_that_goes_wrong_in_graphs_only_is_named() -> None:
    """With strides 1 and same padding TensorFlow's second gradient writes over its own input."""
    pooled = (layers.Dense(20), layers.Reshape((5, 4, 1)), layers.MaxPooling2D(2, 1, "same", name="pool"))
    with pytest.raises(VerificationError, match=r"Layers at fault: MaxPooling2D \(pool\);"):
        sdkeras.HessianOperator(sdkeras.EmpiricalLoss(mlp(*pooled, layers.Flatten()), (X, Y)))


def test_a_gradient_that_is_only_near_the_loss_is_refused() -> None:
    """TensorFlow's gradient of a shifted image is a shift back, which is not the transpose."""
    shifted = (layers.Dense(16), layers.Reshape((4, 4, 1)), layers.RandomTranslation(0.3, 0.3), layers.Flatten())
    with pytest.raises(VerificationError, match="no gradient of the loss: a layer stops or approximates gradients"):
        sdkeras.HessianOperator(sdkeras.EmpiricalLoss(mlp(*shifted), (X, Y)))
