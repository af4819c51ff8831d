"""Checkpoints measured in their order: the numbers, what is resumed, and what is refused."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest

import sdkeras
from oracles import overlap
from sdkeras.datasets import load_digits
from sdkeras.errors import SdkerasError
from sdkeras.results.log import read_run_log, trajectory
from sdkeras.runs.track import track

layers = keras.layers
IMAGES, Y = load_digits()
X = IMAGES[:, 2:6, 2:6]
TRAIN, TEST = (X[:300], Y[:300]), (X[300:500], Y[300:500])
SETTINGS = {"batch_size": 50, "samples": 300}


def net(width: int = 6, optimizer: keras.optimizers.Optimizer | None = None) -> keras.Model:
    keras.utils.set_random_seed(0)
    inner = [layers.Flatten(), layers.Dense(width, "tanh"), layers.LayerNormalization(), layers.Dense(10)]
    model = keras.Sequential([keras.Input((4, 4)), *inner])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer or keras.optimizers.Adam(0.01), loss, metrics=["accuracy"])
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four checkpoints of one training, whole and as weights."""
    place = tmp_path_factory.mktemp("checkpoints")
    model = net()
    for epoch in (8, 9, 10, 11):
        model.fit(*TRAIN, batch_size=50, verbose=0)
        model.optimizer.learning_rate = 0.01 / epoch
        model.save(place / f"epoch_{epoch}.keras")
        model.save_weights(place / f"epoch_{epoch}.weights.h5")
    return place


@pytest.fixture(scope="module")
def tracked(folder, tmp_path_factory):
    place = tmp_path_factory.mktemp("log")
    return place, track([f"{folder}/*.keras"], TRAIN, test_data=TEST, log_dir=place, **SETTINGS)


def test_the_numbers_are_those_of_analyze(folder, tracked) -> None:
    _, log = tracked
    assert [found.step for found in log.measurements] == [6, 12, 18, 24]
    found, model = log.measurements[-1], keras.saving.load_model(folder / "epoch_11.keras")
    run = sdkeras.analyze(model, TRAIN, tolerance=0.2, **SETTINGS)
    assert [each.learning_rate for each in log.measurements] == pytest.approx(
        [0.01 / epoch for epoch in (8, 9, 10, 11)]
    )
    assert found.value("sharpness") == pytest.approx(run.hessian.largest.value, rel=0.01)
    assert found.value("sharpness_ratio") == pytest.approx(run.edge_of_stability.ratio, rel=0.01)
    assert overlap(found.values["sharpness_dimension"].interval, run.sharpness_dimension.interval)
    logs = model.evaluate(*TEST, verbose=0, return_dict=True)
    assert found.metrics["val_loss"] == pytest.approx(logs["loss"], rel=1e-4)
    assert found.metrics["val_accuracy"] == pytest.approx(logs["accuracy"])


@pytest.mark.slow
def test_weights_of_a_model_give_the_same_numbers(folder, tracked, tmp_path) -> None:
    _, log = tracked
    names, base = [folder / f"epoch_{epoch}.weights.h5" for epoch in (8, 9)], folder / "epoch_8.keras"
    found = track(names, TRAIN, model=base, test_data=TEST, log_dir=tmp_path, **SETTINGS)
    pairs = list(zip(found.measurements, log.measurements[:2], strict=True))
    assert all(of_weights.values == of_model.values for of_weights, of_model in pairs)
    assert all(of_weights.metrics == of_model.metrics for of_weights, of_model in pairs)


@pytest.mark.slow
def test_weights_without_the_optimizers_state_are_not_read_with_a_stale_one(folder, tmp_path) -> None:
    bare = net()
    bare.load_weights(folder / "epoch_10.weights.h5")
    stripped = keras.Sequential.from_config(bare.get_config())
    stripped.set_weights(bare.get_weights())
    stripped.save_weights(tmp_path / "bare.weights.h5")
    (found,) = track(
        [tmp_path / "bare.weights.h5"], TRAIN, model=folder / "epoch_11.keras", log_dir=tmp_path, **SETTINGS
    ).measurements
    assert "the file holds no state of the optimizer" in " ".join(found.notes)
    assert "no second moments" in " ".join(found.notes)
    assert found.map == "hessian"
    assert np.isnan(found.value("sharpness_ratio"))


@pytest.mark.slow
def test_a_resumed_call_measures_nothing_twice_and_a_changed_file_anew(folder, tmp_path, tracked) -> None:
    _, whole = tracked
    names = [f"{folder}/epoch_{epoch}.keras" for epoch in (8, 9, 10, 11)]
    track(names[:2], TRAIN, test_data=TEST, log_dir=tmp_path, **SETTINGS)
    lines = (tmp_path / "sharpness.jsonl").read_bytes().split(b"\n")
    (tmp_path / "sharpness.jsonl").write_bytes(b"\n".join(lines[:-1]) + b"\n" + lines[1][:80])  # a kill within a line
    again = track(names, TRAIN, test_data=TEST, log_dir=tmp_path, **SETTINGS)
    assert [each.values for each in again.measurements] == [each.values for each in whole.measurements]
    log = read_run_log(tmp_path)
    assert [each.source for each in log.measurements] == names
    assert len(log.notes) == 1
    changed = tmp_path / "moved.keras"
    changed.write_bytes(pathlib.Path(names[0]).read_bytes())
    track([changed], TRAIN, test_data=TEST, log_dir=tmp_path, **SETTINGS)
    changed.write_bytes(pathlib.Path(names[3]).read_bytes())
    (found,) = track([changed], TRAIN, test_data=TEST, log_dir=tmp_path, **SETTINGS).measurements
    assert found.step == 24
    assert [each.source for each in trajectory(read_run_log(tmp_path))] == [*names, str(changed)]


@pytest.fixture(scope="module")
def command(folder, tmp_path_factory):
    """The command for a log's folder, and a log that it wrote without being killed."""
    place = tmp_path_factory.mktemp("data")
    for name, (x, y) in {"train": TRAIN, "test": TEST}.items():
        np.savez(place / f"{name}.npz", x=x, y=y)

    def words(out) -> list[str]:
        start = [sys.executable, "-c", "from sdkeras_cli.main import main; main()", "track", f"{folder}/*.keras"]
        data = ["--data", str(place / "train.npz"), "--test-data", str(place / "test.npz")]
        return [*start, *data, "--batch-size", "50", "--samples", "300", "--quiet", "--out", str(out)]

    assert subprocess.run(words(place / "whole"), check=False).returncode == 0
    return words, read_run_log(place / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("lines_before_the_kill", [0, 3])
def test_a_killed_process_goes_on_with_the_same_numbers(command, tmp_path, lines_before_the_kill) -> None:
    words, whole = command
    log = tmp_path / "sharpness.jsonl"
    process = subprocess.Popen(words(tmp_path), start_new_session=True)
    deadline = time.monotonic() + 120
    while (log.read_bytes().count(b"\n") if log.exists() else -1) < lines_before_the_kill:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = log.read_bytes()
    assert before.count(b"\n") < 5
    assert subprocess.run(words(tmp_path), check=False).returncode == 0
    assert log.read_bytes().startswith(before)
    found = read_run_log(log).measurements
    assert [(each.source, each.values, each.metrics) for each in found] == [
        (each.source, each.values, each.metrics) for each in whole.measurements
    ]


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_read_stops_no_other(folder, tmp_path) -> None:
    broken, nan = tmp_path / "broken.keras", tmp_path / "nan.keras"
    broken.write_bytes((folder / "epoch_9.keras").read_bytes()[:2000])
    model = net()
    model.layers[-1].bias.assign(np.full(10, np.nan))
    model.save(nan)
    names = [broken, folder / "epoch_8.keras", nan, folder / "epoch_10.keras"]
    log = track(names, TRAIN, log_dir=tmp_path, measures=("sharpness",), **SETTINGS)
    assert [each.failed for each in log.measurements] == [True, False, True, False]
    assert "not a readable .keras file" in log.measurements[0].notes[0]
    assert "holds NaN or infinity" in log.measurements[2].notes[0]
    assert [each.source for each in trajectory(log)] == [str(name) for name in names]
    assert len(read_run_log(tmp_path).measurements) == 4
    broken.write_bytes((folder / "epoch_9.keras").read_bytes())
    again = track(names, TRAIN, log_dir=tmp_path, measures=("sharpness",), **SETTINGS)
    assert [each.failed for each in again.measurements] == [False, False, True, False]
    with pytest.raises(SdkerasError, match="holds NaN or infinity"):
        track([nan], TRAIN, log_dir=tmp_path / "other", **SETTINGS)


@pytest.mark.slow
def test_another_architecture_and_another_optimizer_get_a_monitor_of_their_own(folder, tmp_path) -> None:
    wide, plain = net(9), net(optimizer=keras.optimizers.SGD(0.05))
    for name, model in (("wide", wide), ("plain", plain)):
        model.fit(*TRAIN, batch_size=50, verbose=0)
        model.save(tmp_path / f"{name}.keras")
    names = [folder / "epoch_8.keras", tmp_path / "wide.keras", tmp_path / "plain.keras"]
    log = track(names, TRAIN, log_dir=tmp_path, **SETTINGS)
    assert [each.map for each in log.measurements] == ["adam", "adam", "sgd"]
    assert [each.state_size for each in log.measurements] == [
        2 * net().count_params(),
        2 * wide.count_params(),
        plain.count_params(),
    ]
    run = sdkeras.analyze(plain, TRAIN, batch_size=50, samples=300)
    assert log.measurements[2].value("sharpness") == pytest.approx(run.hessian.largest.value, rel=0.01)


def test_a_log_of_other_settings_is_refused(folder, tracked, tmp_path) -> None:
    place, _ = tracked
    names = [folder / "epoch_8.keras"]
    for changes, data, words in (
        ({"batch_size": 25}, TRAIN, "batch_size 50, these would be of 25"),
        ({"seed": 1}, TRAIN, "seed 0"),
        ({"tolerance": 0.1}, TRAIN, "settings"),
        ({}, (X[:300] + 1, Y[:300]), "data_digest"),
    ):
        with pytest.raises(SdkerasError, match=words):
            track(names, data, test_data=TEST, log_dir=place, **{**SETTINGS, **changes})
    watch = sdkeras.callbacks.SharpnessDimension(TRAIN, measures=("sharpness",), log_dir=tmp_path)
    net().fit(*TRAIN, verbose=0, callbacks=[watch])
    with pytest.raises(SdkerasError, match="while a model trained"):
        track(names, TRAIN, log_dir=tmp_path, **SETTINGS)
    with pytest.raises(SdkerasError, match="`model=FILE`"):
        track([folder / "epoch_8.weights.h5"], TRAIN, log_dir=tmp_path)


@pytest.mark.slow
def test_bounds_and_class_weights_at_each_checkpoint(folder, tmp_path) -> None:
    """Those of analyze, from estimated inputs; a log of other inputs or weights is refused."""
    inputs, weights = {"delta": 0.1, "zeta": 0.05, "mutual_information": 1.0, "constant": 1.0}, {0: 5.0, 3: 0.5}
    options = {**SETTINGS, "measures": ("sharpness_dimension",), "class_weight": weights}
    options |= {"bound_inputs": inputs, "estimate_bound_inputs": True}
    names = [folder / "epoch_8.keras", folder / "epoch_11.keras"]
    log = track(names, TRAIN, log_dir=tmp_path, **options)
    each = np.array([weights.get(int(label), 1.0) for label in TRAIN[1]])
    known = {"bound_inputs": inputs, "estimate_bound_inputs": True}
    run = sdkeras.analyze(keras.saving.load_model(names[1]), (*TRAIN, each), runs=3, **SETTINGS, **known)
    (found, _), (expected, _) = log.measurements[1].bounds, run.bounds
    for mine, theirs in zip(found.inputs, expected.inputs, strict=True):
        assert (mine.name, mine.estimated) == (theirs.name, theirs.estimated)
        assert mine.value == pytest.approx(theirs.value, rel=1e-5)
    sd, b = log.measurements[1].value("sharpness_dimension"), found.inputs[0].value
    assert found.terms[1].value == pytest.approx(2 * b * np.sqrt(4 * sd * np.log(10) / 300))
    assert log.measurements[1].value("bound_scale") == pytest.approx(np.sqrt(sd / 300))
    assert log.measurements[1].value("generalization_bound") == found.total
    assert log.header.class_weight == {"0": 5.0, "3": 0.5}
    again = track(names, TRAIN, log_dir=tmp_path, **{**options, "bound_inputs": dict(reversed(inputs.items()))})
    assert again.measurements == log.measurements
    other = {"bound_inputs": {**inputs, "delta": 0.2}, "estimate_bound_inputs": False, "class_weight": {0: 5.0}}
    for changes in (*({name: value} for name, value in other.items()), {"class_weight": None}):
        with pytest.raises(SdkerasError, match="choose another folder"):
            track(names, TRAIN, log_dir=tmp_path, **{**options, **changes})
    with pytest.raises(SdkerasError, match="the bounds need the sharpness dimension"):
        track(names, TRAIN, log_dir=tmp_path / "other", **{**options, "measures": ("sharpness",)})


def test_a_log_without_bounds_goes_on_with_options_left_out_in_any_way(folder, tmp_path) -> None:
    names = [folder / "epoch_8.keras"]
    log = track(names, TRAIN, log_dir=tmp_path, measures=("sharpness",), **SETTINGS)
    absent = {"bound_inputs": {}, "estimate_bound_inputs": False, "class_weight": None, "preset": "quick"}
    assert track(names, TRAIN, log_dir=tmp_path, measures=("sharpness",), **SETTINGS, **absent) == log
    assert not {*absent} & set(log.header.settings)
    assert log.header.preset == "quick"
    with pytest.raises(SdkerasError, match="choose another folder"):
        track(names, TRAIN, log_dir=tmp_path, measures=("sharpness",), **SETTINGS, preset="standard")


@pytest.mark.slow
def test_another_loss_is_used_at_every_checkpoint(folder, tmp_path) -> None:
    names = [folder / "epoch_8.keras", folder / "epoch_11.keras"]
    loss = "categorical_hinge"
    onehot = (TRAIN[0], np.eye(10, dtype="float32")[TRAIN[1]])
    log = track(names, onehot, log_dir=tmp_path, loss=loss, measures=("sharpness",), **SETTINGS)
    model = keras.saving.load_model(names[1])
    run = sdkeras.analyze(model, onehot, loss=loss, tolerance=0.9, runs=1, **SETTINGS)
    assert log.measurements[1].value("sharpness") == pytest.approx(run.hessian.largest.value, rel=0.02)
    assert log.measurements[0].value("sharpness") != pytest.approx(run.hessian.largest.value, rel=0.02)


def test_unfit_test_data_are_refused_before_anything_is_measured(folder, tmp_path) -> None:
    with pytest.raises(SdkerasError, match="test data: "):
        track([folder / "epoch_8.keras"], TRAIN, test_data=(X[:50, :3], Y[:50]), log_dir=tmp_path, **SETTINGS)
    assert not (tmp_path / "sharpness.jsonl").exists()
