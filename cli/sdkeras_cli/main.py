"""The `sdkeras` command: a lazy group, so that a command loads only what it needs."""

from __future__ import annotations

import codecs
import contextlib
import errno
import importlib
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from typing import NoReturn, TextIO

import click

import sdkeras
from sdkeras.errors import SdkerasError, did_you_mean
from sdkeras.reporting.advice import as_options
from sdkeras.results.arrays import Value
from sdkeras_cli import interrupts
from sdkeras_cli.interrupts import INTERRUPTED

_COMMANDS = {
    "analyze": ("sdkeras_cli.analyze", "Analyse a saved model: Hessian, edge of stability, sharpness dimension."),
    "lyapunov": ("sdkeras_cli.lyapunov", "Lyapunov exponents along real training steps, starting from a saved model."),
    "critical": ("sdkeras_cli.critical", "The learning rate at which the optimizer's next step would raise the loss."),
    "landscape": ("sdkeras_cli.landscape", "The loss along directions through the weights, and its worst in a ball."),
    "demo": ("sdkeras_cli.demo", "Train a small net on real digits and analyse it."),
    "report": ("sdkeras_cli.report", "Show the report of a run.json again, or write its page."),
    "compare": ("sdkeras_cli.compare", "Compare two run.json files, with error bars."),
    "track": ("sdkeras_cli.track", "Follow a training over time, from the callback's log or from its checkpoints."),
    "watch": ("sdkeras_cli.watch", "Follow a training while it runs: a line for each measurement, and a live page."),
    "study": ("sdkeras_cli.study", "Train a grid of models and see which measures correlate with generalization."),
    "plugins": ("sdkeras_cli.plugins", "Show the installed estimators, or check one."),
}

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Suggesting(click.Group):
    """A group that answers a name it does not know with the nearest one that it does."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, known = args[0], self.list_commands(ctx)
        if name not in known and not name.startswith("-") and not ctx.resilient_parsing:
            hint = did_you_mean(name, known).capitalize()
            ctx.fail(f"No such command '{name}'. {hint}The commands are {', '.join(known)}.")
        return super().resolve_command(ctx, args)


@contextlib.contextmanager
def _told_of_broken_pipes() -> Iterator[None]:
    """Makes an error of the end of who reads the output (`| head`), which click makes exit status 1 without a word."""
    try:
        yield
    except BrokenPipeError as error:
        _drop(sys.stdout)
        raise SdkerasError("the output cannot be written: its reader has closed the pipe (as head does).") from error


def _drop(stream: TextIO) -> None:
    """Lets what a stream still holds go nowhere, where it would fail once more when Python ends."""
    with contextlib.suppress(OSError, ValueError):  # a stream without a file
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


class LazyGroup(Suggesting):
    """Sub-commands whose modules are imported when they are called; their options are added to the context's object.

    Args:
        modules: (module, or module:command, what it does) by name, in the order of the help.
    """

    def __init__(self, *arguments: str, modules: Mapping[str, tuple[str, str]], **options: object) -> None:
        super().__init__(*arguments, **options)  # type: ignore[arg-type]
        self.modules = modules

    def make_context(self, *arguments: Value, **settings: Value) -> click.Context:
        with _told_of_broken_pipes():
            return super().make_context(*arguments, **settings)

    def invoke(self, ctx: click.Context) -> Value:
        with _told_of_broken_pipes():
            return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.modules)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.modules:
            return None
        module, _, name = self.modules[cmd_name][0].partition(":")
        with interrupts.signals(end=True):
            command: click.Command = getattr(importlib.import_module(module), name or "command")
        known = {str(each.name): each.opts[0] for each in command.params if isinstance(each, click.Option)}
        ctx.ensure_object(dict).update(known)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self.modules.items()])


@click.group(cls=LazyGroup, modules=_COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(sdkeras.__version__, prog_name="sdkeras", message="%(prog)s %(version)s")
def cli() -> None:
    """What kind of place in weight space has your Keras training found?"""


def main(arguments: list[str] | None = None) -> NoReturn:
    """Runs the command line and exits.

    0 done, 2 wrong use, 3 --fail-if held, 4 unverified, 5 some runs of a study failed, 130 interrupted.
    """
    if arguments is None:
        interrupts.install()
    _print_everywhere()
    options: dict[str, str] = {}  # of the command, once it is loaded
    with as_options(options):
        _run(sys.argv[1:] if arguments is None else arguments, options)


def _run(arguments: list[str], options: dict[str, str]) -> NoReturn:
    debug = "--debug" in arguments
    try:
        with interrupts.signals(end=False):
            status = cli.main(args=arguments, standalone_mode=False, obj=options)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        sys.exit(2)
    except (click.exceptions.Abort, KeyboardInterrupt):
        status = INTERRUPTED
    except Exception as error:
        expected = isinstance(error, (click.ClickException, SdkerasError, MemoryError))
        if not expected and interrupts.State.raised:  # a library has turned it into an error of its own
            _quit("interrupted.", INTERRUPTED)
        if debug and not expected:
            raise
        if debug and isinstance(error, SdkerasError):
            traceback.print_exc()
        _quit(*_outcome(error, arguments))
    if status == INTERRUPTED:  # what there was until then has been written
        _quit("interrupted.", INTERRUPTED)
    sys.exit(status if isinstance(status, int) else 0)


def _outcome(error: Exception, arguments: list[str]) -> tuple[str, int]:
    """The message of an error of a command with these arguments, and the exit status."""
    if isinstance(error, SdkerasError):
        return str(error), error.exit_status
    if isinstance(error, click.ClickException):
        context = error.ctx if isinstance(error, click.UsageError) else None
        where = "" if context is None else f" See '{context.command_path} --help'."
        message = error.format_message()
        if isinstance(error, click.NoSuchOption):
            message = _no_such_option(error, arguments)
        return f"{message}{where}", 2
    if isinstance(error, MemoryError):
        return "out of memory; analyse fewer parameters (--params), a smaller batch, or set --memory GB.", 2
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        return f"the output cannot be written: {error.strerror}.", 2
    what = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return f"internal error: {what}; run again with --debug for the traceback, and please report it.", 1


def _no_such_option(error: click.NoSuchOption, arguments: list[str]) -> str:
    """The message with the nearest option of the command, also of one that was typed with a single dash."""
    name, command = error.option_name, None if error.ctx is None else error.ctx.command
    if not name.startswith("--"):  # '-b' of -batch-size
        name = next((each for each in arguments if each.startswith(name)), name)
    options = [] if command is None else [each for each in command.params if isinstance(each, click.Option)]
    known = [option for each in options for option in (*each.opts, *each.secondary_opts)]
    begin = [
        option for option in known if "".join(word[0] for word in option[2:].split("-") if word) == name.strip("-")
    ]
    hint = did_you_mean(begin[0] if len(begin) == 1 else name, known).capitalize()  # --lr
    return f"No such option {name!r}. {hint}".rstrip()


def _print_everywhere() -> None:
    """Makes stdout and stderr write what their encoding lacks (ASCII, Latin-1) in other letters, not fail."""
    codecs.register_error("sdkeras", _in_other_letters)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="sdkeras")


def _in_other_letters(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = {"±": "+-", "²": "^2"}
    return "".join(letters.get(c, "?") for c in error.object[error.start : error.end]), error.end


def _quit(message: str, status: int) -> NoReturn:
    from sdkeras.reporting.report import printable  # messages quote model files and third parties' errors

    try:
        click.echo(f"sdkeras: {'error: ' if status != INTERRUPTED else ''}{printable(message)}", err=True)
    except BrokenPipeError:
        _drop(sys.stderr)
    interrupts.State.said = True
    sys.exit(status)
