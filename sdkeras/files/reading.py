"""Report the exceptions of reading a damaged or hostile file as the file's fault, in one message."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator
from typing import Any, TypeAlias

from sdkeras.errors import SdkerasError

Json: TypeAlias = Any
# Counts, steps and seeds of real runs fit into 64 bits; what is larger overflows wherever it is used as a float.
_LARGEST = 2**64
_WORDS: dict[type[Exception], str] = {
    RecursionError: "it is nested too deeply",
    MemoryError: "it says that it is larger than the memory",
    KeyError: "it has no part named {}",
    UnicodeDecodeError: "not UTF-8 text",
}


@contextlib.contextmanager
def blamed_on(
    where: str, advice: str, error: type[SdkerasError] = SdkerasError, *, but: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """Scope of a reader: whatever is raised in it becomes one message that begins with `where`.

    Parsers raise what they like for bytes that nobody has written on purpose: RecursionError, MemoryError, zlib.error,
    NotImplementedError, RuntimeError. Their warnings are about the file as well, and are dropped.

    Args:
        where: Start of the message, with the file's name: "x.npz cannot be read as a checkpoint".
        advice: Remedy, the end of the message.
        error: Class of the error.
        but: Errors that are not the file's fault.

    Raises:
        SdkerasError: Something was raised; of the class `error` unless it is one already.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except SdkerasError:
        raise
    except but:
        raise
    except Exception as fault:
        raise error(f"{where}: {in_words(fault)}; {advice}") from fault


def in_words(fault: Exception) -> str:
    """Why something cannot be read, in one line of at most 300 characters."""
    for kind, words in _WORDS.items():
        if isinstance(fault, kind):
            return words.format(fault)
    text = " ".join(str(fault.strerror or fault if isinstance(fault, OSError) else fault).split())
    return (text if len(text) <= 300 else text[:297] + "...") or type(fault).__name__


def parsed_json(text: str | bytes) -> Json:
    """The value of a JSON text.

    Raises:
        ValueError: It is no JSON, is nested too deeply, or has an integer of more than 64 bits.
    """
    try:
        return json.loads(text, parse_int=_integer)
    except (RecursionError, MemoryError) as error:
        raise ValueError(in_words(error)) from error


def _integer(digits: str) -> int:
    if len(digits) > 21 or not -_LARGEST < (value := int(digits)) < _LARGEST:
        raise ValueError(f"the integer {digits[:20]}... has more than 64 bits")
    return value
