"""The edge of stability: sharpness against the optimizer's own threshold, and the batch sharpness."""

from __future__ import annotations

import numpy as np

from sdkeras.dimension import stability
from sdkeras.dimension.adaptive import AdaptiveSettings
from sdkeras.dimension.records import EdgeOfStability
from sdkeras.long_vectors import dot, norm
from sdkeras.operators.hessian import HessianOperator
from sdkeras.reporting.numbers import rate_source_in_words
from sdkeras.subject import Subject, operator_name

# The batch sharpness takes at most this part of a limited number of products, and at least so many minibatches.
_PART_OF_PRODUCTS, _FEWEST_MINIBATCHES = 20, 3


def edge_of_stability(subject: Subject, sharpness: float | None, reason: str = "") -> EdgeOfStability:
    """The verdict on the largest eigenvalue of the threshold's own operator, before the batch sharpness is known.

    Args:
        subject: What is analysed.
        sharpness: The eigenvalue, or None where it is unknown.
        reason: Why it is unknown.
    """
    optimizer, limits = subject.optimizer, subject.limits
    threshold = None if limits is None else limits.upper
    verdict = (
        f"No verdict: {subject.no_rate}"
        if subject.rate is None
        else stability.verdict(
            sharpness,
            limits,
            optimizer="plain SGD" if optimizer is None else optimizer.name,
            learning_rate=subject.rate,
            rate_source="" if subject.rate_source == "file" else rate_source_in_words(subject.rate_source),
            reason=reason,
        )
    )
    return EdgeOfStability(
        operator=operator_name(subject.preconditioned),
        sharpness=sharpness,
        threshold=threshold,
        ratio=None if sharpness is None or threshold is None else sharpness / threshold,
        batch_sharpness=None,
        batch_sharpness_stderr=None,
        verdict=verdict,
    )


def num_minibatches(max_hvps: int | None) -> int:
    """Of the batch sharpness, within a limit on the products of the whole analysis."""
    count = AdaptiveSettings().min_runs
    return count if max_hvps is None else min(count, max(_FEWEST_MINIBATCHES, max_hvps // _PART_OF_PRODUCTS))


def batch_sharpness(hessian: HessianOperator, num_minibatches: int) -> tuple[float | None, float | None]:
    """Mean over minibatches of g'Hg/|g|^2 (mean of ratios) and its standard error.

    Reference: Andreyev and Beneventano (2024).
    """
    ratios = []
    for index in range(num_minibatches):
        view = hessian.on_minibatch(index)
        gradient = view.gradient()
        length = norm(gradient)
        if length > 0:
            direction = (gradient / length).astype(view.dtype)
            del gradient
            ratios.append(dot(direction, view.matvec(direction)))
    if not ratios:
        return None, None
    error = float(np.std(ratios, ddof=1) / np.sqrt(len(ratios))) if len(ratios) > 1 else None
    return float(np.mean(ratios)), error
