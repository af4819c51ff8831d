"""Every number of a record by its path in the JSON file, with the evidence that stands beside it."""

import json
import math
from pathlib import Path
from typing import Any

import attrs
import pytest

from sample_log import FOUND
from sample_runs import ALONE, RUN
from sdkeras.results.answers import Analysis
from sdkeras.results.codec import as_plain
from sdkeras.results.document import walk
from sdkeras.results.measured import Measured

OLD = Analysis.load(Path(__file__).parents[1] / "data" / "v0.1.0" / "run.json")


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """The values of a JSON document by their paths."""
    if not isinstance(value, (dict, list)):
        return {path[1:]: value}
    parts = value.items() if isinstance(value, dict) else enumerate(value)
    return {where: leaf for name, each in parts for where, leaf in leaves(each, f"{path}.{name}").items()}


@pytest.mark.parametrize("record", [OLD, RUN, ALONE, FOUND], ids=lambda record: type(record).__name__)
def test_the_walk_visits_what_the_file_holds(record: Any) -> None:
    values = {path: value.value if isinstance(value, Measured) else value for path, value in walk(record)}
    assert json.dumps(as_plain(values)) == json.dumps(leaves(as_plain(record)))


def test_evidence_beside_a_number_comes_with_it() -> None:
    values, estimate = dict(walk(OLD)), OLD.sharpness_dimension
    assert values["sharpness_dimension.codimension"].interval == estimate.codimension_interval
    assert values["sharpness_dimension.definition_value"].interval == estimate.definition_interval
    assert values["edge_of_stability.batch_sharpness"].stderr == OLD.edge_of_stability.batch_sharpness_stderr
    assert values["hessian.largest.value"] == OLD.hessian.largest
    assert not values["hessian.trace.value"].converged
    assert values["sharpness_dimension.expansion"] == estimate.expansion
    only = attrs.evolve(estimate, definition_value=None, definition_interval=(3.0, 5.0))
    bracket = dict(walk(only))["definition_value"]
    assert (bracket.evidence, bracket.bounds, math.isnan(bracket.value)) == ("bracket", (3.0, 5.0), True)


@pytest.mark.parametrize(
    ("evidence", "kind", "bounds"),
    [
        ({}, "none", None),
        ({"residual": 0.5}, "residual", (1.5, 2.5)),
        ({"stderr": 0.5}, "standard error", (2 - 0.9799819925, 2 + 0.9799819925)),
        ({"stderr": 0.5, "interval": (1.0, 4.0)}, "interval", (1.0, 4.0)),
    ],
)
def test_where_a_measured_number_lies(evidence: dict[str, Any], kind: str, bounds: tuple[float, float] | None) -> None:
    number = Measured(2.0, True, **evidence)
    assert (number.evidence, number.bounds) == (kind, None if bounds is None else pytest.approx(bounds))
