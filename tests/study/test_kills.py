"""A study killed at any of its writes goes on to the same bits as one that was not."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import h5py
import pytest

from sdkeras.errors import SdkerasError
from sdkeras.study.definition import read_study
from sdkeras.study.runner import run_study
from study.small_study import started, wait_until, written

pytestmark = pytest.mark.slow

TEXTS = {
    "module": "killed_nets",
    "epochs": 5,
    "rates": [0.1, 0.2],
    "grid": "optimizer = 'adam'",
    "measures": "sharpness = {}\ntrace = {}\ne_alpha = { trajectory = 'backward', metric = 'euclidean' }",
}
FIRST, SECOND = "lr0.1-bs8-optimizeradam-seed0", "lr0.2-bs8-optimizeradam-seed0"


@attrs.frozen
class Whole:
    """A study that nothing has interrupted.

    Attributes:
        grid: Its definition.
        folder: Its folder.
        before: What the disk held before each rename of a written file, the first training being done.
    """

    grid: Path
    folder: Path
    before: list[Path]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, without_processes: Callable[..., None]) -> Whole:
    place = tmp_path_factory.mktemp("kills")
    grid, folder, before = written(place, **TEXTS), place / "whole", []
    replace = os.replace

    def noted(source: Any, target: Any) -> None:
        if (folder / "runs" / SECOND).exists():
            shutil.copytree(folder, place / f"before {len(before)}", symlinks=True)
            before.append(place / f"before {len(before)}")
        replace(source, target)

    with pytest.MonkeyPatch.context() as patch:
        without_processes(patch, place)
        patch.setattr(os, "replace", noted)
        run(grid, folder)
    return Whole(grid, folder, before)


@pytest.fixture
def in_this_process(whole: Whole, monkeypatch: pytest.MonkeyPatch, without_processes: Callable[..., None]) -> None:
    """Not for the tests with real kills, whose workers round in another order."""
    without_processes(monkeypatch, whole.grid.parent)


def run(grid: Path, folder: Path) -> None:
    """Does what is to do."""
    after = run_study(read_study(str(grid)), folder, code=grid.parent, jobs=1)
    assert [each.state for each in after.runs] == ["done", "done"]


def content(folder: Path) -> dict[str, Any]:
    """Every number in the folder by file and place, but for times."""
    held: dict[str, Any] = {}
    for file in sorted(folder.rglob("*")):
        name = str(file.relative_to(folder))
        if file.suffix == ".json":
            held[name] = _without_times(json.loads(file.read_text()))
        elif file.suffix == ".h5":
            with h5py.File(file) as stored:
                arrays: dict[str, bytes] = {}
                stored.visititems(lambda key, entry, arrays=arrays: arrays.update(_bytes_of(key, entry)))
            held[name] = arrays
        elif file.is_file() and file.suffix not in (".txt", ".log", ".lock") and name != ".lock":
            held[name] = file.read_bytes()
    return held


def _bytes_of(key: str, entry: Any) -> dict[str, bytes]:
    return {key: entry[()].tobytes()} if isinstance(entry, h5py.Dataset) else {}


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        times = ("seconds", "wall_seconds", "created", "peak_memory", "peak_memory_bytes")
        return {key: _without_times(entry) for key, entry in value.items() if key not in times}
    return [_without_times(entry) for entry in value] if isinstance(value, list) else value


WRITES = ("settings.json", "trajectory.npz", "model.weights.h5", "training.json", "run.json", "measures.json")


def test_a_run_is_written_by_these_renames(whole: Whole) -> None:
    """A new write must be added to the tests below."""
    assert len(whole.before) == len(WRITES)
    for folder, file in zip(whole.before, WRITES, strict=True):
        assert not (folder / "runs" / SECOND / file).exists()
        assert len(list((folder / "runs" / SECOND).glob(f".{file}.*"))) >= 1
        assert (folder / "runs" / FIRST / "measures.json").exists()


# Killed before any of the first four it trains from the start; before the last it reads what was analysed.
@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("file", WRITES)
def test_killed_before_any_write_it_goes_on_to_the_same_bits(whole: Whole, tmp_path: Path, file: str) -> None:
    folder = tmp_path / "out"
    shutil.copytree(whole.before[WRITES.index(file)], folder)
    first = (folder / "runs" / FIRST / "training.json").read_bytes()
    run(whole.grid, folder)
    assert content(folder) == content(whole.folder)
    assert (folder / "runs" / FIRST / "training.json").read_bytes() == first


@pytest.mark.usefixtures("in_this_process")
def test_a_write_that_fails_is_a_failed_run_and_leaves_nothing_behind(
    whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, replace, file = tmp_path / "out", os.replace, "model.weights.h5"
    shutil.copytree(whole.before[WRITES.index(file)], folder)

    def full(source: Any, target: Any) -> None:
        if Path(target).name == file:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    after = run_study(read_study(str(whole.grid)), folder, code=whole.grid.parent, jobs=1)
    failure = after.runs[1].failure
    assert failure is not None
    assert f"{file} cannot be written: No space left on device" in failure.reason
    assert not list((folder / "runs" / SECOND).glob(".*"))


def killed_when(there: Callable[[Path], bool], grid: Path, folder: Path) -> None:
    """Starts the study and sends SIGKILL at a moment that its folder shows."""
    process = started(grid, folder)
    wait_until(lambda: there(folder / "runs" / SECOND) or process.poll() is not None, 300)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


@pytest.mark.parametrize("moment", ["training", "measuring"])
def test_a_real_kill_with_a_finished_run_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    grid, folder, whole = written(tmp_path, **TEXTS), tmp_path / "out", tmp_path / "whole"
    run(grid, whole)
    last = {"training": "settings.json", "measuring": "training.json"}[moment]
    killed_when(lambda place: (place / last).exists(), grid, folder)
    assert (folder / "runs" / FIRST / "measures.json").exists()
    assert not (folder / "runs" / SECOND / "measures.json").exists()
    until = time.monotonic() + 60
    while time.monotonic() < until:  # the worker ends with its parent, and the lock with both
        try:
            run(grid, folder)
            break
        except SdkerasError:
            time.sleep(0.5)
    assert content(folder) == content(whole)
