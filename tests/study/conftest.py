"""Studies with a module of their own, and their workers without a process."""

import itertools
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import pytest

from sdkeras.errors import SdkerasError
from sdkeras.study import runner, worker
from sdkeras.study.definition import Study, read_study
from sdkeras.study.run_files import RunFolder
from sdkeras.study.worker import Worker
from study import small_study

_COUNT = itertools.count()


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Study]:
    """Writes a study (of the sharpness of one run) and its module, of a name of its own, into the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(**texts: Any) -> Study:
        usual = {"module": f"nets_of_a_test_{next(_COUNT)}", "grid": "", "measures": "sharpness = {}"}
        return read_study(str(small_study.written(tmp_path, **{**usual, **texts})))

    return make


@pytest.fixture
def done() -> Callable[[Study], RunFolder]:
    """Trains and measures the only run of a study, in out/runs."""

    def do(study: Study) -> RunFolder:
        (run,) = study.runs
        Path("out/runs").mkdir(parents=True, exist_ok=True)
        failure = Worker(study, Path("out/runs"), 1).do(run)
        if failure is not None:
            raise SdkerasError(failure.words)
        return RunFolder(Path("out/runs") / run.name)

    return do


class InThisProcess(Executor):
    """Does a worker's tasks at once. They round in another order than worker processes, which have one thread."""

    def __init__(self, *_: Any, initargs: tuple[worker.Workplace, int], **__: Any) -> None:
        worker.open_study(initargs[0])

    def submit(self, task: Callable[..., Any], /, *arguments: Any, **_: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(task(*arguments))
        return future

    def shutdown(self, *_: Any, **__: Any) -> None:
        pass


@pytest.fixture(scope="session")
def without_processes() -> Callable[[pytest.MonkeyPatch, Path], None]:
    """Lets `run_study` do its runs in this process, with the code of a folder."""

    def patched(patch: pytest.MonkeyPatch, code: Path) -> None:
        patch.setattr(runner, "ProcessPoolExecutor", InThisProcess)
        patch.chdir(code)
        patch.syspath_prepend(str(code))

    return patched
