"""What a study's page says first."""

import pytest

from sdkeras.study.correlations import Run, correlate
from sdkeras.study.page import headline

RISING = [1.0, 2.0, 3.0, 4.0]
FALLING = RISING[::-1]
MIXED = [2.0, 1.0, 4.0, 3.0]  # four of six pairs in order: (4 - 2) / 6


@pytest.mark.parametrize(
    ("measures", "said"),
    [
        (
            {"up": RISING, "down": FALLING, "half": MIXED},
            "up goes most with the loss gap: tau-b +1.00 over 4 runs, of 3 measures; most against it goes down: -1.00",
        ),
        ({"half": MIXED, "up": RISING}, "up goes most with the loss gap: tau-b +1.00 over 4 runs, of 2 measures"),
        ({"half": MIXED}, "half goes most with the loss gap: tau-b +0.33 over 4 runs, the one measure"),
        ({"down": FALLING}, "No measure goes with a gap: the largest tau-b is down's with the loss gap, -1.00"),
        ({"same": [1.0] * 4}, "No measure has a tau-b: all values of it, or of the gaps, are equal"),
    ],
)
def test_the_headline_names_the_measure_that_goes_with_a_gap(measures: dict[str, list[float]], said: str) -> None:
    runs = [
        Run(settings={"rate": i}, measures={name: values[i] for name, values in measures.items()}, loss_gap=RISING[i])
        for i in range(4)
    ]
    assert headline(correlate(runs)) == said
