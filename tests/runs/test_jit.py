"""XLA from the options to the report: an analysis and a trajectory compiled by it."""

import keras
import numpy as np
import pytest

import sdkeras
from sdkeras.errors import SdkerasError
from sdkeras.reporting.terminal import as_text
from small_losses import X, Y, mlp


def trained() -> keras.Model:
    keras.utils.set_random_seed(0)
    model = mlp(keras.layers.Dropout(0.2), optimizer=keras.optimizers.SGD(0.1, momentum=0.5))
    model.fit(X, Y, batch_size=8, verbose=0)
    return model


@pytest.mark.slow
def test_an_analysis_tells_whether_xla_compiled_it() -> None:
    by_default, jit = (
        sdkeras.analyze(trained(), (X, Y), batch_size=8, runs=2, preset="quick", **options)
        for options in ({}, {"jit": "on"})
    )
    assert (by_default.verification.jit, jit.verification.jit) == (False, True)
    assert ", compiled by XLA" in as_text(jit, verbose=True)
    assert "XLA" not in as_text(by_default, verbose=True)


@pytest.mark.slow
def test_a_trajectory_is_followed_by_the_functions_it_began_with(tmp_path: object) -> None:
    options = {"batch_size": 8, "num_exponents": 2, "num_steps": 8, "transient": 2, "checkpoint": f"{tmp_path}/run.npz"}
    run = sdkeras.lyapunov(trained(), (X, Y), jit="on", **options)
    assert run.verification.jit
    assert np.isfinite(run.lyapunov.values).all()
    with pytest.raises(SdkerasError, match="of another run"):
        sdkeras.lyapunov(trained(), (X, Y), **options)
