"""Without one learning rate: what needs none is measured, the rest is null with its reason wherever it is shown.

Linear regression with a bias: H = 2/N D'D with the design D = [X, 1], whatever the weights.
"""

import re

import attrs
import keras
import numpy as np
import pytest
import tensorflow as tf

import sdkeras
from sdkeras.errors import ModelError, SdkerasError
from sdkeras.operators.controls import number
from sdkeras.operators.minibatches import as_source
from sdkeras.reporting.html import as_html
from sdkeras.reporting.terminal import as_text
from sdkeras.results.answers import Analysis, LyapunovRun
from sdkeras.results.measured import Measured
from sdkeras.runs import analyze
from sdkeras.runs.edge import edge_of_stability
from sdkeras.runs.monitor import DIMENSION, Monitor
from sdkeras.runs.options import Options
from sdkeras.runs.problem import read_problem
from sdkeras_cli import conditions
from small_nets import X

optimizers = keras.optimizers
BATCH = 16
DESIGN = np.hstack([X.astype(np.float64), np.ones((len(X), 1))])
CURVATURE = 2 / len(X) * DESIGN.T @ DESIGN
TARGET = X @ np.arange(1.0, 6.0, dtype="float32")
# Products are float32; the matrix is well conditioned.
ROUNDING = 100 * float(np.finfo(np.float32).eps)


def decayed() -> optimizers.Optimizer:
    """Rate 0 after the six steps of one epoch."""
    return optimizers.SGD(optimizers.schedules.CosineDecay(0.125, 6), momentum=0.5)


def several() -> optimizers.Optimizer:
    parts = optimizers.OptimizerMap(optimizers.SGD(0.125), {".*bias": optimizers.Adam(0.0625)})
    return optimizers.MultiOptimizer(parts)


def trained(optimizer: optimizers.Optimizer) -> keras.Model:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(1)], name="line")
    model.compile(optimizer, "mse")
    model.fit(X, TARGET, batch_size=BATCH, verbose=0)
    return model


REASONS = {
    "decayed": "the learning rate is 0, which the schedule CosineDecay has reached after 6 steps",
    "several": "the optimizer MultiOptimizer has several learning rates (Adam 0.0625, SGD 0.125)",
}


@pytest.fixture(scope="module", params=["decayed", pytest.param("several", marks=pytest.mark.slow)])
def analysed(request: pytest.FixtureRequest) -> tuple[str, keras.Model, Analysis]:
    model = trained({"decayed": decayed, "several": several}[request.param]())
    run = sdkeras.analyze(
        model, (X, TARGET), exact_minibatches=6, estimators=("exact",), batch_size=BATCH, per_layer=True
    )
    return request.param, model, run


def test_the_hessian_is_measured_and_the_rest_is_null_with_its_reason(analysed) -> None:
    name, _, run = analysed
    spectrum = np.linalg.eigvalsh(CURVATURE)
    for found in (run.hessian.largest, run.layers[0].largest):
        assert found.value == pytest.approx(spectrum[-1], rel=ROUNDING)
    assert run.hessian.smallest.value == pytest.approx(spectrum[0], rel=ROUNDING * spectrum[-1] / spectrum[0])
    for found in (run.hessian.trace, run.layers[0].trace):
        assert abs(found.value - spectrum.sum()) <= 5 * found.stderr + ROUNDING * spectrum.sum()
    edge = run.edge_of_stability
    assert (edge.operator, edge.sharpness) == ("H", run.hessian.largest.value)
    assert edge.batch_sharpness > 0
    # Six minibatches, each of a permutation of its own, since an epoch has no more.
    nodes, weights = run.spectrum.nodes, run.spectrum.weights
    source = as_source((X, TARGET), batch_size=BATCH, default_batch_size=None, limit=None)
    drawn = [source.minibatch(number(source, k), 0)[0].astype(np.float64) for k in range(6)]
    batches = [np.hstack([inputs, np.ones((BATCH, 1))]) for inputs in drawn]
    mean = np.mean([2 / BATCH * np.sum(batch**2) for batch in batches])
    squares = np.mean([np.sum((2 / BATCH * batch.T @ batch) ** 2) for batch in batches])
    assert weights.sum() == pytest.approx(6)
    assert weights @ nodes == pytest.approx(mean, rel=ROUNDING)
    assert weights @ nodes**2 == pytest.approx(squares, rel=ROUNDING)
    assert run.spectrum.operator == "H"
    assert (edge.threshold, edge.ratio, run.sharpness_dimension, run.rds_sharpness) == (None,) * 4
    assert (run.estimates, run.bounds, run.layers[0].codimension) == ((), (), None)
    assert edge.verdict.startswith(f"No verdict: {REASONS[name]}")
    assert run.optimizer.learning_rate_missing == edge.verdict.removeprefix("No verdict: ")
    assert {warning.code for warning in run.warnings} == {"no-learning-rate", "spectrum-alone"}


@pytest.fixture(scope="module")
def with_a_rate(analysed) -> Analysis:
    return sdkeras.analyze(analysed[1], (X, TARGET), learning_rate=0.25, max_hvps=200)


def test_every_renderer_says_the_reason(analysed, with_a_rate, tmp_path) -> None:
    name, _, run = analysed
    run.save(tmp_path / "run.json")
    again = Analysis.load(tmp_path / "run.json")
    assert again == run
    assert np.isnan(again.optimizer.learning_rate) == (name == "several")
    assert [part.name for part in again.optimizer.parts] == (["Adam", "SGD"] if name == "several" else [])
    for text in (str(again), as_html(again), str(sdkeras.compare(again, again)), as_html(sdkeras.compare(again, run))):
        assert REASONS[name].split(",")[0] in " ".join(text.replace("│", "").split())
        assert not re.search(r"\bnan\b", text.lower())
    for a, b in ((again, with_a_rate), (with_a_rate, again)):
        text = " ".join(str(sdkeras.compare(a, b)).split())
        assert "has nothing that needs a learning rate" in text
    of_rate = with_a_rate.edge_of_stability.batch_sharpness
    assert of_rate == pytest.approx(run.edge_of_stability.batch_sharpness, rel=0.5)
    for path in ("edge_of_stability.ratio", "sharpness_dimension.value", "bounds.0.total", "rds_sharpness.leading.0"):
        with pytest.raises(SdkerasError, match=r"is null in this run.*learning rate"):
            conditions.parse(f"{path} > 1").holds(conditions.numbers_of(again))
    assert conditions.parse("hessian.largest.value > 0").holds(conditions.numbers_of(again))


def test_the_plan_says_what_is_left_out(analysed) -> None:
    name, model, _ = analysed
    found = analyze.plan(model, (X, TARGET))
    assert found.optimizer.learning_rate_missing.startswith(REASONS[name])
    assert (found.map, found.state_size) == ("none", 6)
    assert (found.data.batch_size, found.data.batch_size_source) == (32, "assumed")


def test_a_monitor_measures_what_needs_no_rate(analysed) -> None:
    name, model, _ = analysed
    found = Monitor(model, (X, TARGET), batch_size=BATCH).measure()
    assert found.value("sharpness") == pytest.approx(np.linalg.eigvalsh(CURVATURE)[-1], rel=1e-4)
    assert found.value("sharpness_preconditioned") == found.value("sharpness")
    assert np.isnan([found.value(key) for key in ("sharpness_threshold", "sharpness_ratio", *DIMENSION)]).all()
    assert np.isfinite(found.value("hessian_trace"))
    assert found.notes[0].startswith(REASONS[name])
    assert not found.failed


def test_rates_of_the_schedule_are_taken_on_request() -> None:
    """Thresholds 2 (1 + beta)/eta, and where eta came from stands in the headline."""
    model = trained(decayed())
    rates = 0.0625 * (1 + np.cos(np.pi * np.arange(6) / 6))
    for which, rate, words in (
        ("peak", 0.125, "learning rate 0.125 (peak of its schedule)"),
        ("mean", rates.mean(), "(mean of its schedule)"),
        ("step:5", rates[5], "(step 5 of its schedule)"),
        (0.25, 0.25, "learning rate 0.25 (given)"),
    ):
        problem = read_problem(model, (X, TARGET), Options(batch_size=BATCH, learning_rate=which))[0]
        assert problem.limits.upper == pytest.approx(3 / rate, rel=1e-5)
        assert problem.optimizer_info().learning_rate == pytest.approx(rate, rel=1e-5)
        assert words in edge_of_stability(problem, Measured(1.0, True)).verdict
    with pytest.raises(ModelError, match="step 6, and training has taken 6 steps"):
        sdkeras.analyze(model, (X, TARGET), learning_rate="step:6")
    with pytest.raises(ModelError, match="SGD has no learning-rate schedule"):
        sdkeras.analyze(trained(optimizers.SGD(0.125)), (X, TARGET), learning_rate="peak")


@pytest.mark.slow
def test_the_whole_step_needs_no_single_rate() -> None:
    model = trained(several())
    along = {"lyapunov": 1, "lyapunov_steps": 4, "lyapunov_transient": 0}
    run = sdkeras.analyze(
        model, (X, TARGET), batch_size=BATCH, map="full", estimators=("dense-svd",), max_hvps=600, **along
    )
    assert (run.sharpness_dimension.map, run.sharpness_dimension.state_size) == ("full", 8)
    assert "MultiOptimizer, learning rates Adam 0.0625, SGD 0.125 (file)" in " ".join(str(run).split())
    assert run.lyapunov.verification.passed
    alone = LyapunovRun(
        run.provenance, run.model, run.data, run.optimizer, run.verification, run.lyapunov, run.warnings
    )
    assert "learning rates Adam 0.0625, SGD 0.125" in " ".join(as_text(alone, verbose=True).split())
    assert not re.search(r"\bnan\b", as_html(alone) + as_html(run))


def test_a_step_at_rate_0_is_refused_with_advice() -> None:
    model = trained(decayed())
    for options in ({"map": "full"}, {"lyapunov": 2}):
        with pytest.raises(ModelError, match=r"learning rate of SGD is 0 .* is the identity.* peak, mean or step:N"):
            sdkeras.analyze(model, (X, TARGET), batch_size=BATCH, **options)
        with pytest.raises(ModelError, match="is the identity"):
            analyze.plan(model, (X, TARGET), batch_size=BATCH, **options)
    with pytest.raises(ModelError, match=r"is 0 over all 25 steps"):
        sdkeras.lyapunov(model, (X, TARGET), batch_size=BATCH, num_steps=20, transient=5)


def test_what_was_given_or_assumed_stands_in_the_headline(analysed, with_a_rate) -> None:
    _, _, run = analysed
    assert "assumed" not in str(run)
    other = with_a_rate
    head = str(other).partition("\n\n")[0]
    assert "Learning rate 0.25 (given), batch size 32 assumed." in " ".join(head.replace("│", "").split())
    page = as_html(other)
    assert "Learning rate 0.25 (given), batch size 32 assumed." in page[: page.index("Every number")]
    assert (other.data.batch_size_source, run.data.batch_size_source) == ("assumed", "given")
    batches = tf.data.Dataset.from_tensor_slices((X, TARGET)).batch(24)
    own = as_source(batches, batch_size=None, default_batch_size=32, limit=None)
    assert (own.batch_size, own.batch_size_source) == (24, "dataset")
    old = attrs.evolve(other, data=attrs.evolve(other.data, batch_size_source=""))
    assert "batch size 32 assumed" not in str(old)
