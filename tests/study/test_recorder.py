"""What a recorder keeps is what training went through, and training goes the same way without it."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from sdkeras.errors import ModelError, OperatorSizeError, SdkerasError
from sdkeras.operators import batches, precision
from sdkeras.study import recorder as module
from sdkeras.study.recorder import ExampleLosses, Trajectory, TrajectoryRecorder, simulate
from sdkeras.study.topology import euclidean_distances, loss_distances

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


@pytest.mark.parametrize(("every", "last"), [(1, 100), (1, 4), (3, 100), (4, 2)])
def test_the_last_iterates_are_kept_in_order(every: int, last: int) -> None:
    witness, recorder = Witness(), TrajectoryRecorder(every=every, last=last)
    fit(net(), witness, recorder)  # 15 steps
    expected = list(range(every, 16, every))[-last:]
    found = recorder.trajectory
    assert found.iterations.tolist() == expected
    assert np.array_equal(found.iterates, np.stack([witness.seen[k - 1] for k in expected]))
    assert found.iterates.dtype == np.float32
    assert (found.num_parameters, found.losses, found.distortion, found.stopped_at) == (26, None, None, None)


def test_a_second_fit_is_a_new_trajectory() -> None:
    model, recorder = net(), TrajectoryRecorder()
    fit(model, recorder)
    fit(model, recorder, epochs=1)
    assert recorder.trajectory.iterations.tolist() == [16, 17, 18, 19, 20]
    assert np.array_equal(recorder.trajectory.iterates[-1], weights(model))


def test_steps_per_execution_are_counted_by_the_optimizer() -> None:
    recorder = TrajectoryRecorder(every=2)
    fit(net(steps_per_execution=3), recorder, epochs=1)
    assert recorder.trajectory.iterations.tolist() == [3, 5]


def test_losses_are_those_of_each_example_in_inference_mode() -> None:
    """By hand, from the kept weights; dropout and regularisers are not in them."""
    model = net(layers.Dropout(0.5), layers.ActivityRegularization(l2=0.3))
    recorder = TrajectoryRecorder(losses_on=(X[:7], Y[:7]))
    fit(model, recorder)
    found = recorder.trajectory
    assert found.losses.shape == (15, 7)
    for iterate, losses in zip(found.iterates[::5].astype(float), found.losses[::5], strict=True):
        hidden = np.tanh(X[:7] @ iterate[:12].reshape(3, 4) + iterate[12:16])
        logits = hidden @ iterate[16:24].reshape(4, 2) + iterate[24:]
        expected = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(7), Y[:7]]
        np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=2e-6)
    assert loss_distances(found.losses)[0, 3] == pytest.approx(
        np.abs(found.losses[0] - found.losses[3]).mean(), rel=1e-5
    )


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


@pytest.mark.parametrize("waiting", [1, 26 * 4 * 4, 2**20])
def test_projections_keep_distances(monkeypatch, waiting: int) -> None:
    """However many wait to be projected together, and past the end of the ring."""
    monkeypatch.setattr(module, "_WAITING_BYTES", waiting)
    full, projected = TrajectoryRecorder(last=7), TrajectoryRecorder(last=7, projection=2000, seed=4)
    fit(net(), full, projected)
    found = projected.trajectory
    assert found.iterates.shape == (7, 2000)
    assert found.iterations.tolist() == full.trajectory.iterations.tolist()
    true, kept = euclidean_distances(full.trajectory.iterates), euclidean_distances(found.iterates)
    ratios = (kept / np.where(true > 0, true, 1))[true > 0]
    # Squared distances have relative standard deviation sqrt(2/2000); over 21 pairs 5 of them.
    assert np.max(np.abs(ratios - 1)) < 5 * np.sqrt(2 / 2000) / 2
    assert found.distortion.bound < 0.2
    assert 0 < found.distortion.measured < found.distortion.bound
    assert 0 < found.distortion.num_pairs <= 48


def test_a_file_gives_the_trajectory_back(tmp_path) -> None:
    recorder = TrajectoryRecorder(projection=5, losses_on=(X, Y), path=tmp_path / "run.npz", dtype="float64")
    fit(net(), recorder)
    read, own = Trajectory.load(tmp_path / "run.npz"), recorder.trajectory
    for name in ("iterates", "iterations", "losses"):
        assert np.array_equal(getattr(read, name), getattr(own, name))
        assert getattr(read, name).dtype == getattr(own, name).dtype
    assert (read.distortion, read.seed, read.num_parameters) == (own.distortion, own.seed, own.num_parameters)
    assert [path.name for path in tmp_path.iterdir()] == ["run.npz"]
    np.savez(tmp_path / "other.npz", x=X)
    with pytest.raises(SdkerasError, match=r"other\.npz"):
        Trajectory.load(tmp_path / "other.npz")


def test_a_training_that_diverges_goes_on_and_the_record_ends() -> None:
    model = keras.Sequential([keras.Input((3,)), layers.Dense(1)])
    model.compile(keras.optimizers.SGD(1e6), "mse")
    recorder, witness = TrajectoryRecorder(), Witness()
    model.fit(X, X[:, :1], batch_size=5, epochs=10, verbose=0, callbacks=[recorder, witness])
    found = recorder.trajectory
    assert len(witness.seen) == 50
    assert 1 < found.stopped_at < 50
    assert found.iterations.tolist() == list(range(1, found.stopped_at))
    assert np.all(np.isfinite(found.iterates))
    model = keras.Sequential([keras.Input((3,)), layers.Dense(1)])
    model.compile(keras.optimizers.SGD(1e6), "mse")
    simulated = simulate(model, (X, X[:, :1]), steps=50, batch_size=5, allow_unverified=True)
    assert 1 < simulated.stopped_at < 50
    assert np.all(np.isfinite(simulated.iterates))


def test_a_simulation_goes_where_training_goes() -> None:
    """In float64, against `train_on_batch` on the same minibatches; the model itself stays."""
    with precision.default_precision("float64"):
        model = net(optimizer=keras.optimizers.SGD(0.1, momentum=0.9))
        model.train_on_batch(X, Y)
        before = [np.asarray(v).copy() for v in (*model.variables, *model.optimizer.variables)]
        found = simulate(
            model, (X, Y), steps=12, batch_size=5, every=2, last=4, seed=3, dtype="float64", losses_on=(X[:6], Y[:6])
        )
        after = [np.asarray(v) for v in (*model.variables, *model.optimizer.variables)]
        assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
        assert found.iterations.tolist() == [6, 8, 10, 12]
        source = batches.as_source((X, Y), batch_size=5, default_batch_size=None, limit=None)
        for index in range(12):
            model.train_on_batch(*source.minibatch(index, 3))
            if index + 1 in found.iterations:
                row = found.iterations.tolist().index(index + 1)
                np.testing.assert_allclose(found.iterates[row], weights(model), rtol=1e-10, atol=1e-12)
                losses = ExampleLosses(model, X[:6], Y[:6])(model.trainable_variables)
                np.testing.assert_allclose(found.losses[row], losses, rtol=1e-9)
        assert np.ptp(found.losses[:, 0]) > 0


def test_what_cannot_be_recorded_is_refused(monkeypatch) -> None:
    with pytest.raises(SdkerasError, match="every is 0"):
        TrajectoryRecorder(every=0)
    with pytest.raises(SdkerasError, match="float16"):
        TrajectoryRecorder(dtype="float16")
    with pytest.raises(SdkerasError, match="steps is 3"):
        simulate(net(), (X, Y), steps=3, every=2)
    with pytest.raises(SdkerasError, match="different numbers of samples"):
        fit(net(), TrajectoryRecorder(losses_on=(X, Y[:3])))
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
