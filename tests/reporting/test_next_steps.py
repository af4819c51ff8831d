"""What to do next and the net at initialisation, in the terminal and on the page."""

import html
import re
import shlex
from pathlib import Path

import attrs
import pytest

import sdkeras
from sample_runs import EMPTY, RUN, with_estimate
from sdkeras.reporting.html import as_html
from sdkeras.reporting.terminal import as_text
from sdkeras.results.answers import AtInit
from sdkeras.results.earlier import Earlier
from sdkeras.results.measured import Measured
from sdkeras.results.next_step import NextStep
from sdkeras.results.note import Note

LINE = (
    "sdkeras analyze 'a <b> net.keras' --data " + "long/" * 8 + "d.npz --batch-size 32 --learning-rate 0.25 --per-layer"
)
STEPS = (
    NextStep("rate-headroom", "Do this <first> (high: it is sure).", "high", LINE),
    NextStep("layer", "Then that (low: a guess).", "low"),
)
EARLIER = attrs.evolve(RUN.sharpness_dimension, codimension=3.2, codimension_interval=(3.0, 3.4))
START = AtInit(Measured(1.5, True, residual=1e-3), 0.075, EARLIER, 200)
STARTED = attrs.evolve(RUN, next_steps=STEPS, at_init=START)


def test_steps_stand_below_the_verdict_and_above_the_numbers() -> None:
    text, page = as_text(STARTED, width=80), as_html(STARTED)
    places = [
        text.index(each) for each in ("Below the edge", "What to do next", "1. Do this", "2. Then that", "90% of E+")
    ]
    assert places == sorted(places)
    assert max(map(len, text.splitlines())) <= 80
    start = text.index("sdkeras analyze")
    typed = text[start : text.index("2. Then")].strip()
    assert shlex.split(typed.replace("\\\n", " ")) == shlex.split(LINE)
    assert "Do this &lt;first&gt;" in page
    assert page.index("What to do next") < page.index('class="numbers"')
    (code,) = re.findall(r"<code>(<span>sdkeras.*?)</code>", page)
    assert html.unescape(re.sub("<[^>]*>", "", code)) == LINE


@pytest.mark.parametrize("run", [RUN, EMPTY])
def test_nothing_stands_where_nothing_follows(run: sdkeras.Analysis) -> None:
    for text in (as_text(run), as_html(run)):
        assert "What to do next" not in text
        assert "at initialisation" not in text


def test_a_caveat_that_a_step_says_is_not_said_again() -> None:
    wide = attrs.evolve(RUN, warnings=(Note("wide-interval", "12 % wide."), Note("margin", "Narrow.")))
    step = NextStep("narrower-interval", "Narrow it: it is 12 % wide.", "moderate")
    for shown in (as_text, as_html):
        assert "wide-interval" in shown(wide)
        assert "wide-interval" not in shown(attrs.evolve(wide, next_steps=(step,)))
        assert "Narrow." in shown(attrs.evolve(wide, next_steps=(step,)))


def test_the_net_at_initialisation_stands_beside_the_checkpoint() -> None:
    text = as_text(STARTED)
    assert "Codimension 3.20 [3.00, 3.40] at initialisation, now 469.8 [460.0, 479.5]." in text
    assert re.search(r"largest eigenvalue of H +1\.5 +12\b", text)
    assert re.search(r"ratio +0\.075 +0\.6\b", text)
    assert "The same net at initialisation" in as_html(STARTED)
    lacking = attrs.evolve(
        STARTED, at_init=attrs.evolve(START, ratio=None, sharpness_dimension=None, reason="no moments")
    )
    assert "] at initialisation" not in as_text(lacking)
    assert re.search(r"not compared +dimension +no moments", as_text(lacking))


LATER = Earlier(
    *(10, 1, 0.2, Measured(2.5, True), 0.25, Measured(1995.0, True)),
    Measured(5.0, True, interval=(4.5, 5.5)),
)


def test_what_was_earlier_in_training_stands_beside_the_checkpoint_in_the_same_way() -> None:
    """Both in one sentence; the learning rate where it was another one."""
    text = as_text(attrs.evolve(STARTED, earlier=LATER), width=120)
    now = "now 469.8 [460.0, 479.5]."
    assert f"Codimension 3.20 [3.00, 3.40] at initialisation, 5.00 [4.50, 5.50] after epoch 1, {now}" in text
    alone = attrs.evolve(RUN, earlier=attrs.evolve(LATER, epoch=0, step=1000))
    assert f"Codimension 5.00 [4.50, 5.50] at step 1,000, {now}" in as_text(alone, width=120)
    text = as_text(alone)
    assert re.search(r"largest eigenvalue of H +2\.5 +12\b", text)
    assert re.search(r"ratio +0\.25 +0\.6\b", text)
    assert re.search(r"learning rate +0\.2 +0\.1\b", text)
    assert "The same net at step 1,000" in as_html(alone)
    lacking = attrs.evolve(RUN, earlier=attrs.evolve(LATER, learning_rate=0.1, codimension=None, reason="no map"))
    assert "] after epoch 1" not in as_text(lacking)
    assert "learning rate " not in as_text(lacking).partition("The same net")[2]
    assert re.search(r"not compared +dimension +no map", as_text(lacking))


def test_the_codimension_as_a_share_of_the_state() -> None:
    assert "codimension 469.8 [460.0, 479.5] (23 %)." in as_text(RUN, width=200)
    assert "23 % of d = 2,000" in as_text(RUN)
    assert "is 469.8 [460.0, 479.5], 23 % of the state" in as_html(RUN)
    small = with_estimate(RUN, codimension=1.0, codimension_interval=(0.5, 1.5))
    assert "0.05 % of d = 2,000" in as_text(small)
    whole = with_estimate(RUN, codimension=1999.5, codimension_interval=(1999.0, 2000.0))
    assert "100 % of d = 2,000" in as_text(whole)


def test_all_are_read_back(tmp_path: Path) -> None:
    run = attrs.evolve(STARTED, earlier=LATER)
    run.save(tmp_path / "run.json")
    assert sdkeras.Analysis.load(tmp_path / "run.json") == run
    assert sdkeras.Analysis.load(tmp_path / "run.json") != attrs.evolve(STARTED, next_steps=STEPS[:1])
