"""How a study was made, in words: its training, constant settings, measures and options."""

from __future__ import annotations

import itertools
import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from sdkeras.errors import SdkerasError, counted
from sdkeras.files.atomic import check_is_file, shown
from sdkeras.files.class_weights import checked
from sdkeras.files.reading import blamed_on
from sdkeras.results.codec import as_plain
from sdkeras.results.document import SCHEMA_VERSION, Document
from sdkeras.runs.options import Options, parse_learning_rate
from sdkeras.study.measures import (
    ESTIMATOR_OF,
    OF_ANALYSES,
    OF_TRAJECTORIES,
    TrajectorySettings,
    analysis_options,
    check_measures,
    columns,
)

_DEFAULTS = "defaults"


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
    rows += [(f"measure {name}", _settings(given) or _DEFAULTS) for name, given in study.measures.items()]
    if any(name in OF_ANALYSES for name in study.measures):
        rows.append(("[analysis]", _settings(study.analysis) or _DEFAULTS))
    if any(name in OF_TRAJECTORIES for name in study.measures):
        rows.append(("[trajectory]", _settings(as_plain(study.trajectory))))
    return tuple(rows)


def length(study: Study) -> str:
    """How long the runs are trained."""
    return counted(study.epochs, "epoch") if study.epochs else counted(study.steps or 0, "step")


def _settings(given: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in given.items() if value is not None
    )


# Their order in a run's name, with their short names; settings of the user's own stand between these and the seed.
_SHORT = {"learning_rate": "lr", "batch_size": "bs", "weight_decay": "wd"}
# What the runner itself uses of a run's settings; all others are for the model's factory.
OF_THE_RUNNER = ("batch_size", "seed")
_TABLES = ("study", "grid", "measures", "trajectory", "analysis")
_STUDY_KEYS = ("name", "text", "model", "data", "test_data", "epochs", "steps", "stop", "class_weight")
_STOP_KEYS = ("loss_below", "loss_above", "accuracy_below", "accuracy_above")
_ANALYSIS_KEYS = (
    *("learning_rate", "samples", "mode", "map", "dtype", "product_mode", "runs", "tolerance", "max_hvps"),
    "time_limit",
)
_FUNCTION = re.compile(r"[^/\\:,]+:[A-Za-z_][\w.]*")
_MOST_RUNS = 100_000


@attrs.frozen
class GridRun:
    """One run of a grid.

    Attributes:
        name: Its settings in short, the name of its folder.
        settings: Hyperparameters by name, always with a seed.
    """

    name: str
    settings: dict[str, Any]


@attrs.frozen(eq=False)
class Study(Document):
    """The definition of a study.

    Attributes:
        name: Of the study.
        text: What it is, for the reader.
        model: `module:callable`, the factory of compiled models.
        data: Data of training, or a callable that gives both, see `sdkeras.files.dataset`.
        test_data: Data of the test, or None where `data` gives both.
        epochs: Epochs of training, or None.
        steps: Training steps instead, or None.
        stop: Thresholds of the training loss or accuracy of an epoch that end training early, by 'loss_below',
            'loss_above', 'accuracy_below', 'accuracy_above'.
        grid: The values of each setting.
        measures: What to measure, with settings, see `sdkeras.study.measures`.
        trajectory: Iterates for `e_alpha` and `ph_dimension`.
        analysis: Options of `sdkeras.analyze`.
        class_weight: Weights of the loss by class (digits), in training and in every measure; {} for none.
    """

    DOCUMENT = "study"
    WRITTEN_BY = ("study.json", "sdkeras study run")

    name: str
    text: str
    model: str
    data: str
    test_data: str | None
    epochs: int | None
    steps: int | None
    stop: dict[str, float]
    grid: dict[str, tuple[Any, ...]]
    measures: dict[str, dict[str, Any]]
    trajectory: TrajectorySettings
    analysis: dict[str, Any]
    class_weight: dict[str, float] = attrs.field(factory=dict)
    schema_version: int = SCHEMA_VERSION

    @property
    def runs(self) -> tuple[GridRun, ...]:
        """All combinations of the grid, in its order."""
        return tuple(
            GridRun(run_name(point), point)
            for point in (
                dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())
            )
        )

    @property
    def weights_by_class(self) -> dict[int, float] | None:
        """`class_weight` as Keras and `sdkeras.analyze` take it."""
        return {int(label): weight for label, weight in self.class_weight.items()} or None

    @property
    def records(self) -> bool:
        """Whether iterates are recorded while training."""
        return any("-backward-" in column for column in columns(self.measures))

    def training(self) -> dict[str, Any]:
        """What all runs of a folder must share so that they can stand in one table."""
        shared: dict[str, Any] = {
            key: getattr(self, key) for key in ("model", "data", "test_data", "epochs", "steps", "stop")
        }
        shared["class_weight"] = self.class_weight or None
        recorded = [column for column in columns(self.measures) if "-backward-" in column]
        return {**shared, "recorded": {"for": sorted(recorded), **as_plain(self.trajectory)} if recorded else None}

    def measured_by(self, column: str) -> dict[str, Any]:
        """What the value in a column of the table rests on beside the training: the settings it was measured with."""
        measure = columns(self.measures)[column]
        if measure in OF_TRAJECTORIES:
            return {"trajectory": as_plain(self.trajectory)}
        # All that come from an analysis are of the same one, which shares its budget among its estimators and has
        # lambda_1, sharpness and trace at any rate.
        together = {name: self.measures[name] for name in ESTIMATOR_OF if name in self.measures}
        return {"measures": together, "analysis": dict(self.analysis)}

    def by_column(self) -> dict[str, dict[str, Any]]:
        """`measured_by` of every column of the table."""
        return {column: self.measured_by(column) for column in columns(self.measures)}


def read_study(path: str, *, full: bool = False) -> Study:
    """Reads the TOML file of a study.

    Tables: [study] name, text, model, data, test_data, epochs or steps, stop, class_weight; [grid] a value or a list of
    values for each setting; [measures] a table of settings for each name; [trajectory] and [analysis], optional.
    [full.study], [full.grid] and so on hold what `full` puts over these, key by key.

    Args:
        path: The file.
        full: The sizes under [full].

    Raises:
        SdkerasError: Missing, no TOML, or a definition that cannot be run; the message names the file.
    """
    check_is_file(path, SdkerasError, "give a TOML file.")
    with blamed_on(f"the study {shown(path)} cannot be read", "give a TOML file."):
        text = Path(path).read_bytes()
    with blamed_on(f"the study {shown(path)} is not TOML", "correct the file."):
        tables = tomllib.loads(text.decode("utf-8-sig"))
    try:
        over = tables.pop("full", None)
        if full:
            if not isinstance(over, dict):
                raise SdkerasError("it has no table [full], so there is nothing for `full=True`; leave it out.")
            _check_tables(tables, "")
            _check_tables(over, "full.")
            tables = {name: _put_over(tables.get(name, {}), over.get(name, {})) for name in {**tables, **over}}
        with blamed_on("it defines no study", "correct the file."):
            return _study(tables)
    except SdkerasError as error:
        raise SdkerasError(f"{shown(path)}: {error}") from error


def run_name(settings: Mapping[str, Any]) -> str:
    """The settings in short, as the name of a folder: lr0.1-bs32-seed0."""
    return "-".join(f"{_SHORT.get(name, name)}{_in_name(value)}" for name, value in settings.items())


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two definitions of training, in words."""
    found = []
    for name in {**old, **new}:
        before, now = old.get(name), new.get(name)
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            found += [f"{name}.{each}" for each in differences(before, now)]
        elif before != now:
            found.append(f"{name} was {before!r} and is {now!r}")
    return found


def _study(tables: Mapping[str, Any]) -> Study:
    _check_tables(tables, "")
    given = tables.get("study", {})
    _known("study", given, _STUDY_KEYS)
    for key in ("model", "data"):
        if not isinstance(given.get(key), str):
            raise SdkerasError(f"[study] needs {key}, a text; {key} = 'module:callable', for example.")
    if not _FUNCTION.fullmatch(given["model"]):
        raise SdkerasError(
            f"[study] model is {given['model']!r}; give 'module:callable', a function that returns a compiled model."
        )
    for key in ("name", "text", "test_data"):
        if not isinstance(given.get(key, ""), str):
            raise SdkerasError(f"[study] {key} is {given[key]!r}; it must be a text.")
    lengths = {key: given.get(key) for key in ("epochs", "steps") if given.get(key) is not None}
    if len(lengths) != 1:
        raise SdkerasError("[study] needs either epochs or steps; say how long to train.")
    for key, value in lengths.items():
        if type(value) is not int or value < 1:
            raise SdkerasError(f"[study] {key} is {value!r}; it must be a whole number of at least 1.")
    _known("trajectory", tables.get("trajectory", {}), tuple(attrs.fields_dict(TrajectorySettings)))
    measures = tables.get("measures", {})
    check_measures(measures)
    made = Study(
        name=given.get("name", ""),
        text=" ".join(given.get("text", "").split()),
        model=given["model"],
        data=given["data"],
        test_data=given.get("test_data"),
        epochs=lengths.get("epochs"),
        steps=lengths.get("steps"),
        stop=_stop(given.get("stop", {})),
        grid=_grid(tables.get("grid", {})),
        measures={name: dict(settings) for name, settings in measures.items()},
        trajectory=TrajectorySettings(**tables.get("trajectory", {})),
        analysis=_analysis(tables.get("analysis", {}), measures),
        class_weight=_class_weight(given.get("class_weight")),
    )
    if made.test_data is None and not _FUNCTION.fullmatch(made.data):
        raise SdkerasError(
            "[study] needs test_data, or data = 'module:callable' that gives ((x, y), (x_test, y_test))."
        )
    return made


def _put_over(table: Any, over: Mapping[str, Any]) -> dict[str, Any]:
    """Key by key; epochs take the place of steps, and the other way round."""
    lengths = {"epochs", "steps"}
    kept = {key: value for key, value in dict(table).items() if not (key in lengths and lengths & set(over))}
    return {**kept, **over}


def _check_tables(tables: Mapping[str, Any], where: str) -> None:
    for name, table in tables.items():
        if name not in _TABLES:
            raise SdkerasError(f"there is no table [{where}{name}]; there are: {', '.join((*_TABLES, 'full'))}.")
        if not isinstance(table, dict):
            raise SdkerasError(f"{where}{name} is {table!r}; it must be a table, [{where}{name}].")


def _known(table: str, given: Mapping[str, Any], keys: tuple[str, ...]) -> None:
    for key in given:
        if key not in keys:
            raise SdkerasError(f"[{table}] has no '{key}'; it has: {', '.join(keys)}.")


def _stop(given: Any) -> dict[str, float]:
    if not isinstance(given, dict):
        raise SdkerasError(f"[study] stop is {given!r}; it must be a table, stop = {{ loss_below = 0.01 }}.")
    _known("study.stop", given, _STOP_KEYS)
    for key, value in given.items():
        if type(value) not in (int, float):
            raise SdkerasError(f"[study] stop.{key} is {value!r}; it must be a number.")
    return {key: float(value) for key, value in given.items()}


def _class_weight(given: Any) -> dict[str, float]:
    """Weights by class; a TOML table has its classes as texts."""
    if given is None:
        return {}
    example = "class_weight = { 0 = 1.0, 1 = 9.0 }"
    if not isinstance(given, dict) or not all(re.fullmatch("[0-9]{1,9}", label) for label in given):
        raise SdkerasError(f"[study] class_weight is {given!r}; it must be a table of weights by class, {example}.")
    if len({int(label) for label in given}) < len(given):
        raise SdkerasError(f"[study] class_weight is {given!r}; it names a class twice.")
    try:
        weights = checked({int(label): weight for label, weight in given.items()})
    except SdkerasError as error:
        raise SdkerasError(f"[study] {error}") from error
    return {str(label): weight for label, weight in (weights or {}).items()}


def _grid(given: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    """The values of each setting, in the order of names; always with a seed."""
    lists = {name: tuple(value) if isinstance(value, list) else (value,) for name, value in given.items()}
    lists.setdefault("seed", (0,))
    for name, values in lists.items():
        if not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise SdkerasError(f"[grid] {name!r} is no name of an argument; use letters, digits and _.")
        if not values:
            raise SdkerasError(f"[grid] {name} is empty; give at least one value.")
        for value in values:
            _check_setting(name, value)
        if len(set(values)) < len(values):
            raise SdkerasError(f"[grid] {name} names a value twice: {list(values)}.")
    own = sorted(set(lists) - {*_SHORT, "seed"})
    ordered = {name: lists[name] for name in (*_SHORT, *own, "seed") if name in lists}
    count = 1
    for values in ordered.values():
        count *= len(values)
    if count > _MOST_RUNS:
        raise SdkerasError(f"[grid] makes {count:,} runs; {_MOST_RUNS:,} are the most.")
    names = [run_name(dict(zip(ordered, values, strict=True))) for values in itertools.product(*ordered.values())]
    if len(set(names)) < len(names):
        raise SdkerasError("[grid] has values that cannot be told apart in the names of folders; rename them.")
    return ordered


def _check_setting(name: str, value: Any) -> None:
    expected = ""
    number = type(value) in (int, float) and abs(value) < (2**64 if type(value) is int else float("inf"))
    if name == "learning_rate" and not (number and value > 0):
        expected = "a positive number"
    elif name == "weight_decay" and not (number and value >= 0):
        expected = "a number of at least 0"
    elif name == "batch_size" and not (type(value) is int and value > 0):
        expected = "a whole number of at least 1"
    elif name == "seed" and not (type(value) is int and 0 <= value < 2**32):
        expected = "a whole number of at least 0 and below 2^32"
    elif not (number or type(value) in (bool, str)):
        expected = "a number, a text, true or false"
    if expected:
        raise SdkerasError(f"[grid] {name} has the value {value!r}; it must be {expected}.")


def _analysis(given: Mapping[str, Any], measures: Mapping[str, Any]) -> dict[str, Any]:
    if "class_weight" in given:
        raise SdkerasError("[analysis] has no class_weight; put it under [study], for training and analysis alike.")
    _known("analysis", given, _ANALYSIS_KEYS)
    try:
        if "learning_rate" in given:
            given = {**given, "learning_rate": parse_learning_rate(given["learning_rate"])}
        Options(**{**analysis_options(measures), **given})
    except (SdkerasError, TypeError) as error:
        raise SdkerasError(f"[analysis] {error}") from error
    if given.get("map") == "full" and any(name in ESTIMATOR_OF for name in measures):
        raise SdkerasError(
            f"[analysis] map is 'full', and {', '.join(name for name in measures if name in ESTIMATOR_OF)} are of "
            "spectra of the Hessian; take 'auto' or 'hessian'."
        )
    return dict(given)


def _in_name(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    return re.sub(r"[^\w.+]", "_", str(value))
