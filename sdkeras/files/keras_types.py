"""Names for arrays and for the objects of TensorFlow and Keras, which have no types that a checker could use."""

from __future__ import annotations

from typing import Any, TypeAlias

from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
# A tensor, `tf.IndexedSlices`, or a structure of them.
Tensor: TypeAlias = Any
Variable: TypeAlias = Any
Model: TypeAlias = Any
Layer: TypeAlias = Any
Optimizer: TypeAlias = Any
# A learning-rate schedule.
Schedule: TypeAlias = Any
# What `Model.compile` takes for a loss: a name, a function, an object, or a structure of these.
Loss: TypeAlias = Any
# A function that TensorFlow traces or has traced.
Compiled: TypeAlias = Any
GraphDef: TypeAlias = Any
Graph: TypeAlias = Any
Operation: TypeAlias = Any
Distribution: TypeAlias = Any
# Arrays in any structure that `Model.fit` takes, or one that brings its own batches.
Data: TypeAlias = Any
# A serialised object of Keras: what its configuration holds.
Config: TypeAlias = Any


def layers_of(model: Model) -> list[Layer]:
    """The model and all its layers, those inside others as well."""
    return model._flatten_layers()  # type: ignore[no-any-return]
