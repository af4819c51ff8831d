"""The update of a Keras optimizer as a pure function of arrays.

(weights, gradient, slots, held) -> (weights, slots, held), by the optimizer's own code: its methods run on a copy
that assigns inside a `keras.StatelessScope`, where no variable changes. (Keras' `stateless_apply` refuses the
TensorFlow backend, and `copy.copy(optimizer)` returns an optimizer without its state.)

Which of the optimizer's variables are state is read off the traced graph: a floating-point variable that the update
both reads and changes, in a way that depends on the weights, the gradient or other state. Everything else that is read
(learning rate, iteration, Nadam's product of momenta) evolves by itself: it is held for a Jacobian, and advanced.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from sdkeras.errors import ModelError
from sdkeras.operators import precision
from sdkeras.operators.engine import quiet
from sdkeras.operators.layout import Layout
from sdkeras.results.arrays import Array
from sdkeras.training_step.linearized import Compiled, Diagonals, Linearized, compressed
from sdkeras.training_step.norm_clip import Clipped, NormClip
from sdkeras.training_step.roots import exact_roots
from sdkeras.training_step.row_diagonals import Lookups, RowDiagonals
from sdkeras.training_step.slopes import Gradient, parted

# Operations whose result in one place depends on their inputs in that place only.
_ELEMENTWISE = {
    *("Add", "AddV2", "Sub", "Mul", "Div", "RealDiv", "Neg", "Reciprocal", "Abs", "Sign", "Maximum", "Minimum"),
    *("Square", "Cube", "Sqrt", "Rsqrt", "Pow", "Exp", "Log", "Tanh", "ClipByValue", "Select", "SelectV2", "Cast"),
    *("Equal", "NotEqual", "Greater", "GreaterEqual", "Less", "LessEqual", "LogicalAnd", "LogicalNot", "LogicalOr"),
    *("Identity", "StopGradient", "OnesLike", "ZerosLike"),
}
# Of gradients: below and above any limit they could be clipped at.
_SIZES = (1e-6, 1.0, 1e9)
_EXCLUSIONS = ("_exclude_from_weight_decay", "_exclude_from_weight_decay_pattern")


class _Functional(keras.optimizers.Optimizer):  # type: ignore[misc]
    """What Keras' TensorFlow optimizers do by assigning to resources, done by Keras variables alone.

    Stands between an optimizer class and Keras' base class, so that an optimizer's own overrides still win.
    """

    def assign(self, variable: Any, value: Any) -> None:
        variable.assign(_summed(value, variable.dtype))

    def assign_add(self, variable: Any, value: Any) -> None:
        variable.assign(variable.value + _summed(value, variable.dtype))

    def assign_sub(self, variable: Any, value: Any) -> None:
        variable.assign(variable.value - _summed(value, variable.dtype))

    def _var_key(self, variable: Any) -> Any:
        return super()._var_key(_stored(variable))

    def _apply_weight_decay(self, variables: Sequence[Any]) -> None:
        if self.weight_decay is None:
            return
        for variable in variables:
            if self._use_weight_decay(variable):
                decay, rate = (tf.cast(x, variable.dtype) for x in (self.weight_decay, self.learning_rate))
                variable.assign(variable.value - variable.value * decay * rate)

    def clipped(self, grads: Sequence[Any]) -> list[Any]:
        """Keras' own clipping."""
        found: list[Any] = super()._clip_gradients(grads)
        return found

    def _clip_gradients(self, grads: Sequence[Any]) -> list[Any]:
        stand_in = vars(self).get("_stand_in")
        return self.clipped(grads) if stand_in is None else stand_in(grads)

    def _backend_update_step(
        self, grads: Sequence[Any], trainable_variables: Sequence[Any], learning_rate: Any
    ) -> None:
        for gradient, variable in zip(grads, trainable_variables, strict=True):
            self.update_step(gradient, variable, learning_rate)

    def _backend_apply_gradients(self, grads: Sequence[Any], trainable_variables: Sequence[Any]) -> None:
        # One update with the averaged gradient: neither accumulators nor averages of the weights.
        self._apply_weight_decay(trainable_variables)
        self._backend_update_step(self._clip_gradients(grads), trainable_variables, self.learning_rate)

    def apply(self, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> None:
        super().apply(grads, trainable_variables)
        if self.gradient_accumulation_steps:
            self._iterations.assign(self._iterations + (self.gradient_accumulation_steps - 1))


class _Recording(keras.StatelessScope):  # type: ignore[misc]
    """Remembers variables that were used without a value given to them."""

    def __init__(self, mapping: Sequence[tuple[Any, Any]]) -> None:
        super().__init__(mapping)
        self.unknown: list[Any] = []

    def get_current_value(self, variable: Any) -> Any:
        value = super().get_current_value(variable)
        if value is None and all(variable is not other for other in self.unknown):
            self.unknown.append(variable)
        return value


def _summed(value: Any, dtype: Any) -> Any:
    """A tensor; rows of a sparse gradient are summed, as assignments to a resource sum them."""
    return tf.convert_to_tensor(tf.cast(value, dtype))


def _stored(variable: Any) -> Any:
    """The resource behind a Keras variable, whatever scope is on."""
    return variable._value if isinstance(variable, keras.Variable) else variable


def _is_float(variable: Any) -> bool:
    return bool(tf.as_dtype(variable.dtype).is_floating)


def inner(optimizer: Any) -> Any:
    """The optimizer under a loss-scaling wrapper."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def parts_of(optimizer: Any) -> list[Any]:
    """The optimizer, followed by those it delegates to."""
    return [optimizer, *getattr(optimizer, "_inner_optimizers", [])]


def scheduled_parts(optimizer: Any) -> list[Any]:
    """Those of `parts_of` whose learning rate follows a schedule. A `MultiOptimizer` itself has no rate."""
    schedule = keras.optimizers.schedules.LearningRateSchedule
    return [part for part in parts_of(optimizer) if isinstance(part._learning_rate, schedule)]


def is_function(rate: Any) -> bool:
    """Whether a learning rate is a plain Python function, neither a number nor a schedule."""
    return callable(rate) and not isinstance(rate, (keras.Variable, keras.optimizers.schedules.LearningRateSchedule))


class _Stand:
    """Variables of the wanted precision that stand for an optimizer's own; the same ones where they fit."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        self._known: dict[int, tuple[Any, Any]] = {}

    def variable(self, variable: Any) -> Any:
        if id(variable) not in self._known:
            fits = not _is_float(variable) or variable.dtype == self.dtype
            self._known[id(variable)] = (variable, variable if fits else replica(variable, self.dtype))
        return self._known[id(variable)][1]

    def tree(self, value: Any, keys: dict[Any, Any]) -> Any:
        """Containers rebuilt with stand-ins for variables, and their keys for the variables' keys."""
        if isinstance(value, keras.Variable):
            return self.variable(value)
        if isinstance(value, dict):
            return {keys.get(key, key): self.tree(item, keys) for key, item in value.items()}
        if isinstance(value, set):
            return {keys.get(key, key) for key in value}
        if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
            return [self.tree(item, keys) for item in value]
        return value


def replica(variable: Any, dtype: str | None = None) -> Any:
    """A new variable with the same value, path and constraint."""
    dtype = (dtype if _is_float(variable) else None) or variable.dtype
    made = keras.Variable(_value(variable), dtype=dtype, trainable=variable.trainable, name=variable.name)
    made._path = variable.path
    made.constraint = variable.constraint
    return made


def _value(variable: Any) -> Array:
    return np.asarray(_stored(variable))


def _functional(optimizer: Any, stand: _Stand) -> Any:
    """A copy of the optimizer whose updates are functions; it shares nothing that an update could change."""
    made: Any = object.__new__(type(f"Functional{type(optimizer).__name__}", (type(optimizer), _Functional), {}))
    variables = list(optimizer._trainable_variables)
    key_of = optimizer._var_key
    keys = {key_of(variable): _Functional._var_key(made, stand.variable(variable)) for variable in variables}
    attributes = {
        name: value for name, value in vars(optimizer).items() if name not in ("_tracker", "_inner_optimizers")
    }
    vars(made).update({name: stand.tree(value, keys) for name, value in attributes.items()})
    # The gradient comes unscaled.
    scale = "_loss_scale_factor" if "_loss_scale_factor" in attributes else "loss_scale_factor"
    vars(made).update({scale: None, "_self_setattr_tracking": False})
    if hasattr(optimizer, "_inner_optimizers"):
        vars(made)["_inner_optimizers"] = [_functional(part, stand) for part in optimizer._inner_optimizers]
    return made


def loaded_clone(optimizer: Any, variables: Sequence[Any]) -> Any:
    """A second real optimizer for these variables, made from the first's configuration and loaded with its state.

    An optimizer that was never built gives one with the slots it starts training with.

    Args:
        optimizer: Not touched.
        variables: One per variable the optimizer trains, in its order; of any precision.

    Raises:
        ModelError: It cannot be rebuilt from its configuration.
    """
    optimizer = inner(optimizer)
    dtype = str(variables[0].dtype)
    try:
        with (
            precision.default_precision(dtype),
            keras.saving.custom_object_scope({type(optimizer).__name__: type(optimizer)}),
        ):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*includes a `lambda`")
                config = dict(optimizer.get_config())
            if is_function(getattr(optimizer, "_learning_rate", None)):
                config["learning_rate"] = optimizer._learning_rate  # nothing Keras would rebuild
            config.update({name: None for name in ("loss_scale_factor", "ema_overwrite_frequency") if name in config})
            made = type(optimizer).from_config(config)
            own = list(optimizer._trainable_variables) or list(variables)
            for part, other in zip(parts_of(optimizer), parts_of(made), strict=True):
                keys = {part._var_key(a): part._var_key(b) for a, b in zip(own, variables, strict=True)}
                for name in _EXCLUSIONS:
                    if name in vars(part):
                        value = vars(part)[name]
                        keep = {keys.get(key, key) for key in value} if isinstance(value, set) else value
                        vars(other)[name] = keep
            made.build(list(variables))
    except Exception as error:  # a user's class may raise anything
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else ""
        raise ModelError(
            f"the optimizer {type(optimizer).__name__} cannot be rebuilt from its configuration "
            f"({type(error).__name__}: {reason}); give it a working get_config()."
        ) from error
    if optimizer.built:
        sources, targets = optimizer.variables, made.variables
        if [tuple(v.shape) for v in sources] != [tuple(v.shape) for v in targets]:
            raise ModelError(
                f"the optimizer {type(optimizer).__name__} rebuilt from its configuration has other variables than "
                "the original; its get_config() leaves something out."
            )
        for source, target in zip(sources, targets, strict=True):
            target.assign(_value(source))
    return made


class UpdateRule:
    """One application of a Keras optimizer: (state, gradient, held) -> (state, held), on flat vectors.

    Args:
        optimizer: A built Keras optimizer (not a loss-scaling wrapper); never touched.
        layout: Names and shapes of its trainable variables.
        missing: For each of them, whether the loss leaves it without a gradient; Keras skips those.
        dtype: Precision of the arithmetic, 'float32' or 'float64'.
        looked_up: Positions of the variables whose gradient arrives row by row (`tf.IndexedSlices`), one row for each
            lookup; dense ones otherwise.

    Attributes:
        layout: Names and shapes of the state: the trainable variables, then the slots.
        num_weights: Length n of the gradient, the first n entries of the state.
        microbatches: Batches whose mean gradient makes one update; 1 without gradient accumulation.
        state: The optimizer's slots of now after the weights, shape [N].
        held: What the update reads beside the state, by name.
        changed: Names of the held values that a step advances.
        has_signs: Whether the update takes signs, which jump at 0.

    Raises:
        ModelError: The update writes to variables behind Keras' back, or overwrites weights by gradients.
    """

    def __init__(
        self, optimizer: Any, layout: Layout, missing: Sequence[bool], dtype: str, looked_up: Sequence[int] = ()
    ) -> None:
        self.dtype = dtype
        self.looked_up = tuple(looked_up)
        self.missing = tuple(missing)
        self.num_weights = layout.size
        stand = _Stand(dtype)
        self._optimizer = _functional(optimizer, stand)
        self._trainable = [stand.variable(variable) for variable in optimizer._trainable_variables]
        if any(getattr(variable, "overwrite_with_gradient", False) for variable in self._trainable):
            raise ModelError(
                "the model has variables that training overwrites with gradients (float8 scales), so that its step is "
                "no map of weights and slots; analyse a model without float8 quantization."
            )
        self.microbatches = int(getattr(optimizer, "gradient_accumulation_steps", None) or 1)
        if any(getattr(part, "gradient_accumulation_steps", None) for part in parts_of(optimizer)[1:]):
            raise ModelError(
                "optimizers inside a MultiOptimizer that accumulate gradients update at different times; set "
                "gradient_accumulation_steps to None and use the effective batch size."
            )
        others = [v for v in self._optimizer.variables if all(v is not w for w in self._trainable)]
        slots, held = self._roles(layout, others)
        self._slots, self._held = slots, held
        names = _unique([str(variable.path) for variable in [*self._trainable, *slots]])
        self.layout = Layout(
            (*layout.names, *names[len(layout.names) :]),
            (*layout.shapes, *(tuple(int(side) for side in variable.shape) for variable in slots)),
        )
        self.held_names = _unique([str(variable.path) for variable in held])
        self.state = self.layout.flatten([_value(v) for v in [*self._trainable, *slots]], np.dtype(dtype))
        self.held = {name: _value(v).copy() for name, v in zip(self.held_names, held, strict=True)}
        self._align()
        self._weights = layout
        self.has_signs = _has_signs(self._graph)
        self._kinds = self._elementwise(layout)
        self._clip: NormClip | None = None
        if self._kinds is None:
            self._clip, self._kinds = self._behind_clip(layout)
        self.changed = tuple(
            name for name, variable in zip(self.held_names, held, strict=True) if id(variable) in self._writes
        )
        self._functions: dict[str, Any] = {}

    @property
    def size(self) -> int:
        return self.layout.size

    @property
    def iteration_name(self) -> str:
        """The held value that counts steps."""
        return next(
            name
            for name, variable in zip(self.held_names, self._held, strict=True)
            if variable is self._optimizer._iterations
        )

    def positions(self) -> tuple[list[int], list[int | None]]:
        """Where slots and held values stand in `optimizer.variables`; None for what is not listed there."""
        found = {id(variable): position for position, variable in enumerate(self._optimizer.variables)}
        return [found[id(v)] for v in self._slots if id(v) in found], [found.get(id(v)) for v in self._held]

    def _align(self) -> None:
        """With accumulation, the held iteration is the one at which the next update happens."""
        k, name = self.microbatches, self.iteration_name
        if k > 1:
            self.held[name] = np.asarray(int(self.held[name]) // k * k + k - 1, self.held[name].dtype)

    # What is state, what is held

    def _roles(self, layout: Layout, others: list[Any]) -> tuple[list[Any], list[Any]]:
        """Slots and held variables, read off the graph of one update."""
        for _ in range(3):  # variables that `optimizer.variables` does not list are found by the first trace
            reads, writes, unknown = self._dependencies(layout, others)
            if not unknown:
                break
            others = [*others, *unknown]
        self._writes = writes
        reached = {id(variable) for variable in self._trainable} | {
            ("gradient", k) for k in range(len(self._trainable))
        }
        state: set[Any] = set()
        while True:
            grown = {
                id(variable)
                for variable in others
                if _is_float(variable) and id(variable) in writes and reads[id(variable)] & (reached | state)
            }
            if grown == state:
                break
            state = grown
        wanted = state | {id(variable) for variable in self._trainable}
        used: set[Any] = set()
        while True:  # what the state reads, and what that reads
            more = set().union(*(reads[key] for key in wanted | used if key in reads))
            if more <= used:
                break
            used |= more
        slots = [variable for variable in others if id(variable) in state & used]
        kept = {id(variable) for variable in slots}
        used.add(id(self._optimizer._iterations))  # SGD never reads it, but a run that goes on wants to know
        return slots, [variable for variable in others if id(variable) in used - kept]

    def _dependencies(
        self, layout: Layout, others: list[Any], behind_clip: bool = False
    ) -> tuple[dict[Any, frozenset[Any]], set[Any], list[Any]]:
        """For each variable that the update writes, which inputs its new value depends on.

        Inputs are variables and ('gradient', k); with `behind_clip` the latter are the clipped gradients, and what
        depends on the others all the same depends on ('unclipped', k).
        """
        variables = [*self._trainable, *others]
        keys: list[Any] = [id(variable) for variable in variables]
        unknown: list[Any] = []
        written: list[Any] = []

        def graph(values: list[Any], gradients: list[Any], clipped: list[Any] | None = None) -> list[Any]:
            scope = self._applied(variables, values, gradients, clipped)
            unknown.extend(scope.unknown)
            outputs = []
            for variable, value in zip(variables, values, strict=True):
                new = scope.get_current_value(variable)
                if new is not value:
                    written.append(id(variable))
                    outputs.append(new)
            return outputs

        values = [tf.TensorSpec(v.shape, v.dtype) for v in variables]
        gradients = [tf.TensorSpec(shape, self.dtype) for shape in layout.shapes]
        specs = [values, gradients, gradients] if behind_clip else [values, gradients]
        traced = tf.function(graph, autograph=False, jit_compile=False).get_concrete_function(*specs)
        writing = [op.type for op in traced.graph.get_operations() if op.type.startswith(("Assign", "ResourceScatter"))]
        if writing:
            raise ModelError(
                f"the optimizer {type(self._optimizer).__bases__[0].__name__} writes to TensorFlow variables of its "
                f"own ({writing[0]}), so its step is no function of its Keras variables; let it assign by "
                "self.assign(variable, value) to variables made by add_variable."
            )
        kinds = ["unclipped", "gradient"] if behind_clip else ["gradient"]
        keys += [(kind, k) for kind in kinds for k in range(len(gradients))]
        self._dependent = _reached(traced.graph, dict(zip((t.ref() for t in traced.inputs), keys, strict=True)))
        outputs = (self._dependent[tensor.ref()] for tensor in traced.outputs)
        self._graph = traced.graph
        return dict(zip(written, outputs, strict=True)), set(written), unknown

    def _elementwise(self, layout: Layout) -> list[list[slice]] | None:
        """The kinds of entries (weights, first slots, ...) if each weight is updated by itself, whatever the state.

        Read off the operations of the update: all that depend on the state must be elementwise and have the shape
        of the one variable they belong to.
        """
        owner: dict[Any, int] = {("gradient", k): k for k in range(len(self._trainable))}
        owner.update({id(variable): k for k, variable in enumerate(self._trainable)})
        slots = {id(variable) for variable in self._slots}
        operations = []
        for operation in self._graph.get_operations():
            found = set().union(*(self._dependent[tensor.ref()] for tensor in operation.outputs))
            if operation.type != "Placeholder" and found & (owner.keys() | slots):
                operations.append((operation, found & (owner.keys() | slots)))
        for _, found in operations:
            owners = {owner[key] for key in found if key in owner}
            for key in found - owner.keys():
                if len(owners) == 1:
                    owner[key] = next(iter(owners))
        for operation, found in operations:
            owners = {owner.get(key, -1) for key in found}
            if len(owners) != 1 or -1 in owners or operation.type not in _ELEMENTWISE:
                return None
            shape = layout.shapes[next(iter(owners))]
            if any(tensor.shape.rank is None or tuple(tensor.shape) != shape for tensor in operation.outputs):
                return None
        count = len(self._trainable)
        own: list[list[slice]] = [[part] for part in self.layout.slices[:count]]
        for variable, part in zip(self._slots, self.layout.slices[count:], strict=True):
            if id(variable) not in owner:
                return None
            own[owner[id(variable)]].append(part)
        if len({len(parts) for parts in own}) != 1:
            return None
        return [list(kind) for kind in zip(*own, strict=True)]

    def _behind_clip(self, layout: Layout) -> tuple[NormClip | None, list[list[slice]] | None]:
        """A clip by norm and the kinds of entries behind it, if the update is an elementwise one of clipped gradients.

        The clip is where the optimizer asks Keras for it: with its result replaced, nothing may depend on the gradients
        but through that, and what Keras does there must have the derivative that is known in closed form.
        """
        optimizer = self._optimizer
        limits = [getattr(optimizer, name, None) or 0.0 for name in ("clipnorm", "global_clipnorm")]
        if not max(limits) > 0:
            return None, None
        clip = NormClip(max(limits), layout.slices if limits[0] > 0 else (slice(0, layout.size),))
        reads, _, _ = self._dependencies(layout, [*self._slots, *self._held], behind_clip=True)
        if any(key[0] == "unclipped" for keys in reads.values() for key in keys if isinstance(key, tuple)):
            return None, None
        kinds = self._elementwise(layout)
        return (clip, kinds) if kinds is not None and self._is_clip(clip) else (None, None)

    def _is_clip(self, clip: NormClip) -> bool:
        """Whether values and derivative of Keras' clipping are this one's, at gradients on either side of the limit."""
        generator = np.random.default_rng(0)
        twice = [np.zeros(2, np.int32) for _ in self.looked_up]
        places = self._places(twice)
        clip = self._clip_of(clip, places)
        size = places[-1].stop
        for factor in (0.5, 3.0):
            gradient = generator.standard_normal(size)
            cotangent = tf.constant(generator.standard_normal(self.num_weights))
            for lost, part in zip(self.missing, places, strict=True):
                gradient[part] *= not lost
            for part in clip.groups:
                gradient[part] *= factor * clip.limit / (np.linalg.norm(gradient[part]) or 1.0)

            def summed(at: Any, clips: bool) -> Any:
                gradients = parted(at, twice, self.looked_up, self._weights)
                kept = self._kept(self._clipped(gradients) if clips else gradients)
                zeros = [tf.zeros(shape, at.dtype) for shape in self._weights.shapes]
                return _joined(
                    [zero if own is None else tf.convert_to_tensor(own) for own, zero in zip(kept, zeros, strict=True)]
                )

            at = tf.constant(gradient)
            with tf.GradientTape(persistent=True) as tape:
                tape.watch(at)
                found, plain = summed(at, True), summed(at, False)
            pulled = tape.gradient(found, at, cotangent).numpy()
            expected = next(clip.derivative(gradient).rows(tape.gradient(plain, at, cotangent).numpy()[None]))
            pairs = [(found.numpy(), min(1.0, 1.0 / factor) * plain.numpy()), (pulled, expected)]
            if any(np.linalg.norm(one - other) > 1e-9 * np.linalg.norm(other) for one, other in pairs):
                return False
        return True

    def _places(self, rows: Sequence[Any]) -> list[slice]:
        """Where each variable's gradient lies among all of them, given the rows of those looked up."""
        sizes = list(self._weights.sizes)
        for k, own in zip(self.looked_up, rows, strict=True):
            sizes[k] = int(own.shape[0]) * int(np.prod(self._weights.shapes[k][1:]))
        ends = [int(end) for end in np.cumsum(sizes)]
        return [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]

    def _clip_of(self, clip: NormClip, places: Sequence[slice]) -> NormClip:
        """The clip with its groups where they lie in a gradient row by row."""
        groups = tuple(places) if len(clip.groups) > 1 else (slice(0, places[-1].stop),)
        return NormClip(clip.limit, groups)

    def _applied(
        self, variables: Sequence[Any], values: Sequence[Any], gradients: Sequence[Any], clipped: Any = None
    ) -> Any:
        """The scope after one apply of the optimizer's own code, with its clipped gradients replaced by those given."""
        given = self._kept(gradients)
        if clipped is not None:
            replaced = [gradient for gradient in self._kept(clipped) if gradient is not None]

            def stand_in(grads: Sequence[Any]) -> list[Any]:
                arrived = [gradient for gradient in given if gradient is not None]
                same = len(grads) == len(arrived) and all(a is b for a, b in zip(grads, arrived, strict=True))
                return replaced if same else self._optimizer.clipped(grads)

            vars(self._optimizer)["_stand_in"] = stand_in
        try:
            with precision.default_precision(self.dtype), warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Gradients do not exist")
                with _Recording(list(zip(variables, values, strict=True))) as scope:
                    self._optimizer.apply(given, self._trainable)
        finally:
            vars(self._optimizer)["_stand_in"] = None
        return scope

    def _clipped(self, gradients: Sequence[Any]) -> list[Any]:
        """Gradients as Keras clips them; those that the loss leaves out stay as they are."""
        kept = [k for k, lost in enumerate(self.missing) if not lost]
        found = list(gradients)
        with precision.default_precision(gradients[0].dtype.name):
            clipped = self._optimizer.clipped([found[k] for k in kept])
        for k, gradient in zip(kept, clipped, strict=True):
            found[k] = gradient
        return found

    def _kept(self, gradients: Sequence[Any]) -> list[Any]:
        """The gradients, None where the loss leaves a variable without one."""
        return [None if lost else gradient for lost, gradient in zip(self.missing, gradients, strict=True)]

    # Graphs: what is traced

    def _split(self, vector: Any, count: int) -> list[Any]:
        pieces = tf.split(vector, list(self.layout.sizes[:count]))
        return [tf.reshape(piece, shape) for piece, shape in zip(pieces, self.layout.shapes[:count], strict=True)]

    def _new_parts(
        self, parts: list[Any], gradients: list[Any], held: Sequence[Any], clipped: list[Any] | None = None
    ) -> tuple[list[Any], Any]:
        """New values of the state's variables and the held ones, and how many roots are zero, and of how many."""
        variables = [*self._trainable, *self._slots, *self._held]
        counts: list[tuple[Any, Any]] = []
        with exact_roots(counts):
            scope = self._applied(variables, [*parts, *held], gradients, clipped)
        totals = [tf.add_n(list(column)) for column in zip(*counts, strict=True)] or [tf.zeros([], tf.int64)] * 2
        return [scope.get_current_value(variable) for variable in variables], tf.stack(totals)

    def _update_graph(self, state: Any, gradient: Any, *rest: Any) -> tuple[Any, ...]:
        """Next state, (zero roots, roots), next held values."""
        count = len(self.layout.names)
        rows, held = rest[: len(self.looked_up)], rest[len(self.looked_up) :]
        gradients = parted(gradient, rows, self.looked_up, self._weights)
        found, roots = self._new_parts(self._split(state, count), gradients, held)
        return _joined(found[:count]), roots, *found[count:]

    def _diagonals_graph(self, state: Any, gradient: Any, *rest: Any) -> tuple[Any, ...]:
        """Next state, (zero roots, roots), the diagonals [kind, kind, n] in the state and [kind, size of G] in the
        (clipped) gradient, next held values."""
        assert self._kinds is not None
        count = len(self.layout.names)
        rows, held = rest[: len(self.looked_up)], rest[len(self.looked_up) :]
        position = {(part.start, part.stop): k for k, part in enumerate(self.layout.slices)}
        kinds = [[position[part.start, part.stop] for part in kind] for kind in self._kinds]
        parts, gradients = self._split(state, count), parted(gradient, rows, self.looked_up, self._weights)
        clipped = self._clipped(gradients) if self._clip is not None else None
        last = [getattr(own, "values", own) for own in (gradients if clipped is None else clipped)]
        with exact_roots(), tf.GradientTape(persistent=True) as tape:
            tape.watch([*parts, *last])
            found, roots = self._new_parts(parts, gradients, held, clipped)
        of_state, of_gradient = [], []
        zero = tf.UnconnectedGradients.ZERO
        for kind in kinds:
            new = [found[k] for k in kind]
            inputs = [[parts[k] for k in other] for other in kinds]
            *pulled, slopes = tape.gradient(new, [*inputs, last], unconnected_gradients=zero)
            of_state.append(tf.stack([_joined(part) for part in pulled]))
            if clipped is not None:  # a clip may sum rows; one row moves as all of a weight do
                for k, own in zip(self.looked_up, rows, strict=True):
                    if not isinstance(clipped[k], tf.IndexedSlices):
                        slopes[k] = tf.gather(slopes[k], own)
            of_gradient.append(_joined(slopes))
        return _joined(found[:count]), roots, tf.stack(of_state), tf.stack(of_gradient), *found[count:]

    def _pull(self, tape: Any, new: Any, inputs: list[Any], cotangent: Any) -> list[Any]:
        pulled: list[Any] = tape.gradient(
            new, inputs, output_gradients=cotangent, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        return pulled

    def _backward_graph(self, many: str, state: Any, gradient: Any, cotangents: Any, *rest: Any) -> Any:
        with exact_roots(), tf.GradientTape(persistent=many != "") as tape:
            tape.watch([state, gradient])
            new = self._update_graph(state, gradient, *rest)[0]
        with exact_roots():
            return _over_rows(many, lambda row: tuple(self._pull(tape, new, [state, gradient], row)), cotangents)

    def _forward_graph(self, many: str, state: Any, gradient: Any, rows: Any, slopes: Any, *rest: Any) -> Any:
        """Tangents of the next state: the derivative of the linear map u -> u'J in u."""
        dual = tf.ones([self.size], self.dtype)
        with exact_roots(), tf.GradientTape(persistent=many != "") as outer:
            outer.watch(dual)
            with tf.GradientTape() as tape:
                tape.watch([state, gradient])
                new, _, *_ = self._update_graph(state, gradient, *rest)
            pulled = self._pull(tape, new, [state, gradient], dual)

            def forward(pair: Any) -> Any:
                return self._pull(outer, pulled, [dual], list(pair))[0]

        with exact_roots():
            pushed = _over_rows(many, forward, (rows, slopes))
        return pushed

    def _function(self, kind: str, many: str) -> Any:
        """The compiled function; forward and backward are made for one vector ('') or 'vectorized' or 'mapped' rows."""
        name = f"{kind} {many}"
        if name not in self._functions:
            rank = [None] if many else []
            state = tf.TensorSpec([self.size], self.dtype)
            width = None if self.looked_up else self.num_weights
            gradient = tf.TensorSpec([width], self.dtype)
            rows = tf.TensorSpec([*rank, self.size], self.dtype)
            slopes = tf.TensorSpec([*rank, width], self.dtype)
            lookups = [tf.TensorSpec([None], tf.int32) for _ in self.looked_up]
            held = [tf.TensorSpec(v.shape, v.dtype) for v in self._held]
            graph, specs = {
                "update": (self._update_graph, [state, gradient]),
                "diagonals": (self._diagonals_graph, [state, gradient]),
                "forward": (lambda *given: self._forward_graph(many, *given), [state, gradient, rows, slopes]),
                "backward": (lambda *given: self._backward_graph(many, *given), [state, gradient, rows]),
            }[kind]
            traced = tf.function(graph, autograph=False, jit_compile=False)
            self._functions[name] = traced.get_concrete_function(*specs, *lookups, *held)
        return self._functions[name]

    def _rows_function(self, kind: str, is_block: bool) -> Any:
        if not is_block:
            return self._function(kind, "")
        if f"{kind} mapped" not in self._functions:
            try:
                with quiet():
                    return self._function(kind, "vectorized")
            except Exception:  # no vectorized form of some operation; TensorFlow raises several types for it
                pass
        return self._function(kind, "mapped")

    # Calls: tensors in, tensors out

    def constants(self, held: dict[str, Any]) -> list[Any]:
        """Held values as tensors, in the order the functions take them.

        Raises:
            ModelError: Names are missing or unknown.
        """
        if set(held) != set(self.held_names):
            raise ModelError(
                f"the held values are {', '.join(sorted(held)) or 'none'}; this update holds "
                f"{', '.join(self.held_names)}."
            )
        return [tf.constant(held[name], v.dtype) for name, v in zip(self.held_names, self._held, strict=True)]

    def named(self, held: Sequence[Any]) -> dict[str, Array]:
        return {name: value.numpy() for name, value in zip(self.held_names, held, strict=True)}

    def update(self, state: Any, gradient: Gradient, held: Sequence[Any]) -> tuple[Any, list[Any]]:
        """Next state and held values."""
        new, _, *advanced = self._function("update", "")(state, gradient.values, *gradient.rows, *held)
        return new, advanced

    def rates(self, held: Sequence[Any]) -> list[float]:
        """The learning rates that the update computes from these held values, of each of `scheduled_parts`."""

        def graph(*values: Any) -> list[Any]:
            with precision.default_precision(self.dtype), _Recording(list(zip(self._held, values, strict=True))):
                return [tf.convert_to_tensor(part.learning_rate) for part in scheduled_parts(self._optimizer)]

        return [float(rate) for rate in tf.function(graph, autograph=False)(*held)]

    def zero_roots(self, state: Any, gradient: Gradient, held: Sequence[Any]) -> tuple[int, int]:
        """How many arguments of square roots are exactly 0 in this update, and how many there are."""
        zeros, roots = self._function("update", "")(state, gradient.values, *gradient.rows, *held)[1].numpy()
        return int(zeros), int(roots)

    def linearize(self, state: Any, gradient: Gradient, held: Sequence[Any]) -> tuple[Any, list[Any], Linearized]:
        """Next state and held values, and the derivative there."""
        values = gradient.values
        if self._kinds is not None:
            arguments = (state, values, *gradient.rows, *held)
            new, _, of_state, of_gradient, *advanced = self._function("diagonals", "")(*arguments)
            linear: Linearized = self._by_diagonals(of_state.numpy(), of_gradient.numpy(), gradient)
            return new, advanced, linear

        def product(kind: str, *blocks: Array) -> Any:
            """Of one row by the function of vectors, which is compiled sooner, or of several."""
            several = len(blocks[0]) > 1
            given = [tf.constant(block if several else block[0], self.dtype) for block in blocks]
            found = self._rows_function(kind, several)(state, values, *given, *gradient.rows, *held)
            return tf.nest.map_structure(lambda part: part.numpy() if several else part.numpy()[None], found)

        def push(tangents: Array, slopes: Array) -> Array:
            pushed: Array = product("forward", tangents, slopes)
            return pushed

        def pull(cotangents: Array) -> tuple[Array, Array]:
            first, second = product("backward", cotangents)
            return first, second

        return *self.update(state, gradient, held), Compiled(push, pull)

    def _by_diagonals(self, of_state: Array, of_gradient: Array, gradient: Gradient) -> Linearized:
        assert self._kinds is not None
        rows = [own.numpy() for own in gradient.rows]
        places, slices = self._places(rows), self._weights.slices
        plain = [(slices[k], places[k]) for k in range(len(places)) if k not in self.looked_up]
        if self.looked_up:
            summed = np.zeros((len(of_gradient), self.num_weights), of_gradient.dtype)
            for own, given in plain:
                summed[:, own] = of_gradient[:, given]
        else:
            summed = of_gradient
        made = [
            [*(compressed(diagonal) for diagonal in row), compressed(last)]
            for row, last in zip(of_state, summed, strict=True)
        ]
        rest: Diagonals | RowDiagonals = Diagonals(self._kinds, made)
        if self.looked_up:
            lookups = [
                Lookups.of(
                    places[k],
                    [kind[k] for kind in self._kinds],
                    own,
                    [last[places[k]] for last in of_gradient],
                    self._weights.shapes[k],
                )
                for k, own in zip(self.looked_up, rows, strict=True)
            ]
            rest = RowDiagonals(Diagonals(self._kinds, made), plain, lookups)
        if self._clip is None:
            return rest
        return Clipped(self._clip_of(self._clip, places).derivative(gradient.values.numpy()), rest)

    def unmoved(self, state: Array, gradient: Gradient) -> int:
        """How many weights have a gradient and slots that are all exactly 0; none where weights meet."""
        if self._kinds is None:
            return 0
        parts = parted(abs(gradient.values), gradient.rows, self.looked_up, self._weights)
        zero = _joined([tf.convert_to_tensor(part) for part in parts]).numpy() == 0
        for kind in self._kinds[1:]:
            zero &= np.concatenate([state[part] for part in kind]) == 0
        return int(np.sum(zero))

    def sums_rows(self) -> bool:
        """Whether a row that is looked up twice moves as by one gradient, the sum, however large the gradients are."""
        generator = np.random.default_rng(0)
        once, twice = (tuple(tf.zeros([count], tf.int32) for _ in self.looked_up) for count in (1, 2))
        widths = [int(np.prod(self._weights.shapes[k][1:])) for k in self.looked_up]
        state, held = tf.constant(self.state, self.dtype), self.constants(self.held)
        for size in _SIZES:
            apart = [size * generator.standard_normal((2, width)) for width in widths]
            found = []
            for rows, count in ((once, 1), (twice, 2)):
                parts = [np.zeros(length) for length in self._weights.sizes]
                for k, own in zip(self.looked_up, apart, strict=True):
                    parts[k] = (np.sum(own, axis=0) if count == 1 else own).ravel()
                values = tf.constant(np.concatenate(parts), self.dtype)
                found.append(self.update(state, Gradient(values, rows), held)[0].numpy().astype(np.float64))
            summed, separate = found
            rounding = 32 * np.finfo(self.dtype).eps * (np.abs(self.state) + np.abs(summed - self.state) + size)
            if np.any(np.abs(summed - separate) > rounding):
                return False
        return True


def _has_signs(graph: Any) -> bool:
    definition = graph.as_graph_def()
    nodes = [definition.node, *(function.node_def for function in definition.library.function)]
    return any(node.op == "Sign" for own in nodes for node in own)


def _joined(parts: Sequence[Any]) -> Any:
    return tf.concat([tf.reshape(part, [-1]) for part in parts], axis=0)


def _over_rows(many: str, function: Any, rows: Any) -> Any:
    if many == "vectorized":
        return tf.vectorized_map(function, rows, fallback_to_while_loop=False)
    if many == "mapped":
        signature = tf.nest.map_structure(
            lambda tensor: tf.TensorSpec(tensor.shape, tensor.dtype),
            function(tf.nest.map_structure(lambda block: block[0], rows)),
        )
        return tf.map_fn(function, rows, fn_output_signature=signature)
    return function(rows)


def _reached(graph: Any, inputs: dict[Any, Any]) -> dict[Any, frozenset[Any]]:
    """For each tensor of a graph, which of the inputs it is made from; operations come after their inputs."""
    found: dict[Any, frozenset[Any]] = {}
    for operation in graph.get_operations():
        union = frozenset().union(*(found[tensor.ref()] for tensor in operation.inputs))
        for tensor in operation.outputs:
            found[tensor.ref()] = frozenset([inputs[tensor.ref()]]) if tensor.ref() in inputs else union
    return found


def _unique(names: Sequence[str]) -> tuple[str, ...]:
    """The names, with a number after those that came before."""
    seen: dict[str, int] = {}
    made = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        made.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return tuple(made)
