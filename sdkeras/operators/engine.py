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
import copy
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import tensorflow as tf

from sdkeras.errors import ModelError
from sdkeras.linalg.vectors import finite
from sdkeras.results.arrays import Array

PRODUCT_MODES = ("reverse-over-reverse", "forward-over-reverse", "finite-differences")
# Central differences balance truncation (h^2) and rounding (eps/h): h = 1e-4 agrees to 6e-10 in float64;
# float32 products by differences are good to about 1e-3 at best.
_STEP = {"float32": 1e-2, "float64": 1e-4}

_moments_lock = threading.Lock()
_moments_depth = 0
_moments_original: Any = None


def _exact_moments(
    x: Any, axes: Any, shift: Any = None, keepdims: bool = False, name: str | None = None
) -> tuple[Any, Any]:
    """Mean and variance whose second derivatives are right, unlike `tf.nn.moments`.

    TensorFlow stops the gradient of the mean inside the variance: exact to first order (the sum of
    x - mean is 0), wrong to second.
    """
    del shift
    with tf.name_scope(name or "moments"):
        mean = tf.reduce_mean(x, axes, keepdims=True)
        variance = tf.reduce_mean(tf.square(x - mean), axes, keepdims=keepdims)
        return (mean if keepdims else tf.squeeze(mean, axes)), variance


@contextlib.contextmanager
def exact_moments() -> Iterator[None]:
    """While it lasts, `tf.nn.moments` has exact second derivatives; nests, and is safe across threads.

    Keras reaches the function by attribute, so that graphs traced inside the scope are exact; one traced
    outside keeps the wrong graph.
    """
    global _moments_depth, _moments_original
    with _moments_lock:
        if _moments_depth == 0:
            _moments_original = tf.nn.moments
            tf.nn.moments = _exact_moments
        _moments_depth += 1
    try:
        yield
    finally:
        with _moments_lock:
            _moments_depth -= 1
            if _moments_depth == 0:
                tf.nn.moments = _moments_original


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


def inexact_moments(graph: Any) -> list[str]:
    """Names of the variances in a graph and its functions that `tf.nn.moments` of TensorFlow made.

    Their mark is a squared difference of x and a stopped mean of the same x. Finite differences in float32 may be
    too noisy to tell that their second derivatives are wrong, so they are looked for by name.
    """
    found = []
    for nodes in (graph.node, *(function.node_def for function in graph.library.function)):
        by_name = {node.name: node for node in nodes}

        def made_by(name: str, operation: str, nodes: dict[str, Any] = by_name) -> Any:
            node = nodes.get(name.partition(":")[0])
            return node if node is not None and node.op == operation else None

        for node in nodes:
            stop = made_by(node.input[1], "StopGradient") if node.op == "SquaredDifference" else None
            mean = made_by(stop.input[0], "Mean") if stop is not None else None
            if mean is not None and mean.input[0].partition(":")[0] == node.input[0].partition(":")[0]:
                found.append(str(node.name))
    return found


class _Shared:
    """What all views of an engine have in common.

    Attributes:
        num_products: Hessian-vector products so far.
        many: The compiled products with several vectors, once they were needed.
        verification: What the checks found, once they ran.
        lock: Guards the count and the compilation.
    """

    def __init__(self) -> None:
        self.num_products = 0
        self.many: Any = None
        self.verification: Any = None
        self.lock = threading.Lock()


class Engine:
    """The compiled functions of one `BatchLoss`; batch, seeds, weights and held values are arguments.

    Attributes:
        mode: The product mode in use, '' while it makes no products.
        point: The flat parameter vector of the model, a tensor of shape [n].
        unconnected: Parameters the loss does not depend on; their gradient is zero.
        looked_up: Parameters whose gradient TensorFlow makes row by row of what was looked up (`tf.IndexedSlices`).
        num_products: Hessian-vector products so far.
        refused: Why product modes before this one could not be built.
        verification: What the checks found, once they ran.
    """

    def __init__(self, function: Any, specs: list[Any]) -> None:
        self.function = function
        self.size: int = function.layout.size
        self.dtype = np.dtype(function.dtype)
        self.point = tf.constant(function.point)
        self.held: tuple[Any, ...] = function.held
        self.unconnected: tuple[str, ...] = ()
        self.looked_up: tuple[str, ...] = ()
        self.refused: dict[str, str] = {}
        self._shared = _Shared()
        self._vector = tf.TensorSpec([self.size], function.dtype)
        self._specs = [
            tf.TensorSpec([function.num_seeds, 2], tf.int64),
            tf.TensorSpec([None], function.dtype),  # of the data, of model.losses, and relative ones of each loss
            *specs,
            *(tf.TensorSpec(value.shape, value.dtype) for value in function.held),
        ]
        self._evaluate = self._traced(self._evaluate_graph, self._vector)
        self._gradient = self._traced(self._gradient_graph, self._vector)
        self._inexact = inexact_moments(self._evaluate.graph.as_graph_def())
        self._product: Any = None
        self.mode = ""

    @property
    def num_products(self) -> int:
        return self._shared.num_products

    @num_products.setter
    def num_products(self, count: int) -> None:
        self._shared.num_products = count

    @property
    def verification(self) -> Any:
        return self._shared.verification

    @verification.setter
    def verification(self, found: Any) -> None:
        self._shared.verification = found

    def at(self, function: Any) -> Engine:
        """The engine at the point and the held values of another view of its function; all else is shared."""
        if function is self.function:
            return self
        view = copy.copy(self)
        view.function, view.point, view.held = function, tf.constant(function.point), function.held
        return view

    # Compilation

    def with_products(self, product_mode: str, batch: Any) -> Engine:
        """A copy that also makes products, tried on a batch; it shares the compiled gradient.

        Raises:
            ModelError: Unknown mode, or TensorFlow cannot make products of this model.
        """
        engine = copy.copy(self)
        engine.refused = {}
        engine._shared = _Shared()
        engine._build_product(product_mode, batch)
        return engine

    def _traced(self, graph: Any, *leading: Any) -> Any:
        def trace() -> Any:
            function = tf.function(graph, jit_compile=False, autograph=False)
            with exact_moments():
                return function.get_concrete_function(*leading, *self._specs)

        if tf.distribute.get_strategy().num_replicas_in_sync == 1:
            return trace()
        # Inside a strategy's scope Keras divides losses by the number of replicas; a scope ends at its thread.
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(trace).result()

    def _build_product(self, product_mode: str, batch: Any) -> None:
        if product_mode != "auto" and product_mode not in PRODUCT_MODES:
            raise ModelError(f"product mode {product_mode!r} is unknown; use auto, {', '.join(PRODUCT_MODES)}.")
        for mode in PRODUCT_MODES if product_mode == "auto" else (product_mode,):
            graph = {
                "reverse-over-reverse": self._reverse_over_reverse,
                "forward-over-reverse": self._forward_over_reverse,
                "finite-differences": self._finite_differences,
            }[mode]
            if mode != "finite-differences" and self._inexact:
                self.refused[mode] = (
                    f"{self._inexact[0]} is tf.nn.moments in a function traced before sdkeras could put its own in "
                    "place (a SavedModel, a tf.function that has run); TensorFlow's second derivatives are wrong for it"
                )
                continue
            try:
                self._product = self._traced(graph, self._vector, self._vector)
                # Some operations fail only when they run (the gradient of a while loop's body).
                self.product(self.point, tf.zeros_like(self.point), batch)
            except tf.errors.ResourceExhaustedError:
                raise
            except (LookupError, TypeError, ValueError, NotImplementedError, tf.errors.OpError) as error:
                self.refused[mode] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
                continue
            self.mode = mode
            return
        reasons = "; ".join(f"{mode}: {reason}" for mode, reason in self.refused.items())
        raise ModelError(f"TensorFlow cannot make Hessian-vector products of this model ({reasons}).")

    # Graphs: what is traced

    def _split(self, vector: Any) -> list[Any]:
        layout = self.function.layout
        pieces = tf.split(vector, list(layout.sizes))
        return [tf.reshape(piece, shape) for piece, shape in zip(pieces, layout.shapes, strict=True)]

    def _join(self, parts: list[Any]) -> Any:
        return tf.concat([tf.reshape(part, [-1]) for part in parts], axis=0)

    def _loss(self, parts: list[Any], seeds: Any, weights: Any, flat: Any) -> Any:
        total, extra, _ = self.function(parts, seeds, list(flat), weights[2:])
        return weights[0] * total + (weights[1] - weights[0]) * extra

    def _raw_gradients(self, parts: list[Any], seeds: Any, weights: Any, flat: Any) -> list[Any]:
        with tf.GradientTape() as tape:
            tape.watch(parts)
            loss = self._loss(parts, seeds, weights, flat)
        found: list[Any] = tape.gradient(loss, parts)
        return found

    def _gradients(self, parts: list[Any], seeds: Any, weights: Any, flat: Any) -> list[Any]:
        gradients = self._raw_gradients(parts, seeds, weights, flat)
        named = list(zip(self.function.layout.names, gradients, strict=True))
        self.unconnected = tuple(name for name, gradient in named if gradient is None)
        self.looked_up = tuple(name for name, gradient in named if isinstance(gradient, tf.IndexedSlices))
        return [
            tf.zeros_like(part) if gradient is None else tf.convert_to_tensor(gradient)
            for part, gradient in zip(parts, gradients, strict=True)
        ]

    def _evaluate_graph(self, point: Any, seeds: Any, weights: Any, *flat: Any) -> Any:
        return self.function(self._split(point), seeds, list(flat), weights[2:])

    def _gradient_graph(self, point: Any, seeds: Any, weights: Any, *flat: Any) -> Any:
        return self._join(self._gradients(self._split(point), seeds, weights, flat))

    def _reverse_over_reverse(self, point: Any, vector: Any, seeds: Any, weights: Any, *flat: Any) -> Any:
        parts = self._split(point)
        with tf.GradientTape() as tape:
            tape.watch(parts)
            gradients = self._gradients(parts, seeds, weights, flat)
        return self._pull_back(tape, gradients, parts, vector)

    def _pull_back(self, tape: Any, gradients: list[Any], parts: list[Any], vector: Any) -> Any:
        return self._join(
            tape.gradient(
                gradients,
                parts,
                output_gradients=self._split(vector),
                unconnected_gradients=tf.UnconnectedGradients.ZERO,
            )
        )

    def _forward_over_reverse(self, point: Any, vector: Any, seeds: Any, weights: Any, *flat: Any) -> Any:
        parts = self._split(point)
        with tf.autodiff.ForwardAccumulator(parts, self._split(vector)) as accumulator:
            gradients = self._gradients(parts, seeds, weights, flat)
        return self._join(accumulator.jvp(gradients, unconnected_gradients=tf.UnconnectedGradients.ZERO))

    def _finite_differences(self, point: Any, vector: Any, seeds: Any, weights: Any, *flat: Any) -> Any:
        norm = tf.norm(vector)
        step = tf.math.divide_no_nan(tf.constant(_STEP[self.function.dtype], vector.dtype), norm)
        ahead = self._gradient_graph(point + step * vector, seeds, weights, *flat)
        behind = self._gradient_graph(point - step * vector, seeds, weights, *flat)
        return tf.math.divide_no_nan(ahead - behind, 2 * step)

    def _many_products(self, vectorized: bool) -> Any:
        """The gradient, and products with the rows of a matrix, over one shared first pass."""

        def graph(point: Any, rows: Any, seeds: Any, weights: Any, *flat: Any) -> Any:
            parts = self._split(point)
            with tf.GradientTape(persistent=True) as tape:
                tape.watch(parts)
                gradients = self._gradients(parts, seeds, weights, flat)

            def product(vector: Any) -> Any:
                return self._pull_back(tape, gradients, parts, vector)

            if vectorized:
                return self._join(gradients), tf.vectorized_map(product, rows, fallback_to_while_loop=False)
            return self._join(gradients), tf.map_fn(product, rows)

        return self._traced(graph, self._vector, tf.TensorSpec([None, self.size], self.function.dtype))

    # Calls

    def _arguments(self, batch: Any) -> tuple[Any, ...]:
        relative = batch.loss_weights or (1.0,) * len(self.function.reductions)
        weights = np.array([batch.data_weight, batch.extra_weight, *relative], self.dtype)
        return (tf.constant(batch.seeds), tf.constant(weights), *batch.tensors, *self.held)

    def evaluate(self, point: Any, batch: Any) -> Any:
        """Loss, with the batch's relative weights only, its part from model.losses, and the losses' denominators."""
        return self._evaluate(point, *self._arguments(batch))

    def gradient(self, point: Any, batch: Any) -> Any:
        """Weighted gradient on a batch, shape [n]."""
        return self._gradient(point, *self._arguments(batch))

    def raw_gradients(self, point: Any, batch: Any) -> list[Any]:
        """The weighted gradient on a batch as training gives it to the optimizer, one for each variable.

        Tensors, `tf.IndexedSlices` for what was looked up, None for what is unconnected. Traced anew on every call.
        """

        def graph(point: Any, seeds: Any, weights: Any, *flat: Any) -> Any:
            return self._raw_gradients(self._split(point), seeds, weights, flat)

        found: list[Any] = self._traced(graph, self._vector)(point, *self._arguments(batch))
        return found

    def total_gradient(self, point: Any, batches: Sequence[Any]) -> Array:
        """Sum of the weighted gradients over batches, shape [n], float64, one gradient in memory at a time.

        Raises:
            NonFiniteError: It holds NaN or infinity.
        """
        total = np.zeros(self.size)
        for batch in batches:
            total += self.gradient(point, batch).numpy()
        return finite(total, "the gradient")

    def product(self, point: Any, vector: Any, batch: Any) -> Any:
        """Weighted Hessian-vector product on a batch, [n] -> [n]."""
        with self._shared.lock:
            self._shared.num_products += 1
        return self._product(point, vector, *self._arguments(batch))

    def products(self, point: Any, rows: Any, batch: Any) -> Any:
        """Weighted products with each row, [k, n] -> [k, n]."""
        if self.mode != "reverse-over-reverse":
            return tf.stack([self.product(point, row, batch) for row in tf.unstack(rows)])
        return self.gradient_and_products(point, rows, batch)[1]

    def gradient_and_products(self, point: Any, rows: Any, batch: Any) -> Any:
        """Weighted gradient, [n], and weighted products with each row, [k, n] -> [k, n], over one shared pass."""
        if self.mode != "reverse-over-reverse":
            return self.gradient(point, batch), self.products(point, rows, batch)
        arguments = self._arguments(batch)
        shared = self._shared
        with shared.lock:
            if shared.many is None:
                shared.many = self.first_of(self._many_products, point, rows, *arguments)
            shared.num_products += int(rows.shape[0])
        return shared.many(point, rows, *arguments)

    def first_of(self, make: Callable[[bool], Any], *arguments: Any) -> Any:
        """What `make` compiles for the rows of a matrix, vectorized where TensorFlow can and mapped where it cannot."""
        with quiet():
            try:
                many = make(True)
                many(*arguments)
            except Exception:  # no vectorized form of some operation; TensorFlow raises several types for it
                many = make(False)
        return many
