"""`sdkeras.analyze(report_to=...)`: the answer's numbers, read back from TensorBoard's events."""

import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import sdkeras
from sdkeras.errors import SdkerasError
from small_trainings import X, Y, classifier


@pytest.mark.slow
def test_the_events_hold_the_numbers_of_the_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    monkeypatch.setitem(sys.modules, "tensorboard.compat.notf", type(sys)("notf"))
    options = {"batch_size": 4, "tolerance": 0.5, "checkpoint": tmp_path / "kept.npz"}
    model = classifier(keras.optimizers.SGD(0.1))
    run = sdkeras.analyze(model, (X, Y), report_to=f"tensorboard:{tmp_path}/events", **options)
    reading = EventAccumulator(str(tmp_path / "events"), size_guidance={"tensors": 0}).Reload()
    for path, value in {
        "hessian.largest.value": run.hessian.largest.value,
        "edge_of_stability.batch_sharpness": run.edge_of_stability.batch_sharpness,
        "sharpness_dimension.value": run.sharpness_dimension.value,
        "sharpness_dimension.value/lower": run.sharpness_dimension.interval[0],
        "rds_sharpness.leading.0": run.rds_sharpness.leading[0],
    }.items():
        (event,) = reading.Tensors(f"sdkeras/{path}")
        assert event.step == run.optimizer.iterations == 3
        assert make_ndarray(event.tensor_proto).item() == np.float32(value)
    (event,) = reading.Tensors("sdkeras/spectrum")
    assert make_ndarray(event.tensor_proto)[:, 2].sum() == pytest.approx(model.count_params())
    assert set(reading.PluginTagToContent("text")) == {"sdkeras/report"}
    # Where it is reported to is no part of what a checkpoint is of.
    assert sdkeras.analyze(model, (X, Y), **options).sharpness_dimension == run.sharpness_dimension


def test_an_unknown_tracker_is_refused() -> None:
    with pytest.raises(SdkerasError, match="did you mean 'wandb'"):
        sdkeras.analyze(classifier(keras.optimizers.SGD(0.1)), (X, Y), report_to="wanbd")
