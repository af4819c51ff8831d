"""All options of an analysis, in one list, from which signatures, docstrings and commands come."""

from __future__ import annotations

import functools
import inspect
import math
import numbers
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Concatenate, ParamSpec, TypeVar, cast

import attrs

from sdkeras.dimension.bounds import check_inputs
from sdkeras.errors import SdkerasError, did_you_mean
from sdkeras.files import class_weights
from sdkeras.files.keras_types import Data, Loss, Model
from sdkeras.operators.modes import DTYPES, MODES, PRODUCT_MODES
from sdkeras.results.arrays import Value
from sdkeras.results.progress import Progress

DEFAULT_SAMPLES = 4096
# Steps of a trajectory.
DEFAULT_STEPS = 1000
DEFAULT_TRANSIENT = 100
# Gigabytes; beyond all machines, and so that bytes stay exact numbers.
_MOST_MEMORY = 1e6
MAPS = ("auto", "hessian", "full")
# Rates of a schedule that can be asked for by name, beside 'step:N'.
_NAMED_RATES = ("peak", "mean")

_P = ParamSpec("_P")
_T = TypeVar("_T")
Validator = Callable[[object, "attrs.Attribute[Value]", object], None]


def parse_learning_rate(text: float | str) -> float | str:
    """Parses a learning rate: a number, or the choice of a rate of the optimizer's schedule.

    Args:
        text: A number, its digits, 'peak', 'mean' or 'step:N'.

    Returns:
        The number, positive and finite; or 'peak', 'mean' or 'step:N' with N >= 0 without leading zeros.

    Raises:
        SdkerasError: Anything else.
    """
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


def is_number(value: object, *, whole: bool = False) -> bool:
    """Whether it is a real number, of Python or NumPy, and if asked a whole one; True and False are not."""
    return isinstance(value, numbers.Integral if whole else numbers.Real) and not isinstance(value, bool)


def must(expected: str, holds: Callable[[Value], bool]) -> Validator:
    """Refuses a value for which `holds` is false; None stands for an option that was left out."""

    def validate(instance: object, field: attrs.Attribute[Value], value: object) -> None:
        if not (holds(value) or (value is None and field.default is None)):
            raise SdkerasError(f"{field.name} is {value!r}; it must be {expected}.")

    return validate


def one_of(choices: tuple[str, ...]) -> Validator:
    return must(f"one of {', '.join(choices)}", lambda value: isinstance(value, str) and value in choices)


def _checked_by(check: Callable[[Value], object]) -> Validator:
    def validate(instance: object, field: attrs.Attribute[Value], value: object) -> None:
        check(value)

    return validate


COUNT = must("a positive whole number", lambda value: is_number(value, whole=True) and value > 0)
POSITIVE = must("positive", lambda value: is_number(value) and value > 0)
NOT_NEGATIVE = must("0 or more", lambda value: is_number(value, whole=True) and value >= 0)
FRACTION = must("between 0 and 1", lambda value: is_number(value) and 0 < value < 1)
MEMORY = must(f"positive and at most {_MOST_MEMORY:g}", lambda value: is_number(value) and 0 < value <= _MOST_MEMORY)


def words(group: str, text: str, *, more: str = "", metavar: str = "") -> dict[str, str]:
    """Metadata of an option: one sentence for every reader (`text`), and further text for the docstring (`more`)."""
    return {"help": text, "more": more, "metavar": metavar, "group": group}


def option(default: _T, *validators: Validator, group: str, text: str, more: str = "", metavar: str = "") -> _T:
    """A field with its `words`. Type checkers take it for its default."""
    return attrs.field(
        default=default, validator=list(validators), metadata=words(group, text, more=more, metavar=metavar)
    )


def _names(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(names)


def _settings(settings: Mapping[str, Mapping[str, Value]] | None) -> Mapping[str, Mapping[str, Value]]:
    return settings or {}


def _inputs(inputs: Mapping[str, float] | None) -> Mapping[str, float]:
    return inputs or {}


@attrs.frozen(kw_only=True)
class Options:
    """All options of `analyze`; see there.

    Raises:
        SdkerasError: A value out of its range, or options that contradict each other.
    """

    batch_size: int | None = option(
        None, group="training", text="Batch size of training; default 32, or the data set's own."
    )
    learning_rate: float | str | None = option(
        None,
        group="training",
        metavar="F|peak|mean|step:N",
        text="Learning rate in place of the optimizer's: a number, or of its schedule the peak or mean so far, or that "
        "of step N.",
        more="A number; or, where there is a schedule, 'peak' or 'mean' over the steps so far, or 'step:N', the rate "
        "that step N used, counted from 0. Without a learning rate (0 at the end of a schedule, or several in a "
        "MultiOptimizer) threshold, ratio, exponents, sharpness dimension and bounds are None, and everything else is "
        "measured. The map 'full' takes the rates that the optimizer has.",
    )
    loss: Loss = option(
        None,
        group="training",
        metavar="LOSS",
        text="Loss in place of the compiled one: NAME[:FIELD[=VALUE]...] of a Keras loss, as huber:delta=0.1, or "
        "FILE.py:FUNCTION or MODULE:FUNCTION for a loss_fn(model, batch).",
        more="An uncompiled model needs it. A Keras loss object also works.",
    )
    loss_fn: Loss = option(
        None,
        group="training",
        text="Function (model, batch) in place of the compiled loss, which runs the model itself.",
        more="As a custom training step does; see `sdkeras.EmpiricalLoss`.",
    )
    class_weight: Mapping[int, float] | None = option(
        None,
        _checked_by(class_weights.checked),
        group="training",
        metavar="CLASS=W,...",
        text="The class_weight of fit, which no file holds: 0=1.0,1=9.0; other classes weigh 1.",
    )
    params: str | None = option(
        None,
        group="function",
        metavar="REGEX",
        text="Analyse only the trainable variables whose path this regular expression finds.",
    )
    samples: int = option(
        DEFAULT_SAMPLES,
        COUNT,
        group="function",
        text="Random subset for the data-set Hessian.",
        more="Minibatches are drawn from all the data.",
    )
    mode: str = option(
        "train",
        one_of(MODES),
        group="function",
        text="Mode of dropout and batch normalization: 'train' or 'inference'.",
    )
    map: str = option(
        "auto",
        one_of(MAPS),
        group="function",
        text="auto: the optimizer's own step where it is known; hessian: |1 - eta*alpha|; full: singular values of the "
        "whole step of any optimizer.",
        more="'auto' takes the true step of SGD, with momentum on the state of weights and velocity; and of Adam, "
        "AdamW, Nadam and RMSprop with their second moments frozen as the last step left them (not training's own "
        "random dynamical system, in which they move). For every other optimizer, and where there are no second "
        "moments yet, it takes |1 - eta alpha|, and says so. 'hessian' always takes that, as the paper does. "
        "'full' takes the singular values of the real step's Jacobian on weights and slots, in coordinates that the "
        "answer names and that its values depend on.",
    )
    dtype: str = option(
        "float32",
        one_of(DTYPES),
        group="function",
        text="Precision of the Hessian-vector products (HVPs): 'float32' or 'float64'.",
    )
    product_mode: str = option(
        "auto", one_of(PRODUCT_MODES), group="function", text=f"How HVPs are computed: {', '.join(PRODUCT_MODES)}."
    )
    estimators: tuple[str, ...] = attrs.field(
        default=(),
        converter=_names,
        metadata=words(
            "estimators",
            "Estimators to use; repeatable.",
            more="Spectrum ones (for the map 'full' singular_values ones) estimate SD, one after the other; an "
            "eigenpairs or trace one replaces the default for the data-set Hessian. Default: slq (golub-kahan), "
            "lanczos, randomized-trace.",
            metavar="NAME",
        ),
    )
    settings: Mapping[str, Mapping[str, Value]] = attrs.field(
        factory=dict,
        converter=_settings,
        metadata=words(
            "estimators",
            "Settings of estimators by name and field.",
            more='For example {"slq": {"num_steps": 80}}.',
            metavar="NAME.FIELD=VALUE",
        ),
    )
    exact: bool = option(False, group="estimators", text="Exact spectra of minibatches first (small models).")
    exact_minibatches: int | None = option(
        None, COUNT, group="estimators", text="Number of minibatches with exact spectra; adaptive by default."
    )
    runs: int | None = option(
        None,
        COUNT,
        group="estimators",
        text="Runs (minibatch and probe) of each estimator that is not exact, in place of the tolerance.",
    )
    tolerance: float = option(
        0.05,
        FRACTION,
        group="estimators",
        text="Target half-width of SD's interval, relative to the codimension.",
    )
    max_hvps: int | None = option(
        None,
        COUNT,
        group="budget",
        text="Budget of Hessian-vector products for all stages; required steps run anyway.",
        more="Verification is included; half of what it leaves is kept for SD and what follows it. Tracing, "
        "verification and one run of SD are done even when the budget is exhausted, and a warning says by how much "
        "they exceeded it. A measurement for which it had no room is None, with the reason in a warning.",
    )
    time_limit: float | None = option(
        None,
        POSITIVE,
        group="budget",
        metavar="SECONDS",
        text="Time budget for all stages; required steps run anyway.",
        more="Seconds from the start of `analyze`; an HVP under way is finished.",
    )
    memory_gb: float | None = option(
        None, MEMORY, group="budget", metavar="GB", text="Memory for bases and dense matrices."
    )
    seed: int = option(0, NOT_NEGATIVE, group="function", text="Seed for all random draws.")
    allow_unverified: bool = option(
        False, group="function", text="Continue with an operator that failed its verification."
    )
    per_layer: bool = option(
        False, group="further", text="Also measure eigenvalue, trace and codimension of each layer's diagonal block."
    )
    lyapunov: int | None = option(
        None,
        COUNT,
        group="further",
        metavar="K",
        text="Also estimate K Lyapunov exponents by continuing training from the checkpoint.",
        more="`sdkeras.lyapunov` has more settings. If they determine D_s, the bounds are taken at it.",
    )
    lyapunov_steps: int = option(DEFAULT_STEPS, COUNT, group="further", text="Steps to average the exponents over.")
    lyapunov_transient: int = option(DEFAULT_TRANSIENT, NOT_NEGATIVE, group="further", text="Burn-in steps before.")
    snapshots: int | None = option(
        None,
        group="further",
        metavar="N",
        text="Also take the supremum of SD's definition over N snapshots of training, this checkpoint the first.",
        more="Training continues from here on a copy, with the real optimizer. The minibatches are those of the first "
        "estimate, so that it costs N - 1 times its products; with max_hvps or time_limit it is held to its share.",
    )
    every: int | None = option(None, group="further", metavar="M", text="Training steps between two snapshots.")
    bound_inputs: Mapping[str, float] = attrs.field(
        factory=dict,
        converter=_inputs,
        validator=_checked_by(check_inputs),
        metadata=words(
            "bounds",
            "Inputs of the generalization bounds by name; see `sdkeras.dimension.bounds.INPUTS`.",
            metavar="NAME=VALUE",
        ),
    )
    estimate_bound_inputs: bool = option(
        False,
        group="bounds",
        text="Estimate loss_bound and lipschitz, where not given, from single examples (lower bounds).",
    )
    workers: int | None = option(
        None,
        COUNT,
        group="budget",
        text="Threads; default 1, or one per core where TensorFlow has one intra-op thread.",
    )
    progress: Callable[[Progress], None] | None = option(
        None, group="budget", text="Function called with progress reports."
    )

    def __attrs_post_init__(self) -> None:
        _check_full_map(self)
        _check_lyapunov(self)
        _check_snapshots(self)

    @property
    def is_all_training(self) -> bool:
        """Whether all variables are analysed in training mode, as training's own step moves them."""
        return self.params is None and self.mode == "train"


def _check_full_map(options: Options) -> None:
    if options.map != "full":
        return
    if not options.is_all_training:
        raise SdkerasError(
            "the map full is of training's step as it is, of all variables and in training mode; leave out params and "
            "mode, or take the map auto (`map='auto'`)."
        )
    if options.per_layer:
        raise SdkerasError(
            "per_layer takes diagonal blocks of the Hessian, and the map full is of the whole step, whose singular "
            "values do not split by layers; leave out one of them (`per_layer`, `map='full'`)."
        )
    if options.snapshots is not None:
        raise SdkerasError(
            "the supremum over snapshots is of the maps auto and hessian, of a Hessian's spectrum; "
            "leave out one of them (`snapshots`, `map='full'`)."
        )


def _check_lyapunov(options: Options) -> None:
    defaults = (DEFAULT_STEPS, DEFAULT_TRANSIENT)
    if options.lyapunov is None:
        if (options.lyapunov_steps, options.lyapunov_transient) != defaults:
            raise SdkerasError(
                "lyapunov_steps and lyapunov_transient apply to Lyapunov exponents, and none are requested "
                "(`lyapunov=K`)."
            )
    elif not options.is_all_training:
        raise SdkerasError(
            "Lyapunov exponents are of training as it is, of all variables and in training mode; leave out params and "
            "mode, or the exponents (`lyapunov`)."
        )


def _check_snapshots(options: Options) -> None:
    count, every = options.snapshots, options.every
    if count is None and every is None:
        return
    if count is None or every is None:
        raise SdkerasError(
            f"snapshots is {count} and every is {every}; a supremum over snapshots needs both: how many "
            "(`snapshots=N`) and the training steps between two (`every=M`)."
        )
    if count < 2:
        raise SdkerasError(f"snapshots is {count}; it must be 2 or more, the checkpoint itself being the first.")
    if every < 1:
        raise SdkerasError(f"every is {every}; it must be at least 1 step.")
    if not options.is_all_training:
        raise SdkerasError(
            "snapshots are of training as it is, of all variables and in training mode; leave out params and mode, or "
            "the snapshots (`snapshots`)."
        )


def shared(name: str, **changes: Value) -> Value:
    """A field that another record of options has in common with `Options`.

    Args:
        name: The field.
        **changes: Differences: `default`, or one of the metadata.
    """
    field = attrs.fields_dict(Options)[name]
    default = changes.pop("default", field.default)
    return attrs.field(
        default=default, validator=field.validator, converter=field.converter, metadata={**field.metadata, **changes}
    )


_O = TypeVar("_O")
_R = TypeVar("_R")


def takes_options(
    options: Callable[_P, _O],
) -> Callable[[Callable[[Model, Data, _O], _R]], Callable[Concatenate[Model, Data, _P], _R]]:
    """Gives a function (model, data, options) the options as keywords: signature, checks and text of its docstring.

    The line 'options: {options}' of the docstring becomes the list of them.
    """

    def decorate(function: Callable[[Model, Data, _O], _R]) -> Callable[Concatenate[Model, Data, _P], _R]:
        keywords = inspect.signature(options).parameters

        @functools.wraps(function)
        def call(model: Model, data: Data, *args: _P.args, **values: _P.kwargs) -> _R:
            for name in values:
                if name not in keywords:
                    hint = did_you_mean(name, keywords).strip()
                    raise TypeError(f"{function.__name__}() has no option {name!r}" + (f"; {hint}" if hint else "."))
            return function(model, data, options(*args, **values))

        signature = inspect.signature(function)
        inputs = list(signature.parameters.values())[:2]
        setattr(call, "__signature__", signature.replace(parameters=[*inputs, *keywords.values()]))  # noqa: B010
        call.__doc__ = (function.__doc__ or "").replace("        options: {options}", documented(options))
        return cast(Callable[Concatenate[Model, Data, _P], _R], call)

    return decorate


def documented(options: Callable[..., object]) -> str:
    """The options as lines of a docstring."""
    lines = []
    for field in attrs.fields(cast(type[Options], options)):
        text = f"{field.name}: {field.metadata['help']} {field.metadata.get('more', '')}".rstrip()
        lines += textwrap.wrap(text, 120, initial_indent=" " * 8, subsequent_indent=" " * 12, break_on_hyphens=False)
    return "\n".join(lines)
