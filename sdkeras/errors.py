"""The errors a caller may want to catch; each carries the exit status the command line gives it.

A message says what is wrong, what was given and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SdkerasError(Exception):
    """Base class: wrong use or unusable input."""

    exit_status = 2


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


def counted(count: int, noun: str, plural: str = "") -> str:
    """A count with its noun: "1 run", "2 runs"."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"
