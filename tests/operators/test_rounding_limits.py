"""Nets at the edge of what floating-point numbers resolve: fitted to rounding, dead, or with weights of any size."""

import contextlib
from typing import Any

import keras
import numpy as np
import pytest

import sdkeras
from sdkeras.errors import ModelError, NonFiniteError, VerificationError
from sdkeras.operators import engine, precision, verification
from small_losses import compiled, hessian

layers = keras.layers
RNG = np.random.default_rng(0)
X = RNG.normal(size=(400, 5)).astype("float32")
TARGETS = RNG.normal(size=(400, 1)).astype("float32")
BELOW = "below what float32 resolves"


@pytest.fixture(params=[True, False], ids=["clone", "no clone"])
def clone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether there is memory for a float64 clone."""
    if not request.param:
        monkeypatch.setattr(verification, "no_room", lambda *_: "no float64 clone (none wanted)")
    return bool(request.param)


def net(*hidden: Any, factor: float = 1.0) -> keras.Model:
    keras.utils.set_random_seed(0)
    model = compiled(keras.Input((5,)), *hidden, layers.Dense(1), loss="mse")
    model.set_weights([factor * weight for weight in model.get_weights()])
    return model


def separated(*hidden: Any, logits: float) -> tuple[keras.Model, tuple[Any, Any]]:
    """A classifier of 20 examples whose logits differ by at least this much."""
    keras.utils.set_random_seed(0)
    model = compiled(keras.Input((5,)), layers.Dense(20, "tanh"), *hidden, layers.Dense(3, use_bias=False))
    outputs = model(X).numpy()
    ordered = np.sort(outputs, axis=1)
    margins = ordered[:, -1] - ordered[:, -2]
    kept = np.argsort(margins)[-20:]
    model.layers[-1].set_weights([logits / margins[kept].min() * weight for weight in model.layers[-1].get_weights()])
    return model, (X[kept], np.argmax(outputs[kept], axis=1))


# exp(-17) = 4e-8: probabilities of the right class that float32 rounds to 1 or beside it; exp(-40) is lost to float64.
@pytest.mark.parametrize(
    ("inner", "logits"),
    [
        ((), 17.0),
        ((), 40.0),
        ((layers.LayerNormalization,), 17.0),
        *(
            pytest.param(inner, logits, marks=pytest.mark.slow)
            for inner, logits in (
                ((), 24.0),
                ((layers.LayerNormalization,), 24.0),
                ((layers.LayerNormalization,), 40.0),
            )
        ),
    ],
)
def test_a_fitted_classifier_is_sent_to_float64_and_no_layer_is_blamed(logits: float, inner: tuple[Any, ...]) -> None:
    model, data = separated(*(make() for make in inner), logits=logits)
    with pytest.raises(VerificationError, match=BELOW) as error:
        hessian(model, data)
    assert "dtype='float64'" in str(error.value)
    assert "at fault:" not in str(error.value)
    assert "second derivatives are wrong" not in str(error.value)


@pytest.mark.parametrize("clone", [False], indirect=True)
@pytest.mark.parametrize("logits", [17.0, 24.0, 200.0])
@pytest.mark.usefixtures("clone")
def test_without_a_clone_vanished_curvature_is_not_taken_for_right(logits: float) -> None:
    model, data = separated(logits=logits)
    with pytest.raises(VerificationError, match=BELOW):
        hessian(model, data)


def test_float64_resolves_what_float32_does_not() -> None:
    model, data = separated(logits=17.0)
    found = hessian(model, data, dtype="float64")
    assert 0 < found.loss.value() < 1e-7
    assert found.verification.passed


def fitted() -> tuple[keras.Model, Any]:
    model = net(layers.Dense(20, "tanh"))
    return model, model.predict(X, verbose=0) + 1e-5 * TARGETS


def exact() -> tuple[keras.Model, Any]:
    model = net()
    return model, model.predict(X, verbose=0)


def dead() -> tuple[keras.Model, Any]:
    model = net(layers.Dense(6, "relu"))
    kernel, bias = model.layers[0].get_weights()
    model.layers[0].set_weights([kernel, bias - 100])
    return model, np.zeros((400, 1), "float32")


@pytest.mark.usefixtures("clone")
@pytest.mark.parametrize("make", [fitted, pytest.param(exact, marks=pytest.mark.slow), dead])
def test_a_fitted_regression_keeps_its_curvature(make: Any) -> None:
    model, targets = make()
    found = hessian(model, (X, targets))
    assert found.loss.value() < 1e-9
    features = keras.Sequential(model.layers[:-1])(X).numpy() if len(model.layers) > 1 else X
    design = np.hstack([features, np.ones((400, 1))]).astype(np.float64)
    vector = np.concatenate([np.zeros(found.size - design.shape[1]), RNG.normal(size=design.shape[1])])
    image = found.matvec(vector.astype("float32"))[-design.shape[1] :]
    truth = 2 / 400 * design.T @ (design @ vector[-design.shape[1] :])
    assert np.allclose(image, truth, rtol=0, atol=1e-5 * np.linalg.norm(truth))


@pytest.mark.parametrize("factor", [pytest.param(1e15, marks=pytest.mark.slow), 1e-30])
def test_weights_of_any_size_are_verified(factor: float) -> None:
    assert hessian(net(layers.Dense(6, "tanh"), factor=factor), (X, TARGETS)).verification.passed


def test_weights_that_overflow_are_told() -> None:
    model = net(layers.Dense(6, "tanh"), factor=1e30)
    with pytest.raises(NonFiniteError, match=r"largest weight is .*float32 overflows.*dtype='float64'"):
        hessian(model, (X, TARGETS))
    assert hessian(model, (X, TARGETS), dtype="float64").verification.passed
    model.set_weights([np.full_like(weight, np.nan) for weight in model.get_weights()])
    with pytest.raises(NonFiniteError, match=r"43 of the 43 weights are NaN or infinite \(in \S+/kernel and 3 other"):
        hessian(model, (X, TARGETS))


@pytest.mark.parametrize(
    ("value", "message"), [(np.nan, "moving_variance holds NaN"), (-5.0, "moving_variance is negative")]
)
def test_a_loss_that_weights_beside_the_analysed_ones_spoil_names_them(value: float, message: str) -> None:
    model = net(layers.BatchNormalization())
    model.layers[0].moving_variance.assign([1.0, 1.0, value, 1.0, 1.0])
    with pytest.raises(NonFiniteError, match=f"loss at the model's weights is nan; .*{message}"):
        sdkeras.EmpiricalLoss(model, (X, TARGETS), mode="inference")


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ((1e20, 1.0), r"weights of \S+/kernel reach 6.*e\+19, those of \S+/kernel 0\.\d+,"),
        ((0.0, 0.0), "all weights are 0"),
    ],
)
def test_weights_that_cannot_be_verified_are_told_and_no_derivative_is_blamed(
    factors: tuple[float, float], message: str
) -> None:
    model = net(layers.Dense(6, "relu"))
    for layer, factor in zip(model.layers, factors, strict=True):
        layer.kernel.assign(factor * layer.kernel)
    model.compile("sgd", "mae")
    with pytest.raises(VerificationError, match=f"No layer is known to be at fault: .*{message}") as error:
        hessian(model, (X, TARGETS))
    assert "second derivatives" not in str(error.value)


def test_dense_layers_are_not_blamed_for_tiny_weights_at_a_kink() -> None:
    """A step of any length crosses the kinks of ReLUs that weights of 1e-30 make: no layer is at fault."""
    with pytest.raises(VerificationError, match="kink") as error:
        hessian(net(layers.Dense(6, "relu"), factor=1e-30), (X, TARGETS))
    assert "at fault" not in str(error.value)


@pytest.mark.slow  # test_a_wrong_product_is_refused is quick
def test_a_wrong_hessian_is_still_seen(clone: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorFlow's own moments: wrong by some per cent, symmetric, repeatable."""
    for module in (engine, verification):
        monkeypatch.setattr(module, "exact_moments", contextlib.nullcontext)
    monkeypatch.setattr(engine, "inexact_moments", lambda _: [])
    model = net(layers.Dense(6, "tanh"), layers.LayerNormalization(), layers.Dense(6, "tanh"))
    with pytest.raises(VerificationError) as error:
        hessian(model, (X, TARGETS))
    assert BELOW not in str(error.value)
    assert not clone or "LayerNormalization" in str(error.value)


def test_large_logits_are_the_same_loss_in_float64() -> None:
    """Losses that are small differences of outputs of 1e5 differ by rounding, and no get_config is blamed."""
    precision.require_same_loss(0.02, 0.03, "float64", rounding=1e-3)
    precision.require_same_loss(np.inf, 1e40, "float64")
    with pytest.raises(ModelError, match="another loss"):
        precision.require_same_loss(0.02, 0.03, "float64", rounding=1e-6)
    with pytest.raises(ModelError, match="another loss"):
        precision.require_same_loss(0.02, np.nan, "float64")
