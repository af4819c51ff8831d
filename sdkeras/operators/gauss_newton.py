"""The Gauss-Newton matrix of an empirical loss: what the curvature of the loss in the outputs makes of the weights'."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar, Self

import attrs
import numpy as np
import tensorflow as tf

from sdkeras.errors import ModelError
from sdkeras.files.keras_types import Compiled, Data, Tensor
from sdkeras.linalg.low_rank import is_worth_reducing, range_reduction
from sdkeras.linalg.operators import Reduction
from sdkeras.linalg.vectors import norm
from sdkeras.operators import denominators
from sdkeras.operators.engine import BySize, Engine, summed
from sdkeras.operators.hessian import CurvatureOperator
from sdkeras.operators.layout import joined
from sdkeras.operators.tf_patches import indexed_pooling

if TYPE_CHECKING:
    from sdkeras.operators.batch_loss import Batch

# Where Keras keeps the logits and the mask of a tensor.
LOGITS, _MASK = "_keras_logits", "_keras_mask"
ZERO = tf.UnconnectedGradients.ZERO


@attrs.frozen(eq=False)
class GaussNewtonEngine(Engine):
    """The compiled gradient and Gauss-Newton products of one `BatchLoss`.

    The loss is cut at the outputs: l(z(w), w), whose second argument are the weight regularizers. With z = z(w) and
    J = dz/dw at the base, the product is the derivative of J' l_z(z(w), w) + l_w(z(base), w) in w at the base.
    """

    words: ClassVar[str] = "Gauss-Newton products differ from finite differences of the loss's slope in the outputs"

    _slope: Compiled = attrs.field()  # (point, base, batch), by the size of batches
    # Numbers of an example's outputs that the loss reads, one entry for each trace; None where nobody knows.
    _read: list[int | None] = attrs.field(factory=list)

    @_slope.default
    def _slope_by_size(self) -> BySize:
        return self._by_size(self._slope_graph, self.fixed, self.vector)

    def with_products(self, product_mode: str, batch: Batch) -> Self:
        """A copy that also makes products, tried on a batch; it shares the compiled gradient.

        Raises:
            ModelError: As of `Engine`, or the loss cannot be cut at the model's outputs.
        """
        self._require_split(batch)
        return super().with_products(product_mode, batch)

    def rank(self, examples: int) -> int | None:
        """A bound of the matrix' rank on this many examples; None where it is not known or there is none."""
        per_example = self._read[-1] if self._read else None
        return None if per_example is None else per_example * examples

    def _require_split(self, batch: Batch) -> None:
        """Refuses a loss whose gradient is not put together of the outputs' derivative and the loss's."""
        whole, halves = (function(self.point, batch).numpy() for function in (self.gradient, self.slope))
        if norm(halves - whole) > np.sqrt(np.finfo(self.dtype).eps) * max(norm(whole), norm(halves)):
            raise ModelError(
                "the loss is not a function of the model's outputs alone: put together from the outputs' derivative "
                "and the loss's, the gradient is another one. There is no Gauss-Newton matrix of it."
            )

    def slope(self, point: Tensor, batch: Batch) -> Tensor:
        """J' l_z + l_w with J at the engine's point and the loss's derivatives at another, shape [n]."""
        base = self.point
        return summed(lambda piece: self._slope(piece.num_examples)(point, base, *self.arguments(piece)), batch)

    def _cut_loss(
        self,
        parts: list[Tensor],
        batch: Sequence[Tensor],
        *tapes: tf.GradientTape,
        inspect: denominators.Inspect | None = None,
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The weighted loss as a function of copies of the outputs, the outputs, and the copies, which tapes watch.

        Keras' cross-entropies read the logits that its softmax and sigmoid leave with their result: they are an output
        too. Whatever the loss does not read has no gradient. Each compiled loss is also given to `inspect`.
        """
        outputs: list[Tensor] = []
        copies: list[Tensor] = []

        def copied(tensor: Tensor) -> Tensor:
            copy = tf.stop_gradient(tensor)
            if tensor.dtype.is_floating:
                for tape in tapes:
                    tape.watch(copy)
                outputs.append(tensor)
                copies.append(copy)
            return copy

        def cut(tree: Data) -> Data:
            return tf.nest.map_structure(cut_output, tree)

        def cut_output(tensor: Tensor) -> Tensor:
            copy = copied(tensor)
            logits = getattr(tensor, LOGITS, None)
            if logits is None and tensor.op.type in ("Softmax", "Sigmoid"):
                logits = tensor.op.inputs[0]  # where Keras looks for them next
            if logits is not None:
                setattr(copy, LOGITS, copied(logits))
            if getattr(tensor, _MASK, None) is not None:
                setattr(copy, _MASK, getattr(tensor, _MASK))
            return copy

        seeds, weights, *flat = batch
        function = self.function if inspect is None else attrs.evolve(self.function, inspect=inspect)
        total, extra, _ = function(parts, seeds, flat, weights[2:], cut)
        return self._weigh(total, extra, weights), outputs, copies

    def _weigh(self, total: Tensor, extra: Tensor, weights: Tensor) -> Tensor:
        """A batch's share of the function whose matrix this is; `extra` is what `model.losses` add to the total."""
        return weights[0] * total + (weights[1] - weights[0]) * extra

    def _slope_graph(self, point: Tensor, base: Tensor, *batch: Tensor) -> Tensor:
        parts, at_base = self.function.layout.split(point), self.function.layout.split(base)
        with tf.GradientTape() as tape:
            tape.watch(parts)
            loss, _, copies = self._cut_loss(parts, batch, tape)
        slopes = tape.gradient(loss, [*copies, *parts])
        self._read.append(_outputs_read(copies, slopes))
        slopes = _dense(slopes, [*copies, *parts])
        with tf.GradientTape() as tape:
            tape.watch(at_base)
            _, outputs, _ = self._cut_loss(at_base, batch)
        pulled = tape.gradient(outputs, at_base, output_gradients=slopes[: len(copies)], unconnected_gradients=ZERO)
        return joined(pulled) + joined(slopes[len(copies) :])

    def _first_pass(
        self, point: Tensor, batch: Sequence[Tensor]
    ) -> tuple[Callable[[], Tensor], Callable[[Tensor], Tensor]]:
        curved = self._curved(self.function.layout.split(point), batch)

        def product(vector: Tensor) -> Tensor:
            duals = self.function.layout.split(vector)
            return curved.image(curved.tangents(duals), duals)

        return curved.gradient, product

    def _forward_over_reverse(self, point: Tensor, vector: Tensor, *batch: Tensor) -> Tensor:
        parts, duals = self.function.layout.split(point), self.function.layout.split(vector)
        with tf.autodiff.ForwardAccumulator(parts, duals) as accumulator:
            _, outputs, _ = self._cut_loss(parts, batch)
        tangents = accumulator.jvp(outputs, unconnected_gradients=ZERO)
        return self._curved(parts, batch).image(tangents, duals)

    def _curved(
        self, parts: list[Tensor], batch: Sequence[Tensor], inspect: denominators.Inspect | None = None
    ) -> Curved:
        with indexed_pooling(self.jit), tf.GradientTape(persistent=True) as outer:
            outer.watch(parts)
            with tf.GradientTape(persistent=True) as inner:
                inner.watch(parts)
                loss, outputs, copies = self._cut_loss(parts, batch, inner, outer, inspect=inspect)
            slopes = inner.gradient(loss, [*copies, *parts])
            slopes = [None if each is None else tf.convert_to_tensor(each) for each in slopes]
            zeros = [tf.zeros_like(output) for output in outputs]
            outer.watch(zeros)
            # J'u, which is linear in u: its derivative along v in place of u is J v, by reverse passes alone.
            pulled = inner.gradient(outputs, parts, output_gradients=zeros, unconnected_gradients=ZERO)
            pulled = [tf.convert_to_tensor(each) for each in pulled]
        return Curved(inner, outer, loss, parts, outputs, copies, zeros, pulled, slopes)


@attrs.frozen(eq=False)
class Curved:
    """A loss cut at the outputs of a model, on tapes: gradient and Gauss-Newton products, in a graph."""

    inner: tf.GradientTape
    outer: tf.GradientTape
    loss: Tensor
    parts: list[Tensor]
    outputs: list[Tensor]
    copies: list[Tensor]
    zeros: list[Tensor]  # u of J'u
    pulled: list[Tensor]  # J'u
    slopes: list[Tensor | None]  # of the loss in the copies, then directly in the parts; None where it reads none

    def gradient(self) -> Tensor:
        """J' l_z + l_w, shape [n]."""
        return self.pulled_back(self.slopes)

    def tangents(self, duals: list[Tensor]) -> list[Tensor]:
        """J v."""
        tangents: list[Tensor] = self.outer.gradient(
            self.pulled, self.zeros, output_gradients=duals, unconnected_gradients=ZERO
        )
        return tangents

    def image(self, tangents: list[Tensor], duals: list[Tensor]) -> Tensor:
        """J' l_zz J v + l_ww v from J v, shape [n]."""
        read = [
            (slope, dual) for slope, dual in zip(self.slopes, [*tangents, *duals], strict=True) if slope is not None
        ]
        slopes, along = zip(*read, strict=True)
        second = self.outer.gradient(
            slopes, [*self.copies, *self.parts], output_gradients=along, unconnected_gradients=ZERO
        )
        return self.pulled_back(second)

    def pulled_back(self, slopes: list[Tensor | None]) -> Tensor:
        """J' times the first of them, plus the others."""
        dense = _dense(slopes, [*self.copies, *self.parts])
        count = len(self.copies)
        pulled = self.inner.gradient(
            self.outputs, self.parts, output_gradients=dense[:count], unconnected_gradients=ZERO
        )
        return joined(pulled) + joined(dense[count:])


def _dense(slopes: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor]:
    """Derivatives as tensors, zeros where there are none."""
    return [
        tf.zeros_like(x) if each is None else tf.convert_to_tensor(each) for each, x in zip(slopes, like, strict=True)
    ]


def _outputs_read(copies: Sequence[Tensor], slopes: Sequence[Tensor | None]) -> int | None:
    """Numbers of an example that the loss reads; None if shapes are open, or if it reads weights too."""
    if any(slope is not None for slope in slopes[len(copies) :]):
        return None
    read = [copy.shape[1:] for copy, slope in zip(copies, slopes, strict=False) if slope is not None]
    return sum(math.prod(shape) for shape in read) if all(shape.is_fully_defined() for shape in read) else None


class GaussNewtonOperator(CurvatureOperator):
    """Gauss-Newton matrix of an `EmpiricalLoss` at the model's weights, known by its products.

    G = sum over the loss's batches of J' H_out J, weighted as in `EmpiricalLoss`: J is the Jacobian of the model's
    outputs in the weights and H_out the Hessian of the compiled loss in the outputs. Where the loss is convex in the
    outputs G is positive semidefinite, and H - G is what the curvature of the outputs themselves adds to the Hessian
    (0 for a model that is linear in its weights). Rows and columns follow `loss.layout`.

    The outputs are what the loss reads: for Keras' cross-entropies on a layer with softmax or sigmoid these are the
    logits before it, as Keras itself takes them, and for any other loss the values that the model returns. Weight
    regularizers are functions of the weights, not of the outputs, and their whole Hessian is added: 2 l I for
    L2(l). One that is not convex makes G indefinite.

    Construction verifies the products on one batch, as for `HessianOperator`: in float64, against J' times central
    differences of the loss's slope in the outputs, along v in the weights, which takes first derivatives alone.
    Arguments and attributes are those of `HessianOperator`; a product costs about as much.

    Raises:
        ModelError: The loss is a `loss_fn(model, batch)`, or a layer adds one (add_loss, an activity regularizer):
            it has no known split into outputs and loss.
        VerificationError: The products disagree with the differences, are not symmetric or not repeatable, and
            `allow_unverified` is False.

    Example:
        A linear model's mean squared error has the Gauss-Newton matrix 2 X'X / n, its Hessian:

        >>> import keras, numpy as np
        >>> from sdkeras import EmpiricalLoss
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
        >>> model.compile("sgd", "mse")
        >>> x, y = np.array([[1.0, 0.0], [0.0, 2.0]]), np.zeros((2, 1))
        >>> G = GaussNewtonOperator(EmpiricalLoss(model, (x, y), dtype="float64"))
        >>> np.round(G.matvec(np.array([1.0, 1.0])), 12)
        array([1., 4.])

    Reference: Schraudolph (2002), "Fast curvature matrix-vector products for second-order gradient descent".
    """

    engine_class: ClassVar[type[Engine]] = GaussNewtonEngine

    def reduced(self) -> Reduction | None:
        """The operator on its range, of at most as many dimensions as the batches have outputs, where that is small.

        The eigenvalues there are those of the Gram matrix (1/b) H_out^1/2 J J' H_out^1/2 of b examples, and all others
        are 0. Else as for `HessianOperator`.
        """
        assert isinstance(self.engine, GaussNewtonEngine)
        rank = self.engine.rank(sum(batch.num_examples for batch in self.batches))
        if rank is None or not is_worth_reducing(self.size, rank):
            return super().reduced()
        return range_reduction(self, rank) or super().reduced()
