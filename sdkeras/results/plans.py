"""Plans: the work and cost of an analysis, or of a trajectory, before it starts."""

from __future__ import annotations

import attrs

from sdkeras.results.answers import DataInfo, OptimizerInfo
from sdkeras.results.shown import Shown


@attrs.frozen(kw_only=True, repr=False)
class Cost(Shown):
    """The costs that every plan states."""

    num_parameters: int  # analysed
    state_size: int  # dimension of the state of the map
    num_hvps: int  # products on one minibatch in all, as far as known before the start
    peak_memory: int  # bytes of the host's
    seconds: float  # from timed gradients and what tracing one took (for windows also from singular values)
    seconds_per_gradient: float
    optimizer: OptimizerInfo | None = None  # as the analysis would take it, with its learning rate
    data: DataInfo | None = None


@attrs.frozen(kw_only=True, repr=False)
class Plan(Cost):
    """The work of an analysis."""

    map: str  # whose Jacobian would be analysed
    num_batches: int  # minibatches of the data-set Hessian
    num_runs: int  # to start with; more follow until the tolerance is met
    num_steps: int | None  # of a run to start with; None for exact spectra
    num_hvps_pilot: int  # the part of `num_hvps` that the runs to start with take
    num_hvps_most: int | None  # the limit on products, up to which more runs follow; None without one
    num_hvps_runs_most: int | None = None  # of runs at most; None where as many follow as the tolerance asks for
    num_minibatches: int  # of the batch sharpness, a product each, to start with; more where they differ much
    num_minibatches_most: int
    num_snapshots: int | None = None  # of a supremum
    every: int | None = None  # steps between two of them
    preset: str = ""  # with the values of its options, in words
    held_fixed: str = ""  # what is random in data or model, and how it is held
    device: str = ""  # where products are made
    device_memory: int | None = None  # bytes of that of each, where it is not the host's

    @property
    def num_hvps_fixed(self) -> int:
        """The part of `num_hvps` that does not grow with what is measured."""
        return self.num_hvps - self.num_hvps_pilot - self.num_minibatches

    @property
    def most(self) -> int | None:
        """Products in all at most; None where the tolerance alone decides."""
        if self.num_hvps_runs_most is None:
            return None
        most = self.num_hvps_fixed + self.num_minibatches_most + self.num_hvps_runs_most
        return most if self.num_hvps_most is None else max(self.num_hvps, min(most, self.num_hvps_most))


@attrs.frozen(kw_only=True, repr=False)
class LyapunovPlan(Cost):
    """The work of following a trajectory."""

    num_exponents: int
    num_steps: int  # to average over
    transient: int  # steps before them
    windows: tuple[int, ...]  # their lengths; with any the Jacobians are dense
    forks: int = 1  # trajectories; of several the first is followed once more, with another start frame


@attrs.frozen(kw_only=True, repr=False)
class LossPlan(Cost):
    """The work of a measurement by forward passes."""

    what: str  # is measured
    num_evaluations: int  # losses, each over `num_batches` batches; about, where a search decides
    num_batches: int
    num_gradients: int  # over as many batches
