"""The handwritten digits of the demo: 1,797 real images of 8x8 pixels, ten classes.

Source and licence (CC BY 4.0): DIGITS-LICENSE.txt beside this file.
"""

from __future__ import annotations

from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

# How digits.npz was made, with scikit-learn 1.x (its digits are the test part of the UCI set, values 0..16):
#     digits = sklearn.datasets.load_digits()
#     np.savez_compressed("digits.npz", images=digits.images.astype(np.uint8), labels=digits.target.astype(np.uint8))
_BRIGHTEST = 16


def load_digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Images and labels of the handwritten digits.

    Returns:
        (images, labels): images of shape (1797, 8, 8), float32 in 0..1 (exact multiples of 1/16); labels of
        shape (1797,), int64 in 0..9, in the order of the source.
    """
    with (files("sdkeras.datasets") / "digits.npz").open("rb") as file, np.load(file, allow_pickle=False) as stored:
        images = stored["images"].astype(np.float32) / np.float32(_BRIGHTEST)
        labels = stored["labels"].astype(np.int64)
    return images, labels
