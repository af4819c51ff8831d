"""One training of a study: the user's model, and the files that the training leaves."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import attrs
import keras
import numpy as np
import tensorflow as tf

from sdkeras.errors import ModelError, NonFiniteError, SdkerasError
from sdkeras.files.atomic import write_whole
from sdkeras.files.keras_types import Data, Model
from sdkeras.files.user_code import USER_ERRORS, find_function, last_line
from sdkeras.results.arrays import Value
from sdkeras.study.data import StudyData, shuffled, with_class_weights
from sdkeras.study.definition import OF_THE_RUNNER, GridRun, Study
from sdkeras.study.measures import columns
from sdkeras.study.recorder import TrajectoryRecorder
from sdkeras.study.run_files import RunFolder, Scores, Trained
from sdkeras.training_step.settings import inner

# Examples of one batch where only sums over all of them are wanted.
_EVALUATED = 1024
# Relative, between a model's loss and that of its copy from the file; sums in another order differ by 1e-6 or so.
_SAME_LOSS = 1e-3


def factory(study: Study) -> Callable[..., Model]:
    """The model's factory, which takes all settings of the grid but those of the runner.

    Raises:
        SdkerasError: There is none.
        ModelError: Its code fails, it does not take a setting of the grid, or it needs one that the grid lacks.
    """
    try:
        make = find_function(study.model, Path.cwd().resolve(), "model")
    except SdkerasError:
        raise
    except USER_ERRORS as error:
        raise ModelError(f"model {study.model!r} failed: {last_line(error)}; correct the user code.") from error
    taken = _arguments(make)
    missing = [name for name in _arguments(make, needed=True) or () if name not in study.grid]
    if missing:
        raise ModelError(
            f"the factory {study.model!r} needs {' and '.join(missing)}, which the grid lacks; name values under "
            "[grid], or give the argument a default."
        )
    for name in study.grid:
        if taken is not None and name not in taken and name not in OF_THE_RUNNER:
            raise ModelError(
                f"the grid has {name}, which the factory {study.model!r} does not take; it takes: "
                f"{', '.join(taken) or 'nothing'}. Add the argument, or leave the setting out."
            )
    return make


@attrs.frozen
class Trial:
    """One run of a study with the model's factory, the data, and the run's files."""

    study: Study
    run: GridRun
    make: Callable[..., Model]
    data: StudyData
    folder: RunFolder

    def fresh_model(self) -> Model:
        """The factory's model, the same for the same settings whatever ran before in this process."""
        # Names of layers and variables count on in a process.
        keras.utils.clear_session()
        keras.utils.set_random_seed(self.run.settings["seed"])
        return made_model(self.study, self.run.settings, self.make)


def train(trial: Trial) -> Trained:
    """Trains one run and writes model.weights.h5, the trajectory if one is wanted, and last training.json.

    The same settings give the same weights whatever ran before in this process.

    Raises:
        SdkerasError: The user's code failed, or training diverged.
    """
    started, study, folder = time.monotonic(), trial.study, trial.folder
    model = trial.fresh_model()
    optimizer = _optimizer_digest(model)
    watch, recorder, history = _fit(trial, model)
    scores = _final_scores(model, trial.data)
    if recorder is not None and recorder.trajectory is not None:
        recorder.trajectory.save(folder.trajectory)
    _save_weights(model, folder.weights)
    trained = Trained(
        settings=trial.run.settings,
        training=study.training(),
        num_epochs=len(history["loss"]),
        num_steps=_steps_of(model),
        ended_by=watch.ended_by or ("steps" if study.steps else "epochs"),
        train=scores[0],
        test=scores[1],
        code=_digest(trial.make),
        history={name: [float(value) for value in values] for name, values in history.items()},
        seconds=time.monotonic() - started,
        optimizer=optimizer,
    )
    folder.write(folder.training, trained)
    return trained


def _fit(trial: Trial, model: Model) -> tuple[_Watch, TrajectoryRecorder | None, dict[str, list[float]]]:
    """Runs `fit`; returns its callbacks and history."""
    study, data = trial.study, trial.data.train
    if isinstance(data, tuple):
        batch_size = trial.run.settings.get("batch_size", 32)
        batches, per_epoch = shuffled(with_class_weights(study, data), batch_size, trial.run.settings["seed"])
        fixed = {"x": batches, "steps_per_epoch": per_epoch}
    else:
        per_epoch = len(data) if study.steps or (study.records and not study.stop) else 0
        fixed = {"x": data, "class_weight": study.weights_by_class}
    epochs = study.epochs or math.ceil((study.steps or 0) / per_epoch)
    watch = _Watch(study)
    recorder = _recorder(study, trial.data, 0 if study.stop else (study.steps or epochs * per_epoch))
    callbacks = [watch, *([_StopAt(study.steps)] if study.steps else []), *([recorder] if recorder else [])]
    try:
        history = model.fit(**fixed, epochs=epochs, shuffle=False, verbose=0, callbacks=callbacks).history
    except SdkerasError:
        raise
    except USER_ERRORS as error:
        raise ModelError(f"training failed: {last_line(error)}") from error
    if watch.diverged:
        raise NonFiniteError(f"training diverged: the loss was {watch.diverged} in epoch {len(history['loss'])}")
    return watch, recorder, history


def _final_scores(model: Model, data: StudyData) -> tuple[Scores, Scores]:
    """Scores over the data of training and of the test."""
    if not all(np.all(np.isfinite(variable.numpy())) for variable in model.trainable_variables):
        raise NonFiniteError("training diverged: a weight is NaN or infinite at its end")
    scores = _scores(model, data.train), _scores(model, data.test)
    for what, scored in zip(("training", "test"), scores, strict=True):
        if not math.isfinite(scored.loss):
            raise NonFiniteError(f"training diverged: the loss over the {what} data is {scored.loss} at its end")
    return scores


def rebuilt(trial: Trial, trained: Trained) -> Model:
    """The trained model: made by the factory once more, with the weights and the optimizer's state of the run's files.

    Nothing in the folder is executed: only arrays are read from it.

    Raises:
        ModelError: The files are missing or damaged, or the factory makes another model than the one that was trained.
    """
    study, folder, train_data = trial.study, trial.folder, trial.data.train
    advice = f"Delete {folder.path}, and the run is trained again."
    model = trial.fresh_model()
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


def _steps_of(model: Model) -> int:
    return int(model.optimizer.iterations.numpy())


def _load_weights(model: Model, path: Path, trained: Trained, advice: str) -> None:
    """Reads the arrays of a .weights.h5 file, or of the one inside a .keras file, whose configuration is not read."""
    if not path.is_file():
        raise ModelError(f"there is no file {path} with the weights of the trained model. {advice}")
    model.optimizer.build(model.trainable_variables)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.load_weights(path)
    except USER_ERRORS as error:
        raise ModelError(
            f"{path} is damaged, or its weights do not fit the model of the factory: {last_line(error)} {advice}"
        ) from error
    names = {model.optimizer.name, inner(model.optimizer).name}
    unread = any(
        f"Skipping variable loading for optimizer '{name}'" in str(w.message) for w in caught for name in names
    )
    if unread or _steps_of(model) != trained.num_steps:
        raise ModelError(
            f"{path} does not hold the state of the factory's optimizer {type(inner(model.optimizer)).__name__} after "
            f"{trained.num_steps:,} steps. {advice}"
        )


def made_model(study: Study, settings: Mapping[str, Value], make: Callable[..., Model]) -> Model:
    """The user's compiled model for these settings.

    Raises:
        ModelError: The factory failed, or returned something else.
    """
    taken = _arguments(make)
    arguments = {name: value for name, value in settings.items() if taken is None or name in taken}
    try:
        model = make(**arguments)
    except USER_ERRORS as error:
        raise ModelError(f"model {study.model!r} failed: {last_line(error)}") from error
    if not isinstance(model, keras.Model):
        raise ModelError(
            f"model {study.model!r} returned an object of type {type(model).__name__}; it must return a keras.Model."
        )
    if not getattr(model, "compiled", False):
        raise ModelError(f"model {study.model!r} returned a model that is not compiled; call model.compile in it.")
    return model


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


def _arguments(function: Callable[..., object], *, needed: bool = False) -> list[str] | None:
    """Names that it takes as keywords, or of those that it `needed`; None where it takes any."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    if not needed and any(each.kind is each.VAR_KEYWORD for each in parameters):
        return None
    return [
        each.name
        for each in parameters
        if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY) and (each.default is each.empty or not needed)
    ]


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
            value = loss if quantity == "loss" else accuracy_in(logs)
            if value is None:
                raise ModelError(f"stop has {rule}, and the model is compiled without metrics=['accuracy'].")
            if value < threshold if side == "below" else value > threshold:
                self.ended_by = f"{quantity} {side} {threshold:g}"
                self.model.stop_training = True


class _StopAt(keras.callbacks.Callback):  # type: ignore[misc]
    """Ends training after a number of steps of the optimizer."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self._steps = steps

    def on_train_batch_end(self, batch: int, logs: Mapping[str, float] | None = None) -> None:
        if int(self.model.optimizer.iterations.numpy()) >= self._steps:
            self.model.stop_training = True


class _LateRecorder(TrajectoryRecorder):
    """A recorder that does nothing before a step, since only the last iterates are kept."""

    def __init__(self, after: int, **settings: Value) -> None:
        super().__init__(**settings)
        self._after = after

    def on_train_batch_end(self, batch: int, logs: Mapping[str, float] | None = None) -> None:
        if self._iteration() > self._after:
            super().on_train_batch_end(batch, logs)
        else:
            self._reached = self._iteration()


def _recorder(study: Study, data: StudyData, num_steps: int) -> TrajectoryRecorder | None:
    """Records the last iterates of training; `num_steps` is 0 where its end is not known before."""
    if not study.records:
        return None
    settings = study.trajectory
    with_losses = any("-backward-data" in column for column in columns(study.measures))
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
    return Scores(float(logs["loss"]), accuracy_in(logs))


def accuracy_in(logs: Mapping[str, Value]) -> float | None:
    """The accuracy that the model is compiled with, unweighted; None without one."""
    for name, value in logs.items():
        if name in ("accuracy", "acc") or name.endswith("_accuracy"):
            return float(value)
    return None


def _save_weights(model: Model, path: Path) -> None:
    """Writes the weights and the optimizer's state, all of it or nothing."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        try:
            model.save_weights(Path(folder) / path.name)
        except USER_ERRORS as error:
            raise ModelError(f"the weights cannot be saved: {last_line(error)}") from error
        with (Path(folder) / path.name).open("rb") as saved:
            write_whole(path, lambda file: shutil.copyfileobj(saved, file))
