"""A process that does runs of a study one after the other: `python -m sdkeras.study.worker STUDY.json FOLDER JOBS`.

It reads a line of JSON for each job from its standard input and answers with one on its standard output. When the input
ends, its parent is gone, and it ends at once, whatever it is doing. TensorFlow and user code write to a log instead.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import queue
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sdkeras.errors import SdkerasError, VerificationError
from sdkeras.files.atomic import open_own
from sdkeras.files.user_code import USER_ERRORS, last_line, own_objects, user_import
from sdkeras.study.definition import GridRun, Study, run_name
from sdkeras.study.run_files import RunFolder, Trained

_APPENDING = os.O_WRONLY | os.O_CREAT | os.O_APPEND


def main(arguments: list[str]) -> None:
    """Serves jobs until the input ends."""
    study_file, runs, code, share = arguments
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    jobs: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_listen, args=(jobs,), daemon=True).start()
    _quiet_tensorflow()
    worker = _Worker(Study.load(study_file), Path(runs), int(share))
    os.chdir(code)
    with user_import(Path(code)):
        while True:
            answers.write(json.dumps(worker.answer(jobs.get())) + "\n")
            answers.flush()


def _listen(jobs: queue.Queue[dict[str, Any]]) -> None:
    for line in sys.stdin:
        jobs.put(json.loads(line))
    os._exit(1)


def _quiet_tensorflow() -> None:
    """One thread for TensorFlow: the runs share the cores."""
    threading_of: Any = importlib.import_module("tensorflow").config.threading
    threading_of.set_intra_op_parallelism_threads(1)
    threading_of.set_inter_op_parallelism_threads(1)


class _Worker:
    """A study with its user code and data, loaded once."""

    def __init__(self, study: Study, runs: Path, share: int) -> None:
        self.study = study
        self.runs = runs
        self.share = share
        self._loaded: tuple[Any, Any] | None = None

    def answer(self, job: dict[str, Any]) -> dict[str, Any]:
        """Does a job; what goes wrong is in the answer."""
        stage = "loading"
        trained: Trained | None = None
        log = self.runs / job["run"] / "log.txt" if "run" in job else Path(os.devnull)
        with _logged(log):
            try:
                make, data = self._load()
                stage = "checking" if "check" in job else stage
                if "check" in job:
                    from sdkeras.study.measure import check_rates

                    return {"notes": check_rates(self.study, job["check"], make, data)}
                if "run" not in job:
                    return {}
                run = GridRun(job["run"], job["settings"])
                if run_name(run.settings) != run.name:
                    raise SdkerasError(f"the settings {run.settings} are not those of {run.name}.")
                folder = RunFolder(self.runs / run.name)
                stage = "training"
                trained = folder.trained() or self._train(run, make, data, folder)
                stage = "measuring"
                self._measure(run, make, data, folder, trained)
                return {}
            except USER_ERRORS as error:
                traceback.print_exc()
                if isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError":
                    return {"stage": stage, "reason": f"out of memory ({last_line(error)})"}
                reason = str(error) if isinstance(error, SdkerasError) else last_line(error)
                if isinstance(error, VerificationError) and trained is not None:
                    reason = f"after a training that ended at a loss of {trained.train.loss:.3g}, {reason}"
                return {"stage": stage, "reason": " ".join(reason.split())}

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            from sdkeras.study.data import StudyData
            from sdkeras.study.train import factory

            self._loaded = factory(self.study), StudyData.of(self.study)
        return self._loaded

    def _train(self, run: GridRun, make: Any, data: Any, folder: RunFolder) -> Trained:
        from sdkeras.study.train import train

        return train(self.study, run, make, data, folder)

    def _measure(self, run: GridRun, make: Any, data: Any, folder: RunFolder, trained: Trained) -> None:
        import keras

        from sdkeras.study.measure import measure
        from sdkeras.study.train import rebuilt

        wanted = folder.missing(self.study.by_column())
        if wanted:
            # Copies of the model in other precisions need its classes as well.
            with keras.saving.custom_object_scope(own_objects(make, Path.cwd().resolve())):
                # From the files always, so that a resumed run has the numbers of one that was not interrupted.
                model = rebuilt(self.study, run, make, data, folder, trained)
                measure(self.study, run, model, data, folder, wanted, self.share)
        folder.trajectory.unlink(missing_ok=True)


@contextlib.contextmanager
def _logged(path: Path) -> Iterator[None]:
    """What is printed meanwhile, by C++ too, goes to the end of a file."""
    file = os.open(path, os.O_WRONLY) if path == Path(os.devnull) else open_own(path, _APPENDING)
    kept = [os.dup(stream) for stream in (1, 2)]
    try:
        for stream in (1, 2):
            os.dup2(file, stream)
        yield
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        for stream, before in zip((1, 2), kept, strict=True):
            os.dup2(before, stream)
            os.close(before)
        os.close(file)


if __name__ == "__main__":
    main(sys.argv[1:])
