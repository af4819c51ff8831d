"""JSON there and back, hostile names, and reports that hold what they must."""

import contextlib
import json
import math
import os
import threading
from pathlib import Path

import attrs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sdkeras
from sample_runs import EMPTY, ESTIMATE, RUN
from sdkeras.errors import SdkerasError
from sdkeras.reporting.html import as_html, save_html
from sdkeras.reporting.numbers import dimension, interval, number
from sdkeras.reporting.terminal import as_text
from sdkeras.results import answers, measured
from sdkeras.results.dimension import EdgeOfStability, RdsSharpness, SharpnessDimension
from sdkeras.results.note import Note


@pytest.mark.parametrize("run", [RUN, EMPTY])
def test_saved_and_loaded_are_equal(run: answers.Analysis, tmp_path: Path) -> None:
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
    expected = {"value": 12.0, "converged": True, "residual": 1e-4, "stderr": None}
    assert expected.items() <= document["hessian"]["largest"].items()
    assert document["hessian"]["trace"]["value"] is None
    assert math.isnan(answers.Analysis.from_json(RUN.to_json()).hessian.trace.value)
    assert document["sharpness_dimension"]["history_half_width"][0] is None


def test_a_file_from_before_later_blocks_is_read() -> None:
    document = json.loads(RUN.to_json())
    for estimate in (document["sharpness_dimension"], *document["estimates"]):
        del estimate["frozen_lyapunov"], estimate["settings"]
    del document["spectrum"]["operator"]
    assert answers.Analysis.from_json(json.dumps(document)) == RUN


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
    ("path", "value"),
    [
        (("verification", "passed"), "false"),  # bool("false") is True
        (("partial",), None),
        (("partial",), 0),
        (("provenance", "seed"), 3.7),
        (("provenance", "seed"), True),
        (("provenance", "seed"), None),
        (("provenance", "seconds"), "5"),
        (("provenance", "seconds"), 10**400),
        (("model", "name"), None),
        (("model", "unconnected"), "abc"),
        (("estimates",), {}),
        (("warnings",), [{"code": "a"}]),
        (("sharpness_dimension", "interval"), [1.0, 2.0, 3.0]),
        (("spectrum", "nodes"), {}),
        (("spectrum", "nodes"), None),
        (("rds_sharpness", "leading"), [[1.0]]),
        (("schema_version",), True),
        (("schema_version",), 0),
    ],
    ids=str,
)
def test_a_value_of_another_type_is_refused_with_its_file_and_path(path: tuple[str, ...], value: object) -> None:
    document = json.loads(RUN.to_json())
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    named = "more than 64 bits" if value == 10**400 else path[-1]  # refused by the parser, which knows no paths
    with pytest.raises(SdkerasError, match=rf"^old\.json .*{named}.*sdkeras analyze"):
        answers.Analysis.from_json(json.dumps(document), "old.json")


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
    broken = attrs.evolve(ESTIMATE, **changed, interval=(value, value), definition_interval=(0.0, value))
    run = attrs.evolve(
        RUN,
        sharpness_dimension=broken,
        estimates=(broken,),
        hessian=answers.HessianSummary(*[measured.Measured(value, False, residual=value)] * 2, None),
        edge_of_stability=EdgeOfStability("H", value, value, value, value, value, "No verdict."),
        rds_sharpness=RdsSharpness(np.array([value]), np.array([1.0]), np.array([value])),
    )
    text = as_text(run, width=80)
    assert max(len(line) for line in text.splitlines()) <= 80
    assert ("inf" in text) == math.isinf(value)
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


def test_hostile_names_are_escaped() -> None:
    name = "<script>alert(1)</script>[bold]"
    hostile = attrs.evolve(RUN, model=attrs.evolve(RUN.model, name=name, loss=name))
    page = as_html(hostile)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert name in as_text(hostile).splitlines()[0]


def test_names_that_cannot_be_shown_are_marked(tmp_path: Path) -> None:
    name = "a\x1b[31mred\ud800\u202eb\nc"
    warning = Note(name, name)
    edge = attrs.evolve(RUN.edge_of_stability, verdict=name)
    hostile = attrs.evolve(
        RUN, model=attrs.evolve(RUN.model, name=name, loss=name), warnings=(warning,), edge_of_stability=edge
    )
    save_html(hostile, tmp_path / "report.html")
    hostile.save(tmp_path / "run.json")
    assert answers.Analysis.load(tmp_path / "run.json").model.name == name
    for report in (as_text(hostile), (tmp_path / "report.html").read_text(encoding="utf-8")):
        assert not set("\x1b\ud800\u202e") & set(report)
        # Every place it stands: title or kicker, verdict, warning's code and message, model and loss.
        assert report.count("a\ufffd[31mred\ufffd\ufffdb c") >= 6


@pytest.mark.parametrize("run", [RUN, EMPTY])
def test_reports_say_the_verdict_first_and_everything_else(run: answers.Analysis) -> None:
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
    assert "UNVERIFIED" in as_html(bad)


def test_numbers_follow_their_uncertainty() -> None:
    assert dimension(1234.5678, 12.0) == "1,235"
    assert dimension(1234.5678, 0.012) == "1,234.568"
    assert interval((1.0, 2.0)) == "[1.00, 2.00]"
    assert number(1234567.0) == "1,234,567"
    assert number(0.00012345) == "0.0001234"
    assert number(None) == number(math.nan) == "-"
