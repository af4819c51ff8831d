"""Pages that users read, as tests run them: fenced blocks, and the commands in them."""

import re
import shlex
from pathlib import Path

import pytest

from sdkeras_cli import main as cli_main
from sdkeras_cli import request


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a language; a title after it does not matter."""
    return re.findall(rf"```{language}(?: [^\n]*)?\n(.*?)```", page, flags=re.DOTALL)


def call(line: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit status of a line `sdkeras ...`, run in this process and in the folder."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(request, "tensorflow_settings", lambda quiet, device="auto": None)
    words = shlex.split(line, comments=True)
    assert words[0] == "sdkeras"
    with pytest.raises(SystemExit) as end:
        cli_main.main(words[1:])
    return int(end.value.code or 0)


def run_page(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Runs a page from top to bottom, Python blocks in one namespace; a block with a title becomes a file instead."""
    monkeypatch.chdir(folder)
    namespace: dict[str, object] = {"__name__": "page"}
    for language, title, body in re.findall(r"```(\w+)(?: title=\"(.*?)\")?\n(.*?)```", page, flags=re.DOTALL):
        if title:
            (folder / title).write_text(body)
        elif language == "python":
            exec(body, namespace)
        elif language == "sh":
            for line in body.replace("\\\n", " ").splitlines():
                assert call(line, folder, monkeypatch) == 0, line
    return namespace
