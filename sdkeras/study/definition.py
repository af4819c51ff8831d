"""The definition of a study, read from a TOML file: a grid of trainings, and the measures of each by column."""

from __future__ import annotations

import itertools
import json
import math
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import attrs
import cattrs

from sdkeras.errors import SdkerasError, counted, did_you_mean
from sdkeras.estimators import registry
from sdkeras.estimators.select import configured
from sdkeras.files.atomic import check_is_file, shown
from sdkeras.files.class_weights import checked
from sdkeras.files.dataset import is_function
from sdkeras.files.reading import blamed_on
from sdkeras.results.arrays import Value, is_number
from sdkeras.results.codec import as_plain, converter
from sdkeras.results.document import SCHEMA_VERSION, Document
from sdkeras.runs.declare import COUNT, must, parse_learning_rate
from sdkeras.runs.options import Options

# Measures that are the sharpness dimension, and the spectrum estimator that each is by. The first of these in a study
# is the one that lambda_1 is by, so those that do not round an exponent to the middle of a bin come first.
ESTIMATOR_OF = {"sd": "exact", "slq": "slq", "sd-ps": "sd-ps", "sd-kde": "sd-kde", "sd-slq": "sd-slq"}
# Those that every analysis has.
READ = ("lambda_1", "sharpness", "trace")
OF_ANALYSES = (*ESTIMATOR_OF, *READ)
# Those whose values are of a map and its state, and compare only within it.
OF_A_MAP = (*ESTIMATOR_OF, "lambda_1")
# Those of a trajectory of the weights.
OF_TRAJECTORIES = ("e_alpha", "ph_dimension")
NAMES = (*OF_ANALYSES, *OF_TRAJECTORIES)

# Their order in a run's name, with their short names; the user's own settings stand between these and the seed.
_SHORT = {"learning_rate": "lr", "batch_size": "bs", "weight_decay": "wd"}
_TABLES = ("study", "grid", "measures", "trajectory", "analysis")
_STUDY_KEYS = ("name", "text", "model", "data", "test_data", "epochs", "steps", "stop", "class_weight")
_STOP_KEYS = ("loss_below", "loss_above", "accuracy_below", "accuracy_above")
_ANALYSIS_KEYS = (
    *("learning_rate", "samples", "mode", "map", "dtype", "product_mode", "jit", "runs", "tolerance", "max_hvps"),
    *("time_limit", "device", "micro_batch"),
)
_MOST_RUNS = 100_000
# End of the names of columns of the map hessian, in studies that have it beside the optimizer's own.
_OF_PAPERS_MAP = "-map-hessian"
_MAPS = ("auto", "hessian")

_Settings = Mapping[str, Mapping[str, Value]]


def columns(measures: _Settings, maps: Sequence[str] = ("auto",)) -> dict[str, str]:
    """The columns of the table and the measure that each belongs to, in order."""
    measure_of = {}
    for name, settings in measures.items():
        if name in OF_TRAJECTORIES:
            trajectories = _listed(settings, "trajectory", ("forward", "backward"))
            metrics = _listed(settings, "metric", ("euclidean", "data"))
            measure_of.update({f"{name}-{kind}-{metric}": name for kind in trajectories for metric in metrics})
        else:
            measure_of[name] = name
            if len(maps) > 1 and name in OF_A_MAP:
                measure_of[name + _OF_PAPERS_MAP] = name
    return measure_of


def parts_of_column(column: str) -> tuple[str, str, str]:
    """(measure, trajectory, metric) of the column of a measure of a trajectory."""
    measure, trajectory, metric = column.split("-")
    return measure, trajectory, metric


def analysis_options(measures: _Settings) -> dict[str, Value]:
    """Options of `sdkeras.analyze` that take all of these measures at once."""
    taken = {ESTIMATOR_OF[name]: dict(measures[name]) for name in ESTIMATOR_OF if name in measures}
    return {
        "estimators": tuple(taken),
        "settings": {name: settings for name, settings in taken.items() if settings and name != "exact"},
        "exact_minibatches": taken.get("exact", {}).get("minibatches"),
    }


def _listed(settings: Mapping[str, Value], key: str, all_of: tuple[str, ...]) -> tuple[str, ...]:
    """One of `all_of`, a list of them, or by default all."""
    value = settings.get(key, all_of)
    chosen = [value] if isinstance(value, str) else value
    if not isinstance(chosen, (list, tuple)) or not chosen or not all(each in all_of for each in chosen):
        raise SdkerasError(f"[measures] {key} is {value!r}; it must be one of {', '.join(all_of)}, or a list of them.")
    return tuple(dict.fromkeys(chosen))


def _in_one_line(text: str) -> str:
    return " ".join(text.split())


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

    steps: int = attrs.field(default=1000, validator=COUNT)
    every: int = attrs.field(default=1, validator=COUNT)
    alpha: float = attrs.field(default=1.0, validator=must("a positive number", lambda value: 0 < value < math.inf))
    examples: int = attrs.field(default=500, validator=COUNT)
    projection: int | None = attrs.field(default=None, validator=COUNT)

    def __attrs_post_init__(self) -> None:
        if self.steps < 20 * self.every:
            raise SdkerasError(
                f"steps is {self.steps} and every {self.every}; the dimension needs at least 20 iterates: "
                f"steps = {20 * self.every} or more."
            )


@attrs.frozen
class GridRun:
    """One run of a grid: the name of its folder, and its hyperparameters by name, always with a seed."""

    name: str
    settings: dict[str, Value]


@attrs.frozen(eq=False, kw_only=True)
class Study(Document):
    """The definition of a study.

    Attributes:
        model: `module:callable`, the factory of compiled models.
        data: Data of training, or a callable that returns both training and test data, see `sdkeras.files.dataset`.
        stop: Thresholds of the training loss or accuracy of an epoch that end training early, by `_STOP_KEYS`.
        analysis: Options of `sdkeras.analyze`.
        class_weight: Weights of the loss by class (digits), in training and in every measure; {} for none.
    """

    DOCUMENT = "study"
    WRITTEN_BY = ("study.json", "sdkeras study run")

    name: str = ""
    text: str = attrs.field(default="", converter=_in_one_line)
    model: str = attrs.field(validator=must("'module:callable', a function that returns a compiled model", is_function))
    data: str
    test_data: str | None = None
    epochs: int | None = attrs.field(default=None, validator=COUNT)
    steps: int | None = attrs.field(default=None, validator=COUNT)
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
        if self.test_data is None and not is_function(self.data):
            raise SdkerasError("it needs test_data, or data = 'module:callable' that gives ((x, y), (x_test, y_test)).")

    @property
    def runs(self) -> tuple[GridRun, ...]:
        """All combinations of the grid, in its order."""
        return tuple(GridRun(run_name(point), point) for point in _points(self.grid))

    @property
    def weights_by_class(self) -> dict[int, float] | None:
        """`class_weight` as Keras and `sdkeras.analyze` take it."""
        return {int(label): weight for label, weight in self.class_weight.items()} or None

    @property
    def maps(self) -> tuple[str, ...]:
        """The maps whose measures are taken; of a second one all but those that no map enters."""
        chosen = self.analysis.get("map", "auto")
        return (chosen,) if isinstance(chosen, str) else tuple(chosen)

    @property
    def columns(self) -> dict[str, str]:
        """The columns of the table and the measure that each belongs to, in order."""
        return columns(self.measures, self.maps)

    def map_of(self, column: str) -> str:
        """The map that a measure of an analysis is of."""
        return self.maps[column.endswith(_OF_PAPERS_MAP)]

    def analysis_of(self, name: str) -> dict[str, Value]:
        """Options of the analysis of one of the maps; `auto`, the default, is left out."""
        options = {key: value for key, value in self.analysis.items() if key != "map"}
        return options if name == "auto" else {**options, "map": name}

    @property
    def recorded(self) -> list[str]:
        """Columns whose iterates are recorded while training, in alphabetical order."""
        return sorted(column for column in self.columns if "-backward-" in column)

    @property
    def needing_a_rate(self) -> tuple[str, ...]:
        """The measures that have no value without a learning rate."""
        return tuple(name for name in self.measures if name in OF_A_MAP and self.maps != ("full",))

    def training(self) -> dict[str, Value]:
        """Settings that all runs of a folder must share to stand in one table."""
        shared = {key: getattr(self, key) for key in ("model", "data", "test_data", "epochs", "steps", "stop")}
        recorded = {"for": self.recorded, **as_plain(self.trajectory)} if self.recorded else None
        return {**shared, "class_weight": self.class_weight or None, "recorded": recorded}

    def by_column(self) -> dict[str, dict[str, Value]]:
        """The settings, beside the training, that the value in each column of the table depends on."""
        # One analysis has all of its measures: the estimators share its budget, and lambda_1, sharpness and trace come
        # along.
        together = {name: self.measures[name] for name in ESTIMATOR_OF if name in self.measures}
        of_analyses = {name: {"measures": together, "analysis": self.analysis_of(name)} for name in self.maps}
        of_trajectories = {"trajectory": as_plain(self.trajectory)}
        return {
            column: of_trajectories if measure in OF_TRAJECTORIES else of_analyses[self.map_of(column)]
            for column, measure in self.columns.items()
        }


def read_study(path: str, *, full: bool = False) -> Study:
    """Reads the TOML file of a study.

    Tables: [study] name, text, model, data, test_data, epochs or steps, stop, class_weight; [grid] a value or a list of
    values for each setting; [measures] a table of settings for each name; [trajectory] and [analysis], optional.
    [full.study], [full.grid] and so on override these with `full`, key by key.

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
            _check_tables("the file", tables)
            if full:
                if over is None:
                    raise SdkerasError("it has no table [full], so there is nothing for `full=True`; leave it out.")
                _check_tables("[full]", over)
                tables = {name: _put_over(tables.get(name, {}), over.get(name, {})) for name in {**tables, **over}}
            return _study(tables)
    except SdkerasError as error:
        raise SdkerasError(f"{shown(path)}: {error}") from error


def run_name(settings: Mapping[str, Value]) -> str:
    """The settings, abbreviated, as the name of a folder: lr0.1-bs32-seed0."""
    return "-".join(f"{_SHORT.get(name, name)}{_in_name(value)}" for name, value in settings.items())


def _in_name(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    return re.sub(r"[^\w.+]", "_", str(value))


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
    rows = {
        "model": study.model,
        "data": study.data if study.test_data is None else f"{study.data}, test {study.test_data}",
        "training": length(study) + (f", or until {_settings(study.stop)}" if study.stop else ""),
        "class weights": _settings(study.class_weight),
        "varied": _settings({name: list(values) for name, values in study.grid.items() if len(values) > 1}),
        "the same in all runs": _settings({name: each[0] for name, each in study.grid.items() if len(each) == 1}),
        **{f"measure {name}": _settings(options) or "defaults" for name, options in study.measures.items()},
    }
    if any(name in OF_ANALYSES for name in study.measures):
        rows["[analysis]"] = _settings(study.analysis) or "defaults"
    if any(name in OF_TRAJECTORIES for name in study.measures):
        rows["[trajectory]"] = _settings(as_plain(study.trajectory))
    return tuple((label, text) for label, text in rows.items() if text)


def length(study: Study) -> str:
    """Length of the trainings, in words."""
    return counted(study.epochs, "epoch") if study.epochs else counted(study.steps or 0, "step")


def _settings(values: Mapping[str, Value]) -> str:
    return ", ".join(
        f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in values.items() if value is not None
    )


# From tables to a study


def _study(tables: Mapping[str, Value]) -> Study:
    _check_finite("", tables)
    study, measures, trajectory = (tables.get(name, {}) for name in ("study", "measures", "trajectory"))
    _check_keys("[study]", study, _STUDY_KEYS)
    _check_keys("[study] stop", study.get("stop", {}), _STOP_KEYS)
    _check_keys("[trajectory]", trajectory, tuple(attrs.fields_dict(TrajectorySettings)))
    _check_measures(measures)
    fields = {
        **study,
        "grid": _grid(tables.get("grid", {})),
        "measures": measures,
        "trajectory": trajectory,
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


def _check_finite(where: str, value: Value) -> None:
    """Refuses NaN and infinity, which the files of a study could not hold."""
    if isinstance(value, (Mapping, list)):
        for key, each in value.items() if isinstance(value, Mapping) else enumerate(value):
            _check_finite(f"{where}.{key}" if where else f"[{key}]", each)
    elif isinstance(value, float) and not math.isfinite(value):
        raise SdkerasError(f"{where.replace('].', '] ', 1)} is {value}; it must be a finite number.")


def _check_keys(where: str, table: object, keys: Sequence[str] | Mapping[str, Value]) -> None:
    """Refuses a value that is not a table, or a table with unknown keys."""
    if not isinstance(table, Mapping):
        raise SdkerasError(f"{where} is {table!r}; it must be a table.")
    for key in table:
        if key not in keys:
            question = did_you_mean(key, keys)
            raise SdkerasError(f"{where} has no '{key}'; {question}it has: {', '.join(keys) or 'no keys'}.")


def _check_tables(where: str, tables: Mapping[str, Value]) -> None:
    _check_keys(where, tables, _TABLES if where == "[full]" else (*_TABLES, "full"))
    for name, table in tables.items():
        _check_keys(f"{where}: [{name}]", table, table)


def _put_over(table: Mapping[str, Value], over: Mapping[str, Value]) -> dict[str, Value]:
    """Key by key; epochs take the place of steps, and the other way round."""
    lengths = {"epochs", "steps"}
    kept = {key: value for key, value in table.items() if not (key in lengths and lengths & set(over))}
    return {**kept, **over}


def _check_measures(measures: _Settings) -> None:
    """Refuses unknown names and settings."""
    if not measures:
        raise SdkerasError(f"[measures] is empty; name what to measure: {', '.join(NAMES)}.")
    _check_keys("[measures]", measures, NAMES)
    keys: dict[str, Sequence[str]] = {
        "sd": ("minibatches",),
        **dict.fromkeys(READ, ()),
        **dict.fromkeys(OF_TRAJECTORIES, ("trajectory", "metric")),
    }
    for name, settings in measures.items():
        where = f"[measures] {name}"
        _check_keys(where, settings, keys.get(name, settings))
        if name not in keys:
            try:
                configured(registry.get_estimator("spectrum", ESTIMATOR_OF[name]), settings)
            except SdkerasError as error:
                raise SdkerasError(f"{where}: {error}") from error
    count = measures.get("sd", {}).get("minibatches", 1)
    if type(count) is not int or count < 1:
        raise SdkerasError(f"[measures] sd.minibatches is {count!r}; it must be at least 1.")
    columns(measures)  # refuses other trajectories and metrics


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
    lists = {"seed": [0]} | {name: value if isinstance(value, list) else [value] for name, value in table.items()}
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
    if len({run_name(point) for point in _points(ordered)}) < count:
        raise SdkerasError("[grid] has values that cannot be told apart in the names of folders; rename them.")
    return ordered


def _points(grid: Mapping[str, Sequence[Value]]) -> list[dict[str, Value]]:
    """All combinations of the values, the last setting varying fastest."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def _is_number(value: Value) -> bool:
    return is_number(value) and abs(value) < (2**64 if isinstance(value, int) else math.inf)


def _is_plain(value: object) -> bool:
    return _is_number(value) or isinstance(value, (bool, str))


# Expected values of the settings that every study knows.
_SETTINGS: dict[str, tuple[str, Callable[[Value], bool]]] = {
    "learning_rate": ("a positive number", lambda value: _is_number(value) and value > 0),
    "weight_decay": ("a number of at least 0", lambda value: _is_number(value) and value >= 0),
    "batch_size": ("a whole number of at least 1", lambda value: type(value) is int and value > 0),
    "seed": ("a whole number of at least 0 and below 2^32", lambda value: type(value) is int and 0 <= value < 2**32),
}


def _analysis(options: Mapping[str, Value], measures: Mapping[str, Value]) -> dict[str, Value]:
    if "class_weight" in options:
        raise SdkerasError("[analysis] has no class_weight; put it under [study], for training and analysis alike.")
    _check_keys("[analysis]", options, _ANALYSIS_KEYS)
    try:
        if "learning_rate" in options:
            options = {**options, "learning_rate": parse_learning_rate(options["learning_rate"])}
        first = options.get("map", "auto")
        if not isinstance(first, str):
            if not isinstance(first, list) or sorted(map(str, first)) != list(_MAPS):
                raise SdkerasError(f"map is {first!r}; give one map, or {json.dumps(_MAPS)} for both.")
            options, first = {**options, "map": list(_MAPS)}, _MAPS[0]
        Options(**{**analysis_options(measures), **options, "map": first})
    except (SdkerasError, TypeError) as error:
        raise SdkerasError(f"[analysis] {error}") from error
    of_spectra = [name for name in measures if name in ESTIMATOR_OF]
    if options.get("map") == "full" and of_spectra:
        raise SdkerasError(
            f"[analysis] map is 'full', and {', '.join(of_spectra)} are of spectra of the Hessian; take 'auto' or "
            "'hessian'."
        )
    return dict(options)
