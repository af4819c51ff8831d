"""What to do next on real nets: each rule where it should fire and where it should not, and advice that is followed."""

import ast

import keras
import numpy as np
import pytest

import sdkeras
from sdkeras.results.answers import Analysis
from sdkeras.results.next_step import NextStep
from small_nets import X

layers, optimizers = keras.layers, keras.optimizers
ALL = len(X)
TARGET = (X @ np.arange(1.0, 6.0) + np.random.default_rng(1).standard_normal(ALL)).astype("float32")
# The Hessian of linear regression with a bias, whatever the weights: 2/N D'D with the design D = [X, 1].
DESIGN = np.hstack([X.astype(np.float64), np.ones((ALL, 1))])
STEEPEST = float(np.linalg.eigvalsh(2 / ALL * DESIGN.T @ DESIGN)[-1])
EDGE = 2 / STEEPEST  # learning rate at which full-batch steps overshoot
FEW = {"preset": "quick", "runs": 3, "batch_size": ALL}
LABELS = (TARGET > 0).astype("int64")
CE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def line(optimizer: optimizers.Optimizer, steps: int = 5) -> keras.Model:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((5,)), layers.Dense(1)], name="line")
    model.compile(optimizer, "mse")
    model.fit(X, TARGET, batch_size=ALL, epochs=steps, verbose=0)
    return model


def codes(run: Analysis) -> list[str]:
    return [step.code for step in run.next_steps]


def step(run: Analysis, code: str) -> NextStep:
    (found,) = [each for each in run.next_steps if each.code == code]
    return found


def arguments(found: NextStep) -> dict[str, object]:
    call = ast.parse(found.command, mode="eval").body
    assert isinstance(call, ast.Call)
    return {str(each.arg): ast.literal_eval(each.value) for each in call.keywords}


def test_headroom_is_there_and_ends_where_it_says() -> None:
    """A fifth of the edge: at four times the rate the training converges, at six times it does not."""
    model = line(optimizers.SGD(EDGE / 5))
    run = sdkeras.analyze(model, (X, TARGET), **FEW)
    found = step(run, "rate-headroom")
    assert (found.confidence, " 5 times this one" in found.message) == ("high", True)
    assert codes(run) == ["rate-headroom"]
    start, least = model.get_weights(), float(np.linalg.lstsq(DESIGN, TARGET, rcond=None)[1][0]) / ALL
    losses = {}
    for times in (4, 6):
        model.set_weights(start)
        model.optimizer.learning_rate = times * EDGE / 5
        losses[times] = model.fit(X, TARGET, batch_size=ALL, epochs=80, verbose=0).history["loss"]
    assert abs(losses[4][-1] - least) < 1e-4 * least
    assert losses[6][-1] > 1e3 * losses[6][0]


@pytest.mark.slow
def test_a_rate_beyond_the_edge_and_one_at_it() -> None:
    model = line(optimizers.SGD(EDGE / 5))
    above = sdkeras.analyze(model, (X, TARGET), **FEW, learning_rate=1.5 * EDGE)
    assert codes(above)[:2] == ["above-the-edge", "per-layer"]
    rate = arguments(step(above, "above-the-edge"))["learning_rate"]
    assert 0.95 * EDGE < rate <= EDGE
    at_it = codes(sdkeras.analyze(model, (X, TARGET), **FEW, learning_rate=EDGE))
    assert at_it[0] == "at-the-edge"
    assert "per-layer" in at_it
    # A third of the data, on which the verdict may depend.
    few = sdkeras.analyze(model, (X, TARGET), **{**FEW, "batch_size": 32}, samples=32, learning_rate=EDGE)
    assert "few-samples" in codes(few)
    assert arguments(step(few, "few-samples"))["samples"] == ALL
    assert "few-samples" not in codes(above)


@pytest.mark.slow
def test_the_schedule_and_its_peak() -> None:
    """A cosine from an eighth of the edge's rate: at its end, and at its peak."""
    schedule = optimizers.schedules.CosineDecay(EDGE / 8, 12)
    run = sdkeras.analyze(line(optimizers.SGD(schedule), 12), (X, TARGET), **FEW)
    assert codes(run) == ["give-a-rate"]
    assert run.optimizer.peak_learning_rate == pytest.approx(EDGE / 8, rel=1e-6)
    model = line(optimizers.SGD(schedule), 11)
    late = sdkeras.analyze(model, (X, TARGET), **FEW)
    assert codes(late)[0] == "end-of-schedule"
    assert "rate-headroom" not in codes(late)
    assert "at the peak the ratio would be about 0.13 in place" in late.next_steps[0].message
    peak = sdkeras.analyze(model, (X, TARGET), **{**FEW, **arguments(late.next_steps[0])})
    assert codes(peak) == ["rate-headroom"]
    assert peak.edge_of_stability.ratio == pytest.approx(1 / 8, rel=1e-3)


@pytest.mark.slow
def test_noise_limits_the_rate_of_single_examples() -> None:
    """Examples of very different sizes: a step on one of them sees |x|^2, far more than their mean."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal((256, 40)).astype("float32")
    y = generator.standard_normal(256).astype("float32")
    largest = float(np.linalg.eigvalsh(2 / 256 * x.T.astype(float) @ x)[-1])
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((40,)), layers.Dense(1, use_bias=False)])
    model.compile(optimizers.SGD(0.3 * 2 / largest / 4), "mse")
    model.fit(x, y, batch_size=1, epochs=1, verbose=0)
    options = {"preset": "quick", "runs": 3}
    run = sdkeras.analyze(model, (x, y), batch_size=1, **options)
    assert codes(run)[0] == "small-batch"
    assert arguments(run.next_steps[0])["batch_size"] == 2
    assert "small-batch" not in codes(sdkeras.analyze(model, (x, y), batch_size=64, **options))


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_the_layer_that_holds_the_sharpness(scale: float) -> None:
    """Inputs of a large scale make the first layer's block steep; at the usual scale both are."""
    keras.utils.set_random_seed(0)
    named = [layers.Dense(6, "tanh", name="first"), layers.Dense(2, name="last")]
    model = keras.Sequential([keras.Input((5,)), layers.Rescaling(scale), *named])
    model.compile(optimizers.SGD(1e-3), CE)
    model.fit(X, LABELS, batch_size=ALL, epochs=5, verbose=0)
    run = sdkeras.analyze(model, (X, LABELS), **FEW, per_layer=True)
    whole = run.hessian.largest.value
    shares = {row.name: row.largest.value / whole for row in run.layers}
    fired = [each for each in run.next_steps if each.code == "layer"]
    assert bool(fired) == (max(shares.values()) >= 0.8 > min(shares.values())), shares
    assert bool(fired) == (scale > 1), shares
    if fired:
        top = max(shares, key=shares.__getitem__)
        assert arguments(fired[0])["params"] == f"^{top}/"
        again = sdkeras.analyze(model, (X, LABELS), **FEW, params=f"^{top}/")
        assert again.hessian.largest.value == pytest.approx(shares[top] * whole, rel=1e-2)


def _dead(bias: float) -> keras.Model:
    """A net of rectifiers; with a very negative bias no example reaches any of them."""
    keras.utils.set_random_seed(0)
    hidden = layers.Dense(6, "relu", bias_initializer=keras.initializers.Constant(bias))
    model = keras.Sequential([keras.Input((5,)), hidden, layers.Dense(1, use_bias=False)])
    model.compile(optimizers.SGD(0.01), "mse")
    model.fit(X, TARGET, batch_size=ALL, epochs=2, verbose=0)
    return model


@pytest.mark.slow
def test_dead_units() -> None:
    run = sdkeras.analyze(_dead(-100.0), (X, TARGET), **FEW)
    assert codes(run)[0] == "dead-units"
    assert "100% of the minibatches have a gradient of 0" in run.next_steps[0].message
    assert run.sharpness_dimension.codimension == 0
    assert "dead-units" not in codes(sdkeras.analyze(_dead(0.0), (X, TARGET), **FEW))


@pytest.mark.slow
def test_following_the_advice_narrows_the_interval() -> None:
    """A rough estimate asks for a tolerance, and with it the interval is as narrow as was said."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((5,)), layers.Dense(12, "tanh"), layers.Dense(2)])
    model.compile(optimizers.SGD(0.2), CE)
    model.fit(X, LABELS, batch_size=8, epochs=10, verbose=0)
    rough = sdkeras.analyze(model, (X, LABELS), batch_size=8, preset="quick", runs=4)
    found = step(rough, "narrower-interval")
    narrow = sdkeras.analyze(model, (X, LABELS), **arguments(found))
    interval = narrow.sharpness_dimension.interval
    half = 0.5 * (interval[1] - interval[0])
    assert half <= max(arguments(found)["tolerance"] * narrow.sharpness_dimension.codimension, 0.5)
    assert "narrower-interval" not in codes(narrow)


@pytest.mark.slow
def test_nothing_to_do() -> None:
    run = sdkeras.analyze(line(optimizers.SGD(0.7 * EDGE)), (X, TARGET), **FEW)
    (keep,) = run.next_steps
    assert (keep.code, keep.confidence, keep.command) == ("good-rate", "high", "")
    assert "Keep this learning rate" in str(run)
