"""Plans: the work and cost of an analysis, or of a trajectory, before it starts."""

from __future__ import annotations

import attrs

from sdkeras.results.answers import DataInfo, OptimizerInfo


@attrs.frozen(kw_only=True)
class Cost:
    """The costs that every plan states.

    Attributes:
        num_parameters: Parameters analysed.
        state_size: Dimension of the state of the map.
        num_hvps: Products on one minibatch in all, as far as known before the start.
        peak_memory: Bytes.
        seconds: Estimated from one timed gradient (and for windows from the singular values of one matrix).
        seconds_per_gradient: Time of that gradient.
        optimizer: Optimizer as the analysis would take it, with its learning rate.
        data: Samples and batch size.
    """

    num_parameters: int
    state_size: int
    num_hvps: int
    peak_memory: int
    seconds: float
    seconds_per_gradient: float
    optimizer: OptimizerInfo | None = None
    data: DataInfo | None = None


@attrs.frozen(kw_only=True)
class Plan(Cost):
    """The work of an analysis.

    Attributes:
        map: The map whose Jacobian would be analysed.
        num_batches: Minibatches of the data-set Hessian.
        num_runs: Runs to start with; more follow until the tolerance is met.
        num_steps: Steps of a run to start with; None for exact spectra.
        num_snapshots: Snapshots of a supremum, or None.
        every: Steps between two of them.
        num_hvps_pilot: The part of `num_hvps` that the runs to start with take.
        num_hvps_most: The limit on products, up to which more runs follow; None without one.
    """

    map: str
    num_batches: int
    num_runs: int
    num_steps: int | None
    num_hvps_pilot: int
    num_hvps_most: int | None
    num_snapshots: int | None = None
    every: int | None = None


@attrs.frozen(kw_only=True)
class LyapunovPlan(Cost):
    """The work of following a trajectory.

    Attributes:
        num_exponents: Exponents.
        num_steps: Steps to average over.
        transient: Steps before them.
        windows: Lengths of windows; with any the Jacobians are dense.
    """

    num_exponents: int
    num_steps: int
    transient: int
    windows: tuple[int, ...]
