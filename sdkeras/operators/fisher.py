"""The Fisher information of an empirical loss: exact, from drawn targets, and the empirical one of the gradients."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence
from typing import ClassVar, Literal, Self, TypeAlias, get_args

import attrs
import tensorflow as tf

from sdkeras import seeds
from sdkeras.errors import DataError, ModelError, instance
from sdkeras.files.keras_types import Compiled, Loss, Tensor
from sdkeras.linalg.vectors import finite
from sdkeras.operators import denominators, verification
from sdkeras.operators.batch_loss import Batch
from sdkeras.operators.engine import Engine
from sdkeras.operators.gauss_newton import LOGITS, ZERO, Curved, GaussNewtonEngine, GaussNewtonOperator
from sdkeras.operators.layout import joined
from sdkeras.operators.likelihood import Likelihood, likelihood_of
from sdkeras.operators.linearized import Flat
from sdkeras.operators.loss import EmpiricalLoss, evolved
from sdkeras.operators.modes import ProductMode
from sdkeras.results.arrays import Array, is_number

FisherKind: TypeAlias = Literal["exact", "monte-carlo", "empirical"]
KINDS: tuple[FisherKind, ...] = get_args(FisherKind)


@attrs.frozen(eq=False)
class ExactEngine(GaussNewtonEngine):
    """The products of J' H_out J for a loss that is a negative log-likelihood, which regularizers are no part of."""

    words: ClassVar[str] = "Fisher products differ from finite differences of the log-likelihood's slope in the outputs"

    # Likelihoods of the compiled losses, once `outputs` has been traced.
    _likelihoods: list[Likelihood] = attrs.field(factory=list)
    _traced: list[Compiled] = attrs.field(factory=list)

    def gradient(self, point: Tensor, batch: Batch) -> Tensor:
        """Weighted gradient of the compiled losses alone, shape [n]."""
        return super().gradient(point, attrs.evolve(batch, extra_weight=0.0))

    def _weigh(self, total: Tensor, extra: Tensor, weights: Tensor) -> Tensor:
        return weights[0] * (total - extra)

    def outputs(self, batch: Batch) -> list[tuple[Likelihood, Array]]:
        """The likelihood of each compiled loss, and the outputs on a batch by which it is given.

        Raises:
            ModelError: A loss is no likelihood that is known here.
        """
        if not self._traced:
            self._traced.append(Flat(self.traced(self._outputs_graph)))
        values = self._traced[0](self.point, *self.arguments(batch))
        values = values if isinstance(values, tuple) else (values,)
        return [
            (likelihood, finite(each.numpy(), "the model's outputs"))
            for likelihood, each in zip(self._likelihoods, values, strict=True)
        ]

    def _outputs_graph(self, point: Tensor, *batch: Tensor) -> list[Tensor]:
        calls: list[tuple[Loss, Tensor, Tensor]] = []

        def inspect(loss: Loss, y_true: Tensor, y_pred: Tensor, *_: Tensor | None) -> None:
            calls.append((loss, y_true, y_pred))

        with tf.GradientTape(persistent=True) as tape:
            total, _, _ = self._cut_loss(self.function.layout.split(point), batch, tape, inspect=inspect)
        tensors, outputs = batch[2 : len(batch) - len(self.function.held)], []
        self._likelihoods.clear()
        for loss, y_true, y_pred in calls:
            sources = {"values": y_pred, "logits": getattr(y_pred, LOGITS, None)}
            known = {name: source for name, source in sources.items() if source is not None}
            read = {name: source for name, source in known.items() if tape.gradient(total, source) is not None}
            likelihood, z = likelihood_of(loss, y_true, tensors, read)
            self._likelihoods.append(likelihood)
            outputs.append(z)
        return outputs


@attrs.frozen(eq=False)
class SampledEngine(ExactEngine):
    """The products of sum_i g_i g_i', g_i the sum over an example's values l_t of sqrt(w_t) times their gradients.

    w_t is what the loss multiplies a value with, so that the loss is the sum of w_t l_t. Of values that are
    independent given the outputs the gradients' products have mean 0, and the matrix the Fisher's mean.

    The product is the derivative of sum_i g_i a_i(w) in w at the base, a_i the sum of the sqrt(w_t) l_t.
    """

    words: ClassVar[str] = "Fisher products differ from gradients of examples times finite differences of their losses"

    def rank(self, examples: int) -> int | None:
        return examples

    def _require_split(self, batch: Batch) -> None:
        """The check of the products tells as well."""

    def factors(self, weights: list[Tensor]) -> list[Tensor]:
        """By which the values of an example are multiplied in a_i, for each compiled loss [examples, ...]."""
        return [tf.sqrt(each) for each in weights]

    def _scores(
        self, tape: tf.GradientTape, loss: Tensor, values: list[Tensor], copies: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The factors of the compiled losses' values, and the derivatives of the a_i in the outputs."""
        if not values or any(each.shape.rank == 0 for each in values):
            raise ModelError(
                "the loss is one number for a whole batch, not a value for each example, so that there are no "
                "gradients of examples and no Fisher matrix of them; take GaussNewtonOperator."
            )
        factors = self.factors([tf.stop_gradient(each) for each in tape.gradient(loss, values)])
        return factors, tape.gradient(values, copies, output_gradients=factors, unconnected_gradients=ZERO)

    def _slope_graph(self, point: Tensor, base: Tensor, *batch: Tensor) -> Tensor:
        values: list[Tensor] = []
        moved: list[Tensor] = []
        at_base = self.function.layout.split(base)
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(at_base)
            loss, outputs, copies = self._cut_loss(at_base, batch, tape, inspect=_into(values))
        factors, scores = self._scores(tape, loss, values, copies)
        self._cut_loss(self.function.layout.split(point), batch, inspect=_into(moved))
        along = _of_examples([factor * value for factor, value in zip(factors, moved, strict=True)])
        pulled = tape.gradient(
            outputs, at_base, output_gradients=_times_examples(scores, along), unconnected_gradients=ZERO
        )
        return joined(pulled)

    def _curved(
        self, parts: list[Tensor], batch: Sequence[Tensor], inspect: denominators.Inspect | None = None
    ) -> Curved:
        values: list[Tensor] = []
        curved = super()._curved(parts, batch, _into(values))
        scores = self._scores(curved.inner, curved.loss, values, curved.copies)[1]
        return _Scored(scores=scores, **{field.name: getattr(curved, field.name) for field in attrs.fields(Curved)})


@attrs.frozen(eq=False)
class EmpiricalEngine(SampledEngine):
    """The products of sum_i w_i g_i g_i': w_i the sum of an example's w_t, g_i the gradient of its weighted mean."""

    def factors(self, weights: list[Tensor]) -> list[Tensor]:
        root = tf.sqrt(_of_examples(weights))
        return [tf.math.divide_no_nan(each, _shaped(root, each)) for each in weights]


@attrs.frozen(eq=False)
class _Scored(Curved):
    """A loss cut at the outputs, with the derivatives of the a_i in the outputs."""

    scores: list[Tensor]

    def image(self, tangents: list[Tensor], duals: list[Tensor]) -> Tensor:
        """sum_i g_i g_i' v from J v, shape [n]."""
        along = _of_examples([score * tangent for score, tangent in zip(self.scores, tangents, strict=True)])
        return self.pulled_back([*_times_examples(self.scores, along), *(None for _ in self.parts)])


def _into(values: list[Tensor]) -> denominators.Inspect:
    """Keeps the values of each compiled loss before they are reduced."""
    return lambda *call: values.append(call[-1])


def _of_examples(values: Sequence[Tensor]) -> Tensor:
    """Sums over all axes but the first, of all tensors together, shape [examples]; in float32 at least."""
    widest = tf.float64 if any(each.dtype == tf.float64 for each in values) else tf.float32
    flat = [tf.reshape(tf.cast(each, widest), [tf.shape(each)[0], -1]) for each in values]
    return tf.add_n([tf.reduce_sum(each, axis=1) for each in flat])


def _shaped(examples: Tensor, like: Tensor) -> Tensor:
    """A number for each example, with axes of length 1 for the others, in the precision of `like`."""
    return tf.cast(tf.reshape(examples, [-1, *[1] * (like.shape.rank - 1)]), like.dtype)


def _times_examples(values: Sequence[Tensor], factors: Tensor) -> list[Tensor]:
    return [each * _shaped(factors, each) for each in values]


_ENGINES: dict[FisherKind, type[ExactEngine]] = {
    "exact": ExactEngine,
    "monte-carlo": SampledEngine,
    "empirical": EmpiricalEngine,
}


@attrs.frozen(init=False, eq=False, repr=False, slots=False)
class FisherOperator(GaussNewtonOperator):
    """Fisher information of an `EmpiricalLoss` at the model's weights, known by its products.

    With the loss as a sum of w_i l_i over examples, weighted as in `EmpiricalLoss`, and l_i minus the logarithm of the
    probability that the model gives to the targets y_i:

    - 'exact': the sum of w_i E[g_i g_i'], g_i the gradient of l_i at targets drawn from the model itself. It is
      J' H_out J, the Gauss-Newton matrix without regularizers.
    - 'monte-carlo': the mean over `draws` draws of targets in place of the expectation, which is unbiased. The targets
      are drawn once, from `seed` and the data, so that the operator is one fixed matrix; at other weights (`at`) they
      are drawn anew.
    - 'empirical': the sum of w_i g_i g_i' with the gradients at the targets of the data; for any loss that has a value
      for each example. With (1/n) for w_i it is the second moment of the gradients. It is neither the Fisher
      information nor the Hessian, and vanishes where the model interpolates the data, however sharp the loss is there.

    A negative log-likelihood is categorical, sparse and binary cross-entropy, with label smoothing too, of logits or on
    a layer with softmax or sigmoid, and mean squared error, whose mean over C outputs is that of a Gaussian of variance
    C/2. A value that is a mean over several binary targets counts as that of one. Sequences have a value for each
    place: drawn targets are independent, and an example of the empirical one is the weighted mean over its places.
    Regularizers belong to no likelihood and are left out.

    Construction verifies the products on one batch, as for `HessianOperator`, in float64: the exact ones as those of
    `GaussNewtonOperator`, the others against the gradients of examples times central differences of their losses. Other
    arguments and attributes are those of `HessianOperator`; a product costs about as much.

    Args:
        loss: The function.
        kind: 'exact', 'monte-carlo' or 'empirical'.
        draws: Draws of the targets of each example; only with 'monte-carlo'. A product costs as many times more.
        seed: Seed for them.

    Raises:
        ModelError: The loss is no negative log-likelihood, or for 'empirical' something couples the examples of a
            batch, such as batch normalization in training mode. The loss is a `loss_fn(model, batch)`, or a layer adds
            one.
        DataError: Sample weights below 0, but for 'exact'.
        VerificationError: As of `HessianOperator`.

    Example:
        One output with squared error has sigma^2 = 1/2 and the Fisher matrix 2 X'X / n; residuals do not matter to it,
        but they do to the empirical one, 4 X' diag(r^2) X / n:

        >>> import keras, numpy as np
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
        >>> model.compile("sgd", "mse")
        >>> model.set_weights([np.zeros((2, 1))])
        >>> x, y = np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([[1.0], [0.5]])
        >>> loss = EmpiricalLoss(model, (x, y), dtype="float64")
        >>> np.round(FisherOperator(loss) @ np.array([1.0, 1.0]), 12)
        array([1., 4.])
        >>> np.round(FisherOperator(loss, kind="empirical") @ np.array([1.0, 1.0]), 12)
        array([2., 2.])

    Reference: Martens (2020), "New insights and perspectives on the natural gradient method"; Kunstner, Balles, Hennig
    (2019), "Limitations of the empirical Fisher approximation".
    """

    kind: FisherKind = "exact"
    draws: int = 1
    seed: int = 0

    def __init__(
        self,
        loss: EmpiricalLoss,
        kind: FisherKind = "exact",
        *,
        draws: int = 1,
        seed: int = 0,
        product_mode: ProductMode = "auto",
        allow_unverified: bool = False,
        workers: int = 1,
        memory: float | None = None,
    ) -> None:
        instance(loss, "loss", EmpiricalLoss)
        _check(kind, draws, seed)
        if kind != "exact":
            _require_positive_weights(loss)
        engine, batches = loss.engine(product_mode, _ENGINES[kind]), list(loss.batches)
        assert isinstance(engine, ExactEngine)
        if kind == "empirical":
            loss.require_separate_examples("there are no gradients of single examples; take kind='exact'")
        elif kind == "exact":
            engine.outputs(batches[0].pieces[0])
        else:
            batches = _drawn(engine, _copies(batches, draws), seed)
        checked = verification.verified(evolved(loss, batches=batches), engine, allow_unverified, memory)
        self._set_up(loss, engine, batches, checked, workers, memory, kind, draws, seed)

    def _over(self, batches: Sequence[Batch], *, engine: Engine, **changes: object) -> Self:
        if self.kind == "monte-carlo":
            assert isinstance(engine, ExactEngine)
            # Its own batches are the copies already.
            copies = batches if batches is self.batches else _copies(batches, self.draws)
            batches = _drawn(engine, copies, self.seed)
        return super()._over(batches, engine=engine, **changes)


def _check(kind: str, draws: int, seed: int) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind must be {', '.join(map(repr, KINDS[:-1]))} or {KINDS[-1]!r}, got {kind!r}.")
    if not is_number(draws, whole=True) or draws < 1:
        raise ValueError(f"draws is {draws!r}; it must be a whole number, at least 1.")
    seeds.checked(seed)
    if draws > 1 and kind != "monte-carlo":
        raise ValueError(f"draws={draws} are of kind='monte-carlo'; kind={kind!r} draws no targets.")


def _require_positive_weights(loss: EmpiricalLoss) -> None:
    for batch in loss.batches:
        weights = tf.nest.pack_sequence_as(loss.function.structure, list(batch.tensors))[2:]
        lowest = min((float(tf.reduce_min(each)) for each in tf.nest.flatten(weights)), default=0.0)
        if lowest < 0:
            raise DataError(
                f"a sample weight is {lowest:g}, and gradients of examples count by the root of their weights; give "
                "weights of at least 0, or take kind='exact'."
            )


def _copies(batches: Sequence[Batch], draws: int) -> list[Batch]:
    """Each batch as often as its targets are drawn, with its share of the weight."""
    return [attrs.evolve(batch, data_weight=batch.data_weight / draws) for batch in batches for _ in range(draws)]


def _drawn(engine: ExactEngine, batches: Sequence[Batch], seed: int) -> list[Batch]:
    """The batches with targets drawn from the model; those of copies of a batch differ."""
    copies: Counter[int] = Counter()
    return [_with_drawn_targets(engine, batch, seed, copies) for batch in batches]


def _with_drawn_targets(engine: ExactEngine, batch: Batch, seed: int, copies: Counter[int]) -> Batch:
    if batch.parts:
        parts = tuple(_with_drawn_targets(engine, part, seed, copies) for part in batch.parts)
        whole = tuple(tf.concat(pieces, axis=0) for pieces in zip(*(part.tensors for part in parts), strict=True))
        return attrs.evolve(batch, tensors=whole, parts=parts)
    known, tensors = engine.outputs(batch), list(batch.tensors)
    places = {likelihood.place for likelihood, _ in known}
    # By the data, so that a batch has the same targets whenever it is asked for, and in every precision.
    key = zlib.crc32(b"".join(_bytes_of(tensor) for k, tensor in enumerate(tensors) if k not in places))
    for number, (likelihood, outputs) in enumerate(known):
        generator = seeds.generator(seed, seeds.Stream.TARGETS, key, copies[key], number)
        targets = likelihood.drawn(outputs, tensors[likelihood.place].numpy(), generator)
        tensors[likelihood.place] = tf.constant(targets)
    copies[key] += 1
    weights = batch.loss_weights or (1.0,) * len(known)
    relative = tuple(
        weight * likelihood.weight(outputs) for weight, (likelihood, outputs) in zip(weights, known, strict=True)
    )
    return attrs.evolve(batch, tensors=tuple(tensors), loss_weights=relative)


def _bytes_of(tensor: Tensor) -> bytes:
    """Bytes that tell a tensor from others; those of text are its strings."""
    values: Array = tf.cast(tensor, tf.float32).numpy() if tensor.dtype.is_floating else tensor.numpy()
    return b"\0".join(values.ravel()) if tensor.dtype == tf.string else values.tobytes()
