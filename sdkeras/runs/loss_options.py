"""The options of what is taken of losses alone, landscapes and critical rates; no TensorFlow."""

from __future__ import annotations

import os

import attrs

from sdkeras.errors import SdkerasError
from sdkeras.files.user_code import in_one_line
from sdkeras.operators.modes import (
    MODES,
    Mode,
)
from sdkeras.results.arrays import Value, is_number
from sdkeras.runs.declare import (
    COUNT,
    FINITE,
    FRACTION,
    PRECISION,
    WHAT,
    must,
    one_of,
    option,
)
from sdkeras.runs.options import EstimationOptions, TrainingOptions

# Kinds of directions; a trajectory has its file after a colon.
DIRECTIONS = ("eigenvectors", "random", "step")
_TRAJECTORY = "trajectory:"
# Beyond any loss that a picture shows.
_MOST_SPAN = 1e6
# Points along each axis, by the number of axes.
_POINTS = {1: 41, 2: 21}
_ASCENT_STEPS = 20


def _are_directions(value: Value) -> bool:
    return isinstance(value, str) and (value in DIRECTIONS or (value.startswith(_TRAJECTORY) and len(value) > 11))


@attrs.frozen(kw_only=True)
class LandscapeOptions(EstimationOptions):
    """All options of `sdkeras.landscape`; see there.

    Raises:
        SdkerasError: A value out of its range, or options that contradict each other.
    """

    samples: int = option(4096, "Take the loss over a random subset of this many samples.", COUNT, group=PRECISION)
    mode: Mode = option(
        "train", "Mode of dropout and batch normalization: 'train' or 'inference'.", one_of(MODES), group=WHAT
    )
    directions: str = option(
        "eigenvectors",
        "Where to look: eigenvectors, random, step (the optimizer's next update), or trajectory:PATH, the first "
        "principal components of recorded weights.",
        must(f"one of {', '.join(DIRECTIONS)}, or trajectory:PATH", _are_directions),
        metavar="eigenvectors|random|step|trajectory:PATH",
        more="In two dimensions the step's second direction is the top eigenvector, made orthogonal to the step. PATH "
        "is what `sdkeras.study.TrajectoryRecorder` wrote, a matrix of weights, or a folder with a trajectory.npz.",
        group=WHAT,
    )
    dimensions: int = option(
        1,
        "A line, or a plane: 1 or 2.",
        must("1 or 2", lambda value: is_number(value, whole=True) and value in (1, 2)),
        metavar="1|2",
        group=WHAT,
    )
    span: float | None = option(
        None,
        "How far to each side, in units of the directions; by default by their kind.",
        must("positive, at most 1e6", lambda value: is_number(value) and 0 < value <= _MOST_SPAN),
        more="Eigenvectors and components have length 1 (by default as far as the quadratic model adds the loss once "
        "more, or as the trajectory goes), the step is itself (default 4), and random directions are as long as all "
        "the weights (default 1).",
        group=WHAT,
    )
    points: int | None = option(
        None,
        "Points along each axis; default 41, in two dimensions 21.",
        must("a whole number from 3 to 1001", lambda value: is_number(value, whole=True) and 3 <= value <= 1001),
        group=PRECISION,
    )
    filter_normalized: bool = option(
        False,
        "Scale each filter of the directions to the length of the weights' own filter; biases stay.",
        group=WHAT,
    )
    rho: float | None = option(
        None,
        "Also the worst loss within this distance of the weights (SAM's sharpness).",
        FINITE,
        more="A lower bound, by projected ascent. 0.05 is usual in SAM.",
        metavar="R",
        group=WHAT,
    )
    adaptive_rho: float | None = option(
        None,
        "The same within this distance in units of each weight's size (adaptive sharpness, ASAM).",
        FINITE,
        more="It does not change where one layer of a ReLU net is multiplied by a number and the next divided by it. "
        "0.5 is usual in ASAM.",
        metavar="R",
        group=WHAT,
    )
    ascent_steps: int = option(
        _ASCENT_STEPS, "Steps of ascent from each start, a loss and a gradient each.", COUNT, group=PRECISION
    )
    initial_slots: bool = option(False, "For a step of an optimizer that has taken none: take its initial slots.")

    def __attrs_post_init__(self) -> None:
        if self.points is None:
            object.__setattr__(self, "points", _POINTS[self.dimensions])
        if self.trajectory is not None and not os.path.exists(self.trajectory):
            raise SdkerasError(
                f"there is no file {in_one_line(self.trajectory, 100)}; give what TrajectoryRecorder or a "
                "study kept (`directions='trajectory:PATH'`)."
            )
        if self.ascent_steps != _ASCENT_STEPS and self.rho is None and self.adaptive_rho is None:
            raise SdkerasError(
                "ascent_steps are steps to the worst loss within a ball, and none is asked for; leave them out, or "
                "give the ball's radius (`rho=R` or `adaptive_rho=R`)."
            )
        if self.initial_slots and self.directions != "step":
            raise SdkerasError(
                "initial_slots are of the optimizer's step, which these directions do not need; leave them out, or "
                "take the step (`directions='step'`)."
            )
        if self.directions == "step" and self.mode != "train":
            raise SdkerasError(
                "the optimizer's step is of training mode; leave out mode, or take other directions (`mode`, "
                "`directions`)."
            )
        if self.settings:
            unknown = min(set(self.settings) - {"lanczos"}, default="")
            if unknown:
                raise SdkerasError(f"settings were given for '{unknown}', which is not used here; used is: lanczos.")

    @property
    def trajectory(self) -> str | None:
        """The file of recorded weights, where directions come from one."""
        return self.directions[len(_TRAJECTORY) :] if self.directions.startswith(_TRAJECTORY) else None

    @property
    def num_points(self) -> int:
        """Points of the whole grid."""
        return int((self.points or 0) ** self.dimensions)


@attrs.frozen(kw_only=True)
class CriticalOptions(TrainingOptions):
    """All options of `sdkeras.critical`; see there.

    Raises:
        SdkerasError: A value out of its range.
    """

    samples: int | None = option(
        None, "Take the loss over this many samples, drawn at random; default all.", COUNT, group=PRECISION
    )
    minibatches: int | None = option(
        None,
        "Take the updates of N minibatches of training, and each minibatch's own loss, in place of all the data.",
        COUNT,
        more="The answer is then the median over them, with its 95 % interval from six minibatches on. Each costs as "
        "many forward passes as all the data would, of a minibatch.",
        metavar="N",
        group=WHAT,
    )
    tolerance: float = option(
        0.02, "Width of the bracket around the critical learning rate, relative to it.", FRACTION, group=PRECISION
    )
    initial_slots: bool = option(False, "For an optimizer that has taken no step: take its initial slots.")
