"""What other callbacks see, when measurements are skipped, and what a failing one does; the measuring is a stand-in."""

import csv
import functools
import logging
from pathlib import Path

import attrs
import keras
import numpy as np
import pytest
import tensorflow as tf

from sample_log import FOUND, HEADER
from sdkeras.callbacks import SharpnessDimension, sharpness_dimension
from sdkeras.errors import DataError, ModelError, SdkerasError
from sdkeras.results.log import Header, Measurement, read_run_log
from sdkeras.results.measured import Measured
from sdkeras.runs.monitor import MEASURES, check_measures
from sdkeras.training_step.settings import steps_taken
from small_nets import X, Y, net

KEYS = {*MEASURES, "bound_scale", "sharpness_age"}
NAN = pytest.approx(float("nan"), nan_ok=True)


class Clock:
    """Seconds that pass when it is told so."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


class StandIn:
    """Measures 1, 2, 3, ... times `scale`; `cost` seconds each, `compilation` once."""

    clock = Clock()
    cost = compilation = 0.0
    scale = 1.0
    made = 0
    error: dict[int, BaseException]

    def __init__(self, model, data, *, measures, **options) -> None:
        type(self).made += 1
        self.clock.seconds += self.compilation
        self.model, self.measures, self.options, self.count = model, measures, options, 0
        _, self.keys = check_measures(measures, options["bound_inputs"], options["estimate_bound_inputs"])
        type(self).given = self.given = []

    def header(self) -> Header:
        return attrs.evolve(HEADER, measures=self.measures)

    def measure(self, *, epoch, metrics, seconds) -> Measurement:
        self.count += 1
        self.given.append(seconds)
        self.out_of_time = seconds is not None and seconds < self.cost
        self.clock.seconds += seconds if self.out_of_time else self.cost
        if self.count in self.error:
            raise self.error[self.count]
        values = {name: Measured(self.scale * self.count, True) for name in self.keys}
        step = steps_taken(self.model.optimizer)
        return attrs.evolve(FOUND, source="fit", step=step, epoch=epoch, values=values, metrics=dict(metrics), notes=())

    def training_loss(self) -> tuple[float, None]:
        return 1.0, None

    def answer(self, about: str) -> None:
        return None


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    made = type("OneStandIn", (StandIn,), {"clock": Clock(), "error": {}})
    monkeypatch.setattr(sharpness_dimension, "Monitor", made)
    return made


class Tick(keras.callbacks.Callback):
    """An epoch of training takes ten seconds."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def on_epoch_begin(self, epoch: int, logs: object = None) -> None:
        self.clock.seconds += 10.0


def watch(clock: Clock | None = None, **options: object) -> SharpnessDimension:
    callback = SharpnessDimension((X, Y), **{"batch_size": 16, "max_overhead": None, **options})
    callback.spacing.clock = clock or callback.spacing.clock
    return callback


@functools.cache
def compiled() -> keras.Model:
    """Its training step is traced once for all tests."""
    return net(keras.optimizers.SGD(0.1))


def fresh() -> keras.Model:
    """That model with no step counted, as for a new training; stand-ins look at nothing else."""
    model = compiled()
    model.optimizer.iterations.assign(0)
    model._initial_epoch = 0
    model.stop_training = False
    return model


def fit(*callbacks: keras.callbacks.Callback, model: keras.Model | None = None, epochs: int = 3, **options: object):
    model = model or fresh()
    options = {"batch_size": 16, "verbose": 0, **options}
    return model.fit(X, Y, epochs=epochs, callbacks=list(callbacks), **options).history


def test_history_and_csv_hold_every_key_every_epoch(stand_in, tmp_path: Path) -> None:
    history = fit(watch(), keras.callbacks.CSVLogger(tmp_path / "log.csv"), validation_data=(X, Y))
    assert set(history) > KEYS
    assert history["sharpness"] == [1.0, 2.0, 3.0]
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert [float(row["sharpness_ratio"]) for row in rows] == [1.0, 2.0, 3.0]
    assert [float(row["sharpness_age"]) for row in rows] == [0, 0, 0]


def test_tensorboard_holds_every_key(stand_in, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tf.summary needs it")
    fit(watch(), keras.callbacks.TensorBoard(tmp_path))
    found: dict[str, list[float]] = {}
    for file in (tmp_path / "train").glob("events.*"):
        for record in tf.data.TFRecordDataset(str(file)):
            for value in tf.compat.v1.Event.FromString(record.numpy()).summary.value:
                if value.tag.startswith("epoch_"):
                    found.setdefault(value.tag, []).append(tf.make_ndarray(value.tensor).item())
    assert found["epoch_sharpness_codimension"] == [1.0, 2.0, 3.0]
    assert {f"epoch_{key}" for key in KEYS} <= set(found)


def test_only_the_measures_asked_for_are_written(stand_in) -> None:
    history = fit(watch(measures=("hessian_trace", "sharpness")))  # and without SD no scale of the bounds
    assert {*KEYS} & set(history) == {"sharpness", "hessian_trace", "sharpness_age"}


def test_early_stopping_and_checkpoints_watch_the_keys(stand_in, tmp_path: Path) -> None:
    stand_in.scale = -1.0
    stopping = keras.callbacks.EarlyStopping("sharpness_ratio", mode="max", patience=1)
    best = keras.callbacks.ModelCheckpoint(
        str(tmp_path / "{epoch}-{sharpness:.0f}.keras"), monitor="sharpness", mode="min", save_best_only=True
    )
    history = fit(watch(), stopping, best, epochs=10)
    assert history["sharpness_ratio"] == [-1.0, -2.0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1--1.keras", "2--2.keras"]


def test_epochs_are_skipped_until_the_share_of_time_allows_the_next(stand_in, caplog) -> None:
    stand_in.compilation, stand_in.cost = 4.0, 5.0
    callback = watch(stand_in.clock, max_overhead=0.2)
    history = fit(callback, Tick(stand_in.clock), epochs=9)
    # Epoch 1: 5 s spent, beside 4 s of compilation. The next needs (5 + 5)/0.2 = 50 s of training, epoch 5; then
    # (10 + 5)/0.2 = 75 s, epoch 8.
    assert history["sharpness_age"] == [0, 1, 2, 3, 0, 1, 2, 0, 1]
    assert history["sharpness"] == [1, NAN, NAN, NAN, 2, NAN, NAN, 3, NAN]
    assert history["bound_scale"] == [1, NAN, NAN, NAN, 2, NAN, NAN, 3, NAN]
    assert callback.spacing.spent <= 0.2 * callback.spacing.training
    assert callback.spacing.training == 90.0
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1
    assert "have taken 5 s so far" in said[0]
    assert "the last one 5 s" in said[0]
    assert "waits for 30 s more" in said[0]


def test_a_measurement_that_grows_stays_within_the_share_and_gets_more_time_later(stand_in) -> None:
    stand_in.cost = 1.0
    callback = watch(stand_in.clock, max_overhead=0.1)

    class Grow(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: object = None) -> None:
            stand_in.cost = 3.5
            assert epoch == 0 or callback.spacing.spent <= 0.1 * callback.spacing.training + 1e-9

    history = fit(callback, Grow(), Tick(stand_in.clock), epochs=10)
    # Epoch 1: 1 s. Epoch 2: (1 + 1)/0.1 = 20 s of training, and the second has 1 s, too few; so has the third 2 s at
    # 40 s, and the fourth would have 4 s at 80 s and takes 3.5.
    assert history["sharpness_age"] == [0, 0, 1, 0, 1, 2, 3, 0, 1, 2]
    assert stand_in.given == [None, pytest.approx(1.0), pytest.approx(2.0), pytest.approx(4.0)]


def test_time_between_two_fits_is_not_training(stand_in) -> None:
    stand_in.cost = 5.0
    callback = watch(stand_in.clock, max_overhead=0.5)
    model = fresh()
    fit(callback, Tick(stand_in.clock), model=model, epochs=1)
    stand_in.clock.seconds += 1000.0
    history = fit(callback, Tick(stand_in.clock), model=model, epochs=3, initial_epoch=1)
    assert history["sharpness_age"] == [0, 0]
    assert callback.spacing.training == 30.0
    assert stand_in.made == 1


def test_a_failing_measurement_is_told_and_training_goes_on(stand_in, caplog, tmp_path: Path) -> None:
    stand_in.error = {2: ValueError("the layer\nfell over")}
    history = fit(watch(log_dir=tmp_path), epochs=3)
    assert history["sharpness"][0] == 1.0
    assert np.isnan(history["sharpness"][1])
    assert history["sharpness"][2] == 3.0
    assert history["sharpness_age"] == [0, 0, 0]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "ValueError: the layer fell over" in caplog.text
    log = read_run_log(tmp_path)
    assert "the layer fell over" in log.measurements[1].notes[0]
    assert np.isnan(log.measurements[1].value("sharpness"))


def test_ctrl_c_in_a_measurement_goes_through(stand_in) -> None:
    stand_in.error = {2: KeyboardInterrupt()}
    callback = watch()
    with pytest.raises(KeyboardInterrupt):
        fit(callback)
    assert len(callback.measurements) == 1
    another = net(keras.optimizers.SGD(0.1))
    assert fit(callback, model=another, epochs=1)["sharpness"] == [1.0]  # another model, another monitor


def test_ctrl_c_while_compiling_leaves_the_model_to_be_measured(stand_in, monkeypatch: pytest.MonkeyPatch) -> None:
    callback, model = watch(max_overhead=1e-9), fresh()

    def interrupted(self, *given: object, **named: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(stand_in, "__init__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fit(callback, model=model)
    assert fit(callback, model=model)["sharpness_age"] == [0, 1, 2]


def test_a_model_compiled_anew_gets_functions_of_its_own(stand_in) -> None:
    model, callback = net(keras.optimizers.SGD(0.1)), watch(max_overhead=1e-9)
    fit(callback, model=model)
    assert stand_in.made == 1
    model.compile(keras.optimizers.SGD(0.1), model.loss)
    assert fit(callback, model=model)["sharpness_age"] == [0, 1, 2]  # measured at once, whatever the limit
    assert stand_in.made == 2


@pytest.mark.parametrize(("per_execution", "expected"), [(1, [4, 8, 12, 16]), (3, [6, 9, 12, 18])])
def test_steps_are_counted_by_the_optimizer(stand_in, per_execution: int, expected: list[int], tmp_path: Path) -> None:
    model = fresh() if per_execution == 1 else net(keras.optimizers.SGD(0.1), steps_per_execution=per_execution)
    callback = watch(every=4, log_dir=tmp_path)
    history = fit(callback, model=model)  # 6 steps an epoch
    assert [found.step for found in callback.measurements] == expected
    assert callback.measurements[0].epoch == 0
    assert [found.step for found in read_run_log(tmp_path).measurements] == expected
    by_epoch = [sum(step <= 6 * (epoch + 1) for step in expected) for epoch in range(3)]
    assert history["sharpness"] == by_epoch  # each epoch has one


def test_an_epoch_shorter_than_the_steps_is_measured_the_first_time(stand_in) -> None:
    callback = watch(every=100)
    history = fit(callback)
    assert history["sharpness_age"] == [0, 1, 2]
    assert [found.step for found in callback.measurements] == [6]


def test_batches_are_followed_only_where_steps_are_asked_for(stand_in) -> None:
    """Keras waits for the device between batches for whoever has a hook of its own there."""
    assert getattr(watch().on_train_batch_end, "_is_default", False)
    assert not getattr(watch(every=5).on_train_batch_end, "_is_default", False)


def test_backup_and_restore(stand_in, tmp_path: Path) -> None:
    class Crash(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: object = None) -> None:
            if epoch == 1:
                raise RuntimeError("power cut")

    backup, run = keras.callbacks.BackupAndRestore(tmp_path / "backup"), tmp_path / "run"
    with pytest.raises(RuntimeError, match="power cut"):
        fit(watch(log_dir=run), Crash(), backup, epochs=4)
    callback = watch(log_dir=run)
    history = fit(callback, keras.callbacks.BackupAndRestore(tmp_path / "backup"), epochs=4)
    assert len(history["sharpness"]) == 3
    assert [found.step for found in callback.measurements] == [12, 18, 24]
    assert [found.step for found in read_run_log(run).measurements] == [6, 12, 12, 18, 24]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every is 0; it must be 'epoch' or a number of steps"),
        ({"every": "batch"}, "every is 'batch'"),
        ({"max_overhead": 0.0}, "max_overhead is 0.0; it must be positive, or None"),
        ({"measures": ("sharpnes",)}, "'sharpnes' is not a measure; there are: sharpness, sharpness_ratio"),
        ({"measures": ()}, "no measure was requested"),
        ({"samples": 0}, "samples is 0"),
        ({"tolerance": 2.0}, "tolerance is 2.0"),
        ({"device": "gpu"}, "there is no device 'gpu' here"),
        ({"micro_batch": 0}, "micro_batch is 0; it must be a positive whole number"),
        ({"num_measurements": 0}, "num_measurements is 0; it must be at least 1"),
        ({"class_weight": {1: -1.0}}, "gives class 1 the weight -1.0"),
        ({"bound_inputs": {"gamma": 1.0}}, "a bound has no input 'gamma'"),
        ({"bound_inputs": {"delta": 0.1}, "measures": ("sharpness",)}, "the bounds need the sharpness dimension"),
        ({"report": "/dev/null/run"}, "/dev/null/run cannot be made: Not a directory"),
        ({"log_dir": "/dev/null/run"}, "cannot be written: Not a directory; choose another folder"),
    ],
)
def test_wrong_arguments_are_refused_at_once(options: dict[str, object], message: str) -> None:
    with pytest.raises(SdkerasError, match=message.replace("(", r"\(")):
        watch(**options)


def test_data_that_do_not_fit_together_are_refused_at_once() -> None:
    with pytest.raises(DataError, match="different numbers of samples"):
        SharpnessDimension((X, Y[:-1]))
    with pytest.raises(DataError, match="larger than the data"):
        SharpnessDimension((X, Y), batch_size=1000)


def test_a_log_that_cannot_be_written_any_more_is_told_once(stand_in, caplog, tmp_path: Path) -> None:
    callback = watch(log_dir=tmp_path / "run")
    (tmp_path / "run" / "sharpness.jsonl").unlink()
    (tmp_path / "run").rmdir()
    assert fit(callback)["sharpness"] == [1.0, 2.0, 3.0]
    assert len(caplog.records) == 1
    assert "cannot be written" in caplog.text


def test_carry_forward_repeats_the_last_numbers_for_early_stopping(stand_in) -> None:
    stand_in.cost, stand_in.scale = 4.0, -1.0  # (4 + 4)/0.1 = 80 s of training: epoch 8

    def run(**options: object) -> dict[str, list[float]]:
        callback = watch(stand_in.clock, max_overhead=0.1, **options)
        stopping = keras.callbacks.EarlyStopping("sharpness", mode="min", patience=2)
        return fit(callback, stopping, Tick(stand_in.clock), epochs=9)

    carried = run(carry_forward=True)
    assert carried["sharpness"] == [-1, -1, -1]  # no better for two epochs
    assert carried["sharpness_age"] == [0, 1, 2]
    blank = run()
    assert blank["sharpness"] == [-1, NAN, NAN]  # NaN is no improvement either


@pytest.mark.parametrize("carry_forward", [False, True])
def test_the_columns_are_the_same_every_epoch_where_the_first_is_not_measured(
    stand_in, tmp_path: Path, carry_forward: bool
) -> None:
    inputs = {"loss_bound": 1.0, "lipschitz": 1.0, "delta": 0.1, "stability": 0.1}
    callback = watch(num_measurements=1, bound_inputs=inputs, carry_forward=carry_forward)
    fit(callback, keras.callbacks.CSVLogger(tmp_path / "log.csv"))
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert [float(row["generalization_bound"]) for row in rows] == [NAN, NAN, 1.0]
    assert [float(row["bound_scale"]) for row in rows] == [NAN, NAN, 1.0]
    assert [float(row["sharpness_age"]) for row in rows] == [1, 2, 0]


@pytest.mark.parametrize(
    ("options", "keys"),
    [
        ({}, {"bound_scale"}),
        ({"bound_inputs": {"delta": 0.1}}, {"bound_scale"}),
        ({"bound_inputs": {"delta": 0.1, "stability": 0.1}}, {"bound_scale"}),
        (
            {"bound_inputs": {"delta": 0.1, "stability": 0.1}, "estimate_bound_inputs": True},
            {"bound_scale", "generalization_bound"},
        ),
        ({"measures": ("sharpness",)}, set()),
    ],
)
def test_keys_of_the_bounds_are_there_where_they_can_be_known(
    stand_in, options: dict[str, object], keys: set[str]
) -> None:
    assert {"bound_scale", "generalization_bound"} & set(fit(watch(**options), epochs=1)) == keys


@pytest.mark.parametrize(
    ("count", "epochs", "expected"),
    [(1, 9, [9]), (2, 9, [1, 9]), (3, 9, [1, 5, 9]), (4, 9, [1, 4, 7, 9]), (9, 9, list(range(1, 10)))],
)
def test_a_number_of_measurements_is_spread_whatever_they_cost(
    stand_in, count: int, epochs: int, expected: list[int]
) -> None:
    stand_in.cost = 1000.0
    callback = watch(stand_in.clock, max_overhead=1e-3, num_measurements=count)
    history = fit(callback, Tick(stand_in.clock), epochs=epochs)
    assert [found.epoch for found in callback.measurements] == expected
    assert [age == 0 for age in history["sharpness_age"]] == [epoch in expected for epoch in range(1, epochs + 1)]
    assert set(stand_in.given) == {None}  # each may take its time


@pytest.mark.parametrize("known", [True, False])
def test_a_number_of_measurements_within_epochs(stand_in, known: bool) -> None:
    """24 steps in 4 epochs; a generator does not say how many steps an epoch has until the first has ended."""
    callback = watch(every=2, num_measurements=5)
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(16)
    data = data if known else data.filter(lambda x, y: True)
    fresh().fit(data, epochs=4, verbose=0, callbacks=[callback])
    measured = callback.measurements
    if known:
        assert [found.step for found in measured] == [2, 8, 14, 20, 24]
    else:  # Keras counts a step too many at the end of data of unknown length
        assert [found.epoch for found in measured] == [0, 1, 2, 2, 4]


def test_more_measurements_than_there_are_opportunities(stand_in, caplog) -> None:
    callback = watch(num_measurements=7)
    assert fit(callback)["sharpness"] == [1.0, 2.0, 3.0]
    assert "3 of num_measurements=7 were made" in caplog.text
    assert "every is 'epoch'" in caplog.text


def test_a_number_of_measurements_counts_each_fit(stand_in) -> None:
    callback, model = watch(num_measurements=2), fresh()
    fit(callback, model=model, epochs=5)
    fit(callback, model=model, epochs=9, initial_epoch=5)
    assert [found.epoch for found in callback.measurements] == [1, 5, 6, 9]


def test_a_monitor_that_cannot_be_made_is_told_once_and_not_tried_every_epoch(stand_in, monkeypatch, caplog) -> None:
    """Compilation is no overhead, unless it is for nothing."""
    tries = []

    def refuse(*given: object, **named: object) -> None:
        tries.append(stand_in.clock.seconds)
        stand_in.clock.seconds += 4.0
        raise ModelError("no such model")

    monkeypatch.setattr(sharpness_dimension, "Monitor", refuse)
    history = fit(watch(stand_in.clock, max_overhead=0.1), Tick(stand_in.clock), epochs=9)
    assert len(tries) == 2  # 8 s with the next: 80 s of training
    assert np.isnan(history["sharpness"]).all()
    assert len([record for record in caplog.records if "no such model" in record.getMessage()]) == 1
