"""Answers and comparisons as JSON files: there and back, refused where damaged, never half written."""

import contextlib
import functools
import json
import math
import operator
import os
import threading
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sdkeras
from reporting.test_lyapunov_report import ALONE, UNKNOWN, WINDOWED, WITHIN
from sample_runs import CRITICAL, EMPTY, ESTIMATE, RUN, with_estimate
from sdkeras.errors import SdkerasError
from sdkeras.reporting.html import as_html
from sdkeras.reporting.terminal import as_text
from sdkeras.results import answers, measured
from sdkeras.results.dimension import EdgeOfStability, RdsSharpness, SharpnessDimension

DOCUMENTS = {
    "analysis": RUN,
    "empty": EMPTY,
    "within": WITHIN,
    "trajectory": ALONE,
    "windowed": attrs.evolve(ALONE, lyapunov=WINDOWED),
    "unknown": attrs.evolve(ALONE, lyapunov=UNKNOWN),
    "critical": CRITICAL,
    "comparison": sdkeras.compare(RUN, with_estimate(RUN, map="hessian", value=1500.0, definition_interval=None)),
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_saved_and_loaded_are_equal(name: str, tmp_path: Path) -> None:
    record = DOCUMENTS[name]
    record.save(tmp_path / "run.json")
    loaded = type(record).load(tmp_path / "run.json")
    assert loaded == record
    assert list(tmp_path.iterdir()) == [tmp_path / "run.json"]
    document = json.loads((tmp_path / "run.json").read_text(), parse_constant=pytest.fail)
    assert document["schema_version"] == 1
    assert str(record) == as_text(record)
    if name != "comparison":
        assert loaded != attrs.evolve(record, partial=not record.partial)
        assert answers.load_document(tmp_path / "run.json") == record
    if loaded_exponents := getattr(loaded, "lyapunov", None):
        assert loaded_exponents.history[1].tolist() == record.lyapunov.history[1].tolist()
        assert math.isnan(loaded_exponents.verification.step_error)


@pytest.mark.parametrize(
    ("kind", "record", "message"),
    [
        (answers.Analysis, ALONE, r"says that it is 'lyapunov'; give a run.json written by sdkeras analyze"),
        (answers.Analysis, DOCUMENTS["comparison"], r"says that it is 'comparison'; give a run.json"),
        (answers.LyapunovRun, RUN, r"is a run.json of sdkeras analyze; give a lyapunov.json"),
        (sdkeras.Comparison, RUN, r"give a comparison.json written by sdkeras compare"),
    ],
)
def test_each_kind_is_refused_as_another(kind: Any, record: Any, message: str) -> None:
    with pytest.raises(SdkerasError, match=message):
        kind.from_json(record.to_json())


def test_paths_of_the_schema() -> None:
    document = json.loads(RUN.to_json())
    assert {"bounds", "layers", "lyapunov"} <= document.keys()
    assert document["sharpness_dimension"]["interval"] == [1520.5, 1540.0]
    expected = {"value": 12.0, "converged": True, "residual": 1e-4, "stderr": None}
    assert expected.items() <= document["hessian"]["largest"].items()
    assert document["hessian"]["trace"]["value"] is None
    assert math.isnan(answers.Analysis.from_json(RUN.to_json()).hessian.trace.value)
    assert document["sharpness_dimension"]["history_half_width"][0] is None


def test_a_file_from_before_later_blocks_is_read() -> None:
    document = json.loads(RUN.to_json())
    for estimate in (document["sharpness_dimension"], *document["estimates"]):
        del estimate["frozen_lyapunov"], estimate["settings"]
    assert document["lyapunov"] is None
    del document["spectrum"]["operator"], document["lyapunov"]
    assert answers.Analysis.from_json(json.dumps(document)) == RUN
    document = json.loads(ALONE.to_json())
    for name in ("windows", "sharpest", "coordinates", "log_det_stderr", "estimator"):
        del document["lyapunov"][name]
    assert answers.LyapunovRun.from_json(json.dumps(document)) == ALONE


def test_unknown_paths_are_ignored_and_a_newer_schema_is_refused() -> None:
    document = json.loads(RUN.to_json()) | {"later": 1}
    assert answers.Analysis.from_json(json.dumps(document)) == RUN
    with pytest.raises(SdkerasError, match="schema version 99"):
        answers.Analysis.from_json(json.dumps(document | {"schema_version": 99}))


@given(st.text() | st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists).map(json.dumps))
def test_no_text_leaves_a_traceback(text: str) -> None:
    with pytest.raises(SdkerasError):
        answers.Analysis.from_json(text)


@given(st.data())
def test_no_damaged_document_leaves_a_traceback(data: st.DataObject) -> None:
    document = json.loads(RUN.to_json())
    key = data.draw(st.sampled_from(sorted(document)))
    document[key] = data.draw(st.none() | st.integers() | st.text() | st.lists(st.text()) | st.just({}))
    with contextlib.suppress(SdkerasError):
        answers.Analysis.from_json(json.dumps(document))


@pytest.mark.parametrize(
    ("run", "path", "value"),
    [
        (RUN, "verification.passed", "false"),  # bool("false") is True
        (RUN, "partial", None),
        (RUN, "partial", 0),
        (RUN, "provenance.seed", 3.7),
        (RUN, "provenance.seed", True),
        (RUN, "provenance.seed", None),
        (RUN, "provenance.seconds", "5"),
        (RUN, "provenance.seconds", 10**400),
        (RUN, "model.name", None),
        (RUN, "model.unconnected", "abc"),
        (RUN, "estimates", {}),
        (RUN, "warnings", [{"code": "a"}]),
        (RUN, "sharpness_dimension.interval", [1.0, 2.0, 3.0]),
        (RUN, "spectrum.nodes", {}),
        (RUN, "spectrum.nodes", None),
        (RUN, "rds_sharpness.leading", [[1.0]]),
        (RUN, "schema_version", True),
        (RUN, "schema_version", 0),
        (ALONE, "lyapunov.history", [[1.0], [2.0]]),
        (ALONE, "lyapunov.history", [[1.0], [2.0], [3.0, 4.0]]),
        (ALONE, "lyapunov.history", [1.0, 2.0, 3.0]),
        (ALONE, "lyapunov.stderr", [1.0]),
        (ALONE, "lyapunov.values", []),
        (ALONE, "lyapunov.num_steps", "many"),
        (ALONE, "lyapunov.dimension.status", "certain"),
        (ALONE, "lyapunov.dimension.value", None),
        (ALONE, "lyapunov.verification", None),
        (ALONE, "lyapunov", None),
        (ALONE, "partial", 1),
    ],
)
def test_a_value_of_another_type_is_refused_with_its_file_and_path(run: Any, path: str, value: object) -> None:
    document = json.loads(run.to_json())
    *blocks, name = path.split(".")
    functools.reduce(operator.getitem, blocks, document)[name] = value
    named = name if run is RUN else "is not a complete lyapunov"
    if value == 10**400:
        named = "more than 64 bits"  # refused by the parser, which knows no paths
    with pytest.raises(SdkerasError, match=rf"^old\.json .*{named}.*{run.WRITTEN_BY[1]}"):
        type(run).from_json(json.dumps(document), "old.json")


def test_a_missing_path_is_named() -> None:
    document = json.loads(RUN.to_json())
    del document["provenance"]["seed"]
    with pytest.raises(SdkerasError, match=r"missing @ \$\.provenance\.seed"):
        answers.Analysis.from_json(json.dumps(document))


def test_numpy_scalars_are_written_as_numbers() -> None:
    scalars = attrs.evolve(
        RUN,
        provenance=attrs.evolve(RUN.provenance, seed=np.int64(0), seconds=np.float32(5.5)),
        verification=attrs.evolve(RUN.verification, passed=np.bool_(True), symmetry_error=np.float32(np.nan)),
    )
    document = json.loads(scalars.to_json())
    assert document["provenance"] == json.loads(RUN.to_json())["provenance"]
    assert document["verification"]["passed"] is True
    assert document["verification"]["symmetry_error"] is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_number_breaks_a_report_or_a_file(value: float) -> None:
    """What was computed for an hour must be printed and written, whatever came out."""
    changed = {
        field.name: value
        for field in attrs.fields(SharpnessDimension)
        if isinstance(getattr(ESTIMATE, field.name), float)
    }
    run = attrs.evolve(
        with_estimate(RUN, **changed, interval=(value, value), definition_interval=(0.0, value)),
        hessian=answers.HessianSummary(*[measured.Measured(value, False, residual=value)] * 2, None),
        edge_of_stability=EdgeOfStability("H", value, value, value, value, value, "No verdict."),
        rds_sharpness=RdsSharpness(np.array([value]), np.array([1.0]), np.array([value])),
    )
    assert ("inf" in as_text(run, width=80)) == math.isinf(value)
    assert "</html>" in as_html(run)
    read = answers.Analysis.from_json(run.to_json())
    assert read == run
    assert math.isnan(read.hessian.largest.value)


def test_a_byte_order_mark_is_no_problem(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(RUN.to_json(), encoding="utf-8-sig")
    assert answers.Analysis.load(tmp_path / "run.json") == RUN


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "run.json"
    EMPTY.save(target)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        RUN.save(target)
    assert list(tmp_path.iterdir()) == [target]
    assert answers.Analysis.load(target) == EMPTY


def test_links_streams_and_permissions_are_kept(tmp_path: Path) -> None:
    target, link, pipe = tmp_path / "target.json", tmp_path / "link.json", tmp_path / "pipe"
    EMPTY.save(target)
    target.chmod(0o640)
    link.symlink_to(target)
    RUN.save(link)
    assert link.is_symlink()
    assert answers.Analysis.load(target) == RUN
    assert target.stat().st_mode & 0o777 == 0o640
    os.mkfifo(pipe)
    read = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    RUN.save(pipe)
    reader.join()
    assert read == [RUN.to_json()]
    assert pipe.is_fifo()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["link.json", "pipe", "target.json"]
    if Path("/dev/full").is_char_device():
        with pytest.raises(SdkerasError, match="No space left"):
            RUN.save("/dev/full")
        assert Path("/dev/full").is_char_device()


def test_nothing_half_written(tmp_path: Path) -> None:
    with pytest.raises(SdkerasError, match="cannot be written"):
        RUN.save(tmp_path / "no" / "run.json")
    with pytest.raises(SdkerasError, match="cannot be read"):
        answers.Analysis.load(tmp_path / "missing.json")
    with pytest.raises(SdkerasError, match="null byte"):
        answers.Analysis.load("a\0b")
    with pytest.raises(SdkerasError, match="null byte"):
        RUN.save("a\0b")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SdkerasError, match="not UTF-8"):
        answers.Analysis.load(tmp_path / "binary.json")
