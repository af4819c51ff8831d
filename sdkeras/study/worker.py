"""A worker process of a study: it loads the user's code and data once, then does one run per task.

The numbers go into the run's folder; a task returns only why it failed. On a cluster each task has such a process, a
child of the cluster's: that one would be left with another folder, output and TensorFlow, and its threads draw from the
same random numbers as Keras.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import platform
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import attrs
import psutil

from sdkeras._version import __version__
from sdkeras.errors import NonFiniteError, SdkerasError, VerificationError
from sdkeras.files.atomic import InUseError, only_writer, open_own, shown
from sdkeras.files.keras_types import Model
from sdkeras.files.user_code import USER_ERRORS, last_line, own_objects, user_import
from sdkeras.study.definition import GridRun, Study
from sdkeras.study.run_files import Failed, RunFolder, Trained

if TYPE_CHECKING:
    from sdkeras.study.train import StudyData, Trial

# One thread each, and no module from the current folder, which may be that of the study.
_ENVIRONMENT = {
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1"),
    "KERAS_BACKEND": "tensorflow",
    "PYTHONSAFEPATH": "1",
}
# Unless they are set already.
_TENSORFLOW = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0"}
# Stages of failures: the process has ended, and (of no run) a cluster's worker cannot work for the study.
ENDED, REFUSED = "ended", "refused"
_Answer = TypeVar("_Answer")
_APPENDING = os.O_WRONLY | os.O_CREAT | os.O_APPEND


@attrs.frozen
class Workplace:
    """What a study's workers work with: its file, the folder of its runs' folders, and the folder of the user's code.

    `log` is the file for output printed outside of runs; `share` processes share the memory.
    """

    study: Path
    runs: Path
    code: Path
    log: Path
    share: int


@attrs.frozen
class Ticket:
    """What a cluster's worker must find: the file `token`, which holds its own name, and packages of these versions."""

    place: Workplace
    token: Path
    versions: Mapping[str, str]


class Worker:
    """A study with its user code and data, loaded once."""

    def __init__(self, study: Study, runs: Path, share: int) -> None:
        self.study = study
        self.runs = runs
        self.share = share
        self._loaded: tuple[Callable[..., Model], StudyData] | None = None

    def check(self, runs: Sequence[GridRun] = ()) -> tuple[str, ...] | Failed:
        """Loads user code and data; returns sentences about measures of these runs that will lack a learning rate.

        Or why they cannot be loaded, or no measure could be taken of any of the runs.
        """
        stage = "loading"
        with _logged(Path(os.devnull)):
            try:
                make, data = self._load()
                if not runs:
                    return ()
                from sdkeras.study.measure import check_rates

                stage = "checking"
                return check_rates(self.study, [run.settings for run in runs], make, data)
            except USER_ERRORS as error:
                return _failure(stage, error)

    def do(self, run: GridRun) -> Failed | None:
        """Trains and measures a run as far as that is not done yet; returns why it failed."""
        folder, trained, stage = RunFolder(self.runs / run.name), None, "loading"
        folder.begin(run.settings)
        with _logged(folder.log):
            try:
                make, data = self._load()
                from sdkeras.study.train import Trial, divergence, train

                trial, stage = Trial(self.study, run, make, data, folder), "training"
                trained = folder.trained() or train(trial)
                stage = "measuring"
                self._measure(trial, trained)
                return None
            except USER_ERRORS as error:
                failure = _failure(stage, error, trained)
                if trained is not None and isinstance(error, (VerificationError, NonFiniteError)):
                    failure = attrs.evolve(failure, reason=divergence(trial, trained) or failure.reason)
        folder.write(folder.failure, failure)
        return failure

    def _load(self) -> tuple[Callable[..., Model], StudyData]:
        if self._loaded is None:
            from sdkeras.study.train import StudyData, factory

            self._loaded = factory(self.study), StudyData.of(self.study)
        return self._loaded

    def _measure(self, trial: Trial, trained: Trained) -> None:
        import keras

        from sdkeras.study.measure import measure
        from sdkeras.study.train import rebuilt

        missing = trial.folder.missing(self.study.by_column())
        if missing:
            # Copies of the model in other precisions need its classes as well.
            with keras.saving.custom_object_scope(own_objects(trial.make, Path.cwd().resolve())):
                # Always from the files, so that a resumed run has the numbers of one that was not interrupted.
                measure(trial, rebuilt(trial, trained), missing, self.share)
        trial.folder.trajectory.unlink(missing_ok=True)


_process = contextlib.ExitStack()
_worker: list[Worker] = []


def environment() -> dict[str, str]:
    """Variables that a worker process needs in addition to those of its parent."""
    return {name: os.environ.get(name, value) for name, value in _TENSORFLOW.items()} | _ENVIRONMENT


def begin(place: Workplace, parent: int) -> None:
    """Prepares this process for its tasks; it ends with its parent, whatever it is doing."""
    threading.Thread(target=_end_with, args=(psutil.Process(parent),), daemon=True).start()
    with contextlib.suppress(AttributeError, PermissionError):
        os.setsid()  # Ctrl-C in the terminal is for the parent, which ends this process
    _process.enter_context(_logged(place.log))
    os.chdir(place.code)
    _process.enter_context(user_import(place.code))
    threads = importlib.import_module("tensorflow").config.threading
    threads.set_intra_op_parallelism_threads(1)  # the runs share the cores
    threads.set_inter_op_parallelism_threads(1)
    open_study(place)


def open_study(place: Workplace) -> None:
    """Makes the study the one of this process's tasks."""
    _worker[:] = [Worker(Study.load(place.study), place.runs, place.share)]


def versions() -> dict[str, str]:
    """Versions of the packages that a run's numbers are of."""
    found = {"sdkeras": __version__}
    for package in ("tensorflow", "keras"):
        found[package] = "missing"
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def visit(ticket: Ticket) -> str:
    """Why this process cannot work for the study, "" if it can."""
    folder, code, here = ticket.token.parent, ticket.place.code, f"a worker on {platform.node()}"
    try:
        token = ticket.token.read_text(encoding="utf-8")
    except (OSError, ValueError):
        token = ""
    for path, is_there in ((folder, token == ticket.token.name), (code, code.is_dir())):
        if not is_there:
            return (
                f"{here} does not see {shown(path)}, which must be on a file system that all workers share, at the "
                "same path."
            )
    there = versions()
    differ = [
        f"{name} {there[name]} ({version} here)" for name, version in ticket.versions.items() if version != there[name]
    ]
    return f"{here} has {', '.join(differ)}; install the same versions." if differ else ""


def as_guest(ticket: Ticket, task: Callable[..., _Answer], *arguments: object) -> _Answer | Failed:
    """A task in a child of this process, the cluster's; it ends with the study, once the ticket's file is gone."""
    refusal = visit(ticket)
    if refusal:
        return Failed(REFUSED, refusal)
    order: bytes | None = pickle.dumps((ticket.place, os.getpid(), task, arguments))
    with subprocess.Popen(
        [sys.executable, "-c", "from sdkeras.study.worker import do_order; do_order()"],
        env={**os.environ, **environment()},
        cwd=ticket.place.code,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        try:
            while True:
                try:
                    answer, _ = child.communicate(order, timeout=1)
                    break
                except subprocess.TimeoutExpired:
                    order = None  # it is sent
                    if not ticket.token.exists():
                        return Failed(REFUSED, "the study has ended")
        finally:
            child.kill()
    if not answer:
        return Failed(ENDED, why_ended(child.returncode, ticket.place.log))
    result: _Answer | Failed = pickle.loads(answer)
    return result


def do_order() -> None:
    """Does the task that comes through stdin, and writes its result to stdout."""
    answers, order = os.fdopen(os.dup(1), "wb"), sys.stdin.buffer.read()
    place, parent, task, arguments = pickle.loads(order)
    try:
        begin(place, parent)
        result = task(*arguments)
    except Exception as error:
        reason = str(error) if isinstance(error, SdkerasError) else last_line(error)
        result = Failed(REFUSED, f"a worker on {platform.node()} failed: {reason}")
    with answers:
        answers.write(pickle.dumps(result))
    os._exit(0)  # whatever threads the user's code has left


def why_ended(status: int | None, log: Path) -> str:
    """Why a process has ended, by its exit status, where that is known."""
    if status is None:
        return f"its process ended (what it printed is in {log})"
    if status >= 0:
        return f"its process ended with exit status {status} (what it printed is in {log})"
    name = signal.Signals(-status).name if -status in set(signal.Signals) else str(-status)
    out_of_memory = " (the system was out of memory, perhaps)" if name == "SIGKILL" else ""
    return f"its process was killed by {name}{out_of_memory}"


def check(*runs: GridRun) -> tuple[str, ...] | Failed:
    """`Worker.check` as a task."""
    return _worker[0].check(runs)


def do(run: GridRun) -> Failed | None:
    """`Worker.do` as a task, once nobody else is doing the run: guests of an interrupted study end a little later."""
    folder = _worker[0].runs / run.name
    folder.mkdir(exist_ok=True)
    while True:
        try:
            with only_writer(folder, "wait"):
                return _worker[0].do(run)
        except InUseError:
            time.sleep(1)


def _end_with(parent: psutil.Process) -> None:
    while parent.is_running() and os.getppid() == parent.pid:
        time.sleep(0.2)
    os._exit(1)


def _failure(stage: str, error: BaseException, trained: Trained | None = None) -> Failed:
    traceback.print_exc()
    if isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError":
        return Failed(stage, f"out of memory ({last_line(error)})")
    reason = str(error) if isinstance(error, SdkerasError) else last_line(error)
    if isinstance(error, VerificationError) and trained is not None:
        reason = f"after a training that ended at a loss of {trained.train.loss:.3g}, {reason}"
    return Failed(stage, " ".join(reason.split()))


@contextlib.contextmanager
def _logged(path: Path) -> Iterator[None]:
    """Append to a file what is printed meanwhile, by C++ too."""
    file = os.open(path, os.O_WRONLY) if path == Path(os.devnull) else open_own(path, _APPENDING)
    before = [os.dup(stream) for stream in (1, 2)]
    try:
        for stream in (1, 2):
            os.dup2(file, stream)
        yield
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        for stream, kept in zip((1, 2), before, strict=True):
            os.dup2(kept, stream)
            os.close(kept)
        os.close(file)
