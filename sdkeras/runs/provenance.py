"""Provenance of an answer: its optimizer, its data, its making."""

from __future__ import annotations

import datetime
import platform
import time

import keras
import tensorflow as tf

from sdkeras._version import __version__
from sdkeras.operators.minibatches import Source
from sdkeras.results.answers import DataInfo, OptimizerInfo, OptimizerPart, Provenance
from sdkeras.training_step.settings import OptimizerSettings


def optimizer_info(
    optimizer: OptimizerSettings | None, rate: float, source: str, *, missing: str = ""
) -> OptimizerInfo:
    """The optimizer of a report; the rate, its source and why it is `missing` (0 or NaN) are the analysis' own."""
    if optimizer is None:
        return OptimizerInfo("unknown", rate, learning_rate_source=source, learning_rate_missing=missing)
    return OptimizerInfo(
        name=optimizer.name,
        learning_rate=rate,
        momentum=optimizer.momentum,
        weight_decay=optimizer.weight_decay,
        iterations=optimizer.iterations,
        nesterov=optimizer.nesterov,
        learning_rate_source=source,
        learning_rate_missing=missing,
        parts=tuple(OptimizerPart(name, float("nan") if value is None else value) for name, value in optimizer.rates),
    )


def data_info(source: Source, num_samples_hessian: int) -> DataInfo:
    """The data of a report."""
    weights = source.class_weight
    named = None if weights is None else {str(label): weight for label, weight in weights.items()}
    return DataInfo(source.num_samples, source.batch_size, num_samples_hessian, source.batch_size_source, named)


def provenance(source: Source, *, seed: int, dtype: str, num_hvps: int, started: float) -> Provenance:
    """Versions, device, cost and data of an answer that is made now; `started` is of `time.monotonic`."""
    return Provenance(
        sdkeras=__version__,
        tensorflow=str(tf.__version__),
        keras=str(keras.__version__),
        python=platform.python_version(),
        device=_device(),
        seed=seed,
        dtype=dtype,
        num_hvps=num_hvps,
        seconds=time.monotonic() - started,
        data_digest=source.digest(),
        created=utc_now(),
    )


def utc_now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _device() -> str:
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        details = tf.config.experimental.get_device_details(gpus[0])
        return str(details.get("device_name", "GPU"))
    return f"CPU ({platform.machine()})"
