"""The callback and trackers: what a training sends, and what it does when they fail."""

import logging
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from callbacks.test_logs import Clock, StandIn, fit, fresh, watch
from kept_trackers import Kept, stand_ins
from sdkeras.callbacks import sharpness_dimension
from sdkeras.errors import SdkerasError
from sdkeras.reporting.trackers import names
from sdkeras.results.log import read_run_log


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> dict[str, Kept]:
    return stand_ins(monkeypatch)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measurements that take no time."""
    monkeypatch.setattr(sharpness_dimension, "Monitor", type("One", (StandIn,), {"clock": Clock(), "error": {}}))


def test_tensorboard_has_the_numbers_of_history_and_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    monkeypatch.setitem(sys.modules, "tensorboard.compat.notf", type(sys)("notf"))
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3)])
    model.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    measures = ("sharpness", "sharpness_dimension")
    callback = watch(measures=measures, log_dir=tmp_path, report_to="tensorboard", tolerance=0.5)
    history = fit(callback, model=model, epochs=2)
    reading = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0}).Reload()

    def read(name: str) -> tuple[list[int], list[float]]:
        events = reading.Tensors(f"sdkeras/{name}")
        return [event.step for event in events], [make_ndarray(event.tensor_proto).item() for event in events]

    log = read_run_log(tmp_path).measurements
    steps = [found.step for found in log]
    assert len(set(steps)) == 2
    for key in (*measures, "bound_scale"):
        assert read(key) == (steps, pytest.approx(history[key], rel=2**-23))
    spans = [found.values["sharpness_dimension"].interval for found in log]
    assert read("sharpness_dimension/lower") == (steps, pytest.approx([low for low, _ in spans], rel=2**-23))
    assert read("sharpness_dimension/upper") == (steps, pytest.approx([high for _, high in spans], rel=2**-23))
    assert read("epoch") == (steps, [1.0, 2.0])
    for event, found in zip(reading.Tensors("sdkeras/spectrum"), log, strict=True):
        bins = make_ndarray(event.tensor_proto)
        assert event.step == found.step
        assert bins[:, 2].sum() == pytest.approx(model.count_params(), rel=1e-9)
    assert set(reading.PluginTagToContent("text")) == {"sdkeras/report", "sdkeras/track"}


def test_a_tracker_that_breaks_ends_no_training(tmp_path: Path, kept, stand_in, caplog) -> None:
    with caplog.at_level(logging.WARNING, "sdkeras"):
        history = fit(watch(log_dir=tmp_path, report_to=("mlflow", "wandb")), epochs=3)
    assert history["sharpness"] == [1.0, 2.0, 3.0]
    assert [found.value("sharpness") for found in read_run_log(tmp_path).measurements] == [1.0, 2.0, 3.0]
    assert [row["sharpness"] for _, row, _ in kept["wandb"].rows] == [1.0, 2.0, 3.0]
    assert len(kept["mlflow"].rows) == 1
    assert kept["wandb"].ended == [False]
    said = [record.getMessage() for record in caplog.records]
    assert said == ["sdkeras: nothing more is reported to mlflow, which failed: ConnectionError: the server is gone"]


def test_a_tracker_that_cannot_begin_is_refused_before_the_training(tmp_path: Path, stand_in) -> None:
    (tmp_path / "file").write_text("")
    model = fresh()
    before = model.get_weights()
    callback = watch(log_dir=tmp_path / "run", report_to=f"tensorboard:{tmp_path}/file/below")
    with pytest.raises(SdkerasError, match="cannot be reported to"):
        fit(callback, model=model)
    assert all(np.array_equal(*pair) for pair in zip(model.get_weights(), before, strict=True))
    assert not (tmp_path / "run" / ".sharpness.jsonl.lock").exists()


def test_an_absent_or_unknown_tracker_is_refused_when_the_callback_is_made(monkeypatch) -> None:
    monkeypatch.setattr(names, "_is_installed", lambda name: False)
    with pytest.raises(SdkerasError, match=r"pip install 'sdkeras\[wandb\]'"):
        watch(report_to="wandb")
    with pytest.raises(SdkerasError, match="did you mean 'mlflow'"):
        watch(report_to=("tensorboard", "mlfow"))


def test_the_runs_of_a_training_that_was_cut_short_have_failed_once_the_next_begins(kept, stand_in) -> None:
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: object = None) -> None:
            raise KeyboardInterrupt

    callback = watch(report_to="wandb")
    with pytest.raises(KeyboardInterrupt):
        fit(callback, Stop())
    assert kept["wandb"].ended == []
    fit(callback, epochs=1)
    assert kept["wandb"].ended == [True, False]
