"""A group whose sub-commands are modules, imported when they are called."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

import click

from sdkeras_cli import interrupts


class LazyGroup(click.Group):
    """Sub-commands by name; each is the `command` of its module, and its options are added to the context's object.

    Args:
        modules: (module, what it does) by name, in the order of the help.
    """

    def __init__(self, *arguments: str, modules: Mapping[str, tuple[str, str]], **options: object) -> None:
        super().__init__(*arguments, **options)  # type: ignore[arg-type]
        self.modules = modules

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.modules)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.modules:
            return None
        with interrupts.ending():
            command: click.Command = importlib.import_module(self.modules[cmd_name][0]).command
        known = {str(each.name): each.opts[0] for each in command.params if isinstance(each, click.Option)}
        ctx.ensure_object(dict).update(known)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self.modules.items()])
