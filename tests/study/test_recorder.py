"""What a recorder keeps is what training went through, and training goes the same way without it."""

import attrs
import keras
import numpy as np
import pytest
import tensorflow as tf

from sdkeras.errors import DataError, ModelError, OperatorSizeError, SdkerasError, VerificationError
from sdkeras.operators import minibatches, precision
from sdkeras.operators.loss import EmpiricalLoss
from sdkeras.study import recorder as module
from sdkeras.study.recorder import ExampleLosses, Trajectory, TrajectoryRecorder
from sdkeras.study.simulate import simulate
from sdkeras.study.topology import euclidean_distances, loss_distances
from sdkeras.training_step.map import UpdateMap

layers = keras.layers
RNG = np.random.default_rng(0)
X = RNG.standard_normal((22, 3)).astype(np.float32)
Y = RNG.integers(0, 2, 22)


def net(*inner: keras.layers.Layer, optimizer: object = None, **compiled: object) -> keras.Model:
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((3,)), layers.Dense(4, "tanh"), *inner, layers.Dense(2)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer or keras.optimizers.Adam(0.05), loss, **compiled)
    return model


def weights(model: keras.Model) -> np.ndarray:
    return np.concatenate([np.asarray(v).ravel() for v in model.trainable_variables])


class Witness(keras.callbacks.Callback):
    """All iterates, kept the plain way."""

    def on_train_begin(self, logs=None) -> None:
        self.seen: list[np.ndarray] = []

    def on_train_batch_end(self, batch, logs=None) -> None:
        self.seen.append(weights(self.model))


def fit(model: keras.Model, *callbacks: keras.callbacks.Callback, epochs: int = 3) -> None:
    model.fit(X, Y, batch_size=5, epochs=epochs, verbose=0, callbacks=list(callbacks))


def test_training_is_untouched() -> None:
    """With dropout and batch normalization, losses and a projection: every variable is the same to the bit."""
    plain = net(layers.BatchNormalization(), layers.Dropout(0.5, seed=3))
    fit(plain)
    draws = tf.random.uniform([3]).numpy()
    watched = net(layers.BatchNormalization(), layers.Dropout(0.5, seed=3))
    fit(watched, TrajectoryRecorder(projection=4, losses_on=(X, Y)))
    assert np.array_equal(tf.random.uniform([3]).numpy(), draws)
    for first, second in zip(
        [*plain.variables, *plain.optimizer.variables],
        [*watched.variables, *watched.optimizer.variables],
        strict=True,
    ):
        assert np.array_equal(np.asarray(first), np.asarray(second)), first.path


@pytest.mark.parametrize(
    ("every", "last"),
    [pytest.param(1, 100, marks=pytest.mark.slow), (1, 4), (3, 100), pytest.param(4, 2, marks=pytest.mark.slow)],
)
def test_the_last_iterates_are_kept_in_order(every: int, last: int) -> None:
    witness, recorder = Witness(), TrajectoryRecorder(every=every, last=last)
    fit(net(), witness, recorder)  # 15 steps
    expected = list(range(every, 16, every))[-last:]
    kept = recorder.trajectory
    assert kept.iterations.tolist() == expected
    assert np.array_equal(kept.iterates, np.stack([witness.seen[k - 1] for k in expected]))
    assert kept.iterates.dtype == np.float32
    assert (kept.num_parameters, kept.losses, kept.distortion, kept.stopped_at) == (26, None, None, None)


class Stops(keras.callbacks.Callback):
    """Ctrl-C at a step."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self._step = step

    def on_train_batch_begin(self, batch, logs=None) -> None:
        self._step -= 1
        if self._step == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("projection", [None, pytest.param(5, marks=pytest.mark.slow)])
def test_what_was_recorded_before_an_interruption_is_there(tmp_path, projection: int | None) -> None:
    recorder = TrajectoryRecorder(projection=projection, last=6, path=tmp_path / "run.npz", losses_on=(X, Y))
    with pytest.raises(SdkerasError, match="nothing is recorded"):
        recorder.save()
    model, witness = net(), Witness()
    with pytest.raises(KeyboardInterrupt):
        fit(model, Stops(10), recorder, witness)
    kept = recorder.trajectory
    assert kept.iterations.tolist() == [4, 5, 6, 7, 8, 9]
    assert kept.losses.shape == (6, 22)
    if projection is None:
        assert np.array_equal(kept.iterates, np.stack(witness.seen[3:]))
    assert not (tmp_path / "run.npz").exists()
    recorder.save()
    recorder.save(tmp_path / "other.npz")
    for name in ("run.npz", "other.npz"):
        assert np.array_equal(Trajectory.load(tmp_path / name).iterates, kept.iterates)
    fit(model, recorder, epochs=1)
    assert recorder.trajectory.iterations.tolist() == [10, 11, 12, 13, 14]
    assert Trajectory.load(tmp_path / "run.npz").iterations.tolist() == [10, 11, 12, 13, 14]
    pathless = TrajectoryRecorder()
    fit(net(), pathless, epochs=1)
    with pytest.raises(SdkerasError, match="has no path"):
        pathless.save()


def test_a_trajectory_under_way_can_be_looked_at() -> None:
    """At every step, with a projection as well: the rest comes out as if nobody had looked."""

    class Looks(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None) -> None:
            assert full.trajectory.iterations[-1] == projected.trajectory.iterations[-1] == len(witness.seen)
            assert np.array_equal(full.trajectory.iterates[-1], witness.seen[-1])

    full, projected, witness = TrajectoryRecorder(last=4), TrajectoryRecorder(last=4, projection=9), Witness()
    unseen = TrajectoryRecorder(last=4, projection=9)
    assert full.trajectory is None
    fit(net(), unseen, full, projected, witness, Looks())
    assert np.array_equal(full.trajectory.iterates, np.stack(witness.seen[-4:]))
    np.testing.assert_allclose(projected.trajectory.iterates, unseen.trajectory.iterates, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("projection", [None, 5])
def test_an_iterate_that_is_half_written_does_not_count(monkeypatch, projection: int | None) -> None:
    """Ctrl-C within the writing of the seventh, with the ring full: the six before it, none of them touched."""
    model = net()
    settings = module.RecordingSettings(last=6, projection=projection, losses_on=(X, Y))
    whole, broken = (module.Recording(model, settings) for _ in range(2))
    values = [[np.full(v.shape, float(step), np.float32) for v in model.trainable_variables] for step in range(1, 9)]
    for step in range(1, 8):
        whole.add(step, values[step])
        broken.add(step, values[step])

    class Torn(np.ndarray):
        def __setitem__(self, where, what) -> None:
            super().__setitem__(where, what)
            raise KeyboardInterrupt

    expected = whole.finished()

    class TornDict(dict):
        def __setitem__(self, where, what) -> None:
            super().__setitem__(where, what)
            raise KeyboardInterrupt

    if projection is None:
        broken._losses = broken._losses.view(Torn)
    else:
        broken._waiting = TornDict(broken._waiting)
    with pytest.raises(KeyboardInterrupt):
        broken.add(8, values[0])
    kept = broken.finished()
    assert kept.iterations.tolist() == expected.iterations.tolist() == [2, 3, 4, 5, 6, 7]
    assert np.array_equal(kept.iterates, expected.iterates)
    assert np.array_equal(kept.losses, expected.losses)


def test_steps_per_execution_are_counted_by_the_optimizer() -> None:
    recorder = TrajectoryRecorder(every=2)
    fit(net(steps_per_execution=3), recorder, epochs=1)
    assert recorder.trajectory.iterations.tolist() == [3, 5]


def test_losses_are_those_of_each_example_in_inference_mode() -> None:
    """By hand, from the kept weights; dropout and regularisers are not in them."""
    model = net(layers.Dropout(0.5), layers.ActivityRegularization(l2=0.3))
    recorder = TrajectoryRecorder(losses_on=(X[:7], Y[:7]))
    fit(model, recorder)
    kept = recorder.trajectory
    assert kept.losses.shape == (15, 7)
    for iterate, losses in zip(kept.iterates[::5].astype(float), kept.losses[::5], strict=True):
        hidden = np.tanh(X[:7] @ iterate[:12].reshape(3, 4) + iterate[12:16])
        logits = hidden @ iterate[16:24].reshape(4, 2) + iterate[24:]
        expected = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(7), Y[:7]]
        np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=2e-6)
    assert loss_distances(kept.losses)[2] == pytest.approx(np.abs(kept.losses[0] - kept.losses[3]).mean(), rel=1e-5)


@pytest.mark.parametrize("loss", ["mse", keras.losses.Huber(), lambda y, p: keras.ops.mean((y - p) ** 4, axis=-1)])
def test_losses_of_every_kind_have_the_compiled_loss_as_their_mean(monkeypatch, loss: object) -> None:
    """Targets of one number without an axis of their own, as Keras takes them; several chunks, a ragged last one."""
    monkeypatch.setattr(module, "_CHUNK", 8)
    model = keras.Sequential([keras.Input((3,)), layers.Dense(4, "tanh"), layers.Dense(1)])
    model.compile("sgd", loss)
    y = Y.astype(np.float32)[:, None]
    losses = ExampleLosses(model, X, y)(model.trainable_variables)
    assert losses.shape == (22,)
    assert losses.mean() == pytest.approx(model.evaluate(X, y, verbose=0), rel=1e-5)
    assert np.ptp(losses) > 0
    if loss == "mse":
        np.testing.assert_allclose(losses, (model.predict(X, verbose=0) - y)[:, 0] ** 2, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(ExampleLosses(model, X, y[:, 0])(model.trainable_variables), losses, rtol=1e-6)


def test_losses_of_two_outputs_add_up() -> None:
    inputs = keras.Input((3,))
    model = keras.Model(inputs, {"a": layers.Dense(1)(inputs), "b": layers.Dense(2)(inputs)})
    model.compile("sgd", {"a": "mse", "b": "mae"}, loss_weights={"a": 1.0, "b": 0.5})
    y = {"a": X[:, :1], "b": X[:, 1:]}
    losses = ExampleLosses(model, X, y)(model.trainable_variables)
    out = model.predict(X, verbose=0)
    expected = ((out["a"] - y["a"]) ** 2).mean(axis=1) + 0.5 * np.abs(out["b"] - y["b"]).mean(axis=1)
    np.testing.assert_allclose(losses, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "waiting", [pytest.param(1, marks=pytest.mark.slow), 2818 * 4 * 4, pytest.param(2**20, marks=pytest.mark.slow)]
)
def test_projections_keep_distances(monkeypatch, waiting: int) -> None:
    """However many wait to be projected together, and past the end of the ring."""
    monkeypatch.setattr(module, "_WAITING_BYTES", waiting)
    full, projected = TrajectoryRecorder(last=7), TrajectoryRecorder(last=7, projection=2000, seed=4)
    fit(net(layers.Dense(400, "tanh")), full, projected)
    assert full.trajectory.num_parameters == 2818
    kept = projected.trajectory
    assert kept.iterates.shape == (7, 2000)
    assert kept.iterations.tolist() == full.trajectory.iterations.tolist()
    true, seen = euclidean_distances(full.trajectory.iterates), euclidean_distances(kept.iterates)
    ratios = seen / true
    # Squared distances have relative standard deviation sqrt(2/2000); over 21 pairs 5 of them.
    assert np.max(np.abs(ratios - 1)) < 5 * np.sqrt(2 / 2000) / 2
    assert kept.distortion.bound < 0.2
    assert 0 < kept.distortion.measured < kept.distortion.bound
    assert 0 < kept.distortion.num_pairs <= 48


def test_a_file_gives_the_trajectory_back(tmp_path) -> None:
    recorder = TrajectoryRecorder(projection=5, losses_on=(X, Y), path=tmp_path / "run.npz", dtype="float64")
    fit(net(), recorder)
    read, own = Trajectory.load(tmp_path / "run.npz"), recorder.trajectory
    np.testing.assert_equal(attrs.asdict(read), attrs.asdict(own))
    assert read.iterates.dtype == read.losses.dtype == own.losses.dtype == np.float64
    assert [path.name for path in tmp_path.iterdir()] == ["run.npz"]
    np.savez(tmp_path / "other.npz", x=X, y=Y)
    with pytest.raises(SdkerasError, match=r"other\.npz"):
        Trajectory.load(tmp_path / "other.npz")


def test_a_training_that_diverges_goes_on_and_the_record_ends() -> None:
    model = keras.Sequential([keras.Input((3,)), layers.Dense(1)])
    model.compile(keras.optimizers.SGD(1e6), "mse")
    recorder, witness = TrajectoryRecorder(), Witness()
    model.fit(X, X[:, :1], batch_size=5, epochs=10, verbose=0, callbacks=[recorder, witness])
    kept = recorder.trajectory
    assert len(witness.seen) == 50
    assert 1 < kept.stopped_at < 50
    assert kept.iterations.tolist() == list(range(1, kept.stopped_at))
    assert np.all(np.isfinite(kept.iterates))
    model = keras.Sequential([keras.Input((3,)), layers.Dense(1)])
    model.compile(keras.optimizers.SGD(1e6), "mse")
    simulated = simulate(model, (X, X[:, :1]), steps=50, batch_size=5, allow_unverified=True)
    assert 1 < simulated.stopped_at < 50
    assert np.all(np.isfinite(simulated.iterates))


def test_a_fitted_minibatch_without_curvature_in_float32_is_stepped_through_all_the_same() -> None:
    """Probabilities of all but 1: products in float32 are rounding, and are not called the work of a layer."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(40, 3)).astype(np.float32)
    x[np.arange(40), np.argmax(x, axis=1)] += 1
    y = np.argmax(x, axis=1)
    model = keras.Sequential(
        [keras.Input((3,)), layers.Dense(6, "relu", use_bias=False), layers.Dense(3, use_bias=False)]
    )
    model.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    signs = np.hstack([np.eye(3), -np.eye(3)])
    model.set_weights([14 * signs, signs.T + 0.1 * generator.normal(size=(6, 3))])
    source = minibatches.as_source((x, y), batch_size=8)
    with pytest.raises(VerificationError, match="float32") as caught:
        UpdateMap(EmpiricalLoss(model, source, dtype="float32", num_samples=40, seed=0), model.optimizer)
    assert "a layer stops" not in str(caught.value)
    kept = simulate(model, (x, y), steps=5, batch_size=40, last=5)
    assert kept.stopped_at is None
    for _ in range(5):
        model.train_on_batch(x, y)
    np.testing.assert_allclose(kept.iterates[-1], weights(model), rtol=1e-6)


def test_a_step_that_is_not_the_optimizers_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdkeras.training_step.verification.ALLOWED_STEP", 0.0)
    with pytest.raises(VerificationError, match="its step differs from the optimizer's own"):
        simulate(net(optimizer=keras.optimizers.SGD(0.1)), (X, Y), steps=3)


def test_a_simulation_goes_where_training_goes() -> None:
    """In float64, against `train_on_batch` on the same minibatches; the model itself stays."""
    with precision.default_precision("float64"):
        model = net(optimizer=keras.optimizers.SGD(0.1, momentum=0.9))
        model.train_on_batch(X, Y)
        before = [np.asarray(v).copy() for v in (*model.variables, *model.optimizer.variables)]
        kept = simulate(
            model, (X, Y), steps=12, batch_size=5, every=2, last=4, seed=3, dtype="float64", losses_on=(X[:6], Y[:6])
        )
        after = [np.asarray(v) for v in (*model.variables, *model.optimizer.variables)]
        assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
        assert kept.iterations.tolist() == [6, 8, 10, 12]
        source = minibatches.as_source((X, Y), batch_size=5, default_batch_size=None, limit=None)
        for index in range(12):
            model.train_on_batch(*source.minibatch(index, 3))
            if index + 1 in kept.iterations:
                row = kept.iterations.tolist().index(index + 1)
                np.testing.assert_allclose(kept.iterates[row], weights(model), rtol=1e-10, atol=1e-12)
                losses = ExampleLosses(model, X[:6], Y[:6])(model.trainable_variables)
                np.testing.assert_allclose(kept.losses[row], losses, rtol=1e-9)
        assert np.ptp(kept.losses[:, 0]) > 0


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: TrajectoryRecorder(every=0), "every is 0"),
        (lambda: TrajectoryRecorder(dtype="float16"), "float16"),
        (lambda: TrajectoryRecorder(losses_on=X), r"losses_on is a ndarray of shape \(22, 3\); give a pair \(x, y\)"),
        (lambda: TrajectoryRecorder(losses_on=(X, Y, Y)), "tuple of length 3"),
        (lambda: fit(net(), TrajectoryRecorder(losses_on=(X, Y[:3]))), "different numbers of samples"),
        (lambda: fit(net(), TrajectoryRecorder(projection=26)), "projection is 26, and there are 26 weights"),
        (lambda: simulate(net(), (X, Y), steps=4, projection=26, initial_slots=True), "there are 26 weights"),
        (lambda: simulate(net(), (X, Y), steps=3, every=2), "steps is 3"),
    ],
)
def test_settings_out_of_range_are_refused(call, said: str) -> None:
    with pytest.raises(SdkerasError, match=said):
        call()


def test_what_cannot_be_recorded_is_refused(monkeypatch) -> None:
    with pytest.raises(ModelError, match="not compiled"):
        ExampleLosses(keras.Sequential([keras.Input((3,)), layers.Dense(2)]), X, Y)
    masked = keras.Sequential([keras.Input((4,)), layers.Embedding(5, 3, mask_zero=True), layers.Dense(1)])
    masked.compile("sgd", "mse")
    tokens = np.array([[1, 2, 0, 0], [3, 1, 2, 0]])
    with pytest.raises(ModelError, match="mask"):
        ExampleLosses(masked, tokens, np.zeros((2, 4, 1)))(masked.trainable_variables)
    monkeypatch.setattr(module, "available_memory", lambda: 1000)
    with pytest.raises(OperatorSizeError, match="projection"):
        fit(net(), TrajectoryRecorder())


class Subclassed(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.dense = layers.Dense(2)

    def call(self, x):
        return self.dense(x)


@pytest.mark.parametrize(
    ("make", "x", "y", "said"),
    [
        (
            net,
            np.zeros((5, 4)),
            Y[:5],
            r"the model expects inputs of shape \(None, 3\), the data have x of shape \(5, 4\)",
        ),
        (Subclassed, np.zeros((5, 4)), Y[:5], r"expected axis -1 of input shape to have value 3.*\(2, 4\)\. The data"),
        (lambda: keras.Sequential([layers.Dense(2)]), np.zeros((5, 4)), Y[:5], r"inputs of shape \(None, 3\)"),
        (net, X, Y + 1, "y holds the label 2"),
        (net, X, np.zeros((22, 3)), r"losses of these examples cannot be taken: .*Dimensions must be equal"),
    ],
    ids=["sequential", "subclassed", "unbuilt", "labels", "loss"],
)
def test_examples_that_do_not_fit_are_told_before_the_first_step(make, x, y, said: str) -> None:
    """In one line, without Keras' colours and frames; without an input shape the first batch must show it."""
    model, custom = make(), y.ndim > 1
    sparse = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    loss = (lambda true, output: keras.ops.mean((true - output) ** 2, axis=-1)) if custom else sparse
    model.compile("sgd", loss)
    targets, first = np.eye(2)[Y] if custom else Y, Witness()
    with pytest.raises(DataError, match=f"^losses_on: .*{said}") as error:
        model.fit(X, targets, batch_size=5, verbose=0, callbacks=[first, TrajectoryRecorder(losses_on=(x, y))])
    assert not {"\n", "\x1b"} & set(str(error.value))
    assert "in user code" not in str(error.value)
    assert len(first.seen) == (0 if make is net else 1)
