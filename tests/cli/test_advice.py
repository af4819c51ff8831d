"""Arguments in messages: Python's spelling, and the command line's where a command runs."""

from typing import Any

import pytest

from sdkeras.errors import SdkerasError
from sdkeras.reporting.advice import as_options, rendered
from sdkeras.reporting.report import printable

OPTIONS = {name: f"--{name.replace('_', '-')}" for name in ("learning_rate", "loss", "dtype", "exact", "class_weight")}
OPTIONS |= {"settings": "--set", "memory_gb": "--memory"}


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("give it (`learning_rate=F`).", "give it (--learning-rate F)."),
        ("take `exact=True`", "take --exact"),
        ("`loss=NAME, dtype='float64'`", "--loss NAME --dtype float64"),
        ("leave out `learning_rate` or `loss`", "leave out --learning-rate or --loss"),
        ("`class_weight={0: 1.0, 1: 9.0}`", "--class-weight 0=1.0,1=9.0"),
        ("`settings={'sd-kde': {'bandwidth': H}}`", "--set sd-kde.bandwidth=H"),
        ("`memory_gb=2.5`", "--memory 2.5"),
        ("`loss='FILE.py:FUNCTION'`", "--loss FILE.py:FUNCTION"),
        ("`fit` takes `workers=2`, `f(x)`, `x y`, ``, `loss", "`fit` takes `workers=2`, `f(x)`, `x y`, ``, `loss"),
        ("`loss=NAME, workers=2`", "`loss=NAME, workers=2`"),
    ],
)
def test_an_argument_is_shown_as_its_reader_writes_it(message: str, shown: str) -> None:
    assert rendered(message) == message
    with as_options(OPTIONS):
        assert rendered(message) == shown
        assert printable(message) == shown
    assert printable(message) == message


def test_errors_of_a_command_name_its_options(monkeypatch: pytest.MonkeyPatch, in_process: Any) -> None:
    def refuse(*_: Any) -> None:
        raise SdkerasError("give `memory_gb=GB, lyapunov_steps=N`, or `windows`.")

    monkeypatch.setattr("sdkeras_cli.request.check_inputs", refuse)
    status, _, err = in_process("analyze", "model.keras", "--data", "data.npz")
    assert status == 2
    assert err == "sdkeras: error: give --memory GB --lyapunov-steps N, or `windows`.\n"
    assert rendered("`memory_gb=GB`") == "`memory_gb=GB`"
