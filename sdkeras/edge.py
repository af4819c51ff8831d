"""The edge of stability: sharpness against the optimizer's own threshold, and the batch sharpness."""

from __future__ import annotations

import numpy as np

from sdkeras.dimension import stability
from sdkeras.dimension.adaptive import AdaptiveSettings
from sdkeras.dimension.records import EdgeOfStability
from sdkeras.errors import BudgetError
from sdkeras.long_vectors import dot, norm
from sdkeras.operators.hessian import HessianOperator
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
    return EdgeOfStability(
        operator=operator_name(limits is not None and limits.preconditioned),
        sharpness=sharpness,
        threshold=threshold,
        ratio=None if sharpness is None or threshold is None else sharpness / threshold,
        batch_sharpness=None,
        batch_sharpness_stderr=None,
        verdict=stability.verdict(
            sharpness,
            limits,
            optimizer="plain SGD" if optimizer is None else optimizer.name,
            learning_rate=subject.rate,
            reason=reason,
        ),
    )


def num_minibatches(max_hvps: int | None) -> int:
    """Of the batch sharpness, within a limit on the products of the whole analysis."""
    count = AdaptiveSettings().min_runs
    return count if max_hvps is None else min(count, max(_FEWEST_MINIBATCHES, max_hvps // _PART_OF_PRODUCTS))


def _rayleigh_quotient(view: HessianOperator) -> float | None:
    """g'Hg/|g|^2 of one minibatch; None where its gradient is 0."""
    gradient = view.gradient()
    length = norm(gradient)
    if length == 0:
        return None
    direction = (gradient / length).astype(view.dtype)
    del gradient
    return dot(direction, view.matvec(direction))


def batch_sharpness(hessian: HessianOperator, num_minibatches: int) -> tuple[float | None, float | None]:
    """Mean over minibatches of g'Hg/|g|^2 (mean of ratios) and its standard error; over fewer where the budget ends.

    Raises:
        BudgetError: It has no room for one minibatch.

    Reference: Andreyev and Beneventano (2024).
    """
    ratios: list[float] = []
    for index in range(num_minibatches):
        view = hessian.on_minibatch(index)
        try:
            ratio = _rayleigh_quotient(view)
        except BudgetError:
            if not ratios:
                raise
            break
        if ratio is not None:
            ratios.append(ratio)
    if not ratios:
        return None, None
    error = float(np.std(ratios, ddof=1) / np.sqrt(len(ratios))) if len(ratios) > 1 else None
    return float(np.mean(ratios)), error
