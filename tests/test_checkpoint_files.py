"""Which files are checkpoints, and in what order."""

import pytest

from sdkeras.checkpoint_files import digest, in_order
from sdkeras.errors import SdkerasError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("epoch_10.keras", "epoch_9.keras", "epoch_100.keras", "last.weights.h5", "notes.txt", "a[1].keras"):
        (tmp_path / name).write_text(name)
    return tmp_path


def test_patterns_and_folders_come_in_natural_order(folder) -> None:
    epochs = ["epoch_9.keras", "epoch_10.keras", "epoch_100.keras"]
    assert in_order(["epoch_*.keras"]) == epochs
    assert [path.rpartition("/")[2] for path in in_order([folder])] == ["a[1].keras", *epochs, "last.weights.h5"]


def test_names_as_a_shell_writes_them_come_in_natural_order_and_others_as_given(folder) -> None:
    shell = ["epoch_10.keras", "epoch_100.keras", "epoch_9.keras"]
    assert in_order(shell) == ["epoch_9.keras", "epoch_10.keras", "epoch_100.keras"]
    mine = ["epoch_100.keras", "epoch_10.keras", "epoch_9.keras"]
    assert in_order(mine) == mine
    assert in_order(["last.weights.h5", "epoch_9.keras", "last.weights.h5"]) == ["last.weights.h5", "epoch_9.keras"]


def test_a_name_that_looks_like_a_pattern_is_itself_where_it_exists(folder) -> None:
    assert in_order(["a[1].keras"]) == ["a[1].keras"]


def test_what_is_no_checkpoint_is_refused(folder) -> None:
    (folder / "empty").mkdir()
    for given, words in (("nothing*.keras", "no file fits"), ("notes.txt", "no checkpoint"), ("empty", "holds no")):
        with pytest.raises(SdkerasError, match=words):
            in_order([given])


def test_the_digest_is_of_the_content(folder) -> None:
    (folder / "copy.keras").write_text("epoch_9.keras")
    assert digest("copy.keras") == digest("epoch_9.keras") != digest("epoch_10.keras")
    assert digest("missing.keras") == ""
