"""The measures that a study can take of a run, by name, and the columns they fill."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from sdkeras.errors import SdkerasError, did_you_mean
from sdkeras.estimators import registry
from sdkeras.estimators.select import configured

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

Settings = Mapping[str, Mapping[str, Any]]


@attrs.frozen(kw_only=True)
class TrajectorySettings:
    """Which iterates `e_alpha` and `ph_dimension` are of, the same for all of a study's.

    Attributes:
        steps: Training steps: the last ones of training (backward), or simulated from its end on (forward).
        every: Steps between two iterates that are kept.
        alpha: Power of the edges.
        examples: Training examples whose losses make the data-dependent distance; drawn once, the same for all runs.
        projection: Dimension of a random projection of the iterates, or None.
    """

    steps: int = 1000
    every: int = 1
    alpha: float = 1.0
    examples: int = 500
    projection: int | None = None

    def __attrs_post_init__(self) -> None:
        counts = {"steps": self.steps, "every": self.every, "examples": self.examples, "projection": self.projection}
        for name, value in counts.items():
            optional = name == "projection" and value is None
            if not optional and (type(value) is not int or value < 1):
                raise SdkerasError(f"[trajectory] {name} is {value!r}; it must be a whole number of at least 1.")
        if type(self.alpha) not in (int, float) or not 0 < self.alpha < float("inf"):
            raise SdkerasError(f"[trajectory] alpha is {self.alpha!r}; it must be a positive number.")
        if self.steps < 20 * self.every:
            raise SdkerasError(
                f"[trajectory] steps is {self.steps} and every {self.every}; the dimension needs at least 20 iterates: "
                f"steps = {20 * self.every} or more."
            )


def columns(measures: Settings) -> dict[str, str]:
    """The columns of the table and the measure that each belongs to, in order."""
    found = {}
    for name, settings in measures.items():
        if name not in OF_TRAJECTORIES:
            found[name] = name
            continue
        for trajectory in _listed(settings, "trajectory", TRAJECTORIES):
            for metric in _listed(settings, "metric", METRICS):
                found[column_of(name, trajectory, metric)] = name
    return found


def column_of(measure: str, trajectory: str, metric: str) -> str:
    """The column of a measure of a trajectory."""
    return f"{measure}-{trajectory}-{metric}"


def parts_of_column(column: str) -> tuple[str, str, str]:
    """(measure, trajectory, metric) of `column_of`."""
    measure, trajectory, metric = column.split("-")
    return measure, trajectory, metric


def check_measures(measures: Settings) -> None:
    """Refuses names and settings that there are not.

    Raises:
        SdkerasError: See above.
    """
    if not measures:
        raise SdkerasError(f"[measures] is empty; name what to measure: {', '.join(NAMES)}.")
    for name, settings in measures.items():
        if name not in NAMES:
            hint = did_you_mean(name, NAMES)
            raise SdkerasError(f"[measures] has no measure '{name}'; {hint}there are: {', '.join(NAMES)}.")
        if not isinstance(settings, Mapping):
            raise SdkerasError(f"[measures] {name} is {settings!r}; give a table of its settings, {name} = {{}}.")
        if name in OF_TRAJECTORIES:
            _known(name, settings, ("trajectory", "metric"))
            _listed(settings, "trajectory", TRAJECTORIES)
            _listed(settings, "metric", METRICS)
        elif name == _EXACT:
            _known(name, settings, ("minibatches",))
            count = settings.get("minibatches", 1)
            if type(count) is not int or count < 1:
                raise SdkerasError(f"[measures] {name}.minibatches is {count!r}; it must be at least 1.")
        elif name in READ:
            _known(name, settings, ())
        else:
            try:
                configured(registry.get_estimator("spectrum", ESTIMATOR_OF[name]), settings)
            except SdkerasError as error:
                raise SdkerasError(f"[measures] {name}: {error}") from error


def needing_a_rate(measures: Settings, analysis: Mapping[str, Any]) -> tuple[str, ...]:
    """The measures that have no value without a learning rate."""
    return () if analysis.get("map") == "full" else tuple(n for n in measures if n in ESTIMATOR_OF or n == "lambda_1")


def analysis_options(measures: Settings) -> dict[str, Any]:
    """What `sdkeras.analyze` is told to take all of these measures at once."""
    wanted = [name for name in ESTIMATOR_OF if name in measures]
    settings = {ESTIMATOR_OF[name]: dict(measures[name]) for name in wanted if name != _EXACT and measures[name]}
    return {
        "estimators": tuple(ESTIMATOR_OF[name] for name in wanted),
        "settings": settings,
        "exact_minibatches": measures[_EXACT].get("minibatches") if _EXACT in measures else None,
    }


def _listed(settings: Mapping[str, Any], key: str, all_of: tuple[str, ...]) -> tuple[str, ...]:
    """One of `all_of`, a list of them, or by default all."""
    given = settings.get(key, list(all_of))
    chosen = [given] if isinstance(given, str) else given
    if not isinstance(chosen, (list, tuple)) or not chosen or not all(each in all_of for each in chosen):
        raise SdkerasError(f"[measures] {key} is {given!r}; it must be one of {', '.join(all_of)}, or a list of them.")
    return tuple(dict.fromkeys(chosen))


def _known(name: str, settings: Mapping[str, Any], keys: tuple[str, ...]) -> None:
    for key in settings:
        if key not in keys:
            there = ", ".join(keys) or "none"
            raise SdkerasError(f"[measures] {name} has no setting '{key}'; it has: {there}.")
