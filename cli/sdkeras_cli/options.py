"""Options of the commands: the library's from the fields of its records, and those that only a command line has.

A field of an attrs class becomes an option by its type, its default and its metadata ('help', 'metavar'). The name of
an option's parameter is the field's, so that the parameters of a command are the arguments of the library's function.
"""

from __future__ import annotations

import ast
import contextlib
import math
import os
import shlex
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import attrs
import cattrs
import click

from sdkeras.dimension.bounds import check_inputs
from sdkeras.errors import SdkerasError
from sdkeras.estimators import registry
from sdkeras.estimators.select import plain_types, type_name
from sdkeras.files import class_weights
from sdkeras.files.atomic import shown
from sdkeras.reporting.trackers.names import check_trackers
from sdkeras.results.answers import Analysis, LyapunovRun
from sdkeras.results.arrays import Value
from sdkeras.results.log import read_run_log
from sdkeras.runs.declare import EXPERT, GROUPS, OUTPUT, PRECISION, WHAT, parse_learning_rate
from sdkeras.runs.options import Options

_Command = TypeVar("_Command", bound=Callable[..., object])


# Commands and the groups of their help


# Below each group, of the options that the command has.
_EXAMPLES = {
    WHAT: {"batch_size": "--batch-size 128", "learning_rate": "--learning-rate peak", "samples": "--samples 2000"},
    PRECISION: {"preset": "--preset quick", "max_hvps": "--max-hvps 5000", "seed": "--seed 1"},
    OUTPUT: {"html_path": "--html report.html", "open_page": "--open"},
    EXPERT: {"device": "--device cpu", "memory_gb": "--memory 8", "jobs": "--jobs 2"},
}


class _Option(click.Option):
    """An option that knows the group of a help that it stands in."""

    def __init__(self, *arguments: Value, group: str = OUTPUT, **settings: Value) -> None:
        super().__init__(*arguments, **settings)
        self.group = group


class _Grouped(click.Command):
    """A command whose help has its options in groups, what is required first and then by name."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        options = [each for each in self.get_params(ctx) if isinstance(each, click.Option)]
        options.sort(key=lambda option: (not option.required, option.opts[-1]))
        for title in GROUPS:
            group = [option for option in options if getattr(option, "group", OUTPUT) == title]
            records = [record for option in group if (record := option.get_help_record(ctx)) is not None]
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)
                    examples = [text for name, text in _EXAMPLES[title].items() if name in {o.name for o in group}]
                    if examples:
                        formatter.write(f"{'':{formatter.current_indent}}Example: {' '.join(examples)}\n")


def command(example: str) -> Callable[[Callable[..., object]], click.Command]:
    """A command whose help ends with an example, of one line or several."""
    lines = "\n  ".join(["Example:", *example.splitlines()])
    return click.command(cls=_Grouped, epilog=f"\b\n{lines}")


def option(*names: str, group: str = OUTPUT, **settings: Value) -> Callable[[_Command], _Command]:
    """`click.option` in a group of the help."""
    return click.option(*names, cls=_Option, group=group, **settings)


class FiniteRange(click.FloatRange):
    """A range of numbers without NaN and infinity, which click lets through."""

    def convert(self, value: Value, param: click.Parameter | None, ctx: click.Context | None) -> Value:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


class InputPath(click.Path):
    """A path that is read, which must not be empty: `Path("")` is the current folder."""

    def convert(self, value: Value, param: click.Parameter | None, ctx: click.Context | None) -> Value:
        path = super().convert(value, param, ctx)
        if not path:
            self.fail("it is empty; give a path.", param, ctx)
        return path


class RunPath(InputPath):
    """The file of an answer, or the folder in which `--out` has put one."""

    def convert(self, value: Value, param: click.Parameter | None, ctx: click.Context | None) -> Value:
        path = super().convert(value, param, ctx)
        if not os.path.isdir(path):
            return path
        names = [kind.WRITTEN_BY[0] for kind in (Analysis, LyapunovRun)]
        files = [name for name in names if os.path.isfile(os.path.join(path, name))]
        if len(files) != 1:
            holds = " and ".join(files) if files else f"neither {' nor '.join(names)}"
            self.fail(f"the folder {shown(path)} holds {holds}; name the file.", param, ctx)
        return os.path.join(path, files[0])


PATH, RUN = InputPath(), RunPath()
POSITIVE = FiniteRange(min=0, min_open=True)
FRACTION = FiniteRange(min=0, max=1, min_open=True, max_open=True)
COUNT = click.IntRange(min=1)
NOT_NEGATIVE = click.IntRange(min=0)


# Texts as values


def learning_rate(context: click.Context, option: click.Parameter, text: str | None) -> float | str | None:
    """A rate, or which one of a schedule."""
    try:
        return None if text is None else parse_learning_rate(text)
    except SdkerasError as error:
        raise click.BadParameter(str(error), context, option) from error


def bound_inputs(context: click.Context, option: click.Parameter, texts: Sequence[str]) -> dict[str, float] | None:
    """NAME=VALUE as numbers by name, which must be known and in range."""
    known: dict[str, float] = {}
    for text in texts:
        name, equals, digits = text.partition("=")
        try:
            known[name] = float(digits)
        except ValueError:
            equals = ""
        if not (equals and name):
            raise SdkerasError(f"--bound {text}: expected NAME=VALUE with a number, for example loss_bound=2.3.")
    check_inputs(known)
    return known or None


def settings_of(kinds: Sequence[str], example: str) -> Callable[..., dict[str, dict[str, Value]]]:
    """A callback that reads NAME.FIELD=VALUE as values of the fields' types, by estimator of these kinds."""

    def settings(context: Value, option: Value, assignments: Sequence[str]) -> dict[str, dict[str, Value]]:
        values: dict[str, dict[str, Value]] = {}
        for assignment in assignments:
            path, equals, text = assignment.partition("=")
            name, dot, field = path.partition(".")
            if not (equals and dot and name and field):
                raise SdkerasError(f"--set {assignment}: expected NAME.FIELD=VALUE, for example {example}.")
            cls = registry.get_estimator(registry.kind_of(name, kinds), name)
            fields = [each.name for each in attrs.fields(cls)]
            if field not in fields:
                raise SdkerasError(f"--set {assignment}: '{name}' has no field '{field}'; it has: {', '.join(fields)}.")
            values.setdefault(name, {})[field] = _value(assignment, plain_types(cls).get(field, ()), text)
        return values

    return settings


def log_folder(context: click.Context, option: click.Parameter, path: str | None) -> str | None:
    """The path of a log, which must be one."""
    if path is not None:
        read_run_log(path)
    return path


_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
_FROM_TEXT = cattrs.Converter()  # which reads int, float and str as they are
_FROM_TEXT.register_structure_hook(bool, lambda text, _: _BOOLEANS[text.lower()])
_FROM_TEXT.register_structure_hook(types.NoneType, lambda text, _: {"none": None}[text.lower()])


def _value(assignment: str, kinds: tuple[type, ...], text: str) -> Value:
    """The text as a value of a field's types; of alternatives None comes first, then they as they are declared."""
    if not kinds:
        raise SdkerasError(f"--set {assignment}: this field can be set from Python only.")
    for each in sorted(kinds, key=lambda kind: kind is not types.NoneType):
        with contextlib.suppress(ValueError, KeyError):
            return _FROM_TEXT.structure(text, each)
    raise SdkerasError(f"--set {assignment}: '{text}' is not a value of type {type_name(kinds)}.")


# Options of the library

# Arguments of `click.option` beyond what a field says.
_CLICK: dict[str, dict[str, Value]] = {
    "learning_rate": {"callback": learning_rate},
    "checkpoint": {"type": click.Path()},
    "log": {"type": PATH, "callback": log_folder},
    "class_weight": {"callback": lambda _, __, text: None if text is None else class_weights.parsed(text)},
    "scratch": {"type": click.Path()},
    "estimators": {"multiple": True},
    "operator": {"multiple": True},
    "settings": {"multiple": True, "callback": settings_of(registry.ANALYSIS_KINDS, "slq.num_steps=80")},
    "tolerance": {"type": FRACTION},
    "seed": {"type": NOT_NEGATIVE},
    "lyapunov_transient": {"type": NOT_NEGATIVE},
    "bound_inputs": {"multiple": True, "callback": bound_inputs},
    "points": {"type": click.IntRange(3, 1001)},
    "dimensions": {"type": click.IntRange(1, 2)},
    "draws": {"type": click.IntRange(1, 1000)},
    "snapshots": {"type": click.IntRange(min=2)},
    "forks": {"type": click.INT},  # 1, or 4 or more
    "report_to": {"multiple": True, "callback": lambda _, __, names: check_trackers(names)},
}
# Options that are not called as the argument is.
_SPELLED = {
    "memory_gb": "--memory",
    "bound_inputs": "--bound",
    "estimators": "--estimator",
    "settings": "--set",
    "num_steps": "--steps",
    "exact": "--exact/--no-exact",
}
# What another analysis does not take over: where it was kept, since its options differ.
_OF_THIS_CALL = ("checkpoint", "progress")
_OF_PYTHON = ("loss_fn", "min_runs", "runs", "workers", "progress")


def options_of(record: type, *names: str, **changes: Mapping[str, Value]) -> Callable[[_Command], _Command]:
    """The fields of a record as options of a command.

    Args:
        record: An attrs class.
        names: Fields to take.
        changes: Further fields, with the arguments of `click.option` that are otherwise in this command. Without any
            names and changes all fields are taken that a command line can give.
    """
    chosen = (
        (*names, *changes)
        if names or changes
        else [name for name in attrs.fields_dict(record) if name not in _OF_PYTHON]
    )

    def decorate(command: _Command) -> _Command:
        for name in reversed(chosen):
            arguments = _arguments(record, name) | _CLICK.get(name, {}) | dict(changes.get(name, {}))
            command = option(_spelled(name), name, **arguments)(command)
        return command

    return decorate


def _spelled(name: str) -> str:
    """The option of a field."""
    return _SPELLED.get(name, f"--{name.replace('_', '-')}")


def _arguments(record: type, name: str) -> dict[str, Value]:
    field, kind = attrs.fields_dict(record)[name], typing.get_type_hints(record)[name]
    words = {"help": field.metadata["help"], "group": field.metadata["group"]}
    kinds = (kind,) if typing.get_origin(kind) is typing.Literal else typing.get_args(kind) or (kind,)
    chosen = [click.Choice(typing.get_args(each)) for each in kinds if typing.get_origin(each) is typing.Literal]
    if bool in kinds:
        return {"is_flag": True, "default": field.default, **words}
    default = field.default if isinstance(field.default, (int, float, str)) else None
    number = None if str in kinds else COUNT if int in kinds else POSITIVE if float in kinds else None
    metavar = field.metadata["metavar"] or {COUNT: "N", POSITIVE: "X"}.get(number)
    shown = {"default": default, "show_default": default is not None, "metavar": metavar}
    return {"type": [*chosen, number][0], **shown, **words}


def command_line(call: str, beginning: Sequence[str], given: Mapping[str, Value]) -> str:
    """The command that does what a call of the library does, with the options that were given, as it is typed.

    Args:
        call: 'sdkeras.analyze(model, data, NAME=VALUE, ...)', whose arguments override those given.
        beginning: The command, its model and its data.
        given: Values of options of the analysis by name; those at their defaults are left out.
    """
    parsed = ast.parse(call, mode="eval").body
    keywords = parsed.keywords if isinstance(parsed, ast.Call) else []
    new = {str(k.arg): k.value.id if isinstance(k.value, ast.Name) else ast.literal_eval(k.value) for k in keywords}
    values = {name: given[name] for name, field in attrs.fields_dict(Options).items() if _is_given(field, given)}
    if "tolerance" in new:
        values.pop("runs", None)  # a number of runs stands in place of the tolerance
    values |= new
    words = [word for name, value in values.items() for word in _typed(name, value) if name not in _OF_THIS_CALL]
    return shlex.join([*beginning, *words])


def _is_given(field: attrs.Attribute[Value], given: Mapping[str, Value]) -> bool:
    """Whether a value was given that is not the default, nor an empty one."""
    value = given.get(field.name)
    return value is not None and value != field.default and not (isinstance(value, (dict, tuple)) and not value)


def _typed(name: str, value: Value) -> list[str]:
    """An option with its value as they are typed."""
    option, _, negative = _spelled(name).partition("/")
    if isinstance(value, bool):
        return [option if value else negative]
    texts = [str(value)]
    if name == "settings":
        texts = [f"{each}.{field}={one}" for each, fields in value.items() for field, one in fields.items()]
    elif name == "class_weight":
        texts = [",".join(f"{label}={weight}" for label, weight in value.items())]
    elif isinstance(value, dict):
        texts = [f"{key}={one}" for key, one in value.items()]
    elif isinstance(value, tuple):
        texts = [str(each) for each in value]
    return [word for text in texts for word in (option, text)]


def unset(text: str) -> dict[str, Value]:
    """For `options_of`: an option that is None where it is not given, since the default is another library call's."""
    return {"default": None, "show_default": False, "help": text}


# Options of the command line alone

_DATA: dict[str, Value] = {
    "type": click.Path(),
    "metavar": "DATA",
    "group": WHAT,
    "help": "FILE.npz, X.npy,Y.npy, a tf.data folder, or module:callable.",
}
data, data_or_none = option("--data", required=True, **_DATA), option("--data", **_DATA)
custom_objects = option(
    "--custom-objects", type=click.Path(), metavar="FILE", group=WHAT, help="Python file with the model's own classes."
)
unsafe = option(
    "--unsafe",
    "safe_mode",
    flag_value=False,
    default=True,
    is_flag=True,
    group=EXPERT,
    help="Load Lambda layers, whose code is in the model file.",
)
json = option("--json", "json_path", type=click.Path(), metavar="FILE", help="Write the answer here.")
html = option("--html", "html_path", type=click.Path(), metavar="FILE", help="Write the report page here.")
open_page = option("--open", "open_page", is_flag=True, help="Open the report page in the browser.")
fail_if = option(
    "--fail-if", "expression", metavar="EXPR", help="Exit with 3 if it holds: PATH OP NUMBER [and|or ...]."
)
dry_run = option("--dry-run", is_flag=True, help="Show what would be done and what it would cost.")
verbose = option("--verbose", is_flag=True, help="Show every number, check and assumption in the terminal.")
quiet = option("--quiet", is_flag=True, help="Nothing in the terminal but errors.")
debug = option("--debug", is_flag=True, expose_value=False, group=EXPERT, help="Show tracebacks.")
seed = option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, metavar="N", show_default=True, group=PRECISION)


report_to = option(
    "--report-to",
    metavar="NAME",
    help="Report to tensorboard[:DIR], wandb or mlflow too; repeatable.",
    **_CLICK["report_to"],
)


def out(files: str, *further: str, **settings: Value) -> Callable[[_Command], _Command]:
    """`--out DIR`: a folder for these files."""
    known: dict[str, Value] = {"type": click.Path(), "metavar": "DIR", "help": f"Folder for {files}; made if missing."}
    return option("--out", *further, "out", **(known | settings))


def of_a_report(*options: Callable[[Value], Value]) -> Callable[[_Command], _Command]:
    """These options, and the last ones of every command that shows a report."""

    def decorate(command: _Command) -> _Command:
        for option in reversed((*options, html, open_page, verbose, quiet, debug)):
            command = option(command)
        return command

    return decorate


def of_a_run(*files: str) -> Callable[[_Command], _Command]:
    """The last options of a command that works on a model: its classes, where the answer goes, how much is said."""
    return of_a_report(custom_objects, unsafe, json, out(" and ".join(files)), fail_if, dry_run)
