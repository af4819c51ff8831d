"""The critical learning rate of a step."""

from __future__ import annotations

import attrs

from sdkeras.results.arrays import ARRAYS_EQUAL, FloatArray, check_same_length, optional_interval
from sdkeras.results.measured import Measured

OUTCOMES = ("measured", "lower", "upper", "ascent", "no step")


@attrs.frozen
class CriticalStep:
    """The smallest rate along the optimizer's update at which the loss after the step exceeds the loss before it.

    Attributes:
        learning_rate: eta_c, with the bracket of the search, or over minibatches their median with its 95 % interval;
            None where the optimizer has no single rate, or there is no step. 0 where the update leads uphill.
        sharpness: Critical sharpness 2/eta_c; None where eta_c is 0 or None.
        ratio: The optimizer's rate over eta_c: above 1 this step raises the loss. None where eta_c is 0, or no step.
        outcome: 'measured'; 'lower' or 'upper' where the search found only a bound on eta_c, which stands in its
            place; 'ascent' where the loss rises along the update from the start; 'no step' where nothing moves.
        loss: The loss before the step; of minibatches the mean.
        slope: What the step would change it by if the loss were linear: the gradient times the update.
        tolerance: Width of the bracket, relative to the rate.
        num_evaluations: Losses that were taken, each a forward pass over the data or the minibatch.
        num_minibatches: How many of training's minibatches; None for all the data.
        ratios: Of each minibatch, NaN where it has none (its update leads uphill or moves nothing), shape
            [num_minibatches]; None for all the data.
        quartiles: First and third quartile of the ratios, infinity for those uphill; None below four minibatches.
        num_ascents: Minibatches whose update leads uphill.
        factors: Multiples of the update that were tried, ascending, shape [k]; of minibatches those of the first.
        losses: The loss after each, shape [k].
        step_error: Distance of the update from one of the optimizer itself, relative to it; None where not compared.
        verified: Whether these agree as far as they were compared.
    """

    learning_rate: Measured | None
    sharpness: Measured | None
    ratio: Measured | None
    outcome: str = attrs.field(validator=attrs.validators.in_(OUTCOMES))
    loss: float
    slope: float
    tolerance: float
    num_evaluations: int
    num_minibatches: int | None
    ratios: FloatArray | None = attrs.field(eq=ARRAYS_EQUAL)
    quartiles: tuple[float, float] | None = attrs.field(converter=optional_interval)
    num_ascents: int
    factors: FloatArray = attrs.field(eq=ARRAYS_EQUAL, repr=False)
    losses: FloatArray = attrs.field(eq=ARRAYS_EQUAL, repr=False)
    step_error: float | None
    verified: bool

    def __attrs_post_init__(self) -> None:
        check_same_length(self, "factors", "losses")
