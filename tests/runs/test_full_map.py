"""SD of the whole step against finite differences of `train_on_batch`, and against the maps it must agree with."""

import re
from types import SimpleNamespace

import attrs
import keras
import numpy as np
import pytest

import sdkeras
from oracles import overlap
from sdkeras.errors import ModelError, SdkerasError
from sdkeras.operators import precision
from sdkeras.reporting.build import report_of
from sdkeras.reporting.figures import cumulative_exponents
from sdkeras.reporting.html import as_html
from sdkeras.reporting.terminal import as_text
from sdkeras.reporting.words import dimension_in_words
from sdkeras.runs import full_map
from trainer import Trainer

layers = keras.layers
optimizers = keras.optimizers
RATE = 0.125  # exact in float32, as Keras holds it
X = np.random.default_rng(0).standard_normal((24, 2))
Y = np.random.default_rng(1).integers(0, 2, 24)
BATCH = (X[:8], Y[:8])


def trained(optimizer: object, steps: int = 3, dtype: str = "float64") -> keras.Model:
    keras.utils.set_random_seed(0)
    with precision.default_precision(dtype):
        model = keras.Sequential([keras.Input((2,)), layers.Dense(2, "tanh"), layers.Dense(2)])
        model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        for _ in range(steps):
            model.train_on_batch(*BATCH)
    return model


def analyzed(model: keras.Model, data: object = (X, Y), **options: object) -> sdkeras.Analysis:
    given = {"batch_size": 8, "dtype": "float64", "map": "full", "tolerance": 0.5} | options
    return sdkeras.analyze(model, data, **given)


def factors_of(name: str) -> dict[str, float]:
    return {kind: float(factor) for kind, factor in re.findall(r"(\w+) x ([\d.e+-]+)", name)}


OPTIMIZERS = {
    "sgd momentum": lambda: optimizers.SGD(RATE, momentum=0.75),
    "nesterov": lambda: optimizers.SGD(RATE, momentum=0.75, nesterov=True, weight_decay=0.1),
    "adam": lambda: optimizers.Adam(RATE),
    "adagrad": lambda: optimizers.Adagrad(RATE),
    "lion": lambda: optimizers.Lion(2.0**-6),
    "muon": lambda: optimizers.Muon(RATE),
}


@pytest.mark.parametrize(
    "case",
    [name if name == "adam" else pytest.param(name, marks=pytest.mark.slow) for name in OPTIMIZERS],
)
def test_singular_values_are_those_of_the_real_step_in_the_coordinates_named(case: str) -> None:
    """The matrix by central differences of `train_on_batch`, conjugated here as the record's name says."""
    model = trained(OPTIMIZERS[case]())
    loss = sdkeras.EmpiricalLoss(model, BATCH, batch_size=8, dtype="float64")
    step = sdkeras.UpdateMap(loss, model.optimizer)
    full = full_map.FullMap(step)
    trainer = Trainer(model, step.layout.names, BATCH)
    jacobian, certain = trainer.jacobian(trainer.state(), step)
    assert np.all(certain)
    change = np.eye(step.size)
    if full.coordinates.name == "balanced":
        b = 0.75 if case == "nesterov" else np.sqrt(0.75)
        change[12:, 12:] *= b / 0.25
        change[:12, 12:] = b * change[12:, 12:]
    else:
        for kind, factor in factors_of(full.coordinates.name).items():
            for name, part in zip(step.layout.names, step.layout.slices, strict=True):
                if name.endswith(f"_{kind}"):
                    change[part, part] *= factor
    truth = np.linalg.svd(change @ jacobian @ np.linalg.inv(change), compute_uv=False)
    expected = sdkeras.sharpness_dimension(np.log(np.maximum(truth, 1e-12)))
    raw = sdkeras.sharpness_dimension(np.log(np.maximum(np.linalg.svd(jacobian, compute_uv=False), 1e-12)))
    assert abs(raw - expected) > 0.01  # the coordinates matter, and these were meant
    exact = sdkeras.get_estimator("singular_values", "dense-svd")().estimate(full.on_minibatch(0), seed=0)
    assert np.allclose(np.exp(exact.log_values), truth, rtol=1e-5, atol=1e-6)
    assert sdkeras.sharpness_dimension(exact.log_values) == pytest.approx(expected, abs=1e-3)
    all_steps = sdkeras.get_estimator("singular_values", "golub-kahan")().estimate(full.on_minibatch(0), seed=0)
    # It sees a repeated singular value once, so its nodes are the distinct ones: each is true, and none is missing.
    nearest = np.argmin(np.abs(all_steps.log_values - np.log(truth)[:, None]), axis=1)
    assert np.allclose(np.exp(all_steps.log_values[nearest]), truth, rtol=1e-4, atol=1e-6)
    times = np.bincount(nearest, minlength=len(all_steps.log_values))
    assert sdkeras.sharpness_dimension(all_steps.log_values, weights=times) == pytest.approx(expected, abs=1e-3)


def test_for_plain_sgd_the_whole_step_is_that_of_the_hessian() -> None:
    model = trained(optimizers.SGD(RATE))
    full, auto = (analyzed(model, map=which, exact_minibatches=3) for which in ("full", "auto"))
    for field in ("value", "definition_value", "j_star", "threshold_exponent", "expansion", "interval"):
        ours, theirs = (getattr(run.sharpness_dimension, field) for run in (full, auto))
        assert ours == pytest.approx(theirs, rel=1e-9), field
    assert np.allclose(full.rds_sharpness.leading, auto.rds_sharpness.leading, atol=1e-12)
    assert [estimate.estimator for estimate in full.estimates] == ["dense-svd", "golub-kahan"]
    assert overlap(full.estimates[1].interval, auto.estimates[1].interval)
    assert (full.sharpness_dimension.map, full.sharpness_dimension.coordinates) == ("full", "weights")
    assert full.spectrum.operator == "singular values of J"
    assert full.edge_of_stability.ratio == auto.edge_of_stability.ratio
    assert full.hessian.largest.value == auto.hessian.largest.value


@pytest.mark.slow
@pytest.mark.parametrize("nesterov", [False, True])
def test_for_momentum_the_whole_step_is_that_of_the_blocks(nesterov: bool) -> None:
    model = trained(optimizers.SGD(RATE, momentum=0.75, nesterov=nesterov, weight_decay=0.01))
    full, auto = (analyzed(model, map=which, exact_minibatches=3) for which in ("full", "auto"))
    assert full.sharpness_dimension.value == pytest.approx(auto.sharpness_dimension.value, rel=1e-9)
    assert full.sharpness_dimension.state_size == auto.sharpness_dimension.state_size == 24
    assert full.sharpness_dimension.coordinates == auto.sharpness_dimension.coordinates == "balanced"
    assert np.allclose(full.rds_sharpness.values, auto.rds_sharpness.values, atol=1e-10)
    assert full.sharpness_dimension.frozen_lyapunov is None
    assert auto.sharpness_dimension.frozen_lyapunov is not None


@pytest.fixture(scope="module")
def adagrad() -> sdkeras.Analysis:
    return analyzed(trained(optimizers.Adagrad(RATE)), lyapunov=2, exact=True, max_hvps=2000)


def test_the_answer_says_what_it_is_of(adagrad: sdkeras.Analysis, tmp_path) -> None:
    estimate = adagrad.sharpness_dimension
    assert estimate.state_size == 24
    assert estimate.coordinates.startswith("diagonal scaling: accumulator x ")
    notes = {note.code: note.message for note in adagrad.warnings}
    assert len(notes) == len(adagrad.warnings)
    assert estimate.coordinates in notes["full-map"]
    assert f"sigma_1 = {adagrad.spectrum.nodes[-1]:.3g}" in notes["full-map"]
    assert "12 weights and of 12 entries of the optimizer's slots" in notes["full-map"]
    assert "held" in notes
    assert "hessian-map" not in notes
    assert adagrad.lyapunov is not None
    file = tmp_path / "run.json"
    adagrad.save(file)
    assert sdkeras.Analysis.load(file) == adagrad


def test_reports_name_the_map_and_its_coordinates(adagrad: sdkeras.Analysis) -> None:
    coordinates = adagrad.sharpness_dimension.coordinates
    report = report_of(adagrad)
    shown = next(table for table in report.tables if table.title.startswith("Sharpness dimension"))
    assert ("map", "full (the optimizer's whole step)", f"coordinates: {coordinates}") in shown.rows
    assert as_text(adagrad, width=200).count(f"(map full, {coordinates})") == 1
    words = dimension_in_words(adagrad)
    assert coordinates in words
    assert "12 entries of the optimizer's slots" in words
    drawn = [figure.title for figure in report.figures]
    assert "RDS sharpness exponents" in drawn
    assert not {"Spectral density", "Position and velocity"} & set(drawn)
    mass, total = cumulative_exponents(adagrad.spectrum)
    assert mass[-1] == pytest.approx(24)
    assert np.interp(adagrad.sharpness_dimension.j_star, mass, total) >= -1e-9
    assert coordinates in as_html(adagrad)


@pytest.mark.slow
def test_updates_by_signs_are_told_of() -> None:
    run = analyzed(trained(optimizers.Lion(2.0**-6)), exact_minibatches=3, max_hvps=500)
    notes = {note.code: note.message for note in run.warnings}
    assert "J holds no curvature" in notes["degenerate"]
    # J is diag(1, beta_2) up to a coupling scaled to 1e-6: every direction of the weights is neutral.
    assert run.sharpness_dimension.value == pytest.approx(12, abs=1e-3)


@pytest.mark.slow
def test_a_large_singular_value_that_hides_the_rest_in_float32_is_told_of() -> None:
    estimate = SimpleNamespace(threshold_exponent=-0.01)
    for dtype, cases in (("float32", {1e4: True, 10.0: False}), ("float64", {1e4: False})):
        model = trained(optimizers.SGD(RATE, momentum=0.75), dtype=dtype)
        loss = sdkeras.EmpiricalLoss(model, BATCH, batch_size=8, dtype=dtype)
        full = full_map.FullMap(sdkeras.UpdateMap(loss, model.optimizer))
        for largest, told in cases.items():
            found = SimpleNamespace(nodes=np.array([0.9, largest]), sharpness_dimension=estimate)
            notes = {note.code: note.message for note in full.notes(found)}
            assert ("unresolved" in notes) == told
            assert not told or "resolved to about 0.04 in float32" in notes["unresolved"]


def test_what_the_map_is_not_for_is_refused() -> None:
    model = trained(optimizers.Adam(RATE))
    for options, message in (
        ({"params": "kernel"}, "the map full is of training's step as it is, of all variables"),
        ({"mode": "inference"}, "in training mode"),
        ({"per_layer": True}, "do not split by layers"),
        ({"estimators": ("slq",)}, "'slq' is one of spectra of a Hessian, .* dense-svd, golub-kahan"),
        ({"map": "auto", "estimators": ("golub-kahan",)}, "'golub-kahan' is one of singular values of a step"),
        ({"settings": {"slq": {"num_steps": 5}}}, "'slq', which is not used here"),
        ({"memory_gb": 1e-6, "exact": True}, "36 dimensions need .* golub-kahan"),
    ):
        with pytest.raises(SdkerasError, match=message):
            analyzed(model, **options)
    with pytest.raises(ModelError, match="Adam has taken no step, so it has no slots"):
        analyzed(trained(optimizers.Adam(RATE), steps=0))


def test_the_plan_knows_the_state() -> None:
    model = trained(optimizers.Adam(RATE))
    plan = sdkeras.runs.analyze.plan(model, (X, Y), batch_size=8, map="full")
    assert (plan.state_size, plan.map, plan.num_steps) == (36, "full", 36)
    exact = sdkeras.runs.analyze.plan(model, (X, Y), batch_size=8, map="full", exact_minibatches=2)
    assert exact.num_steps is None
    assert exact.num_hvps - plan.num_hvps == 2 * 36  # before those of golub-kahan
    assert attrs.asdict(plan)["num_parameters"] == 12
