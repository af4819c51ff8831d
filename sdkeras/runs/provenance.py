"""Provenance of an answer: its optimizer, its data, its making."""

from __future__ import annotations

import datetime
import platform
import time

import keras
import tensorflow as tf

from sdkeras._version import __version__
from sdkeras.operators.device import Devices
from sdkeras.operators.loss import EmpiricalLoss
from sdkeras.operators.modes import MIXED
from sdkeras.results.answers import DataInfo, OptimizerInfo, OptimizerPart, Provenance
from sdkeras.training_step.settings import OptimizerSettings


def optimizer_info(
    optimizer: OptimizerSettings | None, rate: float, source: str, *, missing: str = "", peak: float | None = None
) -> OptimizerInfo:
    """The optimizer of a report; all about its rate, also why it is `missing` (0 or NaN), is the analysis' own."""
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
        peak_learning_rate=peak,
    )


def data_info(loss: EmpiricalLoss) -> DataInfo:
    """The data of a report."""
    source, weights = loss.source, loss.source.class_weight
    return DataInfo(
        num_samples=source.samples_per_pass,
        batch_size=source.batch_size,
        num_samples_hessian=loss.num_examples,
        batch_size_source=source.batch_size_source,
        class_weight=None if weights is None else {str(label): weight for label, weight in weights.items()},
        micro_batch=loss.micro_batch,
    )


def provenance(loss: EmpiricalLoss, *, seed: int, num_hvps: int, started: float, preset: str = "") -> Provenance:
    """Versions, device, cost and data of an answer that is made now; `started` is of `time.monotonic`."""
    return Provenance(
        sdkeras=__version__,
        tensorflow=str(tf.__version__),
        keras=str(keras.__version__),
        python=platform.python_version(),
        device=device_name(loss.devices),
        seed=seed,
        dtype=MIXED if loss.function.is_mixed else loss.dtype.name,
        num_hvps=num_hvps,
        seconds=time.monotonic() - started,
        data_digest=loss.source.digest(),
        created=utc_now(),
        preset=preset,
    )


def utc_now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def device_name(devices: Devices) -> str:
    """The devices as a report names them."""
    gpus = [int(name.rpartition(":")[2]) for name in devices.names if "GPU" in name]
    physical = tf.config.list_physical_devices("GPU")
    if gpus and len(physical) > max(gpus):
        details = tf.config.experimental.get_device_details(physical[gpus[0]])
        name = str(details.get("device_name", "GPU"))
        return name if len(gpus) == 1 else f"{len(gpus)} x {name}"
    if any("TPU" in name for name in devices.names):
        return f"{len(devices.names)} x TPU"
    logical = [name.rpartition("device:")[2].lower() for name in devices.names]
    logical = logical if devices.on_device or len(logical) > 1 else []
    return f"CPU ({', '.join([platform.machine(), *logical])})"
