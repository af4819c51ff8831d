"""Options of a trajectory, recorded or simulated from a checkpoint on, without TensorFlow."""

from __future__ import annotations

import os
from collections.abc import Callable

import attrs

from sdkeras.errors import SdkerasError
from sdkeras.results.progress import Progress
from sdkeras.runs.lyapunov_options import LyapunovOptions, TrainingOptions
from sdkeras.runs.options import COUNT, NOT_NEGATIVE, POSITIVE, option, shared

DEFAULT_ITERATES = 5000
DEFAULT_EXAMPLES = 1000


def check_steps(steps: int, every: int) -> None:
    """Refuses steps that are too few for two iterates."""
    if steps < 2 * every:
        raise SdkerasError(f"steps is {steps}; a trajectory of 2 iterates needs at least {2 * every}.")


@attrs.frozen(kw_only=True)
class ForwardOptions(TrainingOptions):
    """All options of `sdkeras.study.simulate.forward`; see there."""

    steps: int = option(DEFAULT_ITERATES, COUNT, group="trajectory", text="Steps to simulate.")
    every: int = option(1, COUNT, group="trajectory", text="Steps between two iterates that are kept.")
    projection: int | None = option(
        None, COUNT, group="trajectory", metavar="K", text="Project the iterates at random to K dimensions."
    )
    losses_on: int = option(
        DEFAULT_EXAMPLES,
        NOT_NEGATIVE,
        group="trajectory",
        metavar="N",
        text="Random examples for the data-dependent distance; 0 for none.",
    )
    alpha: float = option(1.0, POSITIVE, group="trajectory", text="Power of the edges.")
    seed: int = shared("seed", more="For minibatches, dropout masks, examples, projection and subsamples.")
    initial_slots: bool = attrs.field(default=False, metadata=attrs.fields(LyapunovOptions).initial_slots.metadata)
    allow_unverified: bool = shared("allow_unverified", help="Continue with a step that failed its verification.")
    memory_gb: float | None = shared(
        "memory_gb", help="Memory for iterates and distances.", more="Default: 60 % of what is free."
    )
    save: str | os.PathLike[str] | None = option(
        None, group="trajectory", metavar="TRAJECTORY.npz", text="Save the simulated trajectory to this file."
    )
    progress: Callable[[Progress], None] | None = shared("progress", help="Function called after every step.")

    def __attrs_post_init__(self) -> None:
        check_steps(self.steps, self.every)

    @property
    def num_iterates(self) -> int:
        return self.steps // self.every
