"""Results of an analysis so far, kept in a file: killed at any moment, the same call goes on to the same bits."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

import attrs
import numpy as np

from sdkeras.errors import SdkerasError
from sdkeras.files.archive import load_checkpoint, save_checkpoint
from sdkeras.files.atomic import only_writer, shown
from sdkeras.files.reading import blamed_on
from sdkeras.results.arrays import Value
from sdkeras.results.codec import as_plain, from_plain

# What the first process finds and all others take from it.
_FIXED = ("limit", "memory", "workers", "product_mode", "verification", "gradient", "products")
_IN_USE = "wait until it has ended, end it, or name another checkpoint"
_ADVICE = "delete it to start again, or name another."
# A write within a stage waits until this many seconds have passed, and until it takes less than 1 % of the time.
_SECONDS_BETWEEN_WRITES, _TIMES_A_WRITE = 2.0, 100.0

_T = TypeVar("_T")


@attrs.frozen
class Entry:
    """A stage, or a run, that is done.

    Attributes:
        value: Its result, as `as_plain` has it.
        products: Products that it took.
        excess: Its part of `Meter.excess`.
    """

    value: Value
    products: int
    excess: list[tuple[str, int, float]]


@attrs.define(eq=False)
class Journal:
    """Results by name, in a file if there is a `path`; without one nothing is kept.

    Attributes:
        about: What another process must have alike, by name; see `claim`.
        fixed: What the first process has found and all others take from it, by name; {} before it has.
    """

    path: str | None = None
    about: dict[str, str] = attrs.field(factory=dict)
    fixed: dict[str, Value] = attrs.field(factory=dict)
    _lines: dict[str, bytes] = attrs.field(factory=dict)
    _written: float = attrs.field(factory=time.monotonic)
    _took: float = 0.0

    def __len__(self) -> int:
        return len(self._lines)

    def __contains__(self, name: str) -> bool:
        return name in self._lines

    def claim(self, about: Mapping[str, str]) -> None:
        """Refuses a file that is about something else.

        Raises:
            SdkerasError: It is of another model, of other data or options, and the message says which.
        """
        if not self.about:
            self.about = dict(about)
        differing = ", ".join(name for name in about if self.about.get(name) != about[name])
        if differing:
            self.refuse(differing)

    def refuse(self, differing: str) -> None:
        """Refuses the file, which differs in these."""
        where = shown(str(self.path))
        raise SdkerasError(f"{where} is the checkpoint of another analysis (it differs in: {differing}); {_ADVICE}")

    def find(self, name: str, kind: type[_T]) -> tuple[_T, Entry] | None:
        """The result of this name, of the type that `as_plain` took apart; None where there is none."""
        line = self._lines.get(name)
        if line is None:
            return None
        where = f"{shown(str(self.path))} is not a complete checkpoint"
        with blamed_on(where, _ADVICE):
            _, value, products, excess = json.loads(line)
            entry = Entry(value, int(products), [(str(what), int(more), float(late)) for what, more, late in excess])
        return from_plain(value, kind, where, _ADVICE), entry

    def add_all(self, results: Iterable[tuple[str, object, int, list[tuple[str, int, float]]]]) -> None:
        """Keeps results, each (name, result, products, excess); the file is written where it is time to."""
        if self.path is None:
            return
        for name, result, products, excess in results:
            self._lines[name] = json.dumps([name, as_plain(result), products, excess]).encode()
        if time.monotonic() - self._written > max(_SECONDS_BETWEEN_WRITES, _TIMES_A_WRITE * self._took):
            self.save()

    def save(self) -> None:
        """Writes the file, once it is known what it is about."""
        if self.path is None or not self.fixed:
            return
        began = time.monotonic()
        lines = np.frombuffer(b"\n".join(self._lines.values()), np.uint8)
        save_checkpoint(self.path, {"analysis": self.about, "fixed": json.dumps(self.fixed), "done": lines})
        self._written = time.monotonic()
        self._took = self._written - began


@contextlib.contextmanager
def journal(path: str | None) -> Iterator[Journal]:
    """The journal in a file, new or as another process has left it, which nobody else writes in the scope.

    Raises:
        SdkerasError: It is in use, damaged, or another file.
    """
    if path is None:
        yield Journal()
        return
    with only_writer(path, _IN_USE):
        held = _read(path) if os.path.exists(path) else Journal(path)
        try:
            yield held
        finally:  # after Ctrl-C and errors as well
            held.save()


def _read(path: str) -> Journal:
    content = load_checkpoint(path)
    with blamed_on(f"{shown(path)} is not a checkpoint of analyze", _ADVICE):
        about, fixed = content["analysis"], json.loads(content["fixed"])
        lines = [line for line in content["done"].tobytes().split(b"\n") if line]
        if not isinstance(about, dict) or not isinstance(fixed, dict) or not about or not {*_FIXED} <= {*fixed}:
            raise ValueError("it is not what an analysis writes")
        return Journal(path, about, fixed, {str(json.loads(line)[0]): line for line in lines})
