"""What an analysis can be told, and what it refuses."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from typing import Any

import attrs

from sdkeras.dimension.bounds import check_inputs
from sdkeras.errors import SdkerasError
from sdkeras.files import class_weights
from sdkeras.operators.modes import DTYPES, MODES, PRODUCT_MODES

DEFAULT_SAMPLES = 4096
# Of a trajectory.
DEFAULT_STEPS = 1000
DEFAULT_TRANSIENT = 100
# Gigabytes; beyond all machines, and so that bytes stay exact numbers.
_MOST_MEMORY = 1e6
MAPS = ("auto", "hessian", "full")
# Rates of a schedule that can be asked for by name, beside 'step:N'.
_NAMED_RATES = ("peak", "mean")


def parse_learning_rate(text: float | str) -> float | str:
    """A learning rate as it is given: a number, or which rate of the optimizer's schedule to take.

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


@attrs.frozen(kw_only=True)
class Options:
    """Everything `analyze` can be told; see there."""

    batch_size: int | None = None
    learning_rate: float | str | None = None
    loss: Any = None
    loss_fn: Any = None
    class_weight: Mapping[int, float] | None = None
    params: str | None = None
    samples: int = DEFAULT_SAMPLES
    mode: str = "train"
    map: str = "auto"
    dtype: str = "float32"
    product_mode: str = "auto"
    estimators: tuple[str, ...] = ()
    settings: Mapping[str, Mapping[str, Any]] = attrs.field(factory=dict)
    exact: bool = False
    exact_minibatches: int | None = None
    runs: int | None = None
    tolerance: float = 0.05
    max_hvps: int | None = None
    time_limit: float | None = None
    memory_gb: float | None = None
    seed: int = 0
    allow_unverified: bool = False
    per_layer: bool = False
    lyapunov: int | None = None
    lyapunov_steps: int = DEFAULT_STEPS
    lyapunov_transient: int = DEFAULT_TRANSIENT
    snapshots: int | None = None
    every: int | None = None
    bound_inputs: Mapping[str, float] = attrs.field(factory=dict)
    estimate_bound_inputs: bool = False
    workers: int | None = None


def is_number(value: Any, *, whole: bool = False) -> bool:
    """Whether it is a real number, of Python or NumPy, and if asked a whole one; True and False are none."""
    return isinstance(value, numbers.Integral if whole else numbers.Real) and not isinstance(value, bool)


def check_options(options: Options) -> None:
    """Refuses values out of their range, and options that contradict each other.

    Raises:
        SdkerasError: See above.
    """

    def refuse(what: str, value: Any, expected: str) -> None:
        raise SdkerasError(f"{what} is {value!r}; it must be {expected}.")

    counts = ("samples", "exact_minibatches", "runs", "max_hvps", "time_limit", "memory_gb", "workers", "lyapunov")
    for name in (*counts, "lyapunov_steps"):
        value = getattr(options, name)
        whole = name not in ("time_limit", "memory_gb")
        if value is not None and not (is_number(value, whole=whole) and value > 0):
            refuse(name, value, "a positive whole number" if whole else "positive")
    if options.memory_gb is not None and options.memory_gb > _MOST_MEMORY:
        refuse("memory_gb", options.memory_gb, f"at most {_MOST_MEMORY:g}")
    if not (is_number(options.tolerance) and 0 < options.tolerance < 1):
        refuse("tolerance", options.tolerance, "between 0 and 1")
    for name, choices in {"mode": MODES, "dtype": DTYPES, "product_mode": PRODUCT_MODES}.items():
        if getattr(options, name) not in choices:
            refuse(name, getattr(options, name), f"one of {', '.join(choices)}")
    class_weights.checked(options.class_weight)
    check_inputs(options.bound_inputs)
    if options.map not in MAPS:
        refuse("map", options.map, f"one of {', '.join(MAPS)}")
    if not is_number(options.seed, whole=True) or options.seed < 0:
        refuse("seed", options.seed, "0 or more")
    if options.map == "full" and (options.params is not None or options.mode != "train"):
        raise SdkerasError(
            "the map full is of training's step as it is, of all variables and in training mode; leave out params and "
            "mode, or take the map auto (--map auto)."
        )
    if options.map == "full" and options.per_layer:
        raise SdkerasError(
            "per_layer takes diagonal blocks of the Hessian, and the map full is of the whole step, whose singular "
            "values do not split by layers; leave out one of them (--per-layer, --map full)."
        )
    if options.map == "full" and options.snapshots is not None:
        raise SdkerasError(
            "the supremum over snapshots is of the maps auto and hessian, of a Hessian's spectrum; "
            "leave out one of them (--snapshots, --map full)."
        )
    if options.lyapunov_transient < 0:
        refuse("lyapunov_transient", options.lyapunov_transient, "0 or more")
    if options.lyapunov is None and (options.lyapunov_steps, options.lyapunov_transient) != (
        DEFAULT_STEPS,
        DEFAULT_TRANSIENT,
    ):
        raise SdkerasError(
            "lyapunov_steps and lyapunov_transient are of Lyapunov exponents, and none are asked for (--lyapunov K)."
        )
    if options.lyapunov is not None and (options.params is not None or options.mode != "train"):
        raise SdkerasError(
            "Lyapunov exponents are of training as it is, of all variables and in training mode; leave out params and "
            "mode, or the exponents (--lyapunov)."
        )
    _check_snapshots(options)


def _check_snapshots(options: Options) -> None:
    count, every = options.snapshots, options.every
    if count is None and every is None:
        return
    if count is None or every is None:
        raise SdkerasError(
            f"snapshots is {count} and every is {every}; a supremum over snapshots needs both: how many (--snapshots "
            "N) and the training steps between two (--every M)."
        )
    if count < 2:
        raise SdkerasError(f"snapshots is {count}; it must be 2 or more, the checkpoint itself being the first.")
    if every < 1:
        raise SdkerasError(f"every is {every}; it must be at least 1 step.")
    if options.params is not None or options.mode != "train":
        raise SdkerasError(
            "snapshots are of training as it is, of all variables and in training mode; leave out params and mode, or "
            "the snapshots (--snapshots)."
        )
