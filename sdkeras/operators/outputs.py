"""The outputs of a model for one example after the other, and their derivatives in the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import attrs
import keras
import numpy as np
import tensorflow as tf

from sdkeras.errors import DataError, ModelError
from sdkeras.files.keras_types import Compiled, Data, Tensor
from sdkeras.files.user_code import last_line
from sdkeras.linalg.vectors import finite
from sdkeras.operators import precision
from sdkeras.operators.batch_loss import BatchLoss, keras_structure
from sdkeras.operators.engine import over_rows, vectorized_if_possible
from sdkeras.operators.gauss_newton import LOGITS
from sdkeras.operators.layout import joined
from sdkeras.operators.loss import tensor_dtype
from sdkeras.results.arrays import Array

# Bytes that the rows of one block of examples may take, and how often TensorFlow has them in memory meanwhile.
_BLOCK_BYTES, _COPIES = 2.5e8, 3
# Examples of one forward pass without derivatives.
_EXAMPLES = 1024


@attrs.frozen(eq=False)
class Outputs:
    """z(w; x) of a model with one output vector, in inference mode and at the weights of a `BatchLoss`.

    Attributes:
        function: The loss, of whose parameters z is a function; all other variables are held as there.
        inputs: Structure of the inputs x, as `tf.nest` has it.
        logits: Whether z are the logits that Keras' cross-entropies read of a softmax or sigmoid layer, where there is
            one, and not the values that the model returns.
    """

    function: BatchLoss
    inputs: Data
    logits: bool
    _compiled: dict[tuple[object, ...], Compiled] = attrs.field(factory=dict, init=False)

    def tensors(self, x: Data) -> list[Tensor]:
        """Inputs as tensors in the precision of the analysis.

        Raises:
            DataError: Another structure or different lengths, or numbers that are not finite.
        """
        try:
            tf.nest.assert_same_structure(self.inputs, x, check_types=False)
        except (TypeError, ValueError) as error:
            raise DataError("x has another structure than the inputs of the data; give inputs as `fit` got.") from error
        arrays = [np.asarray(each) for each in tf.nest.flatten(x)]
        for each in arrays:
            if each.ndim == 0 or each.dtype.kind == "O":
                kind = type(x).__name__ if each.ndim == 0 else "objects"
                raise DataError(f"x must be an array of examples, got {kind}; give inputs as `fit` got them.")
        lengths = {len(each) for each in arrays}
        if len(lengths) != 1 or lengths == {0}:
            raise DataError(f"the inputs have {sorted(lengths)} examples; give at least one, of each input as many.")
        for each in arrays:
            if each.dtype.kind == "f" and not np.all(np.isfinite(each)):
                raise DataError("x holds NaN or infinity; give finite inputs.")
        return [tf.constant(each, tensor_dtype(each, self.function.dtype)) for each in arrays]

    def values(self, tensors: Sequence[Tensor]) -> Array:
        """z, shape [b, C].

        Raises:
            ModelError: The model has several outputs, or one that is no vector for each example.
            DataError: The model cannot be called on these inputs.
        """
        blocks = []
        for start in range(0, int(tensors[0].shape[0]), _EXAMPLES):
            block = [each[start : start + _EXAMPLES] for each in tensors]
            try:
                compiled = self._known("values", block, lambda: self._traced(self._values, block))  # noqa: B023
                blocks.append(compiled(*block).numpy())
            except (
                ValueError,
                TypeError,
                tf.errors.InvalidArgumentError,
            ) as error:  # as layers do where x does not fit
                raise DataError(f"the model cannot be called on these inputs: {last_line(error)}") from error
        return finite(np.concatenate(blocks), "the model's outputs")

    def blocks(self, count: int, width: int) -> Iterator[slice]:
        """Ranges of examples, each of whose `width` rows of length n fit the memory for a block."""
        size = self.function.layout.size * np.dtype(self.function.dtype).itemsize * _COPIES * width
        step = max(1, int(_BLOCK_BYTES // size))
        return (slice(start, min(start + step, count)) for start in range(0, count, step))

    def rows(self, tensors: Sequence[Tensor], factors: Array) -> Array:
        """K_i J_i of each example, with J_i = dz/dw [C, n], shape [b, m, n].

        Args:
            tensors: Inputs of b examples.
            factors: K_i, shape [b, m, C].
        """
        count, width, _ = factors.shape
        repeated = [tf.repeat(each, width, axis=0) for each in tensors]
        along = tf.constant(factors.reshape(count * width, -1), self.function.dtype)

        def compiled() -> Compiled:
            few = [each[:2] for each in (along, *repeated)]
            return vectorized_if_possible(lambda vectorized: self._traced(self._rows(vectorized), few), *few)

        rows = self._known("rows", repeated, compiled)(along, *repeated).numpy()
        return finite(rows, "the derivatives of the model's outputs").reshape(count, width, -1)

    def _known(self, name: str, tensors: Sequence[Tensor], make: Callable[[], Compiled]) -> Compiled:
        """A function compiled once for inputs of these shapes, with any number of examples."""
        key = name, *(tuple(each.shape[1:]) for each in tensors)
        if key not in self._compiled:
            self._compiled[key] = make()
        return self._compiled[key]

    @staticmethod
    def _traced(function: Compiled, like: Sequence[Tensor]) -> Compiled:
        specs = [tf.TensorSpec([None, *each.shape[1:]], each.dtype) for each in like]
        return tf.function(function, autograph=False).get_concrete_function(*specs)

    def _rows(self, vectorized: bool) -> Compiled:
        def rows(*arguments: Tensor) -> Tensor:
            point = self.function.layout.split(tf.constant(self.function.point))
            return over_rows(lambda each: self._row(point, *each), arguments, vectorized, self.function.dtype)

        return rows

    def _values(self, *tensors: Tensor) -> Tensor:
        return self._called(self.function.layout.split(tf.constant(self.function.point)), tensors)

    def _row(self, point: list[Tensor], along: Tensor, *tensors: Tensor) -> Tensor:
        """The gradient of along'z for one example, shape [n]."""
        with tf.GradientTape() as tape:
            tape.watch(point)
            z = self._called(point, [each[None] for each in tensors])
            total = tf.reduce_sum(z[0] * along)
        slopes = tape.gradient(total, point, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return joined([tf.convert_to_tensor(each) for each in slopes])

    def _called(self, point: Sequence[Tensor], tensors: Sequence[Tensor]) -> Tensor:
        function = self.function
        mapping = [
            *zip(function.roles.held, function.held, strict=True),
            *zip(function.analysed, point, strict=True),
        ]
        x = keras_structure(tf.nest.pack_sequence_as(self.inputs, list(tensors)))
        with precision.default_precision(function.dtype), keras.StatelessScope(mapping):
            outputs = tf.nest.flatten(function.model(x, training=False))
            if len(outputs) != 1:
                raise ModelError(
                    f"the model has {len(outputs)} outputs; a Laplace posterior is made of models with one. Compile a "
                    "model of the output that you mean, `keras.Model(model.input, model.output[0])`, with its loss."
                )
            z = outputs[0]
            if self.logits:
                known = getattr(z, LOGITS, None)
                if known is None and z.op.type in ("Softmax", "Sigmoid"):
                    known = z.op.inputs[0]
                z = z if known is None else known
        if z.shape.rank != 2:
            raise ModelError(
                f"the model's output has shape {tuple(z.shape)}; a Laplace posterior is made of models that give one "
                "vector for each example, shape (examples, outputs), not of sequences or images."
            )
        return z
