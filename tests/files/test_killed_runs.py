"""Tracked checkpoints and Lyapunov exponents, killed at any of their writes: they go on to the same bits."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Container, Sequence
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


@attrs.frozen
class Whole:
    """A task that nothing stopped: what it left, the moments of its writes, and the task itself, in any folder."""

    content: Any
    disk: Disk
    task: Callable[[Path], Any]

    @classmethod
    def of(cls, task: Callable[[Path], Any], place: Path) -> Whole:
        """`task` goes on in a folder and returns what is in it and in its answer, but for times."""
        (place / "out").mkdir()
        disk = Disk(place / "out", place)
        with pytest.MonkeyPatch.context() as patch:
            disk.patch(patch)
            return cls(task(disk.folder), disk, task)


@pytest.fixture(scope="module")
def tracked(checkpoints: list[str], one_monitor: None, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    def task(folder: Path) -> dict[str, Any]:
        track(checkpoints, (X, Y), log_dir=folder, **SETTINGS)
        return content(folder)

    return Whole.of(task, tmp_path_factory.mktemp("tracked"))


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3), keras.layers.Dropout(0.2)])
    model.compile(keras.optimizers.SGD(0.5, momentum=0.5), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.train_on_batch(X, Y)
    step = UpdateMap(EmpiricalLoss(model, (X, Y), batch_size=16), model.optimizer)  # nothing changes it

    def task(folder: Path) -> tuple[str, ...]:
        kept = folder / "run.npz"
        settings = LyapunovOptions(
            num_exponents=3, num_steps=12, transient=3, checkpoint=str(kept), checkpoint_interval=6
        )
        answer = lyapunov.follow(step, settings, about={}, budget=lyapunov.budget_of(step, Meter()))
        names = sorted(path.name for path in folder.iterdir())
        return (repr(answer.summary), *names, fingerprint(load_checkpoint(kept)))

    return Whole.of(task, tmp_path_factory.mktemp("followed"))


def of_a_file(name: str) -> tuple[str, ...]:
    return f"half of {name}", f"{name} before its rename", f"{name} after its rename"


LINE = ("half a line", "a line")
# A new write must be added here. The last checkpoint is a copy, and gets a line alone.
WRITES = {
    "tracked": 2 * (*of_a_file("sharpness-state.npz"), *LINE, *LINE),
    "followed": 3 * of_a_file("run.npz"),
}
# Moments whose like is among the others.
SLOW = {"tracked": range(2, 7), "followed": range(2, 6)}


@pytest.fixture
def whole(request: pytest.FixtureRequest) -> Whole:
    return request.getfixturevalue(request.param)


def with_slow(task: str, values: Sequence[object], slow: Container[int]) -> list[Any]:
    """Parameters (task, value), slow at these places."""
    marks = {True: [pytest.mark.slow], False: []}
    return [pytest.param(task, value, marks=marks[k in slow]) for k, value in enumerate(values)]


@pytest.mark.parametrize("whole", WRITES, indirect=True)
def test_a_task_makes_these_writes(whole: Whole, request: pytest.FixtureRequest) -> None:
    assert [moment[3:] for moment in whole.disk.moments] == list(WRITES[request.node.callspec.params["whole"]])
    assert not list(whole.disk.folder.glob(".*"))


def test_every_checkpoint_has_its_measurement(tracked: Whole, checkpoints: list[str]) -> None:
    assert len(tracked.content["measurements"]) == len(checkpoints)


@pytest.mark.parametrize(
    ("whole", "moment"),
    [
        each
        for task, writes in WRITES.items()
        for each in with_slow(task, [f"{k:02} {name}" for k, name in enumerate(writes)], SLOW[task])
    ],
    indirect=["whole"],
)
def test_killed_at_any_write_it_goes_on_to_the_same_bits(whole: Whole, tmp_path: Path, moment: str) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole.disk.moments[moment], out)
    assert whole.task(out) == whole.content
    if (out / "sharpness.jsonl").exists():
        assert len(read_run_log(out).notes) == (moment[3:] == "half a line")


@pytest.mark.parametrize(
    ("whole", "call"),
    [*with_slow("tracked", range(1, 7), (0, 1, 4, 5)), *with_slow("followed", range(1, 4), ())],
    indirect=["whole"],
)
def test_a_full_disk_ends_it_with_a_message_and_the_next_call_goes_on(whole: Whole, tmp_path: Path, call: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        failing(patch, call)
        with pytest.raises(SdkerasError, match=r"cannot be written: (No space left|.* bytes were written)"):
            whole.task(tmp_path)
    assert not list(tmp_path.glob(".*"))
    assert whole.task(tmp_path) == whole.content


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
@pytest.mark.parametrize(("task", "last"), [("track", ("half a line", 3)), ("lyapunov", ("after a rename", 3))])
def test_a_task_after_real_kills(checkpoints: list[str], tmp_path: Path, task: str, last: tuple[str, int]) -> None:
    inputs = f"{Path(checkpoints[0]).parent}/*.keras" if task == "track" else checkpoints[0]
    answer = ran(task, inputs, tmp_path / "whole")
    for kind, number in (("before a rename", 2), last):
        out = tmp_path / kind
        ran(task, inputs, out, kind, number)
        assert list(out.glob(".*"))
        again = ran(task, inputs, out)
        if task == "track":
            assert content(out) == content(tmp_path / "whole")
        else:
            assert (again, [path.name for path in out.iterdir()]) == (answer, ["run.npz"])


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
