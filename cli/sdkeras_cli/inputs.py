"""What the commands that take a model and data have in common: options, checks before TensorFlow starts, loading."""

from __future__ import annotations

import os
from typing import Any

import attrs

from sdkeras.errors import SdkerasError
from sdkeras.files.atomic import shown
from sdkeras_cli.console import say


def check_inputs(model: str, data: str, custom_objects: str | None) -> None:
    """Refuses files that are not there, before TensorFlow takes its seconds to start."""
    if not os.path.exists(model):
        raise SdkerasError(f"there is no file {shown(model)}; give the path of a .keras or .h5 model.")
    files = data.split(",") if data.endswith(".npy") else [data] if data.endswith(".npz") else []
    for file in files:
        if not os.path.exists(file):
            raise SdkerasError(f"there is no data file {shown(file)}; check the path.")
    if custom_objects is not None and not os.path.isfile(custom_objects):
        raise SdkerasError(f"--custom-objects: there is no file {shown(custom_objects)}; give the Python file.")


def input_files(model: str, data: str, custom_objects: str | None) -> list[str]:
    """Paths that no output may have."""
    return [model, data, *data.split(","), *([custom_objects] if custom_objects else [])]


@attrs.frozen
class Loaded:
    """A model, its data, and the user's classes that copies of the model need as well."""

    model: Any
    data: Any
    custom_objects: dict[str, Any]


def load(model_path: str, data_spec: str, *, custom_objects: str | None, unsafe: bool, loss: str | None) -> Loaded:
    """Loads model and data; TensorFlow's settings must have been made.

    Raises:
        SdkerasError: Either cannot be loaded, or the model's loss cannot and none was given.
    """
    from sdkeras.files import models

    objects = models.load_custom_objects(custom_objects) if custom_objects else None
    model = models.load_model(model_path, custom_objects=objects, safe_mode=not unsafe)
    problem = models.compile_problem(model)
    if problem and not getattr(model, "compiled", False) and loss is None:
        raise SdkerasError(problem)
    if problem:
        say(f"sdkeras: warning: {problem}", err=True)
    return Loaded(model, load_training_data(data_spec), objects or {})


def load_training_data(spec: str) -> Any:
    """Data of training; what to know of them is told.

    Raises:
        SdkerasError: They cannot be loaded.
    """
    from sdkeras.files import models

    data, note = models.load_training_data(spec)
    if note:
        say(f"sdkeras: warning: {note}", err=True)
    return data
