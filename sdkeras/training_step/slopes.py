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
from typing import Any, Protocol

import attrs
import numpy as np
import tensorflow as tf

from sdkeras.operators.engine import Engine
from sdkeras.operators.layout import Layout
from sdkeras.operators.loss import Batch
from sdkeras.results.arrays import Array


@attrs.frozen
class Gradient:
    """A gradient as the optimizer gets it.

    Attributes:
        values: The variables' gradients end to end; a tensor of shape [n] if nothing comes row by row.
        rows: For each variable whose gradient does, which of its rows; integer tensors.
        counts: How many of these rows are of each batch, for each such variable; shape [batches, variables].
    """

    values: Any
    rows: tuple[Any, ...] = ()
    counts: tuple[tuple[int, ...], ...] = ()


class Slopes(Protocol):
    """Gradients of a weighted sum of batches and their derivatives; tangents and cotangents are rows of a matrix."""

    def gradient(self, point: Any, batches: Sequence[Batch]) -> Gradient: ...

    def along(self, point: Any, tangents: Array, batches: Sequence[Batch]) -> Array:
        """dG t: [k, n] to [k, size of G]."""
        ...

    def both(self, point: Any, tangents: Array, batches: Sequence[Batch]) -> tuple[Gradient, Array]:
        """The gradient and dG t, over one shared first pass."""
        ...

    def back(self, point: Any, gradient: Gradient, cotangents: Array, batches: Sequence[Batch]) -> Array:
        """dG' c: [k, size of G] to [k, n]."""
        ...


class Summed:
    """Each variable's gradient as one tensor of its shape; dG is the Hessian."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def gradient(self, point: Any, batches: Sequence[Batch]) -> Gradient:
        return Gradient(_sum(lambda batch: self._engine.gradient(point, batch), batches))

    def along(self, point: Any, tangents: Array, batches: Sequence[Batch]) -> Array:
        if len(tangents) == 1:
            vector = tf.constant(tangents[0])
            product: Array = _sum(lambda batch: self._engine.product(point, vector, batch), batches).numpy()
            return product[None]
        block = tf.constant(tangents)
        products: Array = _sum(lambda batch: self._engine.products(point, block, batch), batches).numpy()
        return products

    def both(self, point: Any, tangents: Array, batches: Sequence[Batch]) -> tuple[Gradient, Array]:
        block = tf.constant(tangents)
        slope, slopes = _sum(lambda batch: self._engine.gradient_and_products(point, block, batch), batches)
        return Gradient(slope), slopes.numpy()

    def back(self, point: Any, gradient: Gradient, cotangents: Array, batches: Sequence[Batch]) -> Array:
        return self.along(point, cotangents, batches)


class RowByRow:
    """Gradients of the engine's looked-up variables row by row, those of several batches one after the other.

    Args:
        engine: In the product mode reverse-over-reverse.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        layout = engine.function.layout
        self._layout = layout
        self._looked_up = [k for k, name in enumerate(layout.names) if name in engine.looked_up]
        self._functions: dict[str, Any] = {}

    # Graphs: what is traced

    def _values(self, raw: list[Any], parts: list[Any]) -> list[Any]:
        return [
            tf.zeros_like(part) if found is None else found.values if isinstance(found, tf.IndexedSlices) else found
            for part, found in zip(parts, raw, strict=True)
        ]

    def _rows(self, raw: list[Any]) -> list[Any]:
        return [tf.cast(raw[k].indices, tf.int32) for k in self._looked_up]

    def _gradient_graph(self, point: Any, seeds: Any, weights: Any, *flat: Any) -> tuple[Any, ...]:
        parts = self._engine.split(point)
        raw = self._engine.raw_gradients_of(parts, seeds, weights, flat)
        return self._engine.join(self._values(raw, parts)), *self._rows(raw)

    def _along_graph(self, vectorized: bool) -> Any:
        """The gradient row by row, and its derivative along each row of a matrix."""
        engine = self._engine

        def graph(point: Any, tangents: Any, seeds: Any, weights: Any, *flat: Any) -> tuple[Any, ...]:
            parts = engine.split(point)
            with tf.GradientTape(persistent=True) as tape:
                tape.watch(parts)
                raw = engine.raw_gradients_of(parts, seeds, weights, flat)
                values = self._values(raw, parts)
            rows = self._rows(raw)
            if all(_is_one_lookup(raw[k].indices) for k in self._looked_up):

                def along(vector: Any) -> Any:
                    turn = engine.split(vector)
                    for k, own in zip(self._looked_up, rows, strict=True):
                        turn[k] = tf.gather(turn[k], own)
                    found = _pulled(tape, values, parts, turn, values)
                    for k in self._looked_up:
                        found[k] = getattr(found[k], "values", found[k])
                    return engine.join(_dense(found))

            else:
                # A second pass may meet the lookups in another order, so: the derivative of c -> dG' c.
                duals = [tf.ones_like(value) for value in values]
                with tf.GradientTape(persistent=True) as outer:
                    outer.watch(duals)
                    pulled = _dense(_pulled(tape, values, parts, duals, parts))

                def along(vector: Any) -> Any:
                    return engine.join(_pulled(outer, pulled, duals, engine.split(vector), duals))

            return engine.join(values), _each(along, tangents, vectorized), *rows

        return engine.traced(graph, self._matrix(engine.size))

    def _back_graph(self, vectorized: bool) -> Any:
        engine = self._engine

        def graph(point: Any, cotangents: Any, seeds: Any, weights: Any, *flat: Any) -> Any:
            parts = engine.split(point)
            with tf.GradientTape(persistent=True) as tape:
                tape.watch(parts)
                values = self._values(engine.raw_gradients_of(parts, seeds, weights, flat), parts)
            pieces = tf.split(cotangents, [tf.size(value) for value in values], axis=1)
            shaped = [
                tf.reshape(piece, tf.concat([tf.shape(piece)[:1], tf.shape(value)], 0))
                for piece, value in zip(pieces, values, strict=True)
            ]

            def back(cotangent: list[Any]) -> Any:
                return engine.join(_dense(_pulled(tape, values, parts, list(cotangent), parts)))

            return _each(back, shaped, vectorized)

        return engine.traced(graph, self._matrix(None))

    def _matrix(self, width: int | None) -> Any:
        return tf.TensorSpec([None, width], self._engine.function.dtype)

    def _call(self, kind: str, point: Any, rows: Array, batch: Batch) -> Any:
        engine, arguments = self._engine, self._engine.arguments(batch)
        engine.count(len(rows))
        given = (point, tf.constant(rows), *arguments)
        if kind not in self._functions:
            make = {"along": self._along_graph, "back": self._back_graph}[kind]
            self._functions[kind] = engine.first_of(make, *given)
        return self._functions[kind](*given)

    # Calls

    def gradient(self, point: Any, batches: Sequence[Batch]) -> Gradient:
        if "gradient" not in self._functions:
            self._functions["gradient"] = self._engine.traced(self._gradient_graph)
        made = [self._functions["gradient"](point, *self._engine.arguments(batch)) for batch in batches]
        return self._gathered([(found[0], found[1:]) for found in made])

    def along(self, point: Any, tangents: Array, batches: Sequence[Batch]) -> Array:
        return self.both(point, tangents, batches)[1]

    def both(self, point: Any, tangents: Array, batches: Sequence[Batch]) -> tuple[Gradient, Array]:
        made = [self._call("along", point, tangents, batch) for batch in batches]
        gradient = self._gathered([(values, rows) for values, _, *rows in made])
        return gradient, self._merged([slopes.numpy() for _, slopes, *_ in made], gradient.counts)

    def back(self, point: Any, gradient: Gradient, cotangents: Array, batches: Sequence[Batch]) -> Array:
        pieces = np.split(
            cotangents, self._cuts([sum(column) for column in zip(*gradient.counts, strict=True)]), axis=1
        )
        done = [0] * len(pieces)
        total: Array = np.zeros((len(cotangents), self._engine.size), cotangents.dtype)
        for batch, counts in zip(batches, gradient.counts, strict=True):
            own = list(pieces)
            for k, size in zip(self._looked_up, self._row_sizes(counts), strict=True):
                own[k] = pieces[k][:, done[k] : done[k] + size]
                done[k] += size
            total += self._call("back", point, np.concatenate(own, axis=1), batch).numpy()
        return total

    # Several batches

    def _row_sizes(self, counts: Sequence[int]) -> list[int]:
        shapes = [self._layout.shapes[k] for k in self._looked_up]
        return [count * int(np.prod(shape[1:])) for count, shape in zip(counts, shapes, strict=True)]

    def _cuts(self, counts: Sequence[int]) -> Array:
        """Where the variables' parts of a gradient with so many rows end."""
        sizes = list(self._layout.sizes)
        for k, size in zip(self._looked_up, self._row_sizes(counts), strict=True):
            sizes[k] = size
        return np.cumsum(sizes)[:-1]

    def _merged(self, arrays: list[Array], counts: tuple[tuple[int, ...], ...]) -> Array:
        """Gradients of batches as one, along the last axis: rows one after the other, all else summed."""
        if len(arrays) == 1:
            return arrays[0]
        parts = zip(
            *(np.split(array, self._cuts(own), axis=-1) for array, own in zip(arrays, counts, strict=True)), strict=True
        )
        merged: Array = np.concatenate(
            [
                np.concatenate(own, axis=-1) if k in self._looked_up else np.sum(own, axis=0)
                for k, own in enumerate(parts)
            ],
            axis=-1,
        )
        return merged

    def _gathered(self, made: list[tuple[Any, Sequence[Any]]]) -> Gradient:
        counts = tuple(tuple(int(own.shape[0]) for own in rows) for _, rows in made)
        if len(made) == 1:
            return Gradient(made[0][0], tuple(made[0][1]), counts)
        values = self._merged([values.numpy() for values, _ in made], counts)
        rows = tuple(tf.concat(own, axis=0) for own in zip(*(rows for _, rows in made), strict=True))
        return Gradient(tf.constant(values), rows, counts)


def parted(values: Any, rows: Sequence[Any], looked_up: Sequence[int], layout: Layout) -> list[Any]:
    """A gradient, end to end, as one tensor for each variable, or `tf.IndexedSlices` for those looked up.

    Args:
        values: Shape [size of G], a tensor.
        rows: Of each variable that was looked up.
        looked_up: The positions of these.
        layout: Of all variables.
    """
    own = dict(zip(looked_up, rows, strict=True))
    sizes: list[Any] = list(layout.sizes)
    for k, found in own.items():
        sizes[k] = tf.shape(found)[0] * int(np.prod(layout.shapes[k][1:]))
    made = []
    for k, (piece, shape) in enumerate(zip(tf.split(values, sizes), layout.shapes, strict=True)):
        if k in own:
            made.append(tf.IndexedSlices(tf.reshape(piece, [-1, *shape[1:]]), own[k], tf.constant(shape)))
        else:
            made.append(tf.reshape(piece, shape))
    return made


def _is_one_lookup(rows: Any) -> bool:
    """Whether the rows of a gradient in a graph are of a single lookup, and not several one after the other."""
    return str(rows.op.type) == "Reshape"


def _pulled(tape: Any, targets: list[Any], sources: list[Any], cotangents: list[Any], like: list[Any]) -> list[Any]:
    """Gradients as the tape has them, zeros of a given shape where nothing arrives."""
    found = tape.gradient(targets, sources, output_gradients=cotangents)
    return [tf.zeros_like(own) if part is None else part for part, own in zip(found, like, strict=True)]


def _dense(parts: list[Any]) -> list[Any]:
    return [tf.convert_to_tensor(part) for part in parts]


def _each(function: Callable[[Any], Any], rows: Any, vectorized: bool) -> Any:
    if vectorized:
        return tf.vectorized_map(function, rows, fallback_to_while_loop=False)
    first = tf.nest.flatten(rows)[0]
    return tf.map_fn(function, rows, fn_output_signature=first.dtype)


def _sum(function: Callable[[Batch], Any], batches: Sequence[Batch]) -> Any:
    """Sum over batches of a tensor or of each of several."""
    total = function(batches[0])
    for batch in batches[1:]:
        total = tf.nest.map_structure(lambda first, second: first + second, total, function(batch))
    return total
