"""Saved checkpoints of a training measured in their order, resumable: a monitor, a run log, and what joins them."""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import attrs
import keras
import tensorflow as tf

from sdkeras.errors import DataError, Interrupted, ModelError, SdkerasError, check_options
from sdkeras.files import models
from sdkeras.files.archive import Nested, load_checkpoint, save_checkpoint
from sdkeras.files.atomic import shown
from sdkeras.files.checkpoints import WEIGHTS_SUFFIX, digest, in_order
from sdkeras.files.data_fit import check_data
from sdkeras.files.keras_types import Config, Data, Model
from sdkeras.operators import minibatches
from sdkeras.operators.batch_loss import keras_structure
from sdkeras.operators.minibatches import Source
from sdkeras.reporting.progress_bar import telling
from sdkeras.reporting.trackers.reporter import Reporter, reporting
from sdkeras.results import log as run_log
from sdkeras.results.arrays import Value
from sdkeras.results.log import Measurement, RunLog
from sdkeras.results.progress import Progress
from sdkeras.runs import losses
from sdkeras.runs.monitor import (
    MEASURES,
    Monitor,
    check_measures,
    failed_measurement,
)
from sdkeras.runs.options import DEFAULT_PRESET, OPTION_NAMES, measurement_options

_STATE = "sharpness-state.npz"
# Of the checkpoint measured last and the one before: a kill may come before or after its line in the log.
_KEPT = 2


def track(  # noqa: PLR0913  # public: each argument is one that a user names
    checkpoints: Sequence[str | os.PathLike[str]],
    data: Data,
    *,
    log_dir: str | os.PathLike[str],
    model: str | os.PathLike[str] | None = None,
    test_data: Data = None,
    measures: Sequence[str] = MEASURES,
    custom_objects: Mapping[str, object] | None = None,
    safe_mode: bool = True,
    progress: Callable[[Progress], None] | bool | None = None,
    report_to: str | Sequence[str] = (),
    **options: Value,
) -> RunLog:
    """Measures checkpoints one after the other and keeps the numbers in a run log.

    Compiled and verified once for all checkpoints of one architecture, loss and optimizer; minibatches, probes and
    masks are the same at each, and eigenvectors start from those of the previous checkpoint. If killed and
    called again, it measures the remaining ones, with the same numbers. A checkpoint is identified by
    its content: one that has changed is measured again. One that cannot be measured gives NaN and a note, and is tried
    again by the next call.

    Args:
        checkpoints: .keras, .h5 or .weights.h5 files, folders and patterns, see `sdkeras.files.checkpoints.in_order`.
        data: The training data, as in `sdkeras.analyze`.
        log_dir: Folder for `sharpness.jsonl` and the state of a resumed call; made if missing.
        model: For .weights.h5: file of their compiled model.
        test_data: Also evaluate loss and metrics on both, in inference mode: the generalization gap.
        measures: Keys to measure; see `sdkeras.callbacks.SharpnessDimension`.
        custom_objects: The user's own classes.
        safe_mode: Keras' `safe_mode`, see `sdkeras.files.models.load_model`.
        progress: Function called with the name of the present stage; True shows a bar.
        report_to: Trackers that get each checkpoint's numbers, loss and metrics included, and the page at the end;
            see `sdkeras.callbacks.SharpnessDimension`. Of one that was measured by an earlier call they get no
            spectrum, which no log holds.
        **options: Options of `sdkeras.runs.monitor.Monitor`; bound_inputs and estimate_bound_inputs for the
            generalization bounds at each checkpoint, class_weight where `fit` had one.

    Returns:
        The log, with one measurement for each of the checkpoints, in order.

    Raises:
        SdkerasError: No checkpoint, unusable data or options, a log of other settings or that another process writes,
            a tracker that cannot be reported to, or not one checkpoint could be measured.
        KeyboardInterrupt: Ctrl-C; what was measured is in the log.
    """
    check_options("track", options, (*inspect.signature(track).parameters, *OPTION_NAMES))
    paths = in_order(checkpoints)
    if model is None and any(path.endswith(WEIGHTS_SUFFIX) for path in paths):
        raise SdkerasError(f"{WEIGHTS_SUFFIX} files hold weights only; give the model they belong to (`model=FILE`).")
    names, keys = check_measures(measures, options.get("bound_inputs"), bool(options.get("estimate_bound_inputs")))
    load = functools.partial(models.load_model, custom_objects=dict(custom_objects or {}), safe_mode=safe_mode)
    run = _Tracking(
        place=run_log.place_in(log_dir),
        load=load,
        base=None if model is None else os.fspath(model),
        source=_source(data, options),
        data=data,
        test=None if test_data is None else _source(test_data, options),
        measures=names,
        keys=keys,
        options=options,
    )
    try:
        with telling(progress) as run.progress, keras.saving.custom_object_scope(dict(custom_objects or {})):
            with contextlib.closing(run_log.claim(run.place)), reporting(report_to, run.place.parent) as run.reporter:
                return run.over(paths)
    except OSError as error:
        raise SdkerasError(f"{shown(run.place)} cannot be written: {error.strerror or error}.") from error


@attrs.define(eq=False)
class _Tracking:
    """One call of `track`.

    Attributes:
        base: File of the model that files of weights belong to, or None; `of_weights` is that model, once it is read.
        states: What the last measurements left for the next, see `_keep`.
        waiting: Failures before there is a monitor, and with it a header.
        before: Digest of the checkpoint measured last.
    """

    place: Path
    load: Callable[[str], Model]
    base: str | None
    source: Source
    data: Data
    test: Source | None
    measures: tuple[str, ...]
    keys: tuple[str, ...]
    options: dict[str, Value]
    progress: Callable[[Progress], None] | None = None
    reporter: Reporter = attrs.field(factory=Reporter)
    of_weights: Model = None
    monitor: Monitor | None = None
    states: list[Nested] = attrs.field(factory=list)
    waiting: list[Measurement] = attrs.field(factory=list)
    first_error: SdkerasError | None = None
    before: str = ""

    def over(self, paths: list[str]) -> RunLog:
        done = self._done()
        measurements: list[Measurement] = []
        for place, path in enumerate(paths):
            content = digest(path)
            known = done.get(content, {})
            if not known:
                if self.progress is not None:
                    words = f"checkpoint {place + 1} of {len(paths)}: {os.path.basename(path)}"
                    self.progress(Progress(stage=words, num_hvps=0))
                last = measurements[-1].step if measurements else 0
                measurements.append(self._measured(path, content, place, last))
            elif path in known:
                measurements.append(known[path])
            else:  # the same content under another name
                measurements.append(attrs.evolve(next(iter(known.values())), source=path))
                run_log.append(self.place, measurements[-1])
            if not measurements[-1].failed:
                self._report(measurements[-1], is_new=not known)
                self.before = content
                done.setdefault(content, {})[path] = measurements[-1]
        if self.first_error is not None and all(each.failed for each in measurements):
            if not run_log.has_lines(self.place):
                self.place.unlink()
            raise self.first_error
        log = attrs.evolve(run_log.read_run_log(self.place), measurements=tuple(measurements))
        self.reporter.page("track", log)
        return log

    def _report(self, measurement: Measurement, *, is_new: bool) -> None:
        """Sends a measurement to the trackers, with its spectrum where this call made it."""
        if self.reporter:
            answer = self.monitor.answer("") if is_new and self.monitor is not None else None
            spectrum = None if answer is None else answer.spectrum
            self.reporter.measurement(run_log.read_run_log(self.place).header, measurement, spectrum)

    def _done(self) -> dict[str, dict[str, Measurement]]:
        """Measurements already in the log, by digest and name, once its settings are known to be the same."""
        if not run_log.has_lines(self.place):
            return {}
        log = run_log.read_run_log(self.place)
        mine = {
            "data_digest": self.source.digest(),
            "num_samples": self.source.num_samples,
            "batch_size": self.source.batch_size,
            "seed": self.options.get("seed", 0),
            "measures": self.measures,
            "settings": self._settings(),
        }
        if not log.header.settings:
            raise SdkerasError(
                f"{shown(self.place)} was written while a model trained (sdkeras.callbacks); choose another folder "
                "(`log_dir`)."
            )
        for name, ours in mine.items():
            theirs = getattr(log.header, name)
            if theirs != ours:
                raise SdkerasError(
                    f"the measurements in {shown(self.place)} are of {name} {_words(theirs)}, these would be of "
                    f"{_words(ours)}; choose another folder (`log_dir`), or take the settings of the log."
                )
        with contextlib.suppress(SdkerasError):  # without it the next eigenvectors are found from a random start
            self.states = _states(load_checkpoint(self.place.with_name(_STATE)))
        return run_log.by_digest(log)

    def _settings(self) -> dict[str, str]:
        """All options that a number depends on, as text."""
        preset = self.options.get("preset", DEFAULT_PRESET)
        by_preset = attrs.asdict(measurement_options(preset, {}), recurse=False)
        named = ("samples", "tolerance", "max_hvps", *([] if preset == DEFAULT_PRESET else ["min_runs"]))
        defaults = {name: by_preset[name] for name in named}
        elsewhere = ("seed", "batch_size", "memory_gb", "preset")  # in the header, or in the values
        chosen = {name: value for name, value in self.options.items() if name not in elsewhere}
        known = {name: value for name, value in sorted((defaults | chosen).items()) if value is not None}
        words = {"loss": losses.loss_words, "loss_fn": losses.function_name}
        settings = {name: words.get(name, _text)(value) for name, value in known.items()}
        settings = {name: text for name, text in settings.items() if text}
        # What these files hold decides the numbers, whatever their names.
        file = str(known.get("loss", "")).partition(":")[0]
        files = {"model": self.base, "loss_file": file if file.endswith(".py") else None}
        settings |= {name: digest(path) for name, path in files.items() if path is not None}
        return {**settings, "test_digest": "" if self.test is None else self.test.digest()}

    def _measured(self, path: str, content: str, place: int, last: int) -> Measurement:
        """The numbers of a checkpoint, in the log as well; one that cannot be read stands at the last one's step."""
        try:
            monitor, note = self._at(path)
            self._restore(monitor)
            measurement = monitor.measure(source=path, metrics=self._metrics(monitor))
        except Interrupted:
            raise
        except SdkerasError as error:
            self.first_error = self.first_error or error
            failed = failed_measurement(self.keys, str(error), source=path, step=last)
            self.waiting.append(failed)
            if self.monitor is not None:
                self._write(self.monitor)
            return failed
        notes = [*measurement.notes, *([note] if note else [])]
        if measurement.step == 0 and place > 0:
            notes.append("the file knows no steps of its optimizer; the place in the order stands for their number.")
            measurement = attrs.evolve(measurement, step=place)
        measurement = attrs.evolve(measurement, digest=content, notes=tuple(notes))
        self._keep(monitor, content)
        self.waiting.append(measurement)
        self._write(monitor)
        return measurement

    def _write(self, monitor: Monitor) -> None:
        """Write the waiting measurements, under the header of the monitor."""
        run_log.append(self.place, attrs.evolve(monitor.header(), settings=self._settings()))
        while self.waiting:
            run_log.append(self.place, self.waiting[0])
            del self.waiting[0]

    def _at(self, path: str) -> tuple[Monitor, str]:
        """A monitor at this checkpoint, the last one where it serves, and what the reader must know of the file."""
        if not path.endswith(WEIGHTS_SUFFIX):
            model, note = self._model(path)
        else:
            if self.of_weights is None:
                self.of_weights, _ = self._model(str(self.base))
            model, note = self.of_weights, models.load_weights(path, self.of_weights)
        if self.monitor is not None and _recipe(self.monitor.problem.compiled_as) == _recipe(model):
            self.monitor.take(model)
            return self.monitor, note
        if self.test is not None:
            try:
                check_data(model, *_parts(self.test))
            except DataError as error:
                raise DataError(f"test data: {error}") from error
        data = self.data if isinstance(self.data, (tuple, list)) else self.source
        self.monitor = Monitor(model, data, measures=self.measures, **self.options)
        return self.monitor, note

    def _model(self, path: str) -> tuple[Model, str]:
        """The model in a file, and what of its optimizer could not be read.

        Raises:
            ModelError: It cannot be read, or needs a loss and has none.
        """
        model = self.load(path)
        needs_loss = all(self.options.get(name) is None for name in ("loss", "loss_fn"))
        if needs_loss and not getattr(model, "compiled", False):
            problem = models.compile_problem(model)
            raise ModelError(problem or f"{path!r} was saved without its loss; give it (`loss=NAME`).")
        return model, " ".join(each.message for each in losses.caveats(model, with_loss=needs_loss))

    def _restore(self, monitor: Monitor) -> None:
        """Restore the state left by the previous checkpoint's measurement, if another monitor made it."""
        for state in self.states:
            if state["digest"] == self.before and state["size"] == monitor.hessian.size:
                monitor.restore(state["monitor"])

    def _keep(self, monitor: Monitor, content: str) -> None:
        """Beside the last one, since the log may end before or after this measurement."""
        state = {"digest": content, "size": monitor.hessian.size, "monitor": monitor.state()}
        self.states = [*(kept for kept in self.states if kept["digest"] != content), state][-_KEPT:]
        save_checkpoint(self.place.with_name(_STATE), self.states)

    def _metrics(self, monitor: Monitor) -> dict[str, float]:
        """Loss and metrics on training and test data, in inference mode."""
        if self.test is None:
            return {}
        model = monitor.problem.model
        if not getattr(model, "compiled", False):
            raise ModelError("loss and metrics on test data need a compiled model; compile it, or leave out test_data.")
        metrics: dict[str, float] = {}
        for prefix, source in (("", self.source), ("val_", self.test)):
            if source.is_bucketed:
                what: dict[str, Value] = {"x": _Batches(source)}
            else:
                what = dict(zip(("x", "y", "sample_weight"), _parts(source), strict=False))
                what["batch_size"] = source.batch_size
            logs = model.evaluate(**what, verbose=0, return_dict=True)
            metrics |= {f"{prefix}{name}": float(value) for name, value in logs.items()}
        return metrics


def _states(held: Nested) -> list[Nested]:
    """The states in a checkpoint that can be gone on from; damaged ones are left out."""
    kept = []
    for state in held if isinstance(held, list) else ():
        with contextlib.suppress(TypeError, KeyError, AttributeError):
            size, num_steps, vectors = state["size"], state["monitor"]["num_steps"], state["monitor"]["vectors"]
            fit = all(each.ndim == 2 and each.shape[0] == size and each.dtype.kind == "f" for each in vectors.values())
            if fit and isinstance(state["digest"], str) and num_steps > 0:
                kept.append(state)
    return kept


def _source(data: Data, options: Mapping[str, Value]) -> Source:
    return minibatches.as_source(
        data,
        batch_size=options.get("batch_size"),
        default_batch_size=minibatches.DEFAULT_BATCH_SIZE,
        limit=options.get("samples"),
        class_weight=options.get("class_weight"),
    )


class _Batches(keras.utils.PyDataset):  # type: ignore[misc]  # Keras has no types
    """A source's own batches, which differ in shape, for Keras to evaluate."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self._source = source

    def __len__(self) -> int:
        return len(self._source.batch_ranges or ())

    def __getitem__(self, index: int) -> Data:
        start, stop = (self._source.batch_ranges or ())[index]
        batch = tf.nest.pack_sequence_as(self._source.structure, list(self._source.take(slice(start, stop))))
        return tuple(keras_structure(tensors) for tensors in batch)


def _parts(source: Source) -> tuple[Data, ...]:
    """(x,), (x, y) or (x, y, sample_weight) as the model takes them; of batches of different shapes the first one."""
    first = source.batch_ranges[0] if source.is_bucketed and source.batch_ranges else None
    arrays = source.arrays if first is None else source.take(slice(*first))
    return tuple(tf.nest.pack_sequence_as(source.structure, list(arrays)))


def _recipe(model: Model) -> str:
    """Recipe of a model, all but its variables' values: models that share it share their compiled functions."""
    config = keras.saving.serialize_keras_object(model)
    shapes = [(tuple(variable.shape), str(variable.dtype)) for variable in model.variables]
    optimizer = getattr(model, "optimizer", None)
    shapes += [(tuple(variable.shape), str(variable.dtype)) for variable in getattr(optimizer, "variables", ())]
    return json.dumps([_without_rate(config), shapes], sort_keys=True, default=str)


def _without_rate(config: Config) -> Config:
    """A configuration without what differs from file to file: a plain learning rate, which is a variable, and ids."""
    if isinstance(config, dict):
        return {
            name: _without_rate(value)
            for name, value in config.items()
            if name != "shared_object_id" and not (name == "learning_rate" and isinstance(value, (int, float)))
        }
    return [_without_rate(value) for value in config] if isinstance(config, (list, tuple)) else config


def _text(value: object) -> str:
    """An option's value; nothing for what is not asked for, whichever way it was left out."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={number:g}" for name, number in sorted(value.items()))
    return "" if value is False else str(value)


def _words(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {text}" for name, text in value.items() if text) or "the defaults"
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
