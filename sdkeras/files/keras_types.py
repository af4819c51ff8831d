"""What TensorFlow and Keras hand over, by name: neither has types that a checker could use."""

from __future__ import annotations

from typing import Any, TypeAlias

Tensor: TypeAlias = Any
Variable: TypeAlias = Any
Model: TypeAlias = Any
Layer: TypeAlias = Any
Optimizer: TypeAlias = Any
Loss: TypeAlias = Any
# (x, y[, sample_weight]), a tf.data.Dataset or a keras.utils.PyDataset.
Data: TypeAlias = Any
