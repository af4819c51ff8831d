"""Checkpoints give back what they got, bit for bit, and say what is wrong with a file that is none."""

import io
import os

import numpy as np
import pytest

from sdkeras.errors import SdkerasError
from sdkeras.files.archive import fingerprint, load_checkpoint, save_checkpoint

VALUE = {
    "weights": [np.arange(6, dtype=np.float32).reshape(2, 3), np.array(2.5), np.zeros((0, 4), np.int64)],
    "rng": np.random.default_rng(3).bit_generator.state,
    "pair": (1, (None, True), -0.1, "text"),
    "scalar": np.float32(0.1),
    "flags": np.array([True, False]),
    "names": np.array(["a", "bc"]),
    "not finite": [np.array([np.nan, -0.0]), np.inf],
    "empty": {},
}


def same(first: object, second: object) -> bool:
    if isinstance(first, np.ndarray):
        return isinstance(second, np.ndarray) and first.dtype == second.dtype and first.tobytes() == second.tobytes()
    if isinstance(first, (list, tuple)):
        return type(first) is type(second) and len(first) == len(second) and all(map(same, first, second))
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    return type(first) is type(second) and first == second


def test_every_bit_and_type_comes_back(tmp_path):
    path = tmp_path / "run.npz"
    save_checkpoint(path, VALUE)
    loaded = load_checkpoint(path)
    assert same(VALUE, loaded)
    assert fingerprint(VALUE) == fingerprint(loaded)
    assert os.listdir(tmp_path) == ["run.npz"]


def test_one_bit_changes_the_fingerprint():
    prints = {fingerprint(v) for v in (np.zeros(2), -np.zeros(2), np.zeros((2, 1)), np.zeros(2, np.int64), [0.0, 0.0])}
    assert len(prints) == 5


@pytest.mark.parametrize("value", [object(), np.array([object()]), {1: 2}, [{"key": {1, 2}}], lambda: 0])
def test_what_would_need_pickle_is_refused(tmp_path, value):
    with pytest.raises(SdkerasError, match="a checkpoint cannot hold the value"):
        save_checkpoint(tmp_path / "run.npz", value)
    assert os.listdir(tmp_path) == []


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "run.npz"
    save_checkpoint(path, 1)

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, 2)
    assert load_checkpoint(path) == 1
    assert os.listdir(tmp_path) == ["run.npz"]


def test_a_file_has_the_permissions_that_the_umask_gives(tmp_path):
    """As a file that open() makes; one that was there keeps its own."""
    path = tmp_path / "run.npz"
    before = os.umask(0o027)
    try:
        save_checkpoint(path, 1)
        assert path.stat().st_mode & 0o777 == 0o640
        path.chmod(0o600)
        save_checkpoint(path, 2)
        assert path.stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(before)
    (tmp_path / "link.npz").symlink_to(path)
    with pytest.raises(SdkerasError, match=r"link\.npz is a link, and only the .* name .*run\.npz"):
        save_checkpoint(tmp_path / "link.npz", 3)
    assert load_checkpoint(path) == 2
    save_checkpoint(os.devnull, 4)
    assert not os.path.isfile(os.devnull)


def test_a_folder_that_is_not_there_is_told(tmp_path):
    with pytest.raises(SdkerasError, match="cannot be written: No such file"):
        save_checkpoint(tmp_path / "missing" / "run.npz", 1)


def test_damaged_and_other_files_are_told(tmp_path):
    path = tmp_path / "run.npz"
    save_checkpoint(path, VALUE)
    whole, other, array = path.read_bytes(), io.BytesIO(), io.BytesIO()
    np.savez(other, x=np.zeros(2))
    np.save(array, np.zeros(2))
    damaged = [b"", b"text", whole[: len(whole) // 2], whole[:300] + bytes(8) + whole[308:]]
    for content in (*damaged, other.getvalue(), array.getvalue()):
        path.write_bytes(content)
        with pytest.raises(SdkerasError, match=r"run\.npz cannot be read as a checkpoint") as caught:
            load_checkpoint(path)
        assert "pickle" not in str(caught.value)
