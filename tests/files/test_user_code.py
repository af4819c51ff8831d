"""The user's own classes and functions: imported on purpose, leaving nothing behind."""

import sys

import keras
import numpy as np
import pytest

from file_checks import X, refused, tiny
from sdkeras.files.models import compile_problem, load_model
from sdkeras.files.user_code import load_custom_objects

USER_CODE = """
import dataclasses
import keras
from helper_of_mine import scale

@dataclasses.dataclass
class Setting:
    value: int = 3

def my_loss(target, output):
    return scale * keras.ops.mean(keras.ops.square(target - output), -1)

class MyLoss(keras.losses.Loss):
    def call(self, target, output):
        return my_loss(target, output)

class MyDense(keras.layers.Dense):
    pass

class MySGD(keras.optimizers.SGD):
    pass

def my_activation(inputs):
    return 2 * inputs

def my_metric(target, output):
    return keras.ops.mean(output)

@keras.saving.register_keras_serializable(package="mine")
class Registered(keras.layers.Dense):
    pass
"""


@pytest.fixture
def user_file(tmp_path):
    (tmp_path / "helper_of_mine.py").write_text("scale = 3.0\n")
    path = tmp_path / "objects.py"
    path.write_text(USER_CODE)
    return str(path)


def test_custom_objects_are_returned_and_leave_nothing_behind(user_file, tmp_path):
    path_before, modules_before = list(sys.path), set(sys.modules)
    registry_before = dict(keras.saving.get_custom_objects())
    objects = load_custom_objects(user_file)
    wanted = {"my_loss", "MyLoss", "MyDense", "MySGD", "my_activation", "my_metric", "Registered", "Setting"}
    assert set(objects) == {*wanted, "mine>Registered"}
    assert sys.path == path_before
    assert "helper_of_mine" not in sys.modules
    assert not {name for name in set(sys.modules) - modules_before if "objects" in name}
    assert keras.saving.get_custom_objects() == registry_before
    assert float(objects["my_loss"](np.ones((1, 2)), np.zeros((1, 2)))[0]) == 3.0
    # Again, with another helper of the same name: neither a stale module nor a lost registration.
    (tmp_path / "helper_of_mine.py").write_text("scale = 50.0\n")
    again = load_custom_objects(user_file)
    assert set(again) == set(objects)
    assert float(again["my_loss"](np.ones((1, 2)), np.zeros((1, 2)))[0]) == 50.0


def test_a_helper_of_a_name_that_keras_has_is_no_custom_object(tmp_path):
    (tmp_path / "o.py").write_text(
        "def mse(a, b):\n    return 100.0 * (a - b) ** 2\n\ndef relu(x):\n    return x\n\ndef mine(x):\n    return x\n"
    )
    objects = load_custom_objects(str(tmp_path / "o.py"))
    assert set(objects) == {"mine"}
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.save(tmp_path / "word.keras")
    loaded = load_model(str(tmp_path / "word.keras"), custom_objects=objects)
    x = np.ones((4, 3), "float32")
    assert loaded.evaluate(x, x[:, :1], verbose=0) == model.evaluate(x, x[:, :1], verbose=0) > 0

    def mse(a, b):
        return keras.ops.mean((a - b) ** 4, axis=-1)

    model.compile("sgd", mse)
    model.save(tmp_path / "own.keras")
    problem = compile_problem(load_model(str(tmp_path / "own.keras"), custom_objects=objects))
    assert "it uses a function 'mse' of its author's own, and Keras has one of that name" in problem
    assert "register it" in problem


def test_custom_objects_give_back_a_registration_that_they_replace(tmp_path):
    class Earlier(keras.layers.Layer):
        pass

    (tmp_path / "o.py").write_text(
        "import keras\n"
        "@keras.saving.register_keras_serializable('p', 'Earlier')\n"
        "class Later(keras.layers.Layer): ...\n"
    )
    registry = keras.saving.get_custom_objects()
    registry["p>Earlier"] = Earlier
    try:
        objects = load_custom_objects(str(tmp_path / "o.py"))
        assert registry["p>Earlier"] is Earlier
        assert objects["p>Earlier"] is objects["Later"]
    finally:
        del registry["p>Earlier"]


@pytest.mark.parametrize("extension", ["keras", "h5"])
@pytest.mark.parametrize(
    ("part", "name"), [("layer", "MyDense"), ("layer", "Registered"), ("activation", "my_activation")]
)
def test_unregistered_part_of_the_model(user_file, tmp_path, extension, part, name):
    objects = load_custom_objects(user_file)
    path = str(tmp_path / f"custom.{extension}")
    tiny(**{part: objects[name]}).save(path)
    refused(load_model, path, says=(path, name, "`custom_objects=FILE`"))
    before = dict(keras.saving.get_custom_objects())
    loaded = load_model(path, custom_objects=objects)
    assert compile_problem(loaded) is None
    assert loaded(X).shape == (8, 4)
    assert keras.saving.get_custom_objects() == before
    refused(load_model, path)


@pytest.mark.parametrize("extension", ["keras", "h5"])
@pytest.mark.parametrize("name", ["my_loss", "MyLoss", "MySGD", "my_metric"])
def test_unregistered_part_of_compile_only(user_file, tmp_path, extension, name):
    objects = load_custom_objects(user_file)
    model = tiny(loss=None)
    model.compile(
        loss={"my_loss": objects["my_loss"], "MyLoss": objects["MyLoss"]()}.get(name, "mean_squared_error"),
        optimizer=objects["MySGD"](0.25) if name == "MySGD" else "sgd",
        metrics=[objects["my_metric"]] if name == "my_metric" else [],
    )
    path = str(tmp_path / f"compiled.{extension}")
    model.save(path)

    bare = load_model(path)
    if (name, extension) == ("my_metric", "h5"):
        assert bare.compiled  # Keras looks a metric's name up when it is used, which is never
        return
    assert not bare.compiled
    assert np.array_equal(bare.trainable_variables[0], model.trainable_variables[0])
    problem = compile_problem(bare)
    for text in (path, name, "Keras does not know", "`custom_objects=FILE`", "`loss`", "`learning_rate`"):
        assert text in problem
    assert "\n" not in problem

    whole = load_model(path, custom_objects=objects)
    assert compile_problem(whole) is None
    assert whole.compiled
    if name == "MySGD":
        assert float(whole.optimizer.learning_rate) == 0.25


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("import keras\n1 / 0\n", "ZeroDivisionError: division by zero"),
        ("def broken(:\n", "SyntaxError"),
        ("import sys\nsys.exit('stop here')\n", "SystemExit: stop here"),
        ("import no_such_module_at_all\n", "no_such_module_at_all"),
        (
            USER_CODE.replace("from helper_of_mine import scale", "scale = 1") + "raise OSError('full')\n",
            "OSError: full",
        ),
    ],
    ids=["division", "syntax", "exit", "import", "after registering"],
)
def test_custom_objects_that_fail(tmp_path, text, part):
    path = tmp_path / "bad.py"
    path.write_text(text)
    before = list(sys.path)
    refused(load_custom_objects, path, says=(path, part, "correct"))
    assert sys.path == before
    assert "mine>Registered" not in keras.saving.get_custom_objects()


def test_custom_objects_that_are_no_python_file(tmp_path):
    refused(load_custom_objects, tmp_path / "none.py", says=("none.py", "`custom_objects`", "not a file"))
    (tmp_path / "a.txt").write_text("")
    refused(load_custom_objects, tmp_path / "a.txt", says=("a.txt", ".py"))
