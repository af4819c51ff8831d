"""An analysis on several hosts: here processes on the loopback address."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import sdkeras
from sdkeras.errors import SdkerasError
from sdkeras.results.answers import Analysis
from sdkeras.runs import cluster

# Three batches of the data set once they are put together, of which the first host has two.
GENERATOR = np.random.default_rng(0)
X = GENERATOR.standard_normal((2100, 5)).astype("float32")
Y = GENERATOR.integers(0, 3, len(X))
# Products whose number no timing decides.
OPTIONS: dict[str, Any] = {"batch_size": 16, "tolerance": 0.02, "seed": 3, "product_mode": "reverse-over-reverse"}
# What float32 products lose to another order of summation, and Lanczos runs make of it.
ROUNDING = 1e-4


def net() -> keras.Model:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3, "tanh"), keras.layers.Dense(3)], name="net")
    model.compile(keras.optimizers.SGD(0.25), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def addresses(count: int) -> list[str]:
    """Free places of the loopback address."""
    with contextlib.ExitStack() as stack:
        free = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in free:
            each.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{each.getsockname()[1]}" for each in free]


def config(hosts: list[str], index: int, job: str = "worker") -> str:
    return json.dumps({"cluster": {"worker": hosts}, "task": {"type": job, "index": index}})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cluster")
    net().save(folder / "model.keras")
    np.savez(folder / "data.npz", x=X, y=Y)
    np.savez(folder / "other.npz", x=X, y=(Y + 1) % 3)
    return folder


@contextlib.contextmanager
def started(folder: Path, hosts: list[str], *more: object, data: str = "data.npz") -> Iterator[list[Any]]:
    """The same command on every host, but for the data of the last one."""
    words = [f"--{name.replace('_', '-')}={value}" for name, value in OPTIONS.items()]
    processes = []
    for index in range(len(hosts)):
        inputs = [folder / "model.keras", "--data", folder / (data if index else "data.npz")]
        line = [sys.executable, "-m", "sdkeras_cli", "analyze", *inputs, *words, "--cluster=tf-config", *more]
        settings = os.environ | {"TF_CONFIG": config(hosts, index)}
        processes.append(subprocess.Popen([*map(str, line)], stdout=-1, stderr=-1, text=True, env=settings))
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def ended(process: Any, seconds: float = 240.0) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


def one_message(err: str) -> str:
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if line.startswith("sdkeras: error:")]
    assert len(lines) == 1, err
    return lines[0]


@pytest.fixture(scope="module")
def alone() -> Analysis:
    return sdkeras.analyze(net(), (X, Y), **OPTIONS)


def assert_alike(one: Analysis, other: Analysis) -> None:
    assert one.sharpness_dimension is not None
    assert other.sharpness_dimension is not None
    assert one.sharpness_dimension.num_runs == other.sharpness_dimension.num_runs
    assert one.provenance.num_hvps == other.provenance.num_hvps
    for name in ("largest", "trace"):
        ours, theirs = getattr(one.hessian, name).value, getattr(other.hessian, name).value
        assert ours == pytest.approx(theirs, rel=ROUNDING)
    assert one.sharpness_dimension.value == pytest.approx(other.sharpness_dimension.value, rel=ROUNDING)
    assert one.edge_of_stability.batch_sharpness == pytest.approx(other.edge_of_stability.batch_sharpness, rel=ROUNDING)


@pytest.mark.slow
def test_two_hosts_find_what_one_finds(folder: Path, alone: Analysis, tmp_path: Path) -> None:
    hosts = addresses(2)
    with started(folder, hosts, "--json", tmp_path / "run.json") as (chief, worker):
        status, out, err = ended(worker)
        assert status == 0, err
        first, last = out.splitlines()
        assert first == f"worker 1 of 2: serving the chief at {hosts[0]}"
        made = re.fullmatch(
            r"worker 1 of 2: ([\d,]+) Hessian-vector products, in (\d+) runs .* (\d+) products .*", last
        )
        assert made is not None, last
        status, _, err = ended(chief)
        assert status == 0, err
    found = Analysis.load(tmp_path / "run.json")
    assert_alike(found, alone)
    assert found.provenance.device == f"2 hosts, {alone.provenance.device}"
    # One batch of three, and half of the runs.
    products, runs, passes = (int(number.replace(",", "")) for number in made.groups())
    assert found.sharpness_dimension is not None
    assert abs(runs - found.sharpness_dimension.num_runs / 2) <= 4
    assert passes > 10
    of_runs = runs * found.sharpness_dimension.num_hvps / found.sharpness_dimension.num_runs
    assert products - passes == pytest.approx(of_runs, rel=0.1)


@pytest.mark.slow
def test_a_lost_worker_is_named_and_one_host_goes_on(folder: Path, alone: Analysis, tmp_path: Path) -> None:
    hosts, kept = addresses(2), tmp_path / "kept.npz"
    with started(folder, hosts, "--checkpoint", kept) as (chief, worker):
        writes: set[int] = set()
        while len(writes) < 2 and chief.poll() is None:
            with contextlib.suppress(FileNotFoundError):
                writes.add(kept.stat().st_mtime_ns)
            time.sleep(0.002)
        worker.kill()
        status, out, err = ended(chief, 20.0)
    message = one_message(err)
    assert status == 2
    assert not out
    assert f"worker 1 ({hosts[1]}) has ended or cannot be reached" in message
    assert "goes on from its checkpoint if it has one (--checkpoint)" in message
    assert [each.name for each in tmp_path.iterdir()] == ["kept.npz"]
    model = keras.saving.load_model(folder / "model.keras")
    assert_alike(sdkeras.analyze(model, (X, Y), checkpoint=kept, **OPTIONS), alone)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "words"), [(signal.SIGKILL, "has ended or cannot"), (signal.SIGINT, "was interrupted")]
)
def test_a_worker_ends_with_its_chief(folder: Path, number: signal.Signals, words: str, tmp_path: Path) -> None:
    hosts, kept = addresses(2), tmp_path / "kept.npz"
    with started(folder, hosts, "--checkpoint", kept, "--tolerance", 0.002) as (chief, worker):
        while not kept.exists() and chief.poll() is None:
            time.sleep(0.01)
        time.sleep(0.5)
        chief.send_signal(number)
        status, _, err = ended(worker)
        assert status == 2
        assert f"worker 0 ({hosts[0]}) {words}" in one_message(err)
        assert ended(chief)[0] == (130 if number == signal.SIGINT else -number)


@pytest.mark.slow
def test_hosts_with_other_data_are_refused(folder: Path) -> None:
    hosts = addresses(2)
    with started(folder, hosts, data="other.npz") as processes:
        for process in processes:
            status, _, err = ended(process)
            assert status == 2
            message = one_message(err)
            assert f"worker 1 ({hosts[1]}) would analyse something else than worker 0 ({hosts[0]})" in message
            assert "(it differs in: data)" in message


@pytest.mark.slow
def test_a_worker_that_never_comes_ends_the_command(folder: Path) -> None:
    hosts = addresses(2)
    with started(folder, hosts, "--cluster-timeout", 1) as (chief, worker):
        worker.kill()
        status, out, err = ended(chief)
    assert (status, out) == (2, "")
    assert f"worker 1 ({hosts[1]}) has not come within 1 s (--cluster-timeout)" in one_message(err)


def test_who_has_not_come_is_named() -> None:
    hosts = tuple(cluster.Host("worker", index, place) for index, place in enumerate(addresses(3)))
    for rank, words in ((0, rf"worker 1 \({hosts[1].address}\) and worker 2 \({hosts[2].address}\)"), (1, "worker 0")):
        with pytest.raises(SdkerasError, match=rf"^{words}.* has not come within 0.5 s \(`cluster_timeout`\)"):
            cluster._meet(hosts, rank, 0.5)
    with socket.create_server(hosts[0].place):
        with pytest.raises(SdkerasError, match="cannot be used: Address already in use"):
            cluster._meet(hosts, 0, 0.5)


def test_other_versions_and_other_hosts_are_refused() -> None:
    places = addresses(2)
    hosts = tuple(cluster.Host("worker", index, place) for index, place in enumerate(places))
    for change, words in (
        ("versions", "worker 1 .* has sdkeras 0.0, and the chief sdkeras .*install"),
        ("hosts", "same list"),
    ):
        refusals: list[str] = []

        def chief(refusals: list[str] = refusals) -> None:
            with pytest.raises(SdkerasError) as caught:
                cluster._meet(hosts, 0, 20.0)
            refusals.append(str(caught.value))

        thread = threading.Thread(target=chief)
        thread.start()
        time.sleep(0.5)
        hello = {"rank": 1, "versions": cluster._VERSIONS, "hosts": places[::-1]}
        hello |= {"versions": "sdkeras 0.0", "hosts": places} if change == "versions" else {}
        with socket.create_connection(hosts[0].place) as connection:
            connection.sendall(json.dumps(hello).encode() + b"\n")
            answer = json.loads(connection.makefile().readline())
        thread.join()
        assert refusals == [answer["refusal"]]
        assert re.search(words, refusals[0])


@pytest.mark.parametrize(
    ("name", "environment", "words"),
    [
        ("tf-config", {}, "TF_CONFIG is not set; give each host"),
        ("tf-config", {"TF_CONFIG": "{cluster"}, "TF_CONFIG is not JSON"),
        ("tf-config", {"TF_CONFIG": '{"cluster": {"worker": ["a:1"]}}'}, "no usable cluster and task"),
        ("tf-config", {"TF_CONFIG": "[1]"}, "no usable cluster and task"),
        (
            "tf-config",
            {"TF_CONFIG": config(["a:1", "b:1"], 2)},
            "task worker 2, and chief and workers .*worker 0, worker 1",
        ),
        ("tf-config", {"TF_CONFIG": config(["a"], 0)}, "the address 'a' of a host must be HOST:PORT"),
        ("tf-config", {"TF_CONFIG": config(["a:99999"], 0)}, "the address 'a:99999' of a host .* from 1 to 65535"),
        ("tf-config", {"TF_CONFIG": config(["a:1", "a:1"], 0)}, "two hosts have the address a:1"),
        ("foo", {}, "the cluster is 'foo'; it must be one of tf-config, slurm, kubernetes"),
        ("tf-config", {"TF_CONFIG": config(["a:1"], 0, "ps")}, "this is task ps 0"),
        ("slurm", {}, "start the command by srun"),
        ("slurm", {"SLURM_PROCID": "0"}, "SLURM does not say which hosts there are"),
        ("kubernetes", {}, "JOB_COMPLETION_INDEX is not set"),
        ("kubernetes", {"JOB_COMPLETION_INDEX": "0"}, "Kubernetes does not say which hosts there are"),
    ],
)
def test_what_names_no_cluster_is_refused(
    name: str, environment: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for each in ("TF_CONFIG", "SLURM_PROCID", "JOB_COMPLETION_INDEX"):
        monkeypatch.delenv(each, raising=False)
    for each, value in environment.items():
        monkeypatch.setenv(each, value)
    with pytest.raises(SdkerasError, match=words):
        cluster.join(name, 1.0)


@pytest.mark.parametrize("devices", [None, "", "0,1,2"])
def test_slurm_names_the_hosts_with_and_without_gpus(devices: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")  # neither scontrol nor nvidia-smi
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if devices is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", devices)
    for name, value in {
        "PROCID": "2",
        "STEP_NUM_TASKS": "3",
        "STEP_NODELIST": "n[3-4]",
        "STEP_TASKS_PER_NODE": "2,1",
    }.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    hosts, rank = cluster._members("slurm")
    assert [host.address for host in hosts] == ["n3:8888", "n3:8889", "n4:8888"]
    assert rank == 2
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == devices


def test_a_library_that_joins_too_late_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_CONFIG", config(addresses(1), 0))
    model = net()
    model(X[:1])
    with pytest.raises(SdkerasError, match=r"call `sdkeras\.runs\.cluster\.join` before"):
        sdkeras.analyze(model, (X, Y), cluster="tf-config", **OPTIONS)
