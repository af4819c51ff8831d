"""The definition of a study: the trainings of a grid of settings and the measures of each, read from a TOML file."""

from __future__ import annotations

import itertools
import json
import math
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path

import attrs
import cattrs

from sdkeras.errors import SdkerasError, counted
from sdkeras.files.atomic import check_is_file, shown
from sdkeras.files.class_weights import checked
from sdkeras.files.reading import blamed_on
from sdkeras.results.arrays import Value
from sdkeras.results.codec import as_plain, converter
from sdkeras.results.document import SCHEMA_VERSION, Document
from sdkeras.runs.options import Options, parse_learning_rate
from sdkeras.study.measures import (
    ESTIMATOR_OF,
    OF_ANALYSES,
    OF_TRAJECTORIES,
    analysis_options,
    check_keys,
    check_measures,
    columns,
)

# Their order in a run's name, with their short names; the user's own settings stand between these and the seed.
_SHORT = {"learning_rate": "lr", "batch_size": "bs", "weight_decay": "wd"}
# The settings of a run that the training itself uses; all others are arguments of the model's factory.
OF_THE_RUNNER = ("batch_size", "seed")
_STUDY_KEYS = ("name", "text", "model", "data", "test_data", "epochs", "steps", "stop", "class_weight")
_TABLES = ("study", "grid", "measures", "trajectory", "analysis")
_STOP_KEYS = ("loss_below", "loss_above", "accuracy_below", "accuracy_above")
_ANALYSIS_KEYS = (
    *("learning_rate", "samples", "mode", "map", "dtype", "product_mode", "runs", "tolerance", "max_hvps"),
    "time_limit",
)
_FUNCTION = re.compile(r"[^/\\:,]+:[A-Za-z_][\w.]*")
_MOST_RUNS = 100_000

_Holds = Callable[[Value], object]


def _must(expected: str, holds: _Holds) -> Callable[[object, attrs.Attribute[Value], Value], None]:
    """A validator; None stands for a setting that was left out."""

    def validate(instance: object, field: attrs.Attribute[Value], value: object) -> None:
        if value is not None and not holds(value):
            raise SdkerasError(f"{field.name} is {value!r}; it must be {expected}.")

    return validate


def _in_one_line(text: str) -> str:
    return " ".join(text.split())


_AT_LEAST_1 = _must("a whole number of at least 1", lambda value: value >= 1)


@attrs.frozen(kw_only=True)
class TrajectorySettings:
    """The iterates that `e_alpha` and `ph_dimension` are computed from, the same in all runs of a study.

    Attributes:
        steps: Training steps: the last ones of training (backward), or simulated from its end on (forward).
        every: Steps between two iterates that are kept.
        alpha: Power of the edges.
        examples: Training examples whose losses define the data-dependent distance; drawn once, the same for all runs.
        projection: Dimension of a random projection of the iterates, or None.
    """

    steps: int = attrs.field(default=1000, validator=_AT_LEAST_1)
    every: int = attrs.field(default=1, validator=_AT_LEAST_1)
    alpha: float = attrs.field(default=1.0, validator=_must("a positive number", lambda value: 0 < value < math.inf))
    examples: int = attrs.field(default=500, validator=_AT_LEAST_1)
    projection: int | None = attrs.field(default=None, validator=_AT_LEAST_1)

    def __attrs_post_init__(self) -> None:
        if self.steps < 20 * self.every:
            raise SdkerasError(
                f"steps is {self.steps} and every {self.every}; the dimension needs at least 20 iterates: "
                f"steps = {20 * self.every} or more."
            )


@attrs.frozen
class GridRun:
    """One run of a grid.

    Attributes:
        name: Its settings in short, the name of its folder.
        settings: Hyperparameters by name, always with a seed.
    """

    name: str
    settings: dict[str, Value]


@attrs.frozen(eq=False, kw_only=True)
class Study(Document):
    """The definition of a study.

    Attributes:
        name: Name of the study.
        text: A description for the reader.
        model: `module:callable`, the factory of compiled models.
        data: Data of training, or a callable that returns both training and test data, see `sdkeras.files.dataset`.
        test_data: Data of the test, or None where `data` returns both.
        epochs: Epochs of training, or None.
        steps: Training steps instead, or None.
        stop: Thresholds of the training loss or accuracy of an epoch that end training early, by 'loss_below',
            'loss_above', 'accuracy_below', 'accuracy_above'.
        grid: The values of each setting.
        measures: Measures with their settings, see `sdkeras.study.measures`.
        trajectory: Iterates for `e_alpha` and `ph_dimension`.
        analysis: Options of `sdkeras.analyze`.
        class_weight: Weights of the loss by class (digits), in training and in every measure; {} for none.
    """

    DOCUMENT = "study"
    WRITTEN_BY = ("study.json", "sdkeras study run")

    name: str = ""
    text: str = attrs.field(default="", converter=_in_one_line)
    model: str = attrs.field(
        validator=_must("'module:callable', a function that returns a compiled model", _FUNCTION.fullmatch)
    )
    data: str
    test_data: str | None = None
    epochs: int | None = attrs.field(default=None, validator=_AT_LEAST_1)
    steps: int | None = attrs.field(default=None, validator=_AT_LEAST_1)
    stop: dict[str, float] = attrs.field(factory=dict)
    grid: dict[str, tuple[Value, ...]]
    measures: dict[str, dict[str, Value]]
    trajectory: TrajectorySettings = attrs.field(factory=TrajectorySettings)
    analysis: dict[str, Value] = attrs.field(factory=dict)
    class_weight: dict[str, float] = attrs.field(factory=dict)
    schema_version: int = SCHEMA_VERSION

    def __attrs_post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise SdkerasError("it needs either epochs or steps; say how long to train.")
        if self.test_data is None and not _FUNCTION.fullmatch(self.data):
            raise SdkerasError("it needs test_data, or data = 'module:callable' that gives ((x, y), (x_test, y_test)).")

    @property
    def runs(self) -> tuple[GridRun, ...]:
        """All combinations of the grid, in its order."""
        points = (dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values()))
        return tuple(GridRun(run_name(point), point) for point in points)

    @property
    def weights_by_class(self) -> dict[int, float] | None:
        """`class_weight` as Keras and `sdkeras.analyze` take it."""
        return {int(label): weight for label, weight in self.class_weight.items()} or None

    @property
    def records(self) -> bool:
        """Whether iterates are recorded while training."""
        return any("-backward-" in column for column in columns(self.measures))

    def training(self) -> dict[str, Value]:
        """Settings that all runs of a folder must share to stand in one table."""
        shared: dict[str, Value] = {
            key: getattr(self, key) for key in ("model", "data", "test_data", "epochs", "steps", "stop")
        }
        shared["class_weight"] = self.class_weight or None
        recorded = sorted(column for column in columns(self.measures) if "-backward-" in column)
        return {**shared, "recorded": {"for": recorded, **as_plain(self.trajectory)} if recorded else None}

    def measured_by(self, column: str) -> dict[str, Value]:
        """The settings, beside the training, that the value in a column of the table depends on."""
        measure = columns(self.measures)[column]
        if measure in OF_TRAJECTORIES:
            return {"trajectory": as_plain(self.trajectory)}
        # One analysis has all others: its estimators share its budget, and lambda_1, sharpness and trace come along.
        together = {name: self.measures[name] for name in ESTIMATOR_OF if name in self.measures}
        return {"measures": together, "analysis": dict(self.analysis)}

    def by_column(self) -> dict[str, dict[str, Value]]:
        """`measured_by` of every column of the table."""
        return {column: self.measured_by(column) for column in columns(self.measures)}


def read_study(path: str, *, full: bool = False) -> Study:
    """Reads the TOML file of a study.

    Tables: [study] name, text, model, data, test_data, epochs or steps, stop, class_weight; [grid] a value or a list of
    values for each setting; [measures] a table of settings for each name; [trajectory] and [analysis], optional.
    [full.study], [full.grid] and so on override these with `full`, key by key.

    Args:
        path: The file.
        full: Use the sizes under [full].

    Raises:
        SdkerasError: The file is missing, not TOML, or its definition cannot be run; the message names it.
    """
    check_is_file(path, SdkerasError, "give a TOML file.")
    with blamed_on(f"the study {shown(path)} cannot be read", "give a TOML file."):
        text = Path(path).read_bytes()
    with blamed_on(f"the study {shown(path)} is not TOML", "correct the file."):
        tables = tomllib.loads(text.decode("utf-8-sig"))
    try:
        with blamed_on("it defines no study", "correct the file."):
            over = tables.pop("full", None)
            if full:
                if over is None:
                    raise SdkerasError("it has no table [full], so there is nothing for `full=True`; leave it out.")
                _check_tables("the file", tables)
                _check_tables("[full]", over)
                tables = {name: _put_over(tables.get(name, {}), over.get(name, {})) for name in {**tables, **over}}
            return _study(tables)
    except SdkerasError as error:
        raise SdkerasError(f"{shown(path)}: {error}") from error


def run_name(settings: Mapping[str, Value]) -> str:
    """The settings, abbreviated, as the name of a folder: lr0.1-bs32-seed0."""
    return "-".join(f"{_SHORT.get(name, name)}{_in_name(value)}" for name, value in settings.items())


def differences(old: Mapping[str, Value], new: Mapping[str, Value]) -> list[str]:
    """The differences between two definitions of training, in words."""
    changed = []
    for name in {**old, **new}:
        before, now = old.get(name), new.get(name)
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            changed += [f"{name}.{each}" for each in differences(before, now)]
        elif before != now:
            changed.append(f"{name} was {before!r} and is {now!r}")
    return changed


def definition(study: Study) -> tuple[tuple[str, str], ...]:
    """Label and text of each part of the definition, settings as the TOML file has them.

    A measure or table without settings has the defaults of its analysis.
    """
    data = study.data if study.test_data is None else f"{study.data}, test {study.test_data}"
    stop = "" if not study.stop else f", or until {_settings(study.stop)}"
    constant = {name: values[0] for name, values in study.grid.items() if len(values) == 1}
    varied = {name: list(values) for name, values in study.grid.items() if len(values) > 1}
    rows = [("model", study.model), ("data", data), ("training", f"{length(study)}{stop}")]
    if study.class_weight:
        rows.append(("class weights", _settings(study.class_weight)))
    rows += [("varied", _settings(varied))] if varied else []
    rows += [("the same in all runs", _settings(constant))] if constant else []
    rows += [(f"measure {name}", _settings(options) or "defaults") for name, options in study.measures.items()]
    if any(name in OF_ANALYSES for name in study.measures):
        rows.append(("[analysis]", _settings(study.analysis) or "defaults"))
    if any(name in OF_TRAJECTORIES for name in study.measures):
        rows.append(("[trajectory]", _settings(as_plain(study.trajectory))))
    return tuple(rows)


def length(study: Study) -> str:
    """Length of the trainings, in words."""
    return counted(study.epochs, "epoch") if study.epochs else counted(study.steps or 0, "step")


def _settings(values: Mapping[str, Value]) -> str:
    return ", ".join(
        f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in values.items() if value is not None
    )


def _study(tables: Mapping[str, Value]) -> Study:
    _check_tables("the file", tables)
    study, measures = tables.get("study", {}), tables.get("measures", {})
    check_keys("[study]", study, _STUDY_KEYS)
    check_keys("[study] stop", study.get("stop", {}), _STOP_KEYS)
    check_keys("[trajectory]", tables.get("trajectory", {}), tuple(attrs.fields_dict(TrajectorySettings)))
    check_measures(measures)
    fields = {
        **study,
        "grid": _grid(tables.get("grid", {})),
        "measures": measures,
        "trajectory": tables.get("trajectory", {}),
        "analysis": _analysis(tables.get("analysis", {}), measures),
        "class_weight": _class_weight(study.get("class_weight")),
    }
    try:
        return converter().structure(fields, Study)
    except cattrs.BaseValidationError as error:
        reason, _, place = cattrs.transform_error(error, format_exception=_reason)[0].rpartition(" @ $")
        keys = place.strip(".").split(".")
        table = keys.pop(0) if keys[0] in _TABLES else "study"
        raise SdkerasError(f"[{table}] {'.'.join(keys)}{': ' if ''.join(keys) else ''}{reason}") from error


def _reason(error: BaseException, cls: object) -> str:
    if isinstance(error, KeyError):
        return "there is none; give a text, 'module:callable' for example."
    return str(error)


def _check_tables(where: str, tables: Mapping[str, Value]) -> None:
    check_keys(where, tables, _TABLES if where == "[full]" else (*_TABLES, "full"))
    for name, table in tables.items():
        check_keys(f"{where}: [{name}]", table, table)


def _put_over(table: Mapping[str, Value], over: Mapping[str, Value]) -> dict[str, Value]:
    """Key by key; epochs take the place of steps, and the other way round."""
    lengths = {"epochs", "steps"}
    kept = {key: value for key, value in table.items() if not (key in lengths and lengths & set(over))}
    return {**kept, **over}


def _class_weight(weights: object) -> dict[str, float]:
    """Weights by class; a TOML table has its classes as texts."""
    if weights is None:
        return {}
    example = "class_weight = { 0 = 1.0, 1 = 9.0 }"
    if not isinstance(weights, dict) or not all(re.fullmatch("[0-9]{1,9}", label) for label in weights):
        raise SdkerasError(f"[study] class_weight is {weights!r}; it must be a table of weights by class, {example}.")
    by_class = {int(label): weight for label, weight in weights.items()}
    if len(by_class) < len(weights):
        raise SdkerasError(f"[study] class_weight is {weights!r}; it names a class twice.")
    try:
        return {str(label): weight for label, weight in (checked(by_class) or {}).items()}
    except SdkerasError as error:
        raise SdkerasError(f"[study] {error}") from error


def _grid(table: Mapping[str, Value]) -> dict[str, list[Value]]:
    """The values of each setting, in the order of names; always with a seed."""
    lists = {name: value if isinstance(value, list) else [value] for name, value in table.items()}
    lists.setdefault("seed", [0])
    for name, values in lists.items():
        if not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise SdkerasError(f"[grid] {name!r} is not the name of an argument; use letters, digits and _.")
        if not values:
            raise SdkerasError(f"[grid] {name} is empty; give at least one value.")
        expected, holds = _SETTINGS.get(name, ("a number, a text, true or false", _is_plain))
        for value in values:
            if not holds(value):
                raise SdkerasError(f"[grid] {name} has the value {value!r}; it must be {expected}.")
        if len(set(values)) < len(values):
            raise SdkerasError(f"[grid] {name} names a value twice: {values}.")
    others = sorted(set(lists) - {*_SHORT, "seed"})
    ordered = {name: lists[name] for name in (*_SHORT, *others, "seed") if name in lists}
    count = math.prod(map(len, ordered.values()))
    if count > _MOST_RUNS:
        raise SdkerasError(f"[grid] makes {count:,} runs; {_MOST_RUNS:,} are the most.")
    names = {run_name(dict(zip(ordered, values, strict=True))) for values in itertools.product(*ordered.values())}
    if len(names) < count:
        raise SdkerasError("[grid] has values that cannot be told apart in the names of folders; rename them.")
    return ordered


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) < (2**64 if isinstance(value, int) else math.inf)


def _is_plain(value: object) -> bool:
    return _is_number(value) or isinstance(value, (bool, str))


# Expected values of the settings that every study knows.
_SETTINGS: dict[str, tuple[str, _Holds]] = {
    "learning_rate": ("a positive number", lambda value: _is_number(value) and value > 0),
    "weight_decay": ("a number of at least 0", lambda value: _is_number(value) and value >= 0),
    "batch_size": ("a whole number of at least 1", lambda value: type(value) is int and value > 0),
    "seed": ("a whole number of at least 0 and below 2^32", lambda value: type(value) is int and 0 <= value < 2**32),
}


def _analysis(options: Mapping[str, Value], measures: Mapping[str, Value]) -> dict[str, Value]:
    if "class_weight" in options:
        raise SdkerasError("[analysis] has no class_weight; put it under [study], for training and analysis alike.")
    check_keys("[analysis]", options, _ANALYSIS_KEYS)
    try:
        if "learning_rate" in options:
            options = {**options, "learning_rate": parse_learning_rate(options["learning_rate"])}
        Options(**{**analysis_options(measures), **options})
    except (SdkerasError, TypeError) as error:
        raise SdkerasError(f"[analysis] {error}") from error
    of_spectra = [name for name in measures if name in ESTIMATOR_OF]
    if options.get("map") == "full" and of_spectra:
        raise SdkerasError(
            f"[analysis] map is 'full', and {', '.join(of_spectra)} are of spectra of the Hessian; take 'auto' or "
            "'hessian'."
        )
    return dict(options)


def _in_name(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    return re.sub(r"[^\w.+]", "_", str(value))
