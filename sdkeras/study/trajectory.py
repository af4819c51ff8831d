"""The record of a trajectory of the weights and its file, without TensorFlow."""

from __future__ import annotations

import os
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from sdkeras.checkpoints import load_checkpoint, save_checkpoint
from sdkeras.errors import SdkerasError
from sdkeras.reading import blamed_on
from sdkeras.study.projection import Distortion
from sdkeras.whole_files import check_is_file, shown


@attrs.frozen(eq=False)
class Trajectory:
    """Iterates of the weights in the order of training.

    Attributes:
        iterates: Trainable variables as one vector in model order, or their projection; shape [steps, n or k]. A
            projection is of the differences from the first iterate that was seen.
        iterations: The optimizer's iteration after which each was taken (of a simulation: the steps from the
            checkpoint on), shape [steps].
        losses: Loss of each example of `losses_on` at each iterate, in inference mode, without regularisers; shape
            [steps, examples], or None.
        num_parameters: n.
        distortion: What the projection does to distances; None without one.
        seed: Of the projection, and of the minibatches if simulated.
        stopped_at: Iteration at which weights or losses came out NaN or infinite; what is kept ends before it. None if
            none did.
    """

    iterates: NDArray[Any]
    iterations: NDArray[Any]
    losses: NDArray[Any] | None
    num_parameters: int
    distortion: Distortion | None
    seed: int
    stopped_at: int | None

    def __attrs_post_init__(self) -> None:
        rows, steps = np.asarray(self.iterates), np.asarray(self.iterations)
        losses = rows if self.losses is None else np.asarray(self.losses)
        kinds = {array.dtype.kind for array in (rows, steps, losses)}
        counts = (self.num_parameters, self.seed, *([] if self.stopped_at is None else [self.stopped_at]))
        if not all(isinstance(count, (int, np.integer)) and count >= 0 for count in counts):
            raise ValueError("Trajectory: num_parameters, seed and stopped_at must be whole numbers.")
        if rows.ndim != 2 or losses.ndim != 2 or not kinds <= set("iuf"):
            raise ValueError("Trajectory: iterates and losses must be matrices of numbers.")
        if not steps.shape == (len(rows),) == (len(losses),):
            raise ValueError(
                f"Trajectory: {len(rows)} iterates with iterations of shape {steps.shape} and {len(losses)} losses."
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a .npz file, all of it or nothing.

        Raises:
            SdkerasError: The file cannot be written.
        """
        save_checkpoint(path, {"trajectory": 1, **attrs.asdict(self)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Trajectory:
        """Reads what `save` wrote.

        Raises:
            SdkerasError: Missing, damaged or another kind of file.
        """
        name, advice = shown(path), "give a file that TrajectoryRecorder or sdkeras study trajectory --save wrote."
        if not os.path.exists(path):
            raise SdkerasError(f"there is no file {name}; {advice}")
        check_is_file(path, SdkerasError, advice)
        try:
            held = load_checkpoint(path)
        except SdkerasError as error:
            raise SdkerasError(f"{name} is no trajectory, or damaged; {advice}") from error
        names = {field.name for field in attrs.fields(cls)}
        if not isinstance(held, dict) or held.pop("trajectory", None) != 1 or set(held) != names:
            raise SdkerasError(f"{name} is no trajectory; {advice}")
        with blamed_on(f"{name} is no whole trajectory", advice):
            if held["distortion"] is not None:
                held["distortion"] = Distortion(**held["distortion"])
            return cls(**held)
