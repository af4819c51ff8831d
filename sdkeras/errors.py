"""The errors a caller may want to catch; each carries the exit status the command line gives it.

A message says what is wrong, what was given and what to do.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Collection, Iterable
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")
_U = TypeVar("_U")


class SdkerasError(Exception):
    """Base class: wrong use or unusable input."""

    exit_status = 2


class ArgumentTypeError(SdkerasError, TypeError):
    """An argument is of another type than the function takes."""


class ModelError(SdkerasError):
    """The model cannot be read or analysed."""


class DataError(SdkerasError):
    """The data cannot be read, do not fit the model, or are not finite."""


class PluginError(SdkerasError):
    """An estimator plugin is broken or breaks its kind's contract."""


class UnknownEstimatorError(PluginError):
    """No estimator of that kind and name is installed."""


class MapError(SdkerasError):
    """An estimator does not know the map to be analysed.

    Attributes:
        estimator: Its name.
    """

    def __init__(self, estimator: str, message: str) -> None:
        super().__init__(message)
        self.estimator = estimator


class OperatorSizeError(SdkerasError):
    """The operator is too large (memory) or too small for what was asked of it."""


class NonFiniteError(SdkerasError, ValueError):
    """A product, a gradient, a loss or a result came out NaN or infinite."""


class VerificationError(SdkerasError):
    """The operator failed its check against finite differences, symmetry or repeatability."""

    exit_status = 4


class BudgetError(SdkerasError):
    """A limit on products or time leaves no room for the next product; an operator raises it in place of one.

    Attributes:
        reason: Which limit.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason} left no room for it.")
        self.reason = reason


class Interrupted(SdkerasError):
    """A trajectory was asked to stop, and does before its next step; the steps so far are whole."""

    exit_status = 130


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """The question whether a near name was meant, with a space after it, or "" where none is near.

    Letters and digits are compared, in lower case: dashes that options have in common make none near.
    """
    known = {_letters(each): each for each in names}
    near = difflib.get_close_matches(_letters(name), known, 1)
    return f"did you mean '{known[near[0]]}'? " if near else ""


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, name.lower()))


def check_options(function: str, names: Iterable[str], known: Collection[str]) -> None:
    """Refuses options that a function does not have.

    Raises:
        TypeError: As Python's own, with the question whether a near one was meant.
    """
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known).strip()
            raise TypeError(f"{function}() has no option {name!r}" + (f"; {hint}" if hint else "."))


def with_checked_options(init: Callable[_P, None]) -> Callable[_P, None]:
    """A constructor that refuses options of other names as `check_options` does, in place of Python's own words."""
    function, known = init.__qualname__.partition(".")[0], tuple(inspect.signature(init).parameters)

    @functools.wraps(init)
    def checked(*args: _P.args, **options: _P.kwargs) -> None:
        check_options(function, options, known)
        init(*args, **options)

    return checked


def counted(count: int, noun: str, plural: str = "") -> str:
    """A count with its noun: "1 run", "2 runs"."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


# How to come by what a function takes, by the name of its type.
_HOW = {
    "Analysis": "sdkeras.analyze(model, (x, y)) makes one, sdkeras.Analysis.load('run.json') reads one",
    "Axes": "`_, ax = matplotlib.pyplot.subplots()` makes one; of several, choose one by its index",
    "EmpiricalLoss": "sdkeras.EmpiricalLoss(model, (x, y)) makes one",
    "LyapunovRun": "sdkeras.lyapunov(model, (x, y)) makes one",
    "RunLog": "sdkeras.track([...], (x, y), log_dir=...) makes one",
    "UpdateMap": "sdkeras.UpdateMap(loss, model.optimizer) makes one",
}


def instance(value: object, name: str, kind: type[_T], *others: type[_U]) -> _T | _U:
    """The value of the argument of this name, which must be of one of these types.

    Raises:
        ArgumentTypeError: It is of another one; the message says how to come by the right one.
    """
    if isinstance(value, kind) or isinstance(value, others):  # noqa: SIM101  # mypy knows no tuple of both
        return value
    names = [each.__name__ for each in (kind, *others)]
    wanted, how = " or ".join(names), [_HOW[each] for each in names if each in _HOW]
    given = type(value).__name__
    raise ArgumentTypeError("; ".join([f"{name} must be of type {wanted}, got {given}", *how]) + ".")
