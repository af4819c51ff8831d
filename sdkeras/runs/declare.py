"""How options are declared: their checks, words and groups, and functions that take them as keywords; no TensorFlow."""

from __future__ import annotations

import functools
import inspect
import math
import os
import tempfile
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar, cast, get_type_hints

import attrs
import numpy as np

from sdkeras.errors import SdkerasError, check_options
from sdkeras.files.keras_types import Data, Model
from sdkeras.files.user_code import in_one_line
from sdkeras.reporting.progress_bar import telling
from sdkeras.results.arrays import Value, is_number

# What an option is about: the groups of a command's help, in their order.
WHAT, PRECISION, OUTPUT, EXPERT = GROUPS = ("What to analyse", "How precisely", "Output", "Expert")
# Gigabytes; beyond all machines, and so that bytes stay exact numbers.
_MOST_MEMORY = 1e6
# Rates of a schedule that can be asked for by name, beside 'step:N'.
_NAMED_RATES = ("peak", "mean")

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


def must(expected: str, holds: Callable[[Value], bool]) -> Validator:
    """Refuses a value for which `holds` is false; None stands for an option that was left out."""

    def validate(instance: object, field: attrs.Attribute[Value], value: Value) -> None:
        if not (holds(value) or (value is None and field.default is None)):
            raise SdkerasError(f"{field.name} is {in_one_line(repr(value), 100)}; it must be {expected}.")

    return validate


def one_of(choices: tuple[str, ...]) -> Validator:
    return must(f"one of {', '.join(choices)}", lambda value: isinstance(value, str) and value in choices)


def checked_by(check: Callable[[Value], object]) -> Validator:
    def validate(instance: object, field: attrs.Attribute[Value], value: Value) -> None:
        if value is not None:
            check(value)

    return validate


# Beyond what a machine can count, and what overflows where it meets a float.
MOST = 2**63
COUNT = must("a positive whole number", lambda value: is_number(value, whole=True) and 0 < value < MOST)
POSITIVE = must("positive", lambda value: is_number(value) and (0 < value < MOST or value == math.inf))
FINITE = must("positive and finite", lambda value: is_number(value) and 0 < value < math.inf)
NOT_NEGATIVE = must("0 or more", lambda value: is_number(value, whole=True) and value >= 0)
# Whose least value is said elsewhere, with the reason.
WHOLE = must("a whole number", lambda value: is_number(value, whole=True))
TEXT = must("text", lambda value: isinstance(value, str))
FLAG = must("True or False", lambda value: isinstance(value, (bool, np.bool_)))
FRACTION = must("between 0 and 1", lambda value: is_number(value) and 0 < value < 1)
MEMORY = must(f"positive and at most {_MOST_MEMORY:g}", lambda value: is_number(value) and 0 < value <= _MOST_MEMORY)


def described(text: str, more: str = "", metavar: str = "", group: str = EXPERT) -> dict[str, str]:
    """Metadata of an option: a sentence for every reader (`text`), more for the docstring, its group in a help."""
    return {"help": text, "more": more, "metavar": metavar, "group": group}


def option(
    default: _T, text: str, *validators: Validator, more: str = "", metavar: str = "", group: str = EXPERT
) -> _T:
    """A field with its `described`. Type checkers take it for its default; one that is a flag is held to be one."""
    checks = [FLAG] if isinstance(default, bool) else list(validators)
    return attrs.field(default=default, validator=checks, metadata=described(text, more, metavar, group))


def as_path(path: str | os.PathLike[str] | None) -> str | None:
    try:
        return None if path is None else os.fspath(path)
    except TypeError as error:
        raise SdkerasError(f"a file is named by text or a path, got {path!r}.") from error


def is_writable(path: str) -> bool:
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


def is_folder(path: str | None) -> bool:
    """Whether a file can be made there."""
    try:
        with tempfile.TemporaryFile(dir=path):
            return bool(path)
    except (OSError, ValueError, TypeError):
        return False


_O = TypeVar("_O")
_R = TypeVar("_R")


def takes_options(
    options: Callable[_P, _O],
) -> Callable[[Callable[[Model, Data, _O], _R]], Callable[Concatenate[Model, Data, _P], _R]]:
    """Gives a function (model, data, options) the options as keywords: signature, checks and text of its docstring.

    The line 'options: {options}' of the docstring becomes the list of them.
    """
    fields, types = attrs.fields_dict(cast(type[attrs.AttrsInstance], options)), get_type_hints(options)
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
            with telling(cast(Value, checked).progress) as tell:
                return function(model, data, attrs.evolve(cast(Value, checked), progress=tell))

        signature = inspect.signature(function)
        inputs = list(signature.parameters.values())[:2]
        setattr(call, "__signature__", signature.replace(parameters=[*inputs, *keywords.values()]))  # noqa: B010
        call.__doc__ = (function.__doc__ or "").replace("        options: {options}", "\n".join(lines))
        return cast(Callable[Concatenate[Model, Data, _P], _R], call)

    return decorate
