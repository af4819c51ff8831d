"""The pages of examples/ and the sample in the README print the numbers of examples/results/*.json, rounded."""

import json
import re
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from example_scripts import EXAMPLES, load_script

RESULTS = sorted((EXAMPLES / "results").glob("*.json"))
NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:e[-+]?\d+)?(?![\w])")


def numbers(value: Any) -> Iterable[str]:
    """The numbers of a record or text, in order."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from numbers(item)
    elif value is not None:
        yield from NUMBER.findall(str(value))


def agrees(printed: str, number: str) -> bool:
    """Whether the printed number is the other one, rounded to the printed digits."""
    said, exact = (Decimal(text.replace(",", "")) for text in (printed, number))
    return abs(said - exact) <= Decimal("0.5000001").scaleb(int(said.as_tuple().exponent))


def prose(text: str) -> Iterable[str]:
    """Numbers with a decimal point or a thousands separator, outside tables, commands and links."""
    elsewhere = r"```sh.*?```|^\|.*?$|`[^`]*`|(?:arXiv|Def\.) [\d.]+|\]\([^)]*\)"
    text = re.sub(elsewhere, " ", text, flags=re.DOTALL | re.MULTILINE)
    return [printed for printed in NUMBER.findall(text) if "." in printed or "," in printed]


def missing(printed: Iterable[str], known: Iterable[str]) -> list[str]:
    everything = list(known)
    return [each for each in printed if not any(agrees(each, number) for number in everything)]


@pytest.mark.parametrize("file", RESULTS, ids=lambda file: file.stem)
def test_a_page_prints_the_numbers_of_its_results(file: Path) -> None:
    results, page = json.loads(file.read_text()), (EXAMPLES / f"{file.stem}.md").read_text()
    assert results["command"] in page
    tables = re.findall(r"(?<=\|\n)\| .*", page)  # without the heads, which follow an empty line
    rows = [row for table in results["tables"] for row in table]
    assert len(tables) == len(rows)
    for line, row in zip(tables, rows, strict=True):
        pairs = list(zip(NUMBER.findall(line), numbers(row), strict=True))
        assert all(agrees(*pair) for pair in pairs), (line, pairs)
        assert all(label in line for label in row.values() if isinstance(label, str)), line
    assert missing(prose(page), numbers(results)) == []


def test_the_sample_of_the_readme_is_the_demos() -> None:
    sample = re.search(r"```text\n(.*?)```", (EXAMPLES.parent / "README.md").read_text(), flags=re.DOTALL)
    assert sample is not None
    known = list(numbers(json.loads((EXAMPLES / "results" / "demo.json").read_text())))
    assert len(list(prose(sample[1]))) > 10
    assert missing(prose(sample[1]), known) == []


def test_every_page_is_in_the_index_and_a_wrong_number_is_noticed() -> None:
    index = (EXAMPLES / "README.md").read_text()
    assert all(f"({page.name})" in index for page in EXAMPLES.glob("*.md") if page.name != "README.md")
    assert agrees("1,774.2", "1774.24")
    assert not agrees("1,774.3", "1774.24")
    assert missing(prose("at 0.187 of 3,466"), ["0.18602", "3466"]) == ["0.187"]


def test_saved_results_are_read_back_and_rounded_in_the_table(tmp_path: Path) -> None:
    example, file = load_script("result_files"), tmp_path / "results" / "one.json"
    rows = [{"net": "mlp", "value": 1774.2437, "interval": [1.0, 2.0]}, {"net": "conv", "value": 2.0, "interval": None}]
    example.save(file, rows, command="python one.py", findings={"accuracy": 0.9})
    example.save(file, rows, rows[:1])  # what else the file has stays
    saved = json.loads(file.read_text())
    assert saved == {"command": "python one.py", "findings": {"accuracy": 0.9}, "tables": [rows, rows[:1]]}
    table = example.markdown(rows, {"net": "{net}", "SD": "{value:,.1f}"})
    assert table.splitlines() == ["| net | SD |", "|---|---|", "| mlp | 1,774.2 |", "| conv | 2.0 |"]
