"""`--fail-if PATH OP NUMBER [and|or ...]`: conditions on a run.json, parsed by hand and checked before the work."""

from __future__ import annotations

import json
import math
import operator
import re
import types
import typing
from collections.abc import Callable
from typing import Any, TypeAlias

import attrs
import click

from sdkeras.errors import SdkerasError, did_you_mean
from sdkeras.reporting.comparison import Comparison
from sdkeras.results.answers import Analysis, CriticalRun, LandscapeRun, LyapunovRun, Run
from sdkeras.results.arrays import FloatArray
from sdkeras.results.document import walk
from sdkeras.results.log import Measurement
from sdkeras.results.measured import Measured

CONDITION_HELD = 3
# Before a path, of two runs: B minus A, of A, of B.
OF_TWO = ("delta", "a", "b")

_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
_FORM = re.compile(r"\s*([\w.]+)\s*(<=|>=|==|!=|<|>)\s*(\S+)\s*")
# Blocks of run.json that are empty, or hold nulls, without a learning rate.
_NEED_A_RATE = (
    *("sharpness_dimension", "estimates", "rds_sharpness"),
    *("edge_of_stability", "bounds", "layers", "supremum"),
)
# Of a position in a list; int() takes no more than 4,300.
_MOST_DIGITS = 18
NumberAt = Callable[[str], float]
Record = Run | Measurement
# A type as an annotation has it.
Kind: TypeAlias = Any
_EXAMPLES = {
    Analysis: "for example 'edge_of_stability.ratio > 1.1 or sharpness_dimension.codimension < 20'",
    LyapunovRun: "for example 'lyapunov.values.0 > 0.01 or lyapunov.sharpest.value > 20'",
    CriticalRun: "for example 'critical.ratio.value > 1'",
    LandscapeRun: "for example 'worst_case.0.increase > 0.1'",
    Measurement: "for example 'values.sharpness_ratio.value > 1.1'",
}


@attrs.frozen
class Condition:
    """Comparisons joined by and/or; `and` binds more tightly. Outer: or, inner: and, each (path, operator, number)."""

    alternatives: tuple[tuple[tuple[str, str, float], ...], ...]

    def holds(self, number_at: NumberAt) -> bool:
        """Whether it holds; every comparison is looked at, so that a null never hides behind an `or`."""
        outcomes = [
            [_COMPARE[symbol](number_at(path), number) for path, symbol, number in group] for group in self.alternatives
        ]
        return any(all(group) for group in outcomes)

    def __str__(self) -> str:
        return " / ".join(
            f"{path} {symbol} {number:g}" for group in self.alternatives for path, symbol, number in group
        )


def exit_status(condition: Condition | None, number_at: NumberAt) -> int:
    """The exit status that `--fail-if` asks for; says so where the condition holds."""
    if condition is None or not condition.holds(number_at):
        return 0
    click.echo(f"sdkeras: --fail-if holds: {condition}", err=True)
    return CONDITION_HELD


def numbers_of(run: Record, name: str = "this run") -> NumberAt:
    """The numbers of a run by their paths; a path without one is an error."""
    values = dict(walk(run))

    def number_at(path: str) -> float:
        value = values.get(path)
        if isinstance(value, Measured):
            value = value.value
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            reason = _reason(run, path.partition(".")[0])
            raise SdkerasError(
                f"--fail-if: {path} is null in {name}, so the condition can be neither true nor false"
                + (f": {reason}" if reason else ".")
            )
        if isinstance(value, str):
            raise SdkerasError(f"--fail-if: {path} is {json.dumps(value)[:60]}, not a number; name a path to one.")
        return float(value)

    return number_at


def _reason(run: Record, block: str) -> str:
    """Why a number of this block may be missing, as far as the run says."""
    if isinstance(run, Measurement):
        return "; ".join(run.notes)
    return run.optimizer.learning_rate_missing if block in _NEED_A_RATE else ""


def numbers_of_two(a: Run, b: Run, comparison: Comparison) -> NumberAt:
    """The numbers of B by their paths; with a prefix those of A or B, or B minus A where that means something."""
    of_a, of_b = numbers_of(a, "A"), numbers_of(b, "B")

    def number_at(path: str) -> float:
        prefix, _, of_run = path.partition(".")
        if prefix not in OF_TWO:
            return of_b(path)
        if prefix != "delta":
            return (of_a if prefix == "a" else of_b)(of_run)
        reason = comparison.why_incomparable(of_run)
        if reason:
            raise SdkerasError(f"--fail-if: {of_run} of A and B are not comparable: {reason}.")
        return of_b(of_run) - of_a(of_run)

    return number_at


def parse(text: str | None, document: type[Record] = Analysis, prefixes: tuple[str, ...] = ()) -> Condition | None:
    """The condition of `--fail-if`, whose paths must be of numbers that this kind of file has; None without a text.

    Args:
        text: PATH OP NUMBER [and|or ...].
        document: The kind of file whose paths it names.
        prefixes: Words that may stand before a path of run.json, with a dot.
    """
    if text is None:
        return None
    groups = [re.split(r"\band\b", alternative) for alternative in re.split(r"\bor\b", text)]
    return Condition(tuple(tuple(_comparison(each, document, prefixes) for each in group) for group in groups))


def _comparison(text: str, document: type[Record], prefixes: tuple[str, ...]) -> tuple[str, str, float]:
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
    prefix, _, of_run = path.partition(".")
    _check_path(of_run if prefix in prefixes and of_run else path, document)
    return path, symbol, number


def _check_path(path: str, document: type[Record]) -> None:
    kind: Kind = document
    names = path.split(".")
    for position, name in enumerate(names):
        fields, held = _fields(kind), _held(kind, name)
        if held is None:
            where = ".".join(names[:position]) or getattr(document, "WRITTEN_BY", ("a measurement",))[0]
            hint = did_you_mean(name, fields)
            hint += f"it has: {', '.join(fields)}." if fields else f"lists take a number from 0, {_EXAMPLES[document]}."
            raise SdkerasError(f"--fail-if: {where} has no '{name}'; {hint}")
        kind = held
    if kind not in (int, float, bool):
        fields = _fields(kind)
        hint = f"go on with one of: {', '.join(fields)}" if fields else "name a path to one"
        raise SdkerasError(f"--fail-if: {path} is not a number; {hint}.")


def _fields(kind: Kind) -> dict[str, Kind]:
    return {field.name: field.type for field in attrs.fields(attrs.resolve_types(kind))} if attrs.has(kind) else {}


def _held(kind: Kind, name: str) -> Kind:
    """The type of what a record, dict or list of this type holds under a name or position; None where it holds none."""
    arguments: tuple[Kind, ...] = typing.get_args(kind)
    origin: Kind = typing.get_origin(kind)
    is_position = name.isascii() and name.isdigit() and len(name) <= _MOST_DIGITS
    held = _fields(kind).get(name)
    if origin is dict:  # which names it has is known once it has run
        held = arguments[1] if attrs.has(arguments[1]) else float
    elif is_position and kind == FloatArray:
        held = float
    elif is_position and origin is tuple:
        held = arguments[0] if arguments[-1] is Ellipsis else dict(enumerate(arguments)).get(int(name))
    if isinstance(held, types.UnionType):
        held = next(each for each in typing.get_args(held) if each is not types.NoneType)
    return held
