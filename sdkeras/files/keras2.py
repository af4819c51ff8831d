"""Files that Keras 2 wrote: their compile configuration in the words of Keras 3, and what cannot be loaded."""

from __future__ import annotations

from sdkeras.files.keras_types import Config
from sdkeras.files.model_file import ModelFile

# Written by its own classes of layers, for TensorFlow operations between layers.
_OPERATIONS = ("TFOpLambda", "SlicingOpLambda", "ClassMethod", "InstanceMethod", "InstanceProperty")
# Classes that Keras 3 does not know because they were those of Keras 2, not of the user's.
CLASSES = (*_OPERATIONS, "Functional", "Model", "Sequential")

# Of optimizers: what Keras 3 has no more, and never changed a step.
_DROPPED = ("jit_compile", "is_legacy_optimizer", "decay", "lr")
_SCHEDULE = {"module": "keras.optimizers.schedules", "registered_name": None}
_REDUCTIONS = {"auto": "sum_over_batch_size", "none": None}


def cannot_load(file: ModelFile, reason: str) -> str:
    """The message for a model that Keras 3 cannot build from a file of Keras 2."""
    operations = [name for name in _OPERATIONS if f'"{name}"' in file.text]
    if operations:
        reason = f"it holds TensorFlow operations between layers ({operations[0]}), which Keras 3 cannot rebuild"
    text = (
        f"model file {file.path!r} was written by Keras 2 (version {file.version}), and Keras 3 cannot load it: "
        f"{reason}. "
    )
    if not file.is_h5 and not operations:
        return text + (
            "Load it with tf_keras (pip install tf-keras) and save it with model.save('model.h5'), which is read here."
        )
    return text + (
        "Load it with tf_keras (pip install tf-keras), build the same model in Keras 3, copy the weights with "
        "new_model.set_weights(old_model.get_weights()), compile it and save it with new_model.save('model.keras')."
    )


def translated(compiled: dict[str, Config]) -> dict[str, Config]:
    """A stored compile configuration of Keras 2, as Keras 3 writes it into .h5 files (`training_config`)."""
    changed = {name: value for name, value in compiled.items() if name != "optimizer"}
    changed["optimizer_config"] = _optimizer(compiled.get("optimizer_config", compiled.get("optimizer")))
    changed["loss"] = _loss(changed.get("loss"))
    # Measured for the user during training; Keras 2 stores classes that Keras 3 lacks.
    for key in ("metrics", "weighted_metrics"):
        changed.pop(key, None)
    return changed


def _optimizer(stored: Config) -> Config:
    if not isinstance(stored, dict):
        return stored
    config = dict(stored.get("config") or {})
    rate = config.get("learning_rate", config.get("lr"))
    decay = config.get("decay")
    config = {name: value for name, value in config.items() if name not in _DROPPED}
    if rate is not None:
        config["learning_rate"] = rate
    if isinstance(rate, dict):
        settings = dict(rate.get("config") or {})
        if settings.get("name", "") is None:
            del settings["name"]
        config["learning_rate"] = {**_SCHEDULE, **rate, "config": settings}
    elif decay:  # rate / (1 + decay * iterations)
        settings = {"initial_learning_rate": rate, "decay_steps": 1, "decay_rate": decay}
        config["learning_rate"] = {**_SCHEDULE, "class_name": "InverseTimeDecay", "config": settings}
    return {"class_name": str(stored.get("class_name")).removeprefix("Custom>"), "config": config}


def _loss(stored: Config) -> Config:
    if isinstance(stored, dict) and isinstance(stored.get("config"), dict) and "class_name" in stored:
        config = {name: value for name, value in stored["config"].items() if name != "fn"}
        if "reduction" in config:
            config["reduction"] = _REDUCTIONS.get(config["reduction"], config["reduction"])
        kept = {"registered_name": stored["registered_name"]} if stored.get("registered_name") else {}
        return {"class_name": stored["class_name"], "config": config, **kept}
    if isinstance(stored, dict) and "class_name" not in stored:
        return {name: _loss(each) for name, each in stored.items()}
    return [_loss(each) for each in stored] if isinstance(stored, list) else stored
