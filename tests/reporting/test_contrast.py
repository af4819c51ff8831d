"""Every colour of the pages stands out from what is behind it, in light and dark: WCAG 2, levels 1.4.3 and 1.4.11."""

import itertools
import re
from importlib.resources import files

import attrs
import numpy as np
import pytest

from sample_log import FOUND, HEADER
from sample_runs import ALONE, PLAUSIBLE
from sdkeras.reporting.build import report_of
from sdkeras.reporting.drawing import PRINT, as_svg
from sdkeras.results.log import RunLog

TEXT, GRAPHICS = 4.5, 3.0
STYLE = (files("sdkeras.reporting") / "templates" / "style.html.j2").read_text(encoding="utf-8")
PALETTES = re.findall(r":root \{([^}]*)\}", STYLE)
LIGHT, DARK = (dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6})", each)) for each in PALETTES)
BOTH = pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
RULES = re.findall(r"([^{};]+)\{([^{}]*)\}", STYLE)


def rgb(colour: str) -> np.ndarray:
    return np.array([int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)])


def contrast(colour: np.ndarray, behind: np.ndarray) -> float:
    """Ratio of the relative luminances, from 1 to 21."""
    linear = [np.where(each <= 0.04045, each / 12.92, ((each + 0.055) / 1.055) ** 2.4) for each in (colour, behind)]
    low, high = sorted(float(each @ [0.2126, 0.7152, 0.0722]) for each in linear)
    return (high + 0.05) / (low + 0.05)


def colours_of(style: str, name: str) -> list[str]:
    return re.findall(rf"(?<![-a-z]){name}: var\(--([a-z]+)\)", style)


def test_the_ratio_is_that_of_the_standard() -> None:
    black, white, grey = rgb("#000000"), rgb("#ffffff"), rgb("#767676")
    assert contrast(black, white) == contrast(white, black) == pytest.approx(21)
    assert contrast(grey, white) == pytest.approx(4.54, abs=0.005)  # the lightest grey that passes on white


@BOTH
def test_text_stands_out(palette: dict[str, str]) -> None:
    """A colour of text on the background of its own rule, else on the page and on a card."""
    found = {
        (colour, ground)
        for _, style in RULES
        for colour in colours_of(style, "color")
        for ground in (colours_of(style, "background") or ("page", "card"))
    }
    assert {("soft", "page"), ("good", "card"), ("card", "ink")} <= found
    poor = {pair: contrast(*(rgb(palette[each]) for each in pair)) for pair in found}
    assert not {pair: ratio for pair, ratio in poor.items() if ratio < TEXT}


@BOTH
def test_bars_and_marks_stand_out(palette: dict[str, str]) -> None:
    """Bars, the fill of the gauge and the borders of notes; borders of cards and rows only divide."""
    bars = [(colour, "card") for name, style in RULES if name.startswith("\n.bar") for colour in ground_of(style)]
    bars += [(colour, "faint") for name, style in RULES if ".fill" in name for colour in ground_of(style)]
    marks = [
        (colour, "card")
        for _, style in RULES
        for colour in re.findall(r"border-left(?:-color)?: (?:\S+ solid )?var\(--([a-z]+)\)", style)
    ]
    assert {"accent", "soft", "bad"} <= {colour for colour, _ in bars}
    assert {"warn", "bad"} <= {colour for colour, _ in marks}
    poor = {pair: contrast(*(rgb(palette[each]) for each in pair)) for pair in (*bars, *marks)}
    assert not {pair: ratio for pair, ratio in poor.items() if ratio < GRAPHICS}


def ground_of(style: str) -> list[str]:
    return colours_of(style, "background")


@BOTH
def test_figures_stand_out(palette: dict[str, str], drawn: list[tuple[str, str, float]]) -> None:
    """Names, axes, lines and bars on their card; bands behind a line may be fainter."""
    card = rgb(palette["card"])
    for kind, colour, opacity in drawn:
        seen = opacity * rgb(palette[colour]) + (1 - opacity) * card
        assert contrast(seen, card) >= (TEXT if kind == "text" else GRAPHICS), (kind, colour, opacity)


@pytest.fixture(scope="module")
def drawn() -> list[tuple[str, str, float]]:
    """What the figures draw: text, stroke or fill, in a colour of the page, with an opacity."""
    log = RunLog(HEADER, (FOUND, attrs.evolve(FOUND, step=20)))
    six = {"values": -np.arange(6.0), "stderr": np.ones(6), "rounding": np.zeros(6)}
    lines = attrs.evolve(ALONE.lyapunov, **six, history=tuple(np.arange(6.0)[:, None] + np.arange(12.0)))
    trajectory = attrs.evolve(ALONE, lyapunov=lines)
    found = set()
    for figure in itertools.chain(*(report_of(each).figures for each in (PLAUSIBLE, trajectory, log))):
        svg = as_svg(figure).replace("currentColor", "var(--ink)")
        for tag, style in re.findall(r'<(\w+)[^>]*? style="([^"]*)"', svg):
            for name in ("fill", "stroke"):
                alpha = re.findall(rf"(?<![-a-z])(?:{name}-)?opacity: ([\d.]+)", style)
                opacity = float(np.prod([float(each) for each in alpha]))
                kind = "text" if tag == "text" else name
                if name == "stroke" or opacity > 0.5:
                    found |= {(kind, each, opacity) for each in colours_of(style, name)}
    assert {("text", "soft", 1.0), ("stroke", "axis", 1.0), ("fill", "accent", 0.75)} <= found
    assert {each for _, each, _ in found} >= {"ink", "soft", "axis", "accent", "warn"}
    return sorted(found)


def test_figures_of_files_stand_out() -> None:
    ratios = {name: contrast(rgb(each), rgb("#ffffff")) for name, each in attrs.asdict(PRINT).items()}
    assert not {name for name, ratio in ratios.items() if ratio < (GRAPHICS if name == "line" else TEXT)}
