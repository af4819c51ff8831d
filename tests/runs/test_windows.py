"""`sdkeras.lyapunov(..., windows=...)` along real training, against closed forms and the order that theory proves."""

import os
import signal

import attrs
import keras
import numpy as np
import pytest

import sdkeras
from sdkeras.errors import Interrupted, OperatorSizeError, PluginError, SdkerasError
from sdkeras.operators import precision
from sdkeras.runs import lyapunov
from sdkeras.runs.budget import Meter
from sdkeras.runs.lyapunov_options import LyapunovOptions
from small_trainings import RATE, X, Y, classifier, everything, quadratic


@pytest.fixture(autouse=True)
def _seed() -> None:
    keras.utils.set_random_seed(0)


@pytest.mark.parametrize(
    ("momentum", "nesterov"), [(0.0, False), (0.5, False), (0.5, True)], ids=["sgd", "heavy-ball", "nesterov"]
)
def test_the_order_along_training(momentum: float, nesterov: bool) -> None:
    """SD^(m) <= SD, SD^(m') <= SD^(m) for m | m', D_s <= SD^(m): to roundoff, over the same steps."""
    decay = 0.25
    optimizer = keras.optimizers.SGD(RATE * 4, momentum=momentum, nesterov=nesterov, weight_decay=decay)
    model = classifier(optimizer, dtype="float64")
    before = everything(model)
    run = sdkeras.lyapunov(
        model, (X, Y), batch_size=4, num_steps=48, transient=5, dtype="float64", windows=(16, 2, 4, 3)
    )
    assert everything(model) == before
    found = run.lyapunov
    size = found.dimension.size
    assert found.coordinates == ("balanced" if momentum else "weights")
    assert size == len(found.values) == (24 if momentum else 12)
    value = {window.num_window_steps: window.dimension for window in found.windows}
    assert list(value) == [1, 2, 3, 4, 16]
    for m in value:
        for longer in value:
            if longer % m == 0:
                assert value[longer] <= value[m] + 1e-9 * size
        assert sdkeras.sharpness_dimension(found.values) <= value[m] + 1e-9 * size
    assert value[16] < value[1] - 0.5
    assert found.sharpest.value <= min(value.values())
    assert found.values.sum() == pytest.approx(found.log_det, abs=1e-10)
    if momentum and not nesterov:
        assert found.values.sum() == pytest.approx(12 * np.log(momentum * (1 - 4 * RATE * decay)), abs=1e-9)
        assert found.log_det_stderr == pytest.approx(0.0, abs=1e-12)
    assert {warning.code for warning in run.warnings}.isdisjoint({"mixed-units", "other-steps"})
    assert sdkeras.LyapunovRun.from_json(run.to_json()) == run


@pytest.mark.parametrize("count", [None, 2])
def test_a_quadratic_has_the_dimension_of_its_multipliers(count: int | None) -> None:
    """Full batches of a linear model: J is constant and symmetric, so SD^(m) = SD, and D_s is the same number."""
    curvatures = [20.0, 17.0, 4.0, 6.0, 11.0]
    model, data = quadratic(curvatures, keras.optimizers.SGD(RATE))
    run = sdkeras.lyapunov(
        *(model, data),
        **{"batch_size": 20, "num_steps": 40, "transient": 60, "dtype": "float64"},
        windows=(2, 8, 20),
        num_exponents=count,
    )
    logs = np.sort(np.log(np.abs(1 - RATE * np.array(curvatures))))[::-1]
    expected = sdkeras.sharpness_dimension(logs)
    assert 2 < expected < 3
    for window in run.lyapunov.windows:
        assert window.dimension == pytest.approx(expected, abs=1e-7)
        # 20 steps as one span more than e^22: the smallest are hidden, not wrong.
        assert window.num_resolved == (3 if window.num_window_steps == 20 else 5)
        resolved = window.num_window_steps * logs[: window.num_resolved]
        np.testing.assert_allclose(window.exponents, resolved, atol=1e-6)
    assert run.lyapunov.log_det == pytest.approx(logs.sum(), abs=1e-9)
    low, high = run.lyapunov.dimension.interval
    if count is None:
        assert run.lyapunov.dimension.value == pytest.approx(expected, abs=1e-6)
        assert run.lyapunov.sharpest.value == pytest.approx(expected, abs=1e-6)
    else:
        # Two exponents and the determinant: the other three fall fastest where they are equal.
        total = logs[:2].sum()
        assert run.lyapunov.dimension.status == "bracketed"
        assert low == pytest.approx(2 + total * 3 / (total - logs.sum()), abs=1e-6)
        assert low < expected - 0.05
        assert high == pytest.approx(expected, abs=1e-7)


def test_the_slots_of_other_optimizers_are_scaled_by_kind_and_it_is_said() -> None:
    model = classifier(keras.optimizers.Adam(0.01))
    run = sdkeras.lyapunov(model, (X, Y), batch_size=4, num_steps=12, transient=2, windows=(2,))
    assert run.lyapunov.coordinates.startswith("diagonal scaling: momentum x ")
    message = next(warning.message for warning in run.warnings if warning.code == "mixed-units")
    assert "12 weights and 24 slots" in message
    assert run.lyapunov.windows[0].size == 36


@pytest.fixture(scope="module")
def step() -> sdkeras.UpdateMap:
    """Compiled once for the tests of what happens along the way; nothing changes it."""
    keras.utils.set_random_seed(0)
    model = classifier(keras.optimizers.SGD(0.5, momentum=0.5), dtype="float64")
    return sdkeras.UpdateMap(sdkeras.EmpiricalLoss(model, (X, Y), batch_size=4, dtype="float64"), model.optimizer)


def follow(step: sdkeras.UpdateMap, *, deadline: float | None = None, progress=None, **options) -> lyapunov.Followed:
    settings = LyapunovOptions(**({"num_steps": 8, "transient": 1} | options))
    budget = lyapunov.budget_of(step, Meter(lambda: step.num_products, progress, deadline=deadline))
    return lyapunov.follow(step, settings, about={}, budget=budget)


def codes(followed: lyapunov.Followed) -> set[str]:
    return {warning.code for warning in followed.warnings}


def test_without_windows_nothing_is_dense(step: sdkeras.UpdateMap) -> None:
    before = step.num_products
    found = follow(step, num_exponents=2).summary
    assert (found.windows, found.sharpest, found.coordinates) == ((), None, None)
    assert step.num_products - before == 2 * 9


def test_ctrl_c_keeps_the_windows_of_the_steps_so_far(step: sdkeras.UpdateMap) -> None:
    def stop(progress: sdkeras.results.progress.Progress) -> None:
        if progress.stage == "training step 27 of 45":
            os.kill(os.getpid(), signal.SIGINT)

    followed = follow(step, num_steps=40, transient=5, windows=(2, 4), progress=stop)
    assert followed.interrupted
    assert followed.summary.num_steps == 22
    one, two, four = followed.summary.windows
    assert one.num_steps == two.num_steps == 22
    assert two.dimension <= one.dimension
    assert "ended after 22 steps" in four.reason


def test_ctrl_c_among_the_singular_values_keeps_the_exponents(
    step: sdkeras.UpdateMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(lyapunov, "over_same_steps", interrupted)
    followed = follow(step, windows=(2,))
    assert followed.interrupted
    assert len(followed.summary.values) == 24
    assert followed.summary.windows == ()
    assert "windows-interrupted" in codes(followed)


def test_the_time_limit_ends_it_as_ctrl_c_does(
    step: sdkeras.UpdateMap, monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    """By a clock that moves a second a step: no step begins after the limit."""
    now = [0.0]
    monkeypatch.setattr(lyapunov.time, "monotonic", lambda: now[0])

    def tick(progress: sdkeras.results.progress.Progress) -> None:
        now[0] += progress.stage.startswith("training step")

    options = {"num_steps": 30, "transient": 5, "num_exponents": 2, "progress": tick}
    followed = follow(step, **options, deadline=17.0)
    assert followed.timed_out
    assert not followed.interrupted
    assert followed.summary.num_steps == 12
    assert "12 of 30 steps" in next(w.message for w in followed.warnings if w.code == "time-limit")
    now[0] = 0.0
    assert not follow(step, **options, deadline=35.0).timed_out
    now[0] = 0.0
    kept = tmp_path / "run.npz"
    with pytest.raises(Interrupted, match=r"after step 3, before a step was measured \(the first 5"):
        follow(step, **options, deadline=3.0, checkpoint=str(kept))
    assert kept.exists()


def test_an_analysis_keeps_its_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    model = classifier(keras.optimizers.SGD(0.5))
    options = {"batch_size": 4, "lyapunov": 2, "lyapunov_steps": 10, "lyapunov_transient": 0}
    run = sdkeras.analyze(model, (X, Y), **options, time_limit=1e-6)
    assert run.lyapunov is None
    assert not run.partial
    assert "no Lyapunov exponents" in next(w.message for w in run.warnings if w.code == "time-limit")


def test_the_bounds_of_an_analysis_take_d_s_where_it_is_determined() -> None:
    curvatures = [20.0, 17.0, 4.0, 6.0, 11.0]
    model, data = quadratic(curvatures, keras.optimizers.SGD(RATE))
    options = {"batch_size": 20, "dtype": "float64", "exact": True, "lyapunov_steps": 40, "lyapunov_transient": 60}
    run = sdkeras.analyze(model, data, **options, lyapunov=5, bound_inputs={"delta": 0.1, "loss_bound": 1.0})
    value = run.lyapunov.dimension.value
    for bound in run.bounds:
        assert bound.dimension_name == "D_s"
        assert "determined over 40 steps" in bound.dimension_reason
    term = run.bounds[0].terms[1]
    assert term.formula == "2 B sqrt(4 D_s ln(1/delta)/n)"
    assert term.value == pytest.approx(2 * np.sqrt(4 * value * np.log(10) / 20))
    run = sdkeras.analyze(model, data, **options, lyapunov=1, bound_inputs={"delta": 0.1, "loss_bound": 1.0})
    assert run.lyapunov.dimension.status == "bracketed"
    assert run.bounds[0].dimension_name == "SD"
    assert "D_s is bracketed" in run.bounds[0].dimension_reason
    assert run.bounds[0].terms[1].formula == "2 B sqrt(4 SD ln(1/delta)/n)"


def test_a_plan_has_the_products_and_the_memory() -> None:
    model = classifier(keras.optimizers.SGD(0.5, momentum=0.5))
    before = everything(model)
    plan = lyapunov.plan(model, (X, Y), batch_size=4, num_steps=40, transient=5, windows=(1, 4))
    assert everything(model) == before
    assert (plan.num_parameters, plan.state_size, plan.num_exponents) == (12, 24, 24)
    assert plan.windows == (1, 4)
    assert plan.num_hvps == pytest.approx(45 * 24, abs=40)
    plain = lyapunov.plan(model, (X, Y), batch_size=4, num_steps=40, transient=5)
    assert plain.num_exponents == 10
    assert plan.num_hvps - plain.num_hvps == 45 * 14
    settings = LyapunovOptions(windows=(1, 4), num_steps=40)
    assert settings.dense_bytes(24, 4) == 24 * 24 * (40 * 4 + 64)
    more = lyapunov.plan(model, (X, Y), batch_size=4, num_steps=400_000, windows=(1,))
    assert more.peak_memory - plan.peak_memory == pytest.approx(399_960 * 24 * 24 * 4, rel=0.1)


@sdkeras.lyapunov_estimator("another-start")
@attrs.frozen
class AnotherStart:
    """One exponent over the steps after a transient of its own."""

    num_steps: int = 10
    transient: int = 0
    skip: int = 0

    def estimate(self, source: sdkeras.TangentFlow, *, seed: int) -> sdkeras.LyapunovExponents:
        source.reset(seed)
        frame, logs = np.ones((source.size, 1), source.dtype), []
        for _ in range(self.transient + self.num_steps):
            frame = source.step(frame)
            logs.append(float(np.log(np.linalg.norm(frame))))
            frame = frame / np.linalg.norm(frame)
        start = self.transient + self.skip
        return sdkeras.LyapunovExponents(
            values=[np.mean(logs[start:])], stderr=[0.0], num_steps=len(logs) - start, seed=seed, transient=start
        )


def test_an_estimator_of_one_s_own_and_its_settings(step: sdkeras.UpdateMap) -> None:
    options = {"windows": (2,), "estimator": "another-start"}
    followed = follow(step, **options)
    assert followed.summary.estimator == "another-start"
    assert len(followed.summary.values) == 1
    assert "other-steps" not in codes(followed)
    followed = follow(step, **options, settings={"another-start": {"skip": 2}})
    assert followed.summary.transient == 3
    message = next(warning.message for warning in followed.warnings if warning.code == "other-steps")
    assert "6 steps after 3, the windows are over 8 after 1" in message
    assert followed.summary.sharpest.name in ("SD", "SD^(2)")
    followed = follow(step, num_steps=400, num_exponents=2, settings={"lyapunov-qr": {"tolerance": 10.0}})
    assert followed.summary.num_steps == 32
    with pytest.raises(PluginError, match=r"'no-steps' .* failed on 24 dimensions: .*nothing here"):
        follow(step, estimator="no-steps")


@sdkeras.lyapunov_estimator("no-steps")
@attrs.frozen
class NoSteps:
    def estimate(self, source: sdkeras.TangentFlow, *, seed: int) -> sdkeras.LyapunovExponents:
        raise RuntimeError("nothing here")


BAD = [
    ({"num_steps": 100, "windows": (1, 3)}, SdkerasError, r"3 steps does not divide the 100 steps.*2 or 4.*99 or 102"),
    ({"num_steps": 100, "windows": (3, 4)}, SdkerasError, r"96 or 108 steps"),
    ({"num_steps": 4, "windows": (8,)}, SdkerasError, r"take 4 in its place, or 8 steps"),
    ({"windows": (0,)}, SdkerasError, "windows must be positive, got 0"),
    ({"windows": (2,), "checkpoint": "run.npz"}, SdkerasError, "holds no Jacobians"),
    ({"windows": (2,), "memory_gb": 1e-5}, OperatorSizeError, r"1,000 steps of a state of 12 dim.*at most \d+ steps"),
    ({"windows": (2,), "memory_gb": 1e-6}, OperatorSizeError, r"not even one step fits"),
    ({"memory_gb": 0.0}, SdkerasError, "memory_gb is 0.0"),
    ({"time_limit": float("inf")}, SdkerasError, "time_limit is inf"),
    ({"windows": (2,), "num_exponents": 13}, SdkerasError, "exceeds the size of the state, 12"),
    ({"estimator": "lyapunov-qx"}, PluginError, "did you mean 'lyapunov-qr'"),
    ({"settings": {"slq": {"num_steps": 3}}}, SdkerasError, "'slq', which is not used here"),
    (
        {"settings": {"lyapunov-qr": {"num_steps": 3}}},
        SdkerasError,
        "num_steps of .* is an option of the run",
    ),
    ({"settings": {"lyapunov-qr": {"depth": 3}}}, SdkerasError, "its fields are: num_exponents"),
    ({"settings": {"lyapunov-qr": {"tolerance": -1.0}}}, SdkerasError, "tolerance"),
    ({"estimator": "no-steps", "windows": (2,)}, SdkerasError, "has no field num_steps, which windows need"),
    ({"estimator": "no-steps", "checkpoint": "run.npz"}, SdkerasError, "has no field checkpoint"),
]


@pytest.mark.parametrize(("options", "kind", "message"), BAD, ids=lambda value: str(value)[:40])
def test_wrong_use_is_told_before_the_work(options: dict, kind: type, message: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind, match=message):
        sdkeras.lyapunov(classifier(keras.optimizers.SGD(0.5)), (X, Y), **({"batch_size": 4} | options))
    assert list(tmp_path.iterdir()) == []


def test_a_state_too_large_for_dense_work_is_refused_before_the_step_is_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with precision.default_precision("float32"):
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1000), keras.layers.Dense(2)])
        model.compile(
            keras.optimizers.SGD(0.5, momentum=0.5), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        )
        model.train_on_batch(X, Y)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the step was compiled")

    monkeypatch.setattr(lyapunov, "UpdateMap", refuse)
    with pytest.raises(OperatorSizeError, match=r"10,004 dimensions; 5,000 are the most"):
        sdkeras.lyapunov(model, (X, Y), batch_size=4, num_steps=2, windows=(1,))
