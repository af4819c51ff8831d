"""The gradient in the form that training gives it to the optimizer, and its derivative in the weights.

TensorFlow makes the gradient of what was only looked up (embeddings) row by row: one row for each lookup, not yet
summed (`tf.IndexedSlices`). Where an optimizer squares or clips these rows one by one, its step is a function of the
rows. With P the lookups (each row of the weights as often as it is looked up, all other weights as they are) and E the
Hessian of the loss as a function of P w, the gradient G row by row has

    dG t = E (P t),    dG' c = P' (E c),    and P' dG = P' E P = H.

Everything that is not looked up lies in G as it does in w.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs
import numpy as np
import tensorflow as tf

from sdkeras.files.keras_types import Compiled, Tensor
from sdkeras.operators.batch_loss import Batch
from sdkeras.operators.engine import Engine, over_rows, vectorized_if_possible
from sdkeras.operators.layout import Layout, joined


@attrs.frozen
class Gradient:
    """A gradient as the optimizer gets it."""

    values: Tensor  # the variables' gradients end to end; of shape [n] if nothing comes row by row
    rows: tuple[Tensor, ...] = ()  # for each variable whose gradient does, which of its rows; integers
    counts: tuple[tuple[int, ...], ...] = ()  # how many of these are of each batch; [batches, such variables]


@attrs.frozen
class GradientLayout:
    """Where the variables' gradients lie in G."""

    weights: Layout
    looked_up: tuple[int, ...] = ()  # positions of the variables whose gradient comes row by row

    def slices(self, counts: Sequence[int]) -> list[slice]:
        """The variables' places in G, for these numbers of rows of those looked up."""
        sizes = list(self.weights.sizes)
        for k, count in zip(self.looked_up, counts, strict=True):
            sizes[k] = count * self.row_size(k)
        ends = [int(end) for end in np.cumsum(sizes)]
        return [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]

    def parted(self, values: Tensor, rows: Sequence[Tensor]) -> list[Tensor]:
        """G, a tensor, as one tensor for each variable, or `tf.IndexedSlices` with these rows for those looked up."""
        rows_of, sizes = dict(zip(self.looked_up, rows, strict=True)), list[Tensor](self.weights.sizes)
        for k, indices in rows_of.items():
            sizes[k] = tf.shape(indices)[0] * self.row_size(k)
        parts = [
            tf.reshape(piece, [-1, *shape[1:]] if k in rows_of else shape)
            for k, (piece, shape) in enumerate(zip(tf.split(values, sizes), self.weights.shapes, strict=True))
        ]
        for k, indices in rows_of.items():
            parts[k] = tf.IndexedSlices(parts[k], indices, tf.constant(self.weights.shapes[k]))
        return parts

    def merged(self, tensors: Sequence[Tensor], counts: Sequence[Sequence[int]]) -> Tensor:
        """Tensors of several batches as one, along the last axis: rows one after the other, all else summed."""
        if len(tensors) == 1:
            return tensors[0]
        split = [[x[..., place] for place in self.slices(sizes)] for x, sizes in zip(tensors, counts, strict=True)]
        merged = [
            tf.concat(pieces, axis=-1) if k in self.looked_up else tf.add_n(pieces)
            for k, pieces in enumerate(zip(*split, strict=True))
        ]
        return tf.concat(merged, axis=-1)

    def row_size(self, k: int) -> int:
        """Entries of a row of a variable."""
        return int(np.prod(self.weights.shapes[k][1:]))


class Gradients:
    """Gradients of a weighted sum of batches, each variable's as one tensor of its shape, so that dG is the Hessian.

    Tangents and cotangents are the rows of a matrix; all are tensors.
    """

    def __init__(self, engine: Engine, looked_up: tuple[int, ...] = ()) -> None:
        self._engine = engine
        self.layout = GradientLayout(engine.function.layout, looked_up)

    def gradient(self, point: Tensor, batches: Sequence[Batch]) -> Gradient:
        return Gradient(_sum(lambda batch: self._engine.gradient(point, batch), batches))

    def push(self, point: Tensor, tangents: Tensor, batches: Sequence[Batch]) -> Tensor:
        """dG t: [k, n] to [k, size of G]."""
        if len(tangents) == 1:
            vector = tf.reshape(tangents, [-1])
            return _sum(lambda batch: self._engine.product(point, vector, batch), batches)[None]
        return _sum(lambda batch: self._engine.products(point, tangents, batch), batches)

    def gradient_and_push(self, point: Tensor, tangents: Tensor, batches: Sequence[Batch]) -> tuple[Gradient, Tensor]:
        """The gradient and dG t, over one shared first pass."""
        gradient, products = _sum(lambda batch: self._engine.gradient_and_products(point, tangents, batch), batches)
        return Gradient(gradient), products

    def pull(self, point: Tensor, gradient: Gradient, cotangents: Tensor, batches: Sequence[Batch]) -> Tensor:
        """dG' c: [k, size of G] to [k, n]."""
        return self.push(point, cotangents, batches)


class RowGradients(Gradients):
    """Gradients of looked-up variables row by row, those of several batches one after the other.

    Products need the engine's product mode reverse-over-reverse.
    """

    def __init__(self, engine: Engine) -> None:
        names = engine.function.layout.names
        super().__init__(engine, tuple(k for k, name in enumerate(names) if name in engine.looked_up))
        self._functions: dict[str, Compiled] = {}

    # Graphs: what is traced

    def _gradient_parts(self, parts: list[Tensor], *batch: Tensor) -> tuple[list[Tensor], list[Tensor], bool]:
        """Values for each variable, rows of those looked up, and whether each of these is of a single lookup."""
        raw = self._engine.raw_gradients_of(parts, batch)
        values = [tf.zeros_like(p) if g is None else getattr(g, "values", g) for p, g in zip(parts, raw, strict=True)]
        indices = [raw[k].indices for k in self.layout.looked_up]
        single = all(each.op.type == "Reshape" for each in indices)  # several are concatenated
        return values, [tf.cast(each, tf.int32) for each in indices], single

    def _gradient_graph(self, point: Tensor, *batch: Tensor) -> tuple[Tensor, ...]:
        values, rows, _ = self._gradient_parts(self.layout.weights.split(point), *batch)
        return joined(values), *rows

    def _push_graph(self, vectorized: bool) -> Compiled:
        """The gradient, and its derivative along each row of a matrix."""
        split = self.layout.weights.split

        def graph(point: Tensor, tangents: Tensor, *batch: Tensor) -> tuple[Tensor, ...]:
            parts = split(point)
            with tf.GradientTape(persistent=True) as tape:
                tape.watch(parts)
                values, rows, single = self._gradient_parts(parts, *batch)
            if single:

                def push(vector: Tensor) -> Tensor:
                    tangent = split(vector)
                    for k, indices in zip(self.layout.looked_up, rows, strict=True):
                        tangent[k] = tf.gather(tangent[k], indices)
                    pulled = _pulled(tape, values, parts, tangent, values)
                    for k in self.layout.looked_up:
                        pulled[k] = getattr(pulled[k], "values", pulled[k])
                    return joined(_dense(pulled))

            else:
                # A second pass may meet the lookups in another order, so: the derivative of c -> dG' c.
                duals = [tf.ones_like(value) for value in values]
                with tf.GradientTape(persistent=True) as outer:
                    outer.watch(duals)
                    turned = _dense(_pulled(tape, values, parts, duals, parts))

                def push(vector: Tensor) -> Tensor:
                    return joined(_pulled(outer, turned, duals, split(vector), duals))

            return joined(values), over_rows(push, tangents, vectorized), *rows

        return self._engine.traced(graph, tf.TensorSpec([None, self._engine.size], self._engine.function.dtype))

    def _pull_graph(self, vectorized: bool) -> Compiled:
        dtype = self._engine.function.dtype

        def graph(point: Tensor, cotangents: Tensor, *batch: Tensor) -> Tensor:
            parts = self.layout.weights.split(point)
            with tf.GradientTape(persistent=True) as tape:
                tape.watch(parts)
                values, _, _ = self._gradient_parts(parts, *batch)
            pieces = tf.split(cotangents, [tf.size(value) for value in values], axis=1)

            def pull(cotangent: Sequence[Tensor]) -> Tensor:
                shaped = [tf.reshape(c, tf.shape(value)) for c, value in zip(cotangent, values, strict=True)]
                return joined(_dense(_pulled(tape, values, parts, shaped, parts)))

            return over_rows(pull, pieces, vectorized, dtype)

        return self._engine.traced(graph, tf.TensorSpec([None, None], dtype))

    def _call(self, kind: str, point: Tensor, rows: Tensor, batch: Batch) -> Tensor:
        engine = self._engine
        engine.count(len(rows))
        arguments = (point, rows, *engine.arguments(batch))
        if kind not in self._functions:
            graph = {"push": self._push_graph, "pull": self._pull_graph}[kind]
            self._functions[kind] = vectorized_if_possible(graph, *arguments)
        return self._functions[kind](*arguments)

    # Calls

    def gradient(self, point: Tensor, batches: Sequence[Batch]) -> Gradient:
        if "gradient" not in self._functions:
            self._functions["gradient"] = self._engine.traced(self._gradient_graph)
        batches = _pieces(batches)
        gradients = [self._functions["gradient"](point, *self._engine.arguments(batch)) for batch in batches]
        return self._gathered([values for values, *_ in gradients], [rows for _, *rows in gradients])

    def push(self, point: Tensor, tangents: Tensor, batches: Sequence[Batch]) -> Tensor:
        return self.gradient_and_push(point, tangents, batches)[1]

    def gradient_and_push(self, point: Tensor, tangents: Tensor, batches: Sequence[Batch]) -> tuple[Gradient, Tensor]:
        batches = _pieces(batches)
        by_batch = [self._call("push", point, tangents, batch) for batch in batches]
        gradient = self._gathered([values for values, *_ in by_batch], [rows for _, _, *rows in by_batch])
        return gradient, self.layout.merged([pushed for _, pushed, *_ in by_batch], gradient.counts)

    def pull(self, point: Tensor, gradient: Gradient, cotangents: Tensor, batches: Sequence[Batch]) -> Tensor:
        pieces = [cotangents[:, place] for place in self.layout.slices(np.sum(gradient.counts, axis=0))]
        pulled = []
        for batch, counts in zip(_pieces(batches), gradient.counts, strict=True):
            columns = list(pieces)
            for k in self.layout.looked_up:
                place = self.layout.slices(counts)[k]
                width = place.stop - place.start
                columns[k], pieces[k] = pieces[k][:, :width], pieces[k][:, width:]
            pulled.append(self._call("pull", point, tf.concat(columns, axis=1), batch))
        return tf.add_n(pulled)

    def _gathered(self, values: Sequence[Tensor], rows: Sequence[Sequence[Tensor]]) -> Gradient:
        """The gradients of several batches as one."""
        counts = tuple(tuple(int(indices.shape[0]) for indices in table) for table in rows)
        if len(values) == 1:
            return Gradient(values[0], tuple(rows[0]), counts)
        total = self.layout.merged(values, counts)
        return Gradient(total, tuple(tf.concat(table, axis=0) for table in zip(*rows, strict=True)), counts)


def _pieces(batches: Sequence[Batch]) -> list[Batch]:
    return [piece for batch in batches for piece in batch.pieces]


def _pulled(
    tape: tf.GradientTape, targets: list[Tensor], sources: list[Tensor], cotangents: list[Tensor], like: list[Tensor]
) -> list[Tensor]:
    """Gradients as the tape has them, zeros of a given shape where nothing arrives."""
    pulled = tape.gradient(targets, sources, output_gradients=cotangents)
    return [tf.zeros_like(other) if grad is None else grad for grad, other in zip(pulled, like, strict=True)]


def _dense(parts: list[Tensor]) -> list[Tensor]:
    return [tf.convert_to_tensor(tensor) for tensor in parts]


def _sum(function: Callable[[Batch], Tensor], batches: Sequence[Batch]) -> Tensor:
    """Sum over batches of a tensor or of each of several."""
    total = function(batches[0])
    for batch in batches[1:]:
        total = tf.nest.map_structure(lambda first, second: first + second, total, function(batch))
    return total
