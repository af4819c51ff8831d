"""`sdkeras.critical` against closed forms on linear regression, and against Keras' own steps."""

import keras
import numpy as np
import pytest

import sdkeras
from sdkeras.errors import ModelError, SdkerasError
from sdkeras.operators import precision
from sdkeras.runs.critical import plan
from small_nets import X, Y, net, state
from small_trainings import everything, quadratic

layers = keras.layers
CURVATURES = [0.5, 2.0, 5.0]


def exactly(update: np.ndarray, gradient: np.ndarray, hessian: np.ndarray) -> float:
    """The factor at which a quadratic is back at its value."""
    return float(-2 * gradient @ update / (update @ hessian @ update))


def parts(model: keras.Model, data: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights, gradient and Hessian of linear regression."""
    x, y = data
    w = np.asarray(model.trainable_variables[0]).ravel()
    return w, 2 * x.T @ (x @ w - y[:, 0]) / len(x), 2 * x.T @ x / len(x)


@pytest.mark.parametrize("rate", [0.01, 3.0])
def test_sgd_on_a_quadratic_is_past_twice_the_inverse_curvature_along_the_gradient(rate: float) -> None:
    model, data = quadratic(CURVATURES, keras.optimizers.SGD(rate))
    before = everything(model)
    # Batches of 5, 5 and 2 examples: weighted as one batch.
    step = sdkeras.critical(model, data, batch_size=5, dtype="float64", tolerance=1e-4).critical
    _, g, hessian = parts(model, data)
    eta = 2 * g @ g / (g @ hessian @ g)
    assert step.learning_rate.value == pytest.approx(eta, rel=1e-4)
    assert step.learning_rate.interval[0] <= eta <= step.learning_rate.interval[1]
    assert step.sharpness.value == pytest.approx(2 / eta, rel=1e-4)
    assert step.ratio.value == pytest.approx(rate / eta, rel=1e-4)
    assert step.slope == pytest.approx(-rate * g @ g, rel=1e-6)
    assert step.sharpness.value <= max(CURVATURES)
    assert step.verified
    assert everything(model) == before


def test_an_update_that_rounding_takes_is_refused_and_one_above_it_is_right() -> None:
    """In float32 weights of size 1 move in steps of 6e-8 to 1.2e-7; the critical rate does not depend on the rate."""
    model, data = quadratic(CURVATURES, keras.optimizers.SGD(0.01))
    _, g, hessian = parts(model, data)
    eta = 2 * g @ g / (g @ hessian @ g)
    low, high = sdkeras.critical(model, data, learning_rate=1e-4).critical.learning_rate.interval
    assert low <= eta <= high
    for rate in (1e-9, 1e-30):
        with pytest.raises(ModelError, match="is lost in the rounding of the weights to float32"):
            sdkeras.critical(model, data, learning_rate=rate)


def test_momentum_and_decay_are_in_the_update() -> None:
    rate, beta, decay = 0.125, 0.5, 0.25
    optimizer = keras.optimizers.SGD(rate, momentum=beta, weight_decay=decay)
    model, data = quadratic(CURVATURES, optimizer)
    step = sdkeras.critical(model, data, dtype="float64", tolerance=1e-4).critical
    w, g, hessian = parts(model, data)
    velocity = np.asarray(next(v for v in optimizer.variables if "momentum" in v.path)).ravel()
    update = beta * velocity - rate * g - rate * decay * w
    assert np.abs(beta * velocity).max() > 0.1 * np.abs(rate * g).max()
    assert step.learning_rate.value == pytest.approx(rate * exactly(update, g, hessian), rel=1e-4)


def test_adam_steps_as_keras_does() -> None:
    """The loss after the real step, and the factor of a quadratic along the difference of weights."""
    model, data = quadratic(CURVATURES, keras.optimizers.Adam(0.05))
    step = sdkeras.critical(model, data, dtype="float64", tolerance=1e-4).critical
    w, g, hessian = parts(model, data)
    with precision.default_precision("float64"):
        model.train_on_batch(*data)
    after = np.asarray(model.trainable_variables[0]).ravel()
    assert step.ratio.value == pytest.approx(1 / exactly(after - w, g, hessian), rel=1e-4)
    in_use = step.losses[list(step.factors).index(1.0)]
    assert in_use == pytest.approx(float(np.mean((data[0] @ after - data[1][:, 0]) ** 2)), rel=1e-6)


def test_minibatches_have_their_own_losses() -> None:
    model, data = quadratic(CURVATURES, keras.optimizers.SGD(0.1))
    run = sdkeras.critical(model, data, batch_size=4, minibatches=9, dtype="float64", tolerance=1e-3, seed=3)
    source = sdkeras.EmpiricalLoss(model, data, 4, seed=3, dtype="float64").source
    expected = []
    for index in range(9):
        _, g, hessian = parts(model, source.minibatch(index, 3))
        expected.append(0.1 / exactly(-g, g, hessian))
    np.testing.assert_allclose(run.critical.ratios, expected, rtol=1e-3)
    assert run.critical.ratio.value == pytest.approx(np.median(expected), rel=1e-3)
    assert run.critical.ratio.interval == pytest.approx((sorted(expected)[1], sorted(expected)[7]), rel=1e-3)
    assert run.critical.quartiles == pytest.approx(np.quantile(expected, (0.25, 0.75)), rel=0.02)
    assert sdkeras.CriticalRun.from_json(run.to_json()) == run


@pytest.fixture(scope="module")
def everything_random() -> keras.Model:
    """Dropout, batch normalization and AdamW, after two steps in float32."""
    model = net()
    model.fit(X, Y, batch_size=48, epochs=1, verbose=0)
    return model


def test_masks_and_batch_statistics_are_the_same_before_and_after(everything_random: keras.Model) -> None:
    """With other masks after than before, the loss at a vanishing step would differ by the masks."""
    before = state(everything_random)
    step = sdkeras.critical(everything_random, (X, Y), batch_size=48).critical
    assert step.outcome == "measured"
    assert step.loss + step.slope * step.factors[0] == pytest.approx(step.losses[0], abs=0.3 * abs(step.slope))
    loss = sdkeras.EmpiricalLoss(everything_random, (X, Y), 48)
    assert step.loss == pytest.approx(loss.value(), rel=1e-6)
    for old, new in zip(before, state(everything_random), strict=True):
        np.testing.assert_array_equal(old, new)


def test_mixed_precision_agrees_within_what_it_says() -> None:
    model = keras.Sequential([keras.Input((5,)), layers.Dense(8, "tanh"), layers.Dense(3)])
    model.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.train_on_batch(X, Y)
    single, mixed = (sdkeras.critical(model, (X, Y), dtype=dtype).critical for dtype in ("float32", "mixed_bfloat16"))
    assert mixed.learning_rate.value == pytest.approx(single.learning_rate.value, rel=0.1)
    low, high = mixed.learning_rate.interval
    assert low <= single.learning_rate.value <= high


def test_a_decay_that_outweighs_the_gradient_leads_uphill() -> None:
    model, data = quadratic([1.0, 2.0], keras.optimizers.SGD(0.1, weight_decay=50.0))
    exact = np.linalg.lstsq(*data, rcond=None)[0]
    model.trainable_variables[0].assign(exact + 1e-3)
    run = sdkeras.critical(model, data, dtype="float64")
    assert run.critical.outcome == "ascent"
    assert run.critical.learning_rate.value == 0
    assert run.critical.ratio is None
    assert "uphill" in str(run)
    assert sdkeras.CriticalRun.from_json(run.to_json()) == run


def linear_loss(y_true: object, y_pred: object) -> object:
    """Falls for ever along its gradient."""
    return keras.ops.mean(y_pred, axis=-1)


def test_a_loss_that_never_rises_has_a_lower_bound_and_one_without_gradient_no_step() -> None:
    x = np.ones((4, 2), "float32")
    for data, outcome, words in (
        (x, "lower", "rises at none that was tried"),
        (0 * x, "no step", "to the rounding of the weights"),
    ):
        model = keras.Sequential([keras.Input((2,)), layers.Dense(1, use_bias=False)])
        model.compile(keras.optimizers.SGD(0.1), linear_loss)
        model.train_on_batch(data, x[:, :1])
        run = sdkeras.critical(model, (data, x[:, :1]))
        assert run.critical.outcome == outcome
        assert words in " ".join(str(run).replace("│", " ").split())
        assert run._repr_html_()
        assert sdkeras.CriticalRun.from_json(run.to_json()) == run


def test_embeddings_take_the_row_by_row_step_of_keras() -> None:
    """Adagrad squares each lookup of a row by itself; `stored_update` compares with the optimizer's own step."""
    model = keras.Sequential([keras.Input((3,), dtype="int32"), layers.Embedding(4, 2), layers.Flatten()])
    model.compile(keras.optimizers.Adagrad(0.1, clipvalue=1e-3), "mse")
    x, y = np.array([[0, 0, 1], [1, 2, 0]]), np.ones((2, 6), "float32")
    model.train_on_batch(x, y)
    run = sdkeras.critical(model, (x, y), batch_size=2)
    assert run.critical.verified
    assert run.critical.step_error < 1e-9


def test_what_cannot_be_had_is_refused() -> None:
    model, data = quadratic([1.0], keras.optimizers.Adam(0.1))
    fresh = keras.models.clone_model(model)
    fresh.compile(keras.optimizers.Adam(0.1), "mse")
    with pytest.raises(ModelError, match="initial_slots=True"):
        sdkeras.critical(fresh, data)
    assert sdkeras.critical(fresh, data, initial_slots=True).critical.outcome == "measured"
    with pytest.raises(SdkerasError, match="tolerance is 2"):
        sdkeras.critical(model, data, tolerance=2)
    with pytest.raises(SdkerasError, match="minibatches is 0"):
        sdkeras.critical(model, data, minibatches=0)
    run = sdkeras.critical(model, data)
    with pytest.raises(SdkerasError, match="sdkeras critical"):
        sdkeras.compare(run, run)


def test_the_plan_says_what_it_costs() -> None:
    model, data = quadratic([1.0, 2.0], keras.optimizers.SGD(0.1))
    planned = plan(model, data, batch_size=4, minibatches=5)
    assert (planned.num_gradients, planned.num_batches, planned.num_hvps) == (5, 1, 0)
    assert 50 <= planned.num_evaluations <= 75
    assert "5 minibatches" in str(planned)
