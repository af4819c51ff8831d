"""English text that Python's standard library ships: the language reference behind `help()`."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Windows: TypeAlias = tuple[NDArray[np.int64], NDArray[np.int64]]


def load_documentation_text() -> str:
    """The topics of `pydoc_data.topics`, in alphabetical order; 464,970 characters in Python 3.11, others differ."""
    from pydoc_data.topics import topics

    return "".join(topics[name] for name in sorted(topics))


def character_windows(
    text: str, length: int, *, test_fraction: float = 0.1, vocabulary: int = 96
) -> tuple[Windows, Windows]:
    """Disjoint windows of a text with the character that follows each, for a language model of characters.

    Args:
        text: Any text; characters that are not printable ASCII count as one more symbol.
        length: Characters in a window.
        test_fraction: Last part of the text, for the test.
        vocabulary: Symbols: 95 printable characters and one for all others.

    Returns:
        (training, test), each (x, y) of shape (windows, length), int64: y is x one character on.

    Raises:
        ValueError: The text is too short for one window on each side.
    """
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32).astype(np.int64) - 32
    codes = np.where((codes >= 0) & (codes < vocabulary - 1), codes, vocabulary - 1)
    split = round((1 - test_fraction) * len(codes))
    parts = []
    for characters in (codes[:split], codes[split:]):
        count = (len(characters) - 1) // length
        if count < 1:
            raise ValueError(f"a text of {len(text)} characters is too short for windows of {length}.")
        x, y = characters[: count * length], characters[1 : count * length + 1]
        parts.append((x.reshape(count, length), y.reshape(count, length)))
    return parts[0], parts[1]
