"""Reports in a terminal: no word broken at any usual width, the answer first, everything where it is asked for."""

import html
from collections import Counter

import attrs
import pytest

from reporting.test_page import PLAUSIBLE, RECORDS
from sample_runs import RUN
from sdkeras.reporting.build import Reported, report_of
from sdkeras.reporting.html import as_html
from sdkeras.reporting.report import Cell, Report, Section, Table
from sdkeras.reporting.terminal import as_text, is_brief
from sdkeras.results.answers import Analysis
from sdkeras.results.bounds import Assumption, Bound, BoundInput, BoundTerm

LONG = "sparse_categorical_crossentropy:from_logits"


def bounded(delta: float | None) -> Analysis:
    """A run with a bound that has one input, known or not, and long names."""
    given = BoundInput("delta", "delta", "probability that the bound fails", delta, estimated=False)
    assumption = Assumption("loss Lipschitz in the weights", "fails", f"not globally for {LONG}")
    term = BoundTerm("sqrt(log(1/delta) / n)", None if delta is None else 0.2)
    bound = Bound("Theorem 4.5", (given,), (term,), 0.2, None, "undetermined", (assumption,))
    return attrs.evolve(PLAUSIBLE, model=attrs.evolve(RUN.model, loss=LONG), bounds=(bound,))


REPORTS: dict[str, Reported] = RECORDS | {"bounded": bounded(0.1), "unbounded": bounded(None)}


def words_of(text: str) -> Counter[str]:
    return Counter(word for word in text.split() if set(word) - set("╭╮╰╯│─"))


@pytest.mark.parametrize("width", [60, 80, 100])
@pytest.mark.parametrize("name", REPORTS)
def test_no_word_is_broken_at_any_width(name: str, width: int) -> None:
    """Against the same report in lines of any length: every word is there, whole, but for columns that are left out."""
    for verbose in (False, True):
        text = as_text(REPORTS[name], width, verbose=verbose)
        assert max(map(len, text.splitlines())) <= width
        shown, _, left_out = text.partition("no room for ")
        words, whole = set(words_of(shown)), set(words_of(as_text(REPORTS[name], 2000, verbose=verbose)))
        assert words < whole if left_out else words == whole


@pytest.mark.parametrize("name", REPORTS)
def test_the_short_report_points_to_nothing_that_it_lacks(name: str) -> None:
    assert "see the" not in " ".join(as_text(REPORTS[name]).split())


def test_columns_that_do_not_fit_go_below_each_other() -> None:
    names = ("step", *(f"a_long_heading_{k}" for k in range(4)))
    rows = ((Cell("10", "failed"), *(f"{k}.5" for k in range(4))), ("200", *(f"{k}.25" for k in range(4))))
    wide = Report("log", "", ("verdict",), (Section("", "", tables=(Table("Measurements", rows, names, wide=True),)),))
    lines = as_text(wide, 60).splitlines()[4:]
    assert [line.split() for line in lines] == [
        ["Measurements"],
        *[["step", *names[1:4]], ["10", "0.5", "1.5", "2.5"], ["200", "0.25", "1.25", "2.25"]],
        *[["step", names[4]], ["10", "3.5"], ["200", "3.25"]],
    ]
    below = Table("Provenance", (("loss", LONG, "a_remark_of_thirty_characters_"), ("seed", "0", "")))
    text = as_text(attrs.evolve(wide, sections=(Section("", "", tables=(below,)),)), 60)
    assert [line.split() for line in text.splitlines()[5:]] == [
        ["loss", LONG],
        ["a_remark_of_thirty_characters_"],
        ["seed", "0"],
    ]


def test_the_answer_fits_a_screen_and_everything_is_there_when_asked_for() -> None:
    brief, verbose = as_text(PLAUSIBLE, 80), as_text(PLAUSIBLE, 80, verbose=True)
    assert str(PLAUSIBLE) == as_text(PLAUSIBLE)
    assert is_brief(report_of(PLAUSIBLE))
    assert len(brief.splitlines()) <= 42
    hidden = ("neutral directions", "lambda_d", "symmetry", "repeatability", "Provenance", "sqrt(SD/n)")
    shown = ("batch sharpness", "codimension", "definition's value", "lambda_1", "Verification: passed", "trace")
    for words in (*hidden, *shown):
        assert words in verbose
        assert (words in brief) == (words in shown), words
    wide = (as_text(PLAUSIBLE, 300, verbose=verbose).splitlines() for verbose in (False, True))  # where nothing wraps
    brief_lines, lines = ([" ".join(line.split()) for line in text] for text in wide)
    following = iter(lines)
    assert all(line in following for line in brief_lines if line)  # in the same order


@pytest.mark.parametrize(("delta", "shown"), [(0.1, True), (None, False)])
def test_bounds_are_in_the_terminal_where_an_input_is_given(delta: float | None, shown: bool) -> None:
    run = bounded(delta)
    brief, verbose = as_text(run, 80), as_text(run, 80, verbose=True)
    for words in ("Theorem 4.5", "Assumptions of the bounds", "loss Lipschitz"):
        assert (words in brief) == shown
        assert words in verbose
        assert words in html.unescape(as_html(run))


def test_a_sentence_never_stands_twice() -> None:
    bound = bounded(None).bounds[0]
    run = attrs.evolve(bounded(None), bounds=(bound, attrs.evolve(bound, theorem="Theorem B.5")))
    text = " ".join(as_text(run, 200, verbose=True).split())
    assert text.count("estimate them with `estimate_bound_inputs=True`") == 1


@pytest.mark.parametrize("width", [60, 70, 80])
def test_a_number_stays_beside_its_error(width: int) -> None:
    rows = (("gradient noise on the top eigenvector", "0.163 ± 0.015", " ".join(["remark"] * 40)), ("j*", "12.5", "x"))
    report = Report("name", "verdict", ("verdict",), (Section("Numbers", "numbers", tables=(Table("One", rows),)),))
    assert "0.163 ± 0.015" in as_text(report, width)
