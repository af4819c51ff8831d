"""The decoder of the examples: GPT-2's shape, causal, and its products are those of the loss."""

import sys
from pathlib import Path
from types import ModuleType

import keras
import numpy as np
import pytest

import sdkeras
from example_scripts import load_script
from oracles import finite_difference_hessian


@pytest.fixture(scope="module")
def decoder() -> ModuleType:
    return load_script("decoder")


def parameters(vocabulary: int, context: int, width: int, depth: int) -> int:
    """Embeddings, 12 width^2 and 13 width for each block (4 of attention's biases, 4 + 1 of the MLP's, 4 of norms)."""
    return (vocabulary + context + 2) * width + depth * (12 * width**2 + 13 * width)


def test_it_has_gpt2s_shape(decoder: ModuleType) -> None:
    assert decoder.build(11, 5, 8, 3, 2).count_params() == parameters(11, 5, 8, 3)
    assert parameters(50257, 1024, 768, 12) == 124_439_808  # GPT-2 small


def test_it_is_causal_knows_positions_and_starts_as_chance(decoder: ModuleType, tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    model = decoder.compiled(decoder.build(11, 6, 16, 2, 4), keras.optimizers.SGD(0.1))
    tokens = np.random.default_rng(0).integers(0, 11, (2, 6))
    logits = np.asarray(model(tokens))
    later = tokens.copy()
    later[:, 4:] = (later[:, 4:] + 1) % 11
    moved = np.asarray(model(later))
    np.testing.assert_allclose(moved[:, :4], logits[:, :4], atol=1e-6)
    assert np.abs(moved[:, 4:] - logits[:, 4:]).max() > 1e-2
    same = np.asarray(model(np.full((1, 6), 3)))
    assert np.abs(np.diff(same, axis=1)).max() > 1e-4  # the same token everywhere: only positions differ
    kernels = [np.asarray(v) for v in model.trainable_variables if v.path.startswith("block0_attention/")][::2]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-3  # queries and keys
    others = np.random.default_rng(1).integers(0, 11, (2, 6))  # a tied head favours the token it sees
    assert model.evaluate(tokens, others, verbose=0)[0] == pytest.approx(np.log(11), rel=0.05)
    path = tmp_path / "decoder.keras"
    model.save(path)
    np.testing.assert_array_equal(np.asarray(keras.models.load_model(path)(tokens)), logits)


@pytest.mark.slow
def test_the_products_are_the_second_derivatives_of_the_loss(decoder: ModuleType) -> None:
    """Dense, against central differences of the gradient: norms, tied embedding, attention and all."""
    keras.utils.set_random_seed(1)
    model = decoder.compiled(decoder.build(7, 4, 4, 1, 2), keras.optimizers.SGD(0.1))
    for variable in model.trainable_variables:  # first weights are so small that curvature would be the embedding's
        variable.assign(np.random.default_rng(2).normal(0, 0.5, variable.shape))
    tokens = np.random.default_rng(3).integers(0, 7, (6, 4))
    loss = sdkeras.EmpiricalLoss(model, (tokens, np.roll(tokens, -1, axis=1)), dtype="float64")
    matrix = sdkeras.HessianOperator(loss).matmat(np.eye(loss.size))
    expected = finite_difference_hessian(loss, 1e-5)
    assert np.abs(matrix - expected).max() < 1e-7 * np.abs(expected).max()


@pytest.mark.slow
def test_adamws_frozen_map_and_its_whole_step_are_analysed(decoder: ModuleType) -> None:
    keras.utils.set_random_seed(0)
    model = decoder.compiled(decoder.build(7, 4, 8, 1, 2), keras.optimizers.AdamW(1e-2, weight_decay=0.01))
    tokens = np.random.default_rng(0).integers(0, 7, (32, 4))
    data = (tokens, np.roll(tokens, -1, axis=1))
    model.fit(*data, batch_size=8, epochs=2, verbose=0)
    run = sdkeras.analyze(model, data, batch_size=8, tolerance=0.5, max_hvps=300)
    assert run.verification.passed
    assert run.sharpness_dimension.map == "adam"
    assert run.sharpness_dimension.state_size == 2 * model.count_params()
    # The tied head makes the embedding's gradient dense, so that Keras' step is that of the gradient's sum.
    loss = sdkeras.EmpiricalLoss(model, data, batch_size=8)
    step = sdkeras.UpdateMap(loss, model.optimizer)
    assert step.verification.passed
    assert not loss.gradients.looked_up or loss.gradients.looked_up == ("positions/embeddings",)


@pytest.fixture(scope="module")
def text_models() -> ModuleType:
    return load_script("text_models")


def made(text_models: ModuleType, name: str) -> keras.Model:
    """A model of the study, by the name of its optimizer."""
    if name == "sgd":
        return text_models.sgd(0.4)
    return text_models.momentum(0.05) if name == "momentum" else text_models.adamw(4e-3, weight_decay=0.1)


def test_the_data_and_factories_of_the_study(text_models: ModuleType) -> None:
    (x, y), (x_test, y_test) = text_models.characters()
    assert x.shape == y.shape == (2000, text_models.CONTEXT)
    assert x_test.shape == y_test.shape == (1000, text_models.CONTEXT)
    np.testing.assert_array_equal(x[:, 1:], y[:, :-1])
    sgd, momentum, adamw = (made(text_models, name) for name in ("sgd", "momentum", "adamw"))
    assert [type(model.optimizer).__name__ for model in (sgd, momentum, adamw)] == ["SGD", "SGD", "AdamW"]
    assert momentum.optimizer.momentum == 0.9
    assert adamw.optimizer.weight_decay == 0.1
    assert sgd.count_params() == 16_864


@pytest.mark.parametrize(
    "name", ["adamw", *(pytest.param(each, marks=pytest.mark.slow) for each in ("sgd", "momentum"))]
)
def test_the_factories_of_the_study_train(text_models: ModuleType, name: str) -> None:
    (x, y), _ = text_models.characters()
    losses = made(text_models, name).fit(x[:320], y[:320], batch_size=16, epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0] < 4.6


@pytest.mark.slow
def test_the_spectra_are_drawn(tmp_path: Path, monkeypatch, capsys) -> None:
    text_spectra = load_script("text_spectra")
    monkeypatch.setattr(sys, "argv", ["text_spectra.py", "--quick", "--out", str(tmp_path)])
    text_spectra.main()
    assert (tmp_path / "text_spectra.png").stat().st_size > 20_000
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + 3
    assert all("passed" in row and "nan" not in row for row in rows[1:])


def test_a_drawn_density_has_mass_one() -> None:
    text_spectra = load_script("text_spectra")
    at = np.linspace(-3, 3, 2001)
    drawn = text_spectra.density(at, np.array([-1.0, 0.5]), np.array([3.0, 1.0]), 0.05)
    assert np.trapezoid(drawn, at) == pytest.approx(1.0, rel=1e-6)
    assert np.trapezoid(drawn[at < 0], at[at < 0]) == pytest.approx(0.75, rel=1e-4)


@pytest.mark.slow
def test_the_shape_of_gpt2_is_planned_and_analysed(monkeypatch, capsys) -> None:
    gpt2_shape = load_script("gpt2_shape")
    small = ["--width", "16", "--depth", "1", "--heads", "2", "--vocabulary", "50", "--context", "8"]
    command = ["gpt2_shape.py", *small, "--max-hvps", "200", "--memory", "4"]
    monkeypatch.setattr(sys, "argv", command)
    gpt2_shape.main()
    said = capsys.readouterr().out
    assert "planned: 4,240 parameters" in said
    assert "| sd-kde |" in said
    assert "| slq |" in said
    assert "none" not in said.split("| estimator |")[1]
    monkeypatch.setattr(sys, "argv", [*command[:-1], "0.1"])
    with pytest.raises(SystemExit, match=r"more than 0\.1 GB"):
        gpt2_shape.main()
