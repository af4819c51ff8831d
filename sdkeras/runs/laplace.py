"""The Laplace posterior of a trained net, from its Gauss-Newton matrix: joins curvature, evidence and predictions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Literal, TypeAlias, get_args

import attrs
import keras
import numpy as np
import scipy.special
import tensorflow as tf

from sdkeras.errors import DataError, ModelError, counted
from sdkeras.estimators.registry import get_estimator
from sdkeras.files.keras_types import Data, Model, Tensor, Variable
from sdkeras.linalg.diagonal import diagonal
from sdkeras.operators import minibatches
from sdkeras.operators.batch_loss import Batch
from sdkeras.operators.fisher import ExactEngine, FisherOperator
from sdkeras.operators.likelihood import NoLikelihoodError
from sdkeras.operators.loss import EmpiricalLoss, check_model
from sdkeras.operators.outputs import Outputs
from sdkeras.results.arrays import Array, FloatArray, is_number
from sdkeras.results.note import Note
from sdkeras.runs import losses
from sdkeras.runs.evidence import Evidence
from sdkeras.runs.posterior import Laplace, check_positive, softmax

Precision: TypeAlias = Literal["float32", "float64"]
_BATCH_SIZE = 256
# Lanczos steps: those that the pairs need where the eigenvalues decay, as they do.
_STEPS_PER_PAIR, _MORE_STEPS = 2, 20
# Outputs up to which the diagonal is exact, from that many derivatives of each example, and products for it beyond.
_MOST_OUTPUTS, _PRODUCTS = 256, 128
# Below this share of the trace in the eigenpairs most of the matrix beside its diagonal may be left out.
_CAPTURED = 0.9


def laplace(  # noqa: PLR0913  # public: each argument is one that a user names
    model: Model,
    data: Data,
    *,
    rank: int = 100,
    prior_precision: float | None = None,
    noise_variance: float | None = None,
    batch_size: int | None = None,
    class_weight: Mapping[int, float] | None = None,
    params: str | None = None,
    dtype: Precision = "float32",
    seed: int = 0,
    device: str = "auto",
) -> Laplace:
    """The Laplace approximation of the posterior over a trained net's weights, and its predictions with uncertainty.

    The model's loss is a negative log-likelihood (cross-entropy of logits or on a softmax or sigmoid layer, or squared
    error), the prior N(0, I / prior_precision), and the weights are taken as the most probable ones. The precision has
    the largest eigenpairs of the data-set Gauss-Newton matrix in inference mode, and its diagonal beside them, which
    takes as many backward passes as the data have examples times outputs (above 256 outputs it is estimated). Nothing
    is trained, and the model is not changed.

    Prior precision and noise variance that are not given maximise the log marginal likelihood with the weights held:
    where the derivative in their logarithm crosses 0, which it does once. A regularizer of the model is not taken for
    the prior: `regularizer_precision` says which one it would be. Decoupled weight decay is none.

    Args:
        model: A `keras.Model` with one output vector for each example, compiled and trained.
        data: Its training data: (x, y[, sample_weight]), a batched `tf.data.Dataset`, or a `keras.utils.PyDataset`.
        rank: Number of eigenpairs. As many as there are weights or more takes the whole matrix, dense.
        prior_precision: delta, positive; None maximises the marginal likelihood.
        noise_variance: sigma^2 of the targets, positive; None maximises. Only for squared error.
        batch_size: Examples per batch, which changes nothing but memory and time; None takes 256, or a dataset's own.
        class_weight: Weights by class, as `fit` takes them.
        params: Regular expression: only weights whose path it finds are random, all others are held. Of a large net the
            last layer alone is a usual choice.
        dtype: 'float32' or 'float64', of the derivatives.
        seed: Seed for Lanczos' start.
        device: As for `EmpiricalLoss`.

    Returns:
        The posterior with its evidence.

    Raises:
        ModelError: The loss is no negative log-likelihood, the model has several outputs or none that is one vector for
            each example, or its weights are all 0.
        DataError: Data that do not fit, negative sample weights, or residuals of 0 without a noise variance.
        NonFiniteError: Weights, loss or derivatives hold NaN or infinity.
        ValueError: A rank, prior precision, noise variance or dtype that is none.

    Example:
        With one weight, y = w x and unit noise, the posterior of Bayesian linear regression: its precision is
        sum(x^2) + delta.

        >>> import keras, numpy as np
        >>> net = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
        >>> net.compile("sgd", "mse")
        >>> x = np.array([[1.0], [2.0]])
        >>> result = laplace(net, (x, 2 * x), prior_precision=3.0, noise_variance=1.0, dtype="float64")
        >>> np.round(result.stddev**-2, 6)
        array([8.])

    Reference: MacKay (1992), "A practical Bayesian framework for backpropagation networks"; Khan et al. (2019),
    Immer, Korzepa, Bauer (2021), "Improving predictions of Bayesian neural nets via local linearization".
    """
    if not is_number(rank, whole=True) or rank < 1:
        raise ValueError(f"rank is {rank!r}; it must be a whole number of eigenpairs, at least 1.")
    if dtype not in get_args(Precision):
        raise ValueError(f"dtype must be {' or '.join(map(repr, get_args(Precision)))}, got {dtype!r}.")
    check_positive("prior_precision", prior_precision)
    check_positive("noise_variance", noise_variance)
    check_model(model, needs_loss=True)
    source = minibatches.as_source(
        data, batch_size=batch_size, default_batch_size=_BATCH_SIZE, class_weight=class_weight
    )
    loss = EmpiricalLoss(model, source, mode="inference", params=params, dtype=dtype, seed=seed, device=device).merged()
    net = _Net.of(loss)
    curvature = _curvature(net, rank, seed)
    result = Laplace(
        prior_precision=1.0,
        noise_variance=1.0 if net.family == "gaussian" else None,
        captured=curvature.captured,
        gradient=loss.gradient(),
        l2=_l2(loss),
        caveats=(*losses.caveats(model), *_caveats(model, loss, curvature)),
        family=net.family,
        outputs=net.outputs,
        evidence=_evidence(net, curvature),
    )
    return result.with_prior(prior_precision, noise_variance)


@attrs.frozen(eq=False)
class _Net:
    """The loss of a net with one output vector, as a likelihood.

    Attributes:
        loss: The loss, in inference mode.
        outputs: The vector by which the loss is a likelihood.
        family: As of `Likelihood`.
        width: Its number of outputs C.
        denominator: What the compiled loss divides a sum over examples by; 1 for a sum.
    """

    loss: EmpiricalLoss
    outputs: Outputs
    family: str
    width: int
    denominator: float

    @classmethod
    def of(cls, loss: EmpiricalLoss) -> _Net:
        """Reads the loss.

        Raises:
            ModelError: It is no likelihood of one vector for each example.
        """
        inputs, batch = loss.function.structure[0], loss.batches[0]
        # Several outputs are refused before their losses are.
        Outputs(loss.function, inputs, logits=False).values([each[:1] for each in _inputs(loss, batch)])
        engine = loss.engine("auto", ExactEngine)
        assert isinstance(engine, ExactEngine)
        try:
            known = engine.outputs(batch)
        except NoLikelihoodError as error:
            raise ModelError(
                f"{error.why}. A Laplace posterior is made of a likelihood: compile the model with the one that it was "
                "trained with, or look at its curvature alone (GaussNewtonOperator)."
            ) from error
        (likelihood, z), *more = known
        if more or likelihood.ignored is not None:
            what = f"{len(known)} losses" if more else f"a loss that ignores class {likelihood.ignored}"
            raise ModelError(
                f"the model has {what}; a Laplace posterior is made of one loss that counts every example."
            )
        outputs = Outputs(loss.function, inputs, logits=likelihood.family != "gaussian")
        return cls(loss, outputs, likelihood.family, z.shape[1], _denominator(loss))


def _denominator(loss: EmpiricalLoss) -> float:
    if loss.function.reductions[0] == "sum":
        return 1.0
    engine = loss.gradients
    return float(sum(float(engine.evaluate(engine.point, batch)[2][0]) for batch in loss.batches))


def _inputs(loss: EmpiricalLoss, batch: Batch) -> list[Tensor]:
    return list(tf.nest.flatten(tf.nest.pack_sequence_as(loss.function.structure, list(batch.tensors))[0]))


def _weights(loss: EmpiricalLoss, batch: Batch) -> FloatArray:
    """The sample weights of a batch, shape [b].

    Raises:
        DataError: One is negative, or they are not one for each example.
    """
    given = tf.nest.flatten(tf.nest.pack_sequence_as(loss.function.structure, list(batch.tensors))[2:])
    if not given:
        return np.ones(batch.num_examples)
    weights = given[0].numpy().astype(np.float64)
    if weights.size != batch.num_examples:
        raise DataError(f"the sample weights have shape {weights.shape}; give one for each example.")
    if weights.min() < 0:
        raise DataError(
            f"a sample weight is {weights.min():g}, and no example counts less than not at all; give weights of at "
            "least 0."
        )
    return np.asarray(weights.reshape(batch.num_examples))


# Curvature


@attrs.frozen(eq=False)
class _Curvature:
    """U L U' + diag(rest) of the mean loss."""

    factor: Array  # L^1/2 U', shape [k, d]
    rest: FloatArray  # shape [d]
    captured: float
    unconverged: int = 0
    error: float = 0.0  # of an estimated diagonal, relative to its norm


def _curvature(net: _Net, rank: int, seed: int) -> _Curvature:
    operator, size = FisherOperator(net.loss), net.loss.size
    if rank >= size:
        values, vectors = np.linalg.eigh(operator.as_matrix())
        return _Curvature((vectors * np.sqrt(np.maximum(values, 0))).T, np.zeros(size), 1.0)
    estimator = get_estimator("eigenpairs", "lanczos")(
        num_largest=rank,
        num_smallest=0,
        num_steps=min(size, _STEPS_PER_PAIR * rank + _MORE_STEPS),
        eigenvectors=True,
    )
    pairs = estimator.estimate(operator, seed=seed)
    # Zeros of a matrix of lower rank come as rounding.
    kept = pairs.values > 10 * np.finfo(operator.dtype).eps * max(float(pairs.values[0]), 0.0)
    factor = (pairs.vectors[:, kept] * np.sqrt(pairs.values[kept]).astype(pairs.vectors.dtype)).T
    if net.width <= _MOST_OUTPUTS:
        whole, error = _diagonal(net), 0.0
    else:
        estimate = diagonal(operator, num_products=_PRODUCTS, seed=seed)
        whole = np.maximum(estimate.values, 0)
        error = float(np.linalg.norm(estimate.stderr) / np.linalg.norm(whole))
    within = np.einsum("kd,kd->d", factor, factor, dtype=np.float64)
    total = float(whole.sum())
    captured = min(1.0, float(within.sum()) / total) if total else 1.0
    return _Curvature(factor, np.maximum(whole - within, 0), captured, int(np.sum(~pairs.converged[kept])), error)


def _diagonal(net: _Net) -> FloatArray:
    """diag G of the mean loss, exactly: the sum over examples of squared rows of K_i J_i, shape [d]."""
    total = np.zeros(net.loss.size)
    for batch in net.loss.batches:
        tensors = _inputs(net.loss, batch)
        z = net.outputs.values(tensors).astype(np.float64)
        factors = _curvature_roots(net.family, z) * np.sqrt(_weights(net.loss, batch))[:, None, None]
        for block in net.outputs.blocks(*z.shape):
            rows = net.outputs.rows([each[block] for each in tensors], factors[block])
            total += np.einsum("bcd,bcd->d", rows, rows, dtype=np.float64)
    mean: FloatArray = total / net.denominator
    return mean


def _curvature_roots(family: str, z: FloatArray) -> FloatArray:
    """K with K'K the second derivative of one example's loss in its outputs z [b, C], shape [b, C, C]."""
    width = z.shape[1]
    identity = np.eye(width)
    if family == "gaussian":
        return np.asarray(np.tile(math.sqrt(2 / width) * identity, (len(z), 1, 1)))
    if family == "sigmoid":
        p = scipy.special.expit(z)
        return np.asarray(np.sqrt(p * (1 - p) / width)[:, :, None] * identity)
    root = np.sqrt(softmax(z))  # diag p - p p' = K'K with K = (I - r r') diag r, r = p^1/2
    return np.asarray((identity - root[:, :, None] * root[:, None, :]) * root[:, None, :])


# Evidence


def _evidence(net: _Net, curvature: _Curvature) -> Evidence:
    loss, engine, mean, weight = net.loss, net.loss.gradients, 0.0, 0.0
    for batch in loss.batches:
        value, extra, _ = engine.evaluate(engine.point, batch)
        mean += batch.data_weight * float(value - extra)  # without regularizers
        weight += float(_weights(loss, batch).sum())
    # Keras' binary cross-entropy and squared error are means over the outputs.
    factor = {"softmax": 1.0, "sigmoid": float(net.width), "gaussian": net.width / 2}[net.family]
    scale, point = factor * net.denominator, loss.point.astype(np.float64)
    targets = weight * net.width if net.family == "gaussian" else None
    return Evidence(curvature.factor, curvature.rest, scale, scale * mean, targets, float(point @ point))


def _l2(loss: EmpiricalLoss) -> float | None:
    """lambda where every analysed weight has L2(lambda), or None."""
    strengths = {_strength(variable) for variable in loss.variables}
    return strengths.pop() if len(strengths) == 1 else None


def _strength(variable: Variable) -> float | None:
    regularizer = getattr(variable, "regularizer", None)
    if not isinstance(regularizer, (keras.regularizers.L2, keras.regularizers.L1L2)) or vars(regularizer).get("l1"):
        return None
    return float(regularizer.l2)


def _caveats(model: Model, loss: EmpiricalLoss, curvature: _Curvature) -> Iterator[Note]:
    for note in loss.notes:
        yield Note("data", f"{note}.")
    if curvature.captured < _CAPTURED:
        yield Note(
            "rank-too-small",
            f"the {counted(len(curvature.factor), 'eigenpair')} hold {100 * curvature.captured:.0f} % of the trace; of "
            "the others only the diagonal is in the precision. A larger `rank` takes in more.",
        )
    if curvature.error:
        yield Note(
            "diagonal-estimated",
            f"the diagonal is estimated from {_PRODUCTS} random products, to {100 * curvature.error:.0f} % of its "
            "norm.",
        )
    if curvature.unconverged:
        yield Note(
            "not-converged",
            f"{counted(curvature.unconverged, 'eigenpair')} of {len(curvature.factor):,} had not converged; they are "
            "a part of the matrix as well, but not its largest.",
        )
    if _l2(loss) is None and any(map(_strength, loss.variables)):
        words = "the model's regularizers differ from weight to weight, and the prior has one precision for all."
        yield Note("other-prior", words)
    if getattr(getattr(model, "optimizer", None), "weight_decay", None):
        words = "the optimizer decays the weights by itself, which no prior amounts to; none was made of it."
        yield Note("decoupled-decay", words)
