"""Runs a study in parallel processes, here or on a cluster, and continues where an earlier call stopped."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Protocol, TypeVar

import attrs
from joblib.externals.loky import ProcessPoolExecutor

from sdkeras.errors import SdkerasError
from sdkeras.files.atomic import make_folder, only_writer, shown
from sdkeras.files.user_code import last_line
from sdkeras.study import worker
from sdkeras.study.backends import LOKY, Cluster, connected
from sdkeras.study.definition import GridRun, Study
from sdkeras.study.run_files import STUDY_FILE, Failed, RunFolder, StudyPlan, plan_study, runs_folder

# Start of the name of a file by which a cluster's workers know the study's folder.
_TOKEN = ".shared-"
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
    backend: str = LOKY,
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
        jobs: Runs under way at once; default one for each core of this computer, or each thread of the cluster
            (Ray: CPU).
        retry: Run failed runs again.
        backend: 'loky' for processes of this computer with one thread each, or the address of a running cluster whose
            workers see the study's and the code's folders at the same paths: 'dask://HOST:PORT' of a scheduler,
            'ray://HOST:PORT' of a Ray client server, 'ray://auto' for the Ray cluster that this computer belongs to.
        progress: Called after each run.
        notice: Called before the first training with each sentence about measures that will have no value.

    Raises:
        SdkerasError: The folder is of another definition or in use, the user's code or data cannot be loaded, no
            measure could be taken of any run, or no run of the study has succeeded; or the backend cannot be used: its
            package is missing, nobody answers, a worker does not see the folders or has other versions.
    """
    if jobs is not None and jobs < 1:
        raise SdkerasError(f"jobs is {jobs}; it must be at least 1.")
    place = runs_folder(folder)
    with contextlib.ExitStack() as scope:
        cluster = None if backend == LOKY else scope.enter_context(connected(backend))
        if jobs is None and cluster is not None:
            jobs = cluster.jobs
        make_folder(place)
        scope.enter_context(only_writer(folder, "wait until it has ended, or name another folder"))
        plan = plan_study(study, folder, jobs=jobs)
        study.save(Path(folder) / STUDY_FILE, follow_links=False)
        to_do = [each.run for each in plan.to_do(retry)]
        if to_do:
            share = min(plan.jobs, len(to_do))
            workplace = worker.Workplace(
                study=Path(folder, STUDY_FILE).resolve(),
                runs=place.resolve(),
                code=Path(code).resolve(),
                log=Path(folder, "workers.log").resolve(),
                share=share if cluster is None else min(share, cluster.share),
            )
            with _processes(workplace) if cluster is None else _guests(workplace, cluster, share) as slots:
                _check(study, slots[0], to_do, notice)
                _do(slots, to_do, workplace.runs, progress)
        after = plan_study(study, folder, jobs=jobs)
    failures = [each.failure for each in after.runs if each.failure is not None]
    if len(failures) == len(after.runs):
        all_of_them = "the only run has" if len(failures) == 1 else f"all {len(failures)} runs have"
        reasons, them = ("the reason", "it") if len(failures) == 1 else ("the reasons", "them")
        raise SdkerasError(
            f"{all_of_them} failed, with {reasons} in {shown(place)}; the first in {failures[0].stage}: "
            f"{failures[0].reason.rstrip('.')}. Set `retry=True` to run {them} again."
        )
    return after


class _Slot(Protocol):
    """Does one task at a time."""

    def submit(self, task: Callable[..., _Result], *arguments: object) -> Future[_Result]: ...

    def outcome(self, task: Future[_Result]) -> _Result | Failed:
        """The result of a task, or why the process has ended instead."""

    def put_away(self) -> None:
        """Ends its process, if it is the study's own."""


@contextlib.contextmanager
def _processes(place: worker.Workplace) -> Iterator[Sequence[_Slot]]:
    """A slot for each process; the processes are killed at the end."""
    slots = [_Process(place) for _ in range(place.share)]
    with warnings.catch_warnings():
        # loky replaces a process whose memory has grown.
        warnings.filterwarnings("ignore", "A worker stopped while some jobs", UserWarning)
        try:
            yield slots
        finally:
            for slot in slots:
                slot.put_away()


class _Process:
    """One worker process at a time; another one takes its place when it has died."""

    def __init__(self, place: worker.Workplace) -> None:
        self._place = place
        self._pool: ProcessPoolExecutor | None = None

    def submit(self, task: Callable[..., _Result], *arguments: object) -> Future[_Result]:
        with _safe_path():
            if self._pool is None:
                self._pool = ProcessPoolExecutor(
                    1, env=worker.environment(), initializer=worker.begin, initargs=(self._place, os.getpid())
                )
            try:
                future: Future[_Result] = self._pool.submit(task, *arguments)
            except BrokenProcessPool:  # it died while it had nothing to do
                self.put_away()
                return self.submit(task, *arguments)
        return future

    def outcome(self, task: Future[_Result]) -> _Result | Failed:
        try:
            return task.result()
        except BrokenProcessPool as error:
            self.put_away()
            code = re.search(r"exit codes.*?\((-?\d+)\)", str(error))
            return Failed(worker.ENDED, worker.why_ended(None if code is None else int(code[1]), self._place.log))

    def put_away(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(kill_workers=True)
            self._pool = None


@contextlib.contextmanager
def _guests(place: worker.Workplace, cluster: Cluster, number: int) -> Iterator[Sequence[_Slot]]:
    """This many slots on a cluster, whose workers are checked first."""
    folder = place.study.parent
    for left in folder.glob(f"{_TOKEN}*"):
        left.unlink()
    token = folder / f"{_TOKEN}{secrets.token_hex(8)}"  # a new name, which no network file system has cached
    token.write_text(token.name, encoding="utf-8")
    try:
        ticket = worker.Ticket(place, token, worker.versions())
        for where, answer in cluster.everywhere(worker.visit, ticket).items():
            if isinstance(answer, BaseException):
                raise SdkerasError(
                    f"the worker {where} of {cluster.backend} cannot load sdkeras ({last_line(answer)}); install the "
                    "version of this computer there."
                )
            if answer:
                raise SdkerasError(str(answer))
        yield [_Guest(cluster, ticket) for _ in range(number)]
    finally:
        token.unlink(missing_ok=True)


@attrs.frozen
class _Guest:
    """A place on a cluster, which begins a task again if the process that does it ends."""

    cluster: Cluster
    ticket: worker.Ticket

    def submit(self, task: Callable[..., _Result], *arguments: object) -> Future[_Result]:
        return self.cluster.submit(worker.as_guest, self.ticket, task, *arguments)

    def outcome(self, task: Future[_Result]) -> _Result | Failed:
        try:
            result = task.result()
        except Exception as error:  # the engine's, since a task catches its own
            why = self.cluster.why_lost(error)
            if why:
                return Failed(worker.ENDED, why)
            raise SdkerasError(
                f"the connection to {self.cluster.backend} is lost ({last_line(error)}); the same call does the runs "
                "that are missing, there or elsewhere."
            ) from error
        if isinstance(result, Failed) and result.stage == worker.REFUSED:
            raise SdkerasError(result.reason)
        return result

    def put_away(self) -> None:
        """Its process is the cluster's."""


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


def _check(study: Study, slot: _Slot, runs: Sequence[GridRun], notice: Callable[[str], None] | None) -> None:
    """Checks before the first training that user code and data load, and tells which measures will lack a rate."""
    answer = slot.outcome(slot.submit(worker.check))
    if not isinstance(answer, Failed) and study.needing_a_rate:
        answer = slot.outcome(slot.submit(worker.check, *runs))
        if isinstance(answer, Failed) and answer.stage == worker.ENDED:
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
    if failure is not None and failure.stage == worker.ENDED:
        failure = attrs.evolve(failure, stage="training" if files.trained() is None else "measuring")
        files.path.mkdir(exist_ok=True)
        files.write(files.failure, failure)
    if failure is not None and "out of memory" in failure.reason:
        slot.put_away()
    return failure
