"""The files of a training's checkpoints: which they are, in what order, and what they hold as a digest."""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from sdkeras.errors import SdkerasError
from sdkeras.files.atomic import check_is_file, shown

WEIGHTS_SUFFIX = ".weights.h5"
_SUFFIXES = (".keras", ".h5", ".hdf5")


def in_order(names: Sequence[str | os.PathLike[str]]) -> list[str]:
    """The checkpoint files that names, folders and patterns stand for, in the order of training.

    What one folder or pattern stands for comes in natural order: epoch_2 before epoch_10. Several names keep their
    order, except that names in plain alphabetical order, as a shell writes them for a pattern, are put in natural order
    too. A file that is named twice comes once. Of a folder the .keras, .h5 and .hdf5 files are meant.

    Raises:
        SdkerasError: There are none, no file fits one of them, or a name is of no checkpoint.
    """
    texts = [os.fspath(each) for each in names]
    if not texts:
        raise SdkerasError("there are no checkpoints; name files, folders or patterns.")
    if len(texts) > 1 and texts == sorted(texts):
        texts.sort(key=_natural)
    paths = list(dict.fromkeys(path for text in texts for path in _files(text)))
    for path in paths:
        if not path.endswith(_SUFFIXES):
            endings = f".keras, .h5 or {WEIGHTS_SUFFIX}"
            raise SdkerasError(f"{shown(path)} is not a checkpoint: its name must end in {endings}.")
        check_is_file(path, SdkerasError, "give the file of a checkpoint.")
    return paths


def digest(path: str) -> str:
    """SHA-256 of a file's bytes, first 16 hex digits; "" where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError:
        return ""


def _files(text: str) -> list[str]:
    if os.path.isdir(text):
        paths = [os.fspath(path) for path in Path(text).iterdir() if path.name.endswith(_SUFFIXES)]
        problem = f"the folder {shown(text)} holds no checkpoint; they end in .keras, .h5 or {WEIGHTS_SUFFIX}."
    elif glob.has_magic(text) and not os.path.exists(text):
        paths = glob.glob(text, recursive=True)
        problem = f"no file fits {shown(text)}; check the pattern."
    else:
        return [text]
    if not paths:
        raise SdkerasError(problem)
    return sorted(paths, key=_natural)


def _natural(text: str) -> list[tuple[int, str]]:
    """Digits count as numbers: by their length first, without zeros before them."""
    pieces = re.split(r"([0-9]+)", text)  # the odd ones are digits; int() takes no more than 4,300 of them
    numbers = [digits.lstrip("0") for digits in pieces[1::2]]
    keys = [(-1, piece) for piece in pieces]
    keys[1::2] = [(len(number), number) for number in numbers]
    return keys
