"""Does the runs of a study in processes side by side, and goes on where an earlier time has stopped."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs

from sdkeras.errors import SdkerasError, counted
from sdkeras.files.atomic import open_own, shown
from sdkeras.files.locks import only_writer
from sdkeras.study.definition import GridRun, Study, differences
from sdkeras.study.measures import needing_a_rate
from sdkeras.study.run_files import Failed, RunFolder

STUDY_FILE = "study.json"
# Libraries of linear algebra, which would each take all cores.
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
DONE, TRAINED, FAILED, NEW = "done", "trained", "failed", "new"


@attrs.frozen
class RunState:
    """How far a run has come: 'done', 'trained' (not all measures), 'failed' or 'new'."""

    run: GridRun
    state: str
    failure: Failed | None = None


@attrs.frozen
class StudyPlan:
    """What `run_study` would do.

    Attributes:
        runs: All runs of the grid.
        others: Folders of runs that are not in the grid; they stay, and are in no table.
        notes: What to know of an earlier definition.
        seconds: Of a whole run, the mean of those that are done; None without one.
        jobs: Processes side by side.
    """

    runs: tuple[RunState, ...]
    others: tuple[str, ...]
    notes: tuple[str, ...]
    seconds: float | None
    jobs: int

    def to_do(self, retry: bool) -> tuple[RunState, ...]:
        """The runs that `run_study` does."""
        return tuple(each for each in self.runs if each.state in (NEW, TRAINED) or (retry and each.state == FAILED))


@attrs.frozen
class Finished:
    """One run that has just ended, for a progress line.

    Attributes:
        run: The run.
        failure: Why it failed, or None.
        seconds: What it took this time.
        num_finished: Runs that have ended this time.
        num_to_do: Runs to do this time.
        remaining: Estimated seconds until all are done.
    """

    run: GridRun
    failure: Failed | None
    seconds: float
    num_finished: int
    num_to_do: int
    remaining: float


def default_jobs() -> int:
    """One process for each core that this one may use."""
    with contextlib.suppress(AttributeError):  # not everywhere
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def runs_folder(folder: str | os.PathLike[str]) -> Path:
    """Where the folders of a study's runs are."""
    return Path(folder) / "runs"


def plan_study(study: Study, folder: str | os.PathLike[str], *, jobs: int | None = None) -> StudyPlan:
    """What is done and what is to do; writes nothing.

    Raises:
        SdkerasError: The folder holds runs that were trained by another definition, or damaged files.
    """
    there = runs_folder(folder)
    if os.path.exists(there) and not os.path.isdir(there):
        raise SdkerasError(f"{shown(there)} is a file, and must be the folder of the runs; choose another `out`.")
    states, seconds = [], []
    remeasured: set[str] = set()
    by = study.by_column()
    training = json.loads(json.dumps(study.training()))
    notes = []
    for run in study.runs:
        files = RunFolder(there / run.name)
        trained, failure = files.trained(), files.failed()
        state = NEW
        if trained is not None:
            _check_recorded(trained.training, training, folder)
            changed = differences(trained.training, training)
            if changed:
                raise SdkerasError(
                    f"{shown(folder)} holds runs of another definition: {'; '.join(changed)}. Name another folder "
                    "(`out`), or restore the definition."
                )
            missing = files.missing(by)
            state = TRAINED if missing else DONE
            measured = files.measured()
            if missing and measured is not None:
                remeasured.update(missing)
            if measured is not None and not missing:
                seconds.append(trained.seconds + measured.seconds)
        if failure is not None:
            state = FAILED
        states.append(RunState(run, state, failure))
    if remeasured:
        notes.append(f"measures that are new or have other settings are taken of trained runs: {_listed(remeasured)}.")
    names = {run.name for run in study.runs}
    others = (
        tuple(sorted(each.name for each in there.iterdir() if each.name not in names)) if os.path.isdir(there) else ()
    )
    if others:
        notes.append(f"not in this grid, and in no table: {counted(len(others), 'run')} of the folder.")
    mean = sum(seconds) / len(seconds) if seconds else None
    return StudyPlan(tuple(states), others, tuple(notes), mean, default_jobs() if jobs is None else jobs)


def _check_recorded(trained: Mapping[str, Any], wanted: Mapping[str, Any], folder: str | os.PathLike[str]) -> None:
    recorded = wanted["recorded"]
    if recorded is not None and trained.get("recorded") is None:
        raise SdkerasError(
            f"{', '.join(recorded['for'])} are of the iterates of training, which the runs in {shown(folder)} have "
            "not recorded; name another folder (`out`), or take trajectory = 'forward', which is simulated afterwards."
        )


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

    Each run's numbers depend on its settings alone, not on the order or the other runs. A run that fails is written
    down and stops nothing. Every file is written whole or not at all, so that whatever ends this process, the same call
    goes on after the last finished stage.

    Args:
        study: The study.
        folder: Where it is kept; made if it is not there.
        code: Folder in which the user's modules and relative paths of data are looked for.
        jobs: Processes side by side, each with one thread; default one for each core.
        retry: Failed runs as well.
        progress: Called after each run.
        notice: Called before the first training with each sentence about measures that will have no value.

    Returns:
        How the runs stand at the end.

    Raises:
        SdkerasError: The folder is of another definition or in use, the user's code or data cannot be loaded, no
            measure could be taken of any run, or no run of the study has succeeded.
        KeyboardInterrupt: Ctrl-C; finished runs are kept.
    """
    if jobs is not None and jobs < 1:
        raise SdkerasError(f"jobs is {jobs}; it must be at least 1.")
    runs = runs_folder(folder)
    try:
        runs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SdkerasError(f"{shown(runs)} cannot be made: {error.strerror}; choose another place.") from error
    with only_writer(folder, "wait until it has ended, or name another folder"):
        plan = plan_study(study, folder, jobs=jobs)
        study.save(Path(folder) / STUDY_FILE, follow_links=False)
        to_do = plan.to_do(retry)
        if to_do:
            pool = _Pool(study, Path(folder), Path(code), min(plan.jobs, len(to_do)), progress, notice)
            pool.do([each.run for each in to_do])
        after = plan_study(study, folder, jobs=jobs)
    failures = [each.failure for each in after.runs if each.failure is not None]
    if len(failures) == len(after.runs):
        all_of_them = "the only run has" if len(failures) == 1 else f"all {len(failures)} runs have"
        raise SdkerasError(
            f"{all_of_them} failed; the first in {failures[0].stage}: {failures[0].reason.rstrip('.')}."
            + (" Say `retry=True` to try again." if not to_do else "")
        )
    return after


class _Pool:
    """Worker processes and the runs that they do."""

    def __init__(
        self,
        study: Study,
        folder: Path,
        code: Path,
        jobs: int,
        progress: Callable[[Finished], None] | None = None,
        notice: Callable[[str], None] | None = None,
    ) -> None:
        self.runs = runs_folder(folder).resolve()
        self.command = [
            sys.executable,
            "-P",  # no module is imported from the current folder, which may be that of the study
            "-m",
            "sdkeras.study.worker",
            str((folder / STUDY_FILE).resolve()),
            str(self.runs),
            str(code.resolve()),
            str(jobs),
        ]
        self.jobs = jobs
        self.progress = progress
        self.notice = notice
        self.checks_rates = bool(needing_a_rate(study.measures, study.analysis))
        self.log = folder / "workers.log"
        self.selector = selectors.DefaultSelector()
        self.workers: list[_Process] = []

    def do(self, runs: list[GridRun]) -> None:
        waiting, total, finished = deque(runs), len(runs), 0
        started = time.monotonic()
        try:
            # One first, to see that user code and data can be loaded.
            first = self._start()
            answer = first.ask({})
            if answer:
                raise SdkerasError(answer["reason"])
            if self.checks_rates:
                first = self._check_rates(first, runs)
            self._next(first, waiting)
            while len(self.workers) < self.jobs and waiting:
                self._next(self._start(), waiting)
            while any(worker.run is not None for worker in self.workers):
                for key, _ in self.selector.select(timeout=1.0):
                    worker: _Process = key.data
                    run, seconds = worker.run, time.monotonic() - worker.since
                    if run is None:
                        continue
                    failure = self._ended(worker)
                    finished += 1
                    if self.progress is not None:
                        rate = (time.monotonic() - started) / finished
                        self.progress(Finished(run, failure, seconds, finished, total, rate * (total - finished)))
                    if waiting:
                        self._next(worker if worker in self.workers else self._start(), waiting)
        finally:
            for worker in self.workers:
                worker.kill()
            self.selector.close()

    def _check_rates(self, worker: _Process, runs: list[GridRun]) -> _Process:
        """Says before the first training which measures will lack a learning rate; gives a worker that lives.

        Raises:
            SdkerasError: No measure could be taken of any run.
        """
        answer = worker.ask({"check": [run.settings for run in runs]})
        if answer.get("stage") == "checking":
            raise SdkerasError(answer["reason"])
        for note in answer.get("notes", ()):
            if self.notice is not None:
                self.notice(note)
        if "notes" in answer:
            return worker
        # A factory has ended the process, and will do so as a failed run.
        self._put_away(worker)
        return self._start()

    def _start(self) -> _Process:
        worker = _Process(self.command, self.log)
        self.workers.append(worker)
        self.selector.register(worker.output, selectors.EVENT_READ, worker)
        return worker

    def _next(self, worker: _Process, waiting: deque[GridRun]) -> None:
        run = waiting.popleft()
        files = RunFolder(self.runs / run.name)
        files.path.mkdir(exist_ok=True)
        files.tidy()
        files.write(files.settings, run.settings)
        files.failure.unlink(missing_ok=True)
        worker.begin(run)

    def _ended(self, worker: _Process) -> Failed | None:
        """Reads a worker's answer; without one, or out of memory, the process is put away."""
        assert worker.run is not None
        files = RunFolder(self.runs / worker.run.name)
        answer = worker.answer()
        broken = answer is None or "out of memory" in answer.get("reason", "")
        failure = None
        if answer is None:
            stage = "training" if files.trained() is None else "measuring"
            failure = Failed(stage, worker.why_ended())
        elif answer:
            failure = Failed(answer["stage"], answer["reason"])
        if failure is not None:
            files.write(files.failure, failure)
        worker.run = None
        if broken:
            self._put_away(worker)
        return failure

    def _put_away(self, worker: _Process) -> None:
        self.selector.unregister(worker.output)
        worker.kill()
        self.workers.remove(worker)


class _Process:
    """One worker process."""

    def __init__(self, command: list[str], log: Path) -> None:
        environment = {**os.environ, **dict.fromkeys(_ONE_THREAD, "1"), "KERAS_BACKEND": "tensorflow"}
        environment.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        environment.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
        # A session of its own: Ctrl-C in the terminal is for the parent, which ends it.
        with os.fdopen(open_own(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "ab") as errors:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                start_new_session=True,
            )
        self.log = log
        assert self.process.stdout is not None
        self.output = self.process.stdout
        self.run: GridRun | None = None
        self.since = 0.0

    def ask(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a job, waited for."""
        self._send(job)
        answer = self.answer()
        return {"stage": "loading", "reason": self.why_ended()} if answer is None else answer

    def begin(self, run: GridRun) -> None:
        self.run, self.since = run, time.monotonic()
        self._send({"run": run.name, "settings": run.settings})

    def answer(self) -> dict[str, Any] | None:
        """The next line, or None where the process has ended."""
        try:
            line = self.output.readline()
            return dict(json.loads(line)) if line else None
        except (OSError, ValueError):
            return None

    def why_ended(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=10)
        status = self.process.returncode
        if status is None:
            return "its process ended its output"
        if status >= 0:
            return f"its process ended with exit status {status} (what it printed is in {self.log})"
        name = signal.Signals(-status).name if -status in set(signal.Signals) else str(-status)
        out_of_memory = " (the system was out of memory, perhaps)" if name == "SIGKILL" else ""
        return f"its process was killed by {name}{out_of_memory}"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def _send(self, job: Mapping[str, Any]) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):  # it has ended; its output says so
            self.process.stdin.write((json.dumps(job) + "\n").encode())
            self.process.stdin.flush()


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names))
