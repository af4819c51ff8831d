"""Effective number of independent blocks behind a Lyapunov exponent, by TensorFlow Probability."""

import numpy as np
import pytest
import scipy.special

import sdkeras
from flows import RandomProducts
from sdkeras.results.estimates import LyapunovExponents
from sdkeras.runs.lyapunov import effective_samples


def exponents_of(means: np.ndarray) -> LyapunovExponents:
    """Exponents whose blocks, of one step each, have these means."""
    history = np.cumsum(means, axis=0) / np.arange(1, len(means) + 1)[:, None]
    values = np.sort(history[-1])[::-1]
    return LyapunovExponents(values, np.ones(len(values)), num_steps=len(means), seed=0, history=history)


def autoregressive(phi: float, length: int, count: int) -> np.ndarray:
    """x_t = phi x_(t-1) + noise, stationary, shape [length, count]."""
    noise = np.random.default_rng(3).standard_normal((length, count))
    series = np.empty_like(noise)
    series[0] = noise[0] / np.sqrt(1 - phi**2)
    for step in range(1, length):
        series[step] = phi * series[step - 1] + noise[step]
    return series


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9, -0.5])
def test_an_autoregressive_series_has_its_known_size(phi: float) -> None:
    samples = effective_samples(exponents_of(autoregressive(phi, 4001, 64)))
    # Single ones spread by 4 to 20 %: the mean of 64 is known to 3 %, and truncation loses a few more.
    assert samples is not None
    assert samples.mean() == pytest.approx(4001 * (1 - phi) / (1 + phi), rel=0.12)


def test_short_and_constant_series_have_none() -> None:
    assert effective_samples(exponents_of(np.ones((7, 2)))) is None
    assert effective_samples(LyapunovExponents([0.1], [0.1], num_steps=9, seed=0)) is None
    samples = effective_samples(exponents_of(np.ones((8, 2))))
    assert samples is not None
    assert np.all(np.isnan(samples))


@pytest.mark.parametrize("num_steps", [50, 600])
def test_blocks_of_independent_products_count_fully(num_steps: int) -> None:
    flow = RandomProducts(3, lambda rng: rng.standard_normal((3, 3)))
    qr = sdkeras.get_estimator("lyapunov", "lyapunov-qr")(num_exponents=3, num_steps=num_steps, transient=0)
    exponents = qr.estimate(flow, seed=0)
    samples = effective_samples(exponents)
    assert samples is not None
    assert samples.shape == (3,)
    assert np.all(samples > 0.4 * len(exponents.history))


def test_tensorflow_probability_works_with_the_installed_tensorflow() -> None:
    import tensorflow as tf
    import tensorflow_probability as tfp

    series = autoregressive(0.5, 512, 3)
    samples = tfp.mcmc.effective_sample_size(tf.constant(series), filter_beyond_positive_pairs=True)
    np.testing.assert_allclose(samples, effective_samples(exponents_of(series)), rtol=1e-6)
    normal = tfp.distributions.Normal(tf.constant(0.0, tf.float64), tf.constant(1.0, tf.float64))
    points = np.linspace(-4, 4, 9)
    np.testing.assert_allclose(normal.cdf(points), scipy.special.ndtr(points), rtol=1e-12)
