"""Progress as people see it: in a terminal of 80 columns, in a notebook, by `progress=True`."""

import io
import sys
import types
from typing import Any

import keras
import numpy as np
import pytest
import rich.console

import sdkeras
from sdkeras.errors import SdkerasError
from sdkeras.reporting import progress_bar
from sdkeras.results.progress import Progress

# The longest words of the loop over runs, on a net of ten million parameters.
LATE = Progress(
    "sharpness dimension (slq)",
    10**7,
    value=9876543.2,
    half_width=1234.5,
    num_runs=1234,
    target=1233.3,
    seconds_left=3000.0,
)


def test_a_line_of_80_columns_holds_value_interval_runs_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    with progress_bar.progress_bar() as show:
        show(LATE)
    assert "SD 9,876,543 within 1.2e+03 (aim: 1.2e+03), 1,234/1,237 runs, about 50 min left" in screen.getvalue()
    assert "\N{HORIZONTAL ELLIPSIS}" not in screen.getvalue()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        *[(0.0, "about 1 s"), (7.4, "about 7 s"), (41.0, "about 40 s"), (89.0, "about 90 s")],
        *[(170.0, "about 3 min"), (5400.0, "about 2 h"), (1e5, "about 28 h")],
    ],
)
def test_a_time_left_has_no_digits_that_nobody_knows(seconds: float, words: str) -> None:
    assert progress_bar.duration(seconds) == words


def test_before_sd_has_an_interval_the_time_left_is_about_the_plans_and_fits_80_columns() -> None:
    step = Progress("largest and smallest eigenvalue of the data-set Hessian", 12345, seconds_left=41.0)
    words = progress_bar.in_words(step, brief=True)
    assert words == "largest and smallest eigenvalue: 12,345 HVPs, about 40 s left"


def test_in_a_notebook_a_line_is_written_over(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    class Handle:
        def update(self, content: dict[str, str], *, raw: bool) -> None:
            assert raw
            shown.append(content["text/plain"])

    display: Any = types.ModuleType("IPython.display")
    display.display = lambda content, *, raw, display_id: Handle()
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setattr(rich.console, "_is_jupyter", lambda: True)
    with progress_bar.telling(True) as show:
        assert show is not None
        show(Progress("trace", 10, reading="largest eigenvalue 1.86"))
        show(Progress("runs", 960, value=3447.0, half_width=1.0, num_runs=8, target=0.5, reading="x"))
    assert shown[0].startswith("largest eigenvalue 1.86\n[")
    assert "[####            ] runs: 960 HVPs, 8 of about 32 runs, SD 3,447.0 within 1 (aim: 0.5)" in shown[1]


def test_progress_true_shows_each_measurement(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Here in lines; and the verdict comes before the batch sharpness, the time left from the plan, never negative."""
    monkeypatch.setattr(progress_bar, "_SECONDS_BETWEEN_LINES", 0.0)
    x, y = np.random.default_rng(0).standard_normal((64, 4)), np.arange(64) % 3
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    sdkeras.analyze(model, (x, y), batch_size=16, preset="quick", progress=True)
    lines = capsys.readouterr().err.splitlines()
    begins = [next(k for k, line in enumerate(lines) if line.startswith(start)) for start in STARTS]
    assert begins == sorted(begins)
    reports: list[Progress] = []
    monkeypatch.setattr("sdkeras.runs.budget._TELLING_SECONDS", 0.0)
    sdkeras.analyze(model, (x, y), batch_size=16, preset="quick", progress=reports.append)
    left = [each.seconds_left for each in reports if each.seconds_left is not None]
    assert left
    assert min(left) > 0


STARTS = ("largest eigenvalue", "Below the edge", "batch sharpness", "trace ", "Sharpness dimension")


def test_a_function_that_fails_is_told_as_such() -> None:
    def fails(step: Progress) -> None:
        raise ZeroDivisionError("no such luck")

    with (
        progress_bar.telling(fails) as tell,
        pytest.raises(SdkerasError, match="progress function failed: ZeroDivisionError: no such"),
    ):
        tell(Progress("reading", 0))
