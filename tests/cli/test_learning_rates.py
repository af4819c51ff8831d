"""Trainings without one learning rate on the command line: measured as far as it goes, and never a traceback."""

import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from small_nets import X

TARGET = X @ np.arange(1.0, 6.0, dtype="float32")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Linear regressions: one whose schedule has come to 0, one with an optimizer for each kind of weight."""
    folder = tmp_path_factory.mktemp("rates")
    np.savez(folder / "data.npz", x=X, y=TARGET)
    o = keras.optimizers
    parts = o.OptimizerMap(o.SGD(0.125), {".*bias": o.Adam(0.0625)})
    for name, optimizer in (
        ("decayed", o.SGD(o.schedules.CosineDecay(0.125, 6))),
        ("several", o.MultiOptimizer(parts)),
    ):
        model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(1)], name="line")
        model.compile(optimizer, "mse")
        model.fit(X, TARGET, batch_size=16, verbose=0)
        model.save(folder / f"{name}.keras")
    return folder


@pytest.mark.parametrize(("name", "reason"), [("decayed", "CosineDecay"), ("several", "MultiOptimizer")])
def test_analyze(files: Path, tmp_path: Path, in_process, name: str, reason: str) -> None:
    common = ("analyze", files / f"{name}.keras", "--data", files / "data.npz")
    run = tmp_path / "run.json"
    chosen = ("--max-hvps", 100, "--json", run, "--html", tmp_path / "page.html")
    status, out, err = in_process(*common, *chosen, "--fail-if", "hessian.largest.value > 0")
    assert status == 3, err
    assert "No verdict: " in out
    assert "batch size 32 assumed" in out.lower()
    assert reason in (tmp_path / "page.html").read_text()
    for expression in ("edge_of_stability.ratio > 1", "sharpness_dimension.codimension < 3"):
        status, _, err = in_process("report", run, "--quiet", "--fail-if", expression)
        assert (status, reason in err) == (2, True)
        assert err.startswith("sdkeras: error: --fail-if: ")
    status, out, err = in_process(*common, "--dry-run")
    assert (status, err) == (0, "")
    assert reason in out
    assert "batch size 32 assumed" in out


def test_a_rate_is_checked_before_tensorflow_starts(files: Path, in_process, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    for command in ("analyze", "track", "lyapunov"):
        for text in ("peek", "0", "nan", "step:-1"):
            words = (command, files / "decayed.keras", "--data", files / "data.npz", "--learning-rate", text)
            status, out, err = in_process(*words)
            assert (status, out) == (2, "")
            assert "'peak', 'mean' or 'step:N'" in err


def test_lyapunov_refuses_a_step_at_rate_0_and_takes_that_of_the_schedule(files: Path, in_process) -> None:
    common = ("lyapunov", files / "decayed.keras", "--data", files / "data.npz", "--dry-run")
    status, _, err = in_process(*common)
    assert (status, "peak, mean or step:N" in err) == (2, True)
    status, out, _ = in_process(*common, "--learning-rate", "peak")
    assert (status, "learning rate 0.125 (peak of its schedule)" in out) == (0, True)
    status, _, err = in_process(*common, "--learning-rate", "step:6")
    assert (status, "training has taken 6 steps" in err) == (2, True)


def test_track(files: Path, tmp_path: Path, in_process) -> None:
    words = ("track", files / "decayed.keras", "--data", files / "data.npz", "--batch-size", 16, "--quiet")
    common = (*words, "--measures", "sharpness,sharpness_ratio", "--html", tmp_path / "page.html")
    status, _, err = in_process(*common, "--out", tmp_path / "0", "--fail-if", "values.sharpness_ratio.value > 1")
    assert (status, "CosineDecay" in err) == (2, True), err
    status, out, _ = in_process("track", tmp_path / "0")
    assert (status, "No verdict: the learning rate is 0" in out) == (0, True)
    status, _, err = in_process(*common, "--out", tmp_path / "1", "--learning-rate", "step:5")
    assert status == 0, err
    assert "(step 5 of its schedule)" in (tmp_path / "page.html").read_text()
