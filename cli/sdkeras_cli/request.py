"""Commands that work on a model: their arguments, checks before TensorFlow starts, loading, and the answer."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import attrs
import click

from sdkeras.errors import SdkerasError
from sdkeras.files import dataset
from sdkeras.files.atomic import shown
from sdkeras.files.keras_types import Data, Model
from sdkeras.files.user_code import load_custom_objects
from sdkeras.reporting.tables import plan_table
from sdkeras.results.answers import Analysis, CriticalRun, LandscapeRun, LyapunovRun, Run
from sdkeras.results.arrays import Value
from sdkeras_cli import conditions, interrupts
from sdkeras_cli.options import command_line
from sdkeras_cli.output import OF_ANALYSIS, Outputs, progress_bar, say, show_plan

if TYPE_CHECKING:
    from sdkeras.runs.cluster import Cluster

# The answer of each function of `sdkeras.runs`.
_DOCUMENTS: dict[str, type[Run]] = {
    "analyze": Analysis,
    "critical": CriticalRun,
    "landscape": LandscapeRun,
    "lyapunov": LyapunovRun,
}


@attrs.frozen
class Request:
    """The arguments of every command that works on a model, beside the options of the library."""

    model: str
    data: str
    custom_objects: str | None = None
    safe_mode: bool = True
    expression: str | None = None
    dry_run: bool = False
    outputs: Outputs = Outputs()

    @classmethod
    def taken_from(cls, parameters: dict[str, Value], names: tuple[str, str] = OF_ANALYSIS) -> Request:
        """Takes its fields out of a command's parameters and leaves the library's options; `names` see `Outputs`."""
        outputs = Outputs.taken_from(parameters, names)
        taken = {name: parameters.pop(name) for name in attrs.fields_dict(cls) if name in parameters}
        return cls(**taken, outputs=outputs)

    @property
    def quiet(self) -> bool:
        return self.outputs.quiet

    def check(self, *further_outputs: str | None, further_input: str | None = None) -> list[str]:
        """Refuses inputs that are not there and outputs that cannot be written; returns the outputs."""
        check_inputs(self.model, self.data, self.custom_objects)
        inputs = [self.model, self.data, *self.data.split(",")]
        inputs += [each for each in (self.custom_objects, further_input) if each is not None]
        return self.outputs.check(inputs, *further_outputs, dry_run=self.dry_run)

    @contextlib.contextmanager
    def loaded(
        self, loss: str | None, device: str, cluster: tuple[str, float] | None = None
    ) -> Iterator[tuple[Model, Data]]:
        """Starts TensorFlow and loads (model, data); the user's own classes are known in the scope, for copies.

        The hosts of a cluster, its name and seconds to wait, are found before TensorFlow has made anything.

        Raises:
            SdkerasError: The model cannot be used, or there is no such cluster.
        """
        tensorflow_settings(self.quiet, device if cluster is None else "auto")  # which looks for devices, too late
        if cluster is not None:
            from sdkeras.operators.device import prepare

            prepare(device)
            self._join(*cluster)
        import keras

        from sdkeras.files import models

        objects = load_custom_objects(self.custom_objects) if self.custom_objects else None
        model = models.load_model(self.model, custom_objects=objects, safe_mode=self.safe_mode)
        problem = models.compile_problem(model)
        if problem and not getattr(model, "compiled", False) and loss is None:
            raise SdkerasError(problem)
        if problem:
            say(f"sdkeras: warning: {problem}", err=True)
        data = load_training_data(self.data)
        with keras.saving.custom_object_scope(objects or {}):
            yield model, data

    def answer(self, function: str, options: dict[str, Value], outputs: list[str]) -> int:
        """Plans or calls a function of `sdkeras.runs` and shows its answer; returns the exit status."""
        condition = conditions.parse(self.expression, _DOCUMENTS[function])
        name = None if self.dry_run else options.get("cluster")
        cluster = None if name is None else (name, options["cluster_timeout"])
        report_to = options.pop("report_to", ())  # only once the answer is written and shown
        with self.loaded(options.get("loss"), options.get("device", "auto"), cluster) as (model, data):
            module: Any = importlib.import_module(f"sdkeras.runs.{function}")
            if self.dry_run:
                if options.get("cluster") is not None:
                    say("the plan is of one host; who the others are is asked only when the work begins", err=True)
                show_plan(plan_table(module.plan(model, data, **options)), outputs)
                return 0
            joined = None if cluster is None else self._join(*cluster)
            serving = None if joined is None or joined.is_chief else joined
            from sdkeras.reporting.trackers.reporter import reporting

            with reporting(report_to if serving is None else ()) as reporter:
                with progress_bar(self.quiet or serving is not None) as progress:
                    answer = getattr(module, function)(model, data, **options, progress=progress)
                if isinstance(answer, Analysis):
                    answer = self._with_commands(answer, options)
                if serving is None:
                    self.outputs.write(answer, answer, options.get("checkpoint"))
                if reporter:
                    reporter.analysis(answer)
        if serving is not None:
            if answer.partial:
                raise serving.interruption()
            if not self.quiet:
                say(f"{serving.words}: {serving.work}")
            return 0
        if answer.partial and options.get("checkpoint") is not None and not self.quiet:
            click.echo(f"the same command goes on from {shown(str(options['checkpoint']))}", err=True)
        return (
            interrupts.INTERRUPTED
            if answer.partial
            else conditions.exit_status(condition, conditions.numbers_of(answer))
        )

    def _with_commands(self, run: Analysis, given: dict[str, Value]) -> Analysis:
        """The answer with next steps as they are typed, for this model and its data."""
        beginning = ["sdkeras", "analyze", self.model, "--data", self.data]
        beginning += ["--custom-objects", self.custom_objects] if self.custom_objects else []
        beginning += [] if self.safe_mode else ["--unsafe"]
        steps = [
            attrs.evolve(step, command=step.command and command_line(step.command, beginning, given))
            for step in run.next_steps
        ]
        return attrs.evolve(run, next_steps=tuple(steps))

    def _join(self, name: str, timeout: float) -> Cluster:
        """The cluster, which this process joins once; another host than the chief says what it is there for."""
        from sdkeras.runs import cluster

        known = cluster.is_joined(name)
        joined = cluster.join(name, timeout)
        if not (known or joined.is_chief or self.quiet):
            say(f"{joined.words}: serving the chief at {joined.hosts[0].address}")
        return joined


def check_inputs(model: str, data: str, custom_objects: str | None) -> None:
    """Refuses a missing file before TensorFlow takes its seconds to start."""
    if not os.path.exists(model):
        raise SdkerasError(f"there is no file {shown(model)}; give the path of a .keras or .h5 model.")
    files = data.split(",") if data.endswith(".npy") else [data] if data.endswith(".npz") else []
    for file in files:
        if not os.path.exists(file):
            raise SdkerasError(f"there is no data file {shown(file)}; check the path.")
    if custom_objects is not None and not os.path.isfile(custom_objects):
        raise SdkerasError(f"--custom-objects: there is no file {shown(custom_objects)}; give the Python file.")


def load_training_data(spec: str) -> Data:
    """Loads training data and prints the caveats about them."""
    data, note = dataset.load_training_data(spec)
    if note:
        say(f"sdkeras: warning: {note}", err=True)
    return data


def tensorflow_settings(quiet: bool, device: str = "auto") -> None:
    """Starts TensorFlow with one intra-op thread and no chatter; refuses another backend and an absent device."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    backend = os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    if backend != "tensorflow":
        raise SdkerasError(
            f"KERAS_BACKEND is '{backend}'; sdkeras needs the TensorFlow backend: unset it, or set "
            "KERAS_BACKEND=tensorflow."
        )
    if not quiet and "tensorflow" not in sys.modules:
        say("starting TensorFlow, which takes a few seconds", err=True)
    stderr = os.dup(2)
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 2)  # TensorFlow's C++ greets on stderr before its log level counts
    try:
        with interrupts.signals(end=True):
            import keras  # noqa: F401
            import tensorflow
    finally:
        os.dup2(stderr, 2)
        os.close(silent)
        os.close(stderr)
    settings: Any = tensorflow.config.threading
    settings.set_intra_op_parallelism_threads(1)
    settings.set_inter_op_parallelism_threads(os.cpu_count() or 1)
    tensorflow.get_logger().setLevel("ERROR")
    if device != "auto":  # logical devices can be made only now
        from sdkeras.operators.device import devices

        devices(device)
