"""The trajectory of training against `train_on_batch`, and its states in files."""

import keras
import numpy as np
import pytest

import sdkeras
from sdkeras.errors import NonFiniteError, SdkerasError
from sdkeras.files.archive import load_checkpoint, save_checkpoint
from sdkeras.operators import precision
from trainer import by_layer, step_of, trained

layers = keras.layers
X = np.random.default_rng(0).standard_normal((11, 3))
Y = np.random.default_rng(1).integers(0, 2, 11)
pytestmark = pytest.mark.usefixtures("double_precision")


def net(optimizer: keras.optimizers.Optimizer, *inner: keras.layers.Layer) -> keras.Model:
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2, "tanh"), *inner, layers.Dense(2)])
    return trained(optimizer, model, (X, Y), 1)


def flow_of(model: keras.Model, data: object = (X, Y)) -> sdkeras.TrainingFlow:
    return sdkeras.TrainingFlow(step_of(model, data, 4))


def halving() -> keras.optimizers.schedules.LearningRateSchedule:
    return keras.optimizers.schedules.ExponentialDecay(0.125, 2, 0.5)


@pytest.mark.parametrize(
    ("make", "inner"),
    [
        pytest.param(lambda: keras.optimizers.Adam(halving()), (), marks=pytest.mark.slow),
        pytest.param(
            lambda: by_layer(keras.optimizers.SGD(0.25, 0.5), keras.optimizers.Adam(halving())),
            (),
            marks=pytest.mark.slow,
        ),
        (lambda: keras.optimizers.SGD(0.125, momentum=0.5), (layers.BatchNormalization,)),
    ],
    ids=["schedule", "several", "normalised"],
)
def test_it_goes_where_training_goes(make, inner) -> None:
    """Also past the end of an epoch and with a schedule: two batches of 4 a pass, three are dropped.

    Training moves the averages of batch normalization, the flow does not, and both arrive at the same weights.
    """
    model = net(make(), *(layer() for layer in inner))
    flow, source = flow_of(model), sdkeras.EmpiricalLoss(model, (X, Y), 4, dtype="float64").source
    before = [np.asarray(v).tobytes() for v in (*model.variables, *model.optimizer.variables)]
    averages = [np.asarray(v).copy() for v in model.non_trainable_variables]
    for _ in range(5):
        flow.step(np.eye(flow.size, 1 if inner else None))
    assert [np.asarray(v).tobytes() for v in (*model.variables, *model.optimizer.variables)] == before
    for index in range(5):
        model.train_on_batch(*source.minibatch(index, 0))
    moved = [np.max(np.abs(v - a)) for v, a in zip(model.non_trainable_variables, averages, strict=True)]
    assert len(moved) == 2 * len(inner)
    assert min(moved, default=1) > 1e-3
    weights = np.concatenate([np.asarray(v).ravel() for v in model.trainable_variables])
    np.testing.assert_allclose(flow.state()["state"][: len(weights)], weights, rtol=1e-11, atol=1e-13)
    assert flow.index == flow.state()["step"] == 5
    first, second = ({tuple(row) for row in source.minibatch(k, 0)[0]} for k in (0, 1))
    assert not first & second


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


@pytest.fixture(scope="module")
def plain() -> tuple[keras.Model, sdkeras.UpdateMap]:
    keras.utils.set_random_seed(0)
    with precision.default_precision("float64"):
        model = net(keras.optimizers.SGD(0.5))
        return model, step_of(model, (X, Y), 4)


def test_the_seed_draws_the_minibatches(plain) -> None:
    flow = sdkeras.TrainingFlow(plain[1])
    tangents = np.eye(flow.size)

    def first(seed: int) -> np.ndarray:
        flow.reset(seed)
        return flow.step(tangents)

    zero, one, again = first(0), first(1), first(0)
    assert not np.array_equal(zero, one)
    assert np.array_equal(again, zero)


def test_states_of_other_trajectories_are_refused(plain) -> None:
    model, step = plain
    flow, momentum = sdkeras.TrainingFlow(step), net(keras.optimizers.SGD(0.5, momentum=0.5))
    for state, message in (
        (flow_of(model, (X + 1e-9, Y)).state(), "differs in: data"),
        (sdkeras.TrainingFlow(step, {"loss": "another"}).state(), "differs in: loss"),
        ([1, 2], "not a state"),
        (flow_of(momentum).state(), "held values, state"),
    ):
        with pytest.raises(SdkerasError, match=message):
            flow.restore(state)


def test_a_step_that_diverges_raises_and_leaves_the_flow_where_it_was() -> None:
    model = keras.Sequential([keras.Input((3,)), layers.Dense(1)])
    model.compile(keras.optimizers.SGD(1e3), "mse")
    flow = sdkeras.TrainingFlow(step_of(model, (X, Y[:, None].astype(float)), 11, dtype="float32"))
    with pytest.raises(NonFiniteError):
        list(map(flow.step, [np.zeros((flow.size, 1), np.float32)] * 200))
    assert np.all(np.isfinite(flow.state()["state"]))
    assert 2 < flow.index < 200
