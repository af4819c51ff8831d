"""Compiled gradient and Hessian-vector products of one batch loss; built once per analysis.

Product modes:
- linearized: reverse-over-reverse, whose graph is cut so that each batch is linearised once (see `linearized`).
- reverse-over-reverse: H v = grad (g . v), g the gradient; also right through `tf.while_loop` (recurrent layers).
- forward-over-reverse: the directional derivative of g along v.
- finite-differences: (g(w + h v) - g(w - h v)) / 2h.

'auto' takes the first of the last three that TensorFlow can build, linearised where that is faster.
Reverse-over-reverse comes before forward-over-reverse because it was never slower on the CPU (1.4-2.7 gradients against
1.5-2.8) and shares its first pass between many probes.
"""

from __future__ import annotations

import contextlib
import logging
import operator
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, ClassVar, Self

import attrs
import numpy as np
import tensorflow as tf

from sdkeras.errors import ModelError
from sdkeras.files.keras_types import Compiled, Graph, GraphDef, Tensor
from sdkeras.files.user_code import last_line
from sdkeras.linalg.vectors import finite
from sdkeras.operators.device import HOST, Devices
from sdkeras.operators.layout import joined
from sdkeras.operators.linearized import Cut, Flat, NoCutError, cut_if_faster, is_worth_trying
from sdkeras.operators.modes import PRODUCT_MODES
from sdkeras.operators.tf_patches import exact_moments, indexed_pooling, unrolled_loops
from sdkeras.results.arrays import Array, DType
from sdkeras.results.verification import Verification

if TYPE_CHECKING:
    from sdkeras.operators.batch_loss import Batch, BatchLoss

# Central differences balance truncation (h^2) and rounding (eps/h): h = 1e-4 agrees to 6e-10 in float64;
# float32 products by differences are good to about 1e-3 at best.
_STEP = {"float32": 1e-2, "float64": 1e-4}
_SIZES = 3  # of batches for which a function is compiled by itself


def by_xla(jit: str) -> bool:
    """Whether functions are compiled by XLA where `jit` is 'on', 'off' or 'auto'; on a TPU nothing else runs.

    On the CPU 'auto' leaves it off. Measured: a product takes 0.6 of the time with 3,000 weights, 1.0 with 13,000 and
    270,000 and in a transformer, 1.4 in a convolutional net; compiling takes 3 to 5 times as long, up to 40 s.
    """
    return jit == "on" or bool(tf.config.list_logical_devices("TPU"))


def not_compiled(error: BaseException) -> str:
    """Why XLA does not compile a function, or '': the operations that it does not know."""
    text = str(error)
    names = re.findall(r"No registered '(\w+)' OpKernel for XLA", text)
    constant = re.findall(r"with op (\w+) must be a compile-time constant", text)
    names += [f"{name} of sizes that depend on data" for name in constant]
    names += ["lookup tables"] * ("variable.var()" in text)
    return f"XLA does not know {', '.join(dict.fromkeys(names))}" if names else ""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """While it lasts, TensorFlow does not print the whole graph when it cannot vectorize an operation."""
    log = logging.getLogger("tensorflow")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


def over_rows(function: Callable[[Tensor], Tensor], rows: Tensor, vectorized: bool, results: object = None) -> Tensor:
    """A function of vectors for each row of a matrix, or of several: vectorized, or one after the other.

    `results` are the dtypes that it returns, if not as many as it takes.
    """
    if vectorized:
        return tf.vectorized_map(function, rows, fallback_to_while_loop=False)
    return tf.map_fn(function, rows, fn_output_signature=results)


def vectorized_if_possible(make: Callable[[bool], Compiled], *arguments: Tensor) -> Compiled:
    """A compiled function of the rows of a matrix: vectorized where TensorFlow can, one after the other where not."""
    with quiet():
        try:
            vectorized = make(True)
            vectorized(*arguments)
        except Exception:  # no vectorized form of some operation; TensorFlow raises several types for it
            return make(False)
    return vectorized


def inexact_moments(graph: GraphDef) -> list[str]:
    """Names of the variances in a graph and its functions that `tf.nn.moments` of TensorFlow made.

    Their mark is a squared difference of x and a stopped mean of the same x. Finite differences in float32 may be
    too noisy to tell that their second derivatives are wrong, so they are looked for by name.
    """
    names = []
    for nodes in (graph.node, *(function.node_def for function in graph.library.function)):
        ops = {node.name: node.op for node in nodes}
        sources = {node.name: [name.partition(":")[0] for name in node.input] for node in nodes}
        for name in [name for name, op in ops.items() if op == "SquaredDifference"]:
            x, stop = sources[name][:2]
            mean = sources[stop][0] if ops.get(stop) == "StopGradient" else ""
            if ops.get(mean) == "Mean" and sources[mean][0] == x:
                names.append(str(name))
    return names


@attrs.frozen(eq=False)
class BySize:
    """A function of batches: compiled once for batches of any size, or where it is `fixed` for each of the first sizes.

    With sizes known TensorFlow leaves out operations on shapes: two thirds of an unrolled recurrent layer's product.
    """

    compile: Callable[[int | None], Flat]
    fixed: bool
    _compiled: dict[int | None, Flat] = attrs.field(factory=dict)
    _lock: threading.RLock = attrs.field(factory=threading.RLock)

    def __call__(self, num_examples: int | None) -> Flat:
        """The function for batches of this size, or of any."""
        with self._lock:
            known = num_examples in self._compiled or len(self._compiled) < _SIZES
            size = num_examples if self.fixed and known else None
            if size not in self._compiled:
                self._compiled[size] = self.compile(size)
            return self._compiled[size]

    @property
    def graph(self) -> Graph:
        """The graph for the first size."""
        return next(iter(self._compiled.values())).graph


@attrs.define(eq=False)
class _Shared:
    """State that all views of an engine share; filled while its functions are compiled and called."""

    unconnected: tuple[str, ...] = ()
    looked_up: tuple[str, ...] = ()
    num_products: int = 0
    block_product: Compiled | None = None
    # By the shapes of a batch's tensors.
    row_products: dict[tuple[tuple[int, ...], ...], Compiled | None] = attrs.field(factory=dict)
    verification: Verification | None = None
    cut: Cut | None = None
    not_cut: str | None = None  # why; None before it was tried
    # Seed states and weights of a batch as tensors.
    leading: weakref.WeakKeyDictionary[Batch, tuple[Tensor, ...]] = attrs.field(factory=weakref.WeakKeyDictionary)
    # Copies of a batch, by device.
    placed: weakref.WeakKeyDictionary[Batch, dict[str, Batch]] = attrs.field(factory=weakref.WeakKeyDictionary)
    lock: threading.RLock = attrs.field(factory=threading.RLock)


@attrs.frozen(eq=False)
class Engine:
    """The compiled functions of one `BatchLoss`; batch, seeds, weights and held values are arguments."""

    # What its products are and are verified against.
    words: ClassVar[str] = "Hessian-vector products differ from finite differences of the gradient"

    function: BatchLoss  # its point and held values are those at which the engine works
    # Shapes and dtypes of the arguments beside the point: seed states, weights, the batch's tensors, held values.
    specs: tuple[tf.TensorSpec, ...]
    point: Tensor  # the flat parameter vector, of shape [n]
    mode: str = ""  # of the products as they are differentiated; '' while there are none
    product_mode: str = ""  # that was asked for
    refused: Mapping[str, str] = attrs.field(factory=dict)  # why product modes before this one could not be built
    _shared: _Shared = attrs.field(factory=_Shared)
    fixed: bool = False  # whether functions are compiled for each size of batches
    jit: bool = False  # whether XLA compiles all of them
    devices: Devices = HOST  # where it computes; several share batches, each by an engine of its own (`here`)
    seconds: float = 0.0  # that tracing the gradient took
    _evaluate: Compiled = None
    _gradient: Compiled = None  # by the size of batches, and so the product
    compiled_product: Compiled = None
    _inexact: tuple[str, ...] = ()
    _elsewhere: dict[int, Engine] = attrs.field(factory=dict)  # copies with the point on the other devices

    @classmethod
    def of(cls, engine: Engine) -> Self:
        """The compiled gradient of an engine in one of this class, whose products are other ones."""
        return cls(**{field.alias or field.name: getattr(engine, field.name) for field in attrs.fields(Engine)})

    @classmethod
    def compiled(
        cls,
        function: BatchLoss,
        batch_specs: Sequence[tf.TensorSpec],
        num_examples: int,
        *,
        jit: bool = False,
        devices: Devices = HOST,
    ) -> Self:
        """The engine of a loss, without products, for batches of these shapes and dtypes, most of them this large."""
        specs = (
            tf.TensorSpec([function.num_seeds, 2], tf.int64),
            tf.TensorSpec([None], function.dtype),  # of the data, of model.losses, and relative ones of each loss
            *batch_specs,
            *(tf.TensorSpec(value.shape, value.dtype) for value in function.held),
        )
        engine = cls(function, specs, tf.constant(function.point), jit=jit, devices=devices)
        unrolled: list[int] = []
        evaluate = Flat(engine.traced(engine._evaluate_graph, unrolled=unrolled))
        inexact = tuple(inexact_moments(evaluate.graph.as_graph_def()))
        fixed = bool(unrolled)
        gradient = engine._by_size(engine._gradient_graph, fixed)
        start = time.perf_counter()
        gradient(num_examples)
        engine = attrs.evolve(engine, evaluate=evaluate, gradient=gradient, inexact=inexact, fixed=fixed)
        return attrs.evolve(engine, seconds=time.perf_counter() - start)

    @property
    def size(self) -> int:
        return self.function.layout.size

    @property
    def dtype(self) -> DType:
        return np.dtype(self.function.dtype)

    @property
    def unconnected(self) -> tuple[str, ...]:
        """Parameters the loss does not depend on; their gradient is zero."""
        return self._shared.unconnected

    @property
    def looked_up(self) -> tuple[str, ...]:
        """Parameters whose gradient TensorFlow makes row by row of what was looked up (`tf.IndexedSlices`)."""
        return self._shared.looked_up

    @property
    def num_products(self) -> int:
        """Hessian-vector products so far, of all views."""
        return self._shared.num_products

    @property
    def has_block_product(self) -> bool:
        """Whether the products with several vectors over one shared pass have been compiled."""
        return self._shared.block_product is not None

    def count(self, products: int) -> None:
        """Counts products that were made outside `product` and `products`."""
        with self._shared.lock:
            self._shared.num_products += products

    def verified_by(self, verify: Callable[[], Verification]) -> Verification:
        """The outcome of the checks of this engine, which run once for all views."""
        if self._shared.verification is None:
            self._shared.verification = verify()
        return self._shared.verification

    def row_product(
        self, shapes: tuple[tuple[int, ...], ...], compiled: Callable[[], Compiled | None]
    ) -> Compiled | None:
        """Compiled products with a batch per row, made once for all views and the first shapes that are asked for."""
        with self._shared.lock:
            if not self._shared.row_products:
                self._shared.row_products[shapes] = compiled()
            return self._shared.row_products.get(shapes)

    @property
    def num_operations(self) -> int:
        """Operations of the gradient's graph, without those of its loops."""
        return len(self._gradient.graph.get_operations())

    def has_operation(self, prefixes: tuple[str, ...]) -> bool:
        """Whether the gradient has an operation whose name begins like this."""
        graph = self._gradient.graph.as_graph_def()
        nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
        return any(node.op.startswith(prefixes) for node in nodes)

    def gradient_bytes(self, num_examples: int) -> int:
        """Bytes of all tensors of the gradient on a batch, as far as their shapes are known."""
        outputs = [each for operation in self._gradient.graph.get_operations() for each in operation.outputs]
        known = [(each.shape.as_list(), each.dtype.size or 1) for each in outputs if each.shape.rank is not None]
        return sum(size * int(np.prod([side or num_examples for side in shape])) for shape, size in known)

    def at(self, function: BatchLoss) -> Engine:
        """The engine at the point and the held values of another view of its function; all else is shared."""
        if function is self.function:
            return self
        return attrs.evolve(self, function=function, point=tf.constant(function.point), elsewhere={})

    def here(self) -> Engine:
        """The engine on the device of the present scope, to which point and held values are copied once."""
        if len(self.devices.names) < 2:
            return self
        number = self.devices.current()
        with self._shared.lock:
            if number not in self._elsewhere:
                held = tuple(tf.identity(value) for value in self.function.held)
                function, point = attrs.evolve(self.function, held=held), tf.identity(self.point)
                self._elsewhere[number] = attrs.evolve(
                    self, function=function, point=point, devices=self.devices.only(number), elsewhere={}
                )
            return self._elsewhere[number]

    def placed(self, batch: Batch) -> Batch:
        """A batch on this engine's device, to which it is copied once."""
        copies, name = self._shared.placed.setdefault(batch, {}), self.devices.names[0]
        if name not in copies:
            copies[name] = batch.mapped(tf.identity)
        return copies[name]

    # Compilation

    def with_products(self, product_mode: str, batch: Batch) -> Self:
        """A copy that also makes products, tried on a batch; it shares the compiled gradient.

        Raises:
            ModelError: Unknown mode, or TensorFlow cannot make products of this model.
            ResourceExhaustedError: TensorFlow's: a product does not fit the memory.
        """
        if product_mode not in PRODUCT_MODES:
            raise ModelError(f"product mode {product_mode!r} is unknown; use {', '.join(PRODUCT_MODES)}.")
        graphs = {
            "reverse-over-reverse": self.product_graph,
            "forward-over-reverse": self._forward_over_reverse,
            "finite-differences": self._finite_differences,
        }
        shared = _Shared(self.unconnected, self.looked_up)
        refused: dict[str, str] = {}
        modes = {"auto": tuple(graphs), "linearized": ("reverse-over-reverse",)}.get(product_mode, (product_mode,))
        for mode in modes:
            if mode != "finite-differences" and self._inexact:
                refused[mode] = (
                    f"{self._inexact[0]} is tf.nn.moments in a function traced before sdkeras could put its own in "
                    "place (a SavedModel, a tf.function that has run); TensorFlow's second derivatives are wrong for it"
                )
                continue
            try:
                product = self._by_size(graphs[mode], self.fixed, self.vector)
                engine = attrs.evolve(
                    self,
                    mode=mode,
                    product_mode=product_mode,
                    refused=refused,
                    shared=shared,
                    compiled_product=product,
                    elsewhere={},
                )
                # Some operations fail only when they run (the gradient of a while loop's body).
                engine.product(self.point, tf.zeros_like(self.point), batch)
            except tf.errors.ResourceExhaustedError:
                raise
            except (LookupError, TypeError, ValueError, NotImplementedError, tf.errors.OpError) as error:
                words = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
                refused[mode] = not_compiled(error) or words
            else:
                return engine
        reasons = "; ".join(f"{mode}: {reason}" for mode, reason in refused.items())
        advice = "; leave XLA off (`jit='off'`)" if any(why.startswith("XLA") for why in refused.values()) else ""
        raise ModelError(f"TensorFlow cannot make Hessian-vector products of this model ({reasons}){advice}.")

    @property
    def cut(self) -> Cut | None:
        """How products are linearised once per batch; None where they are not."""
        return self._shared.cut

    def linearize(self, batch: Batch, rounding: float, memory: float) -> str:
        """Cuts the products, once, where that was asked for or is faster; why it was tried in vain, or ''.

        Args:
            batch: The batch to check and time with.
            rounding: Relative error of a product from rounding.
            memory: See `cut_if_faster`.
        """
        shared, always = self._shared, self.product_mode == "linearized"
        if shared.not_cut is None:
            shared.not_cut = ""
            by_choice = (self.product_mode, self.mode) == ("auto", "reverse-over-reverse")
            if always or (by_choice and not self.fixed and is_worth_trying(self.size, batch)):
                try:
                    shared.cut = cut_if_faster(self, batch, rounding, memory, always=always)
                except NoCutError as error:
                    shared.not_cut = str(error)
                except tf.errors.InvalidArgumentError as error:  # as XLA's, of a part
                    shared.not_cut = not_compiled(error) or last_line(error)
        return shared.not_cut

    @property
    def vector(self) -> tf.TensorSpec:
        """Shape and dtype of a flat vector of parameters."""
        return tf.TensorSpec([self.size], self.function.dtype)

    def traced(
        self,
        graph: Compiled,
        *between: tf.TensorSpec,
        specs: Sequence[tf.TensorSpec] | None = None,
        unrolled: list[int] | None = None,
    ) -> Compiled:
        """The graph compiled for a point, arguments of these shapes, and the engine's other arguments or `specs`.

        The steps of recurrent layers without a loop are appended to `unrolled`.

        Raises:
            ModelError: XLA is to compile a function that reads text.
        """

        def trace() -> Compiled:
            function = tf.function(graph, jit_compile=self.jit, autograph=False)
            with exact_moments(), unrolled_loops([] if unrolled is None else unrolled):
                traced = function.get_concrete_function(
                    self.vector, *between, *(self.specs if specs is None else specs)
                )
            if self.jit and any(
                tensor.dtype == tf.string for tensor in traced.inputs
            ):  # which XLA ends the process for
                raise ModelError("XLA knows no text, which the model reads; leave XLA off (`jit='off'`).")
            return traced

        if tf.distribute.get_strategy().num_replicas_in_sync == 1:
            return trace()
        # Inside a strategy's scope Keras divides losses by the number of replicas; a scope ends at its thread.
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(trace).result()

    def _by_size(self, graph: Compiled, fixed: bool, *between: tf.TensorSpec) -> BySize:
        """The graph compiled for batches of any size, or for each size."""
        first, last = 2, len(self.specs) - len(self.function.held)

        def compiled(num_examples: int | None) -> Flat:
            batch = [tf.TensorSpec([num_examples, *spec.shape[1:]], spec.dtype) for spec in self.specs[first:last]]
            return Flat(self.traced(graph, *between, specs=[*self.specs[:first], *batch, *self.specs[last:]]))

        return BySize(compiled, fixed)

    # Graphs: what is traced

    def raw_gradients_of(self, parts: list[Tensor], batch: Sequence[Tensor]) -> list[Tensor]:
        """The weighted gradient as TensorFlow makes it: tensors, `tf.IndexedSlices` or None; in a graph."""
        seeds, weights, *flat = batch
        with tf.GradientTape() as tape:
            tape.watch(parts)
            total, extra, _ = self.function(parts, seeds, flat, weights[2:])
            loss = weights[0] * total + (weights[1] - weights[0]) * extra
        gradients: list[Tensor] = tape.gradient(loss, parts)
        return gradients

    def _gradients(self, parts: list[Tensor], batch: Sequence[Tensor]) -> list[Tensor]:
        gradients = self.raw_gradients_of(parts, batch)
        named = list(zip(self.function.layout.names, gradients, strict=True))
        self._shared.unconnected = tuple(name for name, gradient in named if gradient is None)
        self._shared.looked_up = tuple(name for name, gradient in named if isinstance(gradient, tf.IndexedSlices))
        return [
            tf.zeros_like(weight) if gradient is None else tf.convert_to_tensor(gradient)
            for weight, gradient in zip(parts, gradients, strict=True)
        ]

    def _evaluate_graph(self, point: Tensor, seeds: Tensor, weights: Tensor, *flat: Tensor) -> tuple[Tensor, ...]:
        return self.function(self.function.layout.split(point), seeds, list(flat), weights[2:])

    def _gradient_graph(self, point: Tensor, *batch: Tensor) -> Tensor:
        return joined(self._gradients(self.function.layout.split(point), batch))

    def product_graph(self, point: Tensor, vector: Tensor, *batch: Tensor) -> Tensor:
        """The weighted product by reverse-over-reverse, in a graph."""
        return self._first_pass(point, batch)[1](vector)

    def _first_pass(
        self, point: Tensor, batch: Sequence[Tensor]
    ) -> tuple[Callable[[], Tensor], Callable[[Tensor], Tensor]]:
        """The weighted gradient, and the product as a function of the vector by reverse-over-reverse, in a graph."""
        parts = self.function.layout.split(point)
        with indexed_pooling(self.jit), tf.GradientTape(persistent=True) as tape:
            tape.watch(parts)
            gradients = self._gradients(parts, batch)

        def product(vector: Tensor) -> Tensor:
            zero = tf.UnconnectedGradients.ZERO
            duals = self.function.layout.split(vector)
            return joined(tape.gradient(gradients, parts, output_gradients=duals, unconnected_gradients=zero))

        return lambda: joined(gradients), product

    def _forward_over_reverse(self, point: Tensor, vector: Tensor, *batch: Tensor) -> Tensor:
        parts = self.function.layout.split(point)
        with tf.autodiff.ForwardAccumulator(parts, self.function.layout.split(vector)) as accumulator:
            gradients = self._gradients(parts, batch)
        return joined(accumulator.jvp(gradients, unconnected_gradients=tf.UnconnectedGradients.ZERO))

    def _slope_graph(self, point: Tensor, base: Tensor, *batch: Tensor) -> Tensor:
        """What the product is the derivative of, in the point at the base, in a graph: here the gradient."""
        return self._gradient_graph(point, *batch)

    def _finite_differences(self, point: Tensor, vector: Tensor, *batch: Tensor) -> Tensor:
        step = tf.math.divide_no_nan(tf.constant(_STEP[self.function.dtype], vector.dtype), tf.norm(vector))
        ahead = self._slope_graph(point + step * vector, point, *batch)
        behind = self._slope_graph(point - step * vector, point, *batch)
        return tf.math.divide_no_nan(ahead - behind, 2 * step)

    def _block_product(self, vectorized: bool) -> Compiled:
        """The gradient, and products with the rows of a matrix, over one shared first pass."""

        def graph(point: Tensor, rows: Tensor, *batch: Tensor) -> tuple[Tensor, Tensor]:
            gradient, product = self._first_pass(point, batch)
            return gradient(), over_rows(product, rows, vectorized)

        return Flat(self.traced(graph, tf.TensorSpec([None, self.size], self.function.dtype)))

    # Calls

    def arguments(self, batch: Batch) -> tuple[Tensor, ...]:
        """Arguments of the compiled functions beside the point: seed states, weights, the batch, held values."""
        leading = self._shared.leading.get(batch)
        if leading is None:
            relative = batch.loss_weights or (1.0,) * len(self.function.reductions)
            weights = np.array([batch.data_weight, batch.extra_weight, *relative], self.dtype)
            with tf.init_scope():  # no tensors of a graph that is being traced
                leading = self._shared.leading[batch] = tf.constant(batch.seeds), tf.constant(weights)
        return (*leading, *batch.tensors, *self.function.held)

    def evaluate(self, point: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, with the batch's relative weights only, its part from model.losses, and the losses' denominators."""
        if not batch.parts:
            values: tuple[Tensor, Tensor, Tensor] = self._evaluate(point, *self.arguments(batch))
            return values
        pieces = batch.unweighted_pieces
        each = [self.evaluate(point, piece) for piece in pieces]
        losses = [piece.weigh(loss, extra) for piece, (loss, extra, _) in zip(pieces, each, strict=True)]
        return tf.add_n(losses), each[0][1], tf.add_n([counts for *_, counts in each])

    def gradient(self, point: Tensor, batch: Batch) -> Tensor:
        """Weighted gradient on a batch, shape [n]."""
        return summed(lambda piece: self._gradient(piece.num_examples)(point, *self.arguments(piece)), batch)

    def slope(self, point: Tensor, batch: Batch) -> Tensor:
        """What the products are the derivative of, by first derivatives alone, shape [n]; here the gradient."""
        return self.gradient(point, batch)

    def total_gradient(self, point: Tensor, batches: Sequence[Batch]) -> Array:
        """Sum of the weighted gradients over batches, shape [n], float64 and finite, one in memory at a time."""
        total = np.zeros(self.size)
        for batch in batches:
            total += self.gradient(point, batch).numpy()
        return finite(total, "the gradient")

    def product(self, point: Tensor, vector: Tensor, batch: Batch) -> Tensor:
        """Weighted Hessian-vector product on a batch, [n] -> [n]."""
        self.count(1)
        return summed(
            lambda piece: self.compiled_product(piece.num_examples)(point, vector, *self.arguments(piece)), batch
        )

    def products(self, point: Tensor, rows: Tensor, batch: Batch) -> Tensor:
        """Weighted products with each row, [k, n] -> [k, n]."""
        if self.mode != "reverse-over-reverse":
            return tf.stack([self.product(point, row, batch) for row in tf.unstack(rows)])
        return self.gradient_and_products(point, rows, batch)[1]

    def gradient_and_products(self, point: Tensor, rows: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Weighted gradient, [n], and weighted products with each row, [k, n] -> [k, n], over one shared pass."""
        if self.mode != "reverse-over-reverse":
            return self.gradient(point, batch), self.products(point, rows, batch)
        shared = self._shared
        with shared.lock:
            if shared.block_product is None:
                arguments = self.arguments(batch.pieces[0])
                shared.block_product = vectorized_if_possible(self._block_product, point, rows, *arguments)
            shared.num_products += int(rows.shape[0])
        product = shared.block_product
        both: tuple[Tensor, Tensor] = summed(lambda piece: product(point, rows, *self.arguments(piece)), batch)
        return both


def summed(function: Callable[[Batch], Tensor], batch: Batch) -> Tensor:
    """A tensor, or each of several, summed over what the batch consists of; one piece in memory at a time."""
    first, *others = batch.pieces
    total = function(first)
    for piece in others:
        total = tf.nest.map_structure(operator.add, total, function(piece))
    return total
