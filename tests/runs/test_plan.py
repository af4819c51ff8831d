"""Plans against what the analyses then spend."""

from typing import Any

import keras
import pytest

import sdkeras
from sdkeras.datasets import load_digits
from sdkeras.results.progress import Progress
from sdkeras.runs import analyze

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
    """How many steps Lanczos takes, and how many minibatches the batch sharpness, is known afterwards only."""
    model, options = net(kind, optimizer, digits), {"samples": 128, "runs": 3, **options}
    plan, run = analyze.plan(model, digits, **options), sdkeras.analyze(model, digits, **options)
    adaptive = sum(estimate.num_hvps for estimate in run.estimates)
    adaptive += 0 if run.supremum is None else run.supremum.num_hvps
    spent = run.provenance.num_hvps - adaptive
    assert 0.7 < (plan.num_hvps - plan.num_hvps_pilot) / spent < 1.4
    assert plan.num_hvps_pilot == adaptive
    assert plan.num_hvps_most is None


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


def test_the_pilot_says_how_many_runs_are_to_come() -> None:
    def after(runs: int, half_width: float | None) -> int | None:
        return Progress("", 0, value=1.0, half_width=half_width, num_runs=runs, target=2.0).expected_runs

    assert (after(24, None), after(24, 8.0), after(24, 1.0)) == (None, 384, 24)
