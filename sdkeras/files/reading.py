"""Exceptions of parsers and of Keras, in one line for the user who gave the file."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import warnings
from collections.abc import Iterator
from typing import Any, TypeAlias

from sdkeras.errors import SdkerasError
from sdkeras.files.user_code import in_one_line

Json: TypeAlias = Any
# Counts, steps and seeds of real runs fit into 64 bits; what is larger overflows wherever it is used as a float.
_LARGEST = 2**64
_WORDS: dict[type[Exception], str] = {
    RecursionError: "it is nested too deeply",
    MemoryError: "it says that it is larger than the memory",
    KeyError: "it has no part named {}",
    UnicodeDecodeError: "not UTF-8 text",
}

# How Keras says that it does not know a name.
_UNKNOWN_NAME = re.compile(
    r"(?:Could not locate (class|function) |Unknown ([a-z ]+): |Could not interpret ([a-z ]+) identifier: )"
    r"'?([^'.\s]+(?:\.[^'.\s]+)*)'?"
)
# How it warns of compiled parts that it left out.
_OF_COMPILING = re.compile(r"Skipping variable loading for optimizer|`compile\(\)` was not called")


@contextlib.contextmanager
def blamed_on(
    where: str, advice: str, error: type[SdkerasError] = SdkerasError, *, but: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """Scope of a reader: whatever is raised in it becomes one message, `where`: reason; `advice`.

    Parsers raise what they like for bytes that nobody has written on purpose: RecursionError, MemoryError, zlib.error,
    NotImplementedError, RuntimeError. Their warnings are about the file as well, and are dropped. Errors of the types
    `but` are not the file's fault, and pass.

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
    text = str(fault.strerror or fault if isinstance(fault, OSError) else fault)
    return in_one_line(text, 300) or type(fault).__name__


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


def unknown_name(error: Exception) -> tuple[str, str] | None:
    """Kind and name of the last thing that Keras says it does not know."""
    mentions = _UNKNOWN_NAME.findall(str(error))
    if not mentions:
        return None
    *kinds, name = mentions[-1]
    return next(kind for kind in kinds if kind), name


def innermost_reason(error: Exception) -> str:
    """The last of Keras' nested reasons, without the configurations it prints, in one line; "" where it says none."""
    text = re.split("Full object config|config={", str(error).rpartition("Exception encountered:")[2])[0]
    return in_one_line(" ".join(text.split()).rstrip(". "), 300)


def homonym(name: str) -> str:
    """The message for a function of the user's that has the name of one of Keras'."""
    return (
        f"it uses a function '{name}' of its author's own, and Keras has one of that name; give it another name, or "
        "register it (keras.saving.register_keras_serializable), and save again"
    )


@contextlib.contextmanager
def compile_warnings() -> Iterator[list[warnings.WarningMessage]]:
    """Collects what Keras says of compiled parts, which is said elsewhere in other words; other warnings pass."""
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield caught
    finally:
        log.setLevel(level)
    for warning in caught:
        if not _OF_COMPILING.search(str(warning.message)):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
