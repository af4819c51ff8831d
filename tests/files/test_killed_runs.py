"""Tracked checkpoints and Lyapunov exponents, killed at any of their writes: they go on to the same bits."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

import attrs
import keras
import pytest

from sdkeras.errors import SdkerasError
from sdkeras.files.archive import fingerprint, load_checkpoint
from sdkeras.operators.loss import EmpiricalLoss
from sdkeras.results.log import breaks, read_run_log, trajectory
from sdkeras.runs import lyapunov
from sdkeras.runs import track as tracking
from sdkeras.runs.budget import Meter
from sdkeras.runs.lyapunov_options import LyapunovOptions
from sdkeras.runs.monitor import Monitor
from sdkeras.runs.track import track
from sdkeras.training_step.map import UpdateMap
from small_nets import X, Y

SETTINGS = {"batch_size": 16, "samples": 96, "tolerance": 0.5}
STEPS, TRANSIENT, INTERVAL = 12, 3, 6


class Disk:
    """What a kill could leave in a folder, copied at every moment of every write that differs on the disk."""

    def __init__(self, folder: Path, copies: Path) -> None:
        self.folder, self.copies = folder, copies
        self.moments: dict[str, Path] = {}
        self._replace, self._write = os.replace, os.write

    def patch(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(os, "replace", self.replace)
        patch.setattr(os, "write", self.write)

    def copy(self, moment: str) -> Path:
        name = f"{len(self.moments):02} {moment}"
        self.moments[name] = self.copies / name
        shutil.copytree(self.folder, self.copies / name)
        return self.copies / name

    def replace(self, source: Any, target: Any) -> None:
        half = self.copy(f"half of {Path(target).name}") / Path(source).name
        os.truncate(half, half.stat().st_size // 2)
        self.copy(f"{Path(target).name} before its rename")
        self._replace(source, target)
        self.copy(f"{Path(target).name} after its rename")

    def write(self, handle: int, line: bytes) -> int:
        if not line.lstrip().startswith(b"{"):  # the holder of a lock
            return self._write(handle, line)
        self._write(handle, line[: len(line) // 2])
        self.copy("half a line")
        self._write(handle, line[len(line) // 2 :])
        self.copy("a line")
        return len(line)


def failing(patch: pytest.MonkeyPatch, call: int) -> None:
    """The write of this number meets a full disk: at the rename, or in the middle of a line."""
    replace, write, calls = os.replace, os.write, []

    def replaced(source: Any, target: Any) -> None:
        calls.append(target)
        if len(calls) == call:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    def written(handle: int, line: bytes) -> int:
        if not line.lstrip().startswith(b"{"):
            return write(handle, line)
        calls.append(line)
        return write(handle, line[: len(line) // 2] if len(calls) == call else line)

    patch.setattr(os, "replace", replaced)
    patch.setattr(os, "write", written)


def content(folder: Path) -> dict[str, Any]:
    """Names of the files, the log's measurements in their order but for times, and the state for the next call."""
    return {
        "files": sorted(path.name for path in folder.iterdir()),
        "measurements": [
            json.dumps(attrs.asdict(attrs.evolve(each, time="", seconds=0.0)))
            for each in read_run_log(folder).measurements
        ],
        "state": fingerprint(load_checkpoint(folder / "sharpness-state.npz")),
    }


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three of one training, the last two with the same content."""
    place = tmp_path_factory.mktemp("checkpoints")
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(4, "tanh"), keras.layers.Dense(3)])
    model.compile(keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    for epoch in (1, 2):
        model.fit(X, Y, batch_size=16, verbose=0)
        model.save(place / f"epoch_{epoch}.keras")
    shutil.copy(place / "epoch_2.keras", place / "last.keras")
    return [str(place / name) for name in ("epoch_1.keras", "epoch_2.keras", "last.keras")]


@pytest.fixture(scope="module")
def one_monitor() -> Any:
    """Compiled once for all calls; a call gets it as a new process would."""
    made: list[Any] = []

    def monitor(model: keras.Model, data: Any, **options: Any) -> Any:
        if not made:
            made.append(Monitor(model, data, **options))
            made.append(made[0].state())
        made[0].restore(made[1])
        made[0].take(model)
        return made[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracking, "Monitor", monitor)
        yield


@pytest.fixture(scope="module")
def tracked(checkpoints: list[str], one_monitor: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Disk]:
    place = tmp_path_factory.mktemp("tracked")
    (place / "log").mkdir()
    disk = Disk(place / "log", place)
    with pytest.MonkeyPatch.context() as patch:
        disk.patch(patch)
        track(checkpoints, (X, Y), log_dir=disk.folder, **SETTINGS)
    return content(disk.folder), disk


TRACKED = (
    *("half of sharpness-state.npz", "sharpness-state.npz before its rename", "sharpness-state.npz after its rename"),
    *("half a line", "a line", "half a line", "a line"),
    *("half of sharpness-state.npz", "sharpness-state.npz before its rename", "sharpness-state.npz after its rename"),
    *("half a line", "a line", "half a line", "a line"),
)
FOLLOWED = ("half of run.npz", "run.npz before its rename", "run.npz after its rename") * 3


def moments(names: Sequence[str], slow: Container[int]) -> list[Any]:
    """Numbered as `Disk` does; slow are those whose like is among the others."""
    marks = [[pytest.mark.slow] if k in slow else [] for k in range(len(names))]
    return [pytest.param(f"{k:02} {name}", marks=marks[k]) for k, name in enumerate(names)]


def test_checkpoints_are_tracked_by_these_writes(tracked: tuple[Any, Disk]) -> None:
    """A new write must be added to the tests below. The last checkpoint is a copy, and gets a line alone."""
    whole, disk = tracked
    assert [moment[3:] for moment in disk.moments] == list(TRACKED)
    assert whole["files"] == ["sharpness-state.npz", "sharpness.jsonl"]
    assert len(whole["measurements"]) == 3


@pytest.mark.parametrize("moment", moments(TRACKED, slow=range(2, 7)))
def test_killed_at_any_write_track_goes_on_to_the_same_bits(
    tracked: tuple[Any, Disk], checkpoints: list[str], tmp_path: Path, moment: str
) -> None:
    whole, disk = tracked
    shutil.copytree(disk.moments[moment], tmp_path / "log")
    track(checkpoints, (X, Y), log_dir=tmp_path / "log", **SETTINGS)
    assert content(tmp_path / "log") == whole
    assert len(read_run_log(tmp_path / "log").notes) == (moment[3:] == "half a line")


@pytest.mark.parametrize(
    "call", [pytest.param(k, marks=pytest.mark.slow) if k in (1, 2, 5) else k for k in range(1, 7)]
)
def test_a_full_disk_ends_track_with_a_message_and_the_next_call_goes_on(
    tracked: tuple[Any, Disk], checkpoints: list[str], tmp_path: Path, call: int
) -> None:
    whole, _ = tracked
    with pytest.MonkeyPatch.context() as patch:
        failing(patch, call)
        with pytest.raises(SdkerasError, match=r"cannot be written: (No space left|.* bytes were written)"):
            track(checkpoints, (X, Y), log_dir=tmp_path, **SETTINGS)
    assert not list(tmp_path.glob(".*"))
    track(checkpoints, (X, Y), log_dir=tmp_path, **SETTINGS)
    assert content(tmp_path) == whole


@pytest.fixture(scope="module")
def step() -> UpdateMap:
    """Compiled once for all calls; nothing changes it."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3), keras.layers.Dropout(0.2)])
    model.compile(keras.optimizers.SGD(0.5, momentum=0.5), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.train_on_batch(X, Y)
    return UpdateMap(EmpiricalLoss(model, (X, Y), batch_size=16), model.optimizer)


def follow(step: UpdateMap, folder: Path) -> lyapunov.Followed:
    settings = LyapunovOptions(
        num_exponents=3,
        num_steps=STEPS,
        transient=TRANSIENT,
        checkpoint=str(folder / "run.npz"),
        checkpoint_interval=INTERVAL,
    )
    return lyapunov.follow(step, settings, about={}, budget=lyapunov.budget_of(step, Meter()))


def followed_content(followed: lyapunov.Followed, folder: Path) -> tuple[str, ...]:
    names = sorted(path.name for path in folder.iterdir())
    return (repr(followed.summary), *names, fingerprint(load_checkpoint(folder / "run.npz")))


@pytest.fixture(scope="module")
def followed(step: UpdateMap, tmp_path_factory: pytest.TempPathFactory) -> tuple[tuple[str, ...], Disk]:
    place = tmp_path_factory.mktemp("followed")
    (place / "run").mkdir()
    disk = Disk(place / "run", place)
    with pytest.MonkeyPatch.context() as patch:
        disk.patch(patch)
        answer = follow(step, disk.folder)
    return followed_content(answer, disk.folder), disk


def test_exponents_are_kept_by_these_writes(followed: tuple[tuple[str, ...], Disk]) -> None:
    """A new write must be added to the tests below."""
    whole, disk = followed
    assert [moment[3:] for moment in disk.moments] == list(FOLLOWED)
    assert whole[1:-1] == ("run.npz",)


@pytest.mark.parametrize("moment", moments(FOLLOWED, slow=range(2, 6)))
def test_killed_at_any_write_lyapunov_goes_on_to_the_same_bits(
    followed: tuple[tuple[str, ...], Disk], step: UpdateMap, tmp_path: Path, moment: str
) -> None:
    whole, disk = followed
    shutil.copytree(disk.moments[moment], tmp_path / "run")
    assert followed_content(follow(step, tmp_path / "run"), tmp_path / "run") == whole


@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_full_disk_ends_lyapunov_with_a_message_and_the_next_call_goes_on(
    followed: tuple[tuple[str, ...], Disk], step: UpdateMap, tmp_path: Path, call: int
) -> None:
    whole, _ = followed
    with pytest.MonkeyPatch.context() as patch:
        failing(patch, call)
        with pytest.raises(SdkerasError, match=r"run.npz cannot be written: No space left"):
            follow(step, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.npz"] * (call > 1)
    assert followed_content(follow(step, tmp_path), tmp_path) == whole


SCRIPT = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
task, inputs, out, kind, number = sys.argv[2:]
replace, write, calls = os.replace, os.write, []

def count(what):
    calls.append(what)
    if kind == what and calls.count(what) == int(number):
        os.kill(os.getpid(), signal.SIGKILL)

def replaced(source, target):
    count("before a rename")
    replace(source, target)
    count("after a rename")

def written(handle, line):
    if not line.lstrip().startswith(b"{"):
        return write(handle, line)
    write(handle, line[:40])
    count("half a line")
    write(handle, line[40:])
    count("a line")
    return len(line)

os.replace, os.write = replaced, written
import keras
import sdkeras
from small_nets import X, Y
if task == "track":
    sdkeras.track([inputs], (X, Y), log_dir=out, batch_size=16, samples=96, tolerance=0.5)
elif task == "lyapunov":
    answer = sdkeras.lyapunov(
        keras.saving.load_model(inputs), (X, Y), batch_size=16, num_exponents=3, num_steps=24, transient=3,
        checkpoint=out + "/run.npz", checkpoint_interval=6,
    )
    print(answer.lyapunov)
else:
    from sdkeras.callbacks import SharpnessDimension
    model = keras.saving.load_model(inputs)
    watch = SharpnessDimension((X, Y), batch_size=16, max_overhead=None, measures=("sharpness",), log_dir=out)
    backup = keras.callbacks.BackupAndRestore(out + "/backup", double_checkpoint=True)
    callbacks = [watch, backup] if task == "wb" else [backup, watch]
    model.fit(X, Y, batch_size=16, epochs=6, shuffle=False, verbose=0, callbacks=callbacks)
"""


def ran(task: str, inputs: str, out: Path, kind: str = "", number: int = 0) -> str:
    """What a process of its own prints; it kills itself at a write, if it is told one."""
    out.mkdir(exist_ok=True)
    words = [sys.executable, "-c", SCRIPT, str(Path(__file__).parents[1]), task, inputs, str(out), kind, str(number)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == (-signal.SIGKILL if kind else 0), done.stderr
    return done.stdout


@pytest.mark.slow
def test_tracking_after_real_kills(checkpoints: list[str], tmp_path: Path) -> None:
    ran("track", f"{Path(checkpoints[0]).parent}/*.keras", tmp_path / "whole")
    for kind, number in (("before a rename", 2), ("half a line", 3)):
        out = tmp_path / kind
        ran("track", f"{Path(checkpoints[0]).parent}/*.keras", out, kind, number)
        assert list(out.glob(".*"))
        ran("track", f"{Path(checkpoints[0]).parent}/*.keras", out)
        assert content(out) == content(tmp_path / "whole")


@pytest.mark.slow
def test_exponents_after_real_kills(checkpoints: list[str], tmp_path: Path) -> None:
    whole = ran("lyapunov", checkpoints[0], tmp_path / "whole")
    for kind, number in (("before a rename", 2), ("after a rename", 3)):
        out = tmp_path / kind
        ran("lyapunov", checkpoints[0], out, kind, number)
        assert list(out.glob(".*"))
        assert ran("lyapunov", checkpoints[0], out) == whole
        assert [path.name for path in out.iterdir()] == ["run.npz"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("order", "said"),
    [("wb", "training went back to step 12: 1 measurement"), ("bw", "continued at step 36, after 5 epochs")],
)
def test_a_restored_training_after_real_kills(checkpoints: list[str], tmp_path: Path, order: str, said: str) -> None:
    """Killed after a measurement's line and within one: with the backup before or after it."""
    ran(order, checkpoints[0], tmp_path / "whole")
    whole = read_run_log(tmp_path / "whole")
    ran(order, checkpoints[0], tmp_path / "out", "a line", 3)
    ran(order, checkpoints[0], tmp_path / "out", "half a line", 3)
    ran(order, checkpoints[0], tmp_path / "out")
    log = read_run_log(tmp_path / "out")
    found = {each.step: each for each in trajectory(log)}
    expected = {each.step: each for each in whole.measurements}
    missing = sorted(set(expected) - set(found))
    assert len(found) == len(trajectory(log))
    assert len(missing) == (0 if order == "wb" else 1)
    (words,) = breaks(log)
    assert said in words
    assert len(log.notes) == 1
    for place, each in found.items():
        assert each.metrics["loss"] == expected[place].metrics["loss"]
        own, theirs = each.values["sharpness"], expected[place].values["sharpness"]
        assert abs(own.value - theirs.value) <= own.residual + theirs.residual
    assert not list((tmp_path / "out").glob(".*"))
