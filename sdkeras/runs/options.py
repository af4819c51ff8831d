"""All options of analyses and trajectories, from which signatures, docstrings and commands come; no TensorFlow."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, TypeAlias, get_args

import attrs

from sdkeras.dimension.bounds import INPUTS, check_inputs
from sdkeras.errors import SdkerasError
from sdkeras.files import class_weights
from sdkeras.files.keras_types import Loss
from sdkeras.files.user_code import in_one_line
from sdkeras.operators.modes import (
    DEVICE,
    JIT,
    MIXED,
    MODES,
    PRECISIONS,
    PRODUCT_MODES,
    Jit,
    Mode,
    Precision,
    ProductMode,
)
from sdkeras.reporting.trackers.names import check_trackers
from sdkeras.results.arrays import Value, is_number
from sdkeras.results.log import RunLog, read_run_log
from sdkeras.results.progress import Progress
from sdkeras.runs.declare import (
    COUNT,
    FINITE,
    FLAG,
    FRACTION,
    MEMORY,
    NOT_NEGATIVE,
    OUTPUT,
    POSITIVE,
    PRECISION,
    TEXT,
    WHAT,
    WHOLE,
    Validator,
    as_path,
    checked_by,
    described,
    is_folder,
    is_writable,
    must,
    one_of,
    option,
    parse_learning_rate,
)

MapOption: TypeAlias = Literal["auto", "hessian", "full"]
# Who says which hosts there are.
ClusterOption: TypeAlias = Literal["tf-config", "slurm", "kubernetes"]
Preset: TypeAlias = Literal["quick", "standard", "thorough"]
OperatorKind: TypeAlias = Literal["hessian", "ggn", "fisher"]
# Values by preset of the options that are left out: as quick as a callback's measurement, the usual, and the narrowest.
# `exact` None: exact spectra where one takes a second or two, see `runs.problem`.
PRESETS: dict[Preset, dict[str, Value]] = {
    "quick": {"samples": 1024, "tolerance": 0.2, "min_runs": 8, "exact": False},
    "standard": {"samples": 4096, "tolerance": 0.05, "min_runs": 24, "exact": False},
    "thorough": {"samples": 4096, "tolerance": 0.02, "min_runs": 24, "exact": None},
}
# Of the callback and of `track`; and their budget of products for SD: three times what its first runs take. With the
# other presets the tolerance decides.
DEFAULT_PRESET: Preset = "quick"
_MEASUREMENT_HVPS: dict[Preset, int] = {"quick": 1000}
# Steps of a trajectory, and those before it.
STEPS, TRANSIENT = 1000, 100
# Parameters, or dimensions of the state, up to which one exact spectrum takes a second or two.
MOST_EXACT = 2000
NO_STEPS = f"{MIXED} rounds Hessian-vector products to some per cent, and a step of training is verified more exactly"


def _by_preset(name: str, text: str, validator: Validator) -> Value:
    """A field that has its preset's value where it is left out."""
    values = ", ".join(f"{preset} {values[name]}" for preset, values in PRESETS.items())
    return attrs.field(
        default=None, validator=validator, metadata=described(f"{text}; by preset: {values}.", group=PRECISION)
    )


def _names(names: str | Sequence[str]) -> tuple[str, ...]:
    listed = (names,) if isinstance(names, str) else tuple(names) if isinstance(names, Iterable) else (names,)
    if not all(isinstance(name, str) for name in listed):
        raise SdkerasError(f"estimators is {names!r}; it must be names of estimators, such as ('slq', 'exact').")
    return listed


def _operators(kinds: str | Sequence[str]) -> tuple[OperatorKind, ...]:
    """Each kind once but 'hessian', which is always measured."""
    listed = (kinds,) if isinstance(kinds, str) else tuple(kinds) if isinstance(kinds, Iterable) else (kinds,)
    known = get_args(OperatorKind)
    unknown = [kind for kind in listed if kind not in known]
    if unknown:
        raise SdkerasError(
            f"operator is {in_one_line(repr(unknown[0]), 100)}; it must be {', '.join(known[:-1])} or {known[-1]}, or "
            "several of them."
        )
    return tuple(kind for kind in known[1:] if kind in listed)


def _settings(settings: Mapping[str, Mapping[str, Value]] | None) -> Mapping[str, Mapping[str, Value]]:
    settings = {} if settings is None else settings
    if not isinstance(settings, Mapping) or not all(isinstance(each, Mapping) for each in settings.values()):
        raise SdkerasError(
            f"settings is {settings!r}; it must be values by estimator and field, such as "
            "{'slq': {'num_steps': 80}}."
        )
    return settings


def _inputs(inputs: Mapping[str, float] | None) -> Mapping[str, float]:
    return inputs or {}


def _log(log: str | os.PathLike[str] | RunLog | None) -> RunLog | None:
    """A log, read where its place is given; an SdkerasError refuses one that is not there, or is none."""
    return log if log is None or isinstance(log, RunLog) else read_run_log(str(as_path(log)))


@attrs.frozen(kw_only=True)
class TrainingOptions:
    """Options of everything that reads a model and its data as training does.

    Raises:
        SdkerasError: A value out of its range.
    """

    batch_size: int | None = option(
        None, "Batch size of training; default 32, or the data set's own.", WHOLE, group=WHAT
    )
    learning_rate: float | str | None = option(
        None,
        "Learning rate in place of the optimizer's: a number, or of its schedule the peak or mean so far, or that of "
        "step N.",
        checked_by(parse_learning_rate),
        metavar="F|peak|mean|step:N",
        more="A number; or, where there is a schedule, 'peak' or 'mean' over the steps so far, or 'step:N', the rate "
        "that step N used, counted from 0. A trajectory takes it at every step. Without a learning rate (0 at the end "
        "of a schedule, or several in a MultiOptimizer) threshold, ratio, exponents, sharpness dimension and bounds of "
        "an analysis are None, and everything else is measured. The map 'full' takes the rates that the optimizer has.",
        group=WHAT,
    )
    loss: Loss = option(
        None,
        "Loss in place of the compiled one: NAME[:FIELD[=VALUE]...] of a Keras loss, as huber:delta=0.1, or "
        "FILE.py:FUNCTION or MODULE:FUNCTION for a loss_fn(model, batch).",
        must("a loss, not empty", lambda value: bool(value) or not isinstance(value, (str, list, tuple, dict))),
        metavar="LOSS",
        more="An uncompiled model needs it. A Keras loss object also works.",
        group=WHAT,
    )
    loss_fn: Loss = option(
        None,
        "Function (model, batch) in place of the compiled loss, which runs the model itself.",
        more="As a custom training step does; see `sdkeras.EmpiricalLoss`.",
    )
    class_weight: Mapping[int, float] | None = option(
        None,
        "The class_weight of fit, which no file holds: 0=1.0,1=9.0; other classes weigh 1.",
        checked_by(class_weights.checked),
        metavar="CLASS=W,...",
        group=WHAT,
    )
    samples: int | None = option(None, "Number of samples to read of an endless data set.", COUNT, group=WHAT)
    dtype: Precision = option(
        "float32",
        "Precision of the Hessian-vector products (HVPs): float32, float64, or mixed_bfloat16.",
        one_of(PRECISIONS),
        more="'mixed_bfloat16' has activations in bfloat16, and weights, gradients and sums in float32: products are "
        "rounded to some per cent, which the report tells, and are verified in float64. It is not for steps of "
        "training (`lyapunov`, `snapshots`, `map='full'`).",
        group=PRECISION,
    )
    seed: int = option(
        0,
        "Seed for all random draws.",
        NOT_NEGATIVE,
        more="Those of minibatches, dropout masks, probes and first tangent vectors; of a simulation also examples, "
        "projection and subsamples too.",
        group=PRECISION,
    )
    allow_unverified: bool = option(False, "Continue with an operator or a step that failed its verification.")
    device: str = option(
        "auto",
        "Where products are made: auto (the first accelerator, or the processor), cpu, gpu, tpu, or gpu:0,gpu:1.",
        must(
            "auto, cpu, gpu, tpu, or one or several of a kind, as 'gpu:0,gpu:1'",
            lambda value: isinstance(value, str) and re.fullmatch(DEVICE, value.strip().lower(), re.ASCII) is not None,
        ),
        metavar="DEVICE[,DEVICE...]",
        more="'auto' takes the devices of the strategy in whose scope it is called, the first GPU or TPU, or the "
        "processor. On an accelerator all vectors stay there; several share the batches of the data set, and runs. "
        "'gpu' and 'tpu' take all of them. 'cpu:0' is the processor with an accelerator's kernels, 'cpu:0,cpu:1' two "
        "logical devices of it: for trying those without one.",
    )
    micro_batch: int | None = option(
        None,
        "Compute each batch in parts of at most N examples, which saves memory and changes nothing but dropout masks.",
        COUNT,
        metavar="N",
        more="Not with batch normalization in training mode, which couples the examples of a batch.",
    )
    memory_gb: float | None = option(
        None,
        "Memory that bases, dense matrices and kept steps may take; default 60 % of what is free.",
        MEMORY,
        metavar="GB",
    )
    progress: Callable[[Progress], None] | bool | None = option(
        None,
        "Function called with progress reports, along a trajectory after every step; True shows a bar.",
        must("True, or a function of one argument", lambda value: isinstance(value, bool) or callable(value)),
    )

    @property
    def tell(self) -> Callable[[Progress], None] | None:
        """The function to call with progress reports; `takes_options` has put one in the place of True."""
        return self.progress if callable(self.progress) else None


@attrs.frozen(kw_only=True)
class EstimationOptions(TrainingOptions):
    """Options of everything that runs estimators on products."""

    product_mode: ProductMode = option(
        "auto", f"How HVPs are computed: {', '.join(PRODUCT_MODES)}.", one_of(PRODUCT_MODES), metavar="MODE"
    )
    jit: Jit = option(
        "auto",
        "Compilation by XLA: on, off, or auto, which is on where there is a TPU.",
        one_of(JIT),
        more="On a TPU nothing else runs. On a CPU it makes products of very small nets faster and of convolutions "
        "slower, and compiling takes several times as long. What is compiled is what is verified; dropout draws other "
        "masks under XLA.",
    )
    settings: Mapping[str, Mapping[str, Value]] = attrs.field(
        factory=dict,
        converter=_settings,
        metadata=described(
            "Settings of estimators by name and field.",
            'For example {"slq": {"num_steps": 80}}, or of a trajectory {"lyapunov-qr": {"tolerance": 0.001}}.',
            "NAME.FIELD=VALUE",
        ),
    )


@attrs.frozen(kw_only=True)
class Options(EstimationOptions):
    """All options of `analyze`; see there.

    Raises:
        SdkerasError: A value out of its range, or options that contradict each other.
    """

    draws: int = option(
        1,
        "Average over N draws of what is random: passes of an augmented dataset, dropout masks.",
        must("a whole number from 1 to 1000", lambda value: is_number(value, whole=True) and 0 < value <= 1000),
        more="An augmented dataset is read N times, and all its passes are the data: the data-set Hessian is the mean "
        "over them, and minibatches are of all. Of a model that draws in training mode each batch is taken with N "
        "masks. `data.draws` has the largest eigenvalue of each draw and their standard deviation.",
        metavar="N",
        group=WHAT,
    )
    params: str | None = option(
        None,
        "Analyse only the trainable variables whose path this regular expression finds.",
        TEXT,
        metavar="REGEX",
        group=WHAT,
    )
    preset: Preset = option(
        "standard",
        "Values of the options that are left out: quick, standard or thorough.",
        one_of(get_args(Preset)),
        more="'quick' takes fewer samples and minibatches and a wider interval, as the callback does; 'thorough' a "
        "narrow interval, with exact spectra of minibatches first where there are few parameters.",
        group=PRECISION,
    )
    samples: int = _by_preset("samples", "Random subset for the data-set Hessian", COUNT)
    mode: Mode = option(
        "train", "Mode of dropout and batch normalization: 'train' or 'inference'.", one_of(MODES), group=WHAT
    )
    map: MapOption = option(
        "auto",
        "auto: the optimizer's own step where it is known; hessian: |1 - eta*alpha|; full: singular values of the "
        "whole step of any optimizer.",
        one_of(get_args(MapOption)),
        more="'auto' takes the true step of SGD, with momentum on the state of weights and velocity; and of Adam, "
        "AdamW, Nadam and RMSprop with their second moments frozen as the last step left them (not training's own "
        "random dynamical system, in which they move). For every other optimizer, and where there are no second "
        "moments yet, it takes |1 - eta alpha|, and says so. 'hessian' always takes that, as the paper does. "
        "'full' takes the singular values of the real step's Jacobian on weights and slots, in coordinates that the "
        "answer names and that its values depend on.",
        group=WHAT,
    )
    estimators: tuple[str, ...] = attrs.field(
        default=(),
        converter=_names,
        metadata=described(
            "Estimators to use; repeatable.",
            "Spectrum ones (for the map 'full' singular_values ones) estimate SD, one after the other; an "
            "eigenpairs or trace one replaces the default for the data-set Hessian. Default: slq (golub-kahan), "
            "lanczos, randomized-trace.",
            "NAME",
            group=PRECISION,
        ),
    )
    exact: bool | None = attrs.field(
        default=None,
        validator=FLAG,
        metadata=described(
            "Exact spectra of minibatches first (small models).",
            f"Default False; with the preset thorough, True up to {MOST_EXACT:,} parameters.",
            group=PRECISION,
        ),
    )
    exact_minibatches: int | None = option(
        None, "Number of minibatches with exact spectra; adaptive by default.", COUNT, group=PRECISION
    )
    runs: int | None = option(
        None, "Runs (minibatch and probe) of each estimator that is not exact, in place of the tolerance.", COUNT
    )
    tolerance: float = _by_preset(
        "tolerance",
        "Target half-width of SD's interval, relative to the codimension (0.5 dimensions at least)",
        FRACTION,
    )
    min_runs: int = _by_preset("min_runs", "Runs before SD's interval is first looked at", COUNT)
    max_hvps: int | None = option(
        None,
        "Budget of Hessian-vector products for all stages; required steps run anyway.",
        COUNT,
        more="Verification is included; half of what it leaves is kept for SD and what follows it. Tracing, "
        "verification and one run of SD are done even when the budget is exhausted, and a warning says by how much "
        "they exceeded it. A measurement for which it had no room is None, with the reason in a warning.",
        group=PRECISION,
    )
    time_limit: float | None = option(
        None,
        "Time budget for all stages; required steps run anyway.",
        POSITIVE,
        metavar="SECONDS",
        more="Seconds from the start of `analyze`; an HVP under way is finished.",
        group=PRECISION,
    )
    per_layer: bool = option(
        False, "Also measure eigenvalue, trace and codimension of each layer's diagonal block.", group=WHAT
    )
    at_init: bool = option(
        False,
        "Also measure the same net at initialisation, by the preset quick, for a scale.",
        more="Weights are drawn anew by the model's initializers, from the seed where these have none; frozen layers "
        "stay, and the learning rate is that of the analysis. Adam, AdamW, Nadam and RMSprop have no second moments "
        "there: only the Hessian is compared, or with map='hessian' everything.",
        group=WHAT,
    )
    operator: tuple[OperatorKind, ...] = attrs.field(
        default=(),
        converter=_operators,
        metadata=described(
            "Also measure the Gauss-Newton matrix (ggn) or the Fisher matrix (fisher) beside the Hessian; repeatable.",
            "Eigenvalues, trace and spectrum of it by the Hessian's estimators, and E+, the sum of the positive "
            "exponents, with it in the Hessian's place: what is left without the curvature of the outputs. It is in "
            "`operators`; everything else stays the Hessian's. A second set of eigenvalues and runs: up to twice the "
            "products. The Fisher matrix is the exact one, of cross-entropies and squared error; it is the "
            "Gauss-Newton matrix without regularizers.",
            "|".join(get_args(OperatorKind)),
            group=WHAT,
        ),
    )
    log: RunLog | None = attrs.field(
        default=None,
        converter=_log,
        metadata=described(
            "Also show where the numbers were earlier in this training, by its log.",
            "The log of the callback or of `track`, or the folder that it is in: its first measurement, of an earlier "
            "step than the model's. Costs no products.",
            "RUN_DIR",
            group=WHAT,
        ),
    )
    lyapunov: int | None = option(
        None,
        "Also estimate K Lyapunov exponents by continuing training from the checkpoint.",
        COUNT,
        metavar="K",
        more="`sdkeras.lyapunov` has more settings. If they determine D_s, the bounds are taken at it.",
        group=WHAT,
    )
    lyapunov_steps: int = option(STEPS, "Steps to average the exponents over.", COUNT, group=WHAT)
    lyapunov_transient: int = option(TRANSIENT, "Burn-in steps before.", NOT_NEGATIVE, group=WHAT)
    snapshots: int | None = option(
        None,
        "Also take the supremum of SD's definition over N snapshots of training, this checkpoint the first.",
        WHOLE,
        metavar="N",
        more="Training continues from here on a copy, with the real optimizer. At each snapshot four probes of the "
        "pilot's minibatches: 4 N - 1 times the pilot's products; with max_hvps or time_limit it is held to its share.",
        group=WHAT,
    )
    every: int | None = option(None, "Training steps between two snapshots.", WHOLE, metavar="M", group=WHAT)
    bound_inputs: Mapping[str, float] = attrs.field(
        factory=dict,
        converter=_inputs,
        validator=checked_by(check_inputs),
        metadata=described(
            f"Inputs of the generalization bounds by name: {', '.join(INPUTS)}.",
            "",
            "NAME=VALUE",
            group=WHAT,
        ),
    )
    estimate_bound_inputs: bool = option(
        False, "Estimate loss_bound and lipschitz, where not given, from single examples (lower bounds).", group=WHAT
    )
    checkpoint: str | None = attrs.field(
        default=None,
        converter=as_path,
        metadata=described(
            "Keep what is measured in this file, and go on from it if it is there.",
            "Killed at any moment, the same call goes on to the same bits. max_hvps counts the products of all calls, "
            "time_limit the seconds of each. The file is kept, and a finished one gives the answer again.",
            "FILE",
            group=OUTPUT,
        ),
    )
    cluster: ClusterOption | None = option(
        None,
        "Work on several hosts: the same command on each; tf-config, slurm or kubernetes says which there are.",
        one_of(get_args(ClusterOption)),
        metavar="|".join(get_args(ClusterOption)),
        more="The first, the chief, keeps the checkpoint and makes the answer, which all return. In Python first call "
        "`sdkeras.runs.cluster.join(cluster, timeout)`: TensorFlow finds hosts only before it makes anything.",
    )
    cluster_timeout: float = option(300.0, "Seconds to wait for the hosts of a cluster.", FINITE, metavar="SECONDS")
    scratch: str | None = attrs.field(
        default=None,
        converter=as_path,
        validator=must("a folder that exists and can be written to", lambda value: is_folder(value)),
        metadata=described(
            "Keep Lanczos bases that do not fit the memory in files in this folder.",
            "Without it, runs whose bases do not fit do without reorthogonalisation. The files have no names and are "
            "gone with the analysis.",
            "DIR",
        ),
    )
    report_to: tuple[str, ...] = attrs.field(
        default=(),
        converter=check_trackers,
        metadata=described(
            "Report to tensorboard[:DIR], wandb or mlflow too; repeatable.",
            "They get every number by its path in run.json, after 'sdkeras/'; PATH/lower and PATH/upper, the ends of "
            "intervals; the spectrum as a histogram (in MLflow a table), settings, and the page (in TensorBoard its "
            "first lines). TensorBoard's events are in DIR, or in a new folder of logs; the others take the active "
            "run, or a new one. One that fails at the end is named in a warning.",
            "NAME",
            group=OUTPUT,
        ),
    )
    workers: int | None = option(
        None,
        "Threads; default one per device, or per core where TensorFlow has one intra-op thread, or 1.",
        COUNT,
    )

    def __attrs_post_init__(self) -> None:
        for name, value in PRESETS[self.preset].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        for holds, words in self._contradictions():
            if holds:
                raise SdkerasError(words)

    @property
    def preset_words(self) -> str:
        """The preset, with the values of its options: 'quick: samples 1,024, tolerance 0.2, ...'."""
        values = {name: getattr(self, name) for name in PRESETS[self.preset]}
        known = [f"{name} {value:,}" for name, value in values.items() if not isinstance(value, (bool, type(None)))]
        return f"{self.preset}: {', '.join([*known, *(['exact'] if values['exact'] else [])])}"

    @property
    def is_all_training(self) -> bool:
        """Whether all variables are analysed in training mode, as training's own step moves them."""
        return self.params is None and self.mode == "train"

    def _contradictions(self) -> tuple[tuple[bool, str], ...]:
        """Options that contradict each other: whether they do, and what to change."""
        full, count, every = self.map == "full", self.snapshots, self.every
        changed = (self.lyapunov_steps, self.lyapunov_transient) != (STEPS, TRANSIENT)
        return (
            (
                full and not self.is_all_training,
                "the map full is of training's step as it is, of all variables and in training mode; leave out params "
                "and mode, or take the map auto (`map='auto'`).",
            ),
            (
                full and self.per_layer,
                "per_layer takes diagonal blocks of the Hessian, and the map full is of the whole step, whose singular "
                "values do not split by layers; leave out one of them (`per_layer`, `map='full'`).",
            ),
            (
                full and count is not None,
                "the supremum over snapshots is of the maps auto and hessian, of a Hessian's spectrum; leave out one "
                "of them (`snapshots`, `map='full'`).",
            ),
            (
                full and bool(self.operator),
                "operator sets another matrix in the Hessian's place, and the map full is of the whole step, whose "
                "singular values are of no such matrix; leave out one of them (`operator`, `map='full'`).",
            ),
            (
                self.at_init and self.cluster is not None,
                "the hosts of a cluster know the checkpoint's weights only, not those at initialisation; leave out one "
                "of them (`at_init`, `cluster`).",
            ),
            (
                self.lyapunov is None and changed,
                "lyapunov_steps and lyapunov_transient apply to Lyapunov exponents, and none are requested "
                "(`lyapunov=K`).",
            ),
            (
                self.lyapunov is not None and not self.is_all_training,
                "Lyapunov exponents are of training as it is, of all variables and in training mode; leave out params "
                "and mode, or the exponents (`lyapunov`).",
            ),
            (
                (count is None) != (every is None),
                f"snapshots is {count} and every is {every}; a supremum over snapshots needs both: how many "
                "(`snapshots=N`) and the training steps between two (`every=M`).",
            ),
            (
                count is not None and count < 2,
                f"snapshots is {count}; it must be 2 or more, the checkpoint itself being the first.",
            ),
            (
                self.checkpoint is not None and not is_writable(self.checkpoint),
                f"the checkpoint {self.checkpoint!r} cannot be written there; give the name of a file in a folder that "
                "exists.",
            ),
            (
                self.dtype == MIXED and (full or self.lyapunov is not None or count is not None),
                f"{NO_STEPS}; take float32 (`dtype`), or leave out `map='full'`, `lyapunov` and `snapshots`.",
            ),
            (
                self.dtype == MIXED and bool(self.exact or self.exact_minibatches),
                f"exact spectra of products in {MIXED} would be exact to some per cent; take float32 (`dtype`), or "
                "leave out `exact` and `exact_minibatches`.",
            ),
            (every is not None and every < 1, f"every is {every}; it must be at least 1 step."),
            (
                count is not None and not self.is_all_training,
                "snapshots are of training as it is, of all variables and in training mode; leave out params and mode, "
                "or the snapshots (`snapshots`).",
            ),
        )


OPTION_NAMES = tuple(field.name for field in attrs.fields(Options))


def measurement_options(preset: Preset, options: Mapping[str, Value]) -> Options:
    """The options of a measurement among others of one training: those given, and the preset's; max_hvps is of SD."""
    return Options(preset=preset, **{"max_hvps": _MEASUREMENT_HVPS.get(preset), **options})
