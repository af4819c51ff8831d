"""Records where Python shows them: one line in a console, their page in a notebook, their numbers as a data frame."""

import html.parser
import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest

import sdkeras
from sample_log import FOUND, HEADER
from sample_runs import ALONE, EMPTY, RUN
from sdkeras.errors import SdkerasError
from sdkeras.reporting.html import as_html
from sdkeras.results.answers import Analysis, AtInit
from sdkeras.results.dimension import GradientNoise, MeanSquareStability
from sdkeras.results.earlier import Earlier
from sdkeras.results.log import RunLog
from sdkeras.results.measured import Measured
from sdkeras.results.plans import LyapunovPlan, Plan
from sdkeras.study.correlations import Run, correlate

OLD = Analysis.load(Path(__file__).parents[1] / "data" / "v0.1.0" / "run.json")
HOSTILE = "</iframe>\"'><script>alert(1)</script>\n&quot;"
LOG = RunLog(HEADER, (FOUND, attrs.evolve(FOUND, step=20, epoch=None, metrics={})))
COST = {"num_parameters": 5, "state_size": 10, "num_hvps": 300, "peak_memory": 10**9, "seconds": 2.0}
PLAN = LyapunovPlan(
    **COST, seconds_per_gradient=0.1, num_exponents=2, num_steps=100, transient=10, windows=(), optimizer=None
)
ANALYSIS_PLAN = Plan(
    **COST, seconds_per_gradient=0.1, map="sgd", num_batches=3, num_runs=8, num_steps=20, num_hvps_pilot=160,
    num_hvps_most=None, num_minibatches=3, num_minibatches_most=9,
)  # fmt: skip
GRID = [Run(settings={"width": k}, measures={"sd": float(k)}, loss_gap=float(k)) for k in range(3)]
RECORDS: dict[str, tuple[Any, list[str]]] = {
    "analysis": (RUN, ["Analysis net: Below the edge of stability; ratio 0.6", "[1,520.5, 1,540.0] of 2,000", "469.8"]),
    "nothing": (EMPTY, ["Analysis net: Interrupted; No verdict"]),
    "unverified": (attrs.evolve(RUN, verification=attrs.evolve(RUN.verification, passed=False)), ["net: UNVERIFIED;"]),
    "trajectory": (ALONE, ["LyapunovRun net: The training wanders; D_s [1.0, 3.0] of 4"]),
    "comparison": (sdkeras.compare(RUN, EMPTY), ["Comparison A → B: B was interrupted; 1 setting differs"]),
    "log": (LOG, ["RunLog net: Below the edge of stability at step 20"]),
    "plan": (PLAN, ["LyapunovPlan", "5 parameters: about 300 Hessian-vector products in 2 s, 1.00 GB"]),
    "plan of an analysis": (ANALYSIS_PLAN, ["Plan Plan: 5 parameters: at least 300"]),
    "correlations": (correlate(GRID), ["Correlations: 1 measure against the gaps of 3 runs"]),
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_is_one_line_in_a_console_and_a_report_in_print(name: str) -> None:
    record, words = RECORDS[name]
    assert [each for each in words if each not in repr(record)] == []
    assert repr(record).startswith("<")
    assert "\n" not in repr(record)
    assert "\n" in str(record)


class Frames(html.parser.HTMLParser):
    """The elements of a fragment, and what the frames hold."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.frames: list[dict[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.frames.append(dict(attributes))


@pytest.mark.parametrize("name", RECORDS)
def test_a_notebook_shows_the_page_in_a_frame_of_its_own(name: str) -> None:
    """Whatever its names are, the frame alone reaches the notebook, and holds the page to the letter."""
    record, _ = RECORDS[name]
    if isinstance(record, Analysis):
        record = attrs.evolve(record, model=attrs.evolve(record.model, name=HOSTILE, loss=HOSTILE))
    shown = Frames(record._repr_html_())
    assert shown.tags == ["iframe"]
    (frame,) = shown.frames
    page = as_html(record._report())
    assert (frame["srcdoc"] or "").replace('\n<base href="about:srcdoc">', "") == page
    assert (frame["srcdoc"] or "").index("<base ") < page.index("<body")
    assert "allow-same-origin" not in (frame["sandbox"] or "")
    assert repr(record).count("\n") == 0


def test_the_document_as_python_objects_is_the_file() -> None:
    for record in (RUN, ALONE, RECORDS["comparison"][0]):
        assert record.to_dict() == json.loads(record.to_json())
    assert RUN.to_dict()["hessian"]["trace"]["value"] is None


def at(document: Any, path: str) -> Any:
    """The value at a path of a JSON document."""
    for name in path.split("."):
        document = document[int(name) if isinstance(document, list) else name]
    return document


@pytest.mark.parametrize("run", [OLD, RUN, ALONE], ids=["old", "run", "alone"])
def test_the_summary_has_the_numbers_of_the_file(run: Any) -> None:
    table, document = run.summary(), run.to_dict()
    assert table.index.is_unique
    for path, row in table.iterrows():
        number = at(document, path)
        assert math.isnan(row["value"]) if number is None else row["value"] == number
        stem = path.removesuffix("value")
        beside = stem if stem.endswith((".", "_")) else f"{stem}_"
        if row["evidence"] in ("interval", "bracket"):
            assert [row["lower"], row["upper"]] == at(document, f"{beside}interval")
        if row["evidence"] == "standard error" and "values" not in path:
            half = 1.959963985 * at(document, f"{beside}stderr")
            assert (row["lower"], row["upper"]) == pytest.approx((number - half, number + half))
        if row["evidence"] == "none":
            assert math.isnan(row["lower"])
        assert row["meaning"]


def test_the_summary_leaves_no_number_with_evidence_out() -> None:
    table = OLD.summary()
    for path in ("hessian.trace.value", "sharpness_dimension.codimension", "edge_of_stability.ratio", "supremum.value"):
        assert path in table.index
    assert table.loc["edge_of_stability.ratio", "upper"] == pytest.approx(
        (OLD.hessian.largest.value + OLD.hessian.largest.residual) / OLD.edge_of_stability.threshold
    )
    assert "did not converge" in table.loc["hessian.trace.value", "remark"]
    assert len(OLD.estimates) == sum(table.index.str.endswith("s.1.value")) + 1


def test_every_number_has_a_meaning_in_words() -> None:
    """In those of the comparison, wherever in the run the quantity stands."""
    other = attrs.evolve(RUN.sharpness_dimension, estimator="exact", definition_value=1520.0)
    number = Measured(2.0, True, stderr=0.1, interval=(1.0, 3.0))
    edge = attrs.evolve(
        RUN.edge_of_stability,
        mean_square_stability=MeanSquareStability(number, 0.1),
        gradient_noise=GradientNoise(number, number, number, 8),
    )
    run = attrs.evolve(
        RUN,
        edge_of_stability=edge,
        estimates=(*RUN.estimates, other),
        supremum=OLD.supremum,
        layers=OLD.layers,
        lyapunov=OLD.lyapunov,
        at_init=AtInit(number, 0.1, other, 200),
        earlier=Earlier(0, 0, 0.1, number, 0.1, number, number),
    )
    meanings = run.summary()["meaning"]
    assert [path for path, words in meanings.items() if not re.fullmatch(r"[^{}.]+ \([^{}.]+\)", words)] == []
    assert meanings["estimates.1.definition_value"] == "definition's value (Sharpness dimension by exact)"
    assert meanings["supremum.value"] == "sharpness dimension (Supremum over snapshots)"
    assert meanings["at_init.sharpness.value"] == "largest eigenvalue (The same net at initialisation)"
    assert meanings["earlier.codimension.value"] == "codimension (The same net at step 0)"
    assert meanings["layers.0.trace.value"] == "trace (Layer dense)"
    assert len(set(meanings)) == len(meanings)


def test_a_log_is_a_table_over_the_steps() -> None:
    table = LOG.summary()
    assert list(table.index) == [10, 20]
    assert list(table["sharpness_dimension"]) == [1530.0, 1530.0]
    assert list(table["sharpness_dimension_lower"]) == [1520.0, 1520.0]
    assert table["sharpness_upper"].iloc[0] == 12.01
    assert table["val_loss"].iloc[0] == 0.75
    assert math.isnan(table["val_loss"].iloc[1])
    assert math.isnan(table["hessian_trace"].iloc[0])
    assert len(RunLog(HEADER, ()).summary()) == 0


def test_without_pandas_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    for record in (RUN, LOG):
        with pytest.raises(SdkerasError, match=r"pip install 'sdkeras\[pandas\]'"):
            record.summary()
