"""Several hosts as one: who they are, one sum over them by `tf.distribute`, and what is said when one of them is lost.

A collective dies with its host. A sum is all that the hosts do together: a message from the chief is a sum to which the
others add zeros, and a table of answers one to which each adds its row.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import time
from collections.abc import Iterator
from typing import Any

import attrs
import keras
import numpy as np
import tensorflow as tf

from sdkeras._version import __version__
from sdkeras.errors import SdkerasError
from sdkeras.files.keras_types import Tensor
from sdkeras.files.user_code import last_line
from sdkeras.results.arrays import Value

GO_ON = "the same command with a new cluster, or on one host, goes on from its checkpoint if it has one (`checkpoint`)"
_JOBS = ("chief", "worker")
_VERSIONS = f"sdkeras {__version__}, TensorFlow {tf.__version__}, Keras {keras.__version__}"
# Seconds between two tries, for one answer; and for which a survivor stays, so that others can see that it lives.
_AGAIN, _ANSWER, _LINGER = 0.2, 3.0, 2.0
# Numbers of the shortest message: longer ones take twice as many, so that few sizes are compiled.
_SHORTEST = 256
_TASK = re.compile(r"/job:(\w+)(?:/replica:\d+)?/task:(\d+)")


@attrs.frozen
class Host:
    """A host of the cluster: its job, its number there, and HOST:PORT."""

    job: str
    index: int
    address: str

    def __str__(self) -> str:
        return f"{'the chief' if self.job == 'chief' else f'worker {self.index}'} ({self.address})"

    @property
    def place(self) -> tuple[str, int]:
        """Name and port of the address."""
        name, _, port = self.address.rpartition(":")
        return name.strip("[]"), int(port)


@attrs.define(eq=False)
class Cluster:
    """The hosts, the chief first; which of them this one is; whether one is lost; and what this one has done."""

    hosts: tuple[Host, ...]
    rank: int
    _sum: Any
    lost: bool = False
    work: str = "nothing done"  # in words

    @property
    def is_chief(self) -> bool:
        return self.rank == 0

    @property
    def count(self) -> int:
        return len(self.hosts)

    @property
    def words(self) -> str:
        """This host, as it introduces itself."""
        host = self.hosts[self.rank]
        return f"{host.job if host.job == 'chief' else f'worker {host.index}'} of {self.count}"

    def total(self, array: Tensor) -> Tensor:
        """The sum over the hosts of arrays of one shape and dtype; each must ask for it.

        Raises:
            SdkerasError: A host is lost.
        """
        try:
            with tf.device("CPU:0"):
                return self._sum(tf.identity(array))
        except tf.errors.OpError as error:
            self.lost = True
            raise self._loss(str(error)) from None

    def told(self, message: dict[str, Value] | None = None) -> dict[str, Value]:
        """The chief's message, at every host."""
        text = b"" if message is None else json.dumps(message).encode()
        length = int(self.total(np.int64(len(text))))
        told: dict[str, Value] = json.loads(_text(self.total(_numbers(text, length))))
        return told

    def gathered(self, answer: Value) -> list[Value]:
        """The answers of all hosts, at every host."""
        text = json.dumps(answer).encode()
        lengths = np.zeros(self.count, np.int64)
        lengths[self.rank] = len(text)
        longest = int(np.max(self.total(lengths)))
        table = np.zeros((self.count, len(_numbers(b"", longest))), np.int32)
        table[self.rank] = _numbers(text, longest)
        return [json.loads(_text(row)) for row in self.total(table).numpy()]

    def agree(self, about: dict[str, str]) -> None:
        """Refuses hosts that would analyse something else than the chief.

        Raises:
            SdkerasError: The message names the host and what differs there.
        """
        first, *others = self.gathered(about)
        for host, other in zip(self.hosts[1:], others, strict=True):
            differing = ", ".join(name for name in {**first, **other} if first.get(name) != other.get(name))
            if differing:
                raise SdkerasError(
                    f"{host} would analyse something else than {self.hosts[0]} (it differs in: {differing}); give "
                    "every host the same model, data and options."
                )

    def interruption(self) -> SdkerasError:
        """What another host says where the chief was interrupted."""
        return SdkerasError(f"{self.hosts[0]} was interrupted: {GO_ON}.")

    def _loss(self, error: str) -> SdkerasError:
        """The message about a host that has ended or cannot be reached."""
        others = [host for host in self.hosts if host is not self.hosts[self.rank]]
        gone = [host for host in others if not _answers(host)]
        if not gone:  # it has stopped, or its connection: TensorFlow says whose
            named = {(job, int(index)) for job, index in _TASK.findall(error)}
            gone = [host for host in others if (host.job, host.index) in named]
        if not gone and "CoordinationService" in error:  # which the chief keeps
            gone = [host for host in others if host is self.hosts[0]]
        time.sleep(_LINGER)
        who = " and ".join(map(str, gone)) or f"a host that TensorFlow does not name ({' '.join(error.split())[:200]})"
        return SdkerasError(f"{who} has ended or cannot be reached, and with it the cluster: {GO_ON}.")


def _numbers(text: bytes, length: int) -> Value:
    """Bytes as whole numbers, as many as for this length."""
    size = _SHORTEST
    while 4 * size < length:
        size *= 2
    return np.frombuffer(text.ljust(4 * size, b"\0"), np.int32)


def _text(numbers: Tensor) -> bytes:
    return np.asarray(numbers).tobytes().rstrip(b"\0")


def _answers(host: Host) -> bool:
    """Whether somebody listens at its address."""
    try:
        socket.create_connection(host.place, timeout=_ANSWER).close()
    except OSError:
        return False
    return True


_joined: dict[str, Cluster] = {}


def is_joined(name: str) -> bool:
    """Whether this process has joined the cluster."""
    return name in _joined


def join(name: str, timeout: float) -> Cluster:
    """The cluster of this process, which it joins once, before TensorFlow makes its first tensor.

    Args:
        name: 'tf-config', 'slurm' or 'kubernetes': who says which hosts there are.
        timeout: Seconds to wait for the others.

    Raises:
        SdkerasError: There is no such cluster, a host does not come, or has other versions.
    """
    if name not in _joined:
        hosts, rank = _members(name)
        _meet(hosts, rank, timeout)
        _joined[name] = Cluster(hosts, rank, _sum_over(hosts, rank))
    return _joined[name]


def _sum_over(hosts: tuple[Host, ...], rank: int) -> Value:
    """The compiled sum over hosts, on the CPU, one replica each."""
    jobs = {job: [host.address for host in hosts if host.job == job] for job in _JOBS}
    spec = tf.train.ClusterSpec({job: addresses for job, addresses in jobs.items() if addresses})
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        spec, task_type=hosts[rank].job, task_id=hosts[rank].index, rpc_layer="grpc"
    )
    ring = tf.distribute.experimental.CommunicationImplementation.RING
    options = tf.distribute.experimental.CommunicationOptions(implementation=ring)
    try:
        strategy = tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver, communication_options=options)
    except RuntimeError as error:
        raise SdkerasError(
            "TensorFlow works already, and a cluster is joined before its first tensor: call "
            f"`sdkeras.runs.cluster.join` before the model is made or loaded ({last_line(error)})."
        ) from error

    def summed(value: Tensor) -> Tensor:  # a replica's own tensor has a device, an argument has none
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tf.identity(value))

    return tf.function(lambda value: strategy.run(summed, args=(value,)), autograph=False)


# Who the hosts are


def _members(name: str) -> tuple[tuple[Host, ...], int]:
    """The hosts, the chief first, and the number of this one."""
    sources = {"tf-config": _from_tf_config, "slurm": _from_slurm, "kubernetes": _from_kubernetes}
    if name not in sources:
        raise SdkerasError(f"the cluster is {name!r}; it must be one of {', '.join(sources)}.")
    spec, job, index = sources[name]()
    hosts = tuple(Host(each, k, str(address)) for each in _JOBS for k, address in enumerate(spec.get(each, ())))
    bad = [
        host.address for host in hosts if not re.fullmatch(r".+:\d{1,5}", host.address) or not 0 < host.place[1] < 2**16
    ]
    if bad:
        raise SdkerasError(f"{name}: the address {bad[0]!r} of a host must be HOST:PORT, with a port from 1 to 65535.")
    addresses = [host.address for host in hosts]
    twice = [address for address in addresses if addresses.count(address) > 1]
    if twice:
        raise SdkerasError(f"{name}: two hosts have the address {twice[0]}; give each its own.")
    places = [k for k, host in enumerate(hosts) if (host.job, host.index) == (job, index)]
    if not places:
        named = ", ".join(f"{host.job} {host.index}" for host in hosts) or "none"
        raise SdkerasError(f"{name}: this is task {job} {index}, and chief and workers of the cluster are: {named}.")
    return hosts, places[0]


def _from_tf_config() -> tuple[dict[str, list[str]], str, int]:
    example = '{"cluster": {"worker": ["HOST:PORT", "HOST:PORT"]}, "task": {"type": "worker", "index": 0}}'
    text = os.environ.get("TF_CONFIG")
    if not text:
        raise SdkerasError(f"TF_CONFIG is not set; give each host {example}, with its own index.")
    try:
        config = json.loads(text)
        spec, task = config["cluster"], config["task"]
        lists = {str(job): list(addresses) for job, addresses in spec.items() if not isinstance(addresses, str)}
        return lists, str(task["type"]), int(task["index"])
    except json.JSONDecodeError as error:
        raise SdkerasError(f"TF_CONFIG is not JSON ({error}); expected: {example}.") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SdkerasError(
            f"TF_CONFIG has no usable cluster and task ({last_line(error)}); expected: {example}."
        ) from error


def _from_slurm() -> tuple[dict[str, list[str]], str, int]:
    if "SLURM_PROCID" not in os.environ:
        raise SdkerasError("this is no step of SLURM: SLURM_PROCID is not set; start the command by srun.")
    try:
        # Unless told how many GPUs there are the resolver asks nvidia-smi, and without a GPU it names no host;
        # with auto_set_gpu off the numbers decide nothing else. No node has more tasks than ports.
        resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(
            gpus_per_node=2**16, gpus_per_task=1, auto_set_gpu=False
        )
        spec = resolver.cluster_spec().as_dict()
        return spec, str(resolver.task_type), int(resolver.task_id)
    except Exception as error:  # environment variables that are missing, scontrol
        raise SdkerasError(f"SLURM does not say which hosts there are: {last_line(error)}; start by srun.") from error


def _from_kubernetes() -> tuple[dict[str, list[str]], str, int]:
    index = os.environ.get("JOB_COMPLETION_INDEX", "")
    if not index.isdigit():
        raise SdkerasError(
            "this is no pod of an indexed Job of Kubernetes: JOB_COMPLETION_INDEX is not set; start the command by one."
        )
    try:
        spec = tf.distribute.cluster_resolver.KubernetesClusterResolver().cluster_spec().as_dict()
    except Exception as error:  # the package, the configuration, the network, pods that are not running
        raise SdkerasError(f"Kubernetes does not say which hosts there are: {last_line(error)}.") from error
    return spec, "worker", int(index)


# Waiting for them


def _meet(hosts: tuple[Host, ...], rank: int, timeout: float) -> None:
    """Waits until all hosts are there: TensorFlow's own start would wait for ever, and not even for Ctrl-C."""
    deadline = time.monotonic() + timeout
    try:
        listening = socket.create_server(("", hosts[rank].place[1]))
    except OSError as error:
        raise SdkerasError(
            f"the port of {hosts[rank]} cannot be used: {error.strerror}; free it or name another."
        ) from error
    if rank == 0:
        with listening:
            _await_all(listening, hosts, deadline, timeout)
        return
    listening.close()  # TensorFlow will listen there
    hello = {"rank": rank, "versions": _VERSIONS, "hosts": [host.address for host in hosts]}
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # nobody yet, or somebody else
            with socket.create_connection(hosts[0].place, timeout=_ANSWER) as chief:
                chief.sendall(json.dumps(hello).encode() + b"\n")
                chief.settimeout(max(0.0, deadline - time.monotonic()) + 2 * _ANSWER)
                refusal = json.loads(chief.makefile().readline())["refusal"]
                if refusal:
                    raise SdkerasError(refusal)
                return
        time.sleep(_AGAIN)
    raise SdkerasError(
        f"{hosts[0]} has not come within {timeout:g} s (`cluster_timeout`); start the command on every host."
    )


def _await_all(listening: socket.socket, hosts: tuple[Host, ...], deadline: float, timeout: float) -> None:
    """The chief's part: it lets all go on at once, or tells them why not."""
    come: dict[int, socket.socket] = {}
    refusal = ""
    listening.settimeout(_AGAIN)
    with contextlib.ExitStack() as stack:
        while not refusal and len(come) < len(hosts) - 1:
            for rank in [rank for rank, each in come.items() if _has_left(each)]:
                del come[rank]
            if time.monotonic() > deadline:
                missing = " and ".join(str(host) for k, host in enumerate(hosts) if k and k not in come)
                refusal = (
                    f"{missing} has not come within {timeout:g} s (`cluster_timeout`); start the command on every host."
                )
                break
            for rank, each, differing in _hello(listening, stack, hosts):
                come[rank] = each
                refusal = refusal or (f"{hosts[rank]} {differing}" if differing else "")
        for each in come.values():
            with contextlib.suppress(OSError):
                each.sendall(json.dumps({"refusal": refusal}).encode() + b"\n")
    if refusal:
        raise SdkerasError(refusal)


def _hello(
    listening: socket.socket, stack: contextlib.ExitStack, hosts: tuple[Host, ...]
) -> Iterator[tuple[int, socket.socket, str]]:
    """The next host that comes, if one does: its number, the connection, and what of it differs from this one."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        each = stack.enter_context(listening.accept()[0])
        each.settimeout(_ANSWER)
        told = json.loads(each.makefile().readline())
        rank, versions, addresses = int(told["rank"]), str(told["versions"]), told["hosts"]
        differing = (
            f"has {versions}, and the chief {_VERSIONS}; install the same ones." if versions != _VERSIONS else ""
        )
        if addresses != [host.address for host in hosts] or not 0 < rank < len(hosts):
            differing = "names other hosts than the chief; give every host the same list."
        if 0 < rank < len(hosts):
            yield rank, each, differing


def _has_left(connection: socket.socket) -> bool:
    connection.settimeout(0.0)
    try:
        return not connection.recv(1)
    except BlockingIOError:
        return False
    except OSError:
        return True
