"""The whole answer of an analysis and its JSON form (schema version 1)."""

from __future__ import annotations

import functools
import json
import math
import os
import types
import typing
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import attrs
import cattrs
import numpy as np

from sdkeras.dimension.lyapunov import LyapunovDimension, SharpestDimension
from sdkeras.dimension.m_step import MStepSharpness
from sdkeras.dimension.records import Bound, EdgeOfStability, RdsSharpness, SharpnessDimension, Supremum, Warning
from sdkeras.errors import SdkerasError
from sdkeras.reading import blamed_on, parsed_json
from sdkeras.records import FloatArray, Verification
from sdkeras.whole_files import check_is_file, shown, write_whole

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
    """num_samples in the data; the data-set Hessian ran on num_samples_hessian of them.

    Attributes:
        batch_size_source: Where the batch size came from: 'given', 'dataset', 'assumed', or "" where it is not known.
        class_weight: Weights by class, None without them.
    """

    num_samples: int
    batch_size: int
    num_samples_hessian: int
    batch_size_source: str = ""
    class_weight: dict[str, float] | None = None


@attrs.frozen
class OptimizerPart:
    """One of the optimizers in a MultiOptimizer."""

    name: str
    learning_rate: float


@attrs.frozen
class OptimizerInfo:
    """The optimizer as the file has it; None where it has no such setting or where none was compiled.

    Attributes:
        learning_rate: Of the analysed step; NaN where the optimizer has none or several.
        learning_rate_source: 'file', 'given', or 'peak', 'mean' or 'step:N' of its schedule.
        learning_rate_missing: Why nothing that needs a learning rate was computed; "" where it was.
        parts: The optimizers that a MultiOptimizer trains variables with.
    """

    name: str
    learning_rate: float
    momentum: float | None = None
    weight_decay: float | None = None
    iterations: int | None = None
    nesterov: bool | None = None
    learning_rate_source: str = "file"
    learning_rate_missing: str = ""
    parts: tuple[OptimizerPart, ...] = ()


@attrs.frozen
class Measured:
    """A number with its evidence: `residual` for an eigenvalue, `stderr` for a trace."""

    value: float
    converged: bool
    residual: float | None = None
    stderr: float | None = None


@attrs.frozen
class HessianSummary:
    """Extreme eigenvalues and trace of the data-set Hessian.

    Attributes:
        largest: The algebraically largest eigenvalue, which is what `sharpness` means here.
        smallest: The algebraically smallest one.
        trace: Sum of all eigenvalues.
        largest_absolute: Largest absolute value of an eigenvalue, the sharpness of the paper's tables. It differs from
            `largest` where negative curvature is steeper, as it may be early in training. None in files of version 0.1.
    """

    largest: Measured | None
    smallest: Measured | None
    trace: Measured | None
    largest_absolute: Measured | None = None

    @property
    def steepest_is_negative(self) -> bool:
        """Whether the eigenvalue of largest absolute value is the smallest one."""
        absolute, largest = self.largest_absolute, self.largest
        return absolute is not None and largest is not None and absolute.value > largest.value


@attrs.frozen
class SpectrumSummary:
    """The pooled spectrum of the minibatches' operators: sum of weights[j] * delta(nodes[j]), total mass n.

    Attributes:
        nodes: Eigenvalues, ascending, shape [k].
        weights: Their masses, shape [k].
        operator: 'H' or 'P^-1/2 H P^-1/2', whose eigenvalues they are; with ' + W' the weight decay W of each parameter
            is in it.
    """

    nodes: FloatArray = attrs.field(eq=attrs.cmp_using(eq=np.array_equal))
    weights: FloatArray = attrs.field(eq=attrs.cmp_using(eq=np.array_equal))
    operator: str = "H"


@attrs.frozen
class LayerSharpness:
    """The diagonal block of one layer's parameters in the Hessian.

    Attributes:
        name: Path of the layer.
        num_parameters: Size of the block.
        largest: Largest eigenvalue of the block of the data-set Hessian; None, like each of the following, where the
            budget left no room for it.
        trace: Its trace; the layers' traces sum to the whole one's.
        codimension: Codimension of the block's own SD (pooled) under the run's map, as if the other layers stood
            still; with momentum the block's velocity is in it.
        codimension_interval: Its 95 % interval.
    """

    name: str
    num_parameters: int
    largest: Measured | None
    trace: Measured | None
    codimension: float | None
    codimension_interval: tuple[float, float] | None


@attrs.frozen
class StepVerification:
    """What the checks of the map of a training step found, beside those of its Hessian-vector products.

    Attributes:
        step_error: The map's step against one step of the optimizer itself, relative to how far each variable moved;
            NaN if no copy of the optimizer could be made.
        finite_difference_error: J v against central differences, relative.
        checked: What the differences were of: 'map', or 'update' (the rest are the Hessian's products).
        jvp_relative_error: What rounding costs a product J v.
        adjoint_error: |u'(J v) - (J'u)'v|, relative.
        passed: Whether every check met its tolerance.
        details: What else to know, in words.
    """

    step_error: float
    finite_difference_error: float
    checked: str
    jvp_relative_error: float
    adjoint_error: float
    passed: bool
    details: str = ""


@attrs.frozen
class LyapunovSummary:
    """Leading Lyapunov exponents along real training steps from the checkpoint on.

    Attributes:
        values: Natural logarithm per step, descending, shape [k].
        stderr: Standard errors from blocks of steps, shape [k].
        rounding: What rounding may have done to each, shape [k], or None.
        num_resolved: The leading exponents that rounding left intact, or None for all.
        history: For each exponent its running means at the ends of the blocks.
        block_size: Steps in a block.
        num_steps: Steps averaged over.
        num_steps_asked: Steps that were asked for.
        transient: Steps made and discarded before them.
        stopped_at: Step at which the trajectory diverged, counted from 1 with the transient, or None.
        log_det: Mean of ln|det J| per step where the exponents are all there are or the Jacobians dense, or None.
        dimension: D_s, as far as it is known.
        num_weights: Weights in the state; the rest are the optimizer's slots.
        verification: Checks of the step and its Jacobian.
        windows: SD (m = 1) and SD^(m) over the same steps, where windows were asked for.
        sharpest: The smallest dimension that is determined over these steps, or None.
        coordinates: What the singular values behind `windows` refer to, and the exponents beside them: 'weights',
            'balanced' (momentum) or 'raw'. None without windows.
        log_det_stderr: Standard error of log_det from blocks of steps, from dense Jacobians.
        estimator: Lyapunov estimator.
    """

    values: FloatArray = attrs.field(eq=attrs.cmp_using(eq=np.array_equal))
    stderr: FloatArray = attrs.field(eq=attrs.cmp_using(eq=np.array_equal))
    rounding: FloatArray | None = attrs.field(eq=attrs.cmp_using(eq=np.array_equal))
    num_resolved: int | None
    history: tuple[FloatArray, ...] = attrs.field(eq=attrs.cmp_using(eq=np.array_equal), repr=False)
    block_size: int
    num_steps: int
    num_steps_asked: int
    transient: int
    stopped_at: int | None
    log_det: float | None
    dimension: LyapunovDimension
    num_weights: int
    verification: StepVerification
    windows: tuple[MStepSharpness, ...] = ()
    sharpest: SharpestDimension | None = None
    coordinates: str | None = None
    log_det_stderr: float | None = None
    estimator: str = "lyapunov-qr"

    def __attrs_post_init__(self) -> None:
        k = len(self.values)
        lengths = [len(self.stderr), len(self.history), *([] if self.rounding is None else [len(self.rounding)])]
        if k == 0 or set(lengths) != {k}:
            raise ValueError(f"LyapunovSummary: {k} values, and lists beside them of {lengths} entries.")
        if len({len(means) for means in self.history}) > 1:
            raise ValueError("LyapunovSummary.history has exponents of different length.")


_Doc = TypeVar("_Doc", bound="Document")
_Rec = TypeVar("_Rec")


class Document:
    """A record that is written to a JSON file of its own and read back.

    Two are equal if their JSON is: arrays by element, NaN equal to NaN.

    Attributes:
        DOCUMENT: What the file says it is; "" for an analysis, whose files have never said.
        WRITTEN_BY: File and command, for messages.
    """

    DOCUMENT: ClassVar[str] = ""
    WRITTEN_BY: ClassVar[tuple[str, str]] = ("run.json", "sdkeras analyze")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Document) and type(self) is type(other) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(self.to_json())

    def __str__(self) -> str:
        from sdkeras.reporting.terminal import as_text

        return as_text(self)  # type: ignore[arg-type]  # its kinds are made below

    def to_json(self) -> str:
        """The JSON text: strict JSON, NaN and infinities as null."""
        document = _converter().unstructure(self)
        if self.DOCUMENT:
            document = {"document": self.DOCUMENT, **document}
        return json.dumps(_without_nan(document), indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls: type[_Doc], text: str, where: str = "the text") -> _Doc:
        """Reads what `to_json` wrote; unknown paths are ignored.

        Raises:
            SdkerasError: Not such a document, or one of a newer schema.
        """
        return cls._structured(_parsed(text, where, cls.WRITTEN_BY), where)

    @classmethod
    def _structured(cls: type[_Doc], document: dict[str, Any], where: str) -> _Doc:
        name, command = cls.WRITTEN_BY
        if document.get("document", "") != cls.DOCUMENT:
            kind = document.get("document", "")
            what = f"says that it is {kind!r:.40}" if kind else "is a run.json of sdkeras analyze"
            raise SdkerasError(f"{where} {what}; give a {name} written by {command}.")
        return from_plain(document, cls, f"{where} is not a complete {name}", f"write it again with {command}.")

    def save(self, path: str | os.PathLike[str], *, follow_links: bool = True) -> None:
        """Writes the file, all of it or nothing.

        Args:
            path: File to write.
            follow_links: Write what a symbolic link points to; False refuses a link.

        Raises:
            SdkerasError: The file cannot be written.
        """
        write_atomically(path, self.to_json(), follow_links=follow_links)

    @classmethod
    def load(cls: type[_Doc], path: str | os.PathLike[str]) -> _Doc:
        """Reads the file.

        Raises:
            SdkerasError: Missing, unreadable or another kind of file.
        """
        return cls.from_json(_text_of(path, cls.WRITTEN_BY), shown(path))


@attrs.frozen(eq=False)
class Analysis(Document):
    """The whole answer; attribute names are the paths in run.json.

    `sharpness_dimension` is the first of `estimates` (exact when asked for, else slq), at the checkpoint; `supremum` is
    over snapshots of training from there on, where they were asked for.
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
    warnings: tuple[Warning, ...] = ()
    partial: bool = False
    schema_version: int = SCHEMA_VERSION


@attrs.frozen(eq=False)
class LyapunovRun(Document):
    """The answer of `sdkeras.lyapunov`; attribute names are the paths in its file.

    Attributes:
        data: Of training; `num_samples_hessian` are those that the checks ran on.
        verification: Checks of the Hessian-vector products in the step's Jacobian; `lyapunov.verification` has
            those of the step.
        partial: Whether Ctrl-C or the time limit ended it before the steps that were asked for.
    """

    DOCUMENT = "lyapunov"
    WRITTEN_BY = ("lyapunov.json", "sdkeras lyapunov")

    provenance: Provenance
    model: ModelInfo
    data: DataInfo
    optimizer: OptimizerInfo
    verification: Verification
    lyapunov: LyapunovSummary
    warnings: tuple[Warning, ...] = ()
    partial: bool = False
    schema_version: int = SCHEMA_VERSION


@attrs.frozen
class Simulation:
    """The training of which a trajectory is the continuation: real steps, on copies, from a saved model on.

    Attributes:
        data: Of training; `num_samples_hessian` are those that the step's checks ran on.
        num_steps: Steps made.
        step_error: The simulated step against one step of the optimizer itself, relative to how far each variable
            moved; NaN if no copy of the optimizer could be made.
        verified: Whether every check of the step met its tolerance.
    """

    provenance: Provenance
    model: ModelInfo
    data: DataInfo
    optimizer: OptimizerInfo
    num_steps: int
    step_error: float
    verified: bool
    warnings: tuple[Warning, ...] = ()


def load_document(path: str | os.PathLike[str]) -> Analysis | LyapunovRun:
    """Reads a file of either kind; it says itself which it is.

    Raises:
        SdkerasError: Missing, unreadable or neither.
    """
    written_by = ("run.json", "sdkeras analyze or sdkeras lyapunov")
    where = shown(path)
    document = _parsed(_text_of(path, written_by), where, written_by)
    kind = LyapunovRun if document.get("document") == LyapunovRun.DOCUMENT else Analysis
    return kind._structured(document, where)


def _text_of(path: str | os.PathLike[str], written_by: tuple[str, str]) -> str:
    name, command = written_by
    advice = f"give a {name} written by {command}."
    check_is_file(path, SdkerasError, advice)
    with blamed_on(f"{shown(path)} cannot be read", advice):
        return Path(path).read_text(encoding="utf-8-sig")


def _parsed(text: str, where: str, written_by: tuple[str, str]) -> dict[str, Any]:
    """The text as a JSON object of a schema version that this sdkeras reads."""
    name, command = written_by
    with blamed_on(f"{where} is not JSON", f"give a {name} written by {command}."):
        document = parsed_json(text)
    if not isinstance(document, dict) or "schema_version" not in document:
        raise SdkerasError(f"{where} has no schema_version; give a {name} written by {command}.")
    version = document["schema_version"]
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise SdkerasError(
            f"{where} has schema_version {version!r:.40}, which is none; give a {name} written by {command}."
        )
    if version > SCHEMA_VERSION:
        raise SdkerasError(
            f"{where} has schema version {version!r}, this sdkeras reads up to {SCHEMA_VERSION}; update sdkeras."
        )
    return document


def write_atomically(path: str | os.PathLike[str], content: str | bytes, *, follow_links: bool = True) -> None:
    """Writes a file, text in UTF-8, all of it or nothing.

    Args:
        path: File to write.
        content: All of it.
        follow_links: Write what a symbolic link points to; False refuses a link, as a file that no user has named.

    Raises:
        SdkerasError: The file cannot be written.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    write_whole(path, lambda file: file.write(data), follow_links=follow_links)


def as_plain(record: Any) -> Any:
    """A record as what strict JSON can hold: dicts, lists, texts and numbers, null for what is not finite."""
    return _without_nan(_converter().unstructure(record))


def from_plain(value: Any, cls: type[_Rec], where: str, advice: str = "write it again.") -> _Rec:
    """The record that `as_plain` has taken apart.

    Raises:
        SdkerasError: Something else; the message begins with `where` and ends with the advice.
    """
    with blamed_on(where, advice):
        try:
            record: _Rec = _converter().structure(value, cls)
            return record
        except Exception as error:  # cattrs groups whatever the fields raised
            reasons = [
                reason if len(reason) <= 200 else f"{reason[:197]}..." for reason in cattrs.transform_error(error)
            ]
            raise SdkerasError(f"{where}: {'; '.join(reasons[:3])}; {advice}") from error


@functools.cache
def _converter() -> cattrs.Converter:
    """Records to plain values and back: arrays as lists, null as NaN where a number must stand."""
    converter = cattrs.Converter()
    converter.register_structure_hook_func(
        lambda cls: cls == FloatArray,
        lambda value, _: np.array([_number(entry) for entry in _only(list, value)], dtype=np.float64),
    )
    converter.register_structure_hook(float, lambda value, _: _number(value))
    # cattrs would take bool("false"), which is True, and str(None).
    for kind in (bool, int, str):
        converter.register_structure_hook(kind, _exactly)

    def structure_tuple(value: Any, cls: Any) -> tuple[Any, ...]:
        kinds = typing.get_args(cls)
        entries = _only(list, value)
        if kinds[-1] is Ellipsis:
            kinds = kinds[:1] * len(entries)
        return tuple(converter.structure(entry, kind) for entry, kind in zip(entries, kinds, strict=True))

    converter.register_structure_hook_func(lambda cls: getattr(cls, "__origin__", None) is tuple, structure_tuple)
    converter.register_structure_hook_func(
        lambda cls: isinstance(cls, types.UnionType),
        lambda value, cls: None if value is None else converter.structure(value, _not_none(cls)),
    )
    return converter


def _not_none(union: Any) -> Any:
    (only,) = [part for part in typing.get_args(union) if part is not type(None)]
    return only


def _exactly(value: Any, cls: Any) -> Any:
    return _only(cls, value)


def _only(cls: type[Any], value: Any) -> Any:
    if type(value) is not cls:  # not isinstance: True is no int here
        raise ValueError(f"expected {cls.__name__}, got {value!r}")
    return value


def _number(value: Any) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"expected a number, got {value!r}")
    return float(value)


def _without_nan(value: Any) -> Any:
    """Lists, numbers and nulls only: what strict JSON can hold."""
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, dict):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


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
        num_snapshots: Snapshots of a supremum, or None.
        every: Steps between two of them.
        optimizer: As the analysis would take it, with its learning rate.
        data: Samples and batch size.
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
    num_snapshots: int | None = None
    every: int | None = None
    optimizer: OptimizerInfo | None = None
    data: DataInfo | None = None


@attrs.frozen
class LyapunovPlan:
    """What following a trajectory would do and cost (`sdkeras lyapunov --dry-run`).

    Attributes:
        num_parameters: Weights.
        state_size: Dimension of the optimizer's state.
        num_exponents: Exponents.
        num_steps: Steps to average over.
        transient: Steps before them.
        windows: Lengths of windows; with any the Jacobians are dense.
        num_hvps: Products on one minibatch in all.
        peak_memory: Bytes.
        seconds: Estimated from one timed gradient, and from the singular values of one matrix.
        seconds_per_gradient: That gradient.
        optimizer: As the trajectory would take it, with its learning rate.
        data: Samples and batch size.
    """

    num_parameters: int
    state_size: int
    num_exponents: int
    num_steps: int
    transient: int
    windows: tuple[int, ...]
    num_hvps: int
    peak_memory: int
    seconds: float
    seconds_per_gradient: float
    optimizer: OptimizerInfo | None = None
    data: DataInfo | None = None
