import subprocess
import sys
from importlib.resources import files

import numpy as np
import pytest

from sdkeras.datasets import load_digits


def test_digits_are_the_1797_images_scaled_to_one():
    images, labels = load_digits()
    assert images.shape == (1797, 8, 8)
    assert images.dtype == np.float32
    assert (images.min(), images.max()) == (0.0, 1.0)
    assert np.array_equal(images * 16, np.round(images * 16))
    assert labels.shape == (1797,)
    assert labels.dtype == np.int64
    # Class counts of the UCI test file (optdigits.names).
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    # The sum and the first digit (a zero) of the source: no pixel was changed.
    assert int(np.round(images.astype(np.float64).sum() * 16)) == 561718
    assert (images[0] * 16).astype(int)[0].tolist() == [0, 0, 5, 13, 9, 1, 0, 0]
    assert labels[:10].tolist() == list(range(10))


def test_digits_equal_scikit_learns():
    sklearn = pytest.importorskip("sklearn.datasets")
    source = sklearn.load_digits()
    images, labels = load_digits()
    assert np.array_equal(images * 16, source.images)
    assert np.array_equal(labels, source.target)


def test_digits_need_no_tensorflow():
    code = (
        "import sys; from sdkeras.datasets import load_digits; load_digits(); "
        "print(sorted({'tensorflow', 'keras', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_package_ships_the_file_small_without_pickles_and_with_its_licence():
    folder = files("sdkeras.datasets")
    assert len((folder / "digits.npz").read_bytes()) < 57_000
    with (folder / "digits.npz").open("rb") as file, np.load(file, allow_pickle=False) as stored:
        assert {name: stored[name].dtype for name in stored.files} == {"images": np.uint8, "labels": np.uint8}
    licence = (folder / "DIGITS-LICENSE.txt").read_text()
    for part in ("Alpaydin", "Kaynak", "1998", "10.24432/C50P49", "CC BY 4.0", "test part", "What was changed"):
        assert part in licence
