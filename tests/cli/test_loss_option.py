"""`--loss` and what is said of the loss in a file, as the commands show them."""

import json

import keras
import numpy as np
import pytest

CODE = """
import keras

@keras.saving.register_keras_serializable(package="cli_loss")
class Task(keras.Model):
    def __init__(self, **options):
        super().__init__(**options)
        self.last = keras.layers.Dense(1, use_bias=False)
        self.compile()

    def compile(self, optimizer="auto", loss="auto", **options):
        optimizer = keras.optimizers.Adam(5e-5) if optimizer == "auto" else optimizer
        super().compile(optimizer=optimizer, loss="mse" if loss == "auto" else loss, **options)

    def build(self, shape):
        self.last.build(shape)
        self.built = True

    def call(self, inputs):
        return self.last(inputs)

def fourth(model, batch):
    x, y = batch
    error = keras.ops.abs(model(x, training=True) - y)
    return keras.ops.sum(error**4), keras.ops.shape(x)[0]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from sdkeras.files.user_code import load_custom_objects

    folder = tmp_path_factory.mktemp("loss")
    (folder / "task.py").write_text(CODE)
    random = np.random.default_rng(0)
    x, y = random.normal(size=(12, 3)).astype("float32"), random.normal(size=(12, 1)).astype("float32")
    np.savez(folder / "data.npz", x=x, y=y)
    objects = load_custom_objects(str(folder / "task.py"))
    with keras.saving.custom_object_scope(objects):
        keras.utils.set_random_seed(0)
        model = objects["Task"]()
        model.build((None, 3))
        model.compile(keras.optimizers.SGD(0.25), keras.losses.Huber(0.5))
        model.save(folder / "task.keras")
    weights, inputs = np.asarray(model.trainable_variables[0], np.float64), x.astype(np.float64)
    return folder, inputs, np.abs(inputs @ weights - y)[:, 0]


def analysed(in_process, folder, *options):
    """The run.json, and what stands on stderr."""
    out = folder / "run.json"
    status, _, err = in_process(
        *("analyze", folder / "task.keras", "--data", folder / "data.npz", "--batch-size", 12, "--max-hvps", 40),
        *("--custom-objects", folder / "task.py", "--json", out, "--quiet", *options),
    )
    assert status == 0, err
    return json.loads(out.read_text()), err


def test_a_task_model_is_analysed_as_its_file_says(in_process, folder):
    run, err = analysed(in_process, folder[0])
    assert "compile()" not in err
    assert (run["optimizer"]["name"], run["optimizer"]["learning_rate"]) == ("SGD", 0.25)
    assert run["optimizer"]["learning_rate_source"] == "file"
    (told,) = [each["message"] for each in run["warnings"] if each["code"] == "loss-arguments-unknown"]
    assert "--loss huber:delta=..." in told
    within = folder[2] <= 1.0  # the default
    largest = np.linalg.eigvalsh(folder[1][within].T @ folder[1][within] / 12)[-1]
    assert run["hessian"]["largest"]["value"] == pytest.approx(largest, rel=1e-5)


@pytest.mark.parametrize("spec", ["huber:delta=0.5", "task.py:fourth"])
def test_a_loss_with_arguments_and_one_of_the_user(in_process, folder, monkeypatch, spec):
    monkeypatch.chdir(folder[0])
    run, _ = analysed(in_process, folder[0], "--loss", spec)
    assert run["model"]["loss"] == spec
    assert "loss-arguments-unknown" not in [each["code"] for each in run["warnings"]]
    second = folder[2] <= 0.5 if spec.startswith("huber") else 12 * folder[2] ** 2  # derivatives by the error
    largest = np.linalg.eigvalsh(folder[1].T @ (second[:, None] * folder[1]) / 12)[-1]
    assert run["hessian"]["largest"]["value"] == pytest.approx(largest, rel=1e-4)
