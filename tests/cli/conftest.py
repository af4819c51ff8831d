"""What the tests of several commands share."""

from pathlib import Path

import attrs
import keras
import numpy as np
import pytest
from click.testing import CliRunner

import sdkeras
from processes import python
from sdkeras_cli import main as cli_main
from sdkeras_cli import request

layers = keras.layers


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch):
    """The command in this process, where TensorFlow runs already and its threads are set."""
    monkeypatch.setattr(request, "tensorflow_settings", lambda quiet, device="auto": None)

    def run(*arguments: object) -> tuple[int, str, str]:
        with CliRunner().isolation() as (out, err, _):
            with pytest.raises(SystemExit) as caught:
                cli_main.main([str(argument) for argument in arguments])
            return int(caught.value.code or 0), out.getvalue().decode(), err.getvalue().decode()

    return run


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained classifier, one whose products cannot be verified, and their data."""
    folder = tmp_path_factory.mktemp("files")
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((70, 6)).astype("float32"), generator.integers(0, 3, 70)
    np.savez(folder / "data.npz", x=x, y=y)
    up = (layers.Dense(4), layers.Reshape((2, 2, 1)), layers.UpSampling2D(interpolation="bilinear"), layers.Flatten())
    for name, inner, optimizer in (
        ("model", (layers.Dense(6, "tanh"),), keras.optimizers.SGD(0.125)),
        ("up", up, "sgd"),
    ):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((6,)), *inner, layers.Dense(3)])
        model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        if name == "model":
            model.fit(x, y, epochs=3, verbose=0)
        model.save(folder / f"{name}.keras")
    return folder


@pytest.fixture(scope="session")
def analysed(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run.json, report.html and stdout.txt of that classifier by the command as it is started from a shell."""
    folder = tmp_path_factory.mktemp("analysed")
    outputs = ("--json", folder / "run.json", "--html", folder / "report.html")
    inputs = ("--bound", "delta=0.1", "--bound", "loss_bound=0.5", "--tolerance", 0.5)
    done = python("", "analyze", files / "model.keras", "--data", files / "data.npz", *inputs, *outputs)
    assert done.returncode == 0, done.stderr
    (folder / "stdout.txt").write_text(done.stdout)
    return folder


@pytest.fixture(scope="session")
def run_json(analysed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That run with a name that is no HTML."""
    path = tmp_path_factory.mktemp("run") / "run.json"
    run = sdkeras.Analysis.load(analysed / "run.json")
    attrs.evolve(run, model=attrs.evolve(run.model, name="<b>net")).save(path)
    return path
