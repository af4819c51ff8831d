"""Sharpness, edge of stability and sharpness dimension while `fit` trains."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import keras
import numpy as np

from sdkeras.callbacks.randomness import same_randomness
from sdkeras.callbacks.spacing import Spacing
from sdkeras.errors import SdkerasError
from sdkeras.locks import Claim
from sdkeras.monitor import (
    DEFAULT_SAMPLES,
    DEFAULT_TOLERANCE,
    MEASURES,
    Monitor,
    check_measures,
    failed_measurement,
)
from sdkeras.operators import batches
from sdkeras.operators.update import steps_taken
from sdkeras.options import Options, check_options
from sdkeras.reporting import run_log
from sdkeras.reporting.run_log import Header, Measurement
from sdkeras.user_code import last_line
from sdkeras.whole_files import shown

_AGE = "sharpness_age"
_LOG = logging.getLogger("sdkeras")


class SharpnessDimension(keras.callbacks.Callback):  # type: ignore[misc]  # Keras has no types
    """Measures during `fit` and writes the numbers into the logs of every epoch.

    `sharpness`: largest eigenvalue of the data-set Hessian. `sharpness_ratio`: the optimizer's own sharpness over its
    stability threshold, 1 is the edge (NaN where none is known). `rds_sharpness`, `sharpness_dimension`,
    `sharpness_codimension`: lambda_1, SD and d - SD of the optimizer's step. `hessian_trace`. `sharpness_age`: epochs
    since the measurement. History, the progress line and all callbacks after this one see them: CSVLogger,
    TensorBoard, ModelCheckpoint, EarlyStopping(monitor="sharpness_ratio", mode="min") (the direction must be said).

    The first epoch is measured. A later one is skipped while the time of all measurements, compilation included, and
    of the next would exceed `max_overhead` times that of training; it repeats the last numbers. A measurement that
    needs more time than it may take stops adding runs: exponents and dimension have wider intervals and are marked as
    not converged, and the next one waits until it may take twice that. One that fails gives NaN, a warning of the
    logger 'sdkeras', and training goes on. Weights, optimizer, seeds and metrics are those of a training without the
    callback; only a shuffled `tf.data.Dataset` must not be given to `fit` and here, since every reading of it moves
    the order of the next one: make it twice.

    Args:
        data: (x, y[, sample_weight]), a batched `tf.data.Dataset` or a `keras.utils.PyDataset`, as in
            `sdkeras.analyze`: the training data, or a fixed part of them.
        every: 'epoch', or a number of updates of the weights: then `on_train_batch_end` is used, without which Keras
            need not wait for the device between batches.
        measures: Which of the keys; all but `sharpness_age`, which is always there, by default.
        batch_size: That of training; default 32, or a dataset's own.
        max_overhead: See above; None measures every time.
        samples: Random subset for the data-set Hessian.
        tolerance: Half-width of SD's interval wanted, relative to the codimension.
        seed: Of the subset, the minibatches and the probes, which are the same every time.
        log_dir: Folder for `sharpness.jsonl`: each measurement with its evidence, appended (`sdkeras track`).

    Attributes:
        measurements: The measurements so far, with their evidence.

    Raises:
        SdkerasError: Arguments out of their range, arrays that do not fit together, a folder that cannot be made. When
            training begins: another process writes the log.
    """

    def __init__(
        self,
        data: Any,
        every: str | int = "epoch",
        measures: Sequence[str] = MEASURES,
        batch_size: int | None = None,
        max_overhead: float | None = 0.1,
        samples: int = DEFAULT_SAMPLES,
        tolerance: float = DEFAULT_TOLERANCE,
        seed: int = 0,
        log_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__()
        if every != "epoch" and (isinstance(every, bool) or not isinstance(every, int) or every < 1):
            raise SdkerasError(f"every is {every!r}; it must be 'epoch' or a number of steps, at least 1.")
        if max_overhead is not None and not max_overhead > 0:
            raise SdkerasError(f"max_overhead is {max_overhead!r}; it must be positive, or None for no limit.")
        check_options(Options(batch_size=batch_size, samples=samples, tolerance=tolerance, seed=seed))
        if not hasattr(data, "element_spec") and not isinstance(data, keras.utils.PyDataset):
            batches.as_source(data, batch_size=batch_size, default_batch_size=None, limit=samples)
        self.measures = check_measures(measures)
        self._make = functools.partial(
            Monitor,
            data=data,
            measures=self.measures,
            batch_size=batch_size,
            samples=samples,
            tolerance=tolerance,
            seed=seed,
        )
        self.log_path = None if log_dir is None else run_log.place_in(log_dir)
        self._claim: Claim | None = None
        self.spacing = Spacing(max_overhead)
        self.measurements: list[Measurement] = []
        self._monitor: Monitor | None = None
        self._watched: tuple[Any, ...] = ()
        self._latest: dict[str, float] = {}
        self._age = 0
        self._fresh = False  # measured since the last end of an epoch
        self._epochs = 0
        self._steps = 0
        self._said: set[str] = set()
        self._interval = None if isinstance(every, str) else every
        if self._interval is not None:
            self.on_train_batch_end = self._after_batch

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._steps = steps_taken(self.model.optimizer)
        if self.log_path is not None:
            self._claim = run_log.claim(self.log_path)
        self.spacing.resume()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self.spacing.pause()
        if self._claim is not None:
            self._claim.close()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._epochs = epoch

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._epochs = epoch + 1
        if not self._is_of_this_model() or (self._interval is None and self._may_measure()):
            self._measure(logs or {})
        self._age = 0 if self._fresh else self._age + 1
        self._fresh = False
        if logs is not None:
            logs.update(self._latest)
            logs[_AGE] = self._age

    def _after_batch(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Counts by the optimizer: a call is not a step where steps_per_execution or accumulation say otherwise."""
        before, self._steps = self._steps, steps_taken(self.model.optimizer)
        due = self._interval is not None and self._steps // self._interval > before // self._interval
        if due and (not self._is_of_this_model() or self._may_measure()):
            self._measure(logs or {})

    def _is_of_this_model(self) -> bool:
        """Whether there are numbers of this model as it is compiled now."""
        now = _identity(self.model)
        return len(now) == len(self._watched) and all(a is b for a, b in zip(now, self._watched, strict=True))

    def _may_measure(self) -> bool:
        wait = self.spacing.wait()
        if wait > 0:
            found = self.spacing
            self._say_once(
                "spacing",
                f"measurements have taken {found.spent:.3g} s so far, compilation included, and the last one "
                f"{found.expected:.3g} s; to stay within {found.max_overhead:.3g} of the time of training, the next "
                f"one waits for {wait:.3g} s more of it (max_overhead=None measures every time).",
            )
        return wait == 0

    def _measure(self, logs: Mapping[str, Any]) -> None:
        spent = self.spacing.spent
        metrics = {name: float(value) for name, value in logs.items() if isinstance(value, (int, float, np.number))}
        if not self._is_of_this_model():
            self._monitor = None
        # The first of a model is always made, and whole.
        limit = None if self._monitor is None else self.spacing.allowed()
        try:
            with same_randomness():
                if self._monitor is None:
                    with self.spacing.spending(again=False):
                        self._monitor = self._make(self.model)
                    self._write(self._monitor.header())
                with self.spacing.spending():
                    found = self._monitor.measure(epoch=self._epochs, metrics=metrics, seconds=limit)
                if self._monitor.out_of_time:  # rather one that converges, later
                    self.spacing.expected *= 2
        except Exception as error:  # whatever a layer, TensorFlow or a lack of memory raises: training goes on
            reason = last_line(error)
            self._say_once(reason, f"a measurement failed, its numbers are NaN: {reason}")
            found = failed_measurement(
                self.measures, reason, step=steps_taken(self.model.optimizer), epoch=self._epochs, metrics=metrics
            )
        self._watched = _identity(self.model)
        found = attrs.evolve(found, seconds=self.spacing.spent - spent)
        self.measurements.append(found)
        self._latest = {key: reading.value for key, reading in found.values.items()}
        self._fresh = True
        if self._monitor is not None:
            self._write(found)

    def _write(self, record: Header | Measurement) -> None:
        if self.log_path is None:
            return
        if self._claim is not None and self._claim.lost:
            self._say_once("log", f"{shown(self.log_path)} belongs to a later training of this process now")
            return
        try:
            run_log.append(self.log_path, record)
        except OSError as error:
            self._say_once("log", f"{shown(self.log_path)} cannot be written: {error.strerror or error}")
        except SdkerasError as error:
            self._say_once("log", str(error))

    def _say_once(self, what: str, message: str) -> None:
        if what not in self._said:
            self._said.add(what)
            _LOG.warning("sdkeras: %s", message)


def _identity(model: Any) -> tuple[Any, ...]:
    """What a monitor rests on: another optimizer, loss or set of variables needs another one."""
    return (model, model.optimizer, getattr(model, "_compile_loss", None), *model.trainable_variables)
