"""CSV cells that a spreadsheet shows as they are."""

import csv
import io
import math

import pytest

from sdkeras.reporting.data_tables import as_csv


def read_back(*cells: object) -> list[str]:
    (row,) = csv.reader(io.StringIO(as_csv([cells])))
    return row


@pytest.mark.parametrize("text", ["=1+1", "+A1", "-A1", "@SUM(A1)", " =1", "\t=1", "=cmd|' /C calc'!A0"])
def test_no_text_begins_a_formula(text: str) -> None:
    (cell,) = read_back(text)
    assert cell.startswith("'")
    assert cell.lstrip("' ") == text.strip()


@pytest.mark.parametrize("text", ["plain", "a=b", "-1.5", "+2e-3", "-inf", "", "it's", 'a "b", c'])
def test_other_texts_are_as_they_are(text: str) -> None:
    assert read_back(text, "") == [text, ""]


def test_no_control_character_is_left() -> None:
    (cell,) = read_back("a\nb\r\nc\x1b[31m\x00\x7f\u202e")
    assert cell.isprintable()
    assert cell.startswith("a b  c")


def test_numbers_are_in_full_precision() -> None:
    assert read_back(-1.5, math.pi, -3, None, True) == ["-1.5", repr(math.pi), "-3", "", "True"]
