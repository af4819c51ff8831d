"""The trajectory of training against `train_on_batch`, and its states in files."""

import keras
import numpy as np
import pytest

import sdkeras
from sdkeras.errors import NonFiniteError, SdkerasError
from sdkeras.files.archive import load_checkpoint, save_checkpoint

layers = keras.layers
X = np.random.default_rng(0).standard_normal((11, 3))
Y = np.random.default_rng(1).integers(0, 2, 11)
pytestmark = pytest.mark.usefixtures("double_precision")


def net(optimizer: keras.optimizers.Optimizer, *inner: keras.layers.Layer) -> keras.Model:
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2, "tanh"), *inner, layers.Dense(2)])
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.train_on_batch(X, Y)
    return model


def flow_of(model: keras.Model, data: object = (X, Y), **about: str) -> sdkeras.TrainingFlow:
    loss = sdkeras.EmpiricalLoss(model, data, batch_size=4, dtype="float64")
    return sdkeras.TrainingFlow(sdkeras.UpdateMap(loss, model.optimizer), about)


def everything(model: keras.Model) -> list[bytes]:
    return [np.asarray(v).tobytes() for v in (*model.variables, *model.optimizer.variables)]


def halving() -> keras.optimizers.schedules.LearningRateSchedule:
    return keras.optimizers.schedules.ExponentialDecay(0.125, 2, 0.5)


def several_rates() -> keras.optimizers.Optimizer:
    parts = {".*bias": keras.optimizers.Adam(halving())}
    return keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(keras.optimizers.SGD(0.25, 0.5), parts))


@pytest.mark.parametrize("make", [lambda: keras.optimizers.Adam(halving()), several_rates])
def test_it_goes_where_training_goes(make) -> None:
    """Also past the end of an epoch and with a schedule: two batches of 4 a pass, three are dropped."""
    model = net(make())
    flow = flow_of(model)
    before = everything(model)
    source = sdkeras.EmpiricalLoss(model, (X, Y), batch_size=4, dtype="float64").source
    for _ in range(5):
        flow.step(np.eye(flow.size))
    assert everything(model) == before
    for index in range(5):
        model.train_on_batch(*source.minibatch(index, 0))
    weights = np.concatenate([np.asarray(v).ravel() for v in model.trainable_variables])
    np.testing.assert_allclose(flow.state()["state"][: len(weights)], weights, rtol=1e-11, atol=1e-13)
    assert flow.index == flow.state()["step"] == 5
    first, second = ({tuple(row) for row in source.minibatch(k, 0)[0]} for k in (0, 1))
    assert not first & second


def test_moving_averages_do_not_enter_the_trajectory() -> None:
    """Training moves them, the flow does not, and both arrive at the same weights."""
    model = net(keras.optimizers.SGD(0.125, momentum=0.5), layers.BatchNormalization())
    flow = flow_of(model)
    averages = [np.asarray(v).copy() for v in model.non_trainable_variables]
    source = sdkeras.EmpiricalLoss(model, (X, Y), batch_size=4, dtype="float64").source
    for _ in range(6):
        flow.step(np.eye(flow.size, 1))
    for index in range(6):
        model.train_on_batch(*source.minibatch(index, 0))
    moved = [np.max(np.abs(v - a)) for v, a in zip(model.non_trainable_variables, averages, strict=True)]
    assert len(moved) == 2
    assert min(moved) > 1e-3
    weights = np.concatenate([np.asarray(v).ravel() for v in model.trainable_variables])
    np.testing.assert_allclose(flow.state()["state"][: len(weights)], weights, rtol=1e-11, atol=1e-13)


def test_a_state_goes_through_a_file_bit_for_bit(tmp_path) -> None:
    """With dropout, whose masks are drawn anew each step."""
    model = net(keras.optimizers.AdamW(0.01), layers.Dropout(0.5, seed=3))
    flow = flow_of(model)
    assert flow.size == 3 * 14
    tangents = np.random.default_rng(2).standard_normal((flow.size, 3))
    flow.reset(5)
    for _ in range(3):
        flow.step(tangents)
    save_checkpoint(tmp_path / "state", flow.state())
    expected = [flow.step(tangents) for _ in range(3)]
    other = flow_of(model)
    other.restore(load_checkpoint(tmp_path / "state"))
    assert all(np.array_equal(other.step(tangents), each) for each in expected)
    assert other.state()["seed"] == 5
    assert np.array_equal(other.state()["state"], flow.state()["state"])


def test_the_seed_draws_the_minibatches() -> None:
    flow = flow_of(net(keras.optimizers.SGD(0.5)))
    tangents = np.eye(flow.size)

    def first(seed: int) -> np.ndarray:
        flow.reset(seed)
        return flow.step(tangents)

    zero, one = first(0), first(1)
    assert not np.array_equal(zero, one)
    assert np.array_equal(first(0), zero)
    assert np.array_equal(first(1), one)


def test_states_of_other_trajectories_are_refused() -> None:
    model = net(keras.optimizers.SGD(0.5))
    flow, other = flow_of(model), flow_of(model, (X + 1e-9, Y))
    with pytest.raises(SdkerasError, match="differs in: data"):
        flow.restore(other.state())
    with pytest.raises(SdkerasError, match="differs in: loss"):
        flow.restore(flow_of(model, loss="another").state())
    with pytest.raises(SdkerasError, match="not a state"):
        flow.restore([1, 2])
    with pytest.raises(SdkerasError, match="held values, state"):
        flow.restore(flow_of(net(keras.optimizers.SGD(0.5, momentum=0.5))).state())


def test_a_step_that_diverges_raises_and_leaves_the_flow_where_it_was() -> None:
    model = keras.Sequential([keras.Input((3,)), layers.Dense(1)])
    model.compile(keras.optimizers.SGD(1e3), "mse")
    loss = sdkeras.EmpiricalLoss(model, (X, Y[:, None].astype(float)), batch_size=11)
    flow = sdkeras.TrainingFlow(sdkeras.UpdateMap(loss, model.optimizer))

    def run() -> None:
        for _ in range(200):
            flow.step(np.zeros((flow.size, 1), np.float32))

    with pytest.raises(NonFiniteError):
        run()
    assert np.all(np.isfinite(flow.state()["state"]))
    assert 2 < flow.index < 200
