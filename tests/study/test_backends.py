"""Studies on a Dask or Ray cluster, and what a guest leaves behind in a worker's process."""

import contextlib
import importlib.metadata
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any

import attrs
import psutil
import pytest

from sdkeras.errors import SdkerasError
from sdkeras.files.atomic import only_writer
from sdkeras.study import backends, runner, worker
from sdkeras.study.backends import Cluster, check_backend
from sdkeras.study.definition import read_study
from sdkeras.study.run_files import StudyPlan
from sdkeras.study.runner import run_study
from study.small_study import MODULE, calls, wait_until, written
from study.test_kills import content

ADDRESS = "dask://somewhere:8786"


def run(grid: Path, backend: str, out: str = "out", **options: Any) -> StudyPlan:
    return run_study(read_study(str(grid)), grid.parent / out, code=grid.parent, backend=backend, **options)


def states(plan: StudyPlan) -> dict[str, str]:
    return {str(each.run.settings["mood"]): each.state for each in plan.runs}


# What the runner does with a cluster: one whose tasks are done in this process.


class Ended(Exception):
    """A worker has."""


@attrs.define
class Here:
    """A cluster of this process.

    `seen` changes the ticket as another host would see it, `visited` is the answer of all workers in place of theirs,
    and `ends` fails a run's task.
    """

    seen: Callable[[worker.Ticket], worker.Ticket] = lambda ticket: ticket
    ends: Callable[[str], BaseException | None] = lambda name: None
    visited: dict[str, Any] | None = None

    def submit(self, task: Callable[..., Any], ticket: worker.Ticket, *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        error = self.ends(arguments[1].name if len(arguments) > 1 else "")
        if error is None:
            future.set_result(task(self.seen(ticket), *arguments))
        else:
            future.set_exception(error)
        return future

    def everywhere(self, task: Callable[..., Any], ticket: worker.Ticket) -> dict[str, Any]:
        return {"tcp://here:1": task(self.seen(ticket))} if self.visited is None else self.visited

    @contextlib.contextmanager
    def connected(self, backend: str) -> Iterator[Cluster]:
        yield Cluster(backend, 2, 2, self.submit, self.everywhere, lambda error: str(error) * isinstance(error, Ended))


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Here:
    cluster = Here()
    monkeypatch.setattr(runner, "connected", lambda backend: cluster.connected(backend))
    return cluster


def children() -> set[int]:
    """Processes of this one: other tests leave some, a tracker's service for one."""
    return {child.pid for child in psutil.Process().children()}


@pytest.mark.slow
def test_runs_of_guests_end_each_in_its_own_way_and_leave_the_process_as_it_was(here: Here, tmp_path: Path) -> None:
    module = "nets_of_a_guest"
    grid = written(tmp_path, module=module, grid='mood = ["kill", "raise", "good"]')
    here.ends = lambda name: Ended("its workers ended") if "raise" in name else None

    def state() -> tuple[Any, ...]:
        fds = psutil.Process().num_fds()
        return os.getcwd(), [*sys.path], [os.fstat(each)[:3] for each in (0, 1, 2)], fds, children()

    before = state()
    plan = run(grid, ADDRESS)
    assert state() == before
    assert module not in sys.modules
    assert states(plan) == {"kill": "failed", "raise": "failed", "good": "done"}
    reasons = [each.failure.words for each in plan.runs if each.failure is not None]
    assert sorted(reasons) == [
        "training: its process was killed by SIGKILL (the system was out of memory, perhaps)",
        "training: its workers ended",
    ]
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"runs", "study.json", "workers.log"}
    # The same call finds nothing to do.
    made = len(calls(tmp_path))
    run(grid, ADDRESS)
    assert len(calls(tmp_path)) == made


def elsewhere(tmp_path: Path) -> Callable[[worker.Ticket], worker.Ticket]:
    """A host with a folder of its own at the study's place, into which nothing was copied."""
    return lambda ticket: attrs.evolve(ticket, token=tmp_path / "elsewhere" / ticket.token.name)


def copied(tmp_path: Path) -> Callable[[worker.Ticket], worker.Ticket]:
    """A host with a copy of an earlier call's folder."""

    def seen(ticket: worker.Ticket) -> worker.Ticket:
        (tmp_path / "elsewhere").mkdir(exist_ok=True)
        (tmp_path / "elsewhere" / ticket.token.name).write_text(".shared-0123456789abcdef")
        return elsewhere(tmp_path)(ticket)

    return seen


def without_code(tmp_path: Path) -> Callable[[worker.Ticket], worker.Ticket]:
    return lambda ticket: attrs.evolve(ticket, place=attrs.evolve(ticket.place, code=tmp_path / "nowhere"))


@pytest.mark.parametrize("host", [elsewhere, copied, without_code])
def test_a_folder_that_is_not_shared_is_refused(here: Here, tmp_path: Path, host: Any) -> None:
    here.seen = host(tmp_path)
    missing = "nowhere" if host is without_code else "elsewhere"
    with pytest.raises(SdkerasError, match=rf"does not see \S*/{missing}, which must be on a file system that all"):
        run(written(tmp_path), ADDRESS)
    assert [*(tmp_path / "out" / "runs").iterdir()] == []
    assert [*(tmp_path / "out").glob(".shared-*")] == []


def test_a_worker_that_joins_later_is_checked_as_well(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here.visited = {}
    monkeypatch.setattr(runner, "_check", lambda *_: None)  # an earlier worker has loaded code and data
    here.seen = elsewhere(tmp_path)
    with pytest.raises(SdkerasError, match="does not see"):
        run(written(tmp_path), ADDRESS)


def test_other_versions_are_refused_with_both(here: Here, tmp_path: Path) -> None:
    there = importlib.metadata.version("keras")
    here.seen = lambda ticket: attrs.evolve(ticket, versions={**ticket.versions, "keras": "3.99"})
    with pytest.raises(SdkerasError, match=rf"has keras {there} \(3.99 here\); install the same versions"):
        run(written(tmp_path), ADDRESS)


def test_a_worker_without_sdkeras_is_named(here: Here, tmp_path: Path) -> None:
    here.visited = {"tcp://a:1": "", "tcp://b:1": ModuleNotFoundError("no sdkeras")}
    with pytest.raises(SdkerasError, match=f"the worker tcp://b:1 of {ADDRESS} cannot load sdkeras .*no sdkeras"):
        run(written(tmp_path), ADDRESS)


def test_a_lost_connection_is_no_failure_of_the_run(here: Here, tmp_path: Path) -> None:
    here.ends = lambda name: CancelledError()
    with pytest.raises(SdkerasError, match=f"connection to {ADDRESS} is lost .*the same call does the runs"):
        run(written(tmp_path), ADDRESS)
    assert [*(tmp_path / "out" / "runs").iterdir()] == []


def ticket(folder: Path, **places: Path) -> worker.Ticket:
    """For a study in a folder, with these paths in place of its own."""
    token = folder / ".shared-1"
    token.write_text(token.name)
    own = {"study": folder / "study.json", "runs": folder / "runs", "code": folder, "log": folder / "workers.log"}
    return worker.Ticket(worker.Workplace(**{**own, **places}, share=1), token, worker.versions())


def test_an_error_outside_of_a_run_ends_the_study(tmp_path: Path) -> None:
    failure = worker.as_guest(ticket(tmp_path), worker.check)
    assert isinstance(failure, worker.Failed)
    assert failure.stage == worker.REFUSED  # which the runner raises, as the tests above say
    assert re.fullmatch(r"a worker on \S+ failed: .*study.json.*", failure.reason)


def test_a_guest_ends_when_its_study_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C frees the cluster at once, not at the end of the trainings that are under way."""
    (tmp_path / "sitecustomize.py").write_text("import time; time.sleep(20)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    pass_, before = ticket(tmp_path), children()
    leaving = threading.Timer(0.5, pass_.token.unlink)
    leaving.start()
    assert worker.as_guest(pass_, worker.check) == worker.Failed(worker.REFUSED, "the study has ended")
    assert children() == before


def test_a_run_that_another_process_is_doing_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: Any
) -> None:
    """An interrupted study's guest goes on: it and the next call's must not write the same files."""
    (only,) = read_study(str(written(tmp_path))).runs
    waits: list[float] = []
    claims = iter([True, True, False])

    def claimed(folder: Path, advice: str) -> Any:
        if next(claims):
            raise worker.InUseError("in use")
        return only_writer(folder, advice)

    class Doing:
        runs = tmp_path

        def do(self, run: object) -> None:
            assert (tmp_path / only.name / ".lock").exists()

    monkeypatch.setattr(worker, "only_writer", claimed)
    monkeypatch.setattr(worker.time, "sleep", waits.append)
    monkeypatch.setattr(worker, "_worker", [Doing()])
    assert worker.do(only) is None
    assert waits == [1, 1]
    assert not (tmp_path / only.name / ".lock").exists()


# What cannot be connected to.


@pytest.mark.parametrize("text", ["", "dask", "dask://", "dask://host", "dsk://h:1", "dask://h:99999", "ray://auto2"])
def test_an_unknown_backend_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(SdkerasError, match=r"`backend` is .*; it must be loky .*dask://HOST:PORT, ray://HOST:PORT or"):
        run(written(tmp_path), text)
    assert not (tmp_path / "out").exists()


def test_addresses_are_known() -> None:
    for text in ("loky", "dask://10.0.0.1:8786", "dask://[::1]:8786", "ray://head.example:10001", "ray://auto"):
        check_backend(text)


@pytest.mark.parametrize(("engine", "module"), [("dask", "distributed"), ("ray", "ray")])
def test_a_missing_package_is_named_with_its_extra(
    engine: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SdkerasError, match=rf"not installed; run pip install 'sdkeras\[{engine}\]'"):
        run(written(tmp_path), f"{engine}://127.0.0.1:1")
    assert not (tmp_path / "out").exists()
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert any(need.startswith(module) for need in project["optional-dependencies"][engine])


@pytest.mark.parametrize("engine", ["dask", "ray"])
@pytest.mark.parametrize("listens", [False, True])
def test_an_address_that_does_not_answer_is_given_up(
    engine: str, listens: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip({"dask": "distributed", "ray": "ray"}[engine])
    monkeypatch.setattr(backends, "_CONNECTING", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        if not listens:
            server.close()
        started = time.monotonic()
        with pytest.raises(SdkerasError, match=f"cluster answers at {engine}://127.0.0.1:{port} "):
            run(written(tmp_path), f"{engine}://127.0.0.1:{port}")
        assert time.monotonic() - started < 10
    assert not (tmp_path / "out").exists()


def test_a_scheduler_without_workers_is_told(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=0, dashboard_address=None) as cluster:
        backend = cluster.scheduler_address.replace("tcp://", "dask://")
        with pytest.raises(SdkerasError, match=f"the Dask cluster at {backend} has no workers; start some"):
            run(written(tmp_path), backend)
    assert not (tmp_path / "out").exists()


# Real clusters, in processes of their own.


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextlib.contextmanager
def processes(folder: Path, *commands: list[object], **environment: str) -> Iterator[None]:
    """Commands that run meanwhile, with their output in a file of the folder."""
    path = os.pathsep.join([environment.get("PYTHONPATH", ""), *sys.path])
    with contextlib.ExitStack() as scope:
        log = scope.enter_context((folder / "cluster.log").open("w"))
        for command in commands:
            process = subprocess.Popen(
                [sys.executable, "-m", *map(str, command)],
                env={**os.environ, "PYTHONPATH": path, **environment},
                cwd=folder,
                stdout=log,
                stderr=log,
            )
            scope.callback(process.wait)
            scope.callback(process.terminate)
        yield


@pytest.fixture(scope="module")
def dask_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A scheduler and two worker processes, which are started again when they end."""
    distributed, folder = pytest.importorskip("distributed"), tmp_path_factory.mktemp("dask")
    address = f"127.0.0.1:{free_port()}"
    scheduler = ["dask", "scheduler", "--host", address.partition(":")[0], "--port", address.partition(":")[2]]
    work = ["dask", "worker", f"tcp://{address}", "--nthreads", 1, "--nworkers", 2, "--local-directory", folder]
    fewer = {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1"}  # than 3
    with processes(folder, [*scheduler, "--no-dashboard"], [*work, "--no-dashboard"], **fewer):
        wait_until(lambda: backends_answer("127.0.0.1", int(address.partition(":")[2])), 60)
        with distributed.Client(f"tcp://{address}", set_as_default=False) as client:
            client.wait_for_workers(2, timeout=60)
        yield f"dask://{address}"


def backends_answer(host: str, port: int) -> bool:
    with contextlib.suppress(OSError):
        backends._listen_to(host, port)
        return True
    return False


@pytest.fixture(scope="module")
def on_loky(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a study of two moods leaves in its folder when its processes are on this computer."""
    folder = tmp_path_factory.mktemp("loky")
    (folder / "cured").touch()
    run(written(folder, grid='mood = ["good", "wait"]'), "loky", jobs=1)
    return content(folder / "out")


def process_of(folder: Path, mood: str) -> int:
    """Process that has called the factory for this mood, once it has."""

    def found() -> list[int]:
        path = folder / "calls.txt"
        lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        return [int(line[-1]) for line in lines if line[0] == mood]

    wait_until(lambda: bool(found()), 120)
    return found()[-1]


def loses_a_worker(folder: Path, backend: str) -> None:
    """A study of two moods whose second run's worker process is killed in the middle of the training."""
    grid = written(folder, grid='mood = ["good", "wait"]')

    def kill() -> None:
        guest = process_of(folder, "wait")
        (folder / "cured").touch()
        os.kill(psutil.Process(guest).ppid(), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    assert set(states(run(grid, backend)).values()) == {"done"}
    killer.join()
    # The lost run has begun twice, and a run is built again to be measured.
    assert calls(folder).count("wait 0.1") == 3


# Kills the cluster's process and not the run's own.
KILLER = MODULE.replace("os.kill(os.getpid(), signal.SIGKILL)", "os.kill(os.getppid(), signal.SIGKILL); time.sleep(60)")


def always_loses_its_worker(folder: Path, backend: str) -> None:
    """A study of one run, which fails."""
    said = "the only run has failed, with the reason in .*; the first in training: the worker that"
    with pytest.raises(SdkerasError, match=said) as failed:
        run(written(folder, code=KILLER, grid='mood = ["kill"]'), backend)
    assert f"ended, {len(calls(folder))} times" in str(failed.value)
    assert len(calls(folder)) > 1


@pytest.mark.slow
def test_dask_does_the_study_to_the_same_bits_though_it_is_interrupted_and_loses_a_worker(
    dask_cluster: str, on_loky: dict[str, Any], tmp_path: Path
) -> None:
    grid = written(tmp_path, grid='mood = ["good", "wait"]')
    command = ["study", "run", grid, "--out", tmp_path / "out", "--backend", dask_cluster]
    process = subprocess.Popen(
        [Path(sys.executable).parent / "sdkeras", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    guest = process_of(tmp_path, "wait")
    owner = psutil.Process(psutil.Process(guest).ppid())
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err.strip()) == (130, "sdkeras: interrupted.")
    assert out.splitlines()[0] == f"0 of 2 runs are done; 2 to do, on {dask_cluster}"
    wait_until(lambda: not psutil.pid_exists(guest), 20)
    assert not psutil.pid_exists(guest)
    assert owner.is_running()
    (tmp_path / "calls.txt").unlink()
    loses_a_worker(tmp_path, dask_cluster)
    assert content(tmp_path / "out") == on_loky
    made = len(calls(tmp_path))
    run(grid, dask_cluster)
    assert len(calls(tmp_path)) == made


@pytest.mark.slow
def test_a_run_that_always_ends_its_worker_of_dask_has_failed(dask_cluster: str, tmp_path: Path) -> None:
    always_loses_its_worker(tmp_path, dask_cluster)


@pytest.mark.slow
def test_ray_does_the_study_to_the_same_bits_though_it_loses_a_worker(
    ray_cluster: str, on_loky: dict[str, Any], tmp_path: Path
) -> None:
    loses_a_worker(tmp_path, ray_cluster)
    assert content(tmp_path / "out") == on_loky
    (tmp_path / "failed").mkdir()
    always_loses_its_worker(tmp_path / "failed", "ray://auto")


@pytest.fixture(scope="module")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Ray cluster of two processors here, which is that of ray://auto; the address of its client server."""
    pytest.importorskip("ray")
    folder, port, own = tmp_path_factory.mktemp("ray"), free_port(), free_port()
    start = ["ray.scripts.scripts", "start", "--head", "--block", "--port", own, "--ray-client-server-port", port]
    less = ["--num-cpus", 2, "--include-dashboard", "false", "--disable-usage-stats"]
    with pytest.MonkeyPatch.context() as patch, processes(folder, [*start, *less], RAY_TMPDIR="/tmp"):
        patch.setenv("RAY_ADDRESS", f"127.0.0.1:{own}")
        wait_until(lambda: backends_answer("127.0.0.1", port), 60)
        yield f"ray://127.0.0.1:{port}"
