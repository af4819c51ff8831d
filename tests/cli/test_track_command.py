"""`sdkeras track`: the log of a folder or a file, in the terminal and as a page."""

import json
from pathlib import Path

from sample_log import FOUND, HEADER
from sdkeras.results.log import FILE_NAME, append
from small_trainings import two_checkpoints


def test_the_command(in_process, tmp_path: Path) -> None:
    append(tmp_path / FILE_NAME, HEADER)
    append(tmp_path / FILE_NAME, FOUND)
    status, out, err = in_process("track", tmp_path)
    assert (status, err) == (0, "")
    assert "Below the edge of stability at step 10" in out
    page = tmp_path / "page.html"
    assert in_process("track", tmp_path / FILE_NAME, "--html", page) == (0, f"written: {page}\n", "")
    assert page.read_text().startswith("<!doctype html>")
    status, out, err = in_process("track", tmp_path / "nowhere")
    assert (status, out) == (2, "")
    assert err.startswith("sdkeras: error: ")
    assert err.count("\n") == 1
    status, _, err = in_process("track", tmp_path, "--html", tmp_path / FILE_NAME)
    assert status == 2
    assert "would be overwritten" in err


def test_checkpoints_in_the_terminal(in_process, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    two_checkpoints()
    words = ("track", "*.keras", "--data", "train.npz", "--batch-size", 4, "--class-weight", "0=1.0,1=9.0")
    words += ("--measures", "sharpness,sharpness_dimension", "--bound", "delta=0.1", "--estimate-bound-inputs")
    status, out, _ = in_process(*words, "--dry-run")
    assert (status, Path("track").exists()) == (0, False)
    assert "2 of 2 checkpoints to measure" in out
    status, out, err = in_process(*words, "--html", "page.html")
    assert (status, err) == (0, "")
    assert "epoch_2.keras" in out
    assert f"written: page.html, {Path('track') / FILE_NAME}" in out
    assert Path("page.html").read_text().startswith("<!doctype html>")
    again = in_process(*words, "--preset", "standard", "--samples", 64, "--dry-run")[1]
    assert "0 of 2 checkpoints to measure" in again
    assert "preset standard: samples 64, tolerance 0.05" in again
    assert in_process(*words, "--fail-if", "values.sharpness.value > 1e6")[0] == 0
    assert in_process(*words, "--fail-if", "values.sharpness.value > 1e-6")[0] == 3
    status, out, err = in_process("track", "track", "--fail-if", "step >= 12")
    assert (status, "Measurements" in out) == (3, True)
    header, first, _ = map(json.loads, Path("track/sharpness.jsonl").read_text().splitlines())
    assert header["class_weight"] == {"0": 1.0, "1": 9.0}
    known = {entry["name"]: (entry["value"], entry["estimated"]) for entry in first["bounds"][0]["inputs"]}
    assert known["delta"] == (0.1, False)
    assert known["loss_bound"][1]
    Path("epoch_3.keras").write_bytes(b"PK nothing")
    status, out, err = in_process(*words)
    assert status == 2
    assert "epoch_3.keras: the measurement failed: model file" in err
    assert "epoch_2.keras" in out
