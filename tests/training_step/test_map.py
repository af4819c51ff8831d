"""The training step as a map, against what Keras does: `train_on_batch` itself, differences of it, closed forms."""

import contextlib
import io

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.sparse.linalg import aslinearoperator

import sdkeras
from sdkeras.errors import ModelError, NonFiniteError, VerificationError
from sdkeras.operators import precision
from sdkeras.operators.layout import Layout
from sdkeras.training_step import rule
from sdkeras.training_step.derivative import CompiledDerivative
from sdkeras.training_step.graph import UpdateGraph
from trainer import RATE, Trainer, by_layer, cases, dense, excluding, step_of, trained

layers = keras.layers
optimizers = keras.optimizers
X = np.random.default_rng(0).standard_normal((8, 2))
Y = np.random.default_rng(1).integers(0, 2, 8)
DATA = (X, Y)
DEAD_INPUT = (X * [1.0, 0.0], Y)
CLIPS = [{"clipnorm": 0.05}, {"global_clipnorm": 0.05}]
pytestmark = pytest.mark.usefixtures("double_precision")


@pytest.fixture
def _single_precision(double_precision: None):
    with precision.default_precision("float32"):
        yield


def net(*inner: object) -> keras.Model:
    first = layers.Dense(2, "tanh", kernel_regularizer=keras.regularizers.L2(0.01))
    return keras.Sequential([keras.Input((2,)), first, *inner, layers.Dense(2)])


def graph_of(model: keras.Model) -> UpdateGraph:
    weights = Layout.of(model.trainable_variables)
    return rule.update_rule(model.optimizer, weights, [False] * len(weights.names), "float64").graph


class Mixing(optimizers.SGD):
    """Its update keeps shapes, and yet each weight moves by the gradient of another."""

    def update_step(self, gradient, variable, learning_rate):
        super().update_step(keras.ops.flip(gradient, 0), variable, learning_rate)


class Averaging(optimizers.SGD):
    """Clips by norm, and then removes half the mean of each gradient."""

    def _clip_gradients(self, grads):
        return [g - 0.5 * tf.reduce_mean(g) for g in super()._clip_gradients(grads)]


class ClippingAgain(optimizers.SGD):
    """What Keras clips is not the gradient itself."""

    def _clip_gradients(self, grads):
        return super()._clip_gradients([g * tf.norm(g) for g in grads])


class Squashing(optimizers.SGD):
    """Another clip by norm: g / (1 + |g| / limit), at every norm."""

    def _clip_by_norm(self, values, axes=None):
        return values / (1 + tf.norm(values) / self.clipnorm)


def decaying() -> object:
    return optimizers.schedules.ExponentialDecay(RATE, 3, 0.5)


# How each map comes about: `elementwise` by diagonals, behind a clip by norm or not; the others by compiled products of
# the whole update.
CASES = {
    "sgd": (True, lambda: optimizers.SGD(RATE)),
    "sgd momentum": (True, lambda: optimizers.SGD(RATE, momentum=0.9)),
    "sgd nesterov and decay": (True, lambda: optimizers.SGD(RATE, momentum=0.9, nesterov=True, weight_decay=0.1)),
    "sgd clipnorm": (True, lambda: optimizers.SGD(RATE, clipnorm=0.05)),
    "sgd schedule": (True, lambda: optimizers.SGD(decaying(), momentum=0.5)),
    "adam": (True, lambda: optimizers.Adam(RATE)),
    "adam amsgrad": (True, lambda: optimizers.Adam(RATE, amsgrad=True)),
    "adam clipvalue": (True, lambda: optimizers.Adam(RATE, clipvalue=0.03)),
    "adam global clipnorm": (True, lambda: optimizers.Adam(RATE, global_clipnorm=0.05)),
    "adam far below the clipnorm": (True, lambda: optimizers.Adam(RATE, global_clipnorm=100.0)),
    "nadam clipnorm": (True, lambda: optimizers.Nadam(RATE, clipnorm=0.01)),
    "adamw without biases": (True, lambda: excluding(optimizers.AdamW(RATE, weight_decay=0.5), var_names=["bias"])),
    "adamax": (True, lambda: optimizers.Adamax(RATE)),
    "nadam": (True, lambda: optimizers.Nadam(RATE)),
    "adagrad": (True, lambda: optimizers.Adagrad(RATE)),
    "adadelta": (True, lambda: optimizers.Adadelta(RATE)),
    "rmsprop": (True, lambda: optimizers.RMSprop(RATE)),
    "rmsprop centered momentum": (True, lambda: optimizers.RMSprop(RATE, centered=True, momentum=0.5)),
    "ftrl": (True, lambda: optimizers.Ftrl(RATE, l1_regularization_strength=1e-3, beta=0.1)),
    "lion": (True, lambda: optimizers.Lion(2.0**-6)),
    "adafactor": (False, lambda: optimizers.Adafactor(RATE)),
    "lamb": (False, lambda: optimizers.Lamb(RATE)),
    "lamb global clipnorm": (False, lambda: optimizers.Lamb(RATE, global_clipnorm=0.05)),
    "muon": (False, lambda: optimizers.Muon(RATE)),
    "one for each kind": (False, lambda: by_layer(optimizers.SGD(decaying(), momentum=0.5), optimizers.Adam(RATE))),
    "function of no arguments": (True, lambda: optimizers.SGD(lambda: RATE)),
    "a class of one's own": (False, lambda: Mixing(RATE, momentum=0.5)),
    "gradients mixed behind the clip": (False, lambda: Averaging(RATE, clipnorm=0.05)),
    "gradients changed before the clip": (False, lambda: ClippingAgain(RATE, global_clipnorm=0.05)),
    "a clip of one's own": (False, lambda: Squashing(RATE, clipnorm=0.05)),
}


# One each: diagonals with neither clip nor second moments, with roots, behind a clip, of signs; compiled products.
QUICK = {"sgd nesterov and decay", "adam", "lion", "a class of one's own"}


@pytest.fixture(scope="module")
def by_adam() -> tuple[keras.Model, sdkeras.UpdateMap]:
    """A model and its step, for what only reads them."""
    keras.utils.set_random_seed(0)
    with precision.default_precision("float64"):
        model = trained(optimizers.Adam(RATE), net(), DATA)
        return model, step_of(model, DATA)


@pytest.mark.parametrize("case", cases(CASES, slow=", ".join(CASES.keys() - QUICK)))
def test_step_and_jacobian_are_those_of_train_on_batch(case: str, by_adam) -> None:
    """The whole matrix by central differences of Keras' own step: good to 1e-7 or so of each column."""
    elementwise, make = CASES[case]
    if case == "adam":
        model, step = by_adam
    else:
        model = trained(make(), net(), DATA)
        step = step_of(model, DATA)
    trainer = Trainer(model, step.layout.names, DATA)
    start = trainer.state()
    assert np.array_equal(step.state, start)
    assert np.max(np.abs(step.apply() - trainer(start))) < 1e-14
    jacobian = dense(step)
    truth, certain = trainer.jacobian(start, step)
    trainer.put(start)
    errors = np.max(np.abs(jacobian - truth), axis=0) - 1e-6 * np.max(np.abs(truth), axis=0)
    assert np.max(errors[certain]) <= 0
    assert np.count_nonzero(certain) >= 0.8 * step.size
    assert np.allclose(step.vjp(np.eye(step.size)), jacobian.T, rtol=1e-11, atol=1e-13 * np.max(np.abs(jacobian)))
    assert step.verification.passed
    assert step.verification.step_error < 1e-12
    assert step.verification.checked == "map"
    assert step.verification.degenerate == (case == "lion")
    assert ("degenerate" in dict(step.notes)) == (case in ("lion", "adam clipvalue", "ftrl"))
    assert (graph_of(model).owned is not None) == elementwise


def test_scipy_takes_the_jacobian_from_either_side(by_adam) -> None:
    step = by_adam[1]
    jacobian, columns = dense(step), np.random.default_rng(2).standard_normal((step.size, 2))
    linear = aslinearoperator(step)
    error = {"rtol": 1e-11, "atol": 1e-13 * np.max(np.abs(jacobian))}
    for matrix in (step.as_matrix(), linear @ np.eye(step.size), step @ np.eye(step.size)):
        np.testing.assert_allclose(matrix, jacobian, **error)
    np.testing.assert_allclose(linear.H @ columns, jacobian.T @ columns, **error)
    np.testing.assert_allclose(step @ columns[:, 0], jacobian @ columns[:, 0], **error)


def test_state_is_what_the_update_reads() -> None:
    """Slots in the optimizer's order; nothing that evolves by itself, is overwritten unread, or is only an average."""
    found = step_of(trained(optimizers.Nadam(RATE, use_ema=True), net(), DATA), DATA)
    assert found.layout.shapes == (((2, 2), (2,)) * 2 + ((2, 2), (2, 2), (2,), (2,)) * 2)
    assert [name.rsplit("_", 1)[1] for name in found.layout.names[4:]] == ["momentum", "velocity"] * 4
    held = {name.split("/")[1].partition("_")[0] for name in found.held}
    assert held == {"iteration", "learning", "variable"}  # the last is Nadam's product of momenta
    assert "averaged-weights" in dict(found.notes)
    factored = graph_of(trained(optimizers.Adafactor(RATE), net(), DATA))  # rows and columns, velocities of biases
    assert factored.layout.shapes[4:] == ((2,), (2,), (2,)) * 2


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_on_a_quadratic_in_closed_form(nesterov: bool) -> None:
    """Blocks of the momentum step: [[s - a, b], [-a, b]], Nesterov [[s - a(1 + b), b^2], [-a, b]], a = rate * H."""
    rate, beta, decay = RATE, 0.75, 0.5
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    optimizer = optimizers.SGD(rate, momentum=beta, nesterov=nesterov, weight_decay=decay)
    model.compile(excluding(optimizer, var_list=[model.layers[0].bias]), "mse")
    model.train_on_batch(X, X[:, :1])
    design = np.hstack([X, np.ones((8, 1))])
    a = rate * 2 / 8 * design.T @ design
    s, one = np.diag([1 - rate * decay, 1 - rate * decay, 1.0]), np.eye(3)
    upper = [s - a * (1 + beta), beta**2 * one] if nesterov else [s - a, beta * one]
    step = step_of(model, (X, X[:, :1]))
    assert np.allclose(dense(step), np.block([upper, [-a, beta * one]]), atol=1e-13)
    assert not np.allclose(dense(step), np.block([upper, [-1.01 * a, beta * one]]), atol=1e-3)


def test_nothing_is_touched() -> None:
    optimizer = excluding(optimizers.AdamW(RATE, weight_decay=0.1, clipnorm=0.1), var_names=["bias"])
    model = trained(optimizer, net(layers.Dropout(0.5), layers.BatchNormalization()), DATA)
    optimizer._exclude_from_weight_decay_cache.clear()
    variables = [*model.variables, *optimizer.variables]

    def everything() -> tuple[object, ...]:
        values = [np.asarray(v).tobytes() for v in variables]
        attributes = {name: repr(value) for name, value in vars(optimizer).items()}
        functions = tf.sqrt, tf.math.sqrt, tf.pow, tf.math.pow
        return values, attributes, functions, keras.config.floatx(), keras.config.dtype_policy().name

    before = everything()
    step = step_of(model, DATA)
    step.jvp(step.vjp(np.ones(step.size)))
    step.advance(step.state, step.held, step.training_batches(0), np.eye(step.size, 3))
    assert [*model.variables, *optimizer.variables] == variables
    assert everything() == before


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: optimizers.Nadam(RATE), marks=pytest.mark.slow),
        lambda: optimizers.Adam(optimizers.schedules.CosineDecay(RATE, 9), global_clipnorm=0.05),
    ],
    ids=["nadam", "adam"],
)
def test_advance_is_training_and_resumes_bit_equal(make) -> None:
    model = trained(make(), net(), DATA)
    step = step_of(model, DATA)
    trainer = Trainer(model, step.layout.names, DATA)
    state, held = step.state, step.held
    tangents = np.linalg.qr(np.random.default_rng(2).standard_normal((step.size, 3)))[0]
    seen = []
    for index in range(5):
        if index == 2:  # through a file
            file = io.BytesIO()
            np.savez(file, state=state, tangents=tangents, **{f"held/{name}": v for name, v in held.items()})
        batches = step.training_batches(index)
        seen.append((batches[0].tensors[0].numpy(), batches[0].tensors[1].numpy()))
        by_view = step.at(state, held).on_batches(batches).jvp(tangents)
        state, held, tangents = step.advance(state, held, batches, tangents)
        assert np.allclose(tangents, by_view, rtol=1e-12, atol=1e-12 * np.max(np.abs(by_view)))
        assert np.max(np.abs(state - trainer(step.state, *seen))) < 1e-13
    for name, value in held.items():
        real = next(v for v in model.optimizer.variables if v.path == name)
        assert np.allclose(value, np.asarray(real), rtol=1e-14)
    saved = np.load(io.BytesIO(file.getvalue()))
    again, carried = saved["state"], saved["tangents"]
    again_held = {name.removeprefix("held/"): saved[name] for name in saved if name.startswith("held/")}
    for index in range(2, 5):
        again, again_held, carried = step.advance(again, again_held, step.training_batches(index), carried)
    assert np.array_equal(again, state)
    assert np.array_equal(carried, tangents)
    assert all(np.array_equal(again_held[name], held[name]) for name in held)
    without = step.advance(step.state, step.held, step.training_batches(0))
    assert without[2] is None
    assert np.max(np.abs(without[0] - trainer(step.state, seen[0]))) < 1e-13


def test_accumulated_gradients_make_one_update() -> None:
    model = trained(optimizers.Adam(RATE, gradient_accumulation_steps=3), net(), DATA, 6)
    step = step_of(model, DATA, 2)
    assert "gradient-accumulation" in dict(step.notes)
    trainer = Trainer(model, step.layout.names, DATA)
    state, held, used = step.state, step.held, []
    for index in range(2):
        batches = step.training_batches(index)
        assert len(batches) == 3
        used += [tuple(part.numpy() for part in batch.tensors) for batch in batches]
        assert np.allclose(step.at(state, held).on_batches(batches).apply(), trainer(step.state, *used), atol=1e-14)
        state, held, _ = step.advance(state, held, batches)
        assert np.allclose(state, trainer(step.state, *used), atol=1e-14)


@pytest.mark.parametrize("limit", [None, pytest.param(100.0, marks=pytest.mark.slow)])
def test_zero_second_moments_make_no_nan(limit: float | None) -> None:
    """An input that is always 0 has second moments of exactly 0; its weights still answer to a gradient, by -a/eps."""
    model = keras.Sequential([keras.Input((2,)), layers.Dense(2, "tanh"), layers.Dense(2)])
    step = step_of(trained(optimizers.Adam(RATE, global_clipnorm=limit), model, DEAD_INPUT), DEAD_INPUT)
    assert step.verification.zero_roots == 2
    assert "2 of" in dict(step.notes)["zero-second-moments"]
    jacobian = dense(step)
    assert np.all(np.isfinite(jacobian))
    names, slices = step.layout.names, step.layout.slices
    momentum = slices[next(k for k, name in enumerate(names) if name.endswith("kernel_momentum"))]
    weight, own = 2, momentum.start + 2  # first of the two weights of the dead input, and its momentum
    t = 4
    beta_1, beta_2 = float(np.float32(0.9)), float(np.float32(0.999))  # as Keras casts them
    rate = RATE * np.sqrt(1 - beta_2**t) / (1 - beta_1**t)
    assert np.isclose(jacobian[weight, own], -0.9 * rate / 1e-7, rtol=1e-6)
    velocity = own + step.layout.sizes[0]
    assert jacobian[weight, velocity] == 0


@pytest.mark.slow
def test_tangents_of_zero_roots_are_nan_without_the_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rule, "exact_roots", lambda counts=None: contextlib.nullcontext())
    model = keras.Sequential([keras.Input((2,)), layers.Dense(2, "tanh"), layers.Dense(2)])
    trained(optimizers.Lamb(RATE), model, DEAD_INPUT, 1)
    with pytest.raises(NonFiniteError):
        step_of(model, DEAD_INPUT)


def test_optimizer_without_slots() -> None:
    model = trained(excluding(optimizers.AdamW(RATE, weight_decay=0.5), var_names=["bias"]), net(), DATA, 0)
    with pytest.raises(ModelError, match=r"initial_slots=True"):
        step_of(model, DATA)
    step = step_of(model, DATA, initial_slots=True)
    assert not model.optimizer.built
    assert np.all(step.state[12:] == 0)
    assert "all zero" in step.verification.details
    start = step.state
    model.train_on_batch(X, Y)
    assert np.allclose(step.apply()[:12], np.concatenate([np.ravel(v) for v in model.trainable_variables]), atol=1e-14)
    assert not np.allclose(step.apply()[:12], start[:12])
    assert step_of(trained(optimizers.SGD(RATE), net(), DATA, 0), DATA).size == 12  # no slots to miss


@pytest.mark.parametrize("limits", [CLIPS[0], pytest.param(CLIPS[1], marks=pytest.mark.slow)])
def test_clip_in_closed_form(limits: dict[str, float]) -> None:
    """SGD: J = I - rate C H with C = (c/|g|)(I - g g'/|g|^2), of each variable or of the whole gradient."""
    step = step_of(trained(optimizers.SGD(RATE, **limits), net(), DATA), DATA)
    hessian, g = sdkeras.HessianOperator(step.loss).matvec, step.loss.gradient()
    parts = step.layout.slices if "clipnorm" in limits else [slice(0, step.size)]
    clip = np.eye(step.size)
    for part in parts:
        norm = np.linalg.norm(g[part])
        if norm > 0.05:
            clip[part, part] = 0.05 / norm * (clip[part, part] - np.outer(g[part], g[part]) / norm**2)
    assert not np.array_equal(clip, np.eye(step.size))
    matrix = np.stack([hessian(row) for row in np.eye(step.size)])
    assert np.allclose(dense(step), np.eye(step.size) - RATE * clip @ matrix, atol=1e-14)
    assert not np.allclose(dense(step), np.eye(step.size) - RATE * 0.99 * clip @ matrix, atol=1e-6)


@pytest.mark.parametrize("limit", [CLIPS[0], pytest.param(CLIPS[1], marks=pytest.mark.slow)])
def test_clip_of_a_zero_gradient_is_the_identity(limit: dict[str, float]) -> None:
    """Zero weights behind a zero target: no gradient anywhere, and J = I - rate H."""
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1, kernel_initializer="zeros")])
    model.compile(optimizers.SGD(RATE, **limit), "mse")
    model.train_on_batch(X, np.zeros((8, 1)))
    step = step_of(model, (X, np.zeros((8, 1))))
    assert graph_of(model).clip is not None
    design = np.hstack([X, np.ones((8, 1))])
    assert np.allclose(dense(step), np.eye(3) - RATE * 2 / 8 * design.T @ design, atol=1e-14)


@pytest.mark.parametrize("microbatches", [pytest.param(None, marks=pytest.mark.slow), 2])
def test_embeddings_whose_rows_are_looked_up_once(microbatches: int | None) -> None:
    """Real training gives their gradients as rows; a row that no batch looks up has second moments of 0."""
    data = np.array([[0, 1, 2], [3, 4, 5]]), np.array([0, 1])  # of 7
    first = [keras.Input((3,), dtype="int32"), layers.Embedding(7, 2), layers.Flatten()]
    model = keras.Sequential([*first, layers.Dense(2, "tanh"), layers.Dense(2)])
    trained(optimizers.Adam(RATE, gradient_accumulation_steps=microbatches), model, data, 4)
    step = step_of(model, data)
    batches = (data,) * step.microbatches
    trainer = Trainer(model, step.layout.names, data)
    start = trainer.state()
    assert np.max(np.abs(step.apply() - trainer(start, *batches))) < 1e-14
    assert step.loss.engine().looked_up == (model.trainable_variables[0].path,)
    tangent = np.random.default_rng(0).standard_normal(step.size)
    slots = slice(step.num_weights, None)
    tangent[slots] *= start[slots]  # second moments in proportion, so that 0 stays 0
    shift = 1e-6 * tangent
    truth = (trainer(start + shift, *batches) - trainer(start - shift, *batches)) / 2e-6
    assert np.max(np.abs(step.jvp(tangent) - truth)) < 1e-5 * np.max(np.abs(truth))


@pytest.mark.slow
def test_a_model_trained_in_float64_can_be_analysed_in_float32(by_adam) -> None:
    """The optimizer's slots keep their float64; the step is checked from slots rounded as the map has them."""
    model, double = by_adam
    step = step_of(model, DATA, dtype="float32")
    assert step.dtype == np.float32
    assert np.asarray(model.optimizer.variables[2]).dtype == np.float64
    assert step.verification.step_error < 1e-12
    found = dense(step)
    assert np.allclose(found, dense(double), atol=1e-4 * np.max(np.abs(found)))


@pytest.mark.usefixtures("_single_precision")
def test_mixed_precision_uses_the_optimizer_inside() -> None:
    keras.config.set_dtype_policy("mixed_float16")
    model = trained(optimizers.SGD(RATE, momentum=0.5), net(), DATA, 2)
    assert type(model.optimizer).__name__ == "LossScaleOptimizer"
    step = step_of(model, DATA, dtype="float32")
    assert step.dtype == np.float32
    assert step.verification.checked == "update"
    assert not [name for name in step.held if "scale" in name]
    velocity = step.state[12:] * 0.5 - RATE * step.loss.gradient()
    assert np.allclose(step.apply(), np.concatenate([step.state[:12] + velocity, velocity]), atol=1e-6)


@pytest.mark.usefixtures("_single_precision")
@pytest.mark.parametrize(
    "options",
    [
        pytest.param(CLIPS[0], marks=pytest.mark.slow),
        CLIPS[1],
        pytest.param({"weight_decay": 0.5, "amsgrad": True}, marks=pytest.mark.slow),
    ],
    ids=["clipnorm", "global clipnorm", "amsgrad"],
)
def test_float32_map_is_the_float64_map_rounded(options: dict[str, object]) -> None:
    """Any number of columns, and tensors in and out."""
    model = trained(excluding(optimizers.Adam(RATE, **options), var_names=["bias"]), net(), DATA)
    single, double = (step_of(model, DATA, dtype=dtype) for dtype in ("float32", "float64"))
    assert (single.dtype, double.dtype) == (np.float32, np.float64)
    assert (graph_of(model).clip is not None) == (options in CLIPS)
    assert single.verification.jvp_relative_error < (1e-4 if options in CLIPS else 1e-5)
    matrix = dense(double)
    scale = np.max(np.abs(matrix))
    assert np.allclose(dense(single), matrix, atol=1e-5 * scale)
    assert np.allclose(single.vjp(np.eye(single.size)), matrix.T, atol=1e-5 * scale)
    columns = np.random.default_rng(0).standard_normal((single.size, 70))
    assert np.allclose(single.jvp(columns)[:, 69], single.jvp(columns[:, 69]), rtol=1e-4, atol=1e-5 * scale)
    given = tf.constant(columns[:, :2], tf.float32)
    assert tf.is_tensor(single.vjp(given))
    assert np.allclose(single.vjp(given), single.vjp(columns[:, :2]), rtol=0, atol=1e-5 * scale)
    with pytest.raises(ValueError, match="shape"):
        single.jvp(np.ones(single.size + 1))


@pytest.mark.slow
def test_minibatches_share_the_compiled_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained(optimizers.Adam(RATE), net(layers.Dropout(0.5)), DATA)
    step = step_of(model, DATA, 4)
    v = np.ones(step.size)
    first = step.on_minibatch(0).jvp(v)
    with monkeypatch.context() as patched:
        patched.setattr(tf, "function", None)
        assert not np.allclose(first, step.on_minibatch(1).jvp(v))
        assert np.array_equal(first, step.on_minibatch(0).jvp(v))
    carried = step.advance(step.state, step.held, step.training_batches(1), v)[2]
    assert np.allclose(carried, step.on_minibatch(1).jvp(v), rtol=1e-12, atol=1e-12 * np.max(np.abs(carried)))
    hessian = sdkeras.HessianOperator(step.loss)
    other = optimizers.SGD(RATE)
    other.build(model.trainable_variables)
    plain = sdkeras.UpdateMap(step.loss, other)
    assert np.allclose(plain.on_minibatch(3).jvp(v[:12]), v[:12] - RATE * hessian.on_minibatch(3).matvec(v[:12]))


def test_misfits_are_refused(by_adam) -> None:
    model, step = by_adam
    part = sdkeras.EmpiricalLoss(model, DATA, params="kernel", dtype="float64")
    with pytest.raises(ModelError, match="without params"):
        sdkeras.UpdateMap(part, model.optimizer)
    with pytest.raises(ModelError, match=r"model\.optimizer"):
        sdkeras.UpdateMap(part, "adam")
    before = model.get_weights()
    model.set_weights([1.01 * weight for weight in before])
    with pytest.raises(ModelError, match="make the loss again"):
        sdkeras.UpdateMap(step.loss, model.optimizer)
    model.set_weights(before)
    with pytest.raises(ModelError, match="held values"):
        step.advance(step.state, {}, step.training_batches(0))


class Forgetful(optimizers.SGD):
    """Its configuration leaves out what its step depends on."""

    def __init__(self, factor: float = 1.0, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.factor = factor

    def update_step(self, gradient, variable, learning_rate):
        super().update_step(self.factor * gradient, variable, learning_rate)


class Hidden(optimizers.SGD):
    """Keeps state in a variable of its own that Keras does not know."""

    def build(self, variables):
        super().build(variables)
        self.__dict__["hidden"] = [tf.Variable(tf.zeros(v.shape, v.dtype)) for v in variables]

    def update_step(self, gradient, variable, learning_rate):
        self.hidden[self._get_variable_index(variable)].assign_add(gradient)
        super().update_step(gradient, variable, learning_rate)


def test_a_step_that_is_not_the_optimizers_is_refused() -> None:
    with pytest.raises(VerificationError, match="differs from the optimizer's own") as caught:
        step_of(trained(Forgetful(factor=0.5, learning_rate=RATE), net(), DATA), DATA)
    assert caught.value.exit_status == 4
    if hasattr(optimizers, "ScheduleFreeAdamW"):
        with pytest.raises(VerificationError, match=r"kept and read after an assignment"):
            step_of(trained(optimizers.ScheduleFreeAdamW(RATE), net(), DATA), DATA)
    with pytest.raises(ModelError, match="add_variable"):
        step_of(trained(Hidden(learning_rate=RATE), net(), DATA), DATA)


@pytest.mark.parametrize("transpose_only", [False, True])
def test_a_wrong_derivative_is_refused(monkeypatch: pytest.MonkeyPatch, transpose_only: bool) -> None:
    """One per cent in one diagonal of the update must not pass, nor a transpose that is not one."""
    right = rule.UpdateRule.linearize

    def wrong(self, *arguments):
        *new, derivative = right(self, *arguments)
        size, n = self.size, self.num_weights
        in_state = derivative.push(np.eye(size), np.zeros((size, n))).T
        in_gradient = derivative.push(np.zeros((n, size)), np.eye(n)).T
        off = in_state.copy()
        for name, place in zip(self.layout.names, self.layout.slices, strict=True):
            if name.endswith("velocity"):
                off[:n, place] *= 1.01
        pushed = in_state if transpose_only else off
        return *new, CompiledDerivative(
            lambda tangents, slopes: tangents @ pushed.T + slopes @ in_gradient.T,
            lambda cotangents: (cotangents @ off, cotangents @ in_gradient),
        )

    monkeypatch.setattr(rule.UpdateRule, "linearize", wrong)
    with pytest.warns(UserWarning, match="failed its verification"):
        step = step_of(trained(optimizers.Adam(RATE), net(), DATA), DATA, allow_unverified=True)
    found = step.verification
    assert not found.passed
    assert (found.finite_difference_error < 1e-8) == transpose_only
    assert (found.adjoint_error > 1e-7) == transpose_only


@pytest.mark.slow
@pytest.mark.usefixtures("_single_precision")
def test_a_slot_of_rounding_alone_does_not_fail_the_adjoint_check() -> None:
    """The bias before batch normalization has no gradient but rounding, and so has its velocity."""
    generator = np.random.default_rng(0)
    data = generator.standard_normal((70, 6)).astype("float32"), generator.integers(0, 3, 70)
    inner = [layers.Dense(5), layers.BatchNormalization(), layers.Activation("tanh"), layers.Dense(3)]
    model = keras.Sequential([keras.Input((6,)), *inner])
    trained(optimizers.SGD(RATE, momentum=0.9, nesterov=True, weight_decay=1e-4), model, data, 0)
    model.fit(*data, batch_size=16, epochs=10, verbose=0)
    step = step_of(model, data, 16, dtype="float32")
    places = zip(step.layout.names, step.layout.slices, strict=True)
    bias = next(part for name, part in places if "bias" in name and "momentum" in name)
    assert 0 < np.max(np.abs(step.state[bias])) < 1e-6
    assert step.verification.adjoint_error < 1e-6


@pytest.mark.parametrize("iteration", [pytest.param(60, marks=pytest.mark.slow), 240])
@pytest.mark.parametrize(
    "schedule",
    [optimizers.schedules.CosineDecay(0.1, 288), optimizers.schedules.ExponentialDecay(0.1, 100, 0.5)],
    ids=["cosine", "exponential"],
)
def test_a_schedule_is_not_refused_for_the_rounding_of_its_rate(schedule: object, iteration: int) -> None:
    """Keras computes it in float32, with other roundings in a graph than without one."""
    model = keras.Sequential([keras.Input((2,)), layers.Dense(3, "tanh"), layers.Dense(2)])
    trained(optimizers.SGD(schedule, momentum=0.9), model, DATA, 1)
    model.optimizer.iterations.assign(iteration)
    step = step_of(model, DATA)
    assert step.verification.passed
    assert step.verification.step_error < 1e-9


def test_a_rate_that_is_not_the_schedules_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained(optimizers.SGD(optimizers.schedules.CosineDecay(0.1, 288)), net(), DATA, 1)
    own = rule.UpdateRule.rates
    monkeypatch.setattr(rule.UpdateRule, "rates", lambda self, held: [1.00001 * rate for rate in own(self, held)])
    with pytest.raises(VerificationError, match="step differs"):
        step_of(model, DATA)
