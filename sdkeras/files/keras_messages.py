"""Keras' complaints when it cannot rebuild all of a model: errors in words for the user, warnings collected."""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from collections.abc import Iterator

# How Keras says that it does not know a name.
_UNKNOWN_NAME = re.compile(
    r"(?:Could not locate (class|function) |Unknown ([a-z ]+): |Could not interpret ([a-z ]+) identifier: )"
    r"'?([^'.\s]+(?:\.[^'.\s]+)*)'?"
)
# How it warns of compiled parts that it left out.
_OF_COMPILING = re.compile(r"Skipping variable loading for optimizer|`compile\(\)` was not called")


def unknown_name(error: Exception) -> tuple[str, str] | None:
    """Kind and name of the last thing that Keras says it does not know."""
    mentions = _UNKNOWN_NAME.findall(str(error))
    if not mentions:
        return None
    *kinds, name = mentions[-1]
    return next(kind for kind in kinds if kind), name


def innermost_reason(error: Exception) -> str:
    """The last of Keras' nested reasons, without the configurations it prints, in one line; "" where it says none."""
    text = (
        str(error).rpartition("Exception encountered:")[2].partition("Full object config")[0].partition("config={")[0]
    )
    text = " ".join(text.split()).rstrip(". ")
    return text if len(text) <= 300 else text[:297] + "..."


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
