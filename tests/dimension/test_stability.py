"""Thresholds against the exact vectors and against the eigenvalues of the 2x2 blocks themselves."""

import numpy as np
import pytest

from oracles import VECTORS
from sdkeras.dimension.stability import plateaus, settled_at, thresholds, verdict, verdict_by_plateau
from sdkeras.results.dimension import EdgeOfStability


def test_vectors() -> None:
    case = VECTORS["stability_thresholds"]
    eta, beta = case["learning_rate"], case["momentum"]
    for row in case["cases"]:
        decay = row["weight_decay"]
        for name, settings in (
            ("sgd", {}),
            ("heavy_ball", {"momentum": beta}),
            ("nesterov", {"momentum": beta, "nesterov": True}),
        ):
            found = thresholds("SGD", eta, weight_decay=decay, **settings)
            assert found.upper == pytest.approx(row[name], rel=1e-14)
    adam = case["adam"]
    found = thresholds("Adam", adam["learning_rate"], momentum=adam["beta_1"])
    assert found.upper == pytest.approx(adam["threshold"])
    assert found.preconditioned


def test_nadam_has_nesterovs_threshold_over_one_minus_beta_1() -> None:
    found = thresholds("Nadam", 1.0, momentum=0.9)
    assert found.upper == pytest.approx(3.8 / 0.28, rel=1e-14)  # 13.57
    assert found.preconditioned
    nesterov = thresholds("SGD", 0.125, momentum=0.75, nesterov=True, weight_decay=0.5)
    nadam = thresholds("Nadam", 0.125, momentum=0.75, weight_decay=0.5)
    assert nadam.upper == pytest.approx(nesterov.upper / 0.25, rel=1e-14)
    assert nadam.formula == "(2-eta*wd)(1+beta1)/((1-beta1)(1+2beta1)*eta)"


@pytest.mark.parametrize("decay", [0.0, 0.5])
@pytest.mark.parametrize("kind", ["sgd", "heavy_ball", "nesterov", "adam", "nadam", "rmsprop"])
def test_the_block_is_stable_exactly_between_the_thresholds(kind: str, decay: float) -> None:
    eta, beta = 0.125, 0.5
    s = 1 - eta * decay
    name, settings = {
        "sgd": ("SGD", {}),
        "heavy_ball": ("SGD", {"momentum": beta}),
        "nesterov": ("SGD", {"momentum": beta, "nesterov": True}),
        "adam": ("AdamW", {"momentum": beta}),
        "nadam": ("Nadam", {"momentum": beta}),
        "rmsprop": ("RMSprop", {"momentum": beta}),
    }[kind]
    limits = thresholds(name, eta, weight_decay=decay, **settings)

    def radius(alpha: float) -> float:
        a = eta * alpha * (1 - beta if kind in ("adam", "nadam") else 1)
        ahead = [[s - a * (1 + beta), beta**2], [-a, beta]]
        block = {
            "sgd": [[s - a]],
            "nesterov": ahead,
            "nadam": ahead,
        }.get(kind, [[s - a, beta], [-a, beta]])
        return max(abs(np.linalg.eigvals(block)))

    width = limits.upper - limits.lower
    for edge, inside in ((limits.upper, -1), (limits.lower, 1)):
        assert radius(edge + inside * 1e-6 * width) < 1
        assert radius(edge - inside * 1e-6 * width) > 1


def test_unknown_optimizers_have_no_threshold() -> None:
    for name in ("Lion", "Adagrad", "Adadelta", "Ftrl", "Adamax", "Adafactor", "Lamb", "Muon"):
        assert thresholds(name, 0.1, momentum=0.9) is None


@pytest.mark.parametrize(
    ("sharpness", "start"),
    [(5.0, "Below"), (9.5, "At the edge"), (20.0, "Above"), (-1.0, "No direction"), (None, "No verdict")],
)
def test_verdict(sharpness: float | None, start: str) -> None:
    limits = thresholds("SGD", 0.2)
    assert limits.upper == 10
    sentence = verdict(sharpness, limits, optimizer="SGD", learning_rate=0.2)
    assert sentence.startswith(start)
    assert sentence.endswith(".")
    assert verdict(1.0, None, optimizer="Lion", learning_rate=0.2).startswith("No verdict")


# Plateaus of the batch sharpness


def test_momentum_has_two_plateaus_and_plain_sgd_one() -> None:
    small, large = plateaus("SGD", 0.1, momentum=0.9)
    assert (small.level, small.formula) == (pytest.approx(2.0), "2(1-beta)/eta")
    assert (large.level, large.formula) == (pytest.approx(38.0), "2(1+beta)/eta")
    assert large.level == thresholds("SGD", 0.1, momentum=0.9).upper
    (only,) = plateaus("SGD", 0.1)
    assert (only.level, only.formula) == (20.0, "2/eta")
    for none in (plateaus("SGD", 0.1, momentum=0.9, nesterov=True), plateaus("Adam", 0.1), plateaus("SGD", np.nan)):
        assert none == ()


def with_batches(batch: float | None, stderr: float | None = 0.01, ratio: float | None = 0.2, momentum: float = 0.9):
    """Rate 0.1: plateaus at 2 and 38 with momentum 0.9."""
    return EdgeOfStability(
        *("H", 7.6, 38.0, ratio, batch, stderr, "Below the edge of stability: sharpness 7.6 is 0.2 times 38."),
        plateaus=plateaus("SGD", 0.1, momentum=momentum),
    )


@pytest.mark.parametrize(
    ("edge", "minibatches"),
    [
        (with_batches(1.79), None),
        (with_batches(1.81), "small"),
        (with_batches(2.19), "small"),
        (with_batches(2.21), None),
        (with_batches(20.0), None),  # between the two
        (with_batches(34.3), "large"),
        (with_batches(42.0), None),
        (with_batches(2.0, stderr=0.2), "small"),
        (with_batches(2.0, stderr=0.21), None),  # a half-width of a fifth of the level
        (with_batches(2.0, stderr=None), None),
        (with_batches(None), None),
        (with_batches(2.0, ratio=0.9), None),  # the sharpness decides
        (with_batches(2.0, ratio=-0.1), None),
        (with_batches(2.0, ratio=None), None),
        (with_batches(20.0, momentum=0.0), None),  # one level, which is the threshold
        (with_batches(20.2, momentum=0.02), "large"),  # 19.6 and 20.4: the nearer one
    ],
)
def test_where_the_batch_sharpness_decides_the_verdict(edge: EdgeOfStability, minibatches: str | None) -> None:
    found = settled_at(edge)
    assert (None if found is None else found.minibatches) == minibatches


def test_the_verdict_by_a_plateau_keeps_that_on_the_sharpness() -> None:
    edge = with_batches(1.9)
    assert verdict_by_plateau(edge, settled_at(edge)) == (
        "At the edge of stochastic stability: batch sharpness 1.9 is 0.95 times 2(1-beta)/eta = 2, where momentum in "
        "small minibatches is reported to settle; sharpness 7.6 is 0.2 times 38."
    )
