"""Runs a study in parallel processes, and continues where an earlier call stopped."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TypeVar

import attrs
from joblib.externals.loky import ProcessPoolExecutor

from sdkeras.errors import SdkerasError
from sdkeras.files.atomic import make_folder, only_writer
from sdkeras.study import worker
from sdkeras.study.definition import GridRun, Study
from sdkeras.study.run_files import STUDY_FILE, Failed, RunFolder, StudyPlan, plan_study, runs_folder

# Of the workers: one thread each, and no module from the current folder, which may be that of the study.
_ENVIRONMENT = {
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1"),
    "KERAS_BACKEND": "tensorflow",
    "PYTHONSAFEPATH": "1",
}
# Unless they are set already.
_TENSORFLOW = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0"}
# Stage of a failure that is the end of the worker process.
_ENDED = "ended"
_Result = TypeVar("_Result")


@attrs.frozen
class Finished:
    """One run that has just ended, for a progress line; counts and times are of this call, times in seconds."""

    run: GridRun
    failure: Failed | None
    seconds: float
    num_finished: int
    num_to_do: int
    remaining: float


def run_study(
    study: Study,
    folder: str | os.PathLike[str],
    *,
    code: str | os.PathLike[str] = ".",
    jobs: int | None = None,
    retry: bool = False,
    progress: Callable[[Finished], None] | None = None,
    notice: Callable[[str], None] | None = None,
) -> StudyPlan:
    """Trains and measures the runs of a study that are not done yet.

    Each run's numbers depend on its settings alone, not on the order or the other runs. A run that fails is recorded
    and does not stop the others. Every file is written whole or not at all, so that the same call continues after the
    last finished stage, whatever ended this process. Returns the state of the runs at the end.

    Args:
        study: The study.
        folder: Folder of the study; made if it does not exist.
        code: Folder of the user's modules and relative paths of data.
        jobs: Parallel processes, each with one thread; default one for each core.
        retry: Run failed runs again.
        progress: Called after each run.
        notice: Called before the first training with each sentence about measures that will have no value.

    Raises:
        SdkerasError: The folder is of another definition or in use, the user's code or data cannot be loaded, no
            measure could be taken of any run, or no run of the study has succeeded.
    """
    if jobs is not None and jobs < 1:
        raise SdkerasError(f"jobs is {jobs}; it must be at least 1.")
    place = runs_folder(folder)
    make_folder(place)
    with only_writer(folder, "wait until it has ended, or name another folder"):
        plan = plan_study(study, folder, jobs=jobs)
        study.save(Path(folder) / STUDY_FILE, follow_links=False)
        to_do = [each.run for each in plan.to_do(retry)]
        if to_do:
            workplace = worker.Workplace(
                study=Path(folder, STUDY_FILE).resolve(),
                runs=place.resolve(),
                code=Path(code).resolve(),
                log=Path(folder, "workers.log").resolve(),
                share=min(plan.jobs, len(to_do)),
            )
            with _slots(workplace) as slots:
                _check(study, slots[0], to_do, notice)
                _do(slots, to_do, workplace.runs, progress)
        after = plan_study(study, folder, jobs=jobs)
    failures = [each.failure for each in after.runs if each.failure is not None]
    if len(failures) == len(after.runs):
        all_of_them = "the only run has" if len(failures) == 1 else f"all {len(failures)} runs have"
        again = "" if to_do else " Set `retry=True` to try again."
        reason = failures[0].reason.rstrip(".")
        raise SdkerasError(f"{all_of_them} failed; the first in {failures[0].stage}: {reason}.{again}")
    return after


@contextlib.contextmanager
def _slots(place: worker.Workplace) -> Iterator[list[_Slot]]:
    """A slot for each process; the processes are killed at the end."""
    slots = [_Slot(place) for _ in range(place.share)]
    with warnings.catch_warnings():
        # loky replaces a process whose memory has grown.
        warnings.filterwarnings("ignore", "A worker stopped while some jobs", UserWarning)
        try:
            yield slots
        finally:
            for slot in slots:
                slot.put_away()


class _Slot:
    """One worker process at a time; another one takes its place when it has died."""

    def __init__(self, place: worker.Workplace) -> None:
        self._place = place
        self._pool: ProcessPoolExecutor | None = None

    def submit(self, task: Callable[..., _Result], *arguments: object) -> Future[_Result]:
        environment = {name: os.environ.get(name, value) for name, value in _TENSORFLOW.items()} | _ENVIRONMENT
        with _safe_path():
            if self._pool is None:
                self._pool = ProcessPoolExecutor(
                    1, env=environment, initializer=worker.begin, initargs=(self._place, os.getpid())
                )
            try:
                future: Future[_Result] = self._pool.submit(task, *arguments)
            except BrokenProcessPool:  # it died while it had nothing to do
                self.put_away()
                return self.submit(task, *arguments)
        return future

    def outcome(self, task: Future[_Result]) -> _Result | Failed:
        """The result of a task, or why the process has ended instead."""
        try:
            return task.result()
        except BrokenProcessPool as error:
            self.put_away()
            return Failed(_ENDED, _why_ended(error, self._place.log))

    def put_away(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(kill_workers=True)
            self._pool = None


@contextlib.contextmanager
def _safe_path() -> Iterator[None]:
    """Keeps processes that are started meanwhile, loky's trackers too, from importing what is in the current folder."""
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before


def _why_ended(error: BrokenProcessPool, log: Path) -> str:
    code = re.search(r"exit codes.*?\((-?\d+)\)", str(error))
    if code is None:
        return f"its process ended (what it printed is in {log})"
    status = int(code[1])
    if status >= 0:
        return f"its process ended with exit status {status} (what it printed is in {log})"
    name = signal.Signals(-status).name if -status in set(signal.Signals) else str(-status)
    out_of_memory = " (the system was out of memory, perhaps)" if name == "SIGKILL" else ""
    return f"its process was killed by {name}{out_of_memory}"


def _check(study: Study, slot: _Slot, runs: Sequence[GridRun], notice: Callable[[str], None] | None) -> None:
    """Checks before the first training that user code and data load, and tells which measures will lack a rate."""
    answer = slot.outcome(slot.submit(worker.check))
    if not isinstance(answer, Failed) and study.needing_a_rate:
        answer = slot.outcome(slot.submit(worker.check, *runs))
        if isinstance(answer, Failed) and answer.stage == _ENDED:
            return  # a factory has ended the process, and will do so as a failed run
    if isinstance(answer, Failed):
        raise SdkerasError(answer.reason)
    if notice is not None:
        for sentence in answer:
            notice(sentence)


def _do(
    slots: Sequence[_Slot], runs: Sequence[GridRun], folder: Path, progress: Callable[[Finished], None] | None
) -> None:
    """Does the runs, one at a time in each slot."""
    started, finished = time.monotonic(), 0
    waiting, free = deque(runs), list(slots)
    under_way: dict[Future[Failed | None], tuple[_Slot, GridRun, float]] = {}
    while waiting or under_way:
        while waiting and free:
            slot, run = free.pop(0), waiting.popleft()
            under_way[slot.submit(worker.do, run)] = slot, run, time.monotonic()
        for task in wait(under_way, timeout=1.0, return_when=FIRST_COMPLETED).done:
            slot, run, since = under_way.pop(task)
            free.append(slot)
            failure = _outcome(slot, task, RunFolder(folder / run.name))
            finished += 1
            if progress is not None:
                now = time.monotonic()
                remaining = (now - started) / finished * (len(runs) - finished)
                progress(Finished(run, failure, now - since, finished, len(runs), remaining))


def _outcome(slot: _Slot, task: Future[Failed | None], files: RunFolder) -> Failed | None:
    """Why a run failed, written down where its process could not."""
    failure = slot.outcome(task)
    if failure is not None and failure.stage == _ENDED:
        failure = attrs.evolve(failure, stage="training" if files.trained() is None else "measuring")
        files.path.mkdir(exist_ok=True)
        files.write(files.failure, failure)
    if failure is not None and "out of memory" in failure.reason:
        slot.put_away()
    return failure
