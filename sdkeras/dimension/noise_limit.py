"""The limit that minibatch noise sets to the learning rate, as far as an analysis knows it."""

from __future__ import annotations

import math

import attrs

from sdkeras.dimension.stability import EDGE, plateaus
from sdkeras.results.answers import Analysis
from sdkeras.results.dimension import Plateau
from sdkeras.results.measured import STANDARD_ERRORS

Span = tuple[float, float]


@attrs.frozen
class NoiseLimit:
    """How much of what minibatch noise allows the learning rate uses; at 1 steps stop settling.

    Attributes:
        event: What happens at 1, in words that follow "before".
        share: Lower and upper bound of the share used.
        reason: What the share rests on, in words.
        is_kappa: Whether it is kappa of mean-square stability.
        between: The two levels of momentum, where the batch sharpness lies between them; else (). The share is then
            no error bar: it is low by the level of large minibatches and high by that of small ones, and which of the
            two limits the rate is not known.
    """

    event: str
    share: Span
    reason: str
    is_kappa: bool = False
    between: tuple[Plateau, ...] = ()


def noise_limit(run: Analysis) -> NoiseLimit | None:
    """The limit of minibatch noise that this run is nearest to; None where none is known.

    Two are compared: kappa of mean-square stability, for SGD without momentum, which is a lower bound; and the batch
    sharpness over the level at which it is reported to settle, 2/eta for SGD. Heavy ball has two levels,
    2(1 - beta)/eta in small and 2(1 + beta)/eta in large minibatches. Below the lower one, above the higher one and
    within `EDGE` of either, the batch sharpness is compared with the nearest; elsewhere the share has its quotients by
    both.

    Reference: Andreyev and Beneventano (2024), arXiv 2412.20553; Andreyev et al. (2026), arXiv 2604.14108.
    """
    stability = run.edge_of_stability.mean_square_stability
    kappa = None if stability is None or stability.kappa is None else stability.kappa.bounds
    limits = (
        []
        if kappa is None
        else [NoiseLimit("minibatch noise grows (kappa = 1)", kappa, "kappa is a lower bound", True)]
    )
    by_level = None if is_full_batch(run) else _by_level(run)
    limits += [] if by_level is None else [by_level]
    finite = [each for each in limits if math.isfinite(sum(each.share))]
    return max(finite, key=lambda each: each.share[1], default=None)


def is_full_batch(run: Analysis) -> bool:
    """Whether every step sees all the data, so that there is no minibatch noise."""
    return run.data.batch_size >= run.data.num_samples


def _by_level(run: Analysis) -> NoiseLimit | None:
    edge, optimizer = run.edge_of_stability, run.optimizer
    batch, error = edge.batch_sharpness, edge.batch_sharpness_stderr
    momentum, nesterov = optimizer.momentum, bool(optimizer.nesterov)
    levels = plateaus(optimizer.name, optimizer.learning_rate, momentum=momentum, nesterov=nesterov)
    if not levels or batch is None or error is None:
        return None
    half, lowest, highest = STANDARD_ERRORS * error, levels[0], levels[-1]
    if len(levels) == 1:
        share = (batch - half) / lowest.level, (batch + half) / lowest.level
        event = f"the batch sharpness reaches {lowest.formula}, where it settles"
        return NoiseLimit(event, share, "noise is judged by the batch sharpness alone")
    apart = f"{highest.level / lowest.level:.2g}"
    if EDGE[1] * lowest.level < batch < EDGE[0] * highest.level:
        event = (
            f"the batch sharpness reaches its level, {lowest.formula} in small or {highest.formula} in large "
            "minibatches"
        )
        reason = (
            f"the batch sharpness lies between the levels of small and large minibatches, {apart} times apart, and "
            "which of them limits the rate is not known"
        )
        return NoiseLimit(
            event, ((batch - half) / highest.level, (batch + half) / lowest.level), reason, between=levels
        )
    nearest = min(levels, key=lambda level: abs(batch / level.level - 1))
    other = f"large ones settle at {apart} times this level"
    if nearest is highest:
        other = f"small ones settle at a level {apart} times lower"
    event = f"the batch sharpness reaches {nearest.formula}, where {nearest.minibatches} minibatches settle"
    share = (batch - half) / nearest.level, (batch + half) / nearest.level
    return NoiseLimit(event, share, f"noise is judged as in {nearest.minibatches} minibatches; {other}")
