"""The picture has every number, and no name in it is taken as a formula."""

import re

import numpy as np
import pytest

from sdkeras.errors import SdkerasError
from sdkeras.study.correlations import Correlations, Run, coefficient, correlate
from sdkeras.study.figures import save_heat_map


def found(measures: int, *, loss: bool = True) -> Correlations:
    rng = np.random.default_rng(0)
    names = [f"measure {k} of many" for k in range(measures - 1)] + ["$lambda_1 & <x>"]
    runs = [
        Run(
            settings={"learning rate": rate, "batch size": batch},
            measures={name: float(rng.random()) if name != names[0] or not rate else None for name in names},
            accuracy_gap=float(rng.random()),
            loss_gap=float(rng.random()) if loss else None,
        )
        for rate in range(5)
        for batch in range(5)
    ]
    return correlate(runs, num_resamples=100)


def test_every_number_is_in_the_picture(tmp_path) -> None:
    record = found(12)
    save_heat_map(record, tmp_path / "map.svg")
    svg = (tmp_path / "map.svg").read_text()
    words = [re.sub(r"<[^>]*>", "", text) for text in re.findall(r"<text.*?</text>", svg, flags=re.DOTALL)]
    for row in record.rows:
        for value in (row.tau_b, row.psi_mean, *(part.psi for part in row.granulated)):
            assert coefficient(value) in [word.strip() for word in words]
    assert sum("$lambda_1 &amp; &lt;x&gt;" in word for word in words) == 1
    assert sum("accuracy gap" in word for word in words) == sum("loss gap" in word for word in words) == 1
    before = (tmp_path / "map.svg").read_bytes()
    save_heat_map(record, tmp_path / "map.svg")
    assert (tmp_path / "map.svg").read_bytes() == before


def test_one_gap_makes_one_panel(tmp_path) -> None:
    save_heat_map(found(2, loss=False), tmp_path / "map.PNG")
    assert (tmp_path / "map.PNG").read_bytes().startswith(b"\x89PNG")


def test_another_format_is_refused(tmp_path) -> None:
    with pytest.raises(SdkerasError, match=r"\.png or \.svg"):
        save_heat_map(found(2), tmp_path / "map.pdf")
    with pytest.raises(SdkerasError, match="cannot be written"):
        save_heat_map(found(2), tmp_path / "nowhere" / "map.png")
