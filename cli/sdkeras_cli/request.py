"""Commands that work on a model: their arguments, checks before TensorFlow starts, loading, and the answer."""

from __future__ import annotations

import importlib
import os
from typing import Any

import attrs

from sdkeras.errors import SdkerasError
from sdkeras.files import dataset
from sdkeras.files.atomic import shown
from sdkeras.files.keras_types import Data, Model
from sdkeras.files.user_code import load_custom_objects
from sdkeras.results.answers import Analysis, LyapunovRun
from sdkeras_cli import conditions
from sdkeras_cli.console import say
from sdkeras_cli.interrupts import INTERRUPTED
from sdkeras_cli.options import Value
from sdkeras_cli.output import check_outputs, show_plan, write_reports
from sdkeras_cli.report import fail_if


@attrs.frozen
class Request:
    """The arguments of every command that works on a model, beside the options of the library."""

    model: str
    data: str
    custom_objects: str | None = None
    safe_mode: bool = True
    json_path: str | None = None
    html_path: str | None = None
    expression: str | None = None
    dry_run: bool = False
    quiet: bool = False

    @classmethod
    def taken_from(cls, parameters: dict[str, Value]) -> Request:
        """Takes its fields out of a command's parameters and leaves the library's options."""
        return cls(**{name: parameters.pop(name) for name in attrs.fields_dict(cls) if name in parameters})

    def outputs(self, *further: str | None) -> list[str]:
        """The files to be written."""
        return [path for path in (self.json_path, self.html_path, *further) if path is not None]

    def check(self, *further_outputs: str | None) -> list[str]:
        """Refuses inputs that are not there and outputs that cannot be written; returns the outputs."""
        check_inputs(self.model, self.data, self.custom_objects)
        outputs = self.outputs(*further_outputs)
        inputs = [self.model, self.data, *self.data.split(",")]
        check_outputs(outputs, inputs if self.custom_objects is None else [*inputs, self.custom_objects])
        return outputs

    def load(self, loss: str | None) -> tuple[Model, Data, dict[str, Value]]:
        """(model, data, the user's own classes), in a process whose TensorFlow is set up.

        Raises:
            SdkerasError: One cannot be loaded, or the model's loss cannot and none was given.
        """
        from sdkeras.files import models

        objects = load_custom_objects(self.custom_objects) if self.custom_objects else None
        model = models.load_model(self.model, custom_objects=objects, safe_mode=self.safe_mode)
        problem = models.compile_problem(model)
        if problem and not getattr(model, "compiled", False) and loss is None:
            raise SdkerasError(problem)
        if problem:
            say(f"sdkeras: warning: {problem}", err=True)
        return model, load_training_data(self.data), objects or {}

    def answer(
        self, function: str, options: dict[str, Value], outputs: list[str], document: type[Analysis | LyapunovRun]
    ) -> int:
        """Plans or calls a function of `sdkeras.runs` and shows its answer; returns the exit status."""
        from sdkeras_cli.main import tensorflow_settings
        from sdkeras_cli.progress import progress_bar

        condition = None if self.expression is None else conditions.parse(self.expression, document)
        tensorflow_settings()
        import keras

        module: Any = importlib.import_module(f"sdkeras.runs.{function}")
        model, data, objects = self.load(options.get("loss"))
        if self.dry_run:
            show_plan(module.plan(model, data, **options), outputs)
            return 0
        scope = keras.saving.custom_object_scope(objects)  # copies in other precisions need them as well
        with scope, progress_bar(self.quiet) as progress:
            answer = getattr(module, function)(model, data, **options, progress=progress)
        write_reports(answer, self.json_path, self.html_path, quiet=self.quiet)
        return INTERRUPTED if answer.partial else fail_if(answer, condition)


def check_inputs(model: str, data: str, custom_objects: str | None) -> None:
    """Checks inputs before TensorFlow takes its seconds to start.

    Raises:
        SdkerasError: A file is missing.
    """
    if not os.path.exists(model):
        raise SdkerasError(f"there is no file {shown(model)}; give the path of a .keras or .h5 model.")
    files = data.split(",") if data.endswith(".npy") else [data] if data.endswith(".npz") else []
    for file in files:
        if not os.path.exists(file):
            raise SdkerasError(f"there is no data file {shown(file)}; check the path.")
    if custom_objects is not None and not os.path.isfile(custom_objects):
        raise SdkerasError(f"--custom-objects: there is no file {shown(custom_objects)}; give the Python file.")


def load_training_data(spec: str) -> Value:
    """Loads training data and prints the caveats about them."""
    data, note = dataset.load_training_data(spec)
    if note:
        say(f"sdkeras: warning: {note}", err=True)
    return data
