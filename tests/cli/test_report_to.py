"""`--report-to` of analyze and track: what is sent, and that the answer is there whatever becomes of a tracker."""

import json
from pathlib import Path

import pytest

from kept_trackers import Kept, stand_ins
from sample_log import FOUND, HEADER
from sdkeras.results.log import FILE_NAME, append
from small_trainings import two_checkpoints


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> dict[str, Kept]:
    return stand_ins(monkeypatch)


def test_an_analysis_is_written_and_shown_whatever_becomes_of_a_tracker(
    in_process, files, kept, tmp_path, caplog
) -> None:
    kept["mlflow"].rows.append((0, {}, None))  # so that it breaks at once
    words = ("analyze", files / "model.keras", "--data", files / "data.npz", "--max-hvps", 150, "--tolerance", 0.9)
    words += ("--report-to", "mlflow", "--report-to", "wandb", "--json", tmp_path / "run.json")
    status, out, _ = in_process(*words)
    assert status == 0
    assert "Edge of stability" in out
    said = "sdkeras: nothing more is reported to mlflow, which failed: ConnectionError: the server is gone"
    assert [record.getMessage() for record in caplog.records if record.name == "sdkeras"] == [said]
    run = json.loads((tmp_path / "run.json").read_text())
    ((step, numbers, spectrum),) = kept["wandb"].rows
    assert step == run["optimizer"]["iterations"]
    assert numbers["edge_of_stability.ratio"] == run["edge_of_stability"]["ratio"]
    assert spectrum.weights.tolist() == run["spectrum"]["weights"]
    assert kept["wandb"].settings_of["preset"] == "standard"
    assert set(kept["wandb"].pages) == {"report"}
    assert kept["wandb"].ended == [False]


def test_a_log_is_sent_afterwards(in_process, kept, tmp_path: Path) -> None:
    append(tmp_path / FILE_NAME, HEADER)
    append(tmp_path / FILE_NAME, FOUND)
    status, out, _ = in_process("track", tmp_path, "--report-to", "wandb", "--report-to", "tensorboard")
    assert (status, "Measurements" in out) == (0, True)
    assert [(step, row["sharpness"]) for step, row, _ in kept["wandb"].rows] == [(10, 12.0)]
    assert set(kept["wandb"].pages) == {"track"}
    assert len([*tmp_path.glob("events.*")]) == 1  # beside the log


def test_checkpoints_are_sent_as_they_are_measured(in_process, kept, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = two_checkpoints()
    words = ("track", "epoch_1.keras", "epoch_2.keras", "--data", "train.npz", "--batch-size", 4)
    words += ("--measures", "sharpness_dimension", "--report-to", "wandb")
    assert in_process(*words)[0] == in_process(*words)[0] == 0
    rows = kept["wandb"].rows
    assert [step for step, _, _ in rows] == [6, 12, 6, 12]
    assert [row for _, row, _ in rows[:2]] == [row for _, row, _ in rows[2:]]
    assert [spectrum.weights.sum() for _, _, spectrum in rows[:2]] == pytest.approx([model.count_params()] * 2)
    # They were measured before, and no log holds a spectrum.
    assert [spectrum for _, _, spectrum in rows[2:]] == [None, None]
    assert kept["wandb"].ended == [False, False]


def test_what_is_refused_before_the_work(in_process, files, tmp_path: Path) -> None:
    words = ("analyze", files / "model.keras", "--data", files / "data.npz")
    status, out, err = in_process(*words, "--report-to", "tensorbord")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "--report-to: there is no tracker 'tensorbord'; did you mean 'tensorboard'?" in err
    (tmp_path / "file").write_text("")
    status, out, err = in_process(*words, "--report-to", f"tensorboard:{tmp_path}/file/below")
    assert (status, out) == (2, "")
    assert "Not a directory" in err
