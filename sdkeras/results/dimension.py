"""Results of this room: the sharpness dimension, the exponents and the edge-of-stability verdict."""

from __future__ import annotations

import attrs
import numpy as np

from sdkeras.results.arrays import ARRAYS_EQUAL, FloatArray, Value, optional_interval
from sdkeras.results.measured import Measured


def _nothing() -> FloatArray:
    return np.zeros(0)


@attrs.frozen
class FrozenLyapunov:
    """The dimension if every step saw the same minibatch and the same P for ever ("frozen Lyapunov").

    ln |mu| of the eigenvalues mu of the step's blocks in place of the log singular values: the same in all
    coordinates and without the growth of a moment that momentum makes in stable directions. It is no Lyapunov
    exponent of training, whose steps differ.
    """

    dimension: float  # the formula of SD on ln |mu|, pooled over minibatches
    leading: float  # mean over minibatches of the largest ln |mu|; above 0 a step is unstable in the optimizer's sense


@attrs.frozen
class Sampled:
    """How an estimate of the sharpness dimension was sampled, and what its interval rests on.

    Each minibatch is one row. The mean over rows is a regression on control variates: bounded numbers of each example,
    from one pass over the data, whose expectation over minibatches is therefore known (see
    `sdkeras.dimension.controls`).
    """

    stderr: float | None  # of the value; at SD = 0 and d, of what the interval is from
    num_minibatches: int  # R, the rows
    num_probes: float  # K, random probes of each, on average
    num_controls: int  # p; 0: the mean itself
    no_controls: str  # why there are none, or ""
    num_steps: int | None  # steps of most runs; the others, the audits, have those of the estimate
    num_audits: int  # runs with all steps, which correct the rest; 0 where all runs have them
    audit: float | None  # mean over audits of what all steps change, in dimensions; it is added
    audit_stderr: float | None
    residual_variance: float | None  # s^2 of a row's dimension about the regression; None below 2 rows
    raw_variance: float | None  # the same about the mean
    skewness: float  # of the residuals


@attrs.frozen
class SharpnessDimension:
    """One estimate of the sharpness dimension (SD) with everything needed to judge it.

    `value` and `interval` are for the pooled SD (the SD of the mixture over minibatches);
    `definition_value` is Definition 4.1-4.2's, from exact spectra only; `definition_interval` brackets it.
    Fields that have no value (no threshold exponent at SD = 0 or d, no interval below 3 runs) are None.
    """

    value: float  # pooled SD, in dimensions, between 0 and state_size
    # 95 %, at the number of steps used.
    interval: tuple[float, float] | None = attrs.field(converter=optional_interval)
    codimension: float  # state_size - value; neutral directions and dead parameters do not change it
    codimension_interval: tuple[float, float] | None = attrs.field(converter=optional_interval)
    definition_value: float | None  # SD of the averaged order statistics (Def. 4.1), exact spectra only
    definition_interval: tuple[float, float] | None = attrs.field(converter=optional_interval)
    quantile_average: float | None  # SD of the average of the runs' quantile functions; at most `value`
    j_star: float  # mass of the exponents up to the last with a non-negative cumulative sum
    threshold_exponent: float | None  # t*, the exponent just beyond j_star; SD is where it tips the sum
    expansion: float  # E+, the sum of the positive exponents
    expansion_negative_curvature: float  # its part from negative curvature
    expansion_unstable: float  # its part from eigenvalues above the optimizer's own stability threshold
    neutral_mass: float | None  # n0, the mass with |z| < 1e-3 |t*|
    # E+/n0: what the mean of the neutral exponents would have to be wrong by to change the answer; None where
    # neutral_mass is 0 (the margin is infinite) or None.
    margin: float | None
    # rho = r * (alpha_max - alpha_min) / |t*|, r = |dz/dalpha| at alpha = 0: eta, or eta/(1 - momentum) for SGD and
    # RMSprop with momentum. The steps needed grow with its root.
    resolution: float | None
    map: str  # whose Jacobian was analysed, see `sdkeras.dimension.exponents.ExponentMap`
    coordinates: str  # that its singular values refer to
    state_size: int  # d of the state analysed: the n parameters, or 2n with the velocity of momentum
    estimator: str
    num_runs: int  # independent (minibatch and probe)
    num_steps: int | None  # Lanczos steps of a run; None for exact spectra
    num_hvps: int  # discarded runs included
    # Running value, half-width of its interval and number of runs at each checkpoint of the adaptive loop, shape [k].
    history: FloatArray = attrs.field(factory=_nothing, eq=ARRAYS_EQUAL, repr=False)
    history_half_width: FloatArray = attrs.field(factory=_nothing, eq=ARRAYS_EQUAL, repr=False)
    history_runs: FloatArray = attrs.field(factory=_nothing, eq=ARRAYS_EQUAL, repr=False)
    frozen_lyapunov: FrozenLyapunov | None = None  # None without momentum, where |mu| = sigma
    # The estimator's own fields by name, as the runs began (`num_steps` above is theirs at the end).
    settings: dict[str, Value] = attrs.field(factory=dict)
    sampled: Sampled | None = None  # None in files of version 0.1


@attrs.frozen
class Supremum:
    """SD with the supremum of Definition 4.1, over snapshots of training from the checkpoint on.

    Snapshot 0 is the checkpoint, snapshot s the state s * every steps of the real optimizer later. For each minibatch
    (the same one with the same masks at every snapshot) and each k the k-th largest exponent is the maximum over the
    snapshots; these are averaged over minibatches, and SD is that of the averages. Each snapshot has the map of
    `SharpnessDimension.map` with its own learning rate and its own frozen preconditioner: preconditioned coordinates
    move with it, so that there the maximum compares exponents in coordinates that differ by as much as P has changed.

    It is a lower bound on the definition's SD: an attractor has more points than snapshots.
    """

    value: float  # in dimensions; at least as large as each of `per_snapshot_values`
    # 95 %, over minibatches for these snapshots; None below 3 minibatches.
    interval: tuple[float, float] | None = attrs.field(converter=optional_interval)
    codimension: float  # state_size - value
    num_snapshots: int  # that it was taken over
    num_snapshots_asked: int
    every: int  # steps between two
    steps: tuple[int, ...]  # from the checkpoint to each snapshot
    learning_rates: tuple[float, ...]  # of the step from each snapshot
    num_minibatches: int  # averaged over
    single_point_value: float  # from snapshot 0 alone: same minibatches, same estimator
    per_snapshot_values: FloatArray = attrs.field(eq=ARRAYS_EQUAL)  # from each snapshot alone
    # True for quadrature rules, whose errors a maximum turns into a bias upwards; False for exact spectra.
    approximate: bool
    estimator: str
    num_hvps: int  # beyond those of the single-point estimate, whose runs are snapshot 0
    map: str  # this and the next two: see `SharpnessDimension`
    coordinates: str
    state_size: int
    stopped_at: int | None = None  # step at which the trajectory diverged, from 1 at the checkpoint; None if it did not
    num_probes: int = 1  # of each minibatch, whose quantile functions are averaged before the maximum
    # What half as many probes give more: as much is about what the value is too high by. None with one probe.
    probe_bias: float | None = None

    def __attrs_post_init__(self) -> None:
        lengths = {len(self.steps), len(self.learning_rates), len(self.per_snapshot_values)}
        if self.num_snapshots < 1 or lengths != {self.num_snapshots}:
            raise ValueError(f"Supremum: {self.num_snapshots} snapshots, and lists beside them of {sorted(lengths)}.")


@attrs.frozen
class RdsSharpness:
    """RDS sharpness exponents lambda_k of the minibatch Jacobians (Def. 4.1), descending in k."""

    leading: FloatArray = attrs.field(eq=ARRAYS_EQUAL)  # lambda_1 .. lambda_32 (fewer when the state is smaller)
    levels: FloatArray = attrs.field(eq=ARRAYS_EQUAL)  # k/d of the exponents in `values`, at most 512
    values: FloatArray = attrs.field(eq=ARRAYS_EQUAL)  # lambda at these levels


@attrs.frozen
class MeanSquareStability:
    """Whether the minibatch noise destabilises plain SGD: unstable in mean square iff kappa > 1.

    kappa = (eta / 2) max over C >= 0 of E tr(C K_B C K_B) / tr(C^2 K), with K_B >= 0 the Gauss-Newton matrix of a
    minibatch, weight decay included, and K its mean. The value is for one C, within the span of a few directions and
    chosen on other minibatches: a lower bound, so that above 1 it says unstable and below 1 only that no instability
    was found there.
    """

    kappa: Measured | None  # None where it was not measured, and `reason` says why
    max_learning_rate: (
        float | None
    )  # eta / kappa, at which noise makes SGD unstable: an upper bound, kappa being a lower
    num_minibatches: int = 0  # in all: those that C was chosen on, and those of the interval
    num_directions: int = 0  # of the span
    num_hvps: int = 0  # Gauss-Newton products, verification included
    reason: str = ""


@attrs.frozen
class GradientNoise:
    """Noise of the minibatch gradients g_B along u, the unit top eigenvector of the threshold's own operator.

    For P^-1/2 H P^-1/2 the gradients are P^-1/2 g_B, those of its coordinates.
    """

    mean: Measured  # of u'g_B over minibatches
    deviation: Measured  # standard deviation of u'g_B
    share: Measured  # of the variance of u'g_B in tr Cov(g_B): 1 where all noise lies on u
    num_minibatches: int


@attrs.frozen
class Plateau:
    """A level at which the batch sharpness is reported to settle."""

    level: float
    formula: str
    minibatches: str  # 'small', 'large', or 'any'


@attrs.frozen
class EdgeOfStability:
    """Where the training stands relative to its optimizer's stability threshold."""

    operator: str  # the threshold's own: 'H' or 'P^-1/2 H P^-1/2'
    sharpness: float | None  # its largest eigenvalue over the data set
    threshold: float | None  # upper stability threshold for that eigenvalue, or None where none is known
    ratio: float | None  # sharpness / threshold
    batch_sharpness: float | None  # mean over minibatches of g'Hg/|g|^2 (Andreyev and Beneventano 2024)
    # Its standard error over minibatches, as if they were independent; those of one epoch partition the data, which
    # makes it rather too large.
    batch_sharpness_stderr: float | None
    verdict: str  # one sentence
    # Mean of g'Hg over mean of |g|^2, which gives large gradients more weight; its standard error by the delta method.
    batch_sharpness_ratio_of_means: float | None = None
    batch_sharpness_ratio_of_means_stderr: float | None = None
    batch_sharpness_minibatches: int | None = None  # that both are from; None in files of version 0.1
    batch_sharpness_skipped: float | None = None  # share of the minibatches whose gradient is 0, which have no ratio
    # The relative standard error of `batch_sharpness` at which no more minibatches are taken, by the tolerance; None in
    # earlier files.
    batch_sharpness_target: float | None = None
    sharpness_residual: float | None = None  # of the eigenvalue, which lies within it; None in files of version 0.1
    sharpness_converged: bool = True  # whether the residual met its tolerance
    gradient_noise: GradientNoise | None = None  # None without the eigenvector, or below 2 minibatches
    mean_square_stability: MeanSquareStability | None = None  # None where it was not asked for
    # Where the batch sharpness settles with this optimizer, ascending: 2/eta for SGD, two levels with momentum; ()
    # where no level is known or a minibatch is all of the data, and in earlier files.
    plateaus: tuple[Plateau, ...] = ()
