"""Stability thresholds of optimizers on a quadratic, and the verdict on the edge of stability."""

from __future__ import annotations

import math

import attrs

from sdkeras.results.dimension import EdgeOfStability, Plateau
from sdkeras.results.measured import STANDARD_ERRORS

# "At the edge": what full-batch training hovers in, once progressive sharpening has brought it there
# (Cohen et al. 2021, Figure 1).
EDGE = (0.9, 1.1)
# Relative standard error that the batch sharpness aims at.
BATCH_SHARPNESS_ERROR = 0.02


@attrs.frozen
class Thresholds:
    """A step is stable along an eigenvector iff lower < alpha < upper.

    Attributes:
        lower: Below it negative curvature outgrows weight decay.
        upper: Above it the step overshoots and grows.
        formula: The upper one in words.
        preconditioned: Whether alpha belongs to P^-1/2 H P^-1/2 and not to H.
    """

    lower: float
    upper: float
    formula: str
    preconditioned: bool = False


def thresholds(
    optimizer: str,
    learning_rate: float,
    *,
    momentum: float | None = None,
    nesterov: bool = False,
    weight_decay: float = 0.0,
) -> Thresholds | None:
    """Thresholds of a Keras optimizer; P of Adam, AdamW, Nadam and RMSprop counts as frozen.

    s = 1 - eta * wd. SGD (1 + s)/eta; heavy ball (1 + s)(1 + beta)/eta; Nesterov
    (1 + s)(1 + beta)/((1 + 2 beta) eta); Adam and AdamW heavy ball with a = eta (1 - beta1) alpha; Nadam Nesterov
    with the same a, once its momentum schedule has settled; RMSprop like SGD or heavy ball.

    Args:
        optimizer: Keras class name.
        learning_rate: eta.
        momentum: beta of SGD and RMSprop, beta_1 of Adam and Nadam.
        nesterov: SGD's Nesterov momentum.
        weight_decay: Decoupled decay wd.

    Returns:
        The thresholds, or None where no such threshold is known.

    Example:
        >>> thresholds("SGD", 0.1).upper, thresholds("SGD", 0.1, momentum=0.5).upper
        (20.0, 30.0)

    Reference: Cohen et al. (2021), arXiv 2103.00065, for SGD and momentum; Cohen et al. (2022),
    arXiv 2207.14484, for Adam; Regis and Chewi (2026), arXiv 2605.06821, for Nadam; with decay from the Jury
    conditions of the 2x2 blocks.
    """
    eta, beta, twice = learning_rate, momentum or 0.0, 2.0 - learning_rate * weight_decay
    if optimizer == "SGD":
        if beta == 0.0:
            return Thresholds(-weight_decay, twice / eta, _formula("2", "eta", weight_decay))
        if nesterov:
            upper = twice * (1 + beta) / ((1 + 2 * beta) * eta)
            formula = _formula("2(1+beta)", "((1+2beta)*eta)", weight_decay)
        else:
            upper, formula = twice * (1 + beta) / eta, _formula("2(1+beta)", "eta", weight_decay)
        return Thresholds(-weight_decay * (1 - beta), upper, formula)
    if optimizer in ("Adam", "AdamW"):
        formula = _formula("2(1+beta1)", "((1-beta1)*eta)", weight_decay)
        return Thresholds(-weight_decay, twice * (1 + beta) / ((1 - beta) * eta), formula, preconditioned=True)
    if optimizer == "Nadam":
        formula = _formula("2(1+beta1)", "((1-beta1)(1+2beta1)*eta)", weight_decay)
        upper = twice * (1 + beta) / ((1 - beta) * (1 + 2 * beta) * eta)
        return Thresholds(-weight_decay, upper, formula, preconditioned=True)
    if optimizer == "RMSprop":
        formula = _formula("2(1+mu)" if beta else "2", "eta", weight_decay)
        upper = twice * (1 + beta) / eta
        return Thresholds(-weight_decay * (1 - beta), upper, formula, preconditioned=True)
    return None


def plateaus(
    optimizer: str, learning_rate: float, *, momentum: float | None = None, nesterov: bool = False
) -> tuple[Plateau, ...]:
    """Levels at which the batch sharpness of minibatch training is reported to settle, ascending; () where none is.

    SGD 2/eta. With heavy ball two, which no single threshold explains: 2(1 - beta)/eta in small minibatches, whose
    noise momentum amplifies, and in large ones the full-batch threshold 2(1 + beta)/eta. Neither is for weight decay.

    Reference: Andreyev and Beneventano (2024), arXiv 2412.20553; Andreyev et al. (2026), arXiv 2604.14108.
    """
    beta = momentum or 0.0
    if optimizer != "SGD" or nesterov or not 0 < learning_rate < math.inf or not 0 <= beta < 1:
        return ()
    if beta == 0.0:
        return (Plateau(2.0 / learning_rate, "2/eta", "any"),)
    return (
        Plateau(2.0 * (1.0 - beta) / learning_rate, "2(1-beta)/eta", "small"),
        Plateau(2.0 * (1.0 + beta) / learning_rate, "2(1+beta)/eta", "large"),
    )


def settled_at(edge: EdgeOfStability) -> Plateau | None:
    """The plateau of momentum that the batch sharpness is at, where it decides the verdict; else None.

    It does where the sharpness is below the edge of full-batch steps, and the batch sharpness, known to a 95 %
    half-width of a fifth of the level, is within `EDGE` of it. Without momentum the level is the threshold itself.
    """
    batch, error = edge.batch_sharpness, edge.batch_sharpness_stderr
    if len(edge.plateaus) < 2 or batch is None or error is None or edge.ratio is None or not 0 < edge.ratio < EDGE[0]:
        return None
    nearest = min(edge.plateaus, key=lambda plateau: abs(batch / plateau.level - 1))
    known = STANDARD_ERRORS * error <= (EDGE[1] - EDGE[0]) * nearest.level
    return nearest if known and EDGE[0] <= batch / nearest.level <= EDGE[1] else None


def verdict_by_plateau(edge: EdgeOfStability, plateau: Plateau) -> str:
    """The verdict where the batch sharpness is at this plateau, in one sentence; that on the sharpness ends it."""
    batch = edge.batch_sharpness or math.nan
    return (
        f"At the edge of stochastic stability: batch sharpness {batch:.4g} is {batch / plateau.level:.2g} times "
        f"{plateau.formula} = {plateau.level:.4g}, where momentum in {plateau.minibatches} minibatches is reported to "
        f"settle; {edge.verdict.partition(': ')[2]}"
    )


def _formula(numerator: str, denominator: str, weight_decay: float) -> str:
    if weight_decay:
        numerator = "(2-eta*wd)" + numerator[1:]
    return f"{numerator}/{denominator}"


def verdict(
    sharpness: float | None,
    limits: Thresholds | None,
    *,
    optimizer: str,
    learning_rate: float,
    rate_source: str = "",
    reason: str = "",
) -> str:
    """Where the training stands, in one sentence.

    Args:
        sharpness: Largest eigenvalue of the threshold's own operator, or None if it was not measured.
        limits: The optimizer's thresholds, or None.
        optimizer: Its name.
        learning_rate: eta.
        rate_source: Origin of the rate, in words; "" where it need not be said.
        reason: Why there is no ratio, where there is none.
    """
    rate = f"{optimizer} at learning rate {learning_rate:.4g}" + (f" ({rate_source})" if rate_source else "")
    why = f" ({reason})" if reason else ""
    if limits is None:
        return f"No verdict: no stability threshold is known for {optimizer}{why}."
    if sharpness is None or not math.isfinite(sharpness):
        return f"No verdict: the sharpness could not be compared with the threshold of {rate}{why}."
    what = "preconditioned sharpness" if limits.preconditioned else "sharpness"
    ratio = sharpness / limits.upper
    limit = f"{limits.formula} = {limits.upper:.4g} of {rate}"
    numbers = f"{what} {sharpness:.4g} is {ratio:.2g} times the threshold {limit}"
    if sharpness <= 0:
        return f"No direction of the data-set loss curves upwards: {numbers}."
    if ratio < EDGE[0]:
        return f"Below the edge of stability: {numbers}."
    if ratio <= EDGE[1]:
        return f"At the edge of stability: {numbers}."
    return f"Above the edge of stability, where full-batch steps would grow: {numbers}."
