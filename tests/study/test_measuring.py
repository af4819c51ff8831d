"""What a worker makes of the user's model: the measures that fit it, the right one read back, errors in one line."""

import re
from pathlib import Path

import attrs
import numpy as np
import pytest
import tensorflow as tf

import sdkeras
from sdkeras.errors import DataError, ModelError, SdkerasError
from sdkeras.study.run_files import RunFolder, plan_study
from sdkeras.study.train import StudyData, Trial, factory, train
from study.small_study import MODULE

HOMONYMS = """

def mse(a, b):
    return 100.0 * keras.ops.mean((a - b) ** 2, axis=-1)


def relu(x):
    return 2.0 * keras.ops.relu(x)


def own_relu(learning_rate):
    return regression(learning_rate, relu)
"""


@pytest.mark.slow
def test_a_measure_that_does_not_know_the_map_has_a_reason_and_the_others_a_value(written, done) -> None:
    measures = "sd-slq = {}\nslq = { num_steps = 8 }\nsharpness = {}"
    folder = done(written(grid="optimizer = 'momentum'", measures=measures))
    values = folder.measured().values
    assert values["sd-slq"].value is None
    assert "sd-slq knows only the map |1 - eta*alpha|" in values["sd-slq"].reason
    assert "map = 'hessian' under [analysis]" in values["sd-slq"].reason
    run = sdkeras.Analysis.load(folder.analysis)
    assert values["slq"].value == run.sharpness_dimension.value
    assert values["sharpness"].value == run.hessian.largest.value
    folder.measures.unlink()
    with pytest.raises(SdkerasError, match="measuring: the estimator sd-slq knows only"):
        done(written(grid="optimizer = 'momentum'", measures="sd-slq = {}"))


@pytest.mark.slow
def test_a_measure_that_every_analysis_has_is_read_from_the_one_on_file(written, done) -> None:
    """Among them lambda_1, by the estimator that rounds least in any order."""
    wide = "sd-slq = { bin_width = 10.0, num_steps = 8 }\nslq = { num_steps = 8 }\n"
    folder = done(written(measures=wide))
    before = folder.analysis.stat().st_mtime_ns
    folder = done(written(measures=wide + "sharpness = {}\ntrace = {}\nlambda_1 = {}"))
    values, run = folder.measured().values, sdkeras.Analysis.load(folder.analysis)
    assert folder.analysis.stat().st_mtime_ns == before
    assert values["trace"].value == run.hessian.trace.value
    assert values["sharpness"].value == run.hessian.largest.value
    assert [each.estimator for each in run.estimates] == ["slq", "sd-slq"]
    assert 0 < values["lambda_1"].value == run.rds_sharpness.leading[0] < 1
    done(written(measures="slq = { num_steps = 9 }\nsharpness = {}"))
    assert folder.analysis.stat().st_mtime_ns > before


BOTH = 'runs = 3\ntolerance = 0.9\nmap = ["auto", "hessian"]'
OF_MAPS = "slq = { num_steps = 8 }\nlambda_1 = {}\nsharpness = {}"


@pytest.mark.slow
def test_the_papers_map_is_measured_beside_the_optimizers_own(written, done) -> None:
    """Its numbers are those of a study of it alone; what was measured of the own map before stays."""
    folder = done(written(grid="optimizer = 'momentum'", measures=OF_MAPS))
    own, before = folder.measured().values, folder.analysis.stat().st_mtime_ns
    both = done(written(grid="optimizer = 'momentum'", measures=OF_MAPS, analysis=BOTH)).measured().values
    assert folder.analysis.stat().st_mtime_ns == before
    assert {name: both[name] for name in own} == own
    second = sdkeras.Analysis.load(folder.second_analysis)
    assert (second.sharpness_dimension.map, second.sharpness_dimension.state_size) == ("hessian", 32)
    papers = written(
        grid="optimizer = 'momentum'", measures=OF_MAPS, analysis="runs = 3\ntolerance = 0.9\nmap = 'hessian'"
    )
    alone = done(papers).measured().values
    for name in ("slq", "lambda_1"):
        assert both[f"{name}-map-hessian"].value == alone[name].value != own[name].value


@pytest.mark.slow
def test_of_plain_sgd_the_own_map_is_the_papers_and_is_measured_once(written, done) -> None:
    measures = "sd = {}\n" + OF_MAPS
    folder = done(written(measures=measures, analysis=BOTH))
    both = folder.measured().values
    assert not folder.second_analysis.exists()
    alone = done(written(measures=measures, analysis="runs = 3\ntolerance = 0.9\nmap = 'hessian'")).measured().values
    for name in ("sd", "slq", "lambda_1"):
        assert both[f"{name}-map-hessian"].value == both[name].value == alone[name].value


def test_a_training_that_diverged_to_a_number_is_told_as_such(written, done) -> None:
    """Of weights as large as 1e9 no product can be verified, and no layer is at fault for it."""
    study = written(model="regression", data="products", epochs=3, grid='activation = "tanh"', rates=1.5)
    with pytest.raises(SdkerasError) as failed:
        done(study)
    assert re.fullmatch(
        r"measuring: training diverged: it took the loss over the training data from [\d.]+ to [\d.]+e\+\d\d, where "
        r"curvature cannot be measured; take a smaller learning rate",
        str(failed.value),
    )


def test_a_function_by_a_name_of_keras_is_the_one_that_was_trained(written, done) -> None:
    """Keras writes any activation called relu as its own, and a helper mse is not the "mse" of a compiled model.

    The largest eigenvalue of the Hessian, in float64, is that of the doubled relu under Keras' own mean squared error.
    """
    study = written(code=MODULE + HOMONYMS, model="own_relu", data="products")
    folder, (x, y) = done(study), StudyData.of(study).train
    x, y = (tf.constant(np.reshape(each, (40, -1)), tf.float64) for each in (x, y))
    model = factory(study)(learning_rate=0.1)
    model.load_weights(folder.weights)
    parts = [np.asarray(each, np.float64) for each in model.trainable_variables]
    flat = tf.Variable(np.concatenate([each.ravel() for each in parts]))
    with tf.GradientTape() as outer:
        with tf.GradientTape() as inner:
            hidden = 2 * tf.nn.relu(x @ tf.reshape(flat[:15], (3, 5)) + flat[15:20])
            loss = tf.reduce_mean((hidden @ tf.reshape(flat[20:25], (5, 1)) + flat[25] - y) ** 2)
        gradient = inner.gradient(loss, flat)
    largest = np.linalg.eigvalsh(outer.jacobian(gradient, flat).numpy())[-1]
    # float32 products over 40 examples, as for class weights in test_planned_rates.py
    assert folder.measured().values["sharpness"].value == pytest.approx(largest, rel=1e-5)


def test_what_tensorflow_says_comes_before_where(written, done) -> None:
    with pytest.raises(SdkerasError, match=r"training failed: InvalidArgumentError: Received a label value of 7 which"):
        done(written(data="wrong_labels"))


def test_a_trained_run_without_iterates_or_with_a_damaged_model_is_refused(written, done) -> None:
    study = written()
    (run,) = study.runs
    folder = RunFolder(Path("out/runs") / run.name)
    folder.path.mkdir(parents=True)
    folder.begin(run.settings)
    train(Trial(study, run, factory(study), StudyData.of(study), folder))
    later = written(measures='e_alpha = { trajectory = "backward", metric = "euclidean" }')
    with pytest.raises(SdkerasError, match="e_alpha-backward-euclidean are of the iterates of training"):
        plan_study(attrs.evolve(later, model=study.model, data=study.data), "out")
    folder.weights.write_bytes(folder.weights.read_bytes()[:300])
    with pytest.raises(SdkerasError, match=r"is damaged.* Delete out/runs/lr0.1-bs8-seed0, and the run is trained ag"):
        done(study)


def test_settings_that_cannot_train_are_refused_before(written) -> None:
    with pytest.raises(ModelError, match="needs learning_rate, which the grid lacks; name values under"):
        factory(attrs.evolve(written(), grid={"seed": (0,)}))
    with pytest.raises(DataError, match="batch_size has the value 64, and training has 40 samples"):
        StudyData.of(attrs.evolve(written(), grid={"batch_size": (8, 64)}))


def test_trajectories_of_other_lengths_and_two_test_sets_are_refused(written) -> None:
    study = written(measures='e_alpha = { trajectory = "backward" }')  # 2 epochs of 40/8 steps
    with pytest.raises(DataError, match=r"steps is 20, and runs of batch size 8 train 10 steps"):
        StudyData.of(study)
    assert len(StudyData.of(attrs.evolve(study, epochs=4)).train[0]) == 40
    np.savez("test.npz", x=np.ones((5, 3)), y=np.ones((5, 1)))
    with pytest.raises(DataError, match="test_data is given, and there is a test pair already"):
        StudyData.of(attrs.evolve(written(), test_data="test.npz"))


def test_a_file_in_the_place_of_the_runs_is_refused(written) -> None:
    study = written()
    Path("other").mkdir()
    Path("other/runs").touch()
    with pytest.raises(SdkerasError, match="other/runs is a file"):
        plan_study(study, "other")
