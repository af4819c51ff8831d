"""Options of a trajectory, recorded or simulated from a checkpoint on, without TensorFlow."""

from __future__ import annotations

import os

import attrs

from sdkeras.errors import SdkerasError
from sdkeras.runs.declare import COUNT, NOT_NEGATIVE, OUTPUT, POSITIVE, PRECISION, WHAT, option
from sdkeras.runs.lyapunov_options import LyapunovOptions
from sdkeras.runs.options import TrainingOptions

DEFAULT_ITERATES = 5000
DEFAULT_EXAMPLES = 1000


def check_steps(steps: int, every: int) -> None:
    """Refuses steps that are too few for two iterates."""
    if steps < 2 * every:
        raise SdkerasError(f"steps is {steps}; a trajectory of 2 iterates needs at least {2 * every}.")


@attrs.frozen(kw_only=True)
class ForwardOptions(TrainingOptions):
    """All options of `sdkeras.study.simulate.forward`; see there."""

    steps: int = option(DEFAULT_ITERATES, "Steps to simulate.", COUNT, group=PRECISION)
    every: int = option(1, "Steps between two iterates that are kept.", COUNT, group=PRECISION)
    projection: int | None = option(
        None, "Project the iterates at random to K dimensions.", COUNT, metavar="K", group=PRECISION
    )
    losses_on: int = option(
        DEFAULT_EXAMPLES,
        "Random examples for the data-dependent distance; 0 for none.",
        NOT_NEGATIVE,
        metavar="N",
        group=WHAT,
    )
    alpha: float = option(1.0, "Power of the edges.", POSITIVE, group=WHAT)
    initial_slots: bool = attrs.field(default=False, metadata=attrs.fields(LyapunovOptions).initial_slots.metadata)
    save: str | os.PathLike[str] | None = option(
        None, "Save the simulated trajectory to this file.", metavar="TRAJECTORY.npz", group=OUTPUT
    )

    def __attrs_post_init__(self) -> None:
        check_steps(self.steps, self.every)

    @property
    def num_iterates(self) -> int:
        return self.steps // self.every
