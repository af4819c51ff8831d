"""Sharpness, edge of stability and sharpness dimension while `fit` trains."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import math
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import attrs
import keras
import numpy as np

from sdkeras.callbacks.loss_check import LossCheck
from sdkeras.callbacks.spacing import Plan, Spacing
from sdkeras.errors import SdkerasError, with_checked_options
from sdkeras.files.atomic import Claim, make_folder, shown
from sdkeras.files.keras_types import Data, Model
from sdkeras.files.user_code import last_line
from sdkeras.operators import minibatches
from sdkeras.operators.device import devices
from sdkeras.reporting.html import save_html
from sdkeras.reporting.trackers.names import check_trackers
from sdkeras.reporting.trackers.reporter import Reporter, open_reporter
from sdkeras.results import log
from sdkeras.results.answers import Analysis
from sdkeras.results.arrays import Value, is_number
from sdkeras.results.earlier import with_earlier
from sdkeras.results.log import Beginning, Header, Measurement, RunLog
from sdkeras.runs.monitor import (
    MEASURES,
    Monitor,
    check_measures,
    failed_measurement,
)
from sdkeras.runs.options import DEFAULT_PRESET, Preset, measurement_options
from sdkeras.training_step.settings import steps_taken

_AGE = "sharpness_age"
_LOG = logging.getLogger("sdkeras")


class SharpnessDimension(keras.callbacks.Callback):  # type: ignore[misc]  # Keras has no types
    """Measures during `fit` and writes the numbers into the logs of every epoch.

    `sharpness`: largest (algebraic) eigenvalue of the data-set Hessian H. `sharpness_ratio`, 1 is the edge:
    `sharpness_preconditioned` over `sharpness_threshold`, the largest eigenvalue of the operator to which the
    optimizer's stability threshold applies (P^-1/2 H P^-1/2 for Adam, AdamW, Nadam and RMSprop; else H, and it is the
    sharpness) and the threshold (NaN where none is known, or without a learning rate). `rds_sharpness`,
    `sharpness_dimension`, `sharpness_codimension`: lambda_1, SD and d - SD of the optimizer's step. `hessian_trace`.
    `bound_scale`: sqrt(SD/n), the factor of the generalization bounds; `generalization_bound`: the bound itself, where
    every input of a theorem is known. `sharpness_age`: epochs since the measurement. Batch sharpness, mean-square
    stability and gradient noise are measured by `sdkeras.analyze` alone. History, the progress line and all
    callbacks after this one see them: CSVLogger, TensorBoard, ModelCheckpoint, EarlyStopping(monitor="sharpness_ratio",
    mode="min") (the mode is required).

    The first epoch is measured. A later one is skipped while the time of all measurements and of the next would exceed
    `max_overhead` times that of training; compilation does not count. An epoch without a measurement logs NaN, or with
    `carry_forward` the last numbers, for callbacks that take no NaN; neither is an improvement, so that the
    patience of EarlyStopping must be longer than the spacing. A measurement that needs more time than it may take
    stops adding runs: exponents and dimension then have wider intervals and are marked as not converged, and the next
    one waits until it may take twice that. One that fails gives NaN and a warning of the logger 'sdkeras'; training
    continues. Weights, optimizer, seeds and metrics are those of a training without the callback; only a shuffled
    `tf.data.Dataset` must not be given to `fit` and here, since every reading of it moves the order of the next one:
    make it twice.

    Keras shows a callback neither the data nor the class weights of `fit`: give both here as well. The callback
    compares its own loss with the one that `fit` logs, and warns once where they cannot be the same function.

    Args:
        data: (x, y[, sample_weight]), a batched `tf.data.Dataset` or a `keras.utils.PyDataset`, as in
            `sdkeras.analyze`: the training data, or a fixed part of them.
        every: 'epoch', or a number of updates of the weights: then `on_train_batch_end` is used, without which Keras
            need not wait for the device between batches.
        measures: Keys to measure, beside those of the bounds and `sharpness_age`; all by default.
        batch_size: Batch size of training; default 32, or a dataset's own.
        max_overhead: Time limit, see above; None measures every time.
        samples: Random subset for the data-set Hessian; default by the preset.
        tolerance: Target half-width of SD's interval, relative to the codimension; default by the preset.
        seed: Seed for the subset, the minibatches and the probes, which are the same every time.
        log_dir: Folder for the log alone, `sharpness.jsonl`: each measurement as a line with its evidence and the
            bounds term by term, appended, for `sdkeras track`, `sdkeras watch` and `sdkeras.plot.track`. Default: the
            folder of the report; without either nothing is written.
        class_weight: `class_weight` of `fit`.
        num_measurements: Make this many measurements in each `fit`, spread evenly from the first opportunity (`every`)
            to the end of its epochs, whatever `max_overhead` says; fewer only where training ends early or has fewer
            opportunities.
        carry_forward: Repeat the last numbers in epochs without a measurement, in place of NaN.
        bound_inputs: Inputs of the generalization bounds by name, see `sdkeras.dimension.bounds.INPUTS`.
        estimate_bound_inputs: Estimate B and L, where they are not given, from single examples at each measurement
            (lower bounds).
        report: Folder for files to be read, and for the log where no log_dir is given: run.json and report.html of the
            last measurement, as `sdkeras analyze` writes them, and track.html of all of them. They are written after
            each measurement, so that they are there however `fit` ends: Keras notifies no callback of an exception or
            Ctrl-C, and the folder then holds the last measurement before it. When `fit` ends by itself, weights that
            have not been measured yet are measured. For the weights that EarlyStopping(restore_best_weights=True)
            restores, put this callback after it.
        preset: Values of samples, tolerance and the number of minibatches where they are left out: 'quick', 'standard'
            or 'thorough', as in `sdkeras.analyze`.
        device: Where products are made, as in `sdkeras.analyze`; default where training is: the first accelerator, or
            the devices of the strategy in whose scope `fit` is called.
        micro_batch: Compute each batch in parts of at most this many examples, as in `sdkeras.analyze`.
        report_to: Trackers that get each measurement as it is made, and report and track page when `fit` ends by
            itself: 'tensorboard', 'wandb', 'mlflow', or several. Names begin with 'sdkeras/' and go on with the keys
            above, KEY/lower and KEY/upper being the ends of an interval; the spectrum is a histogram (in MLflow a
            table); steps are updates of the weights. TensorBoard's events, which hold no pages, are in the folder of
            the log, or where 'tensorboard:DIR' says; the others take the active run, or a new one. A tracker that
            fails is named in a warning and left out; training continues.

    Attributes:
        measurements: The measurements so far, with their evidence.

    Raises:
        SdkerasError: Arguments out of their range, arrays that do not fit together, a folder that cannot be made, a
            tracker that is not installed. When training begins: another process writes the log, or a tracker cannot
            begin a run.
    """

    @with_checked_options
    def __init__(  # noqa: PLR0913  # public: each argument is one that a user names
        self,
        data: Data,
        every: str | int = "epoch",
        measures: Sequence[str] = MEASURES,
        batch_size: int | None = None,
        max_overhead: float | None = 0.1,
        samples: int | None = None,
        tolerance: float | None = None,
        seed: int = 0,
        log_dir: str | os.PathLike[str] | None = None,
        class_weight: Mapping[int, float] | None = None,
        num_measurements: int | None = None,
        carry_forward: bool = False,
        bound_inputs: Mapping[str, float] | None = None,
        estimate_bound_inputs: bool = False,
        report: str | os.PathLike[str] | None = None,
        preset: Preset = DEFAULT_PRESET,
        device: str = "auto",
        micro_batch: int | None = None,
        report_to: str | Sequence[str] = (),
    ) -> None:
        super().__init__()
        if every != "epoch" and not (is_number(every, whole=True) and int(every) >= 1):
            raise SdkerasError(f"every is {every!r}; it must be 'epoch' or a number of steps, at least 1.")
        if max_overhead is not None and not (is_number(max_overhead) and max_overhead > 0):
            raise SdkerasError(f"max_overhead is {max_overhead!r}; it must be positive, or None for no limit.")
        count = num_measurements
        if count is not None and not (is_number(count, whole=True) and count >= 1):
            raise SdkerasError(f"num_measurements is {count!r}; it must be at least 1, or None for no such number.")
        options: dict[str, Value] = {
            "batch_size": batch_size,
            "samples": samples,
            "tolerance": tolerance,
            "seed": seed,
            "class_weight": class_weight,
            "bound_inputs": bound_inputs or {},
            "estimate_bound_inputs": estimate_bound_inputs,
            "device": device,
            "micro_batch": micro_batch,
        }
        checked = measurement_options(preset, options)
        if device != "auto":  # which may be that of a scope in which `fit` will be called
            devices(device)
        if not hasattr(data, "element_spec") and not isinstance(data, keras.utils.PyDataset):
            minibatches.as_source(
                data, batch_size=batch_size, default_batch_size=None, limit=checked.samples, class_weight=class_weight
            )
        self.measures, self.keys = check_measures(measures, bound_inputs, estimate_bound_inputs)
        self.report_to = check_trackers(report_to)
        self._reporter = Reporter()
        self._answer: Analysis | None = None  # of the last measurement, where there are trackers or a report
        self._make: Callable[[Model], Monitor] = functools.partial(
            Monitor, data=data, measures=self.measures, preset=preset, **options
        )
        self.report = None if report is None else _folder_of_report(report)
        folder = report if log_dir is None else log_dir
        self.log_path = None if folder is None else log.place_in(folder)
        self._claim: Claim | None = None
        self.spacing = Spacing(max_overhead)
        self.plan = None if count is None else Plan(count)
        self.carry_forward = carry_forward
        self.measurements: list[Measurement] = []
        self._monitor: Monitor | None = None
        self._watched: tuple[object, ...] = ()
        self._unknown = dict.fromkeys(self.keys, math.nan)
        self._latest = self._unknown
        self._check: LossCheck | None = None
        self._log: RunLog | None = None  # as the file has it, where there is a report
        self._measured_at = b""  # a digest of the weights, where there is a report to write of them
        self._finished: tuple[int, dict[str, float]] = (-1, {})  # step and metrics at the last end of an epoch
        self._first_epoch: int | None = None
        self._header: Header | None = None  # of the monitor
        self._unlogged_header: Header | None = None  # likewise, until it stands in the log
        self._began: Beginning | None = None  # of this `fit`, until a measurement has it
        self._unlogged: Beginning | None = None  # likewise, until the log has it
        self._batches: int | None = None  # of an epoch, once it is known
        self._seen: int | None = None  # of the epoch under way
        self._age = 0
        self._fresh = False  # measured since the last end of an epoch
        self._epochs = 0
        self._steps = 0
        self._said: set[str] = set()
        self._interval = None if isinstance(every, str) else every
        if self._interval is not None:
            self.on_train_batch_end = self._after_batch

    def on_train_begin(self, logs: dict[str, object] | None = None) -> None:
        self._first_epoch, self._batches = None, (self.params or {}).get("steps")
        own_step = type(self.model).train_step not in (keras.Model.train_step, keras.Sequential.train_step)
        self._check = None if own_step else LossCheck()
        if self.plan is not None:
            self.plan.begin()
        if self.log_path is not None:
            try:
                self._claim = log.claim(self.log_path)
            except SdkerasError as error:
                if not isinstance(error.__cause__, OSError):  # another process writes it
                    raise
                self._say_once("log", str(error))
        self._begin_reporting()
        self.spacing.resume()

    def on_train_end(self, logs: dict[str, object] | None = None) -> None:
        if self.report is not None:
            self.save_report()
        self._warn_of_another_loss(ended=True)
        if self.plan is not None and self.plan.num_made < self.plan.count and not self.model.stop_training:
            self._say_once(
                "plan",
                f"{self.plan.num_made} of num_measurements={self.plan.count} were made, since the training has no more "
                f"opportunities: every is {self._interval or 'epoch'!r}; a smaller number of steps gives more.",
            )
        self._end_reporting()
        self.spacing.pause()
        if self._claim is not None:
            self._claim.close()

    def on_epoch_begin(self, epoch: int, logs: dict[str, object] | None = None) -> None:
        self._epochs = epoch
        if self._first_epoch is None:  # a backup is restored by now, whichever of the callbacks comes first
            self._first_epoch, self._steps = epoch, steps_taken(self.model.optimizer)
            self._began = self._unlogged = Beginning(self._steps, epoch)

    def on_epoch_end(self, epoch: int, logs: dict[str, object] | None = None) -> None:
        self._epochs = epoch + 1
        self._batches = self._batches or self._seen
        metrics = _numbers(logs or {})
        if self._due(self._progress(0.0), ends_epoch=True):
            self._measure(metrics)
        if self._check is not None:
            self._check.epoch_ended(epoch + 1, metrics.get("loss"))
            self._warn_of_another_loss()
        self._finished = (steps_taken(self.model.optimizer), metrics)
        self._age = 0 if self._fresh else self._age + 1
        if logs is not None:
            logs.update(self._latest if self._fresh or self.carry_forward else self._unknown)
            logs[_AGE] = self._age
        self._fresh = False

    def save_report(self) -> None:
        """Writes the report of the weights as they are now, measuring them unless the last measurement already did.

        `fit` does this when it ends by itself; call it after an exception or Ctrl-C.

        Raises:
            SdkerasError: There is no folder, or `fit` has not trained the model yet.
        """
        if self.report is None:
            raise SdkerasError("there is no folder for a report; give one (report=DIR).")
        if self.model is None:
            raise SdkerasError("there is nothing to report yet; fit a model with this callback first.")
        step = steps_taken(self.model.optimizer)
        metrics = self._finished[1] if self._finished[0] == step else {}
        about = f"measured when fit ended, at step {step:,}."
        if self._measured_at and self._measured_at == _digest(self.model) and self._is_of_this_model():
            self._write_report(about)
        else:
            self._measure(metrics, about=about)

    def _after_batch(self, batch: int, logs: dict[str, object] | None = None) -> None:
        """Counts by the optimizer: a call is not a step where steps_per_execution or accumulation say otherwise."""
        before, self._steps = self._steps, steps_taken(self.model.optimizer)
        self._seen = batch + 1
        passed = self._interval is not None and self._steps // self._interval > before // self._interval
        within = None if self._batches is None else (batch + 1) / self._batches
        if passed and self._due(self._progress(within), ends_epoch=False):
            self._measure(_numbers(logs or {}), within=True)

    def _progress(self, within: float | None) -> float | None:
        """The part of this `fit` that is done, with a part of the epoch under way; None where it is not known."""
        epochs = (self.params or {}).get("epochs")
        if within is None or epochs is None or self._first_epoch is None:
            return None
        return (self._epochs - self._first_epoch + within) / max(1, int(epochs) - self._first_epoch)

    def _due(self, progress: float | None, *, ends_epoch: bool) -> bool:
        """Whether to measure now."""
        if self.plan is not None:
            last = progress is not None and progress >= 1.0
            return (not ends_epoch or self._interval is None or last) and self.plan.due(progress)
        if ends_epoch and self._interval is not None:
            return not self._is_of_this_model()
        return not self._is_of_this_model() or self._may_measure()

    def _is_of_this_model(self) -> bool:
        """Whether there are numbers of this model as it is compiled now."""
        now = _identity(self.model)
        return len(now) == len(self._watched) and all(a is b for a, b in zip(now, self._watched, strict=True))

    def _may_measure(self) -> bool:
        wait = self.spacing.wait()
        if wait > 0:
            spacing = self.spacing
            self._say_once(
                "spacing",
                f"measurements have taken {spacing.spent:.3g} s so far, without compilation, and the last one "
                f"{spacing.expected:.3g} s; to stay within {spacing.max_overhead:.3g} of the time of training, the "
                f"next one waits for {wait:.3g} s more of it (max_overhead=None measures every time).",
            )
        return wait == 0

    def _measured(self, metrics: Mapping[str, float], limit: float | None, within: bool | None) -> Measurement:
        """A measurement within this many seconds, by a new monitor where there is none; None where `fit` has ended."""
        if self._monitor is None:
            with self.spacing.spending(compiling=True):
                self._monitor = self._make(self.model)
            self._header = self._unlogged_header = self._monitor.header()
        with self.spacing.spending():
            measurement = self._monitor.measure(epoch=self._epochs, metrics=metrics, seconds=limit)
            if self._check is not None and within is not None:
                self._check.measured(self._epochs, *self._monitor.training_loss(), within=within)
        if self._monitor.out_of_time:  # rather one that converges, later
            self.spacing.expected *= 2
        return measurement

    def _measure(self, metrics: Mapping[str, float], *, within: bool = False, about: str = "") -> None:
        """Measures, logs and reports; `within` an epoch, or at its end, or when `fit` has ended, which `about` says."""
        started = self.spacing.clock()
        if not self._is_of_this_model():
            self._monitor = None
        # The first of a model is always made, and whole; so are those that were asked for by number, and the last.
        whole = self._monitor is None or self.plan is not None or about
        limit = None if whole else self.spacing.allowed()
        failed = True
        if self.plan is not None and not about:
            self.plan.num_made += 1
        try:
            with _same_randomness():
                measurement = self._measured(metrics, limit, None if about else within)
            failed = False
        except Exception as error:  # whatever a layer, TensorFlow or a lack of memory raises: training goes on
            reason = last_line(error)
            self._say_once(reason, f"a measurement failed, its numbers are NaN: {reason}")
            measurement = failed_measurement(
                self.keys, reason, step=steps_taken(self.model.optimizer), epoch=self._epochs, metrics=metrics
            )
        self._watched = _identity(self.model)
        measurement = attrs.evolve(measurement, seconds=self.spacing.clock() - started, began=self._began)
        # Weights that another callback brought back stand nowhere in the training's log.
        is_logged = not (about and self.measurements and self.measurements[-1].step == measurement.step)
        if is_logged:
            self.measurements.append(measurement)
            self._began = None
            if self._monitor is not None:
                self._write(measurement)
        if not about:
            self._latest = {key: reading.value for key, reading in measurement.values.items()}
            self._fresh = True
        if not failed and (self.report is not None or self._reporter):
            self._measured_at = b"" if self.report is None else _digest(self.model)
            step = f"measured while the model trained, at step {measurement.step:,}, after {self._epochs:,} epochs"
            self._write_report(about or f"{step}; later training is not in it.", measurement if is_logged else None)

    def _write_report(self, about: str, measurement: Measurement | None = None) -> None:
        """The folder of the report as of the last measurement, which trackers get if it is given."""
        monitor = self._monitor
        if monitor is None:
            return
        try:
            with _same_randomness(), self.spacing.spending(more=True):
                self._answer = answer = monitor.answer(about)
                if measurement is not None and self._header is not None:
                    spectrum = None if answer is None else answer.spectrum
                    self._reporter.measurement(self._header, measurement, spectrum)
                if self.report is None:
                    return
                if self._log is None:
                    self._log = self._log_so_far(monitor)
                if answer is not None:
                    answer = with_earlier(answer, self._log)
                    answer.save(self.report / "run.json")
                    save_html(answer, self.report / "report.html")
                    save_html(self._log, self.report / "track.html")
        except Exception as error:  # a full disk, or a library that draws: training goes on
            where = "for trackers" if self.report is None else f"in {self.report}"
            self._say_once("report", f"the report {where} cannot be written: {last_line(error)}")

    def _log_so_far(self, monitor: Monitor) -> RunLog:
        """Log on disk, earlier trainings included; this training's measurements where there is none to be read."""
        with contextlib.suppress(SdkerasError):
            if self.log_path is not None:
                return log.read_run_log(self.log_path)
        return RunLog(monitor.header(), tuple(self.measurements))

    def _begin_reporting(self) -> None:
        """Opens the trackers; those of a `fit` that was cut short are closed first."""
        self._reporter.close(failed=True)
        try:
            with _same_randomness():
                self._reporter = open_reporter(self.report_to, None if self.log_path is None else self.log_path.parent)
        except SdkerasError:
            if self._claim is not None:
                self._claim.close()
            raise

    def _end_reporting(self) -> None:
        """The pages of the last measurement and of all of them, for the trackers."""
        try:
            with _same_randomness():
                if self._reporter and self._monitor is not None and self._answer is not None:
                    measured = self._log_so_far(self._monitor)
                    self._reporter.page("report", with_earlier(self._answer, measured))
                    self._reporter.page("track", measured)
        except Exception as error:  # a library that draws: the training is done
            self._say_once("report", f"the pages for trackers cannot be drawn: {last_line(error)}")
        self._reporter.close()

    def _warn_of_another_loss(self, *, ended: bool = False) -> None:
        words = None if self._check is None else self._check.disagreement(ended=ended)
        if words is not None:
            self._say_once(
                "loss",
                f"{words}: fit minimises a different loss than the one measured here, and every number refers to the "
                "latter. Keras hides class_weight and the data of fit from callbacks: give the same to this one "
                "(class_weight=..., data=(x, y, sample_weight)).",
            )

    def _write(self, measurement: Measurement) -> None:
        """Appends to the log, after the header where it has none of this model yet."""
        if self.log_path is None:
            return
        if self._claim is not None and self._claim.lost:
            self._say_once("log", f"{shown(self.log_path)} belongs to a later training of this process now")
            return
        try:
            if self._unlogged_header is not None:
                log.append(self.log_path, self._unlogged_header)
                self._unlogged_header = self._log = None
            log.append(self.log_path, attrs.evolve(measurement, began=self._unlogged))
            self._unlogged = None
        except OSError as error:
            self._say_once("log", f"{shown(self.log_path)} cannot be written: {error.strerror or error}")
        except SdkerasError as error:
            self._say_once("log", str(error))
        finally:
            if self._log is not None:
                self._log = attrs.evolve(self._log, measurements=(*self._log.measurements, measurement))

    def _say_once(self, what: str, message: str) -> None:
        if what not in self._said:
            self._said.add(what)
            _LOG.warning("sdkeras: %s", message)


def _folder_of_report(folder: str | os.PathLike[str]) -> Path:
    """The folder, made where it is missing.

    Raises:
        SdkerasError: It cannot be made or written to.
    """
    path = Path(folder)
    if not os.fspath(folder):
        raise SdkerasError("report is empty; name a folder for the report.")
    make_folder(path, "the report's folder ")
    if not os.access(path, os.W_OK):
        raise SdkerasError(f"the report's folder {path} cannot be written to; choose another one.")
    return path


@contextlib.contextmanager
def _same_randomness() -> Iterator[None]:
    """Restores the global generators of Python and NumPy on leaving.

    Keras draws the seeds of layers from Python's when it rebuilds a model in another precision, and a model's data or
    layers may draw from either; training would continue with other numbers.
    """
    state, array_state = random.getstate(), np.random.get_state()  # noqa: NPY002  the global one is what is meant
    try:
        yield
    finally:
        random.setstate(state)
        np.random.set_state(array_state)  # noqa: NPY002


def _numbers(logs: Mapping[str, object]) -> dict[str, float]:
    """Numeric entries of Keras' logs."""
    return {name: float(value) for name, value in logs.items() if isinstance(value, (int, float, np.number))}


def _digest(model: Model) -> bytes:
    """Digest of the weights, which notices changes by other callbacks."""
    state = hashlib.sha256()
    for variable in model.weights:
        state.update(np.ascontiguousarray(variable).tobytes())
    return state.digest()


def _identity(model: Model) -> tuple[object, ...]:
    """Identity of a monitor: another optimizer, loss or set of variables needs another monitor."""
    return (model, model.optimizer, getattr(model, "_compile_loss", None), *model.trainable_variables)
