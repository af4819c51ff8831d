"""Files of Keras 2: their own values, or one message that says what to do.

data/keras2/files.json holds files that tf_keras 2.21 wrote, their HDF5 trees as JSON.
"""

import io
import json
import math
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

import sdkeras
from sdkeras.errors import ModelError
from sdkeras.files.models import compile_problem, load_model
from sdkeras.runs.options import Options
from sdkeras.runs.problem import read_problem

FILES = json.loads((Path(__file__).parents[1] / "data" / "keras2" / "files.json").read_text())
X = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
TARGETS = np.random.default_rng(1).normal(size=(8, 1)).astype(np.float32)
CLASSES = np.arange(8) % 3


def fill(group, tree):
    for name, value in tree.get("attrs", {}).items():
        group.attrs[name] = value
    for name, part in tree.get("groups", {}).items():
        fill(group.create_group(name), part)
    for name, part in tree.get("datasets", {}).items():
        group[name] = np.array(part["values"], part["dtype"]).reshape(part["shape"])


def written(folder, name, change=lambda file: None):
    """The path of a file of Keras 2, changed before it is written."""
    file, path = json.loads(json.dumps(FILES[name])), folder / name
    change(file)
    stream = io.BytesIO()
    with h5py.File(stream, "w") as tree:
        fill(tree, file["h5"])
    if name.endswith(".h5"):
        path.write_bytes(stream.getvalue())
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("config.json", file["config"])
            archive.writestr("metadata.json", file["metadata"])
            archive.writestr("model.weights.h5", stream.getvalue())
    return str(path)


def outputs(model, activation=np.tanh):
    """The outputs of two layers, the second linear, in NumPy and float64."""
    w, b, v, c = (np.asarray(weight, np.float64) for weight in model.trainable_variables)
    return activation(X @ w + b) @ v + c


def problem_of(loaded, targets=CLASSES):
    return read_problem(loaded, (X, targets), Options(batch_size=8))[0]


def changed_config(**entries):
    """Other entries for a file's training configuration."""

    def change(file):
        attributes = file["h5"]["attrs"]
        attributes["training_config"] = json.dumps({**json.loads(attributes["training_config"]), **entries})

    return change


@pytest.mark.parametrize("name", ["adam.h5", "adam.keras"])
def test_adam_with_a_schedule_and_a_loss_object(tmp_path, name):
    """Keras 3 itself gives it the default rate 0.001, and cannot make the loss."""
    loaded = load_model(written(tmp_path, name))
    assert "written" not in (compile_problem(loaded) or "written by")
    problem, notes = read_problem(loaded, (X, TARGETS), Options(batch_size=8))
    error = np.abs(outputs(loaded) - TARGETS)
    huber = np.mean(np.where(error <= 0.1, error**2 / 2, 0.1 * error - 0.1**2 / 2))
    assert problem.loss.value() == pytest.approx(float(huber), rel=1e-5)
    assert problem.loss_words == "huber:delta=0.1"
    # CosineDecay(0.5, 10) after 4 steps
    assert (problem.optimizer.name, problem.optimizer.iterations) == ("Adam", 4)
    assert problem.rate == pytest.approx(0.25 * (1 + math.cos(0.4 * math.pi)), rel=1e-6)
    assert problem.exponents.name == "hessian"
    told = {warning.code: warning.message for warning in notes}
    assert "Keras 2 (version 2.21.0)" in told["compiled-part"]
    assert "second moments of the optimizer in the file could not be read" in told["hessian-map"]
    assert not any("_velocities" in message for message in told.values())
    assert "loss-arguments-unknown" not in told


def test_an_analysis_of_adam_has_all_its_numbers(tmp_path):
    run = sdkeras.analyze(
        load_model(written(tmp_path, "adam.h5")), (X, TARGETS), batch_size=8, max_hvps=60, allow_unverified=True
    )
    assert run.sharpness_dimension.map == "hessian"
    assert run.edge_of_stability.ratio is None or math.isnan(run.edge_of_stability.ratio)
    assert math.isfinite(run.hessian.largest.value)
    assert {"compiled-part", "hessian-map"} <= {warning.code for warning in run.warnings}


def test_momentum_is_the_file_s(tmp_path):
    loaded = load_model(written(tmp_path, "sgd.h5"))
    problem = problem_of(loaded)
    assert (problem.rate, problem.optimizer.momentum, problem.optimizer.iterations) == (0.25, pytest.approx(0.9), 4)
    assert problem.exponents.name == "heavy-ball"
    assert "could not be restored" in compile_problem(loaded)
    with pytest.raises(ModelError, match="could not be read from its file"):
        sdkeras.lyapunov(loaded, (X, CLASSES), batch_size=4, num_steps=2, transient=0)


def test_an_optimizer_without_slots_loses_nothing(tmp_path):
    loaded = load_model(written(tmp_path, "plain.h5"))
    assert compile_problem(loaded) is None
    problem = problem_of(loaded)
    assert (problem.rate, problem.optimizer.iterations, problem.exponents.name) == (0.25, 4, "sgd")
    logits = outputs(loaded)
    chosen = logits[np.arange(8), CLASSES]
    assert problem.loss.value() == pytest.approx(np.mean(np.log(np.exp(logits).sum(1)) - chosen), rel=1e-5)


def test_decay_of_a_legacy_optimizer(tmp_path):
    """rate / (1 + decay * iterations), which Keras 3 ignores."""
    problem = problem_of(load_model(written(tmp_path, "legacy.h5")), TARGETS)
    assert (problem.optimizer.name, problem.optimizer.iterations) == ("Adam", 4)
    assert problem.rate == pytest.approx(0.5 / (1 + 0.25 * 4), rel=1e-6)
    loaded = load_model(written(tmp_path, "legacy.keras"))
    assert "left it out of the file, and its number of steps" in compile_problem(loaded)


def test_a_functional_model_in_h5(tmp_path):
    loaded = load_model(written(tmp_path, "functional.h5"))
    error = outputs(loaded, activation=np.positive) - TARGETS
    problem = problem_of(loaded, TARGETS)
    assert problem.loss.value() == pytest.approx(float(np.mean(error**2)), rel=1e-5)
    assert problem.optimizer.name == "RMSprop"


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("functional.keras", ("'Functional'", "model.save('model.h5')")),
        *(
            (f"operations{kind}", ("TFOpLambda", "set_weights(old_model.get_weights())", "save('model.keras')"))
            for kind in (".h5", ".keras")
        ),
        ("lstm.h5", ("time_major", "set_weights(old_model.get_weights())")),
    ],
)
def test_what_keras_3_cannot_build_says_what_to_do(tmp_path, name, parts):
    path = written(tmp_path, name)
    with pytest.raises(ModelError) as error:
        load_model(path)
    message = str(error.value)
    for part in (path, "written by Keras 2 (version 2.21.0)", "tf_keras", *parts):
        assert part in message
    assert "`custom_objects" not in message
    assert "\n" not in message


def test_a_compiled_part_that_cannot_be_made_is_named_with_its_version(tmp_path):
    def change(file):
        file["h5"]["attrs"]["keras_version"] = "2.2.4-tf"
        changed_config(loss="penalised")(file)

    loaded = load_model(written(tmp_path, "adam.h5", change))
    assert not getattr(loaded, "compiled", False)
    problem = compile_problem(loaded)
    for part in ("written by Keras 2 (version 2.2.4-tf)", "'penalised'", "optimizer 'Custom>Adam'", "`custom_objects"):
        assert part in problem


def test_old_names_of_the_rate(tmp_path):
    config = {"class_name": "SGD", "config": {"lr": 0.125, "momentum": 0.5, "decay": 0.0}}
    problem = problem_of(load_model(written(tmp_path, "sgd.h5", changed_config(optimizer_config=config))))
    assert (problem.rate, problem.optimizer.momentum) == (0.125, 0.5)
