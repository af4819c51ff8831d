"""Records that are JSON files of their own."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar, TypeVar

import attrs
import numpy as np

from sdkeras.errors import SdkerasError
from sdkeras.files.atomic import check_is_file, shown, write_whole
from sdkeras.files.reading import Json, blamed_on, parsed_json
from sdkeras.results.arrays import Value
from sdkeras.results.codec import as_plain, from_plain
from sdkeras.results.measured import Measured
from sdkeras.results.shown import Shown

SCHEMA_VERSION = 1


_Doc = TypeVar("_Doc", bound="Document")


def walk(record: Value, path: str = "") -> Iterator[tuple[str, Value]]:
    """Every value of a record with its path in the JSON file, in the order of the file.

    A number with evidence beside it comes with it: that of `value` in `interval`, `stderr`, `residual` and `converged`,
    that of NAME or NAME_value in NAME_interval and so on.

    Yields:
        (path, value): 'hessian.trace.value' and a `Measured`, or a number, a text, True, False or None.

    Example:
        >>> list(walk({"codimension": 24.0, "map": "sgd"}))
        [('codimension', 24.0), ('map', 'sgd')]
    """
    for name, value in _parts(record):
        if attrs.has(type(value)) or isinstance(value, (dict, tuple, list, np.ndarray)):
            yield from walk(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", _with_evidence(record, name, value)


def _parts(record: Value) -> Iterable[tuple[str, Value]]:
    if attrs.has(type(record)):
        return ((field.name, getattr(record, field.name)) for field in attrs.fields(type(record)))
    return record.items() if isinstance(record, dict) else ((str(k), each) for k, each in enumerate(record))


def _with_evidence(record: Value, name: str, value: Value) -> Value:
    stem = name.removesuffix("value")
    prefix = stem if not stem or stem.endswith("_") else f"{stem}_"
    evidence = {kind: getattr(record, prefix + kind, None) for kind in ("residual", "stderr", "interval")}
    if isinstance(value, (bool, str)) or not any(each is not None for each in evidence.values()):
        return value
    return Measured(math.nan if value is None else value, getattr(record, f"{prefix}converged", True), **evidence)


class Document(Shown):
    """A record that is written to a JSON file of its own and read back.

    Two are equal if their JSON is: arrays by element, NaN equal to NaN.
    """

    DOCUMENT: ClassVar[str] = ""  # the file's own name for its kind; "" for an analysis, whose files have none
    WRITTEN_BY: ClassVar[tuple[str, str]] = ("run.json", "sdkeras analyze")  # file and command, for messages

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Document) and type(self) is type(other) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(self.to_json())

    def to_dict(self) -> dict[str, Json]:
        """The JSON document as Python objects: dicts, lists, texts and numbers; NaN and infinities as None."""
        return {**({"document": self.DOCUMENT} if self.DOCUMENT else {}), **as_plain(self)}

    def to_json(self) -> str:
        """The JSON text: strict JSON, NaN and infinities as null."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls: type[_Doc], text: str, where: str = "the text") -> _Doc:
        """Reads what `to_json` wrote; unknown paths are ignored. An SdkerasError refuses anything else."""
        return cls.from_parsed(parsed_document(text, where, cls.WRITTEN_BY), where)

    @classmethod
    def from_parsed(cls: type[_Doc], document: dict[str, Json], where: str) -> _Doc:
        """The record of a parsed document, which must be of this kind and complete."""
        name, command = cls.WRITTEN_BY
        if document.get("document", "") != cls.DOCUMENT:
            kind = document.get("document", "")
            what = f"says that it is {kind!r:.40}" if kind else "is a run.json of sdkeras analyze"
            raise SdkerasError(f"{where} {what}; {_advice(cls.WRITTEN_BY)}")
        return from_plain(document, cls, f"{where} is not a complete {name}", f"write it again with {command}.")

    def save(self, path: str | os.PathLike[str], *, follow_links: bool = True) -> None:
        """Writes the file, see `write_atomically`."""
        write_atomically(path, self.to_json(), follow_links=follow_links)

    @classmethod
    def load(cls: type[_Doc], path: str | os.PathLike[str]) -> _Doc:
        """Reads the file; an SdkerasError refuses one that is missing, unreadable or of another kind."""
        return cls.from_json(text_of(path, cls.WRITTEN_BY), shown(path))


def _advice(written_by: tuple[str, str]) -> str:
    return f"give a {written_by[0]} written by {written_by[1]}."


def text_of(path: str | os.PathLike[str], written_by: tuple[str, str]) -> str:
    """The text of a file."""
    check_is_file(path, SdkerasError, _advice(written_by))
    with blamed_on(f"{shown(path)} cannot be read", _advice(written_by)):
        return Path(path).read_text(encoding="utf-8-sig")


def parsed_document(text: str, where: str, written_by: tuple[str, str]) -> dict[str, Json]:
    """The text as a JSON object of a schema version that this sdkeras reads; refuses all else, from `where` on."""
    with blamed_on(f"{where} is not JSON", _advice(written_by)):
        document = parsed_json(text)
    if not isinstance(document, dict) or "schema_version" not in document:
        raise SdkerasError(f"{where} has no schema_version; {_advice(written_by)}")
    version = document["schema_version"]
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise SdkerasError(f"{where} has schema_version {version!r:.40}, which is not one; {_advice(written_by)}")
    if version > SCHEMA_VERSION:
        raise SdkerasError(
            f"{where} has schema version {version!r}, this sdkeras reads up to {SCHEMA_VERSION}; update sdkeras."
        )
    return document


def write_atomically(path: str | os.PathLike[str], content: str | bytes, *, follow_links: bool = True) -> None:
    """Writes a file, text in UTF-8, all of it or nothing; an SdkerasError says why it cannot be written.

    What a symbolic link points to is written; without `follow_links`, as for a file that no user has named, a link is
    refused.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    write_whole(path, lambda file: file.write(data), follow_links=follow_links)
