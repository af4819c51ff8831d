"""A loss and its Hessian at other weights, by the same compiled functions."""

import keras
import numpy as np
import pytest

import sdkeras
from sdkeras.datasets import load_digits


def normalised_net() -> keras.Model:
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [
            keras.Input((8, 8)),
            keras.layers.Flatten(),
            keras.layers.Dense(6, activation="tanh"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(10),
        ]
    )
    model.compile(keras.optimizers.SGD(0.125), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def moved(model: keras.Model) -> None:
    """Another place: weights, and the averages of the normalisation."""
    generator = np.random.default_rng(1)
    model.set_weights(
        [w + np.abs(0.3 * generator.standard_normal(w.shape)).astype(w.dtype) for w in model.get_weights()]
    )


@pytest.mark.parametrize("mode", ["train", "inference"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_now_is_the_loss_made_again(mode: str, dtype: str) -> None:
    x, y = load_digits()
    data = (x[:101], y[:101])
    model = normalised_net()
    loss = sdkeras.EmpiricalLoss(model, data, 40, mode=mode, dtype=dtype)
    operator = sdkeras.HessianOperator(loss)
    v = np.random.default_rng(0).standard_normal((loss.size, 3)).astype(dtype)
    before = operator.matmat(v)
    moved(model)
    again = sdkeras.EmpiricalLoss(model, data, 40, mode=mode, dtype=dtype)
    expected = sdkeras.HessianOperator(again)
    view = operator.at(loss.now())
    assert view.loss.value() == pytest.approx(again.value(), rel=1e-6)
    np.testing.assert_array_equal(view.loss.point, again.point)
    np.testing.assert_allclose(view.loss.gradient(), again.gradient(), rtol=1e-5, atol=1e-6)
    for product, right in ((view.matmat(v), expected.matmat(v)), (view.matvec(v[:, 0]), expected.matvec(v[:, 0]))):
        np.testing.assert_allclose(product, right, rtol=1e-4, atol=1e-5)
    first = view.on_minibatch(2).matvec(v[:, 1])
    np.testing.assert_allclose(first, expected.on_minibatch(2).matvec(v[:, 1]), rtol=1e-4, atol=1e-5)
    # The first one stays where it was, and everything counts together.
    np.testing.assert_array_equal(operator.matmat(v), before)
    assert view.num_products == operator.num_products
    assert not np.allclose(before, view.matmat(v), rtol=1e-2)


def test_at_takes_a_point_and_refuses_another_shape() -> None:
    x, y = load_digits()
    loss = sdkeras.EmpiricalLoss(normalised_net(), (x[:64], y[:64]), dtype="float64")
    direction = np.random.default_rng(2).standard_normal(loss.size)
    step = 1e-5
    ahead, behind = (loss.at(loss.point + sign * step * direction) for sign in (1, -1))
    product = sdkeras.HessianOperator(loss).matvec(direction)
    np.testing.assert_allclose((ahead.gradient() - behind.gradient()) / (2 * step), product, rtol=1e-5, atol=1e-7)
    assert ahead.value() == pytest.approx(loss.value(loss.point + step * direction), rel=1e-12)
    with pytest.raises(ValueError, match=r"a point has shape \(\d+,\), got \(3,\)"):
        loss.at(np.zeros(3))


def test_an_operator_made_first_at_another_point_is_verified_there() -> None:
    x, y = load_digits()
    model = normalised_net()
    loss = sdkeras.EmpiricalLoss(model, (x[:64], y[:64]), mode="inference")  # without masks the clone is compared
    elsewhere = loss.at(loss.point + np.float32(0.2))
    assert sdkeras.HessianOperator(elsewhere).verification.passed
    assert sdkeras.HessianOperator(elsewhere).verification.finite_difference_dtype == "float64"
