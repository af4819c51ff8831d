"""The answers of the commands; attribute names are the paths in their JSON files."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeAlias

import attrs

from sdkeras.files.atomic import shown
from sdkeras.results.arrays import ARRAYS_EQUAL, FloatArray, optional_interval
from sdkeras.results.bounds import Bound
from sdkeras.results.critical import CriticalStep
from sdkeras.results.dimension import EdgeOfStability, RdsSharpness, SharpnessDimension, Supremum
from sdkeras.results.document import SCHEMA_VERSION, Document, parsed_document, text_of
from sdkeras.results.earlier import Earlier
from sdkeras.results.landscape import Landscape, WorstCase
from sdkeras.results.lyapunov import LyapunovSummary
from sdkeras.results.measured import Measured
from sdkeras.results.next_step import NextStep
from sdkeras.results.note import Note
from sdkeras.results.progress import STATUS
from sdkeras.results.shown import face
from sdkeras.results.verification import Verification

if TYPE_CHECKING:
    from pandas import DataFrame

_IS_A_STATUS = attrs.validators.in_(("", *STATUS.values()))


@attrs.frozen
class Provenance:
    """The software, device and seed behind an answer, and its cost."""

    sdkeras: str
    tensorflow: str
    keras: str
    python: str
    device: str  # that the products ran on
    seed: int  # of all random draws
    dtype: str  # of the products
    num_hvps: int  # Hessian-vector products, verification and discarded runs included
    seconds: float  # wall time
    data_digest: str  # SHA-256 over the data as they were read (first 16 hex digits)
    created: str  # UTC, ISO 8601
    preset: str = ""  # of the options that were left out; "" where there is none, and in files of version 0.1


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
class Draws:
    """Several draws of what is random in the data or the model, over which the data-set Hessian is the mean.

    Attributes:
        count: How many.
        of: What was drawn: 'passes' over the data, each read anew (and masks with them), or 'masks' of the model alone.
        largest: The largest eigenvalue of each draw's Hessian.
        spread: Standard deviation of these; None below two.
    """

    count: int
    of: str
    largest: tuple[float, ...]
    spread: float | None


@attrs.frozen
class DataInfo:
    """num_samples in the data; the data-set Hessian ran on num_samples_hessian of them."""

    num_samples: int
    batch_size: int
    num_samples_hessian: int
    batch_size_source: str = ""  # 'given', 'dataset', 'assumed', or "" where it is not known
    class_weight: dict[str, float] | None = None
    micro_batch: int | None = None  # examples of the parts in which batches were computed
    draws: Draws | None = None  # where several were asked for


@attrs.frozen
class OptimizerPart:
    """One of the optimizers in a MultiOptimizer."""

    name: str
    learning_rate: float


@attrs.frozen
class OptimizerInfo:
    """The optimizer as the file has it; None where it has no such setting or where none was compiled."""

    name: str
    learning_rate: float  # of the analysed step; NaN where the optimizer has none or several
    momentum: float | None = None
    weight_decay: float | None = None
    iterations: int | None = None
    nesterov: bool | None = None
    learning_rate_source: str = "file"  # or 'given', or 'peak', 'mean' or 'step:N' of its schedule
    learning_rate_missing: str = ""  # why nothing that needs a learning rate was computed; "" where it was
    parts: tuple[OptimizerPart, ...] = ()  # that a MultiOptimizer trains variables with
    peak_learning_rate: float | None = None  # of its schedule, over 2,000 of the steps so far; None without one


@attrs.frozen
class HessianSummary:
    """Extreme eigenvalues and trace of the data-set Hessian."""

    largest: Measured | None  # algebraically, which is what `sharpness` means here
    smallest: Measured | None  # algebraically
    trace: Measured | None
    # The largest absolute value of an eigenvalue, the sharpness of the paper's tables: it differs from `largest` where
    # negative curvature is steeper, as it may be early in training. None in files of version 0.1.
    largest_absolute: Measured | None = None

    @property
    def steepest_is_negative(self) -> bool:
        """Whether the eigenvalue of largest absolute value is the smallest one."""
        absolute, largest = self.largest_absolute, self.largest
        return absolute is not None and largest is not None and absolute.value > largest.value


@attrs.frozen
class SpectrumSummary:
    """The pooled spectrum of the minibatches' operators: sum of weights[j] * delta(nodes[j]), total mass n."""

    nodes: FloatArray = attrs.field(eq=ARRAYS_EQUAL)  # eigenvalues, ascending, shape [k]
    weights: FloatArray = attrs.field(eq=ARRAYS_EQUAL)  # their masses, shape [k]
    # 'H' or 'P^-1/2 H P^-1/2', whose eigenvalues they are; with ' + W' the weight decay W of each parameter is in it.
    operator: str = "H"
    # Log singular values of the training step at each node: the larger of each node, and with momentum then the
    # smaller of each, shape [k] or [2 k]. None without a learning rate, and in files of version 0.1.
    exponents: FloatArray | None = attrs.field(default=None, eq=ARRAYS_EQUAL)
    # With momentum ln |mu| of the eigenvalues mu of the step's blocks, shape [2 k] like `exponents`.
    log_moduli: FloatArray | None = attrs.field(default=None, eq=ARRAYS_EQUAL)


@attrs.frozen
class LayerSharpness:
    """The diagonal block of one layer's parameters in the Hessian; None where the budget left no room."""

    name: str  # path of the layer
    num_parameters: int
    largest: Measured | None  # eigenvalue of the block of the data-set Hessian
    trace: Measured | None  # the layers' traces sum to the whole one's
    # Codimension of the block's own SD (pooled) under the run's map, as if the other layers stood still; with momentum
    # the block's velocity is in it. With its 95 % interval.
    codimension: float | None
    codimension_interval: tuple[float, float] | None


@attrs.frozen
class AtInit:
    """The same net at initialisation, for a scale: new weights, the same data, batch size and learning rate.

    None where a number has no counterpart in the analysis beside it, and `reason` says why.
    """

    sharpness: Measured | None  # algebraically largest eigenvalue of the data-set Hessian H
    ratio: float | None  # over the threshold, where that is one for H
    sharpness_dimension: SharpnessDimension | None  # in the same map and coordinates
    num_hvps: int  # of all three
    reason: str = ""

    @property
    def when(self) -> str:
        """The time, in words."""
        return "at initialisation"

    @property
    def codimension(self) -> Measured | None:
        """The rest of the state."""
        found = self.sharpness_dimension
        return None if found is None else Measured(found.codimension, True, interval=found.codimension_interval)


# In words and in formulas.
MATRICES = {"ggn": ("Gauss-Newton matrix", "G"), "fisher": ("Fisher matrix", "F")}


@attrs.frozen
class Expansion:
    """E+, the sum of the positive exponents, with another matrix in the place of the Hessian, beside the Hessian's own.

    Both are of the same minibatches, probes, estimator, number of steps and map. Intervals are of 95 %, over
    minibatches; None below 3 runs.
    """

    value: float  # E+ of the other matrix
    interval: tuple[float, float] | None = attrs.field(converter=optional_interval)
    negative_curvature: float  # its part from negative curvature
    unstable: float  # its part from eigenvalues above the optimizer's own stability threshold
    hessian: float  # E+ of the Hessian in the same runs
    hessian_interval: tuple[float, float] | None = attrs.field(converter=optional_interval)
    # E+ of the Hessian less that of the other; not a share of it, since E+ is not additive. Its interval is of the
    # differences run by run.
    difference: float
    difference_interval: tuple[float, float] | None = attrs.field(converter=optional_interval)
    num_runs: int
    num_steps: int | None  # None for exact spectra
    rounding: float  # E+ of the other that rounding of the products may have made of neutral directions, at most

    @property
    def is_resolved(self) -> bool:
        """Whether E+ of the other is more than rounding."""
        return self.value > self.rounding


@attrs.frozen
class OperatorSpectrum:
    """Another curvature matrix of the same loss, measured as the Hessian was; None where the budget left no room.

    kind: 'ggn', the Gauss-Newton matrix G = J' H_out J, or 'fisher', the Fisher information matrix, exactly.
    """

    kind: str
    largest: Measured | None  # eigenvalue over the data set
    smallest: Measured | None
    trace: Measured | None
    # Of minibatches, in the map's coordinates, as `Analysis.spectrum` is.
    spectrum: SpectrumSummary | None = attrs.field(repr=False)
    expansion: Expansion | None  # None without a learning rate too
    verification: Verification
    num_hvps: int  # products of these measurements, without those of the verification

    @property
    def name(self) -> str:
        """The matrix in words."""
        return MATRICES[self.kind][0]

    @property
    def symbol(self) -> str:
        """Its letter in formulas."""
        return MATRICES[self.kind][1]


class Answer(Document):
    """An answer whose measured numbers make a table."""

    def summary(self) -> DataFrame:
        """Every measured number, one row each, by its path in the JSON file.

        Returns:
            A `pandas.DataFrame` with the columns value, lower and upper (where the number lies, NaN without an error
            bar), evidence (the source of these two: 'interval' of 95 %, 'standard error', of which they are 1.96
            away, 'residual', 'bracket', 'exact' or 'none'), remark (a caveat, or "") and meaning.

        Raises:
            SdkerasError: pandas is not installed.
        """
        return face("data_tables").summary(self)


@attrs.frozen(eq=False, repr=False)
class Analysis(Answer):
    """The whole answer; attribute names are the paths in run.json.

    `sharpness_dimension` is the first of `estimates` (exact when asked for, else slq), at the checkpoint; `supremum` is
    over snapshots of training from there on, where they were asked for. `operators` are other curvature matrices of the
    same loss, everything else is the Hessian's. `next_steps` are at most three, the most important first, see
    `sdkeras.dimension.next_steps`. `partial` is whether Ctrl-C ended it; `status` is 'finished', 'interrupted', or the
    limit that left something out: 'limit on products', 'time limit'; ""
    in files of version 0.1.
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
    bounds: tuple[Bound, ...] = ()
    layers: tuple[LayerSharpness, ...] = ()
    lyapunov: LyapunovSummary | None = None
    supremum: Supremum | None = None
    at_init: AtInit | None = None
    operators: tuple[OperatorSpectrum, ...] = ()  # beside the Hessian, where they were asked for
    earlier: Earlier | None = None  # where a log of the training was given or, in the callback's report, is kept
    warnings: tuple[Note, ...] = ()
    next_steps: tuple[NextStep, ...] = ()  # () in files of version 0.1
    partial: bool = False
    status: str = attrs.field(default="", validator=_IS_A_STATUS)
    schema_version: int = SCHEMA_VERSION


@attrs.frozen(eq=False, repr=False)
class LyapunovRun(Answer):
    """The answer of `sdkeras.lyapunov`; attribute names are the paths in its file.

    The checks ran on `data.num_samples_hessian` of the training data. `verification` is of the Hessian-vector products
    in the step's Jacobian; `lyapunov.verification` has the checks of the step. `partial` is whether Ctrl-C or a limit
    ended it before the steps that were asked for, `status` which, see `Analysis`.
    """

    DOCUMENT = "lyapunov"
    WRITTEN_BY = ("lyapunov.json", "sdkeras lyapunov")

    provenance: Provenance
    model: ModelInfo
    data: DataInfo
    optimizer: OptimizerInfo
    verification: Verification
    lyapunov: LyapunovSummary
    warnings: tuple[Note, ...] = ()
    partial: bool = False
    status: str = attrs.field(default="", validator=_IS_A_STATUS)
    schema_version: int = SCHEMA_VERSION


@attrs.frozen(eq=False, repr=False)
class CriticalRun(Answer):
    """The answer of `sdkeras.critical`; attribute names are the paths in its file.

    The loss was taken over `data.num_samples_hessian` of the data, or over minibatches. `partial` is whether Ctrl-C
    ended it before all of these.
    """

    DOCUMENT = "critical"
    WRITTEN_BY = ("critical.json", "sdkeras critical")

    provenance: Provenance
    model: ModelInfo
    data: DataInfo
    optimizer: OptimizerInfo
    critical: CriticalStep
    warnings: tuple[Note, ...] = ()
    partial: bool = False
    status: str = attrs.field(default="", validator=_IS_A_STATUS)
    schema_version: int = SCHEMA_VERSION


@attrs.frozen(eq=False, repr=False)
class LandscapeRun(Answer):
    """The answer of `sdkeras.landscape`; attribute names are the paths in its file.

    The loss is over `data.num_samples_hessian` of the data. `worst_case` has the plain ball and the adaptive one, where
    they were asked for. `partial` is whether Ctrl-C left points out, which are NaN.
    """

    DOCUMENT = "landscape"
    WRITTEN_BY = ("landscape.json", "sdkeras landscape")

    provenance: Provenance
    model: ModelInfo
    data: DataInfo
    optimizer: OptimizerInfo
    verification: Verification
    landscape: Landscape
    worst_case: tuple[WorstCase, ...] = ()
    warnings: tuple[Note, ...] = ()
    partial: bool = False
    status: str = attrs.field(default="", validator=_IS_A_STATUS)
    schema_version: int = SCHEMA_VERSION


@attrs.frozen
class Simulation:
    """The training of which a trajectory is the continuation: real steps, on copies, from a saved model on.

    The step's checks ran on `data.num_samples_hessian` of the training data.
    """

    provenance: Provenance
    model: ModelInfo
    data: DataInfo
    optimizer: OptimizerInfo
    num_steps: int  # simulated
    # The simulated step against one step of the optimizer itself, relative to how far each variable moved; NaN if no
    # copy of the optimizer could be made.
    step_error: float
    verified: bool  # whether the step is the optimizer's own
    warnings: tuple[Note, ...] = ()


Run: TypeAlias = Analysis | LyapunovRun | CriticalRun | LandscapeRun
_KINDS: tuple[type[Run], ...] = (LyapunovRun, CriticalRun, LandscapeRun)


def load_document(path: str | os.PathLike[str]) -> Run:
    """Reads a file of any kind, which says itself which it is; an SdkerasError refuses anything else."""
    written_by = ("run.json", "sdkeras analyze, lyapunov, critical or landscape")
    document = parsed_document(text_of(path, written_by), shown(path), written_by)
    kind = next((each for each in _KINDS if document.get("document") == each.DOCUMENT), Analysis)
    return kind.from_parsed(document, shown(path))
