"""`--fail-if PATH OP NUMBER [and|or ...]`: conditions on a run.json, parsed by hand and checked before the work."""

from __future__ import annotations

import json
import math
import operator
import re
import types
import typing
from collections.abc import Callable
from typing import Any

import attrs

from sdkeras.errors import SdkerasError, did_you_mean
from sdkeras.reporting.comparison import Comparison
from sdkeras.results.answers import Analysis, LyapunovRun
from sdkeras.results.arrays import FloatArray
from sdkeras.results.codec import as_plain
from sdkeras.results.log import Measurement

_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
_FORM = re.compile(r"\s*([\w.]+)\s*(<=|>=|==|!=|<|>)\s*(\S+)\s*")
# Before a path, of two runs: B minus A, of A, of B.
OF_TWO = ("delta", "a", "b")
# Blocks of run.json that are empty, or hold nulls, without a learning rate.
_NEED_A_RATE = (
    "sharpness_dimension",
    "estimates",
    "rds_sharpness",
    "edge_of_stability",
    "bounds",
    "layers",
    "supremum",
)
# Of a position in a list; int() takes no more than 4,300.
_MOST_DIGITS = 18
NumberAt = Callable[[str], float]
Record = Analysis | LyapunovRun | Measurement
_EXAMPLES = {
    Analysis: "for example 'edge_of_stability.ratio > 1.1 or sharpness_dimension.codimension < 20'",
    LyapunovRun: "for example 'lyapunov.values.0 > 0.01 or lyapunov.sharpest.value > 20'",
    Measurement: "for example 'values.sharpness_ratio.value > 1.1'",
}


@attrs.frozen
class Condition:
    """One comparison: a path of run.json, an operator and a number."""

    path: str
    symbol: str
    number: float

    def holds(self, number_at: NumberAt) -> bool:
        """Whether it holds of the number at its path.

        Raises:
            SdkerasError: There is no number at the path.
        """
        return _COMPARE[self.symbol](number_at(self.path), self.number)

    def __str__(self) -> str:
        return f"{self.path} {self.symbol} {self.number:g}"


@attrs.frozen
class Expression:
    """Comparisons joined by and/or; `and` binds more tightly. Outer: or, inner: and."""

    alternatives: tuple[tuple[Condition, ...], ...]

    def holds(self, number_at: NumberAt) -> bool:
        """Whether it holds; every comparison is looked at, so that a null never hides behind an `or`.

        Raises:
            SdkerasError: A path has no number.
        """
        found = [[condition.holds(number_at) for condition in group] for group in self.alternatives]
        return any(all(group) for group in found)


def numbers_of(run: Record, name: str = "this run") -> NumberAt:
    """The numbers of a run by their paths; a path without one is an error."""
    document = as_plain(run)

    def number_at(path: str) -> float:
        value = document
        for part in path.split("."):
            if isinstance(value, dict):
                value = value.get(part)
            else:
                value = value[int(part)] if isinstance(value, list) and int(part) < len(value) else None
        if value is None:
            reason = _reason(run, path.partition(".")[0])
            raise SdkerasError(
                f"--fail-if: {path} is null in {name}, so the condition can be neither true nor false"
                + (f": {reason}" if reason else ".")
            )
        if not isinstance(value, (int, float)):
            raise SdkerasError(f"--fail-if: {path} is {json.dumps(value)[:60]}, not a number; name a path to one.")
        return float(value)

    return number_at


def _reason(run: Record, block: str) -> str:
    """Why a number of this block may be missing, as far as the run says."""
    if isinstance(run, Measurement):
        return "; ".join(run.notes)
    return run.optimizer.learning_rate_missing if block in _NEED_A_RATE else ""


def numbers_of_two(a: Analysis | LyapunovRun, b: Analysis | LyapunovRun, comparison: Comparison) -> NumberAt:
    """The numbers of B by their paths; with a prefix those of A or B, or B minus A where that means something."""
    of_a, of_b = numbers_of(a, "A"), numbers_of(b, "B")

    def number_at(path: str) -> float:
        prefix, _, rest = path.partition(".")
        if prefix not in OF_TWO:
            return of_b(path)
        if prefix != "delta":
            return (of_a if prefix == "a" else of_b)(rest)
        reason = comparison.why_incomparable(rest)
        if reason:
            raise SdkerasError(f"--fail-if: {rest} of A and B are not comparable: {reason}.")
        return of_b(rest) - of_a(rest)

    return number_at


def parse(text: str, document: type[Record] = Analysis, prefixes: tuple[str, ...] = ()) -> Expression:
    """The expression of `--fail-if`, for runs of this kind.

    Args:
        text: As given.
        document: The kind of file whose paths it names.
        prefixes: What may stand before a path of run.json, with a dot.

    Raises:
        SdkerasError: Not of the form, or a path that no file of this kind has.
    """

    def condition(part: str) -> Condition:
        return _condition(part, document, prefixes)

    alternatives = re.split(r"\bor\b", text)
    return Expression(tuple(tuple(map(condition, re.split(r"\band\b", group))) for group in alternatives))


def _condition(text: str, document: type[Any], prefixes: tuple[str, ...]) -> Condition:
    match, example = _FORM.fullmatch(text), _EXAMPLES[document]
    if match is None:
        raise SdkerasError(f"--fail-if: '{text.strip()}' is not of the form PATH OP NUMBER; {example}.")
    path, symbol, digits = match.groups()
    try:
        number = float(digits)
    except ValueError:
        number = math.nan
    if math.isnan(number):
        raise SdkerasError(f"--fail-if: '{digits}' is not a number; {example}.")
    first, _, rest = path.partition(".")
    _check_path(rest if first in prefixes and rest else path, document)
    return Condition(path, symbol, number)


def _check_path(path: str, document: type[Any]) -> None:
    """Refuses a path that leads to no number in any file of this kind."""
    kind: Any = document
    parts = path.split(".")
    for position, part in enumerate(parts):
        fields = _fields(kind)
        if typing.get_origin(kind) is dict:
            held = typing.get_args(kind)[1]
            kind = held if attrs.has(held) else float  # which there are is known once it has run
        elif fields:
            if part not in fields:
                where = ".".join(parts[:position]) or getattr(document, "WRITTEN_BY", ("a measurement",))[0]
                hint = did_you_mean(part, fields)
                raise SdkerasError(f"--fail-if: {where} has no '{part}'; {hint}it has: {', '.join(fields)}.")
            kind = _not_none(fields[part])
        elif (item := _item(kind, part)) is not None:
            kind = item
        else:
            where = ".".join(parts[:position])
            raise SdkerasError(
                f"--fail-if: {where} has no '{part}'; lists take a number from 0, {_EXAMPLES[document]}."
            )
    if kind not in (int, float, bool):
        inside = list(_fields(kind))
        hint = f"go on with one of: {', '.join(inside)}" if inside else "name a path to one"
        raise SdkerasError(f"--fail-if: {path} is not a number; {hint}.")


def _fields(kind: Any) -> dict[str, Any]:
    if not (isinstance(kind, type) and attrs.has(kind)):
        return {}
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in attrs.fields(kind)}


def _item(kind: Any, part: str) -> Any:
    """The type of a list's entries, if it is a list and the part a position."""
    if not (part.isascii() and part.isdigit() and len(part) <= _MOST_DIGITS):
        return None
    if kind == FloatArray:
        return float
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is not tuple:
        return None
    if arguments[-1] is Ellipsis:
        return arguments[0]
    return arguments[int(part)] if int(part) < len(arguments) else None


def _not_none(kind: Any) -> Any:
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        (only,) = [part for part in typing.get_args(kind) if part is not type(None)]
        return only
    return kind
