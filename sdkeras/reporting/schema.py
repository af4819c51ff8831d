"""The whole answer of an analysis and its JSON form (schema version 1)."""

from __future__ import annotations

import attrs
import numpy as np

from sdkeras.dimension.records import EdgeOfStability, RdsSharpness, SharpnessDimension, Warning
from sdkeras.records import FloatArray, Verification

SCHEMA_VERSION = 1


@attrs.frozen
class Provenance:
    """What made this answer, and what it cost.

    Attributes:
        sdkeras, tensorflow, keras, python: Versions.
        device: Name of the device the products ran on.
        seed: Seed of everything random.
        dtype: Precision of the products.
        num_hvps: All Hessian-vector products, verification and discarded runs included.
        seconds: Wall time.
        data_digest: SHA-256 over the data as they were read (first 16 hex digits).
        created: UTC time, ISO 8601.
    """

    sdkeras: str
    tensorflow: str
    keras: str
    python: str
    device: str
    seed: int
    dtype: str
    num_hvps: int
    seconds: float
    data_digest: str
    created: str


@attrs.frozen
class ModelInfo:
    """The model: parameters in all trainable variables, and in those analysed."""

    name: str
    num_parameters: int
    num_trainable_analysed: int
    mode: str
    loss: str
    unconnected: tuple[str, ...] = ()


@attrs.frozen
class DataInfo:
    """num_samples in the data; the data-set Hessian ran on num_samples_hessian of them."""

    num_samples: int
    batch_size: int
    num_samples_hessian: int


@attrs.frozen
class OptimizerInfo:
    """The optimizer as the file has it; None where it has no such setting or where none was compiled."""

    name: str
    learning_rate: float
    momentum: float | None = None
    weight_decay: float | None = None
    iterations: int | None = None
    nesterov: bool | None = None
    learning_rate_source: str = "file"


@attrs.frozen
class Measured:
    """A number with its evidence: `residual` for an eigenvalue, `stderr` for a trace."""

    value: float
    converged: bool
    residual: float | None = None
    stderr: float | None = None


@attrs.frozen
class HessianSummary:
    """Of the data-set Hessian: largest and smallest eigenvalue, and trace."""

    largest: Measured | None
    smallest: Measured | None
    trace: Measured | None


@attrs.frozen
class SpectrumSummary:
    """The pooled spectrum of the minibatch Hessians: sum of weights[j] * delta(nodes[j]), total mass d."""

    nodes: FloatArray = attrs.field(eq=attrs.cmp_using(eq=np.array_equal))
    weights: FloatArray = attrs.field(eq=attrs.cmp_using(eq=np.array_equal))


@attrs.frozen
class Analysis:
    """The whole answer; attribute names are the paths in run.json.

    `sharpness_dimension` is the first of `estimates` (exact when asked for, else slq).
    """

    provenance: Provenance
    model: ModelInfo
    data: DataInfo
    optimizer: OptimizerInfo
    verification: Verification
    hessian: HessianSummary
    sharpness_dimension: SharpnessDimension | None
    estimates: tuple[SharpnessDimension, ...]
    rds_sharpness: RdsSharpness | None
    edge_of_stability: EdgeOfStability
    spectrum: SpectrumSummary | None
    warnings: tuple[Warning, ...] = ()
    partial: bool = False
    schema_version: int = SCHEMA_VERSION


@attrs.frozen
class Plan:
    """What an analysis would do and cost, before it does it (`--dry-run`).

    Attributes:
        num_parameters: Parameters analysed.
        state_size: Dimension of the state of the map.
        map: The map whose Jacobian would be analysed.
        num_batches: Minibatches of the data-set Hessian.
        num_runs: Runs to start with; more follow until the tolerance is met.
        num_steps: Steps of a run to start with; None for exact spectra.
        num_hvps: Products on one minibatch in all, as far as known before the start.
        peak_memory: Bytes.
        seconds: Estimated from one timed gradient.
        seconds_per_gradient: That gradient.
    """

    num_parameters: int
    state_size: int
    map: str
    num_batches: int
    num_runs: int
    num_steps: int | None
    num_hvps: int
    peak_memory: int
    seconds: float
    seconds_per_gradient: float
