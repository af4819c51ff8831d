"""A worker process of a study: it loads the user's code and data once, then does one run per task.

The numbers go into the run's folder; a task returns only why it failed.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import psutil

from sdkeras.errors import SdkerasError, VerificationError
from sdkeras.files.atomic import open_own
from sdkeras.files.keras_types import Model
from sdkeras.files.user_code import USER_ERRORS, last_line, own_objects, user_import
from sdkeras.study.definition import GridRun, Study
from sdkeras.study.run_files import Failed, RunFolder, Trained

if TYPE_CHECKING:
    from sdkeras.study.train import StudyData, Trial

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
                from sdkeras.study.train import Trial, train

                trial, stage = Trial(self.study, run, make, data, folder), "training"
                trained = folder.trained() or train(trial)
                stage = "measuring"
                self._measure(trial, trained)
                return None
            except USER_ERRORS as error:
                failure = _failure(stage, error, trained)
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


def check(*runs: GridRun) -> tuple[str, ...] | Failed:
    """`Worker.check` as a task."""
    return _worker[0].check(runs)


def do(run: GridRun) -> Failed | None:
    """`Worker.do` as a task."""
    return _worker[0].do(run)


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
