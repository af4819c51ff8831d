"""Variables laid end to end: one flat vector, with names and slices."""

from __future__ import annotations

import re
from collections.abc import Sequence

import attrs
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike, DTypeLike

from sdkeras.errors import ModelError
from sdkeras.files.keras_types import Tensor, Variable
from sdkeras.results.arrays import Array

# Weights beyond this come from no training that works: the messages about what fails there say so.
HUGE_WEIGHT = 1e6


@attrs.frozen
class Layout:
    """Where each variable lies in the flat vector."""

    names: tuple[str, ...]  # variable paths, in the model's order
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, variables: Sequence[Variable]) -> Layout:
        """The layout of Keras variables in the given order."""
        return cls(
            tuple(str(variable.path) for variable in variables),
            tuple(tuple(int(side) for side in variable.shape) for variable in variables),
        )

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(int(np.prod(shape, dtype=np.int64)) for shape in self.shapes)

    @property
    def size(self) -> int:
        return sum(self.sizes)

    @property
    def slices(self) -> tuple[slice, ...]:
        ends = np.cumsum(self.sizes)
        return tuple(slice(int(end) - size, int(end)) for end, size in zip(ends, self.sizes, strict=True))

    @property
    def layers(self) -> dict[str, slice]:
        """Where the parameters of each layer lie, by the layer's path (the variable's path without its own name).

        A layer whose variables do not lie side by side, as with weight sharing, has one entry per stretch.
        """
        places: dict[str, slice] = {}
        last = ""
        for name, place in zip(self.names, self.slices, strict=True):
            layer = name.rpartition("/")[0] or name
            label = layer
            if layer in places and layer != last:
                label = name
            elif layer in places:
                place = slice(places[layer].start, place.stop)
            places[label] = place
            last = label
        return places

    def magnitudes(self, vector: Array) -> dict[str, float]:
        """The largest absolute value in each variable, by its path."""
        return {
            name: float(np.max(np.abs(vector[place]), initial=0.0))
            for name, place in zip(self.names, self.slices, strict=True)
        }

    def flatten(self, arrays: Sequence[ArrayLike], dtype: DTypeLike) -> Array:
        """Arrays of these shapes as one vector, shape [size]."""
        return np.concatenate([np.asarray(array, dtype=dtype).ravel() for array in arrays])

    def split(self, vector: Tensor) -> list[Tensor]:
        """A flat tensor as one tensor for each variable."""
        pieces = zip(tf.split(vector, list(self.sizes)), self.shapes, strict=True)
        return [tf.reshape(piece, shape) for piece, shape in pieces]


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Tensors of any shapes as one flat tensor."""
    return tf.concat([tf.reshape(tensor, [-1]) for tensor in parts], axis=0)


def select_variables(variables: Sequence[Variable], pattern: str | None) -> list[Variable]:
    """The variables whose path the regular expression finds (all of them without one), in order; at least one."""
    try:
        expression = re.compile(pattern or "")
    except re.error as error:
        raise ModelError(f"the parameter pattern {pattern!r} is not a regular expression: {error}.") from error
    chosen = [variable for variable in variables if expression.search(str(variable.path))]
    if not chosen:
        if not variables:
            raise ModelError("the model has no trainable variables, so there is nothing to analyse.")
        paths = ", ".join(str(variable.path) for variable in variables[:12])
        raise ModelError(f"no trainable variable matches {pattern!r}; the model has: {paths}.")
    return chosen
