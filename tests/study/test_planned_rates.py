"""Trainings whose schedule ends at 0, and class weights: told before, trained, and measured as far as it goes."""

import math
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import attrs
import numpy as np
import pytest

from sdkeras.errors import DataError, SdkerasError
from sdkeras.runs.trajectory import Trajectory
from sdkeras.study import measure, runner, worker
from sdkeras.study.definition import Study, definition
from sdkeras.study.measure import trajectory_numbers
from sdkeras.study.run_files import Failed, Value
from sdkeras.study.runner import run_study
from sdkeras.study.train import StudyData
from sdkeras.study.worker import Worker


@pytest.fixture
def planned(written):
    """Writes a study, usually of one run whose schedule ends at 0."""
    usual = {"model": "logistic", "epochs": 4, "rates": 0.5, "measures": "slq = {}\nsharpness = {}"}
    return lambda optimizer=("cosine",), **texts: written(
        **{**usual, "grid": f"optimizer = {list(optimizer)}", **texts}
    )


def checked(study: Study) -> tuple[str, ...] | Failed:
    """What a worker says before the first training."""
    return Worker(study, Path("runs"), 1).check(study.runs)


@pytest.mark.slow
def test_a_schedule_that_will_end_at_0_is_told_before_the_trainings(planned, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_PATIENCE", math.inf)  # however slow the machine, all six settings
    assert checked(planned(epochs=3)) == ()
    assert checked(planned(optimizer=["sgd"])) == ()
    # 40 examples in batches of 8 make 20 steps; those of 16 only 12. A broken factory is a failed run's matter.
    several = planned(batch_size="[8, 16]", optimizer=["cosine", "sgd", "broken"])
    (note,) = checked(several)
    assert note.startswith(
        "slq needs a learning rate, and in 1 setting of 6 the schedule CosineDecay ends at 0 after 20"
    )
    assert "add learning_rate = 'peak' under [analysis]" in note


@pytest.mark.slow
def test_only_where_no_measure_can_be_taken_nothing_is_trained(planned) -> None:
    refused = checked(planned(measures="slq = {}\nlambda_1 = {}"))
    assert refused.stage == "checking"
    assert refused.reason.startswith("no measure can be taken of any run: slq, lambda_1 need a learning rate, and")
    assert len(checked(planned(measures="slq = {}", optimizer=["cosine", "sgd"]))) == 1
    assert len(checked(planned(measures="slq = {}", study="stop = { loss_below = 0.1 }"))) == 1


def test_what_the_check_answers_is_told_raised_or_survived(planned, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    started: list[object] = []

    class Pool:
        """In place of a worker process; its runs fail at once."""

        def __init__(self, *_, **__) -> None:
            started.append(self)

        def submit(self, task, *runs) -> Future:
            future: Future = Future()
            answer = Failed("training", "no") if task is worker.do else self.answer if runs else ()
            future.set_exception(answer) if isinstance(answer, Exception) else future.set_result(answer)
            return future

        def shutdown(self, **_) -> None:
            pass

    def run(study: Study, answer: object) -> None:
        started.clear()
        Pool.answer = answer
        run_study(study, "out", notice=told.append)

    monkeypatch.setattr(runner, "ProcessPoolExecutor", Pool)
    study = planned()
    run(study, ("a", "b"))
    assert (told, len(started)) == (["a", "b"], 1)
    with pytest.raises(SdkerasError, match=r"^none of them$"):
        run(study, Failed("checking", "none of them"))
    run(study, BrokenProcessPool("The exit codes of the workers are {SIGKILL(-9)}"))
    assert (told, len(started)) == (["a", "b"], 2)
    # Measures that need no rate are not checked.
    run(planned(measures="sharpness = {}\ntrace = {}\ne_alpha = {}"), Failed("checking", "not asked"))


@pytest.mark.slow
def test_at_rate_0_all_is_measured_that_needs_none(planned, done) -> None:
    measures = "slq = {}\nlambda_1 = {}\nsharpness = {}\ntrace = {}"
    values = done(planned(measures=measures)).measured().values
    reason = "the learning rate is 0 after 20 steps; add learning_rate = 'peak' under [analysis]"
    assert [(values[name].value, values[name].reason) for name in ("slq", "lambda_1")] == [(None, reason)] * 2
    assert values["sharpness"].value > 0
    assert values["trace"].value > 0
    # With a rate added, the same training is measured again. The schedule starts at its peak, 0.5.
    by_rate = []
    for rate in ('"peak"', "0.5"):
        Path("out").rename(f"before {len(by_rate)}")
        by_rate.append(done(planned(measures=measures, analysis=f"runs = 3\nlearning_rate = {rate}")).measured().values)
    assert all(by_rate[0][name].value == by_rate[1][name].value is not None for name in ("slq", "lambda_1"))
    assert by_rate[1]["sharpness"].value == values["sharpness"].value


def test_a_trajectory_that_does_not_move_has_no_length(planned) -> None:
    study = planned(measures='e_alpha = { trajectory = "forward", metric = "euclidean" }')
    points = np.ones((30, 3))
    still = Trajectory(points, np.arange(30), None, num_parameters=3, distortion=None, seed=0, stopped_at=None)
    (found,) = trajectory_numbers(study, still, ["e_alpha-forward-euclidean"], 1).values()
    assert found == Value(None, reason="all iterates are equal; at a learning rate of 0 training does not move")


@pytest.mark.slow
def test_a_rate_that_the_trainings_will_not_have_is_told_before(planned) -> None:
    refused = checked(planned(analysis='runs = 3\nlearning_rate = "step:20"'))
    assert "slq, sharpness need a learning rate, and in 1 setting of 1 [analysis] learning_rate is" in refused.reason
    assert "step 20, and training has taken 20 steps" in refused.reason
    assert checked(planned(analysis='runs = 3\nlearning_rate = "step:19"')) == ()
    refused = checked(planned(optimizer=["sgd"], analysis='runs = 3\nlearning_rate = "mean"'))
    assert "has no learning-rate schedule" in refused.reason
    (note,) = checked(planned(optimizer=["two"]))
    assert "MultiOptimizer has no single one; add learning_rate = NUMBER" in note


@pytest.mark.slow
def test_class_weights_are_of_the_training_and_of_its_measures(planned, done) -> None:
    by_class = {0: 1.0, 1: 9.0}
    study = planned(
        epochs=3,
        batch_size=40,
        optimizer=["sgd"],
        measures='sharpness = {}\ne_alpha = { trajectory = "forward", metric = "euclidean" }',
        study="class_weight = { 0 = 1.0, 1 = 9.0 }",
    )
    folder, data = done(study), StudyData.of(study)
    x, y = data.train[0].astype(np.float64), data.train[1]
    weight = np.array([by_class[int(label)] for label in y])

    # Gradient descent and the Hessian of the weighted logistic loss, in float64.
    last = np.zeros(3)
    for _ in range(3):
        last = last - 0.5 * x.T @ (weight * (1 / (1 + np.exp(-x @ last)) - y)) / len(x)
    probability = 1 / (1 + np.exp(-x @ last))
    hessian = (x * (weight * probability * (1 - probability))[:, None]).T @ x / len(x)
    values = folder.measured().values
    # float32 weights after 3 steps, and a Hessian with entries of order 1: some tens of eps = 1.2e-7.
    assert values["sharpness"].value == pytest.approx(np.linalg.eigvalsh(hessian)[-1], rel=1e-5)
    plain = np.linalg.eigvalsh((x * (probability * (1 - probability))[:, None]).T @ x / len(x))[-1]
    assert abs(plain / values["sharpness"].value - 1) > 0.5
    study.save("study.json")
    assert Study.load("study.json").weights_by_class == by_class
    assert ("class weights", "0 = 1.0, 1 = 9.0") in definition(study)
    assert values["e_alpha-forward-euclidean"].value > 0


def test_class_weights_that_do_not_fit_are_refused(planned) -> None:
    study = planned(data="weighted_data", study="class_weight = { 0 = 1.0 }")
    with pytest.raises(DataError, match="needs data \\(x, y\\) with one array of targets and without sample weights"):
        StudyData.of(study)
    other = attrs.evolve(study, class_weight={})
    assert other.training()["class_weight"] is None
    assert study.training()["class_weight"] == {"0": 1.0}
