"""Options that several commands have, and the numbers that options take."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import click

from sdkeras.errors import SdkerasError
from sdkeras.files import class_weights
from sdkeras.operators.modes import DTYPES, PRODUCT_MODES

_Command = TypeVar("_Command", bound=Callable[..., Any])


class FiniteRange(click.FloatRange):
    """A range of numbers without NaN and infinity, which click lets through."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


POSITIVE = FiniteRange(min=0, min_open=True)
FRACTION = FiniteRange(min=0, max=1, min_open=True, max_open=True)
COUNT = click.IntRange(min=1)
NOT_NEGATIVE = click.IntRange(min=0)


def _bound_inputs(context: click.Context, option: click.Parameter, texts: tuple[str, ...]) -> dict[str, float] | None:
    """NAME=VALUE as numbers by name."""
    from sdkeras.dimension.bounds import check_inputs

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


bound = click.option(
    "--bound",
    "bound_inputs",
    multiple=True,
    callback=_bound_inputs,
    metavar="NAME=VALUE",
    help="An input of the bounds; repeatable.",
)
estimate_bound_inputs = click.option(
    "--estimate-bound-inputs", is_flag=True, help="Estimate loss_bound and lipschitz where not given."
)
data = click.option(
    "--data",
    type=click.Path(),
    required=True,
    metavar="DATA",
    help="FILE.npz, X.npy,Y.npy, a tf.data folder, or module:callable.",
)
batch_size = click.option("--batch-size", type=COUNT, help="Of training; default 32, or the data set's own.")


def _learning_rate(context: click.Context, option: click.Parameter, text: str | None) -> float | str | None:
    from sdkeras.runs.options import parse_learning_rate

    try:
        return None if text is None else parse_learning_rate(text)
    except SdkerasError as error:
        raise click.BadParameter(str(error), context, option) from error


learning_rate = click.option(
    "--learning-rate",
    callback=_learning_rate,
    metavar="F|peak|mean|step:N",
    help="In place of the one in the file: a number, or of its schedule the peak or mean so far, or that of step N.",
)
loss = click.option(
    "--loss",
    metavar="LOSS",
    help="Replaces the compiled one: NAME[:FIELD[=VALUE]...] of a Keras loss, as huber:delta=0.1, or FILE.py:FUNCTION "
    "or MODULE:FUNCTION for a loss_fn(model, batch).",
)
class_weight = click.option(
    "--class-weight",
    metavar="CLASS=W,...",
    callback=lambda context, option, text: None if text is None else class_weights.parsed(text),
    help="fit's class_weight, which no file holds: 0=1.0,1=9.0; other classes weigh 1.",
)
params = click.option("--params", metavar="REGEX", help="Analyse only the variables whose path this finds.")
dtype = click.option("--dtype", type=click.Choice(DTYPES), default="float32", show_default=True)
product_mode = click.option(
    "--product-mode",
    type=click.Choice(PRODUCT_MODES),
    default="auto",
    show_default=True,
)
settings = click.option(
    "--set", "assignments", multiple=True, metavar="NAME.FIELD=VALUE", help="A setting of an estimator."
)
seed = click.option("--seed", type=NOT_NEGATIVE, default=0, show_default=True)
initial_slots = click.option(
    "--initial-slots", is_flag=True, help="For an optimizer without a step: the slots it would start with."
)
custom_objects = click.option(
    "--custom-objects", type=click.Path(), metavar="FILE", help="Python file with the model's own classes."
)
unsafe = click.option("--unsafe", is_flag=True, help="Load Lambda layers, whose code is in the model file.")
json = click.option("--json", "json_path", type=click.Path(), metavar="OUT", help="Write the answer here.")
html = click.option("--html", "html_path", type=click.Path(), metavar="OUT", help="Write the report page here.")
fail_if = click.option(
    "--fail-if", "expression", metavar="EXPR", help="Exit with 3 if it holds: PATH OP NUMBER [and|or ...]."
)
dry_run = click.option("--dry-run", is_flag=True, help="Show what would be done and what it would cost.")
quiet = click.option("--quiet", is_flag=True, help="Nothing in the terminal but errors.")
debug = click.option("--debug", is_flag=True, help="Show tracebacks.")


def memory(what_for: str) -> Callable[[_Command], _Command]:
    """--memory, and what may be of that size."""
    return click.option("--memory", "memory_gb", type=POSITIVE, metavar="GB", help=f"Memory for {what_for}.")


def allow_unverified(what: str) -> Callable[[_Command], _Command]:
    """--allow-unverified, and what may be unverified."""
    return click.option("--allow-unverified", is_flag=True, help=f"Go on with {what} that failed its verification.")


def of_a_run(command: _Command) -> _Command:
    """The last options of a command that works on a model: its classes, where the answer goes, how much is said."""
    for option in reversed((custom_objects, unsafe, json, html, fail_if, dry_run, quiet, debug)):
        command = option(command)
    return command
