"""A normal distribution over the weights of a net, and the predictions of the linearised net that it makes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Literal, TypeAlias, get_args

import attrs
import numpy as np
import scipy.special
import tensorflow as tf

from sdkeras import seeds
from sdkeras.errors import DataError, counted
from sdkeras.files.keras_types import Data, Distribution, Tensor
from sdkeras.linalg.woodbury import DiagonalPlusLowRank
from sdkeras.operators.outputs import Outputs
from sdkeras.results.arrays import FloatArray, is_number
from sdkeras.results.laplace import ClassPrediction, ValuePrediction
from sdkeras.results.note import Note
from sdkeras.runs.evidence import Evidence

Method: TypeAlias = Literal["monte-carlo", "probit"]
METHODS: tuple[Method, ...] = get_args(Method)


@attrs.frozen(eq=False, slots=False, kw_only=True, repr=False)
class Laplace:
    """A normal distribution over the weights w of a trained net, N(w*, P^-1), and the predictions it makes.

    P = n (U L U' + diag(max(0, diag G - diag U L U'))) + prior_precision I. G is the Gauss-Newton matrix of the mean
    loss over the data in inference mode, U L U' its largest eigenpairs, and n makes the mean a sum: the number of
    examples, or what Keras divides by (the sum of the weights for `mean_with_sample_weight`), so that an example of
    weight 2 counts as two. For squared error, P has the loss divided by twice the noise variance.

    Attributes:
        prior_precision: delta of the prior N(0, I / delta).
        noise_variance: sigma^2 of the targets given the outputs; None for classes.
        captured: The eigenpairs' share of tr G.
        gradient: Of the compiled loss at w*, regularizers included, shape [d].
        l2: Strength lambda of L2 on every weight, or None where weights have none or several.
        caveats: Notes that no prior changes.
    """

    prior_precision: float
    noise_variance: float | None
    captured: float
    gradient: FloatArray
    l2: float | None
    caveats: tuple[Note, ...]
    _family: str
    _outputs: Outputs
    _evidence: Evidence

    @property
    def size(self) -> int:
        """Number of weights d."""
        return len(self._evidence.rest)

    @property
    def rank(self) -> int:
        """Eigenpairs in U L U'; as many as weights for the whole matrix."""
        return len(self._evidence.factor)

    @property
    def _noise(self) -> float:
        return 1.0 if self.noise_variance is None else self.noise_variance

    @functools.cached_property
    def _precision(self) -> DiagonalPlusLowRank:
        return self._evidence.precision(self.prior_precision, self._noise)

    @functools.cached_property
    def log_marginal_likelihood(self) -> float:
        """log Z = log p(D | w*) - delta |w*|^2 / 2 + (d / 2) ln delta - ln det(P) / 2."""
        return self._evidence.log_marginal(self.prior_precision, self._precision, self._noise)

    @property
    def log_likelihood(self) -> float:
        """log p(D | w*)."""
        return self._evidence.log_likelihood(self._noise)

    @functools.cached_property
    def effective_parameters(self) -> float:
        """tr(P^-1 (P - delta I)), between 0 and d: how many directions of the weights the data determine."""
        return self._evidence.determined(self.prior_precision * self._noise)

    @property
    def regularizer_precision(self) -> float | None:
        """The delta that L2(lambda) of the compiled model amounts to, or None without one for all weights.

        2 n lambda for classes, and n C lambda / sigma^2 for squared error of C outputs.
        """
        return None if self.l2 is None else 2 * self._evidence.scale / self._noise * self.l2

    @functools.cached_property
    def newton_decrement(self) -> float:
        """(n^2 g'P^-1 g)^(1/2): how many posterior standard deviations away the loss of gradient g has its minimum."""
        square = float(self._precision.inverse_quadratic(self.gradient[None])[0, 0])
        return self._evidence.scale / self._noise * math.sqrt(max(0.0, square))

    @property
    def notes(self) -> tuple[Note, ...]:
        """Caveats."""
        return (*self.caveats, *self._caveats())

    def _caveats(self) -> Iterator[Note]:
        if self.newton_decrement > 1:
            yield Note(
                "not-at-a-minimum",
                f"the gradient of the loss has norm {np.linalg.norm(self.gradient):.2g}, which puts its minimum "
                f"{self.newton_decrement:.2g} posterior standard deviations from these weights; the posterior is "
                "centred on them all the same. Train further, or with a decaying learning rate.",
            )
        implied = self.regularizer_precision
        if implied is not None and not math.isclose(implied, self.prior_precision, rel_tol=0.01):
            yield Note(
                "other-prior",
                f"L2 of the model amounts to a prior precision of {implied:.3g}, for which the weights were trained; "
                f"the posterior has {self.prior_precision:.3g}.",
            )

    def with_prior(self, prior_precision: float | None = None, noise_variance: float | None = None) -> Laplace:
        """The posterior of another prior, or of another noise variance of the targets; the curvature is the same.

        Args:
            prior_precision: delta, positive; None maximises the marginal likelihood.
            noise_variance: sigma^2, positive; None maximises. Only for squared error.

        Raises:
            ValueError: A number that is none, or a noise variance of classes.
            ModelError: The marginal likelihood has no maximum.
            DataError: Every target is met exactly, and no noise variance is given.
        """
        for name, value in (("prior_precision", prior_precision), ("noise_variance", noise_variance)):
            check_positive(name, value)
        if noise_variance is not None and self.noise_variance is None:
            raise ValueError(
                f"noise_variance is {noise_variance}, which only squared error has; this loss is of classes. Leave it "
                "out."
            )
        prior, noise = self._evidence.chosen(prior_precision, noise_variance)
        return attrs.evolve(self, prior_precision=prior, noise_variance=None if self.noise_variance is None else noise)

    def __repr__(self) -> str:
        noise = "" if self.noise_variance is None else f", noise variance {self.noise_variance:.3g}"
        return (
            f"<Laplace posterior of {counted(self.size, 'weight')}: rank {self.rank:,} and diagonal, prior precision "
            f"{self.prior_precision:.3g}{noise}, log marginal likelihood {self.log_marginal_likelihood:.6g}>"
        )

    @property
    def mean(self) -> FloatArray:
        """w*, shape [d]: the weights in the order of `EmpiricalLoss.layout`."""
        return np.asarray(self._outputs.function.point, np.float64)

    @functools.cached_property
    def stddev(self) -> FloatArray:
        """Standard deviation of each weight, shape [d]."""
        stddev: FloatArray = np.sqrt(self._precision.inverse_diagonal())
        return stddev

    @functools.cached_property
    def posterior(self) -> Distribution:
        """N(w*, P^-1) as a `tfp.distributions.MultivariateNormalLinearOperator` over the flat weights, in float64.

        Samples and log densities take d * rank operations each; its own `covariance` and `stddev` take d^2 numbers.
        Weights drawn from it belong to the linearised net, not to the net itself, which they can leave in ruins.
        """
        import tensorflow_probability as tfp

        class Posterior(tfp.distributions.MultivariateNormalLinearOperator):  # type: ignore[misc]  # TFP has no types
            """N(w*, P^-1), whose densities are of all the weights of the net."""

            def log_prob(self, value: Data, name: str = "log_prob", **options: object) -> Tensor:
                shape, size = np.shape(value), int(self.event_shape[0])
                if shape[-1:] != (size,):
                    raise DataError(
                        f"log_prob got weights of shape {list(shape)}; the last axis must have all {size:,} of them, "
                        "in the order of `mean`."
                    )
                return super().log_prob(value, name, **options)

        operators, root = tf.linalg, np.sqrt(self._precision.diagonal)
        # P = F F' with F = D^1/2 (I + Q (S - I) Q'); its inverse transposed is the scale.
        inner = operators.LinearOperatorLowRankUpdate(
            operators.LinearOperatorIdentity(self.size, dtype=tf.float64),
            tf.constant(self._precision.directions),
            diag_update=tf.constant(np.maximum(np.sqrt(self._precision.stretch) - 1, np.finfo(np.float64).eps)),
            is_self_adjoint=True,
            is_positive_definite=True,
            is_diag_update_positive=True,
        )
        factor = operators.LinearOperatorComposition(
            [inner, operators.LinearOperatorDiag(tf.constant(root), is_positive_definite=True)], is_non_singular=True
        )
        scale = operators.LinearOperatorInversion(factor)
        return Posterior(tf.constant(self.mean), scale)

    def predictive(
        self, x: Data, *, method: Method = "monte-carlo", draws: int = 1000, seed: int = 0
    ) -> ClassPrediction | ValuePrediction:
        """The linearised predictive distribution: outputs f ~ N(f(x; w*), J P^-1 J'), J = df/dw at w*.

        Args:
            x: Inputs as `fit` takes them, without targets.
            method: Of probabilities: 'monte-carlo' averages over draws of f, to the standard error that it tells;
                'probit' divides the logits by (1 + pi/8 variance)^(1/2), which is an approximation, without the
                covariances between logits.
            draws: Draws of f for each example.
            seed: Seed for them.

        Returns:
            Probabilities of classes, or mean and variance of the targets for squared error.

        Raises:
            ValueError: An unknown method, or fewer than 2 draws.
            DataError: Inputs of another structure, or not finite.
            ModelError: The model cannot be called on them.
        """
        if method not in METHODS:
            raise ValueError(f"method must be {' or '.join(map(repr, METHODS))}, got {method!r}.")
        if not is_number(draws, whole=True) or draws < 2:
            raise ValueError(f"draws is {draws!r}; it must be a whole number, at least 2.")
        tensors = self._outputs.tensors(x)
        mean = self._outputs.values(tensors).astype(np.float64)
        count, width = mean.shape
        covariance = np.empty((count, width, width))
        identity = np.eye(width)
        for block in self._outputs.blocks(count, width):
            factors = np.broadcast_to(identity, (block.stop - block.start, width, width))
            rows = self._outputs.rows([each[block] for each in tensors], factors)
            covariance[block] = self._precision.inverse_quadratic(rows)
        if self.noise_variance is not None:
            variance = np.diagonal(covariance, axis1=1, axis2=2) + self.noise_variance
            return ValuePrediction(mean, variance, covariance, self.noise_variance)
        activation = ACTIVATIONS[self._family]
        if method == "probit":
            variances = np.maximum(np.diagonal(covariance, axis1=1, axis2=2), 0)
            probabilities = activation(mean / np.sqrt(1 + np.pi / 8 * variances))
            return ClassPrediction(probabilities, np.zeros_like(mean), mean, covariance, method, 0, seed)
        moments = [_averaged(activation, mean[k], covariance[k], draws, seed, k) for k in range(count)]
        probabilities, stderr = (np.array(each) for each in zip(*moments, strict=True))
        return ClassPrediction(probabilities, stderr, mean, covariance, method, draws, seed)


def softmax(z: FloatArray) -> FloatArray:
    return np.asarray(scipy.special.softmax(z, axis=-1))


ACTIVATIONS: dict[str, Callable[[FloatArray], FloatArray]] = {"softmax": softmax, "sigmoid": scipy.special.expit}


def _averaged(
    activation: Callable[[FloatArray], FloatArray],
    mean: FloatArray,
    covariance: FloatArray,
    draws: int,
    seed: int,
    example: int,
) -> tuple[FloatArray, FloatArray]:
    """Mean of activation(f) over draws of f ~ N(mean, covariance), and its standard error, shape [C] each."""
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(np.maximum(values, 0))
    normal = seeds.generator(seed, seeds.Stream.PREDICTIONS, example).standard_normal((draws, len(mean)))
    drawn = activation(mean + normal @ root.T)
    return drawn.mean(axis=0), drawn.std(axis=0, ddof=1) / math.sqrt(draws)


def check_positive(name: str, value: float | None) -> None:
    """Refuses what is neither None nor a positive number.

    Raises:
        ValueError: It is not.
    """
    if value is not None and not (is_number(value) and 0 < value < math.inf):
        raise ValueError(f"{name} is {value!r}; it must be positive and finite, or None to be found.")
