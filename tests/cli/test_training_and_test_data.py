"""Data that come as ((x_train, y_train), (x_test, y_test)), as those of a study, in the commands that take one pair."""

from pathlib import Path

import numpy as np
import pytest

from small_nets import X, Y, net

DATA = """
import numpy as np
held = np.load("train.npz")
x, y = held["x"], held["y"]
def blobs(): return (x[:-8], y[:-8]), (x[-8:], y[-8:])
def halves(): return (x[:8], y[:8]), (x[-8:], y[-8:])
"""
COMMANDS = {
    "analyze": ("analyze", "model.keras", "--dry-run"),
    "lyapunov": ("lyapunov", "model.keras", "--dry-run"),
    "trajectory": ("study", "trajectory", "model.keras", "--steps", 4, "--dry-run"),
    "track": ("track", "model.keras", "--measures", "sharpness"),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    model = net()
    model.fit(X, Y, batch_size=16, verbose=0)
    model.save("model.keras")
    np.savez("train.npz", x=X, y=Y)
    Path("mine.py").write_text(DATA)
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS.keys())
def test_the_first_pair_is_taken_and_told_in_one_line(folder: Path, in_process, command: tuple[str, ...]) -> None:
    status, _, error = in_process(*command, "--batch-size", 16, "--data", "mine:blobs")
    assert status == 0, error
    assert error.startswith(
        f"sdkeras: warning: data of 'mine:blobs': the callable returned two pairs of {len(X) - 8} and"
    )
    assert error.count("\n") == 1


def test_pairs_of_one_length_are_two_inputs_and_the_error_tells_of_the_other_reading(folder: Path, in_process) -> None:
    status, _, error = in_process(*COMMANDS["analyze"], "--data", "mine:halves")
    assert status == 2
    assert "If they are ((x_train, y_train), (x_test, y_test)), give one of the pairs." in error
    assert error.count("\n") == 1
    status, _, error = in_process(*COMMANDS["track"], "--data", "train.npz", "--test-data", "mine:blobs")
    assert status == 2
    assert "different numbers of samples" in error
