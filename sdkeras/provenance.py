"""What an answer says of its model, its optimizer and its making."""

from __future__ import annotations

import datetime
import platform
import time
from typing import Any

import keras
import tensorflow as tf

import sdkeras
from sdkeras.errors import ModelError
from sdkeras.operators import precision
from sdkeras.operators.batches import Source
from sdkeras.operators.loss import check_model
from sdkeras.operators.update import OptimizerSettings
from sdkeras.reporting.schema import DataInfo, OptimizerInfo, Provenance


def with_loss(model: Any, loss: Any, dtype: str) -> Any:
    """The model, or where a loss is given a copy compiled with it.

    Raises:
        ModelError: Not a compiled model, or a loss that Keras does not know.
    """
    check_model(model, needs_loss=loss is None)
    if loss is None:
        return model
    made = precision.in_precision(model, dtype)
    try:
        with precision.default_precision(dtype):
            made.compile(optimizer="sgd", loss=_named_loss(loss) if isinstance(loss, str) else loss)
    except ValueError as error:
        raise ModelError(
            f"the loss {loss!r} is unknown to Keras; give one of keras.losses, as mse, or of logits, as "
            "sparse_categorical_crossentropy:from_logits."
        ) from error
    return made


def _named_loss(name: str) -> Any:
    """The name, once Keras has been seen to know it; for 'NAME:from_logits' the loss that takes logits.

    Raises:
        ValueError: There is none.
    """
    base, colon, option = name.partition(":")
    if not colon:
        keras.losses.get(name)
        return name
    wanted = base.replace("_", "").lower()
    for cls in vars(keras.losses).values():
        if isinstance(cls, type) and cls.__name__.lower() == wanted and option == "from_logits":
            try:
                return cls(from_logits=True)
            except TypeError as error:
                raise ValueError(f"{cls.__name__} takes no logits") from error
    raise ValueError(f"no loss {name}")


def loss_name(loss: Any) -> str:
    """A compiled loss in words, in whatever structure it was given."""
    if isinstance(loss, str):
        return loss
    if isinstance(loss, dict):
        return ", ".join(f"{name}: {loss_name(part)}" for name, part in loss.items())
    if isinstance(loss, (list, tuple)):
        return ", ".join(loss_name(part) for part in loss)
    return str(getattr(loss, "name", None) or getattr(loss, "__name__", type(loss).__name__))


def optimizer_info(optimizer: OptimizerSettings | None, rate: float, source: str) -> OptimizerInfo:
    """The optimizer of a report; the learning rate and where it came from are the analysis' own."""
    if optimizer is None:
        return OptimizerInfo("unknown", rate, learning_rate_source=source)
    return OptimizerInfo(
        name=optimizer.name,
        learning_rate=rate,
        momentum=optimizer.momentum,
        weight_decay=optimizer.weight_decay,
        iterations=optimizer.iterations,
        nesterov=optimizer.nesterov,
        learning_rate_source=source,
    )


def data_info(source: Source, num_samples_hessian: int) -> DataInfo:
    """The data of a report."""
    weights = source.class_weight
    named = None if weights is None else {str(label): weight for label, weight in weights.items()}
    return DataInfo(source.num_samples, source.batch_size, num_samples_hessian, named)


def provenance(source: Source, *, seed: int, dtype: str, num_hvps: int, started: float) -> Provenance:
    """Versions, device, cost and data of an answer that is made now; `started` is of `time.monotonic`."""
    return Provenance(
        sdkeras=sdkeras.__version__,
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
