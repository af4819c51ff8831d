"""One training of a study: its data and the user's model, and the files that the training leaves."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import math
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import attrs
import keras
import numpy as np
import tensorflow as tf

from sdkeras.errors import DataError, ModelError, NonFiniteError, SdkerasError
from sdkeras.files.atomic import write_whole
from sdkeras.files.class_weights import sample_weights
from sdkeras.files.dataset import load_both, load_data, load_training_data
from sdkeras.files.keras_types import Data, Model, Tensor
from sdkeras.files.user_code import USER_ERRORS, find_function, last_line
from sdkeras.results.arrays import Value
from sdkeras.runs.trajectory import Trajectory
from sdkeras.study.definition import GridRun, Study
from sdkeras.study.recorder import TrajectoryRecorder
from sdkeras.study.run_files import RunFolder, Scores, Trained
from sdkeras.training_step.settings import inner, steps_taken

# Settings of a run that the training itself uses; all others are arguments of the model's factory.
_OF_THE_TRAINING = ("batch_size", "seed")
_BATCH_SIZE = 32
# Examples of one batch where only sums over all of them are wanted.
_EVALUATED = 1024
# Relative, between a model's loss and that of its copy from the file; sums in another order differ by 1e-6 or so.
_SAME_LOSS = 1e-3
# Loss at the end of a training over that before it, beyond which it has diverged though it ended in a number.
_DIVERGED = 100.0


@attrs.frozen
class StudyData:
    """Data of training and of the test, each (x, y[, sample_weight]) or a data set in batches."""

    train: Data
    test: Data

    @classmethod
    def of(cls, study: Study) -> StudyData:
        """Reads and checks the data of a study; relative paths and modules refer to the current folder."""
        # A function that draws at random draws the same in every worker.
        keras.utils.set_random_seed(0)
        if study.test_data is None:
            data = cls(*load_both(study.data))
        else:
            train, note = load_training_data(study.data)
            if note:
                raise DataError(
                    f"[study] test_data is given, and there is a test pair already ({note.rstrip('.')}); leave it out."
                )
            data = cls(train, load_data(study.test_data))
        if isinstance(data.train, tuple):
            _check_sizes(study, data)
            with_class_weights(study, data.train)
        else:
            _check_batched(study)
        return data

    def steps_per_epoch(self, batch_size: int | None) -> int:
        """Batches of training; a data set that brings its own may not know (TypeError)."""
        if isinstance(self.train, tuple):
            return math.ceil(len(tf.nest.flatten(self.train[1])[0]) / (batch_size or _BATCH_SIZE))
        return len(self.train)

    def examples(self, count: int) -> tuple[Data, Data]:
        """(x, y) of this many examples of training (or all), the same ones for all runs."""
        x, y = self.train[:2]
        total = len(tf.nest.flatten(y)[0])
        chosen = np.sort(np.random.default_rng(0).permutation(total)[:count])
        x, y = tf.nest.map_structure(lambda leaf: leaf[chosen], (x, y))
        return x, y


def with_class_weights(study: Study, data: tuple[Data, ...]) -> tuple[Data, ...]:
    """Arrays with the sample weights that `fit` makes of class weights; a DataError where Keras' `fit` takes none."""
    if study.weights_by_class is None:
        return data
    if len(data) != 2 or tf.nest.is_nested(data[1]):
        raise DataError(
            "[study] class_weight needs data (x, y) with one array of targets and without sample weights, as Keras' "
            "fit does; multiply the class weights into sample weights, and leave class_weight out."
        )
    return (*data, sample_weights(np.asarray(data[1]), study.weights_by_class, per_step=False))


def _check_batched(study: Study) -> None:
    needs = {
        "batch sizes": "batch_size" in study.grid,
        "the distance of losses (metric data)": any(name.endswith("-data") for name in study.columns),
    }
    for what, needed in needs.items():
        if needed:
            raise DataError(f"data {study.data!r} come in batches of their own, and {what} need arrays x, y.")


def _check_sizes(study: Study, data: StudyData) -> None:
    """Refuses batches larger than the data, and recorded trajectories that would not be as long in all runs."""
    total, most = len(tf.nest.flatten(data.train[1])[0]), max(study.grid.get("batch_size", (1,)))
    if most > total:
        raise DataError(
            f"[grid] batch_size has the value {most}, and training has {total:,} samples; take smaller batches."
        )
    for batch_size in study.grid.get("batch_size", (_BATCH_SIZE,)) if study.recorded else ():
        trained = study.steps or (study.epochs or 0) * data.steps_per_epoch(batch_size)
        if trained < study.trajectory.steps:
            raise DataError(
                f"[trajectory] steps is {study.trajectory.steps:,}, and runs of batch size {batch_size} train "
                f"{trained:,} steps: trajectories would not be as long in all runs, and E_alpha grows with their "
                "length; take fewer."
            )


def shuffled(data: tuple[Data, ...], batch_size: int, seed: int) -> tf.data.Dataset:
    """Endless batches of arrays, in a new order every epoch.

    After `keras.utils.set_random_seed` Keras' own shuffling of arrays gives every epoch of a `fit` the same order.
    """
    arrays = tf.nest.map_structure(_as_keras_reads, data)
    total = len(tf.nest.flatten(arrays)[0])

    def batches_of(epoch: Tensor) -> tf.data.Dataset:
        draws = tf.random.stateless_uniform([total], tf.stack([tf.cast(seed, tf.int64), epoch]))
        return tf.data.Dataset.from_tensor_slices(tf.argsort(draws)).batch(batch_size)

    def gathered(places: Tensor) -> Tensor:
        return tf.nest.map_structure(lambda array: tf.gather(array, places), arrays)

    return tf.data.Dataset.range(np.iinfo(np.int64).max).flat_map(batches_of).map(gathered).prefetch(1)


def _as_keras_reads(values: object) -> Tensor:
    array = np.asarray(values)
    return tf.convert_to_tensor(array.astype(keras.config.floatx()) if array.dtype.kind == "f" else array)


@contextlib.contextmanager
def _failing_as(words: str, advice: str = "") -> Iterator[None]:
    """Scope of the user's code or file: what it raises becomes one message that begins with these words."""
    try:
        yield
    except SdkerasError:
        raise
    except USER_ERRORS as error:
        raise ModelError(f"{words}: {last_line(error)}{advice}") from error


def factory(study: Study) -> Callable[..., Model]:
    """The model's factory, refused unless it takes the grid's settings (but those of the training) and no others."""
    with _failing_as(f"model {study.model!r} failed", "; correct the user code."):
        make = find_function(study.model, "model")
    needed, taken = _arguments(make)
    missing = [name for name in needed if name not in study.grid]
    if missing:
        raise ModelError(
            f"the factory {study.model!r} needs {' and '.join(missing)}, which the grid lacks; name values under "
            "[grid], or give the argument a default."
        )
    for name in study.grid:
        if taken is not None and name not in taken and name not in _OF_THE_TRAINING:
            raise ModelError(
                f"the grid has {name}, which the factory {study.model!r} does not take; it takes: "
                f"{', '.join(taken) or 'nothing'}. Add the argument, or leave the setting out."
            )
    return make


def fresh_model(study: Study, settings: Mapping[str, Value], make: Callable[..., Model]) -> Model:
    """The user's compiled model, the same for the same settings whatever ran before in this process."""
    # Names of layers and variables count on in a process.
    keras.utils.clear_session()
    keras.utils.set_random_seed(settings["seed"])
    _, taken = _arguments(make)
    with _failing_as(f"model {study.model!r} failed"):
        model = make(**{name: value for name, value in settings.items() if taken is None or name in taken})
    if not isinstance(model, keras.Model):
        raise ModelError(
            f"model {study.model!r} returned an object of type {type(model).__name__}; it must return a keras.Model."
        )
    if not getattr(model, "compiled", False):
        raise ModelError(f"model {study.model!r} returned a model that is not compiled; call model.compile in it.")
    return model


def _arguments(function: Callable[..., object]) -> tuple[list[str], list[str] | None]:
    """Names of the arguments that it needs as keywords, and of all that it takes; None where it takes any."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return [], None
    named = [each for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    needed = [each.name for each in named if each.default is each.empty]
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters)
    return needed, None if takes_any else [each.name for each in named]


@attrs.frozen
class Trial:
    """One run of a study with the model's factory, the data, and the run's files."""

    study: Study
    run: GridRun
    make: Callable[..., Model]
    data: StudyData
    folder: RunFolder


def train(trial: Trial) -> Trained:
    """Trains one run and writes model.weights.h5, the trajectory if one is wanted, and last training.json."""
    started, study, folder = time.monotonic(), trial.study, trial.folder
    model = fresh_model(study, trial.run.settings, trial.make)
    optimizer = _optimizer_digest(model)
    history, ended_by, trajectory = _fit(trial, model)
    if not all(np.all(np.isfinite(variable.numpy())) for variable in model.trainable_variables):
        raise NonFiniteError("training diverged: a weight is NaN or infinite at its end")
    scores = {"training": _scores(model, trial.data.train), "test": _scores(model, trial.data.test)}
    for what, scored in scores.items():
        if not math.isfinite(scored.loss):
            raise NonFiniteError(f"training diverged: the loss over the {what} data is {scored.loss} at its end")
    if trajectory is not None:
        trajectory.save(folder.trajectory)
    _save_weights(model, folder.weights)
    trained = Trained(
        settings=trial.run.settings,
        training=study.training(),
        num_epochs=len(history["loss"]),
        num_steps=steps_taken(model.optimizer),
        ended_by=ended_by,
        train=scores["training"],
        test=scores["test"],
        code=_digest(trial.make),
        history={name: [float(value) for value in values] for name, values in history.items()},
        seconds=time.monotonic() - started,
        optimizer=optimizer,
    )
    folder.write(folder.training, trained)
    return trained


def _fit(trial: Trial, model: Model) -> tuple[dict[str, list[float]], str, Trajectory | None]:
    """Runs `fit`; returns its history, what ended it, and the iterates that were recorded."""
    study, data = trial.study, trial.data.train
    if isinstance(data, tuple):
        batch_size = trial.run.settings.get("batch_size", _BATCH_SIZE)
        per_epoch = trial.data.steps_per_epoch(batch_size)
        batches = shuffled(with_class_weights(study, data), batch_size, trial.run.settings["seed"])
        fixed = {"x": batches, "steps_per_epoch": per_epoch}
    else:
        per_epoch = len(data) if study.steps or (study.recorded and not study.stop) else 0
        fixed = {"x": data, "class_weight": study.weights_by_class}
    epochs = study.epochs or math.ceil((study.steps or 0) / per_epoch)
    watch = _Watch(study)
    recorder = _recorder(study, trial.data, 0 if study.stop else (study.steps or epochs * per_epoch))
    callbacks = [watch, *([_stop_at(model, study.steps)] if study.steps else []), *([recorder] if recorder else [])]
    with _failing_as("training failed"):
        history = model.fit(**fixed, epochs=epochs, shuffle=False, verbose=0, callbacks=callbacks).history
    if watch.diverged:
        raise NonFiniteError(f"training diverged: the loss was {watch.diverged} in epoch {len(history['loss'])}")
    ended_by = watch.ended_by or ("steps" if study.steps else "epochs")
    return history, ended_by, None if recorder is None else recorder.trajectory


def rebuilt(trial: Trial, trained: Trained) -> Model:
    """The trained model: made by the factory once more, with the weights and the optimizer's state of the run's files.

    Nothing in the folder is executed: only arrays are read from it.

    Raises:
        ModelError: The files are missing or damaged, or the factory makes another model than the one that was trained.
    """
    study, folder, train_data = trial.study, trial.folder, trial.data.train
    advice = f"Delete {folder.path}, and the run is trained again."
    model = fresh_model(study, trial.run.settings, trial.make)
    what, before, now = (
        ("optimizer", trained.optimizer, _optimizer_digest(model))
        if trained.optimizer
        else ("file", trained.code, _digest(trial.make))
    )
    if before != now:
        raise ModelError(
            f"the {what} of the factory {study.model!r} differs from when the run was trained; restore it. {advice}"
        )
    if not model.built:
        inputs = train_data[0] if isinstance(train_data, tuple) else next(iter(train_data))[0]
        model(tf.nest.map_structure(lambda leaf: leaf[:1], inputs))
    path = folder.weights if folder.weights.exists() or not folder.old_model.exists() else folder.old_model
    _load_weights(model, path, trained, advice)
    then, back = trained.train.loss, _scores(model, train_data).loss
    if not abs(back - then) <= _SAME_LOSS * max(abs(back), abs(then)):
        raise ModelError(
            f"the factory {study.model!r}, with the weights in {path}, has the training loss {back:.6g}, and had "
            f"{then:.6g} when it was trained; restore the factory and the data. {advice}"
        )
    return model


def divergence(trial: Trial, trained: Trained) -> str:
    """A sentence where a training's loss has grown beyond `_DIVERGED` times that of the untrained model, else ""."""
    try:
        before = _scores(fresh_model(trial.study, trial.run.settings, trial.make), trial.data.train).loss
    except USER_ERRORS:
        return ""
    after = trained.train.loss
    if not after > _DIVERGED * before:
        return ""
    return (
        f"training diverged: it took the loss over the training data from {before:.3g} to {after:.3g}, where curvature "
        "cannot be measured; take a smaller learning rate"
    )


def _load_weights(model: Model, path: Path, trained: Trained, advice: str) -> None:
    """Reads the arrays of a .weights.h5 file, or of the one inside a .keras file, whose configuration is not read."""
    if not path.is_file():
        raise ModelError(f"there is no file {path} with the weights of the trained model. {advice}")
    model.optimizer.build(model.trainable_variables)
    damaged = f"{path} is damaged, or its weights do not fit the model of the factory"
    with _failing_as(damaged, f" {advice}"), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.load_weights(path)
    said = " ".join(str(warning.message) for warning in caught)
    names = {model.optimizer.name, inner(model.optimizer).name}
    unread = any(f"Skipping variable loading for optimizer '{name}'" in said for name in names)
    if unread or steps_taken(model.optimizer) != trained.num_steps:
        raise ModelError(
            f"{path} does not hold the state of the factory's optimizer {type(inner(model.optimizer)).__name__} after "
            f"{trained.num_steps:,} steps. {advice}"
        )


def _save_weights(model: Model, path: Path) -> None:
    """Writes the weights and the optimizer's state, all of it or nothing."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        with _failing_as("the weights cannot be saved"):
            model.save_weights(Path(folder) / path.name)
        with (Path(folder) / path.name).open("rb") as saved:
            write_whole(path, lambda file: shutil.copyfileobj(saved, file))


def _digest(function: Callable[..., object]) -> str:
    """SHA-256 of the file that it is defined in, first 16 hex digits; "" where there is none."""
    try:
        file = inspect.getsourcefile(inspect.unwrap(function))
        return "" if file is None else hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]
    except (TypeError, OSError):
        return ""


def _optimizer_digest(model: Model) -> str:
    """SHA-256 of the optimizer's class and settings, first 16 hex digits; "" where Keras cannot serialise it."""
    try:
        config = keras.saving.serialize_keras_object(model.optimizer)
        text = json.dumps(config, sort_keys=True, default=lambda entry: type(entry).__name__)
    except USER_ERRORS:
        return ""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class _Watch(keras.callbacks.Callback):  # type: ignore[misc]  # Keras has no types
    """Ends training at a threshold, and where the loss is no number."""

    def __init__(self, study: Study) -> None:
        super().__init__()
        self._study = study
        self.ended_by = ""
        self.diverged = ""

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        logs = logs or {}
        loss = float(logs.get("loss", math.nan))
        if not math.isfinite(loss):
            self.diverged = str(loss)
            self.model.stop_training = True
        for rule, threshold in self._study.stop.items():
            quantity, _, side = rule.partition("_")
            value = loss if quantity == "loss" else _accuracy_in(logs)
            if value is None:
                raise ModelError(f"stop has {rule}, and the model is compiled without metrics=['accuracy'].")
            if value < threshold if side == "below" else value > threshold:
                self.ended_by = f"{quantity} {side} {threshold:g}"
                self.model.stop_training = True


def _stop_at(model: Model, steps: int) -> keras.callbacks.Callback:
    """A callback that ends training after a number of steps of the optimizer."""

    def on_train_batch_end(batch: int, logs: Mapping[str, float] | None = None) -> None:
        if steps_taken(model.optimizer) >= steps:
            model.stop_training = True

    return keras.callbacks.LambdaCallback(on_train_batch_end=on_train_batch_end)


class _LateRecorder(TrajectoryRecorder):
    """A recorder that does nothing before a step, since only the last iterates are kept."""

    def __init__(self, after: int, **settings: Value) -> None:
        super().__init__(**settings)
        self._after = after

    def on_train_batch_end(self, batch: int, logs: Mapping[str, float] | None = None) -> None:
        if steps_taken(self.model.optimizer) > self._after:
            super().on_train_batch_end(batch, logs)
        else:
            self._reached = steps_taken(self.model.optimizer)


def _recorder(study: Study, data: StudyData, num_steps: int) -> TrajectoryRecorder | None:
    """Records the last iterates of training; `num_steps` is 0 where its end is not known before."""
    if not study.recorded:
        return None
    settings = study.trajectory
    with_losses = any(column.endswith("-data") for column in study.recorded)
    return _LateRecorder(
        max(0, num_steps - settings.steps),
        every=settings.every,
        last=settings.steps // settings.every,
        projection=settings.projection,
        losses_on=data.examples(settings.examples) if with_losses else None,
    )


def _scores(model: Model, data: Data) -> Scores:
    if isinstance(data, tuple):
        x, y, weights = (*data, None)[:3]
        logs = model.evaluate(x, y, sample_weight=weights, batch_size=_EVALUATED, verbose=0, return_dict=True)
    else:
        logs = model.evaluate(data, verbose=0, return_dict=True)
    return Scores(float(logs["loss"]), _accuracy_in(logs))


def _accuracy_in(logs: Mapping[str, Value]) -> float | None:
    """The accuracy that the model is compiled with, unweighted; None without one."""
    for name, value in logs.items():
        if name in ("accuracy", "acc") or name.endswith("_accuracy"):
            return float(value)
    return None
