"""The formulas at the end of an analysis' page are well-formed MathML and are what the code computes."""

import itertools
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from sample_runs import PLAUSIBLE
from sdkeras.dimension.exponents import exponent_map
from sdkeras.dimension.stability import thresholds
from sdkeras.reporting.html import as_html

ETA, BETA, DECAY, ALPHA = 0.125, 0.6, 0.01, 3.7
# Elements that browsers draw by themselves (MathML Core).
LEAVES, SCRIPTS = {"mi", "mn", "mo", "mspace"}, {"msub", "msup", "msubsup", "munder"}
CORE = LEAVES | SCRIPTS | {"math", "mrow", "mfrac", "msqrt", "mtable", "mtr", "mtd"}


@pytest.fixture(scope="module")
def page() -> str:
    return as_html(PLAUSIBLE)


def formulas(page: str, name: str) -> list[ElementTree.Element]:
    """The formulas set apart under this name."""
    entry = page.partition(f"<dt>{name}</dt>")[2].partition("<dt>")[0]
    apart = "".join(re.findall(r'<dd class="formula">(.*?)</dd>', entry))
    return [ElementTree.fromstring(each) for each in re.findall(r"<math.*?</math>", apart)]


def expression(node: ElementTree.Element) -> str:
    """MathML as Python, a product where two things stand side by side."""
    parts = [expression(child) for child in node]
    if node.tag == "mfrac":
        return f"(({parts[0]})/({parts[1]}))"
    if node.tag == "msub":
        return "_".join(parts)
    if node.tag == "msup":
        return f"({parts[0]})**({parts[1]})"
    if not parts:
        return {"\N{MINUS SIGN}": "-", "·": "*"}.get(node.text, node.text)
    text = parts[0]
    for left, right in itertools.pairwise(parts):
        text += ("" if left[-1] in "+-*/(" or right[0] in "+-*/)" else "*") + right
    return text


def value(node: ElementTree.Element, **names: float) -> float:
    return float(eval(expression(node), {"__builtins__": {}}, names))  # of a template of ours


def test_every_formula_is_mathml_with_nothing_lost(page: str) -> None:
    found = [ElementTree.fromstring(each) for each in re.findall(r"<math.*?</math>", page)]
    assert len(found) == page.count("<math") > 40
    for formula in found:
        nodes = list(formula.iter())
        assert {node.tag for node in nodes} <= CORE
        assert all(len(node) or node.tag == "mspace" or (node.text or "").strip() for node in nodes)
        assert not {"_", "^"} & set("".join(formula.itertext())), "a script that is none"
        assert all(len(node) == 2 for node in nodes if node.tag in ("mfrac", "msub", "msup", "munder"))
    assert page.partition(">Formulas</h3>")[2].count("<dt>") == len(
        re.findall(r'<dt>.*?</dt>\s*<dd class="formula">.*?<math', page)
    )


def test_thresholds_are_those_computed(page: str) -> None:
    plain, momentum, nesterov, adam, nadam = formulas(page, "Stability threshold")
    names = {"η": ETA, "β": BETA, "β_1": BETA}
    for formula, limits in (
        (plain, thresholds("SGD", ETA)),
        (momentum, thresholds("SGD", ETA, momentum=BETA)),
        (nesterov, thresholds("SGD", ETA, momentum=BETA, nesterov=True)),
        (adam, thresholds("Adam", ETA, momentum=BETA)),
        (nadam, thresholds("Nadam", ETA, momentum=BETA)),
    ):
        assert limits is not None
        assert value(formula, **names) == pytest.approx(limits.upper, rel=1e-14)


@pytest.mark.parametrize(
    ("name", "b", "rate"),
    [
        ("heavy-ball", BETA**0.5, ETA / (1 - BETA)),
        ("nesterov", BETA, ETA / (1 - BETA)),
        ("adam", BETA**0.5, ETA),
        ("nadam", BETA, ETA),
    ],
)
def test_singular_values_of_the_block_are_the_exponents(page: str, name: str, b: float, rate: float) -> None:
    *_, block = formulas(page, "Exponents with momentum")
    names = {"A": rate * ALPHA, "D": ETA * DECAY, "β": BETA, "b": b}
    rows = [[value(entry, **names) for entry in line] for line in block[0]]
    z = exponent_map(name, ETA, momentum=BETA, weight_decay=DECAY)(np.array([ALPHA]))
    np.testing.assert_allclose(np.log(np.linalg.svd(np.array(rows), compute_uv=False)), z, rtol=1e-12)


def test_references_and_rows_of_the_tables_have_their_entries(page: str) -> None:
    cited = {int(each) for each in re.findall(r"\[(\d+)\]", page.partition('id="formulas"')[2].partition("</main>")[0])}
    listed = page.partition('<ol class="references">')[2].partition("</ol>")[0].count("<li>")
    assert cited == set(range(1, listed + 1))
    entries = {each.lower() for each in re.findall(r"<dt>(.*?)</dt>", page)}
    assert {"mean-square stability", "gradient noise on the top eigenvector", "batch sharpness"} <= entries
