"""Clusters of Dask and Ray that do a study's runs; the user has started them, and they are left as they are."""

from __future__ import annotations

import contextlib
import importlib
import logging
import signal
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from functools import partial
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import attrs

from sdkeras.errors import SdkerasError
from sdkeras.files.user_code import last_line

LOKY = "loky"
_RAY_AUTO = "ray://auto"
# Distribution's module and what its package calls itself, by the part of the address before "://".
_ENGINES = {"dask": ("distributed", "Dask"), "ray": ("ray", "Ray")}
# Seconds to wait for an answer of the address, and of a worker of Ray.
_CONNECTING = 10
_ANSWERING = 60
# How often Ray begins a task again whose worker process has ended.
_RAY_RETRIES = 2


@attrs.frozen
class Cluster:
    """A cluster that `connected` has found.

    Attributes:
        backend: Its address, as the user has given it.
        jobs: How many tasks it does at once: Dask's threads, Ray's CPUs.
        share: How many of them share the memory of one host.
        submit: Begins a task, (function, *arguments); the engine begins it again if its worker process ends.
        everywhere: Does a short task in each worker (Ray: on each node), whatever else it is doing; returns the results
            or exceptions by worker.
        why_lost: Says of an exception of a future that the task's worker process has ended each time; "" of any other.
    """

    backend: str
    jobs: int
    share: int
    submit: Callable[..., Future[Any]]
    everywhere: Callable[..., Mapping[str, object]]
    why_lost: Callable[[BaseException], str]


def check_backend(backend: str) -> None:
    """Refuses a text that names no engine or no address.

    Raises:
        SdkerasError: It does.
    """
    engine, separator, address = backend.partition("://")
    if backend in (LOKY, _RAY_AUTO) or (separator and engine in _ENGINES and _host_and_port(address)):
        return
    raise SdkerasError(
        f"`backend` is {backend!r}; it must be loky (processes of this computer), dask://HOST:PORT, ray://HOST:PORT or "
        f"{_RAY_AUTO}."
    )


def _host_and_port(address: str) -> tuple[str, int] | None:
    with contextlib.suppress(ValueError):
        parts = urlsplit(f"//{address}")
        if parts.hostname and parts.port and parts.netloc == address and "@" not in address:
            return parts.hostname, parts.port
    return None


@contextlib.contextmanager
def connected(backend: str) -> Iterator[Cluster]:
    """Scope of the connection to a cluster; at its end what has not begun is cancelled, and the cluster goes on.

    Raises:
        SdkerasError: The engine's package is not installed, nobody answers, or the cluster has no workers.
    """
    check_backend(backend)
    engine, _, address = backend.partition("://")
    module, name = _ENGINES[engine]
    try:
        package = importlib.import_module(module)
    except ImportError as error:
        raise SdkerasError(
            f"{backend} needs {name}, which is not installed; run pip install 'sdkeras[{engine}]'."
        ) from error
    reached = _host_and_port(address)
    with contextlib.ExitStack() as scope:
        try:
            if reached is not None:
                _listen_to(*reached)
            cluster = {"dask": _dask, "ray": _ray}[engine](package, backend, scope)
        except Exception as error:  # of several packages
            raise SdkerasError(
                f"no {name} cluster answers at {backend} ({last_line(error)}); start it, or correct `backend`."
            ) from error
        if cluster.jobs < 1:
            raise SdkerasError(f"the {name} cluster at {backend} has no workers; start some.")
        yield cluster


def _listen_to(host: str, port: int) -> None:
    """Waits a while for the first byte, which servers of both engines send at once; their clients may wait for ever."""
    with socket.create_connection((host, port), _CONNECTING) as connection:
        if not connection.recv(1):
            raise ConnectionError("it closes the connection")


def _dask(distributed: ModuleType, backend: str, scope: contextlib.ExitStack) -> Cluster:
    # Of a connection that is lost we tell ourselves.
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
    address = backend.replace("dask://", "tcp://")
    client = scope.enter_context(distributed.Client(address, timeout=_CONNECTING, set_as_default=False))
    hosts: Counter[str | None] = Counter()
    for worker, threads in client.nthreads().items():
        hosts[urlsplit(worker).hostname] += threads

    def why_lost(error: BaseException) -> str:
        if not isinstance(error, distributed.KilledWorker):
            return ""
        times = error.allowed_failures + 1
        return f"the worker that did it ended, {times} times, the last one at {error.last_worker.address}"

    def everywhere(task: Callable[..., object], *arguments: object) -> Mapping[str, object]:
        answers: Mapping[str, object] = client.run(task, *arguments, on_error="return")
        return answers

    submit = client.get_executor(pure=False).submit
    return Cluster(backend, hosts.total(), max(hosts.values(), default=1), submit, everywhere, why_lost)


def _ray(ray: ModuleType, backend: str, scope: contextlib.ExitStack) -> Cluster:
    if not ray.is_initialized():  # else the caller is connected already
        with _signals_kept():
            address = "auto" if backend == _RAY_AUTO else backend
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
        scope.callback(ray.shutdown)
    exceptions = importlib.import_module("ray.exceptions")
    on_node = importlib.import_module("ray.util.scheduling_strategies").NodeAffinitySchedulingStrategy
    task_of_ray = ray.remote(_call)
    begun: set[Any] = set()
    scope.callback(lambda: [ray.cancel(each) for each in begun])
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
    processors = [int(node["Resources"]["CPU"]) for node in nodes]

    def submit(task: Callable[..., object], *arguments: object) -> Future[Any]:
        reference = task_of_ray.options(num_cpus=1, max_retries=_RAY_RETRIES).remote(task, *arguments)
        begun.add(reference)
        future: Future[Any] = reference.future()
        future.add_done_callback(lambda _: begun.discard(reference))
        return future

    def everywhere(task: Callable[..., object], *arguments: object) -> Mapping[str, object]:
        references = {
            f"{node['NodeManagerHostname']} ({node['NodeID'][:8]})": task_of_ray.options(
                num_cpus=0, scheduling_strategy=on_node(node["NodeID"], soft=False)
            ).remote(task, *arguments)
            for node in nodes
        }
        return {name: _answer(partial(ray.get, each, timeout=_ANSWERING)) for name, each in references.items()}

    def why_lost(error: BaseException) -> str:
        ended = (exceptions.WorkerCrashedError, exceptions.NodeDiedError, exceptions.LocalRayletDiedError)
        if isinstance(error, exceptions.OutOfMemoryError):
            return "Ray ended the worker that did it, since its host was out of memory"
        if isinstance(error, ended):
            return f"the worker that did it ended, {_RAY_RETRIES + 1} times"
        return ""

    return Cluster(backend, sum(processors), max(processors, default=1), submit, everywhere, why_lost)


def _call(task: Callable[..., object], *arguments: object) -> object:
    """One function for all of Ray's tasks, which it registers once."""
    return task(*arguments)


def _answer(get: Callable[[], object]) -> object:
    try:
        return get()
    except Exception as error:
        return error


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Puts back the handler of SIGTERM, which Ray replaces."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
