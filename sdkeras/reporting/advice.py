"""Arguments in messages: as a Python caller writes them, or as options where the command line is the face.

Messages and notes name an argument in backticks, as Python would: `learning_rate=F`, `allow_unverified=True`,
`loss=NAME, dtype='float64'`, or the name alone, `snapshots`; a capital word stands for a value of the reader's.
`printable`, which everything that is shown passes through, renders them: unchanged in Python; as `--learning-rate F`,
`--allow-unverified`, `--loss NAME --dtype float64` and `--snapshots` inside `as_options`. Backticks around anything
that is no option of the running command stay.
"""

from __future__ import annotations

import ast
import contextlib
import contextvars
import re
from collections.abc import Iterator, Mapping

_options: contextvars.ContextVar[Mapping[str, str]] = contextvars.ContextVar("options", default={})  # noqa: B039
_IN_BACKTICKS = re.compile(r"`([^`\n]+)`")


@contextlib.contextmanager
def as_options(options: Mapping[str, str]) -> Iterator[None]:
    """Scope in which arguments are shown as options: the option of each argument, {'learning_rate': '--learning-rate'}.

    The mapping may grow inside the scope, as commands are loaded.
    """
    token = _options.set(options)
    try:
        yield
    finally:
        _options.reset(token)


def rendered(message: str) -> str:
    """The message with its arguments as the caller writes them."""
    options = _options.get()
    return _IN_BACKTICKS.sub(lambda match: _rendered(match, options), message) if options else message


def _rendered(match: re.Match[str], options: Mapping[str, str]) -> str:
    try:
        call = ast.parse(f"f({match[1]})", mode="eval").body
    except SyntaxError:
        return match[0]
    if not isinstance(call, ast.Call):
        return match[0]
    arguments = [(_text(name), None) for name in call.args] + [(each.arg, each.value) for each in call.keywords]
    if not all(name in options for name, _ in arguments):
        return match[0]
    words = [(options[str(name)], "" if value is None else _text(value)) for name, value in arguments]
    return " ".join(f"{option} {value}".strip() for option, value in words)


def _text(value: ast.expr) -> str:
    """A value as on the command line: nothing for True and False, {'a': {'b': 1}} as a.b=1."""
    if isinstance(value, ast.Constant):
        return "" if isinstance(value.value, bool) else str(value.value)
    if isinstance(value, ast.Dict):
        pairs = [(_text(key), each) for key, each in zip(value.keys, value.values, strict=True) if key is not None]
        return ",".join(f"{key}{'.' if isinstance(each, ast.Dict) else '='}{_text(each)}" for key, each in pairs)
    return ast.unparse(value)
