"""Which files are checkpoints, and in what order."""

import os

import pytest

from sdkeras.errors import SdkerasError
from sdkeras.files.checkpoints import digest, in_order


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


@pytest.mark.parametrize("name", ["1²2.keras", "①.keras", "٣.keras", f"{'7' * 200}.keras", "\udc80.keras"])
def test_any_name_has_a_place_in_the_order(folder, name) -> None:
    (folder / name).touch()
    assert name in in_order(["*.keras"])
    assert in_order([f"{'9' * 5000}.keras", f"{'10' * 5000}.keras"])[0].startswith("9")


def test_zeros_before_a_number_count_for_nothing(folder) -> None:
    for name in ("s_002.keras", "s_1.keras", "s_0010.keras", "s_0.keras"):
        (folder / name).touch()
    assert in_order(["s_*.keras"]) == ["s_0.keras", "s_1.keras", "s_002.keras", "s_0010.keras"]


def test_a_fifo_is_refused_and_not_waited_for(folder) -> None:
    os.mkfifo(folder / "pipe.keras")
    with pytest.raises(SdkerasError, match=r"pipe\.keras is a FIFO, not a file"):
        in_order(["pipe.keras"])


def test_what_is_no_checkpoint_is_refused(folder) -> None:
    (folder / "empty").mkdir()
    for given, words in (
        ("nothing*.keras", "no file fits"),
        ("notes.txt", "is not a checkpoint"),
        ("empty", "holds no"),
    ):
        with pytest.raises(SdkerasError, match=words):
            in_order([given])


def test_the_digest_is_of_the_content(folder) -> None:
    (folder / "copy.keras").write_text("epoch_9.keras")
    assert digest("copy.keras") == digest("epoch_9.keras") != digest("epoch_10.keras")
    assert digest("missing.keras") == ""
