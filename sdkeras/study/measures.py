"""The measures that a study can take of a run, by name, and the columns they fill."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sdkeras.errors import SdkerasError, did_you_mean
from sdkeras.estimators import registry
from sdkeras.estimators.select import configured
from sdkeras.results.arrays import Value

# Those that are the sharpness dimension, and the spectrum estimator that each is by. The first of these in a study is
# the one that lambda_1 is by, so those that do not round an exponent to the middle of a bin come first.
ESTIMATOR_OF = {"sd": "exact", "slq": "slq", "sd-ps": "sd-ps", "sd-kde": "sd-kde", "sd-slq": "sd-slq"}
# Those that every analysis has.
READ = ("lambda_1", "sharpness", "trace")
OF_ANALYSES = (*ESTIMATOR_OF, *READ)
# Those of a trajectory of the weights.
OF_TRAJECTORIES = ("e_alpha", "ph_dimension")
NAMES = (*ESTIMATOR_OF, *READ, *OF_TRAJECTORIES)
METRICS = ("euclidean", "data")
TRAJECTORIES = ("forward", "backward")
_EXACT = "sd"

Settings = Mapping[str, Mapping[str, Value]]


def check_keys(where: str, table: object, keys: Sequence[str] | Mapping[str, Value]) -> None:
    """Refuses a value that is not a table, or a table with unknown keys.

    Raises:
        SdkerasError: See above.
    """
    if not isinstance(table, Mapping):
        raise SdkerasError(f"{where} is {table!r}; it must be a table.")
    for key in table:
        if key not in keys:
            question = did_you_mean(key, keys)
            raise SdkerasError(f"{where} has no '{key}'; {question}it has: {', '.join(keys) or 'no keys'}.")


def columns(measures: Settings) -> dict[str, str]:
    """The columns of the table and the measure that each belongs to, in order."""
    measure_of = {}
    for name, settings in measures.items():
        if name not in OF_TRAJECTORIES:
            measure_of[name] = name
            continue
        for trajectory in _listed(settings, "trajectory", TRAJECTORIES):
            for metric in _listed(settings, "metric", METRICS):
                measure_of[column_of(name, trajectory, metric)] = name
    return measure_of


def column_of(measure: str, trajectory: str, metric: str) -> str:
    """The column of a measure of a trajectory."""
    return f"{measure}-{trajectory}-{metric}"


def parts_of_column(column: str) -> tuple[str, str, str]:
    """(measure, trajectory, metric) of `column_of`."""
    measure, trajectory, metric = column.split("-")
    return measure, trajectory, metric


def check_measures(measures: Settings) -> None:
    """Refuses unknown names and settings.

    Raises:
        SdkerasError: See above.
    """
    if not measures:
        raise SdkerasError(f"[measures] is empty; name what to measure: {', '.join(NAMES)}.")
    check_keys("[measures]", measures, NAMES)
    for name, settings in measures.items():
        where = f"[measures] {name}"
        if name in OF_TRAJECTORIES:
            check_keys(where, settings, ("trajectory", "metric"))
            _listed(settings, "trajectory", TRAJECTORIES)
            _listed(settings, "metric", METRICS)
        elif name == _EXACT:
            check_keys(where, settings, ("minibatches",))
            count = settings.get("minibatches", 1)
            if type(count) is not int or count < 1:
                raise SdkerasError(f"{where}.minibatches is {count!r}; it must be at least 1.")
        elif name in READ:
            check_keys(where, settings, ())
        else:
            check_keys(where, settings, settings)
            try:
                configured(registry.get_estimator("spectrum", ESTIMATOR_OF[name]), settings)
            except SdkerasError as error:
                raise SdkerasError(f"{where}: {error}") from error


def needing_a_rate(measures: Settings, analysis: Mapping[str, Value]) -> tuple[str, ...]:
    """The measures that have no value without a learning rate."""
    return () if analysis.get("map") == "full" else tuple(n for n in measures if n in ESTIMATOR_OF or n == "lambda_1")


def analysis_options(measures: Settings) -> dict[str, Value]:
    """Options of `sdkeras.analyze` that take all of these measures at once."""
    wanted = [name for name in ESTIMATOR_OF if name in measures]
    settings = {ESTIMATOR_OF[name]: dict(measures[name]) for name in wanted if name != _EXACT and measures[name]}
    return {
        "estimators": tuple(ESTIMATOR_OF[name] for name in wanted),
        "settings": settings,
        "exact_minibatches": measures[_EXACT].get("minibatches") if _EXACT in measures else None,
    }


def _listed(settings: Mapping[str, Value], key: str, all_of: tuple[str, ...]) -> tuple[str, ...]:
    """One of `all_of`, a list of them, or by default all."""
    value = settings.get(key, list(all_of))
    chosen = [value] if isinstance(value, str) else value
    if not isinstance(chosen, (list, tuple)) or not chosen or not all(each in all_of for each in chosen):
        raise SdkerasError(f"[measures] {key} is {value!r}; it must be one of {', '.join(all_of)}, or a list of them.")
    return tuple(dict.fromkeys(chosen))
