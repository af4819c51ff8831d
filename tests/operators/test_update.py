"""The optimizer's settings as its model has them: which learning rate a step has, and which were asked for."""

import math

import pytest

from sdkeras.errors import SdkerasError
from sdkeras.operators.update import parse_learning_rate


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.1", 0.1),
        (0.1, 0.1),
        (1, 1.0),
        ("1e-300", 1e-300),
        (" peak ", "peak"),
        ("mean", "mean"),
        ("step:007", "step:7"),
    ],
)
def test_a_rate_is_a_number_or_a_place_of_the_schedule(text, expected) -> None:
    assert parse_learning_rate(text) == expected
    assert parse_learning_rate(parse_learning_rate(text)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        0.0,
        -0.1,
        "nan",
        math.inf,
        True,
        None,
        "Peak",
        "step",
        "step:",
        "step:-1",
        "step:1.5",
        "step:²",
        "max",
        [],
    ],
)
def test_anything_else_is_refused_with_what_may_be_given(text) -> None:
    with pytest.raises(SdkerasError, match=r"positive finite number.*'peak', 'mean' or 'step:N'"):
        parse_learning_rate(text)
