"""Variables that an optimizer's update reads and writes, from the traced graph of one update.

State is a floating-point variable that the update both reads and changes, in a way that depends on the weights, the
gradient or other state. Everything else that is read (learning rate, iteration, Nadam's product of momenta) evolves by
itself: it is held for a Jacobian, and advanced.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import attrs
import numpy as np
import tensorflow as tf

from sdkeras.errors import ModelError
from sdkeras.files.keras_types import Compiled, Tensor, Variable
from sdkeras.operators.layout import Layout
from sdkeras.training_step.derivative import NormClip
from sdkeras.training_step.gradients import GradientLayout
from sdkeras.training_step.optimizer import FunctionalOptimizer, is_float

# Operations whose result in one place depends on their inputs in that place only.
_ELEMENTWISE = {
    *("Add", "AddV2", "Sub", "Mul", "Div", "RealDiv", "Neg", "Reciprocal", "Abs", "Sign", "Maximum", "Minimum"),
    *("Square", "Cube", "Sqrt", "Rsqrt", "Pow", "Exp", "Log", "Tanh", "ClipByValue", "Select", "SelectV2", "Cast"),
    *("Equal", "NotEqual", "Greater", "GreaterEqual", "Less", "LessEqual", "LogicalAnd", "LogicalNot", "LogicalOr"),
    *("Identity", "StopGradient", "OnesLike", "ZerosLike"),
}


@attrs.frozen(eq=False)
class UpdateGraph:
    """Variables that one update reads and writes."""

    slots: tuple[Variable, ...]  # the optimizer's variables that are state, beside the weights
    held: tuple[Variable, ...]  # what the update reads beside the state, and the iteration
    layout: Layout  # of the state: the trainable variables, then the slots
    # If each weight is updated by itself, whatever the state: for each trainable variable the positions of its slots
    # among all variables of the state, as many for each; None where weights meet.
    owned: tuple[tuple[int, ...], ...] | None
    clip: NormClip | None  # in front of such an update
    has_signs: bool  # which jump at 0


def analyse(optimizer: FunctionalOptimizer, weights: Layout) -> UpdateGraph:
    """Reads the graph of one update of variables of this layout, which must not write to any behind Keras' back.

    Nothing is computed but the clip of a random gradient, where there is one by norm.
    """
    others = [v for v in optimizer.optimizer.variables if all(v is not w for w in optimizer.trainable)]
    for _ in range(3):  # variables that `optimizer.variables` does not list are found by the first trace
        trace = _traced(optimizer, weights, others)
        if not trace.unknown:
            break
        others = [*others, *trace.unknown]
    slots, held = _roles(optimizer, trace.reads, others)
    owned, clip = _owned_slots(trace, optimizer, weights, slots), None
    if owned is None:
        owned, clip = _behind_clip(optimizer, weights, slots, held)
    names = unique_names([*optimizer.trainable, *slots])
    layout = Layout((*weights.names, *names[len(weights.names) :]), (*weights.shapes, *Layout.of(slots).shapes))
    return UpdateGraph(tuple(slots), tuple(held), layout, owned, clip, _has_signs(trace.graph))


def unique_names(variables: Sequence[Variable]) -> tuple[str, ...]:
    """The variables' paths, with a number after those that came before."""
    paths = [str(variable.path) for variable in variables]
    counts = [paths[: k + 1].count(path) for k, path in enumerate(paths)]
    return tuple(path if count == 1 else f"{path}#{count}" for path, count in zip(paths, counts, strict=True))


@attrs.frozen(eq=False)
class _Trace:
    """One traced update."""

    graph: Compiled
    sources: dict[Hashable, frozenset[Hashable]]  # the inputs that each of its tensors, by reference, is made from
    reads: dict[Hashable, frozenset[Hashable]]  # those of the new value of each variable written, by its id
    unknown: list[Variable]  # used without being an input


def _traced(
    optimizer: FunctionalOptimizer, weights: Layout, others: Sequence[Variable], behind_clip: bool = False
) -> _Trace:
    """Traces an update of the trainable and the other variables.

    With `behind_clip` the inputs ('gradient', k) are the clipped gradients, and what depends on the others all the
    same depends on ('unclipped', k).

    Raises:
        ModelError: The update writes to TensorFlow variables of its own.
    """
    variables = [*optimizer.trainable, *others]
    written: list[int] = []
    unknown: list[Variable] = []

    def graph(values: list[Tensor], gradients: list[Tensor], clipped: list[Tensor] | None = None) -> list[Tensor]:
        scope = optimizer.apply(variables, values, gradients, clipped)
        unknown.extend(scope.unknown)
        new = [(id(variable), scope.get_current_value(variable)) for variable in variables]
        changed = [(key, after) for (key, after), before in zip(new, values, strict=True) if after is not before]
        written.extend(key for key, _ in changed)
        return [after for _, after in changed]

    kinds = ["unclipped", "gradient"] if behind_clip else ["gradient"]
    gradients = [tf.TensorSpec(shape, optimizer.dtype) for shape in weights.shapes]
    specs = [[tf.TensorSpec(v.shape, v.dtype) for v in variables], *[gradients for _ in kinds]]
    traced = tf.function(graph, autograph=False, jit_compile=False).get_concrete_function(*specs)
    writing = [op.type for op in traced.graph.get_operations() if op.type.startswith(("Assign", "ResourceScatter"))]
    if writing:
        raise ModelError(
            f"the optimizer {type(optimizer.optimizer).__bases__[0].__name__} writes to TensorFlow variables of its "
            f"own ({writing[0]}), so its step is not a function of its Keras variables; let it assign by "
            "self.assign(variable, value) to variables made by add_variable."
        )
    keys: list[Hashable] = [id(v) for v in variables] + [(kind, k) for kind in kinds for k in range(len(gradients))]
    inputs = {tensor.ref(): frozenset([key]) for tensor, key in zip(traced.inputs, keys, strict=True)}
    sources: dict[Hashable, frozenset[Hashable]] = {}
    for operation in traced.graph.get_operations():  # each comes after its inputs
        union = frozenset[Hashable]().union(*(sources[tensor.ref()] for tensor in operation.inputs))
        sources.update({tensor.ref(): inputs.get(tensor.ref(), union) for tensor in operation.outputs})
    reads = (sources[tensor.ref()] for tensor in traced.outputs)
    return _Trace(traced.graph, sources, dict(zip(written, reads, strict=True)), unknown)


def _roles(
    optimizer: FunctionalOptimizer, reads: dict[Hashable, frozenset[Hashable]], others: Sequence[Variable]
) -> tuple[list[Variable], list[Variable]]:
    """Slots and held variables among the others."""
    moving: set[Hashable] = {id(v) for v in optimizer.trainable}
    moving |= {("gradient", k) for k in range(len(optimizer.trainable))}
    candidates = {id(v) for v in others if is_float(v)} & reads.keys()
    while grown := {key for key in candidates - moving if reads[key] & moving}:
        moving |= grown
    state = candidates & moving
    used: set[Hashable] = set()
    wanted = state | {id(v) for v in optimizer.trainable}
    while more := set().union(*(reads.get(key, ()) for key in wanted | used)) - used:  # and what that reads
        used |= more
    slots = [v for v in others if id(v) in state & used]
    used.add(id(optimizer.optimizer._iterations))  # SGD never reads it, but a run that goes on wants to know
    return slots, [v for v in others if id(v) in used and all(v is not slot for slot in slots)]


def _owned_slots(
    trace: _Trace, optimizer: FunctionalOptimizer, weights: Layout, slots: Sequence[Variable]
) -> tuple[tuple[int, ...], ...] | None:
    """Positions of each variable's slots if all operations that depend on the state are elementwise, else None.

    They must have the shape of the one variable that they belong to.
    """
    count = len(optimizer.trainable)
    owner: dict[Hashable, int] = {("gradient", k): k for k in range(count)}
    owner.update({id(variable): k for k, variable in enumerate(optimizer.trainable)})
    state = owner.keys() | {id(slot) for slot in slots}
    operations = []
    for operation in trace.graph.get_operations():
        used = frozenset[Hashable]().union(*(trace.sources[tensor.ref()] for tensor in operation.outputs)) & state
        if used and operation.type != "Placeholder":
            operations.append((operation, used))
    for _, used in operations:
        owners = {owner[key] for key in used if key in owner}
        if len(owners) == 1:
            owner.update(dict.fromkeys(used - owner.keys(), next(iter(owners))))
    for operation, used in operations:
        owners = {owner.get(key, -1) for key in used}
        if len(owners) != 1 or -1 in owners or operation.type not in _ELEMENTWISE:
            return None
        shape = weights.shapes[owners.pop()]
        if any(tensor.shape.rank is None or tuple(tensor.shape) != shape for tensor in operation.outputs):
            return None
    owners_of_slots = [owner.get(id(slot), -1) for slot in slots]
    owned = tuple(tuple(count + j for j, of in enumerate(owners_of_slots) if of == k) for k in range(count))
    return None if -1 in owners_of_slots or len({len(each) for each in owned}) != 1 else owned


def _behind_clip(
    optimizer: FunctionalOptimizer, weights: Layout, slots: Sequence[Variable], held: Sequence[Variable]
) -> tuple[tuple[tuple[int, ...], ...] | None, NormClip | None]:
    """The slots of each variable and the clip by norm before an elementwise update of clipped gradients, or None.

    The clip is where the optimizer asks Keras for it: with its result replaced, nothing may depend on the gradients
    but through that, and what Keras does there must be what is known in closed form.
    """
    by_variable, whole = (getattr(optimizer.optimizer, name, None) or 0.0 for name in ("clipnorm", "global_clipnorm"))
    if not max(by_variable, whole) > 0:
        return None, None
    clip = NormClip(by_variable, False) if by_variable > 0 else NormClip(whole, True)
    trace = _traced(optimizer, weights, [*slots, *held], behind_clip=True)
    if any(isinstance(key, tuple) and key[0] == "unclipped" for keys in trace.reads.values() for key in keys):
        return None, None
    owned = _owned_slots(trace, optimizer, weights, slots)
    known = owned is not None and is_norm_clip(optimizer, clip, GradientLayout(weights))
    return (owned, clip) if known else (None, None)


def is_norm_clip(optimizer: FunctionalOptimizer, clip: NormClip, layout: GradientLayout) -> bool:
    """Whether Keras' clipping is this one, at gradients on either side of the limit; of those looked up two rows."""
    generator = np.random.default_rng(0)
    places = layout.slices([2] * len(layout.looked_up))
    rows = [np.zeros(2, np.int32) for _ in layout.looked_up]
    for factor in (0.5, 3.0):
        gradient = generator.standard_normal(places[-1].stop)
        for lost, place in zip(optimizer.missing, places, strict=True):
            gradient[place] *= not lost
        for place in clip.groups(places):
            gradient[place] *= factor * clip.limit / (np.linalg.norm(gradient[place]) or 1.0)
        gradients = layout.parted(tf.constant(gradient), rows)
        for before, after in zip(gradients, optimizer.clip(gradients), strict=True):
            expected = min(1.0, 1.0 / factor) * tf.convert_to_tensor(before).numpy()
            if np.linalg.norm(tf.convert_to_tensor(after).numpy() - expected) > 1e-9 * np.linalg.norm(expected):
                return False
    return True


def _has_signs(graph: Compiled) -> bool:
    definition = graph.as_graph_def()
    nodes = [definition.node, *(function.node_def for function in definition.library.function)]
    return any(node.op == "Sign" for function_nodes in nodes for node in function_nodes)
