"""The same net at initialisation: new weights by the seed alone, and what is compared with the checkpoint."""

import random
from pathlib import Path

import keras
import numpy as np
import pytest

import sdkeras
from sdkeras.errors import ModelError, SdkerasError
from sdkeras.operators import precision
from sdkeras.reporting.html import as_html
from sdkeras.runs.analyze import plan
from sdkeras.runs.options import Options
from small_nets import X, Y

layers, initializers, optimizers = keras.layers, keras.initializers, keras.optimizers
CE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
QUICK = {"preset": "quick", "runs": 3, "batch_size": 32}


def net(optimizer: object = None, steps: int = 10, seed: int | None = 7) -> keras.Model:
    """A net whose first layer has a seed of its own."""
    keras.utils.set_random_seed(3)
    hidden = layers.Dense(4, "tanh", kernel_initializer=initializers.GlorotUniform(seed))
    last = layers.Dense(3, kernel_initializer=initializers.GlorotUniform(seed))
    model = keras.Sequential([keras.Input((5,)), hidden, last], name="small")
    model.compile(optimizer or optimizers.SGD(0.5), CE)
    if steps:
        model.fit(X, Y, batch_size=32, epochs=steps, verbose=0)
    return model


def values(model: keras.Model) -> list[np.ndarray]:
    return [np.asarray(variable) for variable in model.variables]


def test_new_weights_are_those_of_the_seeds() -> None:
    trained, untrained = net(), net(steps=0)
    before = random.getstate()
    for mine, fresh in zip(values(precision.at_initialisation(trained, 0)), values(untrained), strict=True):
        assert np.array_equal(mine, fresh)
    assert random.getstate() == before
    unseeded = net(seed=None)
    first, again, other = (values(precision.at_initialisation(unseeded, seed)) for seed in (0, 0, 1))
    assert all(map(np.array_equal, first, again))
    assert not np.array_equal(first[0], other[0])


def test_what_was_not_trained_stays() -> None:
    """Frozen layers and adapted statistics; the averages of batch normalization are fresh."""
    adapted = layers.Normalization()
    adapted.adapt(X)
    inner = [adapted, layers.Dense(4, name="frozen"), layers.BatchNormalization(), layers.Dense(3)]
    model = keras.Sequential([keras.Input((5,)), *inner])
    model.layers[1].trainable = False
    model.compile(optimizers.SGD(0.1), CE)
    model.fit(X, Y, epochs=1, verbose=0)
    copy = precision.at_initialisation(model, 0)
    assert np.array_equal(copy.layers[1].kernel, model.layers[1].kernel)
    assert np.array_equal(copy.layers[0].adapt_mean, model.layers[0].adapt_mean)
    assert np.array_equal(copy.layers[2].moving_mean, np.zeros(4))
    assert not np.array_equal(copy.layers[3].kernel, model.layers[3].kernel)


def test_the_loss_there_is_that_of_an_untrained_net() -> None:
    trained, untrained = net(), net(steps=0)
    known = sdkeras.EmpiricalLoss(untrained, (X, Y), batch_size=32).value()
    loss = sdkeras.EmpiricalLoss(trained, (X, Y), batch_size=32)
    there = loss.now(precision.at_initialisation(trained, 0))
    assert there.value() == pytest.approx(known, rel=1e-6)
    assert there.value() != pytest.approx(loss.value(), rel=1e-2)
    kernels = sdkeras.EmpiricalLoss(trained, (X, Y), batch_size=32, params="kernel")
    assert kernels.now(untrained).value() == pytest.approx(known, rel=1e-2)  # biases stay where training left them


def test_options_that_contradict_it() -> None:
    with pytest.raises(SdkerasError, match="at_init"):
        Options(at_init=True, cluster="slurm")


class Closed(keras.Model):
    """A model that has no configuration."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.last = layers.Dense(width)

    def call(self, inputs: object) -> object:
        return self.last(inputs)


def closed() -> keras.Model:
    keras.utils.set_random_seed(0)
    model = Closed(3)
    model.compile(optimizers.SGD(0.125), CE)
    model.fit(X, Y, batch_size=32, epochs=2, verbose=0)
    return model


def test_a_model_without_configuration_is_refused() -> None:
    with pytest.raises(ModelError, match="get_config"):
        precision.at_initialisation(closed(), 0)


@pytest.mark.slow
def test_a_model_without_configuration_has_a_note() -> None:
    run = sdkeras.analyze(closed(), (X, Y), **QUICK, at_init=True)
    assert run.at_init is None
    assert any(note.code == "no-initialisation" and "get_config" in note.message for note in run.warnings)
    assert run.sharpness_dimension is not None


@pytest.fixture(scope="module")
def run() -> sdkeras.Analysis:
    return sdkeras.analyze(net(), (X, Y), **QUICK, at_init=True)


@pytest.mark.slow
def test_numbers_are_those_of_an_analysis_of_the_untrained_net(run: sdkeras.Analysis, tmp_path: Path) -> None:
    start = run.at_init
    untrained = sdkeras.analyze(net(steps=0), (X, Y), **QUICK)
    assert start.sharpness.value == pytest.approx(untrained.hessian.largest.value, rel=1e-3)
    assert start.ratio == pytest.approx(untrained.edge_of_stability.ratio, rel=1e-3)
    assert start.ratio != pytest.approx(run.edge_of_stability.ratio, rel=1e-2)
    # The same minibatches and probes.
    assert start.sharpness_dimension.value == pytest.approx(untrained.sharpness_dimension.value, abs=1e-2)
    assert (start.sharpness_dimension.map, start.sharpness_dimension.coordinates) == ("sgd", "weights")
    run.save(tmp_path / "run.json")
    assert sdkeras.Analysis.load(tmp_path / "run.json") == run
    for text in (str(run), as_html(run)):
        assert "The same net at initialisation" in text
    assert "] at initialisation, now " in str(run)


@pytest.mark.slow
def test_its_products_are_counted_and_planned(run: sdkeras.Analysis) -> None:
    without = sdkeras.analyze(net(), (X, Y), **QUICK)
    assert without.at_init is None
    assert run.provenance.num_hvps == without.provenance.num_hvps + run.at_init.num_hvps
    assert run.sharpness_dimension == without.sharpness_dimension
    more = plan(net(), (X, Y), **QUICK, at_init=True).num_hvps - plan(net(), (X, Y), **QUICK).num_hvps
    assert more == pytest.approx(run.at_init.num_hvps, rel=0.5)
    limited = sdkeras.analyze(net(), (X, Y), **{**QUICK, "runs": None}, at_init=True, max_hvps=150)
    assert limited.provenance.num_hvps <= 150


@pytest.mark.slow
def test_a_continued_analysis_has_the_same_bits(run: sdkeras.Analysis, tmp_path: Path) -> None:
    place = tmp_path / "kept.npz"
    first, again = (sdkeras.analyze(net(), (X, Y), **QUICK, at_init=True, checkpoint=place) for _ in range(2))
    assert first.at_init == again.at_init == run.at_init
    assert first.provenance.num_hvps == again.provenance.num_hvps


@pytest.mark.slow
@pytest.mark.parametrize(("step_map", "compared"), [("auto", False), ("hessian", True)])
def test_without_second_moments_only_what_needs_none(step_map: str, compared: bool) -> None:
    found = sdkeras.analyze(net(optimizers.AdamW(0.01)), (X, Y), **QUICK, at_init=True, map=step_map).at_init
    assert found.ratio is None
    assert found.sharpness.value > 0
    assert (found.sharpness_dimension is not None) == compared
    assert ("AdamW has no second moments" in found.reason) != compared
