"""One application of a Keras optimizer on vectors, (state, gradient, held) -> (state, held), and its derivative."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import attrs
import numpy as np
import tensorflow as tf

from sdkeras.errors import ModelError
from sdkeras.files.keras_types import Compiled, Optimizer, Tensor
from sdkeras.operators import precision
from sdkeras.operators.engine import over_rows, vectorized_if_possible
from sdkeras.operators.layout import Layout, joined
from sdkeras.operators.tf_patches import exact_roots
from sdkeras.results.arrays import Array
from sdkeras.training_step.derivative import CompiledDerivative, Derivative, Diagonals, VariableDiagonals, compressed
from sdkeras.training_step.gradients import Gradient, GradientLayout
from sdkeras.training_step.graph import UpdateGraph, analyse, is_norm_clip, unique_names
from sdkeras.training_step.optimizer import FunctionalOptimizer, RecordingScope, functional, scheduled_parts, value_of

# Gradients below and above any limit they could be clipped at.
_SIZES = (1e-6, 1.0, 1e9)
_ZERO = tf.UnconnectedGradients.ZERO


@attrs.frozen(eq=False)
class UpdateRule:
    """One application of a Keras optimizer; made by `update_rule`."""

    optimizer: FunctionalOptimizer
    graph: UpdateGraph
    gradients: GradientLayout  # how gradients arrive
    state: Array  # the weights of now, then the slots, shape [N]
    # Values that the update reads beside the state, by name; with gradient accumulation, the iteration at which the
    # next update happens.
    held: dict[str, Array]
    _functions: dict[str, Compiled] = attrs.field(factory=dict)

    @property
    def dtype(self) -> str:
        return self.optimizer.dtype

    @property
    def layout(self) -> Layout:
        """Names and shapes of the state: the trainable variables, then the slots."""
        return self.graph.layout

    @property
    def size(self) -> int:
        return self.graph.layout.size

    @property
    def num_weights(self) -> int:
        """Length n of the weights, the first n entries of the state."""
        return self.gradients.weights.size

    @property
    def slot_places(self) -> tuple[slice, ...]:
        """Where the slots lie in the state."""
        return self.layout.slices[len(self.gradients.weights.names) :]

    @property
    def iteration_name(self) -> str:
        """The held value that counts steps."""
        iteration = self.optimizer.optimizer._iterations
        return next(name for name, v in zip(self.held, self.graph.held, strict=True) if v is iteration)

    def positions(self) -> tuple[list[int], list[int | None]]:
        """Where slots and held values stand in `optimizer.variables`; None for what is not listed there."""
        position = {id(variable): k for k, variable in enumerate(self.optimizer.optimizer.variables)}
        slots = [position[id(v)] for v in self.graph.slots if id(v) in position]
        return slots, [position.get(id(v)) for v in self.graph.held]

    def by_rows(self, looked_up: tuple[int, ...]) -> UpdateRule:
        """The same update of gradients that arrive row by row for these variables."""
        layout, graph = attrs.evolve(self.gradients, looked_up=looked_up), self.graph
        if graph.clip is not None and not is_norm_clip(self.optimizer, graph.clip, layout):
            graph = attrs.evolve(graph, owned=None, clip=None)
        return attrs.evolve(self, gradients=layout, graph=graph, functions={})

    # Graphs: what is traced

    def _new_values(
        self, parts: list[Tensor], gradients: list[Tensor], held: Sequence[Tensor], clipped: list[Tensor] | None = None
    ) -> tuple[list[Tensor], Tensor]:
        """New values of the state's variables and the held ones, and how many roots are zero, and of how many."""
        variables = [*self.optimizer.trainable, *self.graph.slots, *self.graph.held]
        counts: list[tuple[Tensor, Tensor]] = []
        with exact_roots(counts):
            scope = self.optimizer.apply(variables, [*parts, *held], gradients, clipped)
        totals = [tf.add_n(list(column)) for column in zip(*counts, strict=True)] or [tf.zeros([], tf.int64)] * 2
        return [scope.get_current_value(variable) for variable in variables], tf.stack(totals)

    def _arguments(
        self, state: Tensor, values: Tensor, arrays: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor], Sequence[Tensor]]:
        """The state's variables, the gradients and the held values."""
        count = len(self.gradients.looked_up)
        return self.layout.split(state), self.gradients.parted(values, arrays[:count]), arrays[count:]

    def _update_graph(self, state: Tensor, values: Tensor, *arrays: Tensor) -> tuple[Tensor, ...]:
        """Next state, (zero roots, roots), next held values."""
        new, roots = self._new_values(*self._arguments(state, values, arrays))
        count = len(self.layout.names)
        return joined(new[:count]), roots, *new[count:]

    def _diagonals_graph(self, state: Tensor, values: Tensor, *arrays: Tensor) -> tuple[Tensor, ...]:
        """Next state, next held values after the diagonals: [part, part, n] in the state and [part, size of G] in the
        (clipped) gradient, where part 0 is the weights, part 1 the first slot of each, and so on."""
        parts, gradients, held = self._arguments(state, values, arrays)
        clipped = None if self.graph.clip is None else self.optimizer.clip(gradients)
        arriving = [getattr(g, "values", g) for g in (gradients if clipped is None else clipped)]
        with exact_roots(), tf.GradientTape(persistent=True) as tape:
            tape.watch([*parts, *arriving])
            new, _ = self._new_values(parts, gradients, held, clipped)
        of_state, of_gradient = [], []
        columns = list(zip(*([k, *owned] for k, owned in enumerate(self.graph.owned or ())), strict=True))
        for column in columns:
            targets, inputs = [new[k] for k in column], [[parts[k] for k in other] for other in columns]
            *pulled, slopes = tape.gradient(targets, [*inputs, arriving], unconnected_gradients=_ZERO)
            of_state.append(tf.stack([joined(each) for each in pulled]))
            if clipped is not None:  # a clip may sum rows; one row moves as all of a weight do
                for k, rows in zip(self.gradients.looked_up, arrays, strict=False):
                    if not isinstance(clipped[k], tf.IndexedSlices):
                        slopes[k] = tf.gather(slopes[k], rows)
            of_gradient.append(joined(slopes))
        count = len(self.layout.names)
        return tf.stack(of_state), tf.stack(of_gradient), joined(new[:count]), *new[count:]

    def _push_graph(
        self, vectorized: bool, state: Tensor, values: Tensor, tangents: Tensor, slopes: Tensor, *arrays: Tensor
    ) -> Tensor:
        """The derivative of the linear map u -> u'J in u; forward mode fails at Keras' sums of `tf.IndexedSlices`."""
        dual = tf.ones([self.size], self.dtype)
        with exact_roots(), tf.GradientTape(persistent=True) as outer:
            outer.watch(dual)
            with tf.GradientTape() as tape:
                tape.watch([state, values])
                new = self._update_graph(state, values, *arrays)[0]
            pulled = tape.gradient(new, [state, values], dual, unconnected_gradients=_ZERO)

        def push(pair: Sequence[Tensor]) -> Tensor:
            return outer.gradient(pulled, dual, list(pair), unconnected_gradients=_ZERO)

        with exact_roots():
            return over_rows(push, (tangents, slopes), vectorized, self.dtype)

    def _pull_graph(
        self, vectorized: bool, state: Tensor, values: Tensor, cotangents: Tensor, *arrays: Tensor
    ) -> Tensor:
        with exact_roots(), tf.GradientTape(persistent=True) as tape:
            tape.watch([state, values])
            new = self._update_graph(state, values, *arrays)[0]

        def pull(cotangent: Tensor) -> Tensor:
            return tuple(tape.gradient(new, [state, values], cotangent, unconnected_gradients=_ZERO))

        with exact_roots():
            return over_rows(pull, cotangents, vectorized, (self.dtype, self.dtype))

    def _compiled(self, graph: Compiled, *leading: tf.TensorSpec) -> Compiled:
        """The compiled graph of state, gradient, `leading` tensors, rows of what was looked up and held values."""
        width = None if self.gradients.looked_up else self.num_weights
        rows = [tf.TensorSpec([None], tf.int32) for _ in self.gradients.looked_up]
        held = [tf.TensorSpec(v.shape, v.dtype) for v in self.graph.held]
        specs = [tf.TensorSpec([self.size], self.dtype), tf.TensorSpec([width], self.dtype), *leading, *rows, *held]
        return tf.function(graph, autograph=False, jit_compile=False).get_concrete_function(*specs)

    def _call(self, kind: str, state: Tensor, gradient: Gradient, held: Sequence[Tensor], *leading: Tensor) -> Tensor:
        """What a graph returns, compiled at its first call; `leading` are matrices of tangents or cotangents."""
        arguments = (state, gradient.values, *leading, *gradient.rows, *held)
        if kind not in self._functions:
            width = None if self.gradients.looked_up else self.num_weights
            rows, slopes = (tf.TensorSpec([None, size], self.dtype) for size in (self.size, width))
            make: Callable[[bool], Compiled] = {
                "update": lambda _: self._compiled(self._update_graph),
                "diagonals": lambda _: self._compiled(self._diagonals_graph),
                "push": lambda vectorized: self._compiled(partial(self._push_graph, vectorized), rows, slopes),
                "pull": lambda vectorized: self._compiled(partial(self._pull_graph, vectorized), rows),
            }[kind]
            self._functions[kind] = vectorized_if_possible(make, *arguments) if leading else make(False)
        return self._functions[kind](*arguments)

    # Calls: tensors in, tensors out

    def constants(self, held: Mapping[str, Array]) -> list[Tensor]:
        """Held values, all of them and no others, as tensors in the order the functions take them."""
        if set(held) != set(self.held):
            raise ModelError(
                f"the held values are {', '.join(sorted(held)) or 'none'}; this update holds {', '.join(self.held)}."
            )
        return [tf.constant(held[name], v.dtype) for name, v in zip(self.held, self.graph.held, strict=True)]

    def named(self, held: Sequence[Tensor]) -> dict[str, Array]:
        return {name: value.numpy() for name, value in zip(self.held, held, strict=True)}

    def update(self, state: Tensor, gradient: Gradient, held: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Next state and held values."""
        new, _, *advanced = self._call("update", state, gradient, held)
        return new, advanced

    def rates(self, held: Sequence[Tensor]) -> list[float]:
        """The learning rates that the update computes from these held values, of each of `scheduled_parts`."""

        def graph(*values: Tensor) -> list[Tensor]:
            mapping = list(zip(self.graph.held, values, strict=True))
            with precision.default_precision(self.dtype), RecordingScope(mapping):
                parts = scheduled_parts(self.optimizer.optimizer)
                return [tf.convert_to_tensor(each.learning_rate) for each in parts]

        return [float(rate) for rate in tf.function(graph, autograph=False)(*held)]

    def zero_roots(self, state: Tensor, gradient: Gradient, held: Sequence[Tensor]) -> tuple[int, int]:
        """How many arguments of square roots are exactly 0 in this update, and how many there are."""
        zeros, roots = self._call("update", state, gradient, held)[1].numpy()
        return int(zeros), int(roots)

    def linearize(
        self, state: Tensor, gradient: Gradient, held: Sequence[Tensor], *, of_tensors: bool = False
    ) -> tuple[Tensor, list[Tensor], Derivative]:
        """Next state and held values, and the derivative there: of NumPy arrays, or of tensors."""
        if self.graph.owned is not None and not of_tensors:
            in_state, in_gradient, new, *advanced = self._call("diagonals", state, gradient, held)
            return new, advanced, self._diagonals(self.graph.owned, in_state.numpy(), in_gradient.numpy(), gradient)

        def push(tangents: Tensor, slopes: Tensor) -> Tensor:
            rows = (tf.cast(tangents, self.dtype), tf.cast(slopes, self.dtype))
            pushed = self._call("push", state, gradient, held, *rows)
            return pushed if of_tensors else pushed.numpy()

        def pull(cotangents: Tensor) -> tuple[Tensor, Tensor]:
            pulled, slopes = self._call("pull", state, gradient, held, tf.cast(cotangents, self.dtype))
            return (pulled, slopes) if of_tensors else (pulled.numpy(), slopes.numpy())

        return *self.update(state, gradient, held), CompiledDerivative(push, pull)

    def _diagonals(
        self, owned: Sequence[Sequence[int]], in_state: Array, in_gradient: Array, gradient: Gradient
    ) -> Diagonals:
        rows = {k: indices.numpy() for k, indices in zip(self.gradients.looked_up, gradient.rows, strict=True)}
        weights, places = self.gradients.weights, self.gradients.slices([len(indices) for indices in rows.values()])
        of_state = self.layout.slices
        variables = [
            VariableDiagonals(
                [of_state[j] for j in (k, *owned[k])],
                places[k],
                [[compressed(diagonal[of_state[k]]) for diagonal in row] for row in in_state],
                [d[places[k]] if k in rows else compressed(d[places[k]]) for d in in_gradient],
                rows.get(k),
                weights.shapes[k],
            )
            for k in range(len(weights.names))
        ]
        return Diagonals(variables, self.graph.clip, gradient.values.numpy())

    def unmoved(self, state: Array, gradient: Gradient) -> int:
        """How many weights have a gradient and slots that are all exactly 0; none where weights meet."""
        if self.graph.owned is None:
            return 0
        gradients, slices, count = self.gradients.parted(abs(gradient.values), gradient.rows), self.layout.slices, 0
        for each, owned in zip(gradients, self.graph.owned, strict=True):
            zero = np.ravel(tf.convert_to_tensor(each)) == 0
            count += int(np.sum(np.all([zero, *(state[slices[j]] == 0 for j in owned)], axis=0)))
        return count

    def sums_rows(self) -> bool:
        """Whether a row that is looked up twice moves as by one gradient, the sum, however large the gradients are."""
        generator, looked_up = np.random.default_rng(0), self.gradients.looked_up
        state, held = tf.constant(self.state, self.dtype), self.constants(self.held)
        widths = [self.gradients.row_size(k) for k in looked_up]

        def moved(rows: Sequence[Array]) -> Array:
            places = self.gradients.slices([len(each) for each in rows])
            values = np.zeros(places[-1].stop)
            for k, each in zip(looked_up, rows, strict=True):
                values[places[k]] = each.ravel()
            zeros = tuple(tf.zeros([len(each)], tf.int32) for each in rows)
            new: Array = self.update(state, Gradient(tf.constant(values, self.dtype), zeros), held)[0].numpy()
            return new.astype(np.float64)

        for size in _SIZES:
            apart = [size * generator.standard_normal((2, width)) for width in widths]
            summed, separate = moved([np.sum(each, axis=0, keepdims=True) for each in apart]), moved(apart)
            rounding = 32 * np.finfo(self.dtype).eps * (np.abs(self.state) + np.abs(summed - self.state) + size)
            if np.any(np.abs(summed - separate) > rounding):
                return False
        return True


def update_rule(optimizer: Optimizer, weights: Layout, missing: Sequence[bool], dtype: str) -> UpdateRule:
    """The update of a built Keras optimizer (not of a loss-scaling wrapper), along gradients summed over lookups.

    `weights` is the layout of its trainable variables; `missing` says which of them the loss leaves without a gradient.
    """
    function = functional(optimizer, missing, dtype)
    graph = analyse(function, weights)
    state = graph.layout.flatten([value_of(v) for v in [*function.trainable, *graph.slots]], np.dtype(dtype))
    held = {name: value_of(v).copy() for name, v in zip(unique_names(graph.held), graph.held, strict=True)}
    rule = UpdateRule(function, graph, GradientLayout(weights), state, held)
    if (k := function.microbatches) > 1:
        name = rule.iteration_name
        held[name] = np.asarray(int(held[name]) // k * k + k - 1, held[name].dtype)
    return rule
