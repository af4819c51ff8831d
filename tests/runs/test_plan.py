"""Plans against what the analyses then spend."""

from types import SimpleNamespace
from typing import Any

import attrs
import keras
import pytest

import sdkeras
from sdkeras.datasets import load_digits
from sdkeras.operators.loss import evolved
from sdkeras.reporting.tables import plan_table
from sdkeras.results.progress import Progress
from sdkeras.runs import analyze, budget
from sdkeras.runs import plan as planning
from sdkeras.runs.budget import resources
from sdkeras.runs.edge import batch_sharpness
from sdkeras.runs.options import Options
from sdkeras.runs.plan import planned
from sdkeras.runs.problem import read_problem

layers = keras.layers
STEPS = {"sd-slq": {"num_steps": 40}}


@pytest.fixture(scope="module")
def digits() -> tuple[Any, Any]:
    x, y = load_digits()
    return x[:256], y[:256]


def net(kind: str, optimizer: keras.optimizers.Optimizer, digits: tuple[Any, Any]) -> keras.Model:
    keras.utils.set_random_seed(0)
    inner = {
        "dense": [layers.Reshape((8, 8, 1)), layers.Cropping2D(2), layers.Flatten(), layers.Dense(8, "tanh")],
        "conv": [layers.Reshape((8, 8, 1)), layers.Conv2D(4, 3, activation="relu"), layers.Flatten()],
    }
    model = keras.Sequential([keras.Input((8, 8)), *inner[kind], layers.Dense(10)])
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(*digits, epochs={"dense": 2, "conv": 5}[kind], batch_size=32, verbose=0)
    return model


@pytest.mark.parametrize(
    ("kind", "optimizer", "options"),
    [
        ("dense", keras.optimizers.SGD(0.25), {"per_layer": True}),
        *[
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("dense", keras.optimizers.SGD(0.1, momentum=0.9), {"snapshots": 2, "every": 2}),
                ("dense", keras.optimizers.Adam(0.01), {"lyapunov": 2, "lyapunov_steps": 40, "lyapunov_transient": 8}),
                ("conv", keras.optimizers.SGD(0.1), {}),
                ("conv", keras.optimizers.Adam(0.01), {"per_layer": True}),
            )
        ],
    ],
    ids=["dense layers", "momentum snapshots", "adam lyapunov", "conv", "conv adam layers"],
)
def test_the_fixed_stages_cost_what_was_planned(
    kind: str, optimizer: keras.optimizers.Optimizer, options: dict[str, Any], digits: tuple[Any, Any]
) -> None:
    """How many steps Lanczos takes is known afterwards only, and how many more minibatches the batch sharpness."""
    model, options = net(kind, optimizer, digits), {"samples": 128, "runs": 3, **options}
    plan, run = analyze.plan(model, digits, **options), sdkeras.analyze(model, digits, **options)
    adaptive = sum(estimate.num_hvps for estimate in run.estimates)
    adaptive += 0 if run.supremum is None else run.supremum.num_hvps
    edge = run.edge_of_stability
    assert edge is not None
    assert plan.num_minibatches <= edge.batch_sharpness_minibatches <= plan.num_minibatches_most
    spent = run.provenance.num_hvps - adaptive - edge.batch_sharpness_minibatches
    assert 0.7 < (plan.num_hvps - plan.num_hvps_pilot - plan.num_minibatches) / spent < 1.4
    assert plan.num_hvps_pilot == plan.num_hvps_runs_most == adaptive
    assert plan.num_hvps_most is None
    assert plan.most is not None
    assert plan.num_hvps <= plan.most


@pytest.mark.parametrize(
    "optimizer", [keras.optimizers.SGD(0.05, momentum=0.9), keras.optimizers.Adam(0.01)], ids=["momentum", "adam"]
)
def test_an_adaptive_analysis_is_planned_as_a_range(
    optimizer: keras.optimizers.Optimizer, digits: tuple[Any, Any]
) -> None:
    """From the first runs on without an end, or to the limit; the fixed stages are those of any analysis."""
    model, options = net("dense", optimizer, digits), {"preset": "quick", "samples": 128}
    plan, run = analyze.plan(model, digits, **options), sdkeras.analyze(model, digits, **options)
    assert run.edge_of_stability is not None
    runs, batches = run.estimates[0].num_hvps, run.edge_of_stability.batch_sharpness_minibatches
    assert batches is not None
    assert 0.7 < plan.num_hvps_fixed / (run.provenance.num_hvps - runs - batches) < 1.4
    assert runs >= plan.num_hvps_pilot
    assert (plan.num_hvps_runs_most, plan.most) == (None, None)
    shown = dict(row[:2] for row in plan_table(plan).rows)
    assert f"about {plan.num_hvps:,} or more: {plan.num_hvps_fixed} for the fixed stages, " in shown["products"]
    assert f"{plan.num_hvps_pilot} or more for the runs, as the tolerance asks" in shown["products"]
    assert f"for the first {plan.num_hvps:,} products" in shown["time"]
    limited = analyze.plan(model, digits, **options, max_hvps=1000)
    assert limited.most == 1000
    assert f"about {limited.num_hvps:,} to 1,000: " in dict(row[:2] for row in plan_table(limited).rows)["products"]


def test_every_estimator_is_in_the_plan(digits: tuple[Any, Any]) -> None:
    model = net("dense", keras.optimizers.SGD(0.25), digits)
    alone = analyze.plan(model, digits)
    more = analyze.plan(
        model, digits, estimators=["slq", "sd-slq"], exact_minibatches=2, max_hvps=10**6, settings=STEPS
    )
    size = alone.num_parameters
    assert alone.num_hvps_pilot == 24 * 40
    assert more.num_hvps_pilot == 2 * size + 2 * 24 * 40
    assert more.num_hvps_most == 10**6


def test_the_batch_sharpness_is_planned_as_its_first_block_and_then_as_its_error_asks(
    digits: tuple[Any, Any],
) -> None:
    """Epochs of 8 minibatches: blocks of 24. A ratio known from 24 to three halves of the target takes 54, or 72."""
    plan = analyze.plan(net("dense", keras.optimizers.SGD(0.25), digits), digits, max_hvps=400)
    assert (plan.num_minibatches, plan.num_minibatches_most) == (20, 20)
    plan = analyze.plan(net("dense", keras.optimizers.SGD(0.25), digits), digits)
    assert (plan.num_minibatches, plan.num_minibatches_most) == (24, 1000)
    loss = sdkeras.EmpiricalLoss(net("dense", keras.optimizers.SGD(0.25), digits), digits, 32)
    hessian, asked = sdkeras.HessianOperator(loss), []
    known = batch_sharpness(hessian, 24)
    assert known.batch_sharpness is not None
    assert known.batch_sharpness_stderr is not None
    error = known.batch_sharpness_stderr / known.batch_sharpness
    batch_sharpness(hessian, target=error / 1.5, expect=asked.append)
    assert asked[0] == 72  # 24 * 1.5^2 = 54, in blocks of 24
    assert batch_sharpness(hessian, target=1.01 * error).batch_sharpness_minibatches == 24


def test_bases_of_runs_in_lockstep_are_in_the_memory(digits: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = net("dense", keras.optimizers.SGD(0.25), digits)
    monkeypatch.setattr(planning, "peak_memory", lambda: 0)  # of other tests in this process
    monkeypatch.setattr(planning, "used_memory", lambda: 0)
    together, single = (
        analyze.plan(model, digits, runs=runs, settings={"slq": {"num_steps": 40}}).peak_memory for runs in (20, 19)
    )
    size = model.count_params()
    assert together - single >= 31 * 40 * size * 4  # 32 bases in place of one, from 800 products on


def test_a_graph_more_is_in_the_seconds(digits: tuple[Any, Any]) -> None:
    """The parts of linearised products take about as long to trace as a product, a gradient less than half of it."""
    model = net("dense", keras.optimizers.SGD(0.25), digits)
    problem, _ = read_problem(model, digits, Options(runs=3))
    room = resources(problem.loss.size, 4, memory_gb=None, workers=1)
    slow = attrs.evolve(problem.loss.gradients, seconds=100.0)
    later = attrs.evolve(problem, loss=evolved(problem.loss, gradients=slow))
    assert 300 < planned(later, room, 0).seconds < 600
    assert planned(later, room, 0, reading=1000.0).seconds > 1300


def test_the_pilot_says_how_many_runs_are_to_come() -> None:
    def after(runs: int, half_width: float | None) -> int | None:
        return Progress("", 0, value=1.0, half_width=half_width, num_runs=runs, target=2.0).expected_runs

    assert (after(24, None), after(24, 8.0), after(24, 1.0)) == (None, 384, 24)
    few = Progress("", 0, value=1.0, half_width=800.0, num_runs=4, target=2.0, pilot_runs=24)
    assert few.expected_runs == 24


def test_the_time_left_is_from_the_latest_pace_and_what_is_still_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    now, made = [0.0], [0]
    monkeypatch.setattr(budget, "time", SimpleNamespace(monotonic=lambda: now[0]))
    whole = budget.whole_budget(resources(10, 4, memory_gb=1.0, workers=1), budget.Meter(lambda: made[0]))
    whole.plan(1000)
    assert whole.seconds_left() is None
    with whole.planned_as(800):  # takes 100 in 10 seconds
        now[0], made[0] = 10.0, 100
    assert whole.seconds_left() == pytest.approx(200 / 10)
    whole.tell("another stage")
    now[0], made[0] = 15.0, 110  # mostly compilation
    whole.leave_compilation_behind()
    now[0], made[0] = 16.0, 210
    assert whole.seconds_left() == pytest.approx(90 / 100)
    assert whole.seconds_left(more=100) == pytest.approx(190 / 100)
    whole.meter.most = 240
    assert whole.seconds_left() == pytest.approx(30 / 100)
