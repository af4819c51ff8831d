"""The Laplace posterior: Bayesian linear regression in closed form, dense matrices of a small net, and refusals."""

from typing import Any

import keras
import numpy as np
import pytest
import scipy.special
import scipy.stats

import sdkeras
from sdkeras.errors import DataError, ModelError, NonFiniteError
from sdkeras.runs.laplace import _diagonal, _Net
from small_losses import CE, X, Y, compiled

layers = keras.layers
GENERATOR = np.random.default_rng(0)


def codes(result: sdkeras.Laplace) -> set[str]:
    return {note.code for note in result.notes}


@pytest.fixture(autouse=True)
def _in_float64() -> Any:
    """Nets whose own outputs are in float64."""
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_dtype_policy("float32")


def laplace(model: keras.Model, data: Any, **options: Any) -> sdkeras.Laplace:
    return sdkeras.laplace(model, data, **{"dtype": "float64", **options})


# Regression


def test_linear_regression_is_the_bayesian_one() -> None:
    """Two targets, whole-number weights as copies of an example, batches that are ragged: all in closed form."""
    size, prior, noise = 4, 0.7, 0.2
    x, weights = GENERATOR.standard_normal((23, size)), GENERATOR.integers(1, 4, 23)
    y = x @ GENERATOR.standard_normal((size, 2)) + 0.4 * GENERATOR.standard_normal((23, 2))
    copies = np.repeat(np.arange(23), weights)
    precision = x[copies].T @ x[copies] / noise + prior * np.eye(size)
    # The L2 that makes Keras' loss the posterior: its mean is over 23 examples and 2 targets.
    strength = prior * noise / (2 * 23)
    model = compiled(
        keras.Input((size,)),
        layers.Dense(2, use_bias=False, kernel_regularizer=keras.regularizers.L2(strength)),
        loss="mse",
    )
    best = np.linalg.solve(precision, x[copies].T @ y[copies] / noise)
    model.set_weights([best])
    result = laplace(
        model,
        (x, y, weights.astype(float)),
        rank=2 * size,
        prior_precision=prior,
        noise_variance=noise,
        batch_size=10,
    )
    whole = np.kron(precision, np.eye(2))  # rows of the kernel first, its columns within them
    covariance = np.linalg.inv(whole)
    assert np.allclose(result.posterior.covariance(), covariance, rtol=1e-10)
    assert np.allclose(result.stddev, np.sqrt(np.diag(covariance)), rtol=1e-10)
    assert np.allclose(result.mean, best.ravel(), rtol=1e-12)
    marginal = scipy.stats.multivariate_normal(
        cov=noise * np.eye(len(copies)) + x[copies] @ x[copies].T / prior
    ).logpdf(y[copies].T)
    assert result.log_marginal_likelihood == pytest.approx(np.sum(marginal), rel=1e-10)
    assert result.newton_decrement < 1e-6
    assert result.regularizer_precision == pytest.approx(prior, rel=1e-10)
    assert not result.notes
    at = GENERATOR.standard_normal((3, size))
    predicted = result.predictive(at)
    assert np.allclose(predicted.mean, at @ best)
    of_output = np.einsum("bi,ij,bj->b", at, np.linalg.inv(precision), at)
    assert np.allclose(predicted.variance, noise + of_output[:, None], rtol=1e-10)
    assert np.allclose(predicted.covariance[:, 0, 1], 0, atol=1e-12)


def test_prior_and_noise_are_found_and_a_net_off_its_minimum_is_told() -> None:
    """At its maximum log Z falls to either side; a net moved off its minimum has a caveat with the gradient."""
    x = GENERATOR.standard_normal((40, 3))
    y = x @ np.ones((3, 1)) + 0.5 * GENERATOR.standard_normal((40, 1))
    model = compiled(keras.Input((3,)), layers.Dense(1, use_bias=False), loss="mse")
    model.set_weights([np.linalg.lstsq(x, y)[0]])
    best = laplace(model, (x, y))
    assert 0.1 < best.noise_variance < 0.5
    assert 0 < best.effective_parameters < 3
    assert best.effective_parameters == pytest.approx(best.prior_precision * np.sum(best.mean**2), rel=1e-6)
    assert not best.notes
    for factor in (0.9, 1.1):
        other = best.with_prior(factor * best.prior_precision, best.noise_variance / factor)
        assert other.log_marginal_likelihood < best.log_marginal_likelihood
    assert other.with_prior().log_marginal_likelihood == pytest.approx(best.log_marginal_likelihood, abs=1e-9)
    model.set_weights([model.get_weights()[0] + 1])
    assert "not-at-a-minimum" in codes(laplace(model, (x, y)))


# Classification


@pytest.fixture(scope="module")
def net() -> keras.Model:
    keras.utils.set_random_seed(1)
    keras.config.set_dtype_policy("float64")
    model = compiled(keras.Input((6,)), layers.Dense(3, "tanh"), layers.BatchNormalization(), layers.Dense(3))
    keras.config.set_dtype_policy("float32")
    model.layers[1].moving_mean.assign([0.3, -0.2, 0.1])  # by which inference mode shows
    return model


def jacobian(model: keras.Model, x: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """d outputs / d weights by central differences of the model, [examples, outputs, weights]."""
    columns = []
    for variable in model.trainable_variables:
        value = np.asarray(variable)
        for place in np.ndindex(value.shape):
            outputs = []
            for sign in (1, -1):
                moved = value.copy()
                moved[place] += sign * step
                variable.assign(moved)
                outputs.append(np.asarray(model(x, training=False)))
            columns.append((outputs[0] - outputs[1]) / (2 * step))
        variable.assign(value)
    return np.stack(columns, axis=2)


def curvature(model: keras.Model, weights: np.ndarray) -> np.ndarray:
    """The sum over examples of J' (diag p - p p') J."""
    x = X.astype(float)
    p, j = scipy.special.softmax(np.asarray(model(x)), axis=1), jacobian(model, x)
    blocks = weights[:, None, None] * (p[:, :, None] * np.eye(3) - p[:, :, None] * p[:, None])
    return np.einsum("bcn,bcd,bdm->nm", j, blocks, j)


@pytest.fixture(scope="module")
def weighted(net: keras.Model) -> tuple[sdkeras.Laplace, np.ndarray]:
    """The posterior of rank 5 with sample weights, and the precision that it should have."""
    weights = np.random.default_rng(2).uniform(0.1, 3, 22)
    result = sdkeras.laplace(net, (X, Y, weights), rank=5, prior_precision=0.5, batch_size=8, dtype="float64")
    g = curvature(net, weights)
    values, vectors = np.linalg.eigh(g)
    top = vectors[:, -5:] * values[-5:] @ vectors[:, -5:].T
    return result, top + np.diag(np.diag(g) - np.diag(top)) + 0.5 * np.eye(len(g))


def test_the_precision_is_the_eigenpairs_and_the_diagonal_beside_them(
    weighted: tuple[sdkeras.Laplace, np.ndarray],
) -> None:
    result, precision = weighted
    normal = scipy.stats.multivariate_normal(result.mean, np.linalg.inv(precision))
    assert np.allclose(np.linalg.inv(result.posterior.covariance()), precision, atol=1e-4)
    points = result.mean + 0.3 * GENERATOR.standard_normal((4, result.size))
    # The eigenvectors are as good as Lanczos' tolerance of 1e-3.
    assert np.allclose(result.posterior.log_prob(points), normal.logpdf(points), rtol=1e-4)
    for shape in ((3, 2), ()):
        with pytest.raises(DataError, match="the last axis must have all"):
            result.posterior.log_prob(np.zeros(shape))
    assert len(repr(result.with_prior(1e300))) < 200
    assert codes(result) == {"rank-too-small", "not-at-a-minimum"} - (
        {"rank-too-small"} if result.captured > 0.9 else set()
    )


def test_samples_have_the_covariance(weighted: tuple[sdkeras.Laplace, np.ndarray]) -> None:
    result, precision = weighted
    samples = result.posterior.sample(4000, seed=3).numpy() - result.mean
    # Whitened by the root of the precision they are standard normal: each entry of the covariance to 4000^-1/2.
    whitened = samples @ np.linalg.cholesky(precision)
    departure = whitened.T @ whitened / 4000 - np.eye(result.size)
    assert np.max(np.abs(departure)) < 5.5 * np.sqrt(2 / 4000)
    assert np.linalg.norm(samples.T @ samples / 4000 - np.linalg.inv(precision * 1.2)) > np.linalg.norm(
        samples.T @ samples / 4000 - np.linalg.inv(precision)
    )


def test_the_predictive_is_that_of_the_linearised_net(
    net: keras.Model, weighted: tuple[sdkeras.Laplace, np.ndarray]
) -> None:
    result, precision = weighted
    x = X[:4].astype(float)
    j = jacobian(net, x)
    expected = j @ np.linalg.inv(precision) @ np.swapaxes(j, 1, 2)
    drawn, probit = (result.predictive(x, method=each) for each in ("monte-carlo", "probit"))
    logits = np.asarray(net(x))
    assert np.allclose(drawn.mean, logits)
    assert np.allclose(drawn.covariance, expected, rtol=1e-3, atol=1e-4 * expected.max())
    assert np.allclose(drawn.probabilities.sum(axis=1), 1)
    variances = np.diagonal(probit.covariance, axis1=1, axis2=2)
    assert np.allclose(probit.probabilities, scipy.special.softmax(logits / np.sqrt(1 + np.pi / 8 * variances), axis=1))
    assert not probit.stderr.any()
    again = result.predictive(x[1:2]), result.predictive(x, draws=20_000, seed=7)
    assert not np.allclose(again[0].probabilities, drawn.probabilities[1:2])  # other draws of another place
    apart = np.abs(again[1].probabilities - drawn.probabilities) / np.hypot(again[1].stderr, drawn.stderr)
    assert 0.3 < np.max(apart) < 5


def test_one_binary_target_against_quadrature() -> None:
    y = (Y > 0)[:, None].astype(float)
    model = compiled(keras.Input((6,)), layers.Dense(1, "sigmoid"), loss="binary_crossentropy")
    result = laplace(model, (X, y), prior_precision=1.0)
    p = np.asarray(model(X.astype(float)))[:, 0]
    design = np.hstack([X, np.ones((22, 1))]).astype(float)
    precision = design.T * (p * (1 - p)) @ design + np.eye(7)
    assert np.allclose(np.linalg.inv(result.posterior.covariance()), precision, rtol=1e-8)
    predicted = result.predictive(X[:5], draws=20_000)
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    f = predicted.mean + np.sqrt(predicted.covariance[:, 0]) * nodes
    exact = scipy.special.expit(f) @ weights / weights.sum()
    assert np.all(np.abs(predicted.probabilities[:, 0] - exact) < 5 * predicted.stderr[:, 0])
    assert np.all(predicted.stderr < 0.005)


@pytest.mark.slow
def test_a_softmax_layer_is_cut_at_its_logits() -> None:
    inside = compiled(keras.Input((6,)), layers.Dense(3, "softmax"), loss="sparse_categorical_crossentropy")
    logits = compiled(keras.Input((6,)), layers.Dense(3))
    logits.set_weights(inside.get_weights())
    first, second = (laplace(each, (X, Y)) for each in (inside, logits))
    assert first.log_marginal_likelihood == pytest.approx(second.log_marginal_likelihood, rel=1e-9)
    assert np.allclose(first.predictive(X).covariance, second.predictive(X).covariance)
    assert np.allclose(first.predictive(X).mean, second.predictive(X).mean)


@pytest.mark.parametrize("family", ["sigmoid", "gaussian", pytest.param("softmax", marks=pytest.mark.slow)])
def test_the_exact_diagonal_is_the_operators(family: str) -> None:
    """In float32, with weights, and a sum or another mean; softmax through an embedding and a recurrent layer."""
    keras.config.set_dtype_policy("float32")
    x, y = GENERATOR.integers(0, 5, (9, 4)), GENERATOR.integers(0, 2, (9, 2)).astype("float32")
    weights = GENERATOR.uniform(0.5, 2, 9)
    loss: Any = CE
    if family != "softmax":
        x = x.astype("float32")
        kind, reduction = {
            "sigmoid": (keras.losses.BinaryCrossentropy, "sum"),
            "gaussian": (keras.losses.MeanSquaredError, "mean_with_sample_weight"),
        }[family]
        loss = kind(reduction=reduction)
        model = compiled(keras.Input((4,)), layers.Dense(3, "tanh"), layers.Dense(2, "sigmoid"), loss=loss)
    else:
        inside = [layers.Embedding(5, 3), layers.GRU(3), layers.Dense(2)]
        model = compiled(keras.Input((4,), dtype="int32"), *inside, loss=loss)
        y = y[:, 0].astype(int)
    fixed = sdkeras.EmpiricalLoss(model, (x, y, weights), 4, mode="inference")
    exact = np.diag(sdkeras.FisherOperator(fixed).as_matrix())
    assert np.allclose(_diagonal(_Net.of(fixed)), exact, rtol=1e-4, atol=1e-6 * exact.max())


@pytest.mark.slow
def test_chosen_weights_alone_are_random(net: keras.Model) -> None:
    result = laplace(net, (X, Y), params=f"^(.*/)?{net.layers[-1].name}/")
    assert result.size == 12
    whole = laplace(net, (X, Y), prior_precision=result.prior_precision)
    at = result.predictive(X[:2]).covariance, whole.predictive(X[:2]).covariance
    assert np.all(np.diagonal(at[0], axis1=1, axis2=2) < np.diagonal(at[1], axis1=1, axis2=2))
    assert result.predictive(X[:2]).covariance.shape == (2, 3, 3)


# What is refused or said


def test_what_is_no_likelihood_is_refused_before_anything_is_computed() -> None:
    huber = compiled(keras.Input((6,)), layers.Dense(3), loss="huber")
    with pytest.raises(ModelError, match=r"huber is no negative log-likelihood.*Laplace posterior is made of"):
        laplace(huber, (X, np.eye(3)[Y]))
    inputs = keras.Input((6,))
    two = keras.Model(inputs, [layers.Dense(3)(inputs), layers.Dense(1)(inputs)])
    two.compile("sgd", ["mse", "mse"])
    with pytest.raises(ModelError, match="the model has 2 outputs"):
        laplace(two, (X, (np.eye(3)[Y], np.ones((22, 1)))))
    places = compiled(keras.Input((4, 6)), layers.Dense(3), loss="mse")
    with pytest.raises(ModelError, match="not of sequences or images"):
        laplace(places, (np.ones((5, 4, 6)), np.ones((5, 4, 3))))


def test_wrong_numbers_are_refused() -> None:
    model = compiled(keras.Input((6,)), layers.Dense(3))
    for options, words in (
        ({"rank": 0}, "rank is 0"),
        ({"dtype": "mixed_bfloat16"}, "dtype must be 'float32' or 'float64'"),
        ({"prior_precision": -1.0}, "prior_precision is -1.0; it must be positive"),
        ({"noise_variance": float("nan")}, "noise_variance is nan"),
        ({"noise_variance": 1.0}, "which only squared error has"),
    ):
        with pytest.raises(ValueError, match=words):
            laplace(model, (X, Y), **options)
    with pytest.raises(DataError, match="a sample weight is -1"):
        laplace(model, (X, Y, np.full(22, -1.0)), prior_precision=1.0)
    model.set_weights([np.full((6, 3), np.nan), np.zeros(3)])
    with pytest.raises(NonFiniteError, match="weights are NaN"):
        laplace(model, (X, Y))


def test_regularizers_and_decay_are_no_prior_and_wrong_inputs_of_predictions_are_told() -> None:
    l2 = keras.regularizers.L2(0.01)
    model = compiled(
        keras.Input((6,)),
        layers.Dense(3, kernel_regularizer=l2, bias_regularizer=l2),
        optimizer=keras.optimizers.AdamW(),
    )
    result = laplace(model, (X, Y), prior_precision=5.0)
    assert result.regularizer_precision == pytest.approx(2 * 22 * 0.01)
    assert {"other-prior", "decoupled-decay"} <= codes(result)
    assert "prior precision 5" in repr(result)
    for x, words in (
        (X[:, :4], "cannot be called"),
        (np.full((2, 6), np.inf), "NaN or infinity"),
        (X[:0], "at least one"),
    ):
        with pytest.raises(DataError, match=words):
            result.predictive(x)
    with pytest.raises(DataError, match="another structure"):
        result.predictive((X, X))
    with pytest.raises(ValueError, match="method must be"):
        result.predictive(X, method="bridge")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="draws is 1"):
        result.predictive(X, draws=1)


def test_the_diagonal_of_many_outputs_is_estimated(net: keras.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = laplace(net, (X, Y), rank=5, prior_precision=1.0)
    monkeypatch.setattr("sdkeras.runs.laplace._MOST_OUTPUTS", 2)
    monkeypatch.setattr("sdkeras.runs.laplace._PRODUCTS", 36)
    estimated = laplace(net, (X, Y), rank=5, prior_precision=1.0)
    assert "diagonal-estimated" in codes(estimated) - codes(exact)
    assert not np.array_equal(estimated.stddev, exact.stddev)
    assert np.allclose(estimated.stddev, exact.stddev, rtol=0.1)
