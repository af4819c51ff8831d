"""The operator as its users meet it: data in every form, modes, subsets, refusals; the model is never touched."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.sparse.linalg import aslinearoperator, eigsh

import sdkeras
from sdkeras.errors import DataError, ModelError, NonFiniteError, VerificationError
from sdkeras.linalg.operators import DiagonallyScaledOperator
from sdkeras.operators import engine as autodiff
from sdkeras.operators import minibatches, precision
from sdkeras.operators.engine import Engine
from sdkeras.training_step import settings
from small_losses import CE, X, Y, compiled, dense, hessian, mlp

layers = keras.layers


@pytest.fixture(autouse=True)
def _seeds() -> None:
    keras.utils.set_random_seed(0)


class Sequence(keras.utils.PyDataset):
    def __init__(self) -> None:
        super().__init__()

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int):
        part = slice(8 * index, 8 * index + 8)
        return X[part], Y[part]


@pytest.fixture(scope="module")
def plain() -> tuple[keras.Model, sdkeras.HessianOperator, np.ndarray]:
    """A model, its operator on all the data, and the matrix: for what only reads them."""
    keras.utils.set_random_seed(0)
    model = mlp()
    operator = hessian(model)
    return model, operator, dense(operator)


@pytest.mark.parametrize(
    "form", [*(pytest.param(form, marks=pytest.mark.slow) for form in ("arrays", "lists")), "dataset", "pydataset"]
)
def test_every_form_of_data_gives_the_same_hessian(form: str, plain) -> None:
    model, _, whole = plain
    given = {
        "arrays": (X, Y),
        "lists": (X.tolist(), Y.tolist()),
        "dataset": tf.data.Dataset.from_tensor_slices((X, Y)).batch(8),
        "pydataset": Sequence(),
    }[form]
    operator = hessian(model, given, 8 if form in ("arrays", "lists") else None)
    assert sorted(batch.num_examples for batch in operator.loss.batches) == [6, 8, 8]
    assert np.allclose(dense(operator), whole, atol=1e-6)


class Own(keras.Model):
    def __init__(self, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.inner, self.out = layers.Dense(4, "gelu"), layers.Dense(3)

    def call(self, x: object) -> object:
        h = self.inner(x)
        self.add_loss(0.1 * keras.ops.mean(h**2))
        return self.out(h)


def test_multi_input_multi_output_dict_and_subclassed() -> None:
    a, b = keras.Input((6,), name="a"), keras.Input((2,), name="b")
    h = layers.Dense(4, "tanh")(layers.Concatenate()([a, b]))
    model = keras.Model({"a": a, "b": b}, {"p": layers.Dense(3, name="p")(h), "q": layers.Dense(1, name="q")(h)})
    model.compile("sgd", loss={"p": CE, "q": "mse"}, loss_weights={"p": 1.0, "q": 0.5})
    x = {"a": X, "b": X[:, :2]}
    y = {"p": Y, "q": X[:, :1]}
    operator = hessian(model, (x, y), 8)
    truth = model.evaluate(x, y, verbose=0, return_dict=True, batch_size=22)["loss"]
    assert np.isclose(operator.loss.value(), truth, rtol=1e-5)
    assert operator.verification.passed
    own = hessian(compiled(Own()), (X, Y), 8)
    assert own.verification.passed
    assert own.verification.finite_difference_dtype == "float64"


def test_dropout_masks_are_fixed_within_and_fresh_between_minibatches() -> None:
    model = mlp(layers.Dropout(0.5))
    operator = hessian(model, (X, Y), 22)
    v = np.ones(operator.size, np.float32)
    first, second = operator.on_minibatch(0), operator.on_minibatch(1)
    assert np.array_equal(first.matvec(v), first.matvec(v))
    assert not np.allclose(first.matvec(v), second.matvec(v))  # the same 22 samples, other masks
    still = hessian(model, (X, Y), 22, mode="inference")
    assert np.allclose(still.on_minibatch(0).matvec(v), still.on_minibatch(1).matvec(v), atol=1e-6)


def test_batch_normalization_modes_differ_and_nothing_is_touched() -> None:
    model = mlp(layers.BatchNormalization(), layers.Dropout(0.3), optimizer=keras.optimizers.Adam())
    model.fit(X, Y, epochs=2, verbose=0)

    def everything() -> tuple[object, ...]:
        values = [np.asarray(v).tobytes() for v in (*model.variables, *model.optimizer.variables)]
        return values, keras.config.floatx(), keras.config.dtype_policy().name, tf.nn.moments

    before = everything()
    found = [hessian(model, (X, Y), 8, mode=mode) for mode in ("train", "inference")]
    vector = np.ones(found[0].size, np.float32)
    assert not np.allclose(*(operator.matvec(vector) for operator in found), atol=1e-3)
    assert everything() == before


def test_parameter_subset_is_the_diagonal_block(plain) -> None:
    model, whole, matrix = plain
    part = hessian(model, params="dense_1/kernel|kernel$")
    layout = whole.loss.layout
    places = [place for name, place in zip(layout.names, layout.slices, strict=True) if name in part.loss.layout.names]
    indices = np.concatenate([np.arange(place.start, place.stop) for place in places])
    assert part.size < whole.size
    assert np.allclose(dense(part), matrix[np.ix_(indices, indices)], atol=1e-6)
    for pattern, message in (("nothing", "no trainable variable matches"), ("(", "regular expression")):
        with pytest.raises(ModelError, match=message):
            sdkeras.EmpiricalLoss(model, (X, Y), params=pattern)


def test_unconnected_parameters_are_zero_rows_and_named() -> None:
    x = keras.Input((6,))
    used, idle = layers.Dense(3, name="used")(x), layers.Dense(2, name="idle")(x)
    operator = hessian(compiled(keras.Model(x, [used, idle]), loss=[CE, None]))
    loss, found = operator.loss, dense(operator)
    assert {name.split("/")[0] for name in loss.engine("auto").unconnected} == {"idle"}
    rows = np.concatenate([found[s] for s, n in zip(loss.layout.slices, loss.layout.names, strict=True) if "idle" in n])
    assert np.all(rows == 0)


def test_tensor_in_tensor_out_and_wrong_shapes(plain) -> None:
    operator = plain[1]
    v = np.random.default_rng(0).standard_normal(operator.size).astype("float32")
    assert tf.is_tensor(operator.matvec(tf.constant(v)))
    assert np.allclose(operator.matvec(tf.constant(v)), operator.matvec(v))
    pair = operator.matmat(np.stack([v, 2 * v], axis=1))
    assert np.allclose(pair[:, 1], 2 * pair[:, 0], atol=1e-5)
    with pytest.raises(ValueError, match="shape"):
        operator.matvec(v[:-1])
    with pytest.raises(ValueError, match="shape"):
        operator.matmat(v)


def test_vectors_that_are_complex_or_not_finite_are_named(plain) -> None:
    """Not the weights. Tensors are not fetched, so that their NaN go through."""
    operator = plain[1]
    ones = np.ones(operator.size)
    step = sdkeras.UpdateMap(operator.loss, plain[0].optimizer, initial_slots=True)
    products = (operator.matvec, lambda v: operator @ np.stack([v, v], 1), lambda v: v @ operator, step.jvp, step.vjp)
    for product in products:
        with pytest.raises(TypeError, match="the vector is complex; take its real"):
            product(1j * ones)
        for value in (np.nan, -np.inf, 1e300):
            with pytest.raises(NonFiniteError, match="the vector holds NaN or infinity, or numbers too large"):
                product(np.where(np.arange(operator.size) == 3, value, ones))
    with pytest.raises(TypeError, match="the vector is complex"):
        operator @ tf.constant(1j * ones)
    assert np.all(np.isnan(operator @ tf.constant(np.nan * ones)))


def test_numpy_and_scipy_take_the_operator_as_its_matrix(plain) -> None:
    """A float32 product is good to the rounding that the operator itself reports, relative to the largest one."""
    _, operator, matrix = plain
    columns = np.random.default_rng(1).standard_normal((operator.size, 2)).astype("float32")
    error = {"rtol": 0, "atol": 1e-5 * np.abs(np.linalg.eigvalsh(matrix)).max() * np.linalg.norm(columns[:, 0])}
    whole = operator.as_matrix()
    one_by_one = [operator.matvec(unit) for unit in np.eye(operator.size, dtype=np.float32)]
    np.testing.assert_allclose(whole, np.stack(one_by_one, axis=1), **error)
    np.testing.assert_allclose(whole, whole.T, **error)
    assert whole.dtype == np.float64
    assert repr(operator) == f"<HessianOperator {len(matrix)} x {len(matrix)}, float32>"
    assert "\n" not in repr(operator.loss)
    assert f"22 samples in 1 batch, {len(matrix)} parameters, train mode" in repr(operator.loss)
    linear = aslinearoperator(operator)
    assert (linear.shape, linear.dtype) == (matrix.shape, np.float32)
    for product in (operator @ columns, linear @ columns, linear.H @ columns, (columns.T @ operator).T):
        np.testing.assert_allclose(product, matrix @ columns, **error)
    assert tf.is_tensor(operator @ tf.constant(columns[:, 0]))
    largest = eigsh(linear, 1, which="LA", return_eigenvectors=False, v0=columns[:, 0])
    assert largest == pytest.approx(np.linalg.eigvalsh(matrix)[-1:], rel=1e-5)


def upsampled() -> tuple[keras.Model, tuple[np.ndarray, np.ndarray]]:
    up = layers.UpSampling2D(interpolation="bilinear", name="up")
    model = compiled(
        keras.Input((4, 4, 1)), layers.Conv2D(2, 2), up, layers.Activation("tanh"), layers.Flatten(), layers.Dense(3)
    )
    return model, (np.random.default_rng(0).standard_normal((22, 4, 4, 1)), Y)


def test_bilinear_upsampling_is_refused_and_named() -> None:
    with pytest.raises(VerificationError, match=r"UpSampling2D \(up\)") as caught:
        hessian(*upsampled())
    assert caught.value.exit_status == 4


@pytest.mark.slow
def test_bilinear_upsampling_is_right_by_differences_alone() -> None:
    model, data = upsampled()
    with pytest.warns(UserWarning, match="failed its verification"):
        wrong = hessian(model, data, allow_unverified=True).verification
    assert not wrong.passed
    assert wrong.finite_difference_error > 0.1
    assert hessian(model, data, dtype="float64", product_mode="finite-differences").verification.passed


def test_a_wrong_product_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the exact moments the error is a few per cent, symmetric and repeatable; it must not pass."""
    monkeypatch.setattr(autodiff, "exact_moments", contextlib.nullcontext)
    by_differences = hessian(mlp(layers.LayerNormalization())).verification
    assert by_differences.mode == "finite-differences"
    assert "tf.nn.moments" in by_differences.details
    monkeypatch.setattr(autodiff, "inexact_moments", lambda graph: [])
    with pytest.raises(VerificationError):
        hessian(mlp(layers.LayerNormalization()))


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
    checked = hessian(mlp(Secret(2.0), layers.Activation("relu"))).verification
    assert checked.finite_difference_dtype == "float32"
    assert checked.passed
    assert "float64" in checked.details
    with pytest.raises(ModelError, match="get_config"):
        sdkeras.EmpiricalLoss(mlp(Secret(2.0)), (X, Y), dtype="float64")


@pytest.mark.slow
def test_float32_against_float64() -> None:
    model = mlp(layers.LayerNormalization())
    double, single = (dense(hessian(model, dtype=dtype)) for dtype in ("float64", "float32"))
    assert np.max(np.abs(double - single)) < 1e-5 * np.max(np.abs(double))


def test_mixed_precision() -> None:
    both = [layers.Dense(5, "tanh", dtype="mixed_bfloat16"), layers.Dense(3, dtype="mixed_bfloat16")]
    mixed, pure = compiled(keras.Input((6,)), *both), mlp()
    assert not precision.is_pure(mixed, "float32")
    pure.set_weights(mixed.get_weights())
    assert np.allclose(dense(hessian(mixed)), dense(hessian(pure)), atol=1e-6)


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
    for model, message in ((bare, "not compiled"), ("model", r"keras\.Model")):
        with pytest.raises(ModelError, match=message):
            sdkeras.EmpiricalLoss(model, (X, Y))
    broken = mlp()
    broken.trainable_variables[0].assign(np.full((6, 5), np.inf))
    with pytest.raises(NonFiniteError, match="loss at the model's weights"):
        sdkeras.EmpiricalLoss(broken, (X, Y))


def test_minibatches_are_drawn_as_fit_draws_them() -> None:
    loss = sdkeras.EmpiricalLoss(mlp(), (X, Y), batch_size=5)
    per_epoch = loss.source.minibatches_per_epoch
    assert per_epoch == 4
    rows = [loss.minibatch(index).tensors[0].numpy() for index in (*range(per_epoch), 2, per_epoch + 2)]
    assert all(len(part) == 5 for part in rows)
    assert len(np.unique(np.concatenate(rows[:per_epoch]), axis=0)) == 20  # no sample twice within an epoch
    assert np.array_equal(rows[-2], rows[2])
    assert not np.array_equal(rows[-1], rows[2])


def wide(first: str = "dense", regularizer: str | None = None, dtype: str = "float64") -> sdkeras.HessianOperator:
    """The Hessian on a minibatch of 8 for a first layer of 30 inputs or 40 tokens."""
    generator = np.random.default_rng(0)
    if first == "dense":
        model = compiled(keras.Input((30,)), layers.Dense(4, "tanh", kernel_regularizer=regularizer), layers.Dense(3))
        x = generator.standard_normal((22, 30))
    else:
        inner = layers.Embedding(40, 3), layers.Flatten(), layers.Dense(4, "tanh")
        model = compiled(keras.Input((3,), dtype="int32"), *inner, layers.Dense(3))
        x = generator.integers(0, 40, (22, 3))
    return hessian(model, (x, Y), 8, dtype=dtype).on_minibatch(0)


@pytest.mark.parametrize("kernel", [pytest.param(None, marks=pytest.mark.slow), "l2"])
def test_data_subspace_reduction_is_exact(kernel: str | None) -> None:
    view = wide(regularizer=kernel)
    split = view.reduced()
    assert split.multiplicity == (30 - 8) * 4
    assert split.eigenvalue == pytest.approx(0.02 if kernel else 0.0, abs=1e-9)
    small = np.linalg.eigvalsh(dense(split.operator))
    expected = np.sort(np.concatenate([small, np.full(split.multiplicity, split.eigenvalue)]))
    assert np.allclose(np.linalg.eigvalsh(dense(view)), expected, atol=1e-10)
    # A diagonal keeps a complement that is zero, and no other.
    assert (DiagonallyScaledOperator(view, np.ones(view.size)).reduced() is None) == (kernel is not None)


@pytest.mark.parametrize(
    ("first", "dtype"),
    [
        ("embedding", "float64"),
        pytest.param("dense", "float32", marks=pytest.mark.slow),
        pytest.param("dense", "float64", marks=pytest.mark.slow),
        pytest.param("embedding", "float32", marks=pytest.mark.slow),
    ],
)
def test_reduction_of_a_diagonally_scaled_hessian_is_exact(first: str, dtype: str) -> None:
    view = wide(first, dtype=dtype)
    scaled = DiagonallyScaledOperator(view, np.exp(2 * np.random.default_rng(1).standard_normal(view.size)))
    split = scaled.reduced()
    assert split.multiplicity >= 22 * 3
    assert split.operator.size + split.multiplicity == view.size
    whole = np.linalg.eigvalsh(dense(scaled))
    expected = np.sort(np.concatenate([np.linalg.eigvalsh(dense(split.operator)), np.zeros(split.multiplicity)]))
    assert np.allclose(whole, expected, atol={"float32": 1e-5, "float64": 1e-12}[dtype] * np.abs(whole).max())


def test_reduction_is_refused_where_the_kernel_is_felt_elsewhere() -> None:
    x = keras.Input((30,))
    shared = layers.Dense(30, "tanh")
    model = compiled(keras.Model(x, layers.Dense(3)(shared(shared(x)))))
    data = (np.random.default_rng(0).standard_normal((22, 30)), Y)
    assert hessian(model, data, 8).on_minibatch(0).reduced() is None


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("AdamW", {"weight_decay": 0.1}),
        ("RMSprop", {"centered": True}),
        *(
            pytest.param(name, options, marks=pytest.mark.slow)
            for name, options in (("Adam", {}), ("Adam", {"amsgrad": True}), ("Nadam", {}), ("RMSprop", {}))
        ),
    ],
)
def test_preconditioner_reproduces_the_last_step(name: str, options: dict[str, object]) -> None:
    """w_t - w_{t-1} = -eta (decay) - eta P^-1 m, with m and v from the slots: checked on a real train step."""
    model = mlp(optimizer=getattr(keras.optimizers, name)(0.01, **options))
    model.fit(X, Y, epochs=3, batch_size=22, verbose=0)
    loss = sdkeras.EmpiricalLoss(model, (X, Y))
    before, gradient = loss.point.astype(np.float64), loss.gradient()
    model.train_on_batch(X, Y)
    after = sdkeras.EmpiricalLoss(model, (X, Y)).point.astype(np.float64)
    diagonal = settings.preconditioner(model, loss.layout)
    direction = gradient
    if name != "RMSprop":  # Keras divides m by 1 - beta1^t and P holds that factor
        direction = loss.layout.flatten(model.optimizer._momentums, np.float64)
    if name == "Nadam":  # m and the gradient by the momenta u_1 ... u_(t+1), whose product starts the next correction
        u = 0.9 * (1 - 0.5 * 0.96 ** np.arange(1, int(model.optimizer.iterations) + 2))
        direction = direction * u[-1] / (1 - np.prod(u)) + gradient * (1 - u[-2]) / (1 - np.prod(u[:-1]))
    decayed = before * (1 - 0.01 * 0.1) if name == "AdamW" else before
    assert np.allclose(after, decayed - 0.01 * direction / diagonal, atol=2e-6)


def test_a_copy_in_float64_keeps_the_names_of_the_model() -> None:
    model = compiled(Own(), optimizer=keras.optimizers.Adam())
    model.fit(X, Y, verbose=0)
    single, double = (sdkeras.EmpiricalLoss(model, (X, Y), dtype=dtype) for dtype in ("float32", "float64"))
    assert double.layout == single.layout
    assert settings.preconditioner(model, double.layout).shape == (double.size,)
    kernel = model.trainable_variables[2].path
    assert sdkeras.EmpiricalLoss(model, (X, Y), params=kernel, dtype="float64").size == 12


def test_a_wrong_float32_product_does_not_pass_beside_a_right_float64_clone(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Engine.product

    def product(engine: Engine, *arguments: object) -> object:
        """Symmetric and repeatable, and in float32 wrong by 2 %."""
        return (1.02 if engine.dtype == np.float32 else 1.0) * right(engine, *arguments)

    monkeypatch.setattr(Engine, "product", product)
    with pytest.raises(VerificationError, match="analyse in float64"):
        hessian(mlp())


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
    checked = hessian(model).verification
    assert checked.mode == "finite-differences"
    assert "tf.nn.moments" in checked.details
    with pytest.raises(ModelError, match=r"tf\.nn\.moments"):
        hessian(model, product_mode="reverse-over-reverse")


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
    assert hessian(model).verification.passed
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


class OneSided(layers.Layer):
    def call(self, x):
        return x * keras.ops.stop_gradient(keras.ops.flip(x, axis=-1))


@pytest.mark.parametrize(
    ("inner", "message"),
    [
        (lambda: [OneSided(name="side")], r"OneSided \(side\); .* stop gradients on purpose"),
        # TensorFlow's gradient of a shifted image is a shift back, which is not the transpose.
        pytest.param(
            lambda: [layers.Dense(16), layers.Reshape((4, 4, 1)), layers.RandomTranslation(0.3, 0.3)],
            "no gradient of the loss: a layer stops or approximates gradients",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["stopped", "shifted"],
)
def test_a_layer_whose_derivatives_are_wrong_is_named(inner, message: str) -> None:
    with pytest.raises(VerificationError, match=message):
        hessian(mlp(*inner(), layers.Flatten()))


# The same compiled functions at other weights


def normalised_net() -> keras.Model:
    return mlp(layers.BatchNormalization(), layers.Dropout(0.3))


@pytest.mark.parametrize(
    ("dtype", "mode"),
    [
        ("float32", "inference"),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in (("float32", "train"), ("float64", "train"), ("float64", "inference"))
        ),
    ],
)
def test_now_is_the_loss_made_again(mode: str, dtype: str) -> None:
    model = normalised_net()
    operator = hessian(model, (X, Y), 8, mode=mode, dtype=dtype)
    v = np.random.default_rng(0).standard_normal((operator.size, 3)).astype(dtype)
    before = operator.matmat(v)
    generator = np.random.default_rng(1)  # another place: weights, and the averages of the normalisation
    moved = [np.abs(0.3 * generator.standard_normal(w.shape)).astype(w.dtype) for w in model.get_weights()]
    model.set_weights([w + change for w, change in zip(model.get_weights(), moved, strict=True)])
    view, again = operator.at(operator.loss.now()), hessian(model, (X, Y), 8, mode=mode, dtype=dtype)
    assert view.loss.value() == pytest.approx(again.loss.value(), rel=1e-6)
    np.testing.assert_array_equal(view.loss.point, again.loss.point)
    np.testing.assert_allclose(view.loss.gradient(), again.loss.gradient(), rtol=1e-5, atol=1e-6)
    for product, right in (
        (view.matmat(v), again.matmat(v)),
        (view.matvec(v[:, 0]), again.matvec(v[:, 0])),
        (view.on_minibatch(2).matvec(v[:, 1]), again.on_minibatch(2).matvec(v[:, 1])),
    ):
        np.testing.assert_allclose(product, right, rtol=1e-4, atol=1e-5)
    # The first one stays where it was, and everything counts together.
    np.testing.assert_array_equal(operator.matmat(v), before)
    assert view.num_products == operator.num_products
    assert not np.allclose(before, view.matmat(v), rtol=1e-2)


def test_at_takes_a_point_and_refuses_another_shape() -> None:
    operator = hessian(normalised_net(), dtype="float64")
    loss, direction = operator.loss, np.random.default_rng(2).standard_normal(operator.size)
    ahead, behind = (loss.at(loss.point + step * direction) for step in (1e-5, -1e-5))
    slope = (ahead.gradient() - behind.gradient()) / 2e-5
    np.testing.assert_allclose(slope, operator.matvec(direction), rtol=1e-5, atol=1e-7)
    assert ahead.value() == pytest.approx(loss.value(loss.point + 1e-5 * direction), rel=1e-12)
    with pytest.raises(ValueError, match=r"a point has shape \(\d+,\), got \(3,\)"):
        loss.at(np.zeros(3))


def test_an_operator_made_first_at_another_point_is_verified_there() -> None:
    loss = sdkeras.EmpiricalLoss(normalised_net(), (X, Y), mode="inference")  # without masks the clone is compared
    checked = sdkeras.HessianOperator(loss.at(loss.point + np.float32(0.2))).verification
    assert checked.passed
    assert checked.finite_difference_dtype == "float64"


@pytest.mark.parametrize("broken", ["__len__", "__getitem__"])
def test_a_dataset_of_the_users_that_fails_is_reported_as_theirs(broken, monkeypatch):
    def fails(*_):
        raise RuntimeError("no such shard")

    monkeypatch.setattr(Sequence, broken, fails)
    data = Sequence.__new__(Sequence)
    keras.utils.PyDataset.__init__(data)
    with pytest.raises(DataError, match=r"Sequence failed: RuntimeError: no such shard; correct the user code"):
        minibatches.as_source(data, batch_size=None)
