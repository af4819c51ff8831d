"""The record of a trajectory of the weights and its file, without TensorFlow."""

from __future__ import annotations

import os

import attrs
import numpy as np

from sdkeras.errors import SdkerasError
from sdkeras.files.archive import LAYOUT, load_checkpoint, save_checkpoint
from sdkeras.files.atomic import check_is_file, shown
from sdkeras.files.reading import blamed_on
from sdkeras.linalg.projection import Distortion
from sdkeras.results.arrays import Array

# Names of the matrix in a .npz of several arrays.
_MATRICES = ("trajectory", "weights")
# Numbers of a matrix that are checked at once.
_BLOCK = 2**24


@attrs.frozen(eq=False)
class Trajectory:
    """Iterates of the weights in the order of training.

    Attributes:
        iterates: Trainable variables as one vector in model order, or their projection; shape [steps, n or k]. A
            projection is of the differences from the first iterate that was seen.
        iterations: The optimizer's iteration after which each was taken (in a simulation: steps from the checkpoint
            on), shape [steps].
        losses: Loss of each example of `losses_on` at each iterate, in inference mode, without regularisers; shape
            [steps, examples], or None.
        num_parameters: n.
        distortion: Distortion of distances by the projection; None without one.
        seed: Seed for the projection, and of the minibatches if simulated.
        stopped_at: Iteration at which weights or losses came out NaN or infinite; the iterates end before it. None if
            none did.
    """

    iterates: Array
    iterations: Array
    losses: Array | None
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
        """Reads what `save` wrote, or a plain matrix with a row for each step and a column for each weight.

        Args:
            path: A file of `save`; a .npy, which is mapped into memory and not read as a whole; or a .npz with one
                array, or with one named 'trajectory' or 'weights'.

        Raises:
            SdkerasError: Missing, damaged, another kind of file, or no finite matrix of 2 rows or more.
        """
        name = shown(path)
        advice = (
            "give a file that TrajectoryRecorder or sdkeras study trajectory --save wrote, or a matrix, steps x "
            "weights, of floating-point numbers (.npy, or .npz with one array or one named 'trajectory' or 'weights')."
        )
        if not os.path.exists(path):
            raise SdkerasError(f"there is no file {name}; {advice}")
        check_is_file(path, SdkerasError, advice)
        matrix = _matrix_in(path, advice)
        if matrix is not None:
            rows, columns = matrix.shape
            return cls(matrix, np.arange(rows), None, num_parameters=columns, distortion=None, seed=0, stopped_at=None)
        try:
            held = load_checkpoint(path)
        except SdkerasError as error:
            raise SdkerasError(f"{name} is not a trajectory, or damaged; {advice}") from error
        names = {field.name for field in attrs.fields(cls)}
        if not isinstance(held, dict) or held.pop("trajectory", None) != 1 or set(held) != names:
            raise SdkerasError(f"{name} is not a trajectory; {advice}")
        with blamed_on(f"{name} is not a complete trajectory", advice):
            if held["distortion"] is not None:
                held["distortion"] = Distortion(**held["distortion"])
            return cls(**held)


def _matrix_in(path: str | os.PathLike[str], advice: str) -> Array | None:
    """The matrix in a .npy or .npz file, checked; None where the file is one of `Trajectory.save`."""
    where = name = shown(path)
    array: Array
    with blamed_on(f"{name} cannot be read as a trajectory", advice):
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            if isinstance(array, np.lib.npyio.NpzFile):
                with array as stored:
                    if LAYOUT in stored.files:
                        return None
                    only = len(stored.files) == 1
                    arrays = stored.files if only else [key for key in _MATRICES if key in stored.files]
                    if len(arrays) != 1:
                        listed = ", ".join(map(shown, stored.files[:5])) or "none"
                        raise SdkerasError(f"{name} is not a trajectory: its arrays are {listed}; {advice}")
                    array, where = stored[arrays[0]], f"{name}, array {arrays[0]!r},"
        except ValueError as error:
            if "allow_pickle" in str(error) or "Python objects" in str(error):
                raise SdkerasError(f"{name} holds Python objects, which are never unpickled; {advice}") from error
            raise
    if array.ndim != 2 or array.dtype.kind != "f" or array.dtype.itemsize > 8 or array.shape[1] < 1:
        raise SdkerasError(f"{where} is of shape {array.shape} and type {array.dtype}; {advice}")
    if len(array) < 2:
        raise SdkerasError(f"{where} has {len(array)} rows, and a trajectory needs at least 2 steps; {advice}")
    for index, row in enumerate(array):
        if not all(np.isfinite(row[k : k + _BLOCK]).all() for k in range(0, len(row), _BLOCK)):
            raise SdkerasError(f"{where} holds NaN or infinity, first in row {index}; cut it before that step.")
    return array
