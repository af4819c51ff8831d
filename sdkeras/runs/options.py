"""All options of analyses and trajectories, from which signatures, docstrings and commands come; no TensorFlow."""

from __future__ import annotations

import functools
import inspect
import math
import os
import re
import tempfile
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Concatenate, Literal, ParamSpec, TypeAlias, TypeVar, cast, get_args, get_type_hints

import attrs
import numpy as np

from sdkeras.dimension.bounds import INPUTS, check_inputs
from sdkeras.dimension.forks import FEWEST_FORKS
from sdkeras.errors import OperatorSizeError, SdkerasError, check_options
from sdkeras.estimators import registry
from sdkeras.estimators.kinds import Estimator
from sdkeras.estimators.select import DEFAULTS, configured
from sdkeras.files import class_weights
from sdkeras.files.keras_types import Data, Loss, Model
from sdkeras.files.user_code import in_one_line
from sdkeras.linalg.memory import memory_limit
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
from sdkeras.reporting.progress_bar import telling
from sdkeras.reporting.trackers.names import check_trackers
from sdkeras.results.arrays import Value, is_number
from sdkeras.results.log import RunLog, read_run_log
from sdkeras.results.progress import Progress

# What an option is about: the groups of a command's help, in their order.
WHAT, PRECISION, OUTPUT, EXPERT = GROUPS = ("What to analyse", "How precisely", "Output", "Expert")
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
# Steps of a trajectory, and exponents along it.
_STEPS, _TRANSIENT, _EXPONENTS = 1000, 100, 10
# Gigabytes; beyond all machines, and so that bytes stay exact numbers.
_MOST_MEMORY = 1e6
# Rates of a schedule that can be asked for by name, beside 'step:N'.
_NAMED_RATES = ("peak", "mean")
# Parameters, or dimensions of the state, up to which one exact spectrum takes a second or two.
MOST_EXACT = 2000
# Fields of a Lyapunov estimator that are options of the run.
_OF_THE_RUN = ("num_exponents", "num_steps", "transient", "checkpoint", "checkpoint_interval")
# The singular values of one matrix of this size take half a minute on a core (0.2 s at 1,000), and there is one for
# each step and for each window.
_LARGEST_DENSE = 5000
# Float64 matrices that a window's product and its singular values take at once, beside the kept Jacobians.
_WORKING_MATRICES = 8

_NO_STEPS = f"{MIXED} rounds Hessian-vector products to some per cent, and a step of training is verified more exactly"

_P = ParamSpec("_P")
_T = TypeVar("_T")
Validator = Callable[[object, "attrs.Attribute[Value]", Value], None]


def parse_learning_rate(text: float | str) -> float | str:
    """A positive and finite number, or a rate of the schedule: 'peak', 'mean' or 'step:N', N >= 0, no leading zeros."""
    if isinstance(text, str):
        word = text.strip()
        name, colon, digits = word.partition(":")
        if word in _NAMED_RATES:
            return word
        if name == "step" and colon and digits.isascii() and digits.isdigit() and len(digits) < 19:
            return f"step:{int(digits)}"
    try:
        rate = math.nan if isinstance(text, bool) else float(text)
    except (TypeError, ValueError, OverflowError):
        rate = math.nan
    if not (0 < rate < math.inf and 2 / rate < math.inf):
        raise SdkerasError(
            f"the learning rate is {text!r}; it must be a positive and finite number, or, of the optimizer's schedule, "
            "'peak', 'mean' or 'step:N' (the rate that step N of the training used, counted from 0)."
        )
    return rate


# Values of options


def must(expected: str, holds: Callable[[Value], bool]) -> Validator:
    """Refuses a value for which `holds` is false; None stands for an option that was left out."""

    def validate(instance: object, field: attrs.Attribute[Value], value: Value) -> None:
        if not (holds(value) or (value is None and field.default is None)):
            raise SdkerasError(f"{field.name} is {in_one_line(repr(value), 100)}; it must be {expected}.")

    return validate


def one_of(choices: tuple[str, ...]) -> Validator:
    return must(f"one of {', '.join(choices)}", lambda value: isinstance(value, str) and value in choices)


def _checked_by(check: Callable[[Value], object]) -> Validator:
    def validate(instance: object, field: attrs.Attribute[Value], value: Value) -> None:
        if value is not None:
            check(value)

    return validate


# Beyond what a machine can count, and what overflows where it meets a float.
_MOST = 2**63
COUNT = must("a positive whole number", lambda value: is_number(value, whole=True) and 0 < value < _MOST)
POSITIVE = must("positive", lambda value: is_number(value) and (0 < value < _MOST or value == math.inf))
_FINITE = must("positive and finite", lambda value: is_number(value) and 0 < value < math.inf)
NOT_NEGATIVE = must("0 or more", lambda value: is_number(value, whole=True) and value >= 0)
_FORKS = must(
    f"1, or {FEWEST_FORKS} or more, from which on they tell whether they are samples of one distribution",
    lambda value: is_number(value, whole=True) and (value == 1 or FEWEST_FORKS <= value < _MOST),
)
# Whose least value is said elsewhere, with the reason.
_WHOLE = must("a whole number", lambda value: is_number(value, whole=True))
_TEXT = must("text", lambda value: isinstance(value, str))
_FLAG = must("True or False", lambda value: isinstance(value, (bool, np.bool_)))
_FRACTION = must("between 0 and 1", lambda value: is_number(value) and 0 < value < 1)
_MEMORY = must(f"positive and at most {_MOST_MEMORY:g}", lambda value: is_number(value) and 0 < value <= _MOST_MEMORY)


def _words(text: str, more: str = "", metavar: str = "", group: str = EXPERT) -> dict[str, str]:
    """Metadata of an option: a sentence for every reader (`text`), more for the docstring, its group in a help."""
    return {"help": text, "more": more, "metavar": metavar, "group": group}


def option(
    default: _T, text: str, *validators: Validator, more: str = "", metavar: str = "", group: str = EXPERT
) -> _T:
    """A field with its `_words`. Type checkers take it for its default; one that is a flag is held to be one."""
    checks = [_FLAG] if isinstance(default, bool) else list(validators)
    return attrs.field(default=default, validator=checks, metadata=_words(text, more, metavar, group))


def _by_preset(name: str, text: str, validator: Validator) -> Value:
    """A field that has its preset's value where it is left out."""
    values = ", ".join(f"{preset} {values[name]}" for preset, values in PRESETS.items())
    return attrs.field(
        default=None, validator=validator, metadata=_words(f"{text}; by preset: {values}.", group=PRECISION)
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


def _with_one(windows: Sequence[int]) -> tuple[int, ...]:
    """Each length once, ascending; SD itself is always among them."""
    lengths = tuple(windows) if isinstance(windows, Iterable) else (windows,)
    if not all(is_number(length, whole=True) for length in lengths):
        raise SdkerasError(f"windows is {windows!r}; it must be whole numbers of steps, such as (1, 10).")
    return tuple(sorted({1, *lengths})) if lengths else ()


def _path(path: str | os.PathLike[str] | None) -> str | None:
    try:
        return None if path is None else os.fspath(path)
    except TypeError as error:
        raise SdkerasError(f"a file is named by text or a path, got {path!r}.") from error


def _log(log: str | os.PathLike[str] | RunLog | None) -> RunLog | None:
    """A log, read where its place is given; an SdkerasError refuses one that is not there, or is none."""
    return log if log is None or isinstance(log, RunLog) else read_run_log(str(_path(log)))


@attrs.frozen(kw_only=True)
class TrainingOptions:
    """Options of everything that reads a model and its data as training does.

    Raises:
        SdkerasError: A value out of its range.
    """

    batch_size: int | None = option(
        None, "Batch size of training; default 32, or the data set's own.", _WHOLE, group=WHAT
    )
    learning_rate: float | str | None = option(
        None,
        "Learning rate in place of the optimizer's: a number, or of its schedule the peak or mean so far, or that of "
        "step N.",
        _checked_by(parse_learning_rate),
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
        _checked_by(class_weights.checked),
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
        _MEMORY,
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
        metadata=_words(
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
        _TEXT,
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
        metadata=_words(
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
        validator=_FLAG,
        metadata=_words(
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
        _FRACTION,
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
        metadata=_words(
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
        metadata=_words(
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
    lyapunov_steps: int = option(_STEPS, "Steps to average the exponents over.", COUNT, group=WHAT)
    lyapunov_transient: int = option(_TRANSIENT, "Burn-in steps before.", NOT_NEGATIVE, group=WHAT)
    snapshots: int | None = option(
        None,
        "Also take the supremum of SD's definition over N snapshots of training, this checkpoint the first.",
        _WHOLE,
        metavar="N",
        more="Training continues from here on a copy, with the real optimizer. At each snapshot four probes of the "
        "pilot's minibatches: 4 N - 1 times the pilot's products; with max_hvps or time_limit it is held to its share.",
        group=WHAT,
    )
    every: int | None = option(None, "Training steps between two snapshots.", _WHOLE, metavar="M", group=WHAT)
    bound_inputs: Mapping[str, float] = attrs.field(
        factory=dict,
        converter=_inputs,
        validator=_checked_by(check_inputs),
        metadata=_words(
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
        converter=_path,
        metadata=_words(
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
    cluster_timeout: float = option(300.0, "Seconds to wait for the hosts of a cluster.", _FINITE, metavar="SECONDS")
    scratch: str | None = attrs.field(
        default=None,
        converter=_path,
        validator=must("a folder that exists and can be written to", lambda value: _is_folder(value)),
        metadata=_words(
            "Keep Lanczos bases that do not fit the memory in files in this folder.",
            "Without it, runs whose bases do not fit do without reorthogonalisation. The files have no names and are "
            "gone with the analysis.",
            "DIR",
        ),
    )
    report_to: tuple[str, ...] = attrs.field(
        default=(),
        converter=check_trackers,
        metadata=_words(
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
        changed = (self.lyapunov_steps, self.lyapunov_transient) != (_STEPS, _TRANSIENT)
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
                self.checkpoint is not None and not _is_writable(self.checkpoint),
                f"the checkpoint {self.checkpoint!r} cannot be written there; give the name of a file in a folder that "
                "exists.",
            ),
            (
                self.dtype == MIXED and (full or self.lyapunov is not None or count is not None),
                f"{_NO_STEPS}; take float32 (`dtype`), or leave out `map='full'`, `lyapunov` and `snapshots`.",
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


@attrs.frozen(kw_only=True)
class LyapunovOptions(EstimationOptions):
    """All options of `sdkeras.lyapunov`; see there.

    Raises:
        SdkerasError: A value out of its range, options that contradict each other, or an estimator that lacks what is
            asked of it.
    """

    num_exponents: int | None = option(
        None,
        "Number of exponents; default 10, or all where the state has fewer.",
        COUNT,
        metavar="K",
        more="With windows all.",
        group=WHAT,
    )
    num_steps: int = option(
        _STEPS,
        "Steps to average over; an error bar takes 10 epochs of them, or forks.",
        COUNT,
        more="Minibatches of one epoch are not independent samples.",
        group=PRECISION,
    )
    transient: int = option(_TRANSIENT, "Burn-in steps to discard.", NOT_NEGATIVE, group=PRECISION)
    windows: tuple[int, ...] = attrs.field(
        default=(),
        converter=_with_one,
        metadata=_words(
            "SD, and SD^(m) of M steps taken as one, over the same steps as D_s; all exponents (small models).",
            "Each length a divisor of num_steps; 1 is always among them. Not with a checkpoint, which holds no "
            "Jacobians.",
            "M,M,...",
            group=WHAT,
        ),
    )
    forks: int = option(
        1,
        "Trajectories from the checkpoint, each with minibatches of its own: R-hat and ESS; 4 or more.",
        _FORKS,
        metavar="M",
        more="The first is followed once more with another start frame, whose difference is an error of alignment: "
        "M + 1 times the products and the time of one. Not with windows.",
        group=PRECISION,
    )
    checkpoint: str | None = attrs.field(
        default=None,
        converter=_path,
        metadata=_words(
            "Keep the run in this file, and continue it if it is there.",
            "With forks in files beside it too, FILE.fork2 and so on, and FILE.frame2. "
            "A continued run is bit for bit the uninterrupted one; the same file extends a finished run to a larger "
            "num_steps.",
            "FILE",
            group=OUTPUT,
        ),
    )
    checkpoint_interval: int = option(100, "Steps between two writes of the checkpoint.", COUNT, group=OUTPUT)
    initial_slots: bool = option(False, "For an optimizer that has taken no step: start from its initial slots.")
    estimator: str = option(DEFAULTS["lyapunov"], "Lyapunov estimator to use.", _TEXT)
    time_limit: float | None = option(
        None,
        "Seconds after which no further step begins, as after Ctrl-C.",
        _FINITE,
        metavar="SECONDS",
        more="The windows of the steps so far are still evaluated.",
        group=PRECISION,
    )

    def __attrs_post_init__(self) -> None:
        if self.dtype == MIXED:
            raise SdkerasError(f"{_NO_STEPS}; take float32 or float64 (`dtype`).")
        others = set(self.settings) - {self.estimator}
        if others:
            raise SdkerasError(
                f"settings were given for '{min(others)}', which is not used here; used is: {self.estimator}."
            )
        if self.checkpoint is not None and not _is_writable(self.checkpoint):
            raise SdkerasError(
                f"the checkpoint {self.checkpoint!r} cannot be written there; give the name of a file in a folder that "
                "exists."
            )
        if self.windows:
            _check_windows(self.windows, self.num_steps)
        if self.windows and self.checkpoint is not None:
            raise SdkerasError(
                "windows and a checkpoint cannot be combined: the file holds no Jacobians, and a continued run would "
                "lack those of the steps before; leave one of them out."
            )
        if self.windows and self.forks > 1:
            raise SdkerasError(
                "windows and forks cannot be combined: the dense Jacobians of one trajectory would stand beside the "
                "exponents of several; leave one of them out."
            )
        self.configured_estimator(1)

    @property
    def num_followed(self) -> int:
        """Trajectories that are followed: one, or the forks and the second frame of the first."""
        return self.forks + 1 if self.forks > 1 else 1

    def exponents_of(self, size: int) -> int:
        """How many exponents are computed of a state of this size: with windows all of them by default."""
        default = size if self.windows else min(_EXPONENTS, size)
        return default if self.num_exponents is None else self.num_exponents

    def check_exponents(self, size: int, num_weights: int) -> None:
        """Refuses more exponents than a state of this size has."""
        wanted = self.num_exponents
        if wanted is not None and wanted > size:
            raise SdkerasError(
                f"num_exponents={wanted} exceeds the size of the state, {size} ({num_weights} weights and "
                f"{size - num_weights} slots); use num_exponents <= {size} ({size} gives all of them)."
            )

    def configured_estimator(self, num_exponents: int, steps_per_epoch: int = 1) -> Estimator:
        """The estimator, with what it takes of these settings, and blocks of whole epochs.

        Raises:
            SdkerasError: There is none of this name, it lacks these fields, or a required capability.
        """
        cls = registry.get_estimator("lyapunov", self.estimator)
        fields, settings = attrs.fields_dict(cls), dict(self.settings.get(self.estimator, {}))
        of_the_run = [name for name in settings if name in _OF_THE_RUN]
        if of_the_run:
            raise SdkerasError(
                f"{of_the_run[0]} of '{self.estimator}' is an option of the run; give it as such ("
                f"{', '.join(f'`{name}`' for name in _OF_THE_RUN)})."
            )
        needed = {
            **({"checkpoint": "a checkpoint needs"} if self.checkpoint else {}),
            **(dict.fromkeys(("num_steps", "transient"), "windows need") if self.windows else {}),
            **({"keep_steps": "forks need"} if self.forks > 1 else {}),
        }
        lacking = [name for name in needed if name not in fields]
        if lacking:
            raise SdkerasError(
                f"the lyapunov estimator '{self.estimator}' has no field {lacking[0]}, which {needed[lacking[0]]}; "
                f"take {DEFAULTS['lyapunov']}, or leave them out."
            )
        of_this_run = {**attrs.asdict(self, recurse=False), "num_exponents": num_exponents}
        settings |= {name: of_this_run[name] for name in _OF_THE_RUN if name in fields}
        settings |= {"keep_steps": True} if self.forks > 1 else {}
        settings = {**({"block_unit": steps_per_epoch} if "block_unit" in fields else {}), **settings}
        return configured(cls, settings)

    def dense_bytes(self, size: int, itemsize: int) -> int:
        """Memory that the windows' Jacobians take, and the work on them; 0 without windows."""
        return size**2 * (self.num_steps * itemsize + _WORKING_MATRICES * 8) if self.windows else 0

    def check_dense(self, size: int, itemsize: int) -> None:
        """Refuses windows over Jacobians that are too large, or do not fit the memory."""
        if not self.windows:
            return
        if size > _LARGEST_DENSE:
            raise OperatorSizeError(
                f"windows need dense Jacobians, and the state has {size:,} dimensions; {_LARGEST_DENSE:,} are the "
                "most. Leave windows out, or take a smaller model."
            )
        needed, limit = self.dense_bytes(size, itemsize), memory_limit(self.memory_gb)
        if needed > limit:
            fits = int((limit / size**2 - _WORKING_MATRICES * 8) // itemsize)
            most = f"at most {fits:,} steps fit (`num_steps`)" if fits >= 1 else "not even one step fits"
            raise OperatorSizeError(
                f"the Jacobians of {self.num_steps:,} steps of a state of {size:,} dimensions need {needed / 1e9:.3g} "
                f"GB, and {limit / 1e9:.3g} GB may be used: {most}; or allow more memory (`memory_gb`)."
            )


# Kinds of directions; a trajectory has its file after a colon.
DIRECTIONS = ("eigenvectors", "random", "step")
_TRAJECTORY = "trajectory:"
# Beyond any loss that a picture shows.
_MOST_SPAN = 1e6
# Points along each axis, by the number of axes.
_POINTS = {1: 41, 2: 21}


def _are_directions(value: Value) -> bool:
    return isinstance(value, str) and (value in DIRECTIONS or (value.startswith(_TRAJECTORY) and len(value) > 11))


@attrs.frozen(kw_only=True)
class LandscapeOptions(EstimationOptions):
    """All options of `sdkeras.landscape`; see there.

    Raises:
        SdkerasError: A value out of its range, or options that contradict each other.
    """

    samples: int = option(4096, "Take the loss over a random subset of this many samples.", COUNT, group=PRECISION)
    mode: Mode = option(
        "train", "Mode of dropout and batch normalization: 'train' or 'inference'.", one_of(MODES), group=WHAT
    )
    directions: str = option(
        "eigenvectors",
        "Where to look: eigenvectors, random, step (the optimizer's next update), or trajectory:PATH, the first "
        "principal components of recorded weights.",
        must(f"one of {', '.join(DIRECTIONS)}, or trajectory:PATH", _are_directions),
        metavar="eigenvectors|random|step|trajectory:PATH",
        more="In two dimensions the step's second direction is the top eigenvector, made orthogonal to the step. PATH "
        "is what `sdkeras.study.TrajectoryRecorder` wrote, a matrix of weights, or a folder with a trajectory.npz.",
        group=WHAT,
    )
    dimensions: int = option(
        1,
        "A line, or a plane: 1 or 2.",
        must("1 or 2", lambda value: is_number(value, whole=True) and value in (1, 2)),
        metavar="1|2",
        group=WHAT,
    )
    span: float | None = option(
        None,
        "How far to each side, in units of the directions; by default by their kind.",
        must("positive, at most 1e6", lambda value: is_number(value) and 0 < value <= _MOST_SPAN),
        more="Eigenvectors and components have length 1 (by default as far as the quadratic model adds the loss once "
        "more, or as the trajectory goes), the step is itself (default 4), and random directions are as long as all "
        "the weights (default 1).",
        group=WHAT,
    )
    points: int | None = option(
        None,
        "Points along each axis; default 41, in two dimensions 21.",
        must("a whole number from 3 to 1001", lambda value: is_number(value, whole=True) and 3 <= value <= 1001),
        group=PRECISION,
    )
    filter_normalized: bool = option(
        False,
        "Scale each filter of the directions to the length of the weights' own filter; biases stay.",
        group=WHAT,
    )
    rho: float | None = option(
        None,
        "Also the worst loss within this distance of the weights (SAM's sharpness).",
        _FINITE,
        more="A lower bound, by projected ascent. 0.05 is usual in SAM.",
        metavar="R",
        group=WHAT,
    )
    adaptive_rho: float | None = option(
        None,
        "The same within this distance in units of each weight's size (adaptive sharpness, ASAM).",
        _FINITE,
        more="It does not change where one layer of a ReLU net is multiplied by a number and the next divided by it. "
        "0.5 is usual in ASAM.",
        metavar="R",
        group=WHAT,
    )
    ascent_steps: int = option(
        20, "Steps of ascent from each start, a loss and a gradient each.", COUNT, group=PRECISION
    )
    initial_slots: bool = option(False, "For a step of an optimizer that has taken none: take its initial slots.")

    def __attrs_post_init__(self) -> None:
        if self.points is None:
            object.__setattr__(self, "points", _POINTS[self.dimensions])
        if self.trajectory is not None and not os.path.exists(self.trajectory):
            raise SdkerasError(
                f"there is no file {in_one_line(self.trajectory, 100)}; give what TrajectoryRecorder or a "
                "study kept (`directions='trajectory:PATH'`)."
            )
        if self.directions == "step" and self.mode != "train":
            raise SdkerasError(
                "the optimizer's step is of training mode; leave out mode, or take other directions (`mode`, "
                "`directions`)."
            )
        if self.settings:
            unknown = min(set(self.settings) - {"lanczos"}, default="")
            if unknown:
                raise SdkerasError(f"settings were given for '{unknown}', which is not used here; used is: lanczos.")

    @property
    def trajectory(self) -> str | None:
        """The file of recorded weights, where directions come from one."""
        return self.directions[len(_TRAJECTORY) :] if self.directions.startswith(_TRAJECTORY) else None

    @property
    def num_points(self) -> int:
        """Points of the whole grid."""
        return int((self.points or 0) ** self.dimensions)


@attrs.frozen(kw_only=True)
class CriticalOptions(TrainingOptions):
    """All options of `sdkeras.critical`; see there.

    Raises:
        SdkerasError: A value out of its range.
    """

    samples: int | None = option(
        None, "Take the loss over this many samples, drawn at random; default all.", COUNT, group=PRECISION
    )
    minibatches: int | None = option(
        None,
        "Take the updates of N minibatches of training, and each minibatch's own loss, in place of all the data.",
        COUNT,
        more="The answer is then the median over them, with its 95 % interval from six minibatches on. Each costs as "
        "many forward passes as all the data would, of a minibatch.",
        metavar="N",
        group=WHAT,
    )
    tolerance: float = option(
        0.02, "Width of the bracket around the critical learning rate, relative to it.", _FRACTION, group=PRECISION
    )
    initial_slots: bool = option(False, "For an optimizer that has taken no step: take its initial slots.")


def _is_writable(path: str) -> bool:
    """Whether a file of this name can be kept where it is."""
    try:
        return (
            bool(path)
            and "\0" not in path
            and not Path(path).is_dir()
            and os.access(Path(path).parent, os.W_OK | os.X_OK)
        )
    except (OSError, ValueError):  # a name too long, a NUL in it
        return False


def _is_folder(path: str | None) -> bool:
    """Whether a file can be made there."""
    try:
        with tempfile.TemporaryFile(dir=path):
            return bool(path)
    except (OSError, ValueError, TypeError):
        return False


def _check_windows(windows: Sequence[int], num_steps: int) -> None:
    """Refuses windows that do not cover the steps evenly, with the nearest choices that do."""
    if windows[0] < 1:
        raise SdkerasError(f"windows must be positive, got {windows[0]}.")
    uneven = [m for m in windows if num_steps % m]
    if not uneven:
        return
    m, whole = uneven[0], math.lcm(*windows)
    divisors = [k for k in range(1, num_steps + 1) if num_steps % k == 0]
    near = [*[k for k in divisors if k < m][-1:], *[k for k in divisors if k > m][:1]]
    below = num_steps // whole * whole
    steps = [count for count in (below, below + whole) if count > 0]
    raise SdkerasError(
        f"a window of {m} steps does not divide the {num_steps:,} steps, and the windows must cover the same ones: "
        f"take {' or '.join(map(str, near))} in its place, or {' or '.join(f'{count:,}' for count in steps)} steps "
        "(`num_steps`), which all the windows divide."
    )


_O = TypeVar("_O")
_R = TypeVar("_R")


def takes_options(
    options: Callable[_P, _O],
) -> Callable[[Callable[[Model, Data, _O], _R]], Callable[Concatenate[Model, Data, _P], _R]]:
    """Gives a function (model, data, options) the options as keywords: signature, checks and text of its docstring.

    The line 'options: {options}' of the docstring becomes the list of them.
    """
    fields, types = attrs.fields_dict(cast(type[Options], options)), get_type_hints(options)
    keywords = {  # with types in place of their names, so that choices are in sight; converted fields take more
        name: each if fields[name].converter else each.replace(annotation=types[name])
        for name, each in inspect.signature(options).parameters.items()
    }
    lines: list[str] = []
    for field in fields.values():
        text = f"{field.name}: {field.metadata['help']} {field.metadata['more']}".rstrip()
        lines += textwrap.wrap(text, 120, initial_indent=" " * 8, subsequent_indent=" " * 12, break_on_hyphens=False)

    def decorate(function: Callable[[Model, Data, _O], _R]) -> Callable[Concatenate[Model, Data, _P], _R]:
        @functools.wraps(function)
        def call(model: Model, data: Data, *args: _P.args, **values: _P.kwargs) -> _R:
            check_options(function.__name__, values, keywords)
            checked = options(*args, **values)
            with telling(cast(TrainingOptions, checked).progress) as tell:
                return function(model, data, attrs.evolve(cast(Value, checked), progress=tell))

        signature = inspect.signature(function)
        inputs = list(signature.parameters.values())[:2]
        setattr(call, "__signature__", signature.replace(parameters=[*inputs, *keywords.values()]))  # noqa: B010
        call.__doc__ = (function.__doc__ or "").replace("        options: {options}", "\n".join(lines))
        return cast(Callable[Concatenate[Model, Data, _P], _R], call)

    return decorate
