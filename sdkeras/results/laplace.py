"""Predictions of a Laplace posterior, with what they are made of."""

from __future__ import annotations

import attrs

from sdkeras.results.arrays import ARRAYS_EQUAL, FloatArray, Value, finite, float_array

_ARRAY: dict[str, Value] = {"converter": float_array, "validator": finite, "eq": ARRAYS_EQUAL, "repr": False}


@attrs.frozen
class ClassPrediction:
    """Probabilities of classes for b examples, averaged over the posterior of C logits f ~ N(mean, covariance).

    Attributes:
        probabilities: Mean of softmax(f), or of sigmoid(f) for binary cross-entropy, shape [b, C].
        stderr: Their standard errors from the number of draws, shape [b, C]; 0 for method 'probit', whose error is
            that of its formula.
        mean: Logits of the net itself, shape [b, C].
        covariance: J P^-1 J', shape [b, C, C].
        method: 'monte-carlo' or 'probit'.
        draws: Draws of the logits of each example; 0 for 'probit'.
        seed: Seed for them.
    """

    probabilities: FloatArray = attrs.field(**_ARRAY)
    stderr: FloatArray = attrs.field(**_ARRAY)
    mean: FloatArray = attrs.field(**_ARRAY)
    covariance: FloatArray = attrs.field(**_ARRAY)
    method: str
    draws: int
    seed: int


@attrs.frozen
class ValuePrediction:
    """Mean and variance of the targets of b examples, C numbers each.

    Attributes:
        mean: Outputs of the net itself, shape [b, C].
        variance: Variance of a target: that of the output plus the noise, shape [b, C].
        covariance: Of the outputs alone, J P^-1 J', shape [b, C, C].
        noise_variance: The noise's share in `variance`.
    """

    mean: FloatArray = attrs.field(**_ARRAY)
    variance: FloatArray = attrs.field(**_ARRAY)
    covariance: FloatArray = attrs.field(**_ARRAY)
    noise_variance: float
