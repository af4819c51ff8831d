"""Compiled gradient and Hessian-vector products of one batch loss; built once per analysis.

Three product modes:
- reverse-over-reverse: H v = grad (g . v), g the gradient; also right through `tf.while_loop` (recurrent layers).
- forward-over-reverse: the directional derivative of g along v.
- finite-differences: (g(w + h v) - g(w - h v)) / 2h.

'auto' takes the first that TensorFlow can build. Reverse-over-reverse comes first because it was never slower
on the CPU (1.4-2.7 gradients against 1.5-2.8) and shares its first pass between many probes.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import attrs
import numpy as np
import tensorflow as tf

from sdkeras.errors import ModelError
from sdkeras.files.keras_types import Compiled, GraphDef, Tensor
from sdkeras.linalg.vectors import finite
from sdkeras.operators.layout import joined
from sdkeras.operators.modes import PRODUCT_MODES
from sdkeras.operators.tf_patches import exact_moments
from sdkeras.results.arrays import Array, DType
from sdkeras.results.verification import Verification

if TYPE_CHECKING:
    from sdkeras.operators.batch_loss import Batch, BatchLoss

# Central differences balance truncation (h^2) and rounding (eps/h): h = 1e-4 agrees to 6e-10 in float64;
# float32 products by differences are good to about 1e-3 at best.
_STEP = {"float32": 1e-2, "float64": 1e-4}


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


@attrs.define(eq=False)
class _Shared:
    """State that all views of an engine share; filled while its functions are compiled and called."""

    unconnected: tuple[str, ...] = ()
    looked_up: tuple[str, ...] = ()
    num_products: int = 0
    block_product: Compiled | None = None
    verification: Verification | None = None
    lock: threading.Lock = attrs.field(factory=threading.Lock)


@attrs.frozen(eq=False)
class Engine:
    """The compiled functions of one `BatchLoss`; batch, seeds, weights and held values are arguments."""

    function: BatchLoss  # its point and held values are those at which the engine works
    # Shapes and dtypes of the arguments beside the point: seed states, weights, the batch's tensors, held values.
    specs: tuple[tf.TensorSpec, ...]
    point: Tensor  # the flat parameter vector, of shape [n]
    mode: str = ""  # of the products; '' while there are none
    refused: Mapping[str, str] = attrs.field(factory=dict)  # why product modes before this one could not be built
    _shared: _Shared = attrs.field(factory=_Shared)
    _evaluate: Compiled = None
    _gradient: Compiled = None
    _product: Compiled = None
    _inexact: tuple[str, ...] = ()

    @classmethod
    def compiled(cls, function: BatchLoss, batch_specs: Sequence[tf.TensorSpec]) -> Engine:
        """The engine of a loss, without products, for batches of these shapes and dtypes."""
        specs = (
            tf.TensorSpec([function.num_seeds, 2], tf.int64),
            tf.TensorSpec([None], function.dtype),  # of the data, of model.losses, and relative ones of each loss
            *batch_specs,
            *(tf.TensorSpec(value.shape, value.dtype) for value in function.held),
        )
        engine = cls(function, specs, tf.constant(function.point))
        evaluate = engine.traced(engine._evaluate_graph)
        gradient = engine.traced(engine._gradient_graph)
        inexact = tuple(inexact_moments(evaluate.graph.as_graph_def()))
        return attrs.evolve(engine, evaluate=evaluate, gradient=gradient, inexact=inexact)

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

    def count(self, products: int) -> None:
        """Counts products that were made outside `product` and `products`."""
        with self._shared.lock:
            self._shared.num_products += products

    def verified_by(self, verify: Callable[[], Verification]) -> Verification:
        """The outcome of the checks of this engine, which run once for all views."""
        if self._shared.verification is None:
            self._shared.verification = verify()
        return self._shared.verification

    def at(self, function: BatchLoss) -> Engine:
        """The engine at the point and the held values of another view of its function; all else is shared."""
        if function is self.function:
            return self
        return attrs.evolve(self, function=function, point=tf.constant(function.point))

    # Compilation

    def with_products(self, product_mode: str, batch: Batch) -> Engine:
        """A copy that also makes products, tried on a batch; it shares the compiled gradient.

        Raises:
            ModelError: Unknown mode, or TensorFlow cannot make products of this model.
            ResourceExhaustedError: TensorFlow's: a product does not fit the memory.
        """
        if product_mode not in PRODUCT_MODES:
            raise ModelError(f"product mode {product_mode!r} is unknown; use {', '.join(PRODUCT_MODES)}.")
        graphs = {
            "reverse-over-reverse": self._reverse_over_reverse,
            "forward-over-reverse": self._forward_over_reverse,
            "finite-differences": self._finite_differences,
        }
        shared = _Shared(self.unconnected, self.looked_up)
        refused: dict[str, str] = {}
        for mode in PRODUCT_MODES[1:] if product_mode == "auto" else (product_mode,):
            if mode != "finite-differences" and self._inexact:
                refused[mode] = (
                    f"{self._inexact[0]} is tf.nn.moments in a function traced before sdkeras could put its own in "
                    "place (a SavedModel, a tf.function that has run); TensorFlow's second derivatives are wrong for it"
                )
                continue
            try:
                product = self.traced(graphs[mode], self.vector)
                engine = attrs.evolve(self, mode=mode, refused=refused, shared=shared, product=product)
                # Some operations fail only when they run (the gradient of a while loop's body).
                engine.product(self.point, tf.zeros_like(self.point), batch)
            except tf.errors.ResourceExhaustedError:
                raise
            except (LookupError, TypeError, ValueError, NotImplementedError, tf.errors.OpError) as error:
                refused[mode] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
            else:
                return engine
        reasons = "; ".join(f"{mode}: {reason}" for mode, reason in refused.items())
        raise ModelError(f"TensorFlow cannot make Hessian-vector products of this model ({reasons}).")

    @property
    def vector(self) -> tf.TensorSpec:
        """Shape and dtype of a flat vector of parameters."""
        return tf.TensorSpec([self.size], self.function.dtype)

    def traced(self, graph: Compiled, *between: tf.TensorSpec) -> Compiled:
        """The graph compiled for a point, arguments of these shapes, and the engine's other arguments."""

        def trace() -> Compiled:
            function = tf.function(graph, jit_compile=False, autograph=False)
            with exact_moments():
                return function.get_concrete_function(self.vector, *between, *self.specs)

        if tf.distribute.get_strategy().num_replicas_in_sync == 1:
            return trace()
        # Inside a strategy's scope Keras divides losses by the number of replicas; a scope ends at its thread.
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(trace).result()

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

    def _reverse_over_reverse(self, point: Tensor, vector: Tensor, *batch: Tensor) -> Tensor:
        parts = self.function.layout.split(point)
        with tf.GradientTape() as tape:
            tape.watch(parts)
            gradients = self._gradients(parts, batch)
        return self._pulled_back(tape, gradients, parts, vector)

    def _pulled_back(
        self, tape: tf.GradientTape, gradients: list[Tensor], parts: list[Tensor], vector: Tensor
    ) -> Tensor:
        zero = tf.UnconnectedGradients.ZERO
        duals = self.function.layout.split(vector)
        return joined(tape.gradient(gradients, parts, output_gradients=duals, unconnected_gradients=zero))

    def _forward_over_reverse(self, point: Tensor, vector: Tensor, *batch: Tensor) -> Tensor:
        parts = self.function.layout.split(point)
        with tf.autodiff.ForwardAccumulator(parts, self.function.layout.split(vector)) as accumulator:
            gradients = self._gradients(parts, batch)
        return joined(accumulator.jvp(gradients, unconnected_gradients=tf.UnconnectedGradients.ZERO))

    def _finite_differences(self, point: Tensor, vector: Tensor, *batch: Tensor) -> Tensor:
        step = tf.math.divide_no_nan(tf.constant(_STEP[self.function.dtype], vector.dtype), tf.norm(vector))
        ahead = self._gradient_graph(point + step * vector, *batch)
        behind = self._gradient_graph(point - step * vector, *batch)
        return tf.math.divide_no_nan(ahead - behind, 2 * step)

    def _block_product(self, vectorized: bool) -> Compiled:
        """The gradient, and products with the rows of a matrix, over one shared first pass."""

        def graph(point: Tensor, rows: Tensor, *batch: Tensor) -> tuple[Tensor, Tensor]:
            parts = self.function.layout.split(point)
            with tf.GradientTape(persistent=True) as tape:
                tape.watch(parts)
                gradients = self._gradients(parts, batch)

            def product(vector: Tensor) -> Tensor:
                return self._pulled_back(tape, gradients, parts, vector)

            return joined(gradients), over_rows(product, rows, vectorized)

        return self.traced(graph, tf.TensorSpec([None, self.size], self.function.dtype))

    # Calls

    def arguments(self, batch: Batch) -> tuple[Tensor, ...]:
        """Arguments of the compiled functions beside the point: seed states, weights, the batch, held values."""
        relative = batch.loss_weights or (1.0,) * len(self.function.reductions)
        weights = np.array([batch.data_weight, batch.extra_weight, *relative], self.dtype)
        return (tf.constant(batch.seeds), tf.constant(weights), *batch.tensors, *self.function.held)

    def evaluate(self, point: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, with the batch's relative weights only, its part from model.losses, and the losses' denominators."""
        values: tuple[Tensor, Tensor, Tensor] = self._evaluate(point, *self.arguments(batch))
        return values

    def gradient(self, point: Tensor, batch: Batch) -> Tensor:
        """Weighted gradient on a batch, shape [n]."""
        return self._gradient(point, *self.arguments(batch))

    def total_gradient(self, point: Tensor, batches: Sequence[Batch]) -> Array:
        """Sum of the weighted gradients over batches, shape [n], float64 and finite, one in memory at a time."""
        total = np.zeros(self.size)
        for batch in batches:
            total += self.gradient(point, batch).numpy()
        return finite(total, "the gradient")

    def product(self, point: Tensor, vector: Tensor, batch: Batch) -> Tensor:
        """Weighted Hessian-vector product on a batch, [n] -> [n]."""
        self.count(1)
        return self._product(point, vector, *self.arguments(batch))

    def products(self, point: Tensor, rows: Tensor, batch: Batch) -> Tensor:
        """Weighted products with each row, [k, n] -> [k, n]."""
        if self.mode != "reverse-over-reverse":
            return tf.stack([self.product(point, row, batch) for row in tf.unstack(rows)])
        return self.gradient_and_products(point, rows, batch)[1]

    def gradient_and_products(self, point: Tensor, rows: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Weighted gradient, [n], and weighted products with each row, [k, n] -> [k, n], over one shared pass."""
        if self.mode != "reverse-over-reverse":
            return self.gradient(point, batch), self.products(point, rows, batch)
        arguments, shared = self.arguments(batch), self._shared
        with shared.lock:
            if shared.block_product is None:
                shared.block_product = vectorized_if_possible(self._block_product, point, rows, *arguments)
            shared.num_products += int(rows.shape[0])
        both: tuple[Tensor, Tensor] = shared.block_product(point, rows, *arguments)
        return both
