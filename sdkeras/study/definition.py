"""How a study was made, in words: its training, constant settings, measures and options."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sdkeras.errors import counted
from sdkeras.results.codec import as_plain
from sdkeras.study.grid import Study
from sdkeras.study.measures import OF_ANALYSES, OF_TRAJECTORIES

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
