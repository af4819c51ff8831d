"""Hessian-vector products linearised once per batch: what does not depend on the vector is computed once and held.

The graph of a product (point, vector, batch) -> H v is cut. The *primal* (point, batch) -> boundary tensors computes
every tensor that no path of data leads to from the vector and that an operation after the vector reads: activations,
their derivatives, dropout masks, batch statistics. The *tangent* (vector, boundary tensors) -> H v is the rest.

Control edges are no paths. TensorFlow's gradients of squares, roots and exponentials of an activation wait by a control
edge for the incoming gradient, to save memory; it carries no value between stateless operations, and with any stateful
one (except assertions, which hold for a batch or do not) there is no cut. Colocation hints refer to operations of the
other part and are dropped with them. Tensor lists of while loops count as dependent: a held list cannot be measured.
"""

from __future__ import annotations

import math
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import attrs
import numpy as np
import tensorflow as tf

from sdkeras import seeds
from sdkeras.files.keras_types import Compiled, Graph, GraphDef, Operation, Tensor
from sdkeras.linalg.vectors import dot, norm
from sdkeras.results.arrays import Array

if TYPE_CHECKING:
    from sdkeras.operators.batch_loss import Batch
    from sdkeras.operators.engine import Engine

# Share of an analysis' memory that held tensors may take. An operator over several batches may take half of it: the
# rest is for minibatches, whose runs come and go.
HELD_SHARE, _OF_SEVERAL = 0.2, 0.5
# Multiply-adds of a forward pass below which a product is dispatch, not arithmetic, and tracing the cut does not pay.
_WORTH = 1e6
# What the tangent may take of the time of a whole product. It takes less for every net that was measured, two thirds on
# dense ones: only one that is clearly slower is refused, so that noise does not decide and two analyses do the same.
_SLOWER, _TIMED = 1.25, 3
# Integer boundary tensors up to this length are constants of a tangent: shapes, which TensorFlow then folds away.
_SHORT = 8
_VARIANTS = 8  # tangents for batches of different shapes; further shapes use the whole product
# The tangent adds the same terms in another order, or fused: beside eps, a multiple of what rounding the weights does.
_EPS, _ROUNDINGS = 1e3, 30.0
_OUTPUT = "linearized_product"
_CHECKS = ("Assert", "Print", "PrintV2")  # stateful, without a value
_UNHELD = (tf.variant, tf.resource)


@attrs.frozen(eq=False)
class Flat:
    """A compiled function that is called with its tensors in order.

    This leaves out TensorFlow's matching of names and structures, up to half the time of a short call.
    """

    function: Compiled
    captured: tuple[Tensor, ...] = attrs.field()
    _execute: Compiled = attrs.field()

    @captured.default
    def _captured_by_function(self) -> tuple[Tensor, ...]:
        return tuple(self.function.captured_inputs)

    @_execute.default
    def _executed_by_function(self) -> Compiled:
        # Where TensorFlow thinks that the memory is short, above some 200 MB, it adds several tensors up in a variable
        # of the function's, which two threads that call it share: one of them fails.
        function = self.function._inference_function
        context = function._bound_context
        usual = context.function_call_options
        config = tf.compat.v1.ConfigProto.FromString(usual.config_proto_serialized)
        config.graph_options.rewrite_options.memory_optimization = config.graph_options.rewrite_options.NO_MEM_OPT
        ours = type(usual)(usual.executor_type, config)

        def execute(*tensors: Tensor) -> Tensor:
            before = context.function_call_options
            context.function_call_options = ours
            try:
                return function.call_flat(*tensors)
            finally:
                context.function_call_options = before

        return execute

    @property
    def graph(self) -> Graph:
        return self.function.graph

    def __call__(self, *tensors: Tensor) -> Tensor:
        """The one output, or a tuple of them."""
        outputs = self._execute(*tensors, *self.captured)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)


_Shapes = tuple[tuple[int, ...], ...]


class NoCutError(Exception):
    """A product that cannot be cut, or a cut that is wrong or does not pay; the message says why."""


@attrs.define(eq=False)
class _Room:
    """Bytes that held tensors may take, over all operators of an engine."""

    limit: float
    held: float = 0.0
    lock: threading.Lock = attrs.field(factory=threading.Lock)

    def take(self, size: int) -> bool:
        """Whether there is room for `size` bytes more, which are then taken."""
        with self.lock:
            fits = self.held + size <= self.limit
            self.held += size * fits
        return fits

    def give_back(self, sizes: list[int]) -> None:
        with self.lock:
            self.held -= sum(sizes)


@attrs.frozen(eq=False)
class Linearization:
    """The product with one batch at one point."""

    tangent: Flat
    boundary: tuple[Tensor, ...]
    size: int  # bytes of the boundary tensors

    def __call__(self, vector: Tensor) -> Tensor:
        return self.tangent(vector, *self.boundary)


@attrs.frozen(eq=False)
class Cut:
    """A product as a primal and tangents, one tangent for each set of shapes; made by `cut_if_faster`."""

    product: Flat
    rounding: float  # relative error of a product from rounding
    room: _Room
    primal: Flat
    tangent_graph: GraphDef
    boundary: tuple[Tensor, ...]  # tensors of the product's graph
    jit: bool  # whether XLA compiles both parts
    # By the shapes of the boundary tensors: values that are constants of the tangent and the tangent, or its fault.
    _tangents: dict[_Shapes, tuple[dict[int, bytes], Flat] | str] = attrs.field(factory=dict)
    _varying: set[int] = attrs.field(factory=set)  # short integer tensors that are no function of the shapes
    _lock: threading.Lock = attrs.field(factory=threading.Lock)

    @classmethod
    def of(cls, product: Flat, rounding: float, memory: float, *, jit: bool = False) -> Cut:
        """The cut of a compiled product (point, vector, ...) -> H v; `HELD_SHARE` of the memory may be held.

        Raises:
            NoCutError: An operation has a state, or nothing is independent of the vector.
        """
        graph = product.graph
        vector, (output,) = graph.inputs[1], graph.outputs
        dependent = _dependent(graph, _ancestors([output.op]), vector.op)
        by_name = {
            tensor.name: tensor
            for operation in dependent.values()
            for tensor in operation.inputs
            if tensor.op.name not in dependent and tensor.op.type != "Const"
        }
        names, boundary = list(by_name), tuple(by_name.values())
        if not any(tensor.op.type != "Placeholder" and tensor.dtype.is_floating for tensor in boundary):
            raise NoCutError("everything depends on the vector")
        definition = graph.as_graph_def()
        inputs = [tensor for tensor in graph.inputs if tensor is not vector]
        primal_graph = _part(definition, _ancestors([tensor.op for tensor in boundary]), {})

        def primal(*arguments: Tensor) -> list[Tensor]:
            by_input = dict(zip((tensor.name for tensor in inputs), arguments, strict=True))
            return _imported(primal_graph, by_input, names)

        tangent_graph = _part(definition, dependent, {name: f"boundary_{k}" for k, name in enumerate(names)})
        for k, tensor in enumerate(boundary):
            node = tangent_graph.node.add(name=f"boundary_{k}", op="Placeholder")
            node.attr["dtype"].type = tensor.dtype.as_datatype_enum
        node = tangent_graph.node.add(name=_OUTPUT, op="Identity", input=[output.name])
        node.attr["T"].type = output.dtype.as_datatype_enum
        room = _Room(HELD_SHARE * memory)
        return cls(product, rounding, room, _compiled(primal, inputs, jit), tangent_graph, boundary, jit)

    def at(self, engine: Engine, batch: Batch) -> Linearization:
        """The product with a batch at the engine's point.

        Raises:
            NoCutError: The tangent for batches of this shape is wrong, or there are too many shapes.
        """
        outputs = self.primal(engine.point, *engine.arguments(batch), *self.product.captured)
        tensors = outputs if isinstance(outputs, tuple) else (outputs,)
        shapes = tuple(tuple(tensor.shape) for tensor in tensors)
        short = {
            k: tensor.numpy()
            for k, (tensor, shape) in enumerate(zip(tensors, shapes, strict=True))
            if tensor.dtype == tf.int32 and math.prod(shape) <= _SHORT
        }
        computed = [k for k, symbol in enumerate(self.boundary) if symbol.op.type != "Placeholder"]
        size = sum(math.prod(shapes[k]) * tensors[k].dtype.size for k in computed)

        def linearization(constants: Mapping[int, bytes], tangent: Flat) -> Linearization:
            return Linearization(tangent, tuple(x for k, x in enumerate(tensors) if k not in constants), size)

        with self._lock:
            known = self._tangents.get(shapes)
            if isinstance(known, str):
                raise NoCutError(known)
            if known is None and len(self._tangents) == _VARIANTS:
                raise NoCutError("batches differ in shape")
            if known is not None:
                differing = {k for k, value in known[0].items() if short[k].tobytes() != value}
                if not differing:
                    return linearization(*known)
                self._varying.update(differing)
            values = {k: value for k, value in short.items() if k not in self._varying}
            constants = {k: value.tobytes() for k, value in values.items()}
            tangent = self._tangent(tensors, values)
            linear = linearization(constants, tangent)
            fault = self._fault(engine, batch, linear)
            self._tangents[shapes] = fault or (constants, tangent)
        if fault:
            raise NoCutError(fault)
        return linear

    def _tangent(self, tensors: Sequence[Tensor], constants: Mapping[int, Array]) -> Flat:
        """The tangent for boundary tensors of these shapes, some of which are constants."""
        arguments = [k for k in range(len(tensors)) if k not in constants]
        vector = self.product.graph.inputs[1]

        def tangent(direction: Tensor, *values: Tensor) -> Tensor:
            by_place = dict(zip(arguments, values, strict=True)) | {k: tf.constant(x) for k, x in constants.items()}
            inputs = {f"boundary_{k}:0": tensor for k, tensor in by_place.items()}
            return _imported(self.tangent_graph, {**inputs, vector.name: direction}, [f"{_OUTPUT}:0"])[0]

        return _compiled(tangent, [vector, *(tensors[k] for k in arguments)], self.jit)

    def _fault(self, engine: Engine, batch: Batch, linear: Linearization) -> str:
        """What is wrong with a new tangent, or '': it is linear, symmetric and equal to the product, up to rounding."""
        u, v = (_direction(engine, number) for number in range(2))
        hu, hv, both = (linear(tf.constant(each)).numpy() for each in (u, v, u + 2 * v))
        wholes = [engine.product(engine.point, tf.constant(each), batch).numpy() for each in (u, v)]
        engine.count(3)
        allowed = max(_EPS * float(np.finfo(engine.dtype).eps), _ROUNDINGS * self.rounding)
        scale = norm(wholes[0]) + 2 * norm(wholes[1])
        for what, error, size in (
            ("the split product differs from the whole", norm(hu - wholes[0]) + norm(hv - wholes[1]), scale),
            ("the split product is not linear", norm(both - hu - 2 * hv), scale),
            ("the split product is not symmetric", abs(dot(u, hv) - dot(v, hu)), scale * (norm(u) + norm(v))),
        ):
            if not error <= allowed * size:
                return f"{what} by {error / max(size, float(np.finfo(float).tiny)):.2g} of its norm"
        return ""


@attrs.define(eq=False)
class Linearizations:
    """Products of one operator at its engine's point: each batch is linearised at its second product, and held.

    Batches beyond the memory for held tensors use the whole product. Made anew for every point, held values and batch.
    """

    engine: Engine
    num_batches: int
    _by_batch: dict[Batch, Linearization | None] = attrs.field(factory=dict)
    _once: set[Batch] = attrs.field(factory=set)
    _sizes: list[int] = attrs.field(factory=list)
    _full: bool = False
    _lock: threading.Lock = attrs.field(factory=threading.Lock)

    def product(self, vector: Tensor, batch: Batch) -> Tensor:
        """Weighted Hessian-vector product on a batch, [n] -> [n]."""
        engine, cut = self.engine, self.engine.cut
        linear = None if cut is None or batch.parts or not tf.executing_eagerly() else self._of(cut, batch)
        if linear is None:
            return engine.product(engine.point, vector, batch)
        engine.count(1)
        return linear(vector)

    def _of(self, cut: Cut, batch: Batch) -> Linearization | None:
        linear = self._by_batch.get(batch)
        if linear is not None:
            return linear
        with self._lock:
            if batch not in self._once:
                self._once.add(batch)
                return None
            if batch not in self._by_batch:
                self._by_batch[batch] = None if self._full else self._held(cut, batch)
            return self._by_batch[batch]

    def _held(self, cut: Cut, batch: Batch) -> Linearization | None:
        """The linearization of a batch, if it is right and there is room for it."""
        try:
            linear = cut.at(self.engine, batch)
        except NoCutError as error:
            warnings.warn(f"products with some batches are not linearised: {error}.", stacklevel=2)
            return None
        most = cut.room.limit * (1.0 if self.num_batches == 1 else _OF_SEVERAL)
        self._full = sum(self._sizes) + linear.size > most or not cut.room.take(linear.size)
        if self._full:
            return None
        if not self._sizes:
            weakref.finalize(self, cut.room.give_back, self._sizes).atexit = False
        self._sizes.append(linear.size)
        return linear


def _names(tensors: Iterable[Tensor]) -> list[str]:
    return [tensor.name for tensor in tensors]


def _compiled(function: Compiled, like: Sequence[Tensor], jit: bool) -> Flat:
    """The function compiled for arguments of these tensors' shapes and dtypes."""
    specs = [tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in like]
    return Flat(tf.function(function, autograph=False, jit_compile=jit).get_concrete_function(*specs))


def _imported(graph: GraphDef, inputs: Mapping[str, Tensor], outputs: list[str]) -> list[Tensor]:
    """Outputs of a graph that is put into the present one, with tensors in place of its inputs."""
    by_node = {name.partition(":")[0]: name for name in inputs}
    rest = type(graph)(versions=graph.versions, library=graph.library)
    rest.node.extend(node for node in graph.node if node.name not in by_node)  # XLA refuses placeholders
    present = {node.name for node in graph.node}
    used = {name: inputs[name] for node, name in by_node.items() if node in present}
    tensors: list[Tensor] = tf.graph_util.import_graph_def(rest, input_map=used, return_elements=outputs, name="")
    return tensors


def _ancestors(targets: Iterable[Operation]) -> dict[str, Operation]:
    """The operations from which data reach the targets, which are among them, by name."""
    reached: dict[str, Operation] = {}
    left = list(targets)
    while left:
        operation = left.pop()
        if operation.name not in reached:
            reached[operation.name] = operation
            left += [tensor.op for tensor in operation.inputs]
    return reached


def _dependent(graph: Graph, needed: Mapping[str, Operation], vector: Operation) -> dict[str, Operation]:
    """Those of the needed operations that data reach from the vector, by name.

    Raises:
        NoCutError: An operation has a state, or reads what is made after it (a loop in the graph).
    """
    dependent: dict[str, Operation] = {}
    seen: set[str] = set()
    for operation in graph.get_operations():  # in order of creation
        if operation.name not in needed:
            continue
        if operation.op_def.is_stateful and operation.type not in _CHECKS:
            raise NoCutError(f"{operation.type} ({operation.name}) has a state")
        sources = {tensor.op.name for tensor in operation.inputs}
        if not sources <= seen:
            raise NoCutError(f"{operation.name} is part of a loop")
        seen.add(operation.name)
        unheld = any(tensor.dtype in _UNHELD for tensor in operation.outputs)
        if operation is vector or unheld or not sources.isdisjoint(dependent):
            dependent[operation.name] = operation
    if any(operation.type == "Placeholder" and operation is not vector for operation in dependent.values()):
        raise NoCutError("a variable or a list is captured")
    return dependent


def _part(definition: GraphDef, operations: Mapping[str, Operation], renamed: Mapping[str, str]) -> GraphDef:
    """The operations alone, with the constants they read and with some of their inputs renamed."""
    part = type(definition)(versions=definition.versions, library=definition.library)
    constants = {
        tensor.op.name for operation in operations.values() for tensor in operation.inputs if tensor.op.type == "Const"
    }
    for node in definition.node:
        if node.name not in operations and node.name not in constants:
            continue
        copy = part.node.add()
        copy.CopyFrom(node)
        copy.attr.pop("_class", None)
        operation = operations.get(node.name)
        del copy.input[:]
        copy.input.extend(renamed.get(tensor.name, tensor.name) for tensor in (operation.inputs if operation else ()))
    return part


# Choice


def is_worth_trying(size: int, batch: Batch) -> bool:
    """Whether a product has more arithmetic than dispatch: weights times examples, and times pixels or tokens."""
    places = (
        math.prod(tensor.shape[: max(1, tensor.shape.rank - tensor.dtype.is_floating)]) for tensor in batch.tensors
    )
    return bool(size * max(places) >= _WORTH)


def cut_if_faster(engine: Engine, batch: Batch, rounding: float, memory: float, *, always: bool = False) -> Cut:
    """The engine's product, cut, checked and timed on a batch.

    Args:
        engine: Makes the whole products, reverse over reverse.
        batch: The batch to check and time with.
        rounding: Relative error of a product from rounding.
        memory: Bytes of which `HELD_SHARE` may be held.
        always: Cut it even if it is no faster.

    Raises:
        NoCutError: The product cannot be cut, the cut is wrong or no faster, or the batch does not fit the memory.
    """
    cut = Cut.of(engine.compiled_product(None), rounding, memory, jit=engine.jit)
    linear = cut.at(engine, batch)
    if linear.size > cut.room.limit:
        raise NoCutError(f"a batch takes {linear.size / 1e9:.2g} GB of the {cut.room.limit / 1e9:.2g} GB for it")
    vector = tf.constant(_direction(engine, 0))
    whole, split = _seconds(lambda: engine.product(engine.point, vector, batch), lambda: linear(vector))
    if split > _SLOWER * whole and not always:
        raise NoCutError(f"it takes {split / whole:.2f} of the time")
    return cut


def _direction(engine: Engine, number: int) -> Array:
    drawn: Array = seeds.generator(0, seeds.Stream.CHECK_DIRECTIONS, number).standard_normal(engine.size)
    return drawn.astype(engine.dtype)


def _seconds(*functions: Callable[[], Tensor]) -> list[float]:
    """Shortest time of each function, called in turn."""
    best = [math.inf] * len(functions)
    for _ in range(_TIMED):
        for k, function in enumerate(functions):
            start = time.perf_counter()
            function().numpy()
            best[k] = min(best[k], time.perf_counter() - start)
    return best
