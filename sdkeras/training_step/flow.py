"""Training that goes on from a checkpoint, on copies, with tangent vectors: the only walk along a training."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np

from sdkeras.errors import SdkerasError, instance
from sdkeras.files.archive import Nested
from sdkeras.files.keras_types import Tensor
from sdkeras.linalg.operators import TangentFlow
from sdkeras.linalg.probes import Space, space_of
from sdkeras.results.arrays import Array, DType
from sdkeras.training_step.coordinates import Coordinates
from sdkeras.training_step.map import UpdateMap

_ENTRIES = {"about", "seed", "step", "state", "held"}


class TrainingFlow:
    """The trajectory x_(t+1) = U_t(x_t) of real training steps, and V -> J_t V with it: a `TangentFlow`.

    Step t is one update of the optimizer on minibatch t (minibatches t k .. t k + k - 1 with accumulation over k),
    drawn as `fit` draws them: permute, cut, drop the tail, next epoch; with its own dropout masks, and with learning
    rate, iteration and other held values advanced. It starts at the map's own state. Everything runs on arrays:
    neither the model nor its optimizer changes. The moving averages of batch normalization are not advanced: in
    training mode they do not enter the loss. With a loss in inference mode they are constants, as training's are not.

    Args:
        step: The map of the compiled model.
        about: Identity of the trajectory, which a saved state must share, by name: loss, optimizer settings.

    Attributes:
        size: Length N of the state, and of a tangent.
        dtype: Dtype of the tangents.
        index: Steps made since the start.
        position: The optimizer's state x_t after them, shape [N]; where the tangents live.
        held: Values that the next step reads beside the state, by name.

    Example:
        flow = TrainingFlow(sdkeras.UpdateMap(loss, model.optimizer))
        sdkeras.get_estimator("lyapunov", "lyapunov-qr")(num_exponents=5).estimate(flow, seed=0)
    """

    def __init__(self, step: UpdateMap, about: Mapping[str, str] | None = None) -> None:
        self._start = instance(step, "step", UpdateMap)
        self._given_about = dict(about or {})
        self.reset(step.loss.seed)

    @property
    def size(self) -> int:
        return self._start.size

    @property
    def dtype(self) -> DType:
        return self._start.dtype

    @property
    def space(self) -> Space | None:
        return self._start.space

    @functools.cached_property
    def _about(self) -> dict[str, object]:
        source = self._start.loss.source
        return {
            **self._given_about,
            "data": source.digest(),
            "batch size": source.batch_size,
            "batches of the data set": source.batch_ranges is not None,
            **({"jit": True} if self._start.loss.gradients.jit else {}),  # other masks; files without it had none
            "mode": "train" if self._start.loss.function.training else "inference",
            "product mode": self._start.verification.hessian.mode,
            **({} if self._start.loss.micro_batch is None else {"parts of batches": self._start.loss.micro_batch}),
        }

    def reset(self, seed: int) -> None:
        """Back to the checkpoint, with the seed's order of minibatches and dropout masks."""
        self._seed = seed
        self._map = self._start if seed == self._start.loss.seed else self._start.with_seed(seed)
        self.position: Array | Tensor = space_of(self).moved(self._start.state)
        self.held: dict[str, Array] = self._start.held
        self.index = 0

    def step(self, tangents: Array) -> Array:
        """J_t V for tangents V, shape [N, k], and the step itself; the flow stays where it is if that fails.

        Raises:
            NonFiniteError: The trajectory has diverged.
        """
        pushed: Array = self.advance(tangents)
        return pushed

    def advance(self, tangents: Array | None = None) -> Tensor:
        """A step, without tangents if there are none."""
        batches = self._map.training_batches(self.index)
        self.position, self.held, pushed = self._map.advance(self.position, self.held, batches, tangents)
        self.index += 1
        return pushed

    def state(self) -> Nested:
        """All that the later steps depend on, and what the trajectory is of."""
        return {
            "about": dict(self._about),
            "seed": self._seed,
            "step": self.index,
            "state": np.asarray(self.position),
            "held": dict(self.held),
        }

    def restore(self, state: Nested) -> None:
        """Goes to a state that `state` gave, in this process or another.

        Raises:
            SdkerasError: It is of another trajectory: other data, another model, optimizer or loss.
        """
        if not isinstance(state, dict) or set(state) != _ENTRIES:
            raise SdkerasError("this is not a state of a training trajectory; give what TrainingFlow.state() returned.")
        array = np.asarray(state["state"])
        expected = {**self._about, "state": (self.size, self.dtype.str), "held values": _shapes(self.held)}
        saved = {**state["about"], "state": (array.size, array.dtype.str), "held values": _shapes(state["held"])}
        differing = sorted(name for name in {*expected, *saved} if expected.get(name) != saved.get(name))
        if differing:
            raise SdkerasError(f"the saved state is of another trajectory; it differs in: {', '.join(differing)}.")
        self.reset(int(state["seed"]))
        self.position = space_of(self).moved(array.copy())
        self.held, self.index = dict(state["held"]), int(state["step"])


def _shapes(held: Mapping[str, Array]) -> dict[str, tuple[object, ...]]:
    return {name: (np.shape(value), np.asarray(value).dtype.str) for name, value in held.items()}


class DenseFlow:
    """The tangents of another flow in coordinates y = C x, and C J_t C^-1 of each step after a transient.

    From the end of the transient on a step carries all N unit vectors, whatever the tangents; those are multiplied
    by the matrix that comes out. It is a `TangentFlow`, and keeps T steps, the first `num_kept` of `jacobians`
    [T, N, N].
    """

    def __init__(self, flow: TangentFlow, coordinates: Coordinates, *, transient: int, num_steps: int) -> None:
        self.flow = flow
        self.coordinates = coordinates
        self.transient = transient
        self.size = flow.size
        self.dtype = flow.dtype
        self.jacobians: Array = np.empty((num_steps, flow.size, flow.size), flow.dtype)
        self.num_kept = 0
        self._index = 0

    def reset(self, seed: int) -> None:
        self.flow.reset(seed)
        self.num_kept = self._index = 0

    def step(self, tangents: Array) -> Array:
        if not self.transient <= self._index < self.transient + len(self.jacobians):
            moved = self._pushed(tangents)
        else:
            jacobian = self._pushed(np.eye(self.size, dtype=self.dtype))
            self.jacobians[self.num_kept] = jacobian
            self.num_kept += 1
            moved = jacobian @ tangents
        self._index += 1
        return moved

    def _pushed(self, columns: Array) -> Array:
        return self.coordinates.forward(self.flow.step(self.coordinates.backward(columns)))

    def state(self) -> Nested:
        return self.flow.state()

    def restore(self, state: Nested) -> None:
        del state
        raise SdkerasError(
            "a trajectory that keeps its Jacobians cannot go back to a saved state, which has none of them; follow it "
            "without windows, or with an estimator that does not go back."
        )
