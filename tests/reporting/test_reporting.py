"""JSON there and back, hostile names, and reports that hold what they must."""

import contextlib
import json
import math
from pathlib import Path

import attrs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sdkeras
from sdkeras.dimension.records import EdgeOfStability, RdsSharpness, SharpnessDimension, Warning
from sdkeras.errors import SdkerasError
from sdkeras.records import Verification
from sdkeras.reporting import schema
from sdkeras.reporting.html import as_html
from sdkeras.reporting.numbers import dimension, interval, number
from sdkeras.reporting.terminal import as_text

ESTIMATE = SharpnessDimension(
    value=1530.25,
    interval=(1520.5, 1540.0),
    codimension=469.75,
    codimension_interval=(460.0, 479.5),
    definition_value=None,
    definition_interval=(1500.0, 1540.0),
    quantile_average=1510.0,
    j_star=1529.5,
    threshold_exponent=-0.01,
    expansion=2.5,
    expansion_negative_curvature=2.25,
    expansion_unstable=0.25,
    neutral_mass=1000.0,
    margin=0.0025,
    resolution=30.0,
    map="sgd",
    coordinates="weights",
    state_size=2000,
    estimator="slq",
    num_runs=24,
    num_steps=40,
    num_hvps=960,
    history=np.array([1500.0, 1530.25]),
    history_half_width=np.array([math.nan, 9.75]),
    history_runs=np.array([24.0, 30.0]),
)
RUN = schema.Analysis(
    provenance=schema.Provenance("0.1.0", "2.21", "3.15", "3.11", "CPU", 0, "float32", 1234, 5.5, "ab12", "now"),
    model=schema.ModelInfo("net", 2000, 2000, "train", "mse", ("idle/kernel",)),
    data=schema.DataInfo(100, 32, 100),
    optimizer=schema.OptimizerInfo("SGD", 0.1, 0.0, None, 30, False),
    verification=Verification("reverse-over-reverse", 1e-9, "float64", 5e-7, 1e-8, 0.0, True),
    hessian=schema.HessianSummary(
        schema.Measured(12.0, True, residual=1e-4), None, schema.Measured(math.nan, False, stderr=math.nan)
    ),
    sharpness_dimension=ESTIMATE,
    estimates=(ESTIMATE,),
    rds_sharpness=RdsSharpness(np.array([0.5, 0.1]), np.array([0.5, 1.0]), np.array([0.1, -1.0])),
    edge_of_stability=EdgeOfStability("H", 12.0, 20.0, 0.6, 13.0, 1.5, "Below the edge of stability: 12 of 20."),
    spectrum=schema.SpectrumSummary(np.array([0.0, 12.0]), np.array([1999.0, 1.0])),
    warnings=(Warning("negative-curvature", "90% of E+"),),
)
EMPTY = attrs.evolve(
    RUN,
    hessian=schema.HessianSummary(None, None, None),
    sharpness_dimension=None,
    estimates=(),
    rds_sharpness=None,
    edge_of_stability=EdgeOfStability("H", None, None, None, None, None, "No verdict."),
    spectrum=None,
    warnings=(),
    partial=True,
)


@pytest.mark.parametrize("run", [RUN, EMPTY])
def test_saved_and_loaded_are_equal(run: schema.Analysis, tmp_path: Path) -> None:
    run.save(tmp_path / "run.json")
    loaded = sdkeras.Analysis.load(tmp_path / "run.json")
    assert loaded == run
    assert loaded != attrs.evolve(run, partial=not run.partial)
    assert list(tmp_path.iterdir()) == [tmp_path / "run.json"]
    document = json.loads((tmp_path / "run.json").read_text(), parse_constant=pytest.fail)
    assert document["schema_version"] == 1
    assert {"bounds", "layers", "lyapunov"} <= document.keys()


def test_paths_of_the_schema() -> None:
    document = json.loads(RUN.to_json())
    assert document["sharpness_dimension"]["interval"] == [1520.5, 1540.0]
    assert document["hessian"]["largest"] == {"value": 12.0, "converged": True, "residual": 1e-4, "stderr": None}
    assert document["hessian"]["trace"]["value"] is None
    assert math.isnan(schema.Analysis.from_json(RUN.to_json()).hessian.trace.value)
    assert document["sharpness_dimension"]["history_half_width"][0] is None


def test_unknown_paths_are_ignored_and_a_newer_schema_is_refused() -> None:
    document = json.loads(RUN.to_json()) | {"later": 1}
    assert schema.Analysis.from_json(json.dumps(document)) == RUN
    with pytest.raises(SdkerasError, match="schema version 99"):
        schema.Analysis.from_json(json.dumps(document | {"schema_version": 99}))


@given(st.text() | st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists).map(json.dumps))
def test_no_text_leaves_a_traceback(text: str) -> None:
    with pytest.raises(SdkerasError):
        schema.Analysis.from_json(text)


@given(st.data())
def test_no_damaged_document_leaves_a_traceback(data: st.DataObject) -> None:
    document = json.loads(RUN.to_json())
    key = data.draw(st.sampled_from(sorted(document)))
    document[key] = data.draw(st.none() | st.integers() | st.text() | st.lists(st.text()) | st.just({}))
    with contextlib.suppress(SdkerasError):
        schema.Analysis.from_json(json.dumps(document))


def test_nothing_half_written(tmp_path: Path) -> None:
    with pytest.raises(SdkerasError, match="cannot be written"):
        RUN.save(tmp_path / "no" / "run.json")
    with pytest.raises(SdkerasError, match="cannot be read"):
        schema.Analysis.load(tmp_path / "missing.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SdkerasError, match="not UTF-8"):
        schema.Analysis.load(tmp_path / "binary.json")


def test_hostile_names_are_escaped() -> None:
    name = "<script>alert(1)</script>[bold]"
    hostile = attrs.evolve(RUN, model=attrs.evolve(RUN.model, name=name, loss=name))
    page = as_html(hostile)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "[bold]" in as_text(hostile)


@pytest.mark.parametrize("run", [RUN, EMPTY])
def test_reports_say_the_verdict_first_and_everything_else(run: schema.Analysis) -> None:
    text = as_text(run, width=80)
    assert max(len(line) for line in text.splitlines()) <= 80
    page = as_html(run)
    for report in (" ".join(text.split()), page):
        assert run.edge_of_stability.verdict.rstrip(".").split(":")[0] in report
    if run is RUN:
        assert "1,530.2 [1,520.5, 1,540.0]" in page
        assert text.index("Below the edge") < text.index("negative-curvature") < text.index("Verification")
    else:
        assert "Interrupted" in page
        assert "Interrupted" in text
    assert str(run) == as_text(run)


def test_an_unverified_operator_is_loud() -> None:
    bad = attrs.evolve(RUN, verification=attrs.evolve(RUN.verification, passed=False))
    assert "UNVERIFIED" in as_text(bad)
    assert "Unverified" in as_html(bad)


def test_numbers_follow_their_uncertainty() -> None:
    assert dimension(1234.5678, 12.0) == "1,235"
    assert dimension(1234.5678, 0.012) == "1,234.568"
    assert interval((1.0, 2.0)) == "[1.00, 2.00]"
    assert number(1234567.0) == "1,234,567"
    assert number(0.00012345) == "0.0001234"
    assert number(None) == number(math.nan) == "-"
