"""One training at a time writes a log; the second is told who the first is before it trains."""

import logging
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from callbacks.test_logs import Clock, StandIn
from sdkeras.callbacks import SharpnessDimension, sharpness_dimension
from sdkeras.errors import SdkerasError
from sdkeras.results.log import FILE_NAME, read_run_log
from sdkeras.runs.track import track

X = np.linspace(-1, 1, 24, dtype=np.float32).reshape(8, 3)
Y = (X.sum(axis=1, keepdims=True) > 0).astype(np.float32)
HOLD = """
import sys
from pathlib import Path
from sdkeras.results.log import claim
kept = claim(Path(sys.argv[1]))
print("held", flush=True)
input()
"""


def net() -> keras.Model:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    return model


def callback(folder: Path) -> SharpnessDimension:
    return SharpnessDimension((X, Y), measures=("sharpness",), batch_size=4, max_overhead=None, log_dir=folder)


def fit(model: keras.Model, *callbacks: keras.callbacks.Callback) -> None:
    model.fit(X, Y, batch_size=4, epochs=1, verbose=0, callbacks=list(callbacks))


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measurements that take no time."""
    monkeypatch.setattr(sharpness_dimension, "Monitor", type("One", (StandIn,), {"clock": Clock(), "error": {}}))


@pytest.fixture
def holder(tmp_path: Path):
    """A process that writes the log in the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / FILE_NAME], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.communicate("\n")


def test_a_training_beside_another_process_is_refused_before_it_trains(tmp_path: Path, holder) -> None:
    model = net()
    before = model.get_weights()
    with pytest.raises(SdkerasError, match=rf"sharpness\.jsonl is in use by process {holder.pid} on .* another folder"):
        fit(model, callback(tmp_path))
    assert all(np.array_equal(*pair) for pair in zip(model.get_weights(), before, strict=True))
    assert (tmp_path / FILE_NAME).read_bytes() == b""


def test_checkpoints_beside_another_process_are_refused(tmp_path: Path, holder) -> None:
    model = net()
    model.save(tmp_path / "model.keras")
    with pytest.raises(SdkerasError, match=rf"in use by process {holder.pid}"):
        track([tmp_path / "model.keras"], (X, Y), log_dir=tmp_path, measures=("sharpness",))


def test_a_log_is_free_after_the_training_and_after_its_interruption(tmp_path: Path, stand_in) -> None:
    model, first = net(), callback(tmp_path)
    fit(model, first)
    assert sorted(path.name for path in tmp_path.iterdir()) == [FILE_NAME]
    fit(model, callback(tmp_path))

    def interrupt(epoch: int, logs: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(model, first, keras.callbacks.LambdaCallback(on_epoch_end=interrupt))
    fit(model, callback(tmp_path))
    assert len(read_run_log(tmp_path).measurements) == 4


def test_two_callbacks_with_one_log_in_one_training(tmp_path: Path, stand_in, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "sdkeras"):
        fit(net(), callback(tmp_path), callback(tmp_path))
    assert len(read_run_log(tmp_path).measurements) == 1
    assert "belongs to a later training of this process now" in caplog.text
