"""Files that older versions wrote (tests/data/vX.Y.Z) are read by every later one; commands go on from them."""

import json
import math
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
from sdkeras.study.correlations import Correlations
from sdkeras.study.results import read_results
from sdkeras.study.topology import measure_trajectory

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture(params=["v0.1.0", "v0.2.0"])
def old(request: pytest.FixtureRequest) -> Path:
    """The files that a version wrote."""
    return DATA / str(request.param)


@pytest.fixture
def folder(old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the files, with the working directory they were written in."""
    shutil.copytree(old, tmp_path / "old")
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
def test_a_document_keeps_every_path_and_value(old: Path, name: str, kind: Any) -> None:
    before = json.loads((old / name).read_text())
    run = kind.load(old / name)
    new = json.loads(run.to_json())
    assert differences(before, new) == []
    assert run.status == before.get("status", "")
    assert str(run)
    assert as_html(run).startswith("<!doctype html>")
    new["provenance"]["seed"] = 17  # the comparison would see a value that changed
    assert differences(before, new) == [".provenance.seed"]


@pytest.mark.parametrize(
    ("name", "kind"), [("comparison.json", sdkeras.Comparison), ("study/correlations.json", Correlations)]
)
def test_other_documents_keep_every_path_and_value(name: str, kind: Any) -> None:
    """Since 0.2.0."""
    before = json.loads((DATA / "v0.2.0" / name).read_text())
    found = kind.load(DATA / "v0.2.0" / name)
    assert differences(before, json.loads(found.to_json())) == []
    assert str(found)


def test_two_runs_are_compared(old: Path) -> None:
    runs = [sdkeras.Analysis.load(old / name) for name in ("run.json", "other.json")]
    assert "sharpness dimension" in str(sdkeras.compare(*runs)).lower()


@pytest.mark.parametrize("name", ["callback", "track"])
def test_a_run_log_keeps_its_measurements(in_process: Any, old: Path, name: str, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (old / name / "sharpness.jsonl").read_text().splitlines()]
    log = read_run_log(old / name)
    assert len(log.measurements) == len(lines) - 1 >= 2
    assert log.notes == ()
    for line, measurement in zip(lines[1:], log.measurements, strict=True):
        for key, reading in line["values"].items():
            found = measurement.values[key].value
            assert math.isnan(found) if reading["value"] is None else found == reading["value"]
    status, _, err = in_process("track", old / name, "--html", tmp_path / "page.html")
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
    before = json.loads((folder / "lyapunov.json").read_text())
    arguments = ("--data", "data.npz", "--batch-size", 8, "--num-exponents", 2, "--steps", 60, "--transient", 10)
    status, _, err = in_process(
        "lyapunov", "model.keras", *arguments, "--checkpoint", "lyapunov.npz", "--json", "new.json", "--quiet"
    )
    assert (status, err) == (0, "")
    new = json.loads((folder / "new.json").read_text())
    assert new["lyapunov"]["values"] == before["lyapunov"]["values"]
    assert new["lyapunov"]["history"] == before["lyapunov"]["history"]


def test_a_trajectory_gives_the_same_measures(old: Path) -> None:
    """In float64 from the same float32 iterates; another processor may add in another order."""
    before = json.loads((old / "trajectory.json").read_text())
    new = json.loads(measure_trajectory(Trajectory.load(old / "trajectory.npz"), 1.0, seed=0, memory_gb=None).to_json())
    for metric in ("euclidean", "data"):
        assert new[metric]["e_alpha"] == pytest.approx(before[metric]["e_alpha"], rel=1e-9)
        assert differences(list(before[metric]["ph_dimension"]), list(new[metric]["ph_dimension"])) == []


def test_a_study_keeps_its_results(in_process: Any, folder: Path) -> None:
    results = read_results(folder / "study")
    assert len(results.done) == len(results.study.runs) >= 2
    before = [json.loads(path.read_text()) for path in sorted(folder.glob("study/runs/*/measures.json"))]
    for row, measures in zip(results.done, before, strict=True):
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
