"""Results of this room: the sharpness dimension, the exponents and the edge-of-stability verdict."""

from __future__ import annotations

import attrs
import numpy as np

from sdkeras.results.arrays import ARRAYS_EQUAL, FloatArray, Value, optional_interval


@attrs.frozen
class FrozenLyapunov:
    """The dimension if every step saw the same minibatch and the same P for ever ("frozen Lyapunov").

    ln |mu| of the eigenvalues mu of the step's blocks in place of the log singular values: the same in all
    coordinates and without the growth of a moment that momentum makes in stable directions. It is no Lyapunov
    exponent of training, whose steps differ.

    Attributes:
        dimension: The formula of SD on ln |mu|, pooled over minibatches.
        leading: Mean over minibatches of the largest ln |mu|; above 0 a step is unstable in the optimizer's own sense.
    """

    dimension: float
    leading: float


@attrs.frozen
class SharpnessDimension:
    """One estimate of the sharpness dimension (SD) with everything needed to judge it.

    `value` and `interval` are for the pooled SD (the SD of the mixture over minibatches);
    `definition_value` is Definition 4.1-4.2's, from exact spectra only; `definition_interval` brackets it.
    Fields that have no value (no threshold exponent at SD = 0 or d, no interval below 3 runs) are None.

    Attributes:
        value: Pooled SD, in dimensions, between 0 and state_size.
        interval: 95 % confidence interval of the pooled SD at the number of steps used.
        codimension: state_size - value; neutral directions and dead parameters do not change it.
        codimension_interval: Its interval.
        definition_value: SD of the averaged order statistics (Def. 4.1), exact spectra only.
        definition_interval: An interval for the definition's value.
        quantile_average: SD of the average of the runs' quantile functions; at most `value`.
        j_star: Mass of the exponents up to the last with a non-negative cumulative sum.
        threshold_exponent: t*, the exponent just beyond j_star; SD is where it tips the sum.
        expansion: E+, the sum of the positive exponents.
        expansion_negative_curvature: Its part from negative curvature.
        expansion_unstable: Its part from eigenvalues above the optimizer's own stability threshold.
        neutral_mass: n0, the mass with |z| < 1e-3 |t*|.
        margin: E+/n0: what the mean of the neutral exponents would have to be wrong by to change the answer;
            None where neutral_mass is 0 (the margin is infinite) or None.
        resolution: rho = r * (alpha_max - alpha_min) / |t*|, r = |dz/dalpha| at alpha = 0: eta, or
            eta/(1 - momentum) for SGD and RMSprop with momentum. The steps needed grow with its root.
        map: The map whose Jacobian was analysed, see `sdkeras.dimension.exponents.ExponentMap`.
        coordinates: The coordinates its singular values refer to.
        state_size: Dimension d of the state analysed: the n parameters, or 2n with the velocity of momentum.
        estimator: Spectrum estimator.
        num_runs: Independent runs (minibatch and probe).
        num_steps: Lanczos steps of a run; None for exact spectra.
        num_hvps: Products spent, discarded runs included.
        history: Running value, one entry per checkpoint of the adaptive loop, shape [k].
        history_half_width: Half-width of the interval at the same points, shape [k].
        history_runs: Number of runs at the same points, shape [k].
        frozen_lyapunov: The same from eigenvalues of the step's blocks; None without momentum, where |mu| = sigma.
        settings: The estimator's own fields by name, as the runs began (`num_steps` above is theirs at the end).
    """

    value: float
    interval: tuple[float, float] | None = attrs.field(converter=optional_interval)
    codimension: float
    codimension_interval: tuple[float, float] | None = attrs.field(converter=optional_interval)
    definition_value: float | None
    definition_interval: tuple[float, float] | None = attrs.field(converter=optional_interval)
    quantile_average: float | None
    j_star: float
    threshold_exponent: float | None
    expansion: float
    expansion_negative_curvature: float
    expansion_unstable: float
    neutral_mass: float | None
    margin: float | None
    resolution: float | None
    map: str
    coordinates: str
    state_size: int
    estimator: str
    num_runs: int
    num_steps: int | None
    num_hvps: int
    history: FloatArray = attrs.field(factory=lambda: np.zeros(0), eq=ARRAYS_EQUAL, repr=False)
    history_half_width: FloatArray = attrs.field(factory=lambda: np.zeros(0), eq=ARRAYS_EQUAL, repr=False)
    history_runs: FloatArray = attrs.field(factory=lambda: np.zeros(0), eq=ARRAYS_EQUAL, repr=False)
    frozen_lyapunov: FrozenLyapunov | None = None
    settings: dict[str, Value] = attrs.field(factory=dict)


@attrs.frozen
class Supremum:
    """SD with the supremum of Definition 4.1, over snapshots of training from the checkpoint on.

    Snapshot 0 is the checkpoint, snapshot s the state s * every steps of the real optimizer later. For each minibatch
    (the same one with the same masks at every snapshot) and each k the k-th largest exponent is the maximum over the
    snapshots; these are averaged over minibatches, and SD is that of the averages. Each snapshot has the map of
    `SharpnessDimension.map` with its own learning rate and its own frozen preconditioner: preconditioned coordinates
    move with it, so that there the maximum compares exponents in coordinates that differ by as much as P has changed.

    It is a lower bound on the definition's SD: an attractor has more points than snapshots.

    Attributes:
        value: In dimensions; at least as large as each of `per_snapshot_values`.
        interval: 95 % confidence interval over minibatches for these snapshots; None below 3 minibatches.
        codimension: state_size - value.
        num_snapshots: Snapshots that it was taken over.
        num_snapshots_asked: Snapshots that were asked for.
        every: Steps between two.
        steps: Steps from the checkpoint to each snapshot.
        learning_rates: Learning rate of the step from each snapshot.
        num_minibatches: Minibatches averaged over.
        single_point_value: From snapshot 0 alone: same minibatches, same estimator.
        per_snapshot_values: From each snapshot alone.
        approximate: True for quadrature rules, whose errors a maximum turns into a bias upwards; False for exact
            spectra. Measured on digits nets with d of 760 and 1,520, four snapshots: the rise over the checkpoint came
            out 1.2, 1.3 and 2.2 times the exact one (SGD, AdamW, momentum), 2 to 8 dimensions too high.
        estimator: Spectrum estimator.
        num_hvps: Products spent beyond those of the single-point estimate, whose runs are snapshot 0.
        map, coordinates, state_size: See `SharpnessDimension`.
        stopped_at: Step at which the trajectory diverged, counted from 1 at the checkpoint; None if it did not.
    """

    value: float
    interval: tuple[float, float] | None = attrs.field(converter=optional_interval)
    codimension: float
    num_snapshots: int
    num_snapshots_asked: int
    every: int
    steps: tuple[int, ...]
    learning_rates: tuple[float, ...]
    num_minibatches: int
    single_point_value: float
    per_snapshot_values: FloatArray = attrs.field(eq=ARRAYS_EQUAL)
    approximate: bool
    estimator: str
    num_hvps: int
    map: str
    coordinates: str
    state_size: int
    stopped_at: int | None = None

    def __attrs_post_init__(self) -> None:
        lengths = {len(self.steps), len(self.learning_rates), len(self.per_snapshot_values)}
        if self.num_snapshots < 1 or lengths != {self.num_snapshots}:
            raise ValueError(f"Supremum: {self.num_snapshots} snapshots, and lists beside them of {sorted(lengths)}.")


@attrs.frozen
class RdsSharpness:
    """RDS sharpness exponents lambda_k of the minibatch Jacobians (Def. 4.1), descending in k.

    Attributes:
        leading: lambda_1 .. lambda_32 (fewer when the state is smaller).
        levels: k/d of the exponents in `values`, at most 512.
        values: lambda at these levels.
    """

    leading: FloatArray = attrs.field(eq=ARRAYS_EQUAL)
    levels: FloatArray = attrs.field(eq=ARRAYS_EQUAL)
    values: FloatArray = attrs.field(eq=ARRAYS_EQUAL)


@attrs.frozen
class EdgeOfStability:
    """Where the training stands relative to its optimizer's stability threshold.

    Attributes:
        operator: The threshold's own operator: 'H' or 'P^-1/2 H P^-1/2'.
        sharpness: Its largest eigenvalue over the data set.
        threshold: Upper stability threshold for that eigenvalue, or None where none is known.
        ratio: sharpness / threshold.
        batch_sharpness: Mean over minibatches of g'Hg/|g|^2 (Andreyev and Beneventano 2024), or None.
        batch_sharpness_stderr: Its standard error over minibatches, as if they were independent; those of one epoch
            partition the data, which makes it rather too large.
        verdict: One sentence.
        batch_sharpness_ratio_of_means: Mean of g'Hg over mean of |g|^2, which gives large gradients more weight.
        batch_sharpness_ratio_of_means_stderr: Its standard error, by the delta method.
        batch_sharpness_minibatches: Minibatches that both are from, None in files of version 0.1.
        batch_sharpness_skipped: Share of the minibatches whose gradient is 0, which have no ratio.
    """

    operator: str
    sharpness: float | None
    threshold: float | None
    ratio: float | None
    batch_sharpness: float | None
    batch_sharpness_stderr: float | None
    verdict: str
    batch_sharpness_ratio_of_means: float | None = None
    batch_sharpness_ratio_of_means_stderr: float | None = None
    batch_sharpness_minibatches: int | None = None
    batch_sharpness_skipped: float | None = None
