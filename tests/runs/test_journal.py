"""An analysis that is killed, or interrupted, goes on from its checkpoint to the same bits."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import keras
import numpy as np
import pytest

import sdkeras
from processes import python
from sdkeras.errors import SdkerasError
from sdkeras.runs import journal
from sdkeras_plugins.quadrature import StochasticLanczosQuadrature
from small_nets import X, Y

# More runs than one group; a product limit, whose shares must come out the same.
OPTIONS: dict[str, Any] = {"batch_size": 16, "runs": 6, "max_hvps": 1500, "seed": 3}


def net(activation: str = "tanh", rate: float = 0.25) -> keras.Model:
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(3, activation), keras.layers.Dense(3)]
    model = keras.Sequential([keras.Input((5,)), *layers], name="net")  # those of the layers differ from call to call
    model.compile(keras.optimizers.SGD(rate), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def analysed(path: Path | None, **options: Any) -> dict[str, Any]:
    """All of an answer but the time, by its path in run.json."""
    answer = sdkeras.analyze(net(), (X, Y), checkpoint=path, **(OPTIONS | options))
    made = attrs.evolve(answer.provenance, seconds=0.0, created="")
    return json.loads(attrs.evolve(answer, provenance=made).to_json())


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Seeds of the runs that are really made."""
    seeds: list[int] = []
    for name in ("estimate", "estimate_many"):
        original = getattr(StochasticLanczosQuadrature, name, None)
        if original is not None:
            monkeypatch.setattr(StochasticLanczosQuadrature, name, counting(original, seeds))
    return seeds


def counting(original: Callable[..., Any], seeds: list[int]) -> Callable[..., Any]:
    def estimate(self: Any, source: Any, **given: Any) -> Any:
        seeds.extend(given["seeds"] if "seeds" in given else [given["seed"]])
        return original(self, source, **given)

    return estimate


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[bytes]]:
    """An answer that nothing stopped, and its checkpoint after every write: as often as there is something new."""
    copies: list[bytes] = []
    replace = os.replace

    def replaced(source: Any, target: Any) -> None:
        replace(source, target)
        copies.append(Path(target).read_bytes())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", replaced)
        patch.setattr(journal, "_SECONDS_BETWEEN_WRITES", 0.0)
        patch.setattr(journal, "_TIMES_A_WRITE", 0.0)
        answer = analysed(tmp_path_factory.mktemp("whole") / "run.npz")
    return answer, list(dict.fromkeys(copies))


def test_a_checkpoint_changes_no_number(whole: Any) -> None:
    assert analysed(None) == whole[0]


@pytest.mark.parametrize("place", [0.0, pytest.param(0.3, marks=pytest.mark.slow), 0.6, 1.0])
def test_from_any_write_it_goes_on_to_the_same_bits(whole: Any, place: float, tmp_path: Path, made: list[int]) -> None:
    answer, copies = whole
    path = tmp_path / "run.npz"
    path.write_bytes(copies[round(place * (len(copies) - 1))])
    assert analysed(path) == answer
    assert (len(made) == 6) if place == 0.0 else (len(made) == 0) if place == 1.0 else True
    assert [each.name for each in tmp_path.iterdir()] == ["run.npz"]
    made.clear()
    assert analysed(path, product_mode="auto") == answer
    assert made == []


def test_after_ctrl_c_it_goes_on(whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    original = StochasticLanczosQuadrature.estimate

    def interrupted(self: Any, source: Any, *, seed: int) -> Any:
        calls.append(seed)
        if len(calls) == 4:
            signal.raise_signal(signal.SIGINT)
        return original(self, source, seed=seed)

    path = tmp_path / "run.npz"
    with monkeypatch.context() as patch:
        patch.setattr(StochasticLanczosQuadrature, "estimate", interrupted)
        if hasattr(StochasticLanczosQuadrature, "estimate_many"):
            patch.delattr(StochasticLanczosQuadrature, "estimate_many")
        partial = analysed(path)
    assert partial["partial"]
    assert path.exists()
    assert analysed(path) == whole[0]


@pytest.mark.parametrize(
    ("changes", "differing"),
    [
        ({"options": {"runs": 7, "seed": 4}}, "runs, seed"),
        ({"options": {"preset": "quick"}}, "preset, samples, tolerance, min_runs"),
        ({"data": (X, (Y + 1) % 3)}, "data"),
        ({"model": {"rate": 0.5}}, "weights or optimizer's state, optimizer"),
        ({"options": {"jit": "on"}}, "jit"),
        ({"model": {"activation": "relu"}}, "the loss or the model"),
        ({"options": {"loss": "sparse_categorical_crossentropy:from_logits"}}, "loss"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_checkpoint_of_another_analysis_is_refused(
    whole: Any, changes: dict[str, Any], differing: str, tmp_path: Path
) -> None:
    path = tmp_path / "run.npz"
    path.write_bytes(whole[1][-1])
    options = OPTIONS | changes.get("options", {})
    with pytest.raises(SdkerasError, match=r"checkpoint of another analysis \(it differs in: (.*)\)") as caught:
        sdkeras.analyze(net(**changes.get("model", {})), changes.get("data", (X, Y)), checkpoint=path, **options)
    assert set(differing.split(", ")) <= set(str(caught.value).partition("in: ")[2].partition(")")[0].split(", "))
    assert path.read_bytes() == whole[1][-1]


def test_a_file_that_is_no_checkpoint_or_in_use_is_refused_and_kept(whole: Any, tmp_path: Path) -> None:
    path = tmp_path / "run.npz"
    for content in (b'{"schema_version": 1}', whole[1][-1][:-200]):
        path.write_bytes(content)
        with pytest.raises(SdkerasError, match="delete it to start again, or name another") as caught:
            analysed(path)
        assert "pickle" not in str(caught.value)
        assert path.read_bytes() == content
    np.savez(path, a=np.zeros(2))
    with pytest.raises(SdkerasError, match="delete it to start again"):
        analysed(path)
    code = "import sys, sdkeras.files.atomic as a\nwith a.only_writer(sys.argv[1], ''): print(1, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code, path], stdin=-1, stdout=-1) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(SdkerasError, match="is in use by process"):
            analysed(path)
        holder.kill()


def test_what_a_time_limit_left_out_is_made_up_for(whole: Any, tmp_path: Path) -> None:
    path = tmp_path / "run.npz"
    late = analysed(path, time_limit=1e-3)
    assert late["hessian"]["trace"] is None
    assert analysed(path) == whole[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ("--tolerance", 0.3, "--per-layer", "--lyapunov", 3, "--lyapunov-steps", 400, "--snapshots", 3, "--every", 5),
        ("--map", "full", "--tolerance", 0.3),
    ],
)
def test_a_command_that_is_killed_at_random_moments(options: tuple[Any, ...], tmp_path: Path) -> None:
    model = net()
    model.fit(X, Y, verbose=0)
    model.save(tmp_path / "model.keras")
    np.savez(tmp_path / "data.npz", x=X, y=Y)
    words = ("analyze", tmp_path / "model.keras", "--data", tmp_path / "data.npz", "--batch-size", 16, "--quiet")
    out, kept, generator = tmp_path / "run.json", tmp_path / "kept.npz", np.random.default_rng(0)

    def answer() -> dict[str, Any]:
        found = json.loads(out.read_text())
        return found | {"provenance": found["provenance"] | {"seconds": 0.0, "created": ""}}

    began = time.monotonic()
    assert python("", *words, *options, "--json", out).returncode == 0
    took = time.monotonic() - began
    expected = answer()
    line = [sys.executable, "-m", "sdkeras_cli", *map(str, (*words, *options, "--json", out, "--checkpoint", kept))]
    killed = 0
    for _ in itertools.repeat(None, 3):
        with subprocess.Popen(line) as process:
            try:
                process.wait(generator.uniform(0.4, 1.0) * took)
            except subprocess.TimeoutExpired:
                process.kill()
                killed += 1
    assert python("", *words, *options, "--json", out, "--checkpoint", kept).returncode == 0
    assert killed
    assert answer() == expected
    assert {each.name for each in tmp_path.iterdir()} == {"model.keras", "data.npz", "run.json", "kept.npz"}
