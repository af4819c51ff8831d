"""What a study's page and terminal say of made-up runs."""

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path

import attrs
import numpy as np
import pytest

from sdkeras.errors import SdkerasError
from sdkeras.reporting import html
from sdkeras.reporting.drawing import as_image
from sdkeras.reporting.terminal import as_text
from sdkeras.results.note import Note
from sdkeras.study.correlations import Run, correlate
from sdkeras.study.definition import NAMES, read_study
from sdkeras.study.figures import scatter
from sdkeras.study.notes import CountedWarning, notes, warnings_by_code
from sdkeras.study.page import headline, study_report
from sdkeras.study.results import Analysed, Results, Row
from sdkeras.study.run_files import DONE, FAILED, NEW, Failed, Measured, RunState, Scores, Trained, Value

FOUR = [1.0, 2.0, 3.0, 4.0]
EIGHT = [float(k) for k in range(8)]
MIXED = [2.0, 1.0, 4.0, 3.0]  # four of six pairs in order: (4 - 2) / 6
ODD = [1.0, 0.0, 3.0, 2.0, 5.0, 4.0, 7.0, 6.0]  # 24 of 28 pairs in order: 20 / 28
WEAK = [2.0, 3.0, 0.0, 1.0, 7.0, 6.0, 4.0, 5.0]  # 19 of 28 pairs in order: 10 / 28

TABLES = """
[study]
name = "made up"
model = "nets:net"
data = "nets:data"
steps = 1

[grid]
learning_rate = {rates}
batch_size = 8

[measures]
{measures}

[trajectory]
steps = 40

[analysis]
runs = 12
"""
MEASURES = 'sd = {}\nsd-slq = { bin_width = 0.002 }\nlambda_1 = {}\nph_dimension = { metric = "data" }'


def made_up(folder: Path, rates: Sequence[float] = (0.1, 0.2, 0.3), measures: str = MEASURES) -> Results:
    """A study whose runs are done, one for each rate, with the measures and gaps in the order of the rates."""
    path = folder / "grid.toml"
    path.write_text(TABLES.format(rates=list(rates), measures=measures))
    study = read_study(str(path))
    rows = []
    for k, run in enumerate(study.runs):
        scores = Scores(0.1, 0.9), Scores(0.2 + 0.1 * k, 0.8 - 0.1 * k)
        trained = Trained(run.settings, {}, 1, 1, "steps", *scores, "", {}, 1.0)
        measured = Measured({name: Value(float(k), 0.25, "", {}) for name in study.by_column()}, 1.0)
        rows.append(Row(RunState(run, DONE), trained, measured, Analysed("sgd", 208, ())))
    return Results(study, tuple(rows), ())


def with_rows(results: Results, **changes: Sequence[object]) -> Results:
    """The same with one field of each row replaced."""
    rows = results.rows
    for name, values in changes.items():
        rows = tuple(attrs.evolve(row, **{name: value}) for row, value in zip(rows, values, strict=True))
    return attrs.evolve(results, rows=rows)


def of_maps(results: Results, maps: Sequence[tuple[str, int]]) -> Results:
    return with_rows(results, analysed=[Analysed(name, size, ()) for name, size in maps])


def shown(results: Results) -> str:
    """The terminal's text in 80 columns."""
    return as_text(study_report(results, results.correlations()), width=80)


def as_html(results: Results) -> str:
    return html.as_html(study_report(results, results.correlations()))


def in_one_line(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize(
    ("measures", "said"),
    [
        (
            {"up": EIGHT, "down": EIGHT[::-1], "odd": ODD},
            "up correlates most strongly with the loss gap: tau-b +1.00 over 8 runs, of 3 measures; the strongest "
            "negative correlation is that of down: -1.00",
        ),
        (
            {"odd": ODD, "up": EIGHT},
            "up correlates most strongly with the loss gap: tau-b +1.00 over 8 runs, of 2 measures",
        ),
        ({"odd": ODD}, "odd correlates most strongly with the loss gap: tau-b +0.71 over 8 runs, the one measure"),
        # The larger one rests on 3 runs alone.
        (
            {"odd": ODD, "few": [0.0, 1.0, 2.0] + [np.nan] * 5},
            "odd correlates clearly with the loss gap: tau-b +0.71 over 8 runs, of 2 measures",
        ),
        (
            {"down": EIGHT[::-1], "few": [0.0, 1.0, 2.0] + [np.nan] * 5},
            "No measure clearly correlates with a gap: the largest tau-b "
            "is few's with the loss gap, +1.00 over 3 runs "
            "(p = 0.33); the strongest negative one with the loss gap is that of down: -1.00",
        ),
        (
            {"weak": WEAK},
            "No measure clearly correlates with a gap: the largest tau-b "
            "is weak's with the loss gap, +0.36 over 8 runs "
            "(p = 0.28)",
        ),
        (
            {"half": MIXED},
            "No measure clearly correlates with a gap: the largest tau-b "
            "is half's with the loss gap, +0.33 over 4 runs "
            "(p = 0.75)",
        ),
        (
            {"half": MIXED, "up": FOUR, "down": FOUR[::-1]},
            "No measure clearly correlates with a gap: the largest tau-b "
            "is up's with the loss gap, +1.00 over 4 runs "
            "(p = 0.083)",
        ),
        (
            {"down": FOUR[::-1]},
            "No measure correlates with a gap: the largest tau-b "
            "is down's with the loss gap, -1.00 over 4 runs (p = 0.083)",
        ),
        ({"same": [1.0] * 4}, "No measure has a tau-b: all values of it, or of the gaps, are equal"),
    ],
)
def test_the_headline_claims_what_the_runs_show(measures: dict[str, list[float]], said: str) -> None:
    length = len(next(iter(measures.values())))
    runs = [
        Run(settings={"rate": i}, measures={name: values[i] for name, values in measures.items()}, loss_gap=float(i))
        for i in range(length)
    ]
    assert headline(correlate(runs)) == said


def test_different_maps_are_told(tmp_path: Path) -> None:
    one = made_up(tmp_path)
    mixed = of_maps(one, [("sgd", 208), ("adam", 416), ("sgd", 208)])
    (note,) = [note for note in notes(mixed, mixed.correlations()) if "maps" in note]
    assert note.startswith("Runs are of different maps: sgd with d = 208 in 2 runs, adam with d = 416 in 1 run. ")
    assert "coefficients of sd, sd-slq, lambda_1 mix them" in note
    assert 'one study for each optimizer, or set map = "hessian" under [analysis]' in note
    assert note in in_one_line(shown(mixed))
    assert "adam with d = 416 in 1 run" in as_html(mixed)
    table = list(csv.DictReader(io.StringIO(mixed.to_csv())))
    assert [row["map"] for row in table] == ["sgd", "adam", "sgd"]
    assert [row["state_size"] for row in table] == ["208", "416", "208"]

    larger = of_maps(one, [("sgd", 208), ("sgd", 300), ("sgd", 208)])
    (note,) = [note for note in notes(larger, larger.correlations()) if "Runs are of" in note]
    assert "one study for each size of the model" in note
    assert "optimizer" not in note

    assert not [note for note in notes(one, one.correlations()) if "Runs are of" in note]
    # The trace is of no map.
    trace = of_maps(made_up(tmp_path, measures="trace = {}"), [("sgd", 208), ("adam", 416), ("sgd", 208)])
    assert not [note for note in notes(trace, trace.correlations()) if "Runs are of" in note]


def test_warnings_are_counted_over_the_runs(tmp_path: Path) -> None:
    rare, first, second = (
        Note("saturated", "<rare>."),
        Note("coarse-bins", "first."),
        Note("coarse-bins", "2."),
    )
    of = [(rare, first, second), (second,), ()]
    results = with_rows(made_up(tmp_path), analysed=[Analysed("sgd", 208, warnings) for warnings in of])
    assert warnings_by_code(results) == (
        CountedWarning("coarse-bins", 2, 3, "first."),
        CountedWarning("saturated", 1, 3, "<rare>."),
    )
    assert "Warnings of 3 runs (messages in study.html): coarse-bins in 2, saturated in 1." in in_one_line(
        shown(results)
    )
    page = as_html(results)
    assert "<b>coarse-bins</b>in 2 of 3 runs: first." in page
    assert "&lt;rare&gt;" in page
    table = list(csv.DictReader(io.StringIO(results.to_csv())))
    assert [row["warnings"] for row in table] == ["saturated;coarse-bins", "coarse-bins", ""]
    assert "Warnings of the runs" not in as_html(made_up(tmp_path))


def test_identical_runs_are_told(tmp_path: Path) -> None:
    results = made_up(tmp_path)
    first, second, third = (row.trained for row in results.rows)
    asked = "Runs lr0.1-bs8-seed0 and lr0.3-bs8-seed0 came out identical: does the factory use 'learning_rate'?"
    same = with_rows(results, trained=[first, second, attrs.evolve(third, train=first.train, test=first.test)])
    assert asked in notes(same, same.correlations())
    all_same = with_rows(results, trained=[first] * 3)
    (note,) = [note for note in notes(all_same, results.correlations()) if "identical" in note]
    assert note.startswith("Runs lr0.1-bs8-seed0 and lr0.2-bs8-seed0 (and 1 other alike) came out identical: ")
    near = attrs.evolve(third, train=first.train, test=attrs.evolve(first.test, loss=first.test.loss + 1e-12))
    for other in (results, with_rows(results, trained=[first, second, near])):
        assert not [note for note in notes(other, other.correlations()) if "identical" in note]


@pytest.mark.parametrize(
    ("rates", "states", "said"),
    [
        ([0.1], [DONE], "1 of 1 run done; a scatter plot needs at least 2 that are done. Give a setting under [grid]"),
        ([0.1, 0.2], [DONE, NEW], "Continue with sdkeras study run GRID.toml --out DIR."),
        ([0.1, 0.2, 0.3], [NEW, NEW, FAILED], "Continue with sdkeras study run GRID.toml --out DIR."),
        ([0.1, 0.2], [FAILED, FAILED], "--retry. The first, lr0.1-bs8-seed0, failed in training: nan"),
        ([0.1, 0.2], [DONE, FAILED], "--retry. The first, lr0.2-bs8-seed0, failed in training: nan"),
        ([0.1, 0.2], [NEW, FAILED], "--retry."),
        ([0.1], [FAILED], "more values, and run sdkeras study run GRID.toml --out DIR --retry."),
    ],
)
def test_too_few_runs_are_refused_with_what_to_do(
    tmp_path: Path, rates: list[float], states: list[str], said: str
) -> None:
    results = made_up(tmp_path, rates)
    failed = Failed("training", "nan")
    of = [
        RunState(row.state.run, state, failed if state == FAILED else None)
        for row, state in zip(results.rows, states, strict=True)
    ]
    with pytest.raises(SdkerasError, match=re.escape(said)) as caught:
        with_rows(results, state=of).check_enough("a scatter plot")
    assert ("Continue" in str(caught.value)) == ("Continue" in said)
    assert ("--retry" in str(caught.value)) == ("--retry" in said)


def test_the_page_says_what_the_measures_are_and_how_they_were_made(tmp_path: Path) -> None:
    results = made_up(tmp_path)
    page = as_html(results)
    for name in ("sd", "sd-slq", "lambda_1", "ph_dimension", "forward", "backward", "data", "gap", "tau-b", "psi"):
        assert page.count(f"<h3>{name}</h3>") == 1
    for name in ("sd-kde", "sharpness", "e_alpha", "euclidean"):
        assert f"<h3>{name}</h3>" not in page
    text = re.sub(r"<[^>]*>", " ", page[page.index('id="made"') :])
    made = in_one_line(text).replace("&#34;", '"')
    for said in (
        "training 1 step ",
        "varied learning_rate = [0.1, 0.2, 0.3] ",
        "the same in all runs batch_size = 8, seed = 0 ",
        "measure sd defaults ",
        "measure sd-slq bin_width = 0.002 ",
        'measure ph_dimension metric = "data" ',
        "[analysis] runs = 12 ",
        "[trajectory] steps = 40, every = 1, alpha = 1.0, examples = 500 ",
    ):
        assert said in made
    every = made_up(tmp_path, measures="\n".join(f"{name} = {{}}" for name in NAMES))
    assert as_html(every).count("<h3>") > len(NAMES)


def test_long_reasons_wrap_and_the_picture_scrolls(tmp_path: Path) -> None:
    results = made_up(tmp_path)
    failed = RunState(results.rows[2].state.run, FAILED, Failed("training", "long " * 50))
    one = with_rows(results, state=[results.rows[0].state, results.rows[1].state, failed])
    page = as_html(one)
    section = page[page.index('id="failed"') :]
    # Cells of the class "wide" do not wrap.
    assert section[section.index("<article") :].startswith('<article class="card">')
    assert "1 run failed and is in no coefficient." in page
    (least,) = re.findall(r'<svg[^>]*style="min-width: ([\d.]+)px"', page)
    (natural,) = re.findall(r'<svg[^>]*viewBox="0 0 ([\d.]+) ', page)
    assert float(least) == float(natural) > 390
    assert re.search(r"\.panels div \{[^}]*overflow-x: auto", page)


def test_the_terminal_has_a_line_for_each_measure_at_80_columns(tmp_path: Path) -> None:
    results = made_up(tmp_path, [0.1 * k for k in range(1, 7)], "sd = {}\nph_dimension = {}")
    lines = shown(results).splitlines()
    assert max(map(len, lines)) <= 80
    (header, _) = [line.split() for line in lines if "tau-b" in line and "interval" in line]
    assert header == ["measure", "tau-b", "95", "%", "interval", "p", "mean", "psi"]
    of = [line.split() for line in lines if line.startswith("ph_dimension-backward-euclidean ")]
    assert of == [["ph_dimension-backward-euclidean", "+1.00", "[+1.00,", "+1.00]", "0.0028", "+1.00"]] * 2


def test_errors_are_bars_in_the_scatter(tmp_path: Path) -> None:
    results = made_up(tmp_path, measures="sd = {}")
    with_errors = as_image(scatter(results, "loss_gap"), "svg")
    values = [
        attrs.evolve(row.measured, values={"sd": Value(float(k), None, "", {})}) for k, row in enumerate(results.rows)
    ]
    without = as_image(scatter(with_rows(results, measured=values), "loss_gap"), "svg")
    assert [image.count(b'id="LineCollection_') for image in (with_errors, without)] == [3, 0]
