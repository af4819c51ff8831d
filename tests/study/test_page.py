"""What a study's page, terminal and figures say of made-up runs."""

import csv
import io
import itertools
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
from sdkeras.study.correlations import TARGETS, Correlations, Run, coefficient, correlate
from sdkeras.study.definition import NAMES, read_study
from sdkeras.study.figures import heat_map, matrix, scatter
from sdkeras.study.page import headline, notes, study_report
from sdkeras.study.results import Analysed, Results, Row
from sdkeras.study.run_files import DONE, FAILED, NEW, Failed, Measured, RunState, Scores, Trained, Value

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
{analysis}
"""
MEASURES = 'sd = {}\nsd-slq = { bin_width = 0.002 }\nlambda_1 = {}\nph_dimension = { metric = "data" }'


def made_up(
    folder: Path, rates: Sequence[float] = (0.1, 0.2, 0.3), measures: str = MEASURES, analysis: str = ""
) -> Results:
    """A study whose runs are done, one for each rate, with the measures and gaps in the order of the rates."""
    path = folder / "grid.toml"
    path.write_text(TABLES.format(rates=list(rates), measures=measures, analysis=analysis))
    study = read_study(str(path))
    rows = []
    for k, run in enumerate(study.runs):
        scores = Scores(0.1, 0.9), Scores(0.2 + 0.1 * k, 0.8 - 0.1 * k)
        trained = Trained(run.settings, {}, 1, 1, "steps", *scores, "", {}, 1.0)
        measured = Measured({name: Value(float(k), 0.25, "", {}) for name in study.by_column()}, 1.0)
        rows.append(Row(RunState(run, DONE), trained, measured, Analysed("sgd", 208, ())))
    return Results(study, tuple(rows), ())


@pytest.fixture
def three(tmp_path: Path) -> Results:
    return made_up(tmp_path)


def with_rows(results: Results, **changes: Sequence[object]) -> Results:
    """The same with one field of each row replaced."""
    rows = results.rows
    for name, values in changes.items():
        rows = tuple(attrs.evolve(row, **{name: value}) for row, value in zip(rows, values, strict=True))
    return attrs.evolve(results, rows=rows)


def of_maps(results: Results, *maps: tuple[str, int]) -> Results:
    return with_rows(results, analysed=[Analysed(name, size, ()) for name, size in maps])


def in_states(results: Results, *states: str, reason: str = "nan") -> Results:
    failed = {FAILED: Failed("training", reason)}
    each = [RunState(row.state.run, state, failed.get(state)) for row, state in zip(results.rows, states, strict=True)]
    return with_rows(results, state=each)


def said_of(results: Results, word: str) -> list[str]:
    """The notes with this word."""
    return [note for note in notes(results, results.correlations()) if word in note]


def shown(results: Results) -> str:
    """The terminal's text in 80 columns."""
    return as_text(study_report(results, results.correlations()), width=80)


def as_html(results: Results) -> str:
    return html.as_html(study_report(results, results.correlations()))


def in_one_line(text: str) -> str:
    return " ".join(text.split())


def table(results: Results) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(results.to_csv())))


UP = [float(k) for k in range(8)]
DOWN = UP[::-1]
ODD = [1.0, 0.0, 3.0, 2.0, 5.0, 4.0, 7.0, 6.0]  # 24 of 28 pairs in order: 20 / 28
WEAK = [2.0, 3.0, 0.0, 1.0, 7.0, 6.0, 4.0, 5.0]  # 19 of 28 pairs in order: 10 / 28
HALF = [2.0, 1.0, 4.0, 3.0]  # four of six pairs in order: (4 - 2) / 6
FEW = [0.0, 1.0, 2.0] + [np.nan] * 5
STRONGEST = "correlates most strongly with the loss gap: tau-b"
NOT_CLEAR = "No measure clearly correlates with a gap: the largest tau-b is"


@pytest.mark.parametrize(
    ("measures", "said"),
    [
        (
            {"up": UP, "down": DOWN, "odd": ODD},
            f"up {STRONGEST} +1.00 over 8 runs, of 3 measures; the strongest negative correlation is that of down: "
            "-1.00",
        ),
        ({"odd": ODD, "up": UP}, f"up {STRONGEST} +1.00 over 8 runs, of 2 measures"),
        ({"odd": ODD}, f"odd {STRONGEST} +0.71 over 8 runs, the one measure"),
        # The larger one rests on 3 runs alone.
        ({"odd": ODD, "few": FEW}, "odd correlates clearly with the loss gap: tau-b +0.71 over 8 runs, of 2 measures"),
        (
            {"down": DOWN, "few": FEW},
            f"{NOT_CLEAR} few's with the loss gap, +1.00 over 3 runs (p = 0.33); the strongest negative one with the "
            "loss gap is that of down: -1.00",
        ),
        ({"weak": WEAK}, f"{NOT_CLEAR} weak's with the loss gap, +0.36 over 8 runs (p = 0.28)"),
        ({"half": HALF}, f"{NOT_CLEAR} half's with the loss gap, +0.33 over 4 runs (p = 0.75)"),
        (
            {"half": HALF, "up": UP[:4], "down": DOWN[:4]},
            f"{NOT_CLEAR} up's with the loss gap, +1.00 over 4 runs (p = 0.083)",
        ),
        (
            {"down": DOWN[:4]},
            "No measure correlates with a gap: the largest tau-b is down's with the loss gap, -1.00 over 4 runs "
            "(p = 0.083)",
        ),
        ({"same": [1.0] * 4}, "No measure has a tau-b: all values of it, or of the gaps, are equal"),
    ],
)
def test_the_headline_claims_what_the_runs_show(measures: dict[str, list[float]], said: str) -> None:
    columns = [dict(zip(measures, values, strict=True)) for values in zip(*measures.values(), strict=True)]
    runs = [Run(settings={"rate": i}, measures=each, loss_gap=float(i)) for i, each in enumerate(columns)]
    assert headline(correlate(runs)) == said


def test_different_maps_are_told(three: Results, tmp_path: Path) -> None:
    mixed = of_maps(three, ("sgd", 208), ("adam", 416), ("sgd", 208))
    (note,) = said_of(mixed, "maps")
    assert note.startswith("Runs are of different maps: sgd with d = 208 in 2 runs, adam with d = 416 in 1 run. ")
    assert "coefficients of sd, sd-slq, lambda_1 mix them" in note
    assert 'one study for each optimizer, or set map = "hessian" under [analysis]' in note
    assert note in in_one_line(shown(mixed))
    assert "adam with d = 416 in 1 run" in as_html(mixed)
    assert [(row["map"], row["state_size"]) for row in table(mixed)] == [
        ("sgd", "208"),
        ("adam", "416"),
        ("sgd", "208"),
    ]

    (note,) = said_of(of_maps(three, ("sgd", 208), ("sgd", 300), ("sgd", 208)), "Runs are of")
    assert "one study for each size of the model" in note
    assert "optimizer" not in note

    assert not said_of(three, "Runs are of")
    # The trace is of no map.
    trace = of_maps(made_up(tmp_path, measures="trace = {}"), ("sgd", 208), ("adam", 416), ("sgd", 208))
    assert not said_of(trace, "Runs are of")


def test_of_different_optimizers_the_columns_of_the_papers_map_compare(tmp_path: Path) -> None:
    """Of models of different sizes they do not."""
    rates, measures = [0.1 * k for k in range(1, 10)], "slq = {}\nlambda_1 = {}\ntrace = {}"
    both = made_up(tmp_path, rates, measures, 'map = ["auto", "hessian"]')
    mixed = of_maps(both, *[("sgd", 208), ("heavy-ball", 416), ("sgd", 208)] * 3)
    (note,) = said_of(mixed, "Runs are of")
    assert "coefficients of slq, lambda_1 mix them" in note
    assert note.endswith("or take the columns of the map hessian.")
    assert study_report(mixed, mixed.correlations()).headline.startswith("slq-map-hessian correlates")
    assert "numbers are of. Without this ending" in as_html(mixed)
    (note,) = said_of(of_maps(both, *[("sgd", 208), ("sgd", 300), ("sgd", 208)] * 3), "Runs are of")
    assert "of slq, slq-map-hessian, lambda_1, lambda_1-map-hessian mix them" in note


def test_warnings_are_counted_over_the_runs(three: Results) -> None:
    rare, first, second = Note("saturated", "<rare>."), Note("coarse-bins", "first."), Note("coarse-bins", "2.")
    of_first = Analysed("sgd", 208, (first,))
    of = [(rare, first, second), (second,), ()]
    results = with_rows(three, analysed=[Analysed("sgd", 208, warnings) for warnings in of])
    listed = "Warnings of 3 runs (messages in study.html): coarse-bins in 2, saturated in 1."
    assert listed in in_one_line(shown(results))
    page = as_html(results)
    assert "<b>coarse-bins</b>in 2 of 3 runs: first." in page
    assert "<b>saturated</b>in 1 of 3 runs: &lt;rare&gt;." in page
    assert [row["warnings"] for row in table(results)] == ["saturated;coarse-bins", "coarse-bins", ""]
    assert "Warnings of the runs" not in as_html(three)
    severe = with_rows(results, analysed=[Analysed("sgd", 208, (first, Note("unverified", "no."))), *([of_first] * 2)])
    assert as_html(severe).index("<b>unverified</b>in 1 of 3") < as_html(severe).index("<b>coarse-bins</b>in 3 of 3")


def test_identical_runs_are_told(three: Results) -> None:
    first, second, third = (row.trained for row in three.rows)
    same = with_rows(three, trained=[first, second, attrs.evolve(third, train=first.train, test=first.test)])
    assert said_of(same, "identical") == [
        "Runs lr0.1-bs8-seed0 and lr0.3-bs8-seed0 came out identical: does the factory use 'learning_rate'?"
    ]
    (note,) = said_of(with_rows(three, trained=[first] * 3), "identical")
    assert note.startswith("Runs lr0.1-bs8-seed0 and lr0.2-bs8-seed0 (and 1 other alike) came out identical: ")
    near = attrs.evolve(third, train=first.train, test=attrs.evolve(first.test, loss=first.test.loss + 1e-12))
    for other in (three, with_rows(three, trained=[first, second, near])):
        assert not said_of(other, "identical")


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
    with pytest.raises(SdkerasError, match=re.escape(said)) as caught:
        in_states(made_up(tmp_path, rates), *states).check_enough("a scatter plot")
    assert ("Continue" in str(caught.value)) == ("Continue" in said)
    assert ("--retry" in str(caught.value)) == ("--retry" in said)


def test_the_page_says_what_the_measures_are_and_how_they_were_made(three: Results, tmp_path: Path) -> None:
    page = as_html(three)
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


def test_long_reasons_wrap_and_the_picture_scrolls(three: Results) -> None:
    page = as_html(in_states(three, DONE, DONE, FAILED, reason="long " * 50))
    section = page[page.index('id="failed"') :]
    # Cells of the class "wide" do not wrap.
    assert section[section.index("<article") :].startswith('<article class="card">')
    assert "1 run failed and is left out of all coefficients." in page
    least, *_ = re.findall(r'<svg[^>]*style="min-width: ([\d.]+)px"', page)
    natural, *_ = re.findall(r'<svg[^>]*viewBox="0 0 ([\d.]+) ', page)
    assert 390 < 0.9 * float(natural) < float(least) < float(natural)
    assert re.search(r"\.panels \.plot \{[^}]*overflow-x: auto", page)


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
    values = [Measured({"sd": Value(float(k), None, "", {})}, 1.0) for k in range(3)]
    images = [as_image(scatter(each, "loss_gap"), "svg") for each in (results, with_rows(results, measured=values))]
    assert [image.count(b'id="LineCollection_') for image in images] == [3, 0]


def correlated(measures: int, *, loss: bool = True) -> Correlations:
    """Many measures, one of a name that looks like a formula, and one that some runs have not."""
    rng = np.random.default_rng(0)
    names = [f"measure {k} of many" for k in range(measures - 1)] + ["$lambda_1 & <x>"]
    runs = [
        Run(
            settings={"learning rate": rate, "batch size": batch},
            measures={name: float(rng.random()) if name != names[0] or not rate else None for name in names},
            accuracy_gap=float(rng.random()),
            loss_gap=float(rng.random()) if loss else None,
        )
        for rate, batch in itertools.product(range(5), repeat=2)
    ]
    return correlate(runs, num_resamples=100)


def test_every_number_is_in_the_heat_map() -> None:
    record = correlated(12)
    svg = as_image(heat_map(record), "svg")
    texts = re.findall(r"<text.*?</text>", svg.decode(), flags=re.DOTALL)
    words = [re.sub(r"<[^>]*>", "", text).strip() for text in texts]
    for row in record.rows:
        for value in (row.tau_b, row.psi_mean, *(part.psi for part in row.granulated)):
            assert coefficient(value) in words
    for name in ("$lambda_1 &amp; &lt;x&gt;", "accuracy gap", "loss gap"):
        assert sum(name in word for word in words) == 1
    assert as_image(heat_map(record), "svg") == svg


def test_every_number_is_in_the_matrix_and_on_the_page(three: Results) -> None:
    record = correlated(5)
    texts = re.findall(r"<text.*?</text>", as_image(matrix(record), "svg").decode(), flags=re.DOTALL)
    words = [re.sub(r"<[^>]*>", "", text).strip() for text in texts]
    for pair in record.between:
        assert coefficient(pair.tau_b) in words
    assert len(record.between) == 21
    assert len([word for word in words if re.fullmatch(r"[+-]\d\.\d\d", word)]) == 21
    figure = matrix(record)
    shown = {(line.name, other): value for line in figure.series for other, value in zip(line.x, line.y, strict=True)}
    spoken = {name: name.replace("_", " ") for name in TARGETS}
    assert {(spoken.get(pair.second, pair.second), pair.first): pair.tau_b for pair in record.between} == shown
    section = as_html(three).partition('id="between"')[2].partition("</section>")[0]
    assert section.count("<tr") == 1 + len(three.correlations().between)


def test_one_gap_makes_one_panel() -> None:
    figure = heat_map(correlated(2, loss=False))
    assert figure.panels == (1, 1)
    assert as_image(figure, "png").startswith(b"\x89PNG")


def test_the_headline_goes_by_corrected_p_values_and_leaves_out_what_does_not_compare() -> None:
    """p of ODD is 0.014 alone, 0.07 among five that all are ODD; "mixed" is the strongest and is not named."""

    def correlations(measures: dict[str, list[float]]) -> Correlations:
        columns = [dict(zip(measures, values, strict=True)) for values in zip(*measures.values(), strict=True)]
        return correlate(
            [Run(settings={"rate": i}, measures=each, loss_gap=float(i)) for i, each in enumerate(columns)]
        )

    assert headline(correlations({f"odd{k}": ODD for k in range(5)})).startswith(NOT_CLEAR)
    said = headline(correlations({"lambda_1": UP, "odd": ODD}), ["lambda_1"])
    assert said == f"odd {STRONGEST} +0.71 over 8 runs, the one measure"
    assert headline(correlations({"lambda_1": UP}), ["lambda_1"]) == "No measure compares between all runs"
