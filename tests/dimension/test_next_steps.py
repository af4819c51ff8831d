"""The rules for what to do next, at the boundary values of their thresholds; numbers against the closed thresholds."""

import ast
import math
import re

import attrs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sample_runs import EMPTY, RUN, with_edge, with_estimate
from sdkeras.dimension import next_steps as rules
from sdkeras.dimension.next_steps import next_steps
from sdkeras.dimension.noise_limit import noise_limit
from sdkeras.dimension.stability import thresholds
from sdkeras.results.answers import Analysis, LayerSharpness, OptimizerPart, SpectrumSummary
from sdkeras.results.dimension import FrozenLyapunov, MeanSquareStability, Sampled
from sdkeras.results.measured import Measured
from sdkeras.results.note import Note

TINY = 1e-9


def codes(run: Analysis) -> list[str]:
    return [step.code for step in next_steps(run)]


def at(ratio: float, residual: float = 0.0, run: Analysis = RUN, **edge: object) -> Analysis:
    """A ratio with an error bar of its own size, without a batch sharpness, which would be of another net."""
    values = {"batch_sharpness": None, "batch_sharpness_stderr": None, **edge}
    largest = Measured(20.0 * ratio, True, residual=20.0 * residual)
    run = attrs.evolve(run, hessian=attrs.evolve(run.hessian, largest=largest))
    return with_edge(run, sharpness=20.0 * ratio, ratio=ratio, sharpness_residual=20.0 * residual, **values)


def with_optimizer(run: Analysis, **fields: object) -> Analysis:
    return attrs.evolve(run, optimizer=attrs.evolve(run.optimizer, **fields))


def with_data(run: Analysis, **fields: object) -> Analysis:
    return attrs.evolve(run, data=attrs.evolve(run.data, **fields))


def with_notes(run: Analysis, *names: str) -> Analysis:
    return attrs.evolve(run, warnings=tuple(Note(name, "") for name in names))


def in_layers(*sizes: float, run: Analysis = RUN) -> Analysis:
    """Blocks with these shares of the largest eigenvalue, whose traces are twice those."""
    rows = [
        LayerSharpness(f"dense_{k}", 10, Measured(12.0 * size, True), Measured(24.0 * size, True), None, None)
        for k, size in enumerate(sizes)
    ]
    return attrs.evolve(run, layers=tuple(rows))


def spread(half: float, **fields: object) -> Analysis:
    """A half-width beside a codimension of 100."""
    values = {"codimension": 100.0, "value": 1900.0, "interval": (1900.0 - half, 1900.0 + half), **fields}
    return with_estimate(RUN, **values)


NOISY = {"batch_sharpness_stderr": 0.0}
FULL = with_data(RUN, batch_size=100)
SKEWED = Sampled(1.0, 24, 1.0, 0, "", 19, 8, 0.0, 0.1, 1.0, 1.0, skewness=2.0)
NO_RATE = with_optimizer(EMPTY, learning_rate=0.0, learning_rate_missing="the learning rate is 0")

KEEP = ["good-rate"]  # what is said of a ratio of 0.6 where nothing else is

CASES = {
    "nothing to do": (RUN, KEEP),
    "empty": (EMPTY, []),
    "just no headroom": (at(0.5), KEEP),
    "headroom": (at(0.5 - TINY), ["rate-headroom"]),
    "headroom within its error": (at(0.45, residual=0.05), KEEP),
    "between headroom and edge": (at(0.9 - TINY), KEEP),
    "no curvature": (at(-0.1), []),
    "edge, from below": (at(0.9), ["at-the-edge", "per-layer"]),
    "edge, to above": (at(1.1), ["at-the-edge", "per-layer"]),
    "edge and error": (at(1.0, residual=0.1), ["at-the-edge", "per-layer"]),
    "edge and more error": (at(1.0, residual=0.11), ["open-verdict", "per-layer"]),
    "above or at it": (at(1.15, residual=0.06), ["per-layer"]),
    "above": (at(1.1 + TINY), ["above-the-edge", "per-layer"]),
    "on either side": (at(0.8, residual=0.3), ["open-verdict", "per-layer"]),
    "noise leaves headroom": (at(0.2, batch_sharpness=10.0 - TINY, **NOISY), ["rate-headroom"]),
    "noise leaves none": (at(0.2, batch_sharpness=10.0 + 1e-6, **NOISY), ["noise-takes-the-room"]),
    "far, but no limit": (at(0.1, batch_sharpness=10.0 - TINY, **NOISY), ["rate-headroom"]),
    "far, and a limit": (at(0.1, batch_sharpness=10.0 + TINY, **NOISY), ["small-batch"]),
    "not far": (at(0.2, batch_sharpness=12.0 - TINY, **NOISY), ["noise-takes-the-room"]),
    "just far": (at(0.2, batch_sharpness=12.0 + 1e-6, **NOISY), ["small-batch"]),
    "far within its error": (at(0.2, batch_sharpness=12.5, batch_sharpness_stderr=0.3), ["noise-takes-the-room"]),
    "noise at its edge": (at(0.6, batch_sharpness=18.0 + TINY, **NOISY), ["small-batch"]),
    "noise below its edge": (at(0.6, batch_sharpness=18.0 - 1e-6, **NOISY), KEEP),
    "full batches have no noise": (at(0.6, batch_sharpness=18.1, run=FULL, **NOISY), KEEP),
    "the loss limits, not noise": (at(0.95, batch_sharpness=19.0, **NOISY), ["at-the-edge", "per-layer"]),
    "no rate": (NO_RATE, ["give-a-rate"]),
    "no rate and noise": (with_edge(NO_RATE, batch_sharpness=5.0, **NOISY), ["give-a-rate"]),
    "several rates and noise": (
        with_edge(with_optimizer(NO_RATE, learning_rate=math.nan), batch_sharpness=5.0, **NOISY),
        ["give-a-rate"],
    ),
    "end of the schedule": (with_optimizer(at(0.2), peak_learning_rate=1.0 + TINY), ["end-of-schedule"]),
    "not the end": (with_optimizer(at(0.2), peak_learning_rate=1.0 - TINY), ["rate-headroom"]),
    "the peak was asked for": (
        with_optimizer(at(0.2), peak_learning_rate=5.0, learning_rate_source="step:3"),
        ["rate-headroom"],
    ),
    "one layer": (in_layers(0.8, 0.8 - TINY, 0.1), ["layer"]),
    "no layer": (in_layers(0.8 - TINY, 0.2), KEEP),
    "two layers": (in_layers(0.9, 0.8), KEEP),
    "one layer alone": (in_layers(0.9), KEEP),
    "a flat layer": (in_layers(0.5, 0.4995e-6), ["dead-units"]),
    "no flat layer": (in_layers(0.5, 0.5005e-6), KEEP),
    "layers at the edge": (in_layers(0.5, 0.5, run=at(1.0)), ["at-the-edge"]),
    "half skipped": (with_edge(RUN, batch_sharpness_skipped=0.5), ["dead-units"]),
    "fewer skipped": (with_edge(RUN, batch_sharpness_skipped=0.5 - TINY), KEEP),
    "few samples near": (with_data(at(0.9 / 1.4 + TINY), num_samples_hessian=49), ["few-samples"]),
    "half of the samples": (with_data(at(0.65), num_samples_hessian=50), KEEP),
    "few samples far": (with_data(at(0.9 / 1.4 - TINY), num_samples_hessian=49), KEEP),
    "narrow": (spread(10.0), KEEP),
    "wide": (spread(10.0 + TINY), ["narrower-interval"]),
    "no wider than half a dimension": (spread(0.5, codimension=1.0), KEEP),
    "wider than half a dimension": (spread(0.5 + TINY, codimension=1.0), ["narrower-interval"]),
    "few dominate": (with_notes(with_estimate(RUN, sampled=SKEWED), "few-minibatches-dominate"), ["narrower-interval"]),
    "few dominate what has no width": (
        with_notes(with_estimate(RUN, sampled=SKEWED, interval=(1530.25, 1530.25)), "few-minibatches-dominate"),
        KEEP,
    ),
    "no interval": (attrs.evolve(with_estimate(RUN, interval=None), status="limit on products"), ["no-interval"]),
    "no interval was asked for": (with_estimate(RUN, interval=None), KEEP),
    "rounding": (with_notes(RUN, "ill-conditioned"), ["double-precision"]),
    "rounding in float64": (
        attrs.evolve(with_notes(RUN, "ill-conditioned"), provenance=attrs.evolve(RUN.provenance, dtype="float64")),
        KEEP,
    ),
    "codimension 0": (with_estimate(RUN, codimension=0.0), ["saturated"]),
    "codimension above 0": (with_estimate(RUN, codimension=TINY, interval=(1529.9, 1530.4)), KEEP),
    "saturated": (with_notes(RUN, "saturated"), ["saturated"]),
    "unresolved": (with_notes(RUN, "unresolved-rate"), ["undetermined"]),
    "zero or neutral": (with_notes(RUN, "zero-or-neutral"), ["undetermined"]),
    "room in some of the variables": (
        attrs.evolve(at(0.1), model=attrs.evolve(RUN.model, num_parameters=RUN.model.num_trainable_analysed + 1)),
        [],
    ),
    "nothing grows": (with_notes(RUN, "nothing-grows"), ["undetermined"]),
    "unverified": (attrs.evolve(at(2.0), verification=attrs.evolve(RUN.verification, passed=False)), []),
}


@pytest.mark.parametrize("name", CASES)
def test_rules_fire_where_they_should(name: str) -> None:
    run, expected = CASES[name]
    steps = next_steps(run)
    assert [step.code for step in steps] == expected
    for step in steps:
        assert step.message.endswith(".")
        assert f". Confidence {step.confidence}: " in step.message
        if step.code in ("open-verdict", "good-rate") or name == "nothing grows":  # there is nothing to be done
            assert step.command == ""
            continue
        call = ast.parse(step.command, mode="eval").body
        assert isinstance(call, ast.Call)
        assert [ast.unparse(each) for each in call.args] == ["model", "data"]
        assert "nan" not in step.message
        assert "inf" not in step.command


HUGE, LEAST = 1.7e308, 5e-324
ANY = st.sampled_from([0.0, -1.0, LEAST, 1e-9, 0.3, 0.5, 1.0, 2.0, 30.0, 1e9, HUGE, math.inf, math.nan])
MAYBE = st.none() | ANY
MOMENTA = st.sampled_from([None, 0.0, 0.9, 1.0])
DECAYS = st.none() | st.sampled_from([0.0, LEAST, 1e-4, 1.0, HUGE, math.inf, math.nan])
SKEWNESS = st.floats(0.0, 1e4)  # of n values at most sqrt(n)
NAMED = st.lists(
    st.sampled_from(
        [
            "few-minibatches-dominate",
            "saturated",
            "unresolved-rate",
            "zero-or-neutral",
            "nothing-grows",
            "ill-conditioned",
        ]
    )
)


@given(MAYBE, MAYBE, MAYBE, ANY, MAYBE, MOMENTA, DECAYS, ANY, ANY, SKEWNESS, MAYBE, NAMED, st.booleans())
def test_no_numbers_make_them_fail(
    ratio, residual, batch, rate, peak, momentum, decay, codimension, half, skewness, kappa, named, limited
) -> None:
    """Whatever an analysis may hold: zeros, NaN, infinities, the largest and least numbers, some without others."""
    run = with_edge(
        RUN,
        ratio=ratio,
        threshold=ratio,
        sharpness_residual=residual,
        batch_sharpness=batch,
        batch_sharpness_stderr=batch,
    )
    run = with_optimizer(run, learning_rate=rate, peak_learning_rate=peak, momentum=momentum, weight_decay=decay)
    sampled = attrs.evolve(SKEWED, skewness=skewness)
    run = with_estimate(
        run, codimension=codimension, interval=(codimension - half, codimension + half), sampled=sampled
    )
    run = with_notes(with_kappa(run, kappa, half), *(named if math.isfinite(rate) else []))
    run = attrs.evolve(run, status="limit on products" if limited else run.status)
    for step in next_steps(run):
        assert "nan" not in step.message
        ast.parse(step.command, mode="eval" if step.command else "exec")


def test_at_most_three_the_most_important_first() -> None:
    run = with_notes(in_layers(0.9, 0.1, 0.0, run=at(1.5)), "ill-conditioned", "zero-or-neutral")
    run = with_data(run, num_samples_hessian=10)
    assert codes(run) == ["dead-units", "above-the-edge", "few-samples"]
    assert sum(rule(run) is not None for rule in rules._RULES) > rules.MOST


@pytest.mark.parametrize("decay", [None, 0.5])
@pytest.mark.parametrize(
    ("name", "momentum", "nesterov"),
    [("SGD", None, False), ("SGD", 0.9, False), ("SGD", 0.9, True), ("AdamW", 0.9, False), ("Nadam", 0.9, False)],
)
def test_the_largest_rate_is_where_the_threshold_is_the_sharpness(
    name: str, momentum: float | None, nesterov: bool, decay: float | None
) -> None:
    def upper(rate: float) -> float:
        limits = thresholds(name, rate, momentum=momentum, nesterov=nesterov, weight_decay=decay or 0.0)
        assert limits is not None
        return limits.upper

    run = with_optimizer(at(0.2), name=name, momentum=momentum, nesterov=nesterov, weight_decay=decay)
    for ratio in (0.05, 0.3, 1.0, 3.0):
        factor = rules._of_rate(run, ratio)
        assert math.isclose(upper(0.1 * factor), ratio * upper(0.1), rel_tol=1e-12)
    assert math.isclose(rules._of_threshold(run, 0.7), upper(0.1) / upper(0.7), rel_tol=1e-12)


def value_of(run: Analysis, code: str, argument: str) -> object:
    """An argument of the command of the step of this code."""
    (step,) = [each for each in next_steps(run) if each.code == code]
    call = ast.parse(step.command, mode="eval").body
    assert isinstance(call, ast.Call)
    (value,) = [each.value for each in call.keywords if each.arg == argument]
    return value.id if isinstance(value, ast.Name) else ast.literal_eval(value)


def test_rates_that_are_named() -> None:
    """Rate 0.1: at ratio 0.2 five times as much fits, at 1.25 four fifths; the numbers are rounded down."""
    assert "room up to 0.5, 5 times this one, before full-batch" in next_steps(at(0.2))[0].message
    assert value_of(at(0.2), "rate-headroom", "learning_rate") == 0.22  # 0.1 sqrt(5)
    assert value_of(attrs.evolve(at(1.0, 0.2), status="limit on products"), "open-verdict", "max_hvps") == 2468
    assert value_of(at(1.25), "above-the-edge", "learning_rate") == 0.08
    assert value_of(at(1.0), "at-the-edge", "learning_rate") == 0.05
    limited = at(0.2, batch_sharpness=8.0, batch_sharpness_stderr=0.0)
    assert (
        "room up to 0.25, 2.5 times this one, before the batch sharpness reaches 2/eta"
        in next_steps(limited)[0].message
    )
    # Small batches of heavy ball settle at 2 (1 - beta)/eta = 10.
    heavy = with_optimizer(at(0.2, batch_sharpness=9.1, batch_sharpness_stderr=0.0), momentum=0.5)
    assert codes(heavy) == ["small-batch"]
    assert value_of(with_data(heavy, batch_size_source="given"), "small-batch", "batch_size") == 64
    assert value_of(with_data(heavy, batch_size_source="assumed"), "small-batch", "batch_size") == "N"


def test_more_room_than_anything_measured_is_not_counted() -> None:
    """At a ratio of 1e-6 something else limits the rate; and where no rate is resolved, another step says so."""
    (step,) = next_steps(at(1e-6))
    assert "there is room for more than 100 times it, before" in step.message
    assert value_of(at(1e-6), "rate-headroom", "learning_rate") == 1.0
    noisy = at(1e-6, batch_sharpness=4.0, batch_sharpness_stderr=0.0)
    assert "full-batch steps alone would allow more than 100 times" in next_steps(noisy)[0].message
    assert codes(with_notes(at(1e-6), "unresolved-rate")) == ["undetermined"]


def test_what_is_said_where_nothing_is_to_be_done() -> None:
    (step,) = next_steps(at(0.6))
    assert (step.code, step.confidence, step.command) == ("good-rate", "moderate", "")
    assert next_steps(at(0.6, run=FULL))[0].confidence == "high"
    assert next_steps(with_kappa(at(0.6), 0.3))[0].confidence == "high"
    assert codes(at(0.85, residual=0.04)) == KEEP
    assert codes(at(0.95, residual=0.1)) == ["open-verdict", "per-layer"]


def test_double_precision_is_advised_where_it_resolves_the_rate() -> None:
    """The largest eigenvalue is 12: at a rate of 1e-6 float64 tells 1 - 1.2e-5 from 1, at 1e-30 it does not."""
    small, least = (with_notes(with_optimizer(RUN, learning_rate=rate), "unresolved-rate") for rate in (1e-6, 1e-30))
    assert value_of(small, "undetermined", "dtype") == "float64"
    (step,) = next_steps(least)
    assert (step.command, "double" in step.message) == ("", False)


def test_rates_of_a_schedule() -> None:
    assert value_of(NO_RATE, "give-a-rate", "learning_rate") == "F"
    assert value_of(with_optimizer(NO_RATE, peak_learning_rate=0.5), "give-a-rate", "learning_rate") == "peak"
    several = with_optimizer(NO_RATE, learning_rate=math.nan, parts=(OptimizerPart("Adam", 0.1),))
    assert value_of(several, "give-a-rate", "map") == "full"
    ended = with_optimizer(at(0.01), peak_learning_rate=2.0)
    assert "at the peak the ratio would be about 0.2 in place of 0.01" in next_steps(ended)[0].message


def test_confidence_comes_from_the_numbers() -> None:
    assert next_steps(at(0.2, run=FULL))[0].confidence == "high"
    assert next_steps(at(0.2))[0].confidence == "moderate"  # noise is not known
    assert next_steps(at(0.2, run=FULL, operator="P^-1/2 H P^-1/2"))[0].confidence == "moderate"
    assert next_steps(at(1.5))[0].confidence == "high"
    assumed = with_data(at(0.6, batch_sharpness=19.0, batch_sharpness_stderr=0.0), batch_size_source="assumed")
    assert next_steps(assumed)[0].confidence == "low"


def with_kappa(run: Analysis, kappa: float | None, half: float = 0.0) -> Analysis:
    measured = None if kappa is None else Measured(kappa, True, interval=(kappa - half, kappa + half))
    stability = MeanSquareStability(measured, None)
    return attrs.evolve(run, edge_of_stability=attrs.evolve(run.edge_of_stability, mean_square_stability=stability))


def test_mean_square_stability_limits_the_rate() -> None:
    """kappa grows with the rate, and so does the batch sharpness over its level: the larger of the two counts."""
    run = at(0.2, batch_sharpness=2.0, batch_sharpness_stderr=0.0)
    (step,) = next_steps(with_kappa(run, 0.4))
    assert (step.code, step.confidence) == ("rate-headroom", "moderate")
    assert "room up to 0.25, 2.5 times this one, before minibatch noise grows (kappa = 1)" in step.message
    assert "5 times this one" in next_steps(with_kappa(run, 0.1, 0.1))[0].message
    noisy = at(0.2, batch_sharpness=19.0, batch_sharpness_stderr=0.0)
    assert codes(noisy) == codes(with_kappa(noisy, 0.4)) == codes(with_kappa(noisy, None)) == ["small-batch"]
    assert "batch sharpness" in next_steps(with_kappa(noisy, 0.4))[0].message
    assert codes(with_kappa(at(0.2), 0.5 + TINY)) == ["noise-takes-the-room"]
    assert codes(with_kappa(at(0.5), 0.5 + TINY)) == KEEP
    assert codes(with_kappa(at(0.5), 0.9 - TINY)) == KEEP
    assert next_steps(with_kappa(at(0.2), 0.95))[0].confidence == "moderate"  # a lower bound
    assert next_steps(with_kappa(at(0.2), 1.2, 0.1))[0].confidence == "high"
    assert codes(with_kappa(at(0.2), 0.9)) == ["small-batch"]
    unsure = next_steps(with_kappa(at(0.2), 0.95, 0.1))[0]
    assert (unsure.code, unsure.confidence, "uses 0.85 to 1.1 of what minibatch noise" in unsure.message) == (
        "small-batch",
        "low",
        True,
    )


def heavy(batch: float, ratio: float = 0.2, stderr: float = 0.0, momentum: float = 0.9, **edge: object) -> Analysis:
    """Rate 0.1: small minibatches settle at 2, large ones at 38 with momentum 0.9, at 10 and 30 with 0.5."""
    run = with_data(at(ratio, batch_sharpness=batch, batch_sharpness_stderr=stderr, **edge), batch_size_source="given")
    return with_optimizer(run, momentum=momentum)


@pytest.mark.parametrize(
    ("run", "code", "confidence"),
    [
        (heavy(0.9), "rate-headroom", "moderate"),
        (heavy(1.1), "noise-takes-the-room", "moderate"),
        (heavy(1.81), "small-batch", "moderate"),  # at the level of small minibatches
        (heavy(2.19), "small-batch", "moderate"),
        (heavy(2.0, stderr=0.2), "small-batch", "low"),  # an error bar that holds 1
        (heavy(2.21), "noise-takes-the-room", "low"),  # between the two
        (heavy(2.21, stderr=0.3), "noise-takes-the-room", "low"),
        (heavy(2.21, ratio=0.6), "good-rate", "moderate"),
        (heavy(12.0, momentum=0.5), "noise-takes-the-room", "low"),
        (heavy(19.0 - TINY, ratio=0.4), "noise-takes-the-room", "low"),
        (heavy(19.0 + 1e-6, ratio=0.4), "small-batch", "low"),  # even the higher level leaves less than a factor of 2
        (heavy(20.0, stderr=1.0), "noise-takes-the-room", "low"),
        (heavy(34.1, ratio=0.6), "small-batch", "low"),
        (heavy(34.1), "small-batch", "low"),  # far above the sharpness
        (heavy(34.3), "small-batch", "moderate"),  # at the level of large minibatches
        (heavy(37.0, ratio=0.6, stderr=2.0), "small-batch", "low"),
        (heavy(100.0), "small-batch", "moderate"),
    ],
)
def test_momentum_between_its_two_levels(run: Analysis, code: str, confidence: str) -> None:
    """Between the levels of small and large minibatches noise is not known to limit the rate.

    A smaller rate costs time, and an interval from 0.4 to 1.2 once called for it here. But its ends are two possible
    limits, 0.4 of the one and 1.2 of the other, and not an error: nothing measured speaks for the lower. To keep the
    rate is right by either, and what to try is said.
    """
    (step,) = next_steps(run)
    assert (step.code, step.confidence) == (code, confidence)
    batch = run.edge_of_stability.batch_sharpness
    apart = f"levels of small and large minibatches, {'3' if run.optimizer.momentum == 0.5 else '19'} times apart"
    limit = noise_limit(run)
    assert bool(limit.between) == (apart in step.message)
    if limit.between and code != "good-rate":
        small, large = (f"{batch / level.level:.2g} times {level.formula}, where" for level in limit.between)
        assert f"{small} small minibatches settle, and {large} large ones do" in step.message
        assert "what minibatch noise allows" not in step.message
        assert "the interval" not in step.message
    assert ("smaller rate" in step.message) == (code == "small-batch")


def test_the_share_is_of_the_nearest_level_or_of_both() -> None:
    """An error bar is by one level; between the levels the ends are by the one and the other."""
    half = 1.96
    for batch, low, high in (
        (1.0, 2, 2),
        (2.2 - TINY, 2, 2),
        (2.21, 38, 2),
        (34.1, 38, 2),
        (34.3, 38, 38),
        (50, 38, 38),
    ):
        limit = noise_limit(heavy(batch, stderr=0.1))
        assert limit.share == pytest.approx(((batch - 0.1 * half) / low, (batch + 0.1 * half) / high), rel=1e-3)
        assert len(limit.between) == (2 if low != high else 0)
    # Momentum 0.02: 19.6 and 20.4, within a tenth of each other, so that there is nothing between them.
    for batch, formula in ((19.9, "2(1-beta)/eta"), (20.1, "2(1+beta)/eta")):
        assert formula in noise_limit(heavy(batch, momentum=0.02)).event
    assert noise_limit(at(0.2, batch_sharpness=8.0, batch_sharpness_stderr=0.0)).share == (0.4, 0.4)


def test_both_limits_are_known_only_where_noise_is_below_its_own() -> None:
    """An error bar that holds 1 is met where the ratio may reach the edge, so that noise is not judged first."""
    wide = in_layers(0.5, 0.5, run=at(0.85, residual=0.06, batch_sharpness=17.0, batch_sharpness_stderr=2.0))
    for run, known in (
        (heavy(1.7, ratio=0.6), True),
        (heavy(5.0, ratio=0.6), False),
        (wide, False),
        (with_edge(wide, batch_sharpness_stderr=0.1), True),
        (with_data(wide, batch_size=100), True),
        (with_data(heavy(5.0, ratio=0.6), batch_size=100), True),
    ):
        (step,) = next_steps(run)
        assert step.code == "good-rate"
        assert ("both limits are known" in step.message, step.confidence == "high") == (known, known)
    assert "the interval holds 1, and noise is judged by the batch sharpness alone" in next_steps(wide)[0].message


def test_an_error_bar_of_momentum_says_which_minibatches_it_is_of() -> None:
    small, large = (
        next_steps(heavy(2.0, stderr=0.2))[0].message,
        next_steps(heavy(37.0, ratio=0.6, stderr=2.0))[0].message,
    )
    assert "the interval holds 1, and noise is judged as in small minibatches; large ones settle at 19 times" in small
    assert "judged as in large minibatches; small ones settle at a level 19 times lower" in large
    assert "before the batch sharpness reaches 2(1-beta)/eta, where small minibatches settle" in (
        next_steps(heavy(0.5))[0].message
    )


def test_products_for_a_narrower_interval() -> None:
    """Half-widths fall as 1/sqrt(runs): from 15 to 5 dimensions, 5 % of 100, takes 9 times 960 products."""
    (step,) = next_steps(spread(15.0))
    assert "about 9 times the runs and 8,640 products, bring it to 5. Conf" in step.message
    assert value_of(spread(15.0), "narrower-interval", "tolerance") == 0.05
    assert value_of(spread(50.0), "narrower-interval", "tolerance") == 0.1
    limited = attrs.evolve(spread(15.0), status="limit on products")
    assert value_of(limited, "narrower-interval", "max_hvps") == 1234 + 8640
    late = attrs.evolve(spread(15.0), status="time limit")
    assert value_of(late, "narrower-interval", "time_limit") == 11
    # With momentum the velocity's 2,000 directions are no part of the scale.
    moving = spread(15.0, state_size=4000, codimension=2100.0)
    assert codes(moving) == ["narrower-interval"]
    # By the spectrum: 10 directions without curvature keep phi = 1, two lose it, of which 1.5 is 75 %.
    spectrum = SpectrumSummary(
        np.array([0.0, 5.0]), np.array([10.0, 2.0]), "H", np.array([0.0, -0.1, -0.1, -0.1]), np.zeros(4)
    )
    frozen = {"frozen_lyapunov": FrozenLyapunov(0.0, 0.0), "threshold_exponent": -0.1}
    (step,) = next_steps(attrs.evolve(spread(1.5, state_size=4000, **frozen), spectrum=spectrum))
    assert "is 75% of the number of dimensions that curvature adds or takes, 2;" in step.message
    # A skewness of 2 asks for 100 minibatches, not 24.
    skewed = CASES["few dominate"][0]
    assert value_of(skewed, "narrower-interval", "runs") == 100
    assert re.search(r"about 4\.2 times the runs and 4,000 products", next_steps(skewed)[0].message)


def test_what_the_record_tells_of_the_call_is_repeated() -> None:
    run = with_data(at(0.2), batch_size_source="given")
    run = with_optimizer(run, learning_rate_source="given")
    run = attrs.evolve(run, provenance=attrs.evolve(run.provenance, preset="quick", dtype="float64"))
    assert next_steps(run)[0].command == (
        "sdkeras.analyze(model, data, batch_size=32, learning_rate=0.22, preset='quick', dtype='float64')"
    )
    assert value_of(with_notes(RUN, "zero-or-neutral"), "undetermined", "exact") is True
