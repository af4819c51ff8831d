"""`sdkeras critical` and `sdkeras landscape` as people meet them: files, plans, conditions and Ctrl-C."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest

import sdkeras
from sdkeras.results.progress import Progress
from small_trainings import quadratic


@pytest.mark.parametrize(
    ("name", "options", "condition"),
    [
        ("critical", (), "critical.ratio.value > 0"),
        ("landscape", ("--points", 5, "--rho", 0.05, "--ascent-steps", 2), "worst_case.0.increase > 0"),
    ],
)
def test_files_are_written_and_shown_again(
    name: str, options: tuple[object, ...], condition: str, files: Path, tmp_path: Path, in_process
) -> None:
    command = (name, files / "model.keras", "--data", files / "data.npz", "--batch-size", 32, *options)
    out = tmp_path / "out"
    status, text, _ = in_process(*command, "--out", out, "--dry-run")
    assert status == 0
    assert "losses" in text
    assert not out.exists()
    status, text, error = in_process(*command, "--out", out, "--fail-if", condition)
    assert status == 3
    assert f"--fail-if holds: {condition}" in error
    assert {path.name for path in out.iterdir()} == {f"{name}.json", f"{name}.html"}
    assert "<svg" in (out / f"{name}.html").read_text()
    status, again, _ = in_process("report", out / f"{name}.json")
    assert status == 0
    assert again.splitlines()[1] in text
    status, _, error = in_process("compare", out / f"{name}.json", out / f"{name}.json")
    assert status == 2
    assert "compare two of sdkeras analyze or two of sdkeras lyapunov" in error


def interrupt_at(words: str) -> Callable[[Progress], None]:
    def watch(step: Progress) -> None:
        if words in step.stage:
            os.kill(os.getpid(), signal.SIGINT)

    return watch


def test_ctrl_c_keeps_what_there_is() -> None:
    handler = signal.getsignal(signal.SIGINT)
    model, data = quadratic([1.0, 2.0], keras.optimizers.SGD(0.1))
    run = sdkeras.critical(model, data, batch_size=4, minibatches=9, progress=interrupt_at("minibatch 4"))
    assert (run.partial, run.status, run.critical.num_minibatches) == (True, "interrupted", 4)
    drawn = sdkeras.landscape(model, data, dimensions=2, points=5, progress=interrupt_at("losses, 10"))
    known = np.isfinite(np.stack(drawn.landscape.losses))
    assert drawn.partial
    assert 9 <= known.sum() < 25
    assert known[1:4, 1:4].all()  # from the weights outwards
    assert "Interrupted" in str(drawn)
    assert sdkeras.LandscapeRun.from_json(drawn.to_json()) == drawn
    with pytest.raises(KeyboardInterrupt):
        sdkeras.landscape(model, data, progress=interrupt_at("top eigenvectors"))
    assert signal.getsignal(signal.SIGINT) is handler
