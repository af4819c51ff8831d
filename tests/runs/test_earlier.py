"""The log of a training beside an analysis: what is refused before the work, and that it changes nothing else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

import sdkeras
from sample_log import FOUND, HEADER
from sdkeras.errors import SdkerasError
from sdkeras.results.log import RunLog
from sdkeras.runs.analyze import plan
from small_nets import X, Y, net


@pytest.mark.parametrize("call", [plan, sdkeras.analyze])
def test_the_log_of_another_model_is_refused_before_the_work(call: Callable[..., Any]) -> None:
    told: list[str] = []
    with pytest.raises(SdkerasError, match=r"2,000 parameters of the model 'net', and 69 are analysed here"):
        call(net(), (X, Y), log=RunLog(HEADER, ()), progress=lambda each: told.append(each.stage))
    assert not any("compiling" in each for each in told)


@pytest.mark.slow
def test_an_analysis_goes_on_with_another_log(tmp_path: Path) -> None:
    """It is no part of what a checkpoint is of, and costs nothing."""
    model = net()
    model.fit(X, Y, batch_size=32, epochs=1, verbose=0)
    options = {"preset": "quick", "runs": 3, "batch_size": 32, "checkpoint": tmp_path / "kept.npz"}
    first = sdkeras.analyze(model, (X, Y), **options)
    log = RunLog(attrs.evolve(HEADER, num_parameters=69), (attrs.evolve(FOUND, step=2),))
    again = sdkeras.analyze(model, (X, Y), **options, log=log)
    assert (first.earlier, again.earlier.step) == (None, 2)
    assert again.sharpness_dimension == first.sharpness_dimension
    assert again.provenance.num_hvps == first.provenance.num_hvps
