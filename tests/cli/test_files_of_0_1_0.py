"""Files that sdkeras 0.1.0 wrote (tests/data/v0.1.0) are read by every later version; commands go on from them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import sdkeras
from sdkeras.files.archive import load_checkpoint
from sdkeras.reporting.html import as_html
from sdkeras.results.answers import LyapunovRun
from sdkeras.results.log import read_run_log
from sdkeras.runs.trajectory import Trajectory
from sdkeras.study.results import read_results
from sdkeras.study.topology import measure_trajectory

DATA = Path(__file__).parents[1] / "data" / "v0.1.0"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the files, with the working directory they were written in."""
    shutil.copytree(DATA, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    return tmp_path / "old"


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Paths of the old document that the new one lacks or holds with another value."""
    if isinstance(old, dict):
        if not isinstance(new, dict):
            return [path]
        return [each for key, value in old.items() for each in differences(value, new.get(key), f"{path}.{key}")]
    if isinstance(old, list):
        if not isinstance(new, list) or len(old) != len(new):
            return [path]
        return [each for k, value in enumerate(old) for each in differences(value, new[k], f"{path}[{k}]")]
    return [] if old == new else [path]


@pytest.mark.parametrize(
    ("name", "kind"),
    [("run.json", sdkeras.Analysis), ("other.json", sdkeras.Analysis), ("lyapunov.json", LyapunovRun)],
)
def test_a_document_keeps_every_path_and_value(name: str, kind: Any) -> None:
    old = json.loads((DATA / name).read_text())
    run = kind.load(DATA / name)
    new = json.loads(run.to_json())
    assert differences(old, new) == []
    assert run.status == ""
    assert str(run)
    assert as_html(run).startswith("<!doctype html>")
    new["provenance"]["seed"] = 17  # the comparison would see a value that changed
    assert differences(old, new) == [".provenance.seed"]


def test_two_runs_are_compared() -> None:
    runs = [sdkeras.Analysis.load(DATA / name) for name in ("run.json", "other.json")]
    assert "sharpness dimension" in str(sdkeras.compare(*runs)).lower()


@pytest.mark.parametrize(("name", "count"), [("callback", 10), ("track", 2)])
def test_a_run_log_keeps_its_measurements(in_process: Any, name: str, count: int, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (DATA / name / "sharpness.jsonl").read_text().splitlines()]
    log = read_run_log(DATA / name)
    assert len(log.measurements) == count == len(lines) - 1
    for line, measurement in zip(lines[1:], log.measurements, strict=True):
        for key, reading in line["values"].items():
            assert measurement.values[key].value == reading["value"]
    status, _, err = in_process("track", DATA / name, "--html", tmp_path / "page.html")
    assert (status, err) == (0, "")
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")


def test_track_goes_on_from_the_log(in_process: Any, folder: Path) -> None:
    """Both checkpoints are known by their content, so nothing is measured again."""
    before = (folder / "track" / "sharpness.jsonl").read_bytes()
    arguments = ("--data", "data.npz", "--batch-size", 8, "--out", "track")
    status, _, err = in_process("track", "model.keras", "later.keras", *arguments)
    assert (status, err) == (0, "")
    assert (folder / "track" / "sharpness.jsonl").read_bytes() == before


def test_lyapunov_goes_on_from_the_checkpoint(in_process: Any, folder: Path) -> None:
    """As many steps as were made are read from the file; the exponents are the same bits."""
    assert load_checkpoint(folder / "lyapunov.npz")
    old = json.loads((folder / "lyapunov.json").read_text())
    arguments = ("--data", "data.npz", "--batch-size", 8, "--num-exponents", 2, "--steps", 60, "--transient", 10)
    status, _, err = in_process(
        "lyapunov", "model.keras", *arguments, "--checkpoint", "lyapunov.npz", "--json", "new.json", "--quiet"
    )
    assert (status, err) == (0, "")
    new = json.loads((folder / "new.json").read_text())
    assert new["lyapunov"]["values"] == old["lyapunov"]["values"]
    assert new["lyapunov"]["history"] == old["lyapunov"]["history"]


def test_a_trajectory_gives_the_same_measures() -> None:
    """In float64 from the same float32 iterates; another processor may add in another order."""
    old = json.loads((DATA / "trajectory.json").read_text())
    new = json.loads(
        measure_trajectory(Trajectory.load(DATA / "trajectory.npz"), 1.0, seed=0, memory_gb=None).to_json()
    )
    for metric in ("euclidean", "data"):
        assert new[metric]["e_alpha"] == pytest.approx(old[metric]["e_alpha"], rel=1e-9)
        assert differences(list(old[metric]["ph_dimension"]), list(new[metric]["ph_dimension"])) == []


def test_a_study_keeps_its_results(in_process: Any, folder: Path) -> None:
    results = read_results(folder / "study")
    assert len(results.done) == 3
    old = [json.loads(path.read_text()) for path in sorted(folder.glob("study/runs/*/measures.json"))]
    for row, measures in zip(results.done, old, strict=True):
        for name, value in measures["values"].items():
            assert row.measure(name).value == value["value"], name
    for command in ("correlate", "plot"):
        status, _, err = in_process("study", command, folder / "study")
        assert (status, err) == (0, ""), command


def test_a_study_goes_on(in_process: Any, folder: Path) -> None:
    """No finished training is made or measured again."""
    before = {path: path.read_bytes() for path in folder.glob("study/runs/*/*.json")}
    status, _, err = in_process("study", "run", "grid.toml", "--out", "study", "--quiet")
    assert (status, err) == (0, "")
    assert {path: path.read_bytes() for path in before} == before
