import io
import json
import os
import pickle
import shutil
import sys
import warnings
import zipfile

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sdkeras.errors import DataError, ModelError, SdkerasError
from sdkeras.files.models import (
    check_data,
    compile_problem,
    load_custom_objects,
    load_data,
    load_model,
    load_training_data,
)

X = np.linspace(-1, 1, 24, dtype=np.float32).reshape(8, 3)
Y = np.arange(8) % 4


def tiny(layer=keras.layers.Dense, loss="sparse_categorical_crossentropy", optimizer="adam", **options):
    model = keras.Sequential([keras.Input((3,)), layer(5, **options), keras.layers.Dense(4)])
    if loss is not None:
        model.compile(optimizer=optimizer, loss=loss)
    return model


def ours(error, *parts):
    """The one message of an error has all these parts, in one line."""
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message, f"'{part}' is not in: {message}"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model with optimizer slots, saved in both formats."""
    folder = tmp_path_factory.mktemp("models")
    model = tiny()
    model.fit(X, Y, epochs=2, verbose=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save(folder / "net.keras")
        model.save(folder / "net.h5")  # after net.keras: saving as .h5 takes the optimizer out of the model's config
    return model, folder


# Models


@pytest.mark.parametrize("name", ["net.keras", "net.h5"])
def test_model_comes_back_with_weights_loss_and_optimizer_state(trained, name):
    model, folder = trained
    loaded = load_model(str(folder / name))
    for ours_, theirs in zip(loaded.trainable_variables, model.trainable_variables, strict=True):
        assert np.array_equal(ours_, theirs)
    assert loaded.loss == model.loss or loaded.loss is keras.losses.sparse_categorical_crossentropy
    assert [np.asarray(v).tolist() for v in loaded.optimizer.variables] == [
        np.asarray(v).tolist() for v in model.optimizer.variables
    ]
    assert compile_problem(loaded) is None


@pytest.mark.parametrize("loss", ["mse", "MAE", "bce"])
def test_h5_keeps_the_short_loss_names_that_keras_cannot_read_back(tmp_path, loss):
    path = str(tmp_path / "short.h5")
    tiny(loss=loss).save(path)
    with pytest.raises(ValueError, match="not a KerasSaveable"):
        keras.saving.load_model(path)
    loaded = load_model(path)
    assert compile_problem(loaded) is None
    assert loaded.loss is keras.losses.get(loss)
    assert isinstance(loaded.optimizer, keras.optimizers.Adam)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "bfloat16"])
def test_reduced_precision_is_accepted(tmp_path, policy):
    path = str(tmp_path / "half.keras")
    keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, dtype=policy)]).save(path)
    assert load_model(path).layers[0].dtype_policy.name == policy


@pytest.mark.parametrize("name", ["none.keras", "none.h5", "no/such/none.keras"])
def test_missing_file(tmp_path, name):
    path = str(tmp_path / name)
    with pytest.raises(ModelError) as error:
        load_model(path)
    ours(error, path, "does not exist")


@pytest.mark.parametrize("path", ["a\0b.keras", "x" * 5000 + ".keras"])
def test_impossible_path(path):
    with pytest.raises(ModelError):
        load_model(path)


def test_folders(tmp_path):
    with pytest.raises(ModelError) as error:
        load_model(str(tmp_path))
    ours(error, tmp_path, "a folder", "model.save('model.keras')")
    saved = tmp_path / "saved"
    saved.mkdir()
    (saved / "saved_model.pb").write_bytes(b"")
    with pytest.raises(ModelError) as error:
        load_model(str(saved))
    ours(error, saved, "SavedModel", "Keras 3", "model.save('model.keras')")


def test_other_extension_and_empty_file(tmp_path):
    other = tmp_path / "net.pt"
    other.write_bytes(b"x")
    with pytest.raises(ModelError) as error:
        load_model(str(other))
    ours(error, other, "'.pt'", ".keras and .h5")
    for name in ("empty.keras", "empty.h5"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(ModelError) as error:
            load_model(str(tmp_path / name))
        ours(error, name, "empty")


@pytest.mark.parametrize("name", ["net.keras", "net.h5"])
@pytest.mark.parametrize("keep", [0.01, 0.5, 0.99])
def test_truncated_file(trained, tmp_path, name, keep):
    whole = (trained[1] / name).read_bytes()
    path = tmp_path / name
    path.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(ModelError) as error:
        load_model(str(path))
    ours(error, path, "damaged", "save it again")


def test_damaged_member_is_found_by_its_checksum(trained, tmp_path):
    whole = bytearray((trained[1] / "net.keras").read_bytes())
    kernel = np.asarray(trained[0].trainable_variables[0])[0].tobytes()
    position = bytes(whole).index(kernel)
    whole[position] ^= 1
    path = tmp_path / "flipped.keras"
    path.write_bytes(whole)
    with pytest.raises(ModelError) as error:
        load_model(str(path))
    ours(error, path, "checksum", "model.weights.h5")


def test_swapped_names_of_the_two_formats(trained, tmp_path):
    shutil.copy(trained[1] / "net.keras", tmp_path / "a.h5")
    shutil.copy(trained[1] / "net.h5", tmp_path / "b.keras")
    with pytest.raises(ModelError) as error:
        load_model(str(tmp_path / "a.h5"))
    ours(error, "a.h5", "rename it to end in .keras")
    with pytest.raises(ModelError) as error:
        load_model(str(tmp_path / "b.keras"))
    ours(error, "b.keras", "rename it to end in .h5")


def test_zip_without_a_model_and_h5_without_a_model(trained, tmp_path):
    with zipfile.ZipFile(tmp_path / "photos.keras", "w") as archive:
        archive.writestr("photo.png", b"x")
    with pytest.raises(ModelError) as error:
        load_model(str(tmp_path / "photos.keras"))
    ours(error, "photos.keras", "no config.json", "photo.png", "model.save")
    trained[0].save_weights(tmp_path / "only.weights.h5")
    with pytest.raises(ModelError) as error:
        load_model(str(tmp_path / "only.weights.h5"))
    ours(error, "only.weights.h5", "only weights", "model.save")


def test_config_that_is_no_model(tmp_path):
    for number, text in enumerate(["{", "[]", "null", "{}", json.dumps({"class_name": "Nothing"})]):
        path = tmp_path / f"{number}.keras"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("config.json", text)
            archive.writestr("metadata.json", "{}")
        with pytest.raises(ModelError) as error:
            load_model(str(path))
        ours(error, path)


@pytest.mark.parametrize("name", ["lambda.keras", "lambda.h5"])
def test_lambda_layer_needs_unsafe(tmp_path, name):
    path = str(tmp_path / name)
    keras.Sequential([keras.Input((3,)), keras.layers.Lambda(lambda t: 2 * t), keras.layers.Dense(2)]).save(path)
    with pytest.raises(ModelError) as error:
        load_model(path)
    ours(error, path, "Lambda", "`safe_mode=False`")
    loaded = load_model(path, safe_mode=False)
    assert np.allclose(loaded.layers[0](np.ones((1, 3))), 2)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_vocabulary_outside_of_the_file_is_no_lambda(tmp_path, suffix):
    inside = str(tmp_path / f"inside{suffix}")
    words = keras.layers.StringLookup(vocabulary=["a", "b"])
    keras.Sequential([keras.Input((1,), dtype="string"), words, keras.layers.Embedding(3, 2)]).save(inside)
    path, secret = str(tmp_path / f"model{suffix}"), tmp_path / "secret.txt"
    secret.write_text("root\n")

    def pointing(config):
        return config.replace('"vocabulary": ["a", "b"]', f'"vocabulary": "{secret}"')

    if suffix == ".keras":
        with zipfile.ZipFile(inside) as archive, zipfile.ZipFile(path, "w") as copy:
            for name in archive.namelist():
                part = archive.read(name)
                copy.writestr(name, pointing(part.decode()) if name == "config.json" else part)
    else:
        shutil.copy(inside, path)
        with h5py.File(path, "r+") as file:
            file.attrs["model_config"] = pointing(file.attrs["model_config"])
    with pytest.raises(ModelError) as error:
        load_model(path)
    ours(error, path, "the vocabulary of a layer from a file outside of it")
    for wrong in ("Lambda", "safe_mode", "Python code"):
        assert wrong not in str(error.value)


def test_an_outside_program_is_no_lambda(tmp_path):
    config = {"module": "keras.layers", "class_name": "TFSMLayer", "config": {"filepath": "/tmp/x", "name": "a"}}
    path = str(tmp_path / "model.keras")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("metadata.json", "{}")
        archive.writestr("model.weights.h5", b"")
    with pytest.raises(ModelError) as error:
        load_model(path)
    ours(error, path, "a SavedModel outside of it")
    assert "safe_mode" not in str(error.value)


@pytest.mark.parametrize("name", ["model.keras", "model.h5", "data.npz", "x.npy"])
def test_a_fifo_is_refused_and_not_waited_for(tmp_path, name):
    path = tmp_path / name
    os.mkfifo(path)
    read = load_model if name.startswith("model") else load_data
    with pytest.raises(SdkerasError, match=rf"{name} is a FIFO, not a file; give"):
        read(f"{path},{path}" if name.endswith("npy") else str(path))


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
    ("what", "name"),
    [
        ({"layer": "MyDense"}, "MyDense"),
        ({"layer": "Registered"}, "Registered"),
        ({"activation": "my_activation"},) * 2,
    ],
    ids=["layer", "registered", "activation"],
)
def test_unregistered_part_of_the_model(user_file, tmp_path, extension, what, name):
    objects = load_custom_objects(user_file)
    path = str(tmp_path / f"custom.{extension}")
    tiny(**{key: objects[value] for key, value in what.items()}).save(path)
    with pytest.raises(ModelError) as error:
        load_model(path)
    ours(error, path, "my_activation" if isinstance(name, dict) else name, "`custom_objects=FILE`")
    before = dict(keras.saving.get_custom_objects())
    loaded = load_model(path, custom_objects=objects)
    assert compile_problem(loaded) is None
    assert loaded(X).shape == (8, 4)
    assert keras.saving.get_custom_objects() == before
    with pytest.raises(ModelError):
        load_model(path)


@pytest.mark.parametrize("extension", ["keras", "h5"])
@pytest.mark.parametrize(
    ("compiled", "name"),
    [
        ({"loss": "my_loss"}, "my_loss"),
        ({"loss": "MyLoss"}, "MyLoss"),
        ({"optimizer": "MySGD"}, "MySGD"),
        ({"metrics": ["my_metric"]}, "my_metric"),
    ],
    ids=["loss function", "loss class", "optimizer", "metric"],
)
def test_unregistered_part_of_compile_only(user_file, tmp_path, extension, compiled, name):
    objects = load_custom_objects(user_file)
    model = tiny(loss=None)
    made = {
        "loss": (lambda: objects[name]() if name == "MyLoss" else objects[name]),
        "optimizer": lambda: objects[name](0.25),
        "metrics": lambda: [objects[name]],
    }
    (part,) = compiled
    model.compile(**{"loss": "mean_squared_error", "optimizer": "sgd", **{part: made[part]()}})
    path = str(tmp_path / f"compiled.{extension}")
    model.save(path)

    bare = load_model(path)
    if (part, extension) == ("metrics", "h5"):
        assert bare.compiled  # Keras looks a metric's name up when it is used, which is never
        return
    assert not bare.compiled
    assert np.array_equal(bare.trainable_variables[0], model.trainable_variables[0])
    problem = compile_problem(bare)
    assert problem is not None
    for text in (path, name, "`custom_objects=FILE`", "`loss`", "`learning_rate`"):
        assert text in problem
    assert "\n" not in problem
    assert "Keras does not know" in problem

    whole = load_model(path, custom_objects=objects)
    assert compile_problem(whole) is None
    assert whole.compiled
    if part == "optimizer":
        assert float(whole.optimizer.learning_rate) == 0.25


def test_lost_optimizer_state_is_told(trained, tmp_path):
    path = tmp_path / "lost.keras"
    with zipfile.ZipFile(trained[1] / "net.keras") as old:
        weights = io.BytesIO(old.read("model.weights.h5"))
        with h5py.File(weights, "r+") as file:
            del file["optimizer/vars/3"]
        with zipfile.ZipFile(path, "w") as new:
            for name in old.namelist():
                new.writestr(name, weights.getvalue() if name == "model.weights.h5" else old.read(name))
    loaded = load_model(str(path))
    assert "optimizer's state" in compile_problem(loaded)
    assert loaded.compiled


def test_keras_file_that_lost_its_optimizer(tmp_path):
    model = tiny(optimizer=keras.optimizers.SGD(0.3))
    model.save(tmp_path / "first.h5")
    model.save(tmp_path / "second.keras")
    assert isinstance(keras.saving.load_model(tmp_path / "second.keras").optimizer, keras.optimizers.RMSprop)
    loaded = load_model(str(tmp_path / "second.keras"))
    assert loaded.optimizer is None
    assert loaded.loss == model.loss
    assert "does not name its optimizer" in compile_problem(loaded)
    assert "`learning_rate`" in compile_problem(loaded)


@pytest.mark.parametrize("extension", ["keras", "h5"])
def test_mixed_precision_keeps_its_optimizer_state_in_a_float32_session(tmp_path, extension):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = tiny(loss="mean_squared_error", optimizer=keras.optimizers.SGD(0.1, momentum=0.9))
        model.fit(X, np.eye(4)[Y], verbose=0)
    finally:
        keras.config.set_dtype_policy("float32")
    path = str(tmp_path / f"mixed.{extension}")
    model.save(path)
    loaded = load_model(path)
    assert keras.config.dtype_policy().name == "float32"
    assert compile_problem(loaded) is None
    for ours_, theirs in zip(loaded.optimizer.variables, model.optimizer.variables, strict=True):
        assert np.array_equal(ours_, theirs)
    assert np.any(loaded.optimizer.inner_optimizer.variables[2])


class OwnCompile(keras.Sequential):
    def compile(self, rate=0.125):
        super().compile(optimizer=keras.optimizers.SGD(rate), loss="mse")


def test_model_with_a_compile_of_its_own(tmp_path):
    model = OwnCompile([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile(rate=0.25)
    path = str(tmp_path / "own.keras")
    model.save(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        loaded = load_model(path, custom_objects={"OwnCompile": OwnCompile})
    assert compile_problem(loaded) is None
    assert float(loaded.optimizer.learning_rate) == 0.25
    assert loaded.loss == "mse"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite(tmp_path, value):
    model = tiny()
    kernel = np.asarray(model.layers[1].kernel).copy()
    kernel[2, 1] = value
    model.layers[1].kernel.assign(kernel)
    path = str(tmp_path / "diverged.keras")
    model.save(path)
    with pytest.raises(ModelError) as error:
        load_model(path)
    ours(error, path, f"{model.layers[1].name}/kernel", "1 of 20", "NaN", "earlier checkpoint")


def test_weights_and_slots_that_are_not_finite_in_other_places(tmp_path):
    model = tiny()
    model.optimizer.build(model.trainable_variables)
    model.optimizer.variables[3].assign(np.full(model.optimizer.variables[3].shape, np.nan))
    path = str(tmp_path / "slot.keras")
    model.save(path)
    with pytest.raises(ModelError) as error:
        load_model(path)
    ours(error, path, "optimizer variable", f"{model.layers[0].name}_kernel_velocity")

    half = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, dtype="bfloat16")])
    half.layers[0].bias.assign([0, np.inf, 0, 0])
    path = str(tmp_path / "half.keras")
    half.save(path)
    with pytest.raises(ModelError) as error:
        load_model(path)
    ours(error, path, "bias", "1 of 4")


@pytest.mark.filterwarnings("ignore:Layer InputLayer does not have a `quantize`")
def test_quantised_model(tmp_path):
    model = tiny(loss=None)
    model.quantize("int8")
    path = str(tmp_path / "int8.keras")
    model.save(path)
    with pytest.raises(ModelError) as error:
        load_model(path)
    ours(error, path, "quantised", model.layers[0].name, "before quantize()")


def test_model_without_trainable_parameters(tmp_path):
    model = tiny()
    model.trainable = False
    path = str(tmp_path / "frozen.keras")
    model.save(path)
    with pytest.raises(ModelError) as error:
        load_model(path)
    ours(error, path, "no trainable parameters", "4 variables", "trainable = True")


@pytest.mark.filterwarnings("ignore:You are saving a model that has not yet been built")
def test_model_that_was_never_built(tmp_path):
    path = str(tmp_path / "unbuilt.keras")
    keras.Sequential([keras.layers.Dense(3)]).save(path)
    with pytest.raises(ModelError) as error:
        load_model(path)
    ours(error, path, "before it was built", "save it again")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("import keras\n1 / 0\n", "ZeroDivisionError: division by zero"),
        ("def broken(:\n", "SyntaxError"),
        ("import sys\nsys.exit('stop here')\n", "SystemExit: stop here"),
        ("import no_such_module_at_all\n", "no_such_module_at_all"),
    ],
)
def test_custom_objects_that_fail(tmp_path, text, part):
    path = tmp_path / "bad.py"
    path.write_text(text)
    before = list(sys.path)
    with pytest.raises(ModelError) as error:
        load_custom_objects(str(path))
    ours(error, path, part, "correct")
    assert sys.path == before


def test_custom_objects_that_register_and_then_fail_are_not_registered(tmp_path):
    path = tmp_path / "half.py"
    path.write_text(USER_CODE.replace("from helper_of_mine import scale", "scale = 1") + "\nraise OSError('full')\n")
    with pytest.raises(ModelError):
        load_custom_objects(str(path))
    assert "mine>Registered" not in keras.saving.get_custom_objects()


def test_custom_objects_that_are_no_python_file(tmp_path):
    with pytest.raises(ModelError) as error:
        load_custom_objects(str(tmp_path / "none.py"))
    ours(error, "none.py", "`custom_objects`", "not a file")
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(ModelError) as error:
        load_custom_objects(str(tmp_path / "a.txt"))
    ours(error, "a.txt", ".py")


# Data


def saved(tmp_path, name="data.npz", **arrays):
    path = tmp_path / name
    np.savez(path, **arrays)
    return str(path)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("names", [("x", "y"), ("x_train", "y_train")])
@pytest.mark.parametrize("weighted", [False, True])
def test_npz(tmp_path, names, weighted, compressed):
    arrays = {**dict(zip(names, (X.astype(np.float64), Y), strict=True)), "other": np.array(["text"])}
    if weighted:
        arrays["sample_weight"] = np.arange(8)
    path = str(tmp_path / "data.npz")
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    data = load_data(path)
    assert len(data) == 2 + weighted
    assert np.array_equal(data[0], X)
    assert data[0].dtype == np.float64
    assert np.array_equal(data[1], Y)
    if weighted:
        assert np.array_equal(data[2], np.arange(8))


def test_npz_with_several_inputs(tmp_path):
    x, _ = load_data(saved(tmp_path, **{"x/left": X, "x/right": X + 1, "y": Y}))
    assert set(x) == {"left", "right"}
    assert np.array_equal(x["right"], X + 1)
    with pytest.raises(DataError) as error:
        load_data(saved(tmp_path, **{"x/left": X, "x/right": X[1:], "y": Y}))
    ours(error, "data.npz", "x/right 7", "x/left 8")


def test_npy_pair(tmp_path):
    paths = [str(tmp_path / name) for name in ("a.npy", "b.npy", "c.npy")]
    for path, array in zip(paths, (X, Y, np.ones(8)), strict=True):
        np.save(path, array)
    x, y = load_data(",".join(paths[:2]))
    assert np.array_equal(x, X)
    assert np.array_equal(y, Y)
    assert len(load_data(",".join(paths))) == 3
    assert len(load_data(paths[0])) == 1  # for a model that takes no targets
    for wrong in (",".join([*paths, paths[0]]), f"{tmp_path}/x.csv,{paths[1]}"):
        with pytest.raises(DataError) as error:
            load_data(wrong)
        ours(error, wrong, "X.npy,Y.npy")
    with pytest.raises(DataError) as error:
        load_data(f"{paths[0]},{tmp_path}/none.npy")
    ours(error, "none.npy", "does not exist")


@pytest.mark.parametrize("spec", ["none.npz", "no/folder", "none.csv", "x" * 5000])
def test_missing_data(spec):
    with pytest.raises(DataError) as error:
        load_data(spec)
    ours(error, spec[:10])


def test_data_of_no_known_kind(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("1,2\n")
    with pytest.raises(DataError) as error:
        load_data(str(path))
    ours(error, path, "no kind", ".npz", "tf.data.Dataset.save", "module:callable")


def test_wrong_keys(tmp_path):
    path = saved(tmp_path, features=X, labels=Y)
    with pytest.raises(DataError) as error:
        load_data(path)
    ours(error, path, "features, labels", "x and y", "x_train and y_train")
    path = saved(tmp_path, x=X, labels=Y)
    with pytest.raises(DataError) as error:
        load_data(path)
    ours(error, path, "holds the arrays labels, x,")
    assert len(load_data(saved(tmp_path, x=X))) == 1  # for a model that takes no targets
    path = saved(tmp_path)
    with pytest.raises(DataError) as error:
        load_data(path)
    ours(error, path, "(none)")


def test_unequal_lengths_and_no_samples(tmp_path):
    path = saved(tmp_path, x=X, y=Y[:7], sample_weight=np.ones(8))
    with pytest.raises(DataError) as error:
        load_data(path)
    ours(error, path, "x 8, y 7, sample_weight 8", "first axes")
    path = saved(tmp_path, x=X[:0], y=Y[:0])
    with pytest.raises(DataError) as error:
        load_data(path)
    ours(error, path, "0 samples")
    path = saved(tmp_path, x=np.float32(1), y=Y)
    with pytest.raises(DataError) as error:
        load_data(path)
    ours(error, path, "x is a single number")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["x", "y", "sample_weight"])
def test_values_that_are_not_finite(tmp_path, name, value):
    arrays = {"x": X.copy(), "y": Y.astype(float), "sample_weight": np.ones(8)}
    arrays[name][5] = value
    path = saved(tmp_path, **arrays)
    with pytest.raises(DataError) as error:
        load_data(path)
    ours(error, path, f"{name} is {value}", "[5, 0]" if name == "x" else "[5]", "remove or replace")


def test_weights_that_are_all_zero(tmp_path):
    path = saved(tmp_path, x=X, y=Y, sample_weight=np.zeros(8))
    with pytest.raises(DataError) as error:
        load_data(path)
    ours(error, path, "every sample_weight is 0")


@pytest.mark.parametrize(
    "bad",
    [
        X.astype(complex),
        X.astype(np.complex64),
        np.zeros(8, "datetime64[s]"),
    ],
)
def test_dtypes_that_are_no_numbers(tmp_path, bad):
    for arrays, name in (({"x": bad, "y": Y}, "x"), ({"x": X, "y": bad}, "y")):
        path = saved(tmp_path, **arrays)
        with pytest.raises(DataError) as error:
            load_data(path)
        ours(error, path, f"{name}: the data hold an array of dtype {bad.dtype}", "numbers")


class Bomb:
    """Says so when it is unpickled."""

    exploded = False

    def __reduce__(self):
        return (_explode, ())


def _explode():
    Bomb.exploded = True


def test_nothing_is_unpickled(tmp_path):
    objects = np.empty(8, object)
    objects[:] = [Bomb() for _ in range(8)]
    path = saved(tmp_path, x=objects, y=Y)
    with pytest.raises(DataError) as error:
        load_data(path)
    ours(error, path, "'x'", "never unpickled", "numeric array")
    np.save(tmp_path / "x.npy", objects)
    np.save(tmp_path / "y.npy", Y)
    with pytest.raises(DataError) as error:
        load_data(f"{tmp_path}/x.npy,{tmp_path}/y.npy")
    ours(error, "x.npy", "never unpickled")
    for name in ("p.npz", "p.npy"):
        (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
    for spec in (f"{tmp_path}/p.npz", f"{tmp_path}/p.npy,{tmp_path}/y.npy"):
        with pytest.raises(DataError) as error:
            load_data(spec)
        ours(error, "p.np", "never unpickled", "write it again")
    assert not Bomb.exploded
    pickle.loads(pickle.dumps(Bomb()))
    assert Bomb.exploded, "the bomb itself does not work, so the test shows nothing"
    Bomb.exploded = False


def test_members_that_are_no_arrays_and_swapped_kinds(tmp_path):
    path = tmp_path / "text.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x", b"plain")
        archive.writestr("y", b"plain")
    with pytest.raises(DataError) as error:
        load_data(str(path))
    ours(error, path)
    np.save(tmp_path / "a.npy", X)
    shutil.copy(tmp_path / "a.npy", tmp_path / "a.npz")
    with pytest.raises(DataError) as error:
        load_data(str(tmp_path / "a.npz"))
    ours(error, "a.npz", "write it again")
    saved(tmp_path, "b.npz", x=X, y=Y)
    shutil.copy(tmp_path / "b.npz", tmp_path / "b.npy")
    with pytest.raises(DataError) as error:
        load_data(f"{tmp_path}/b.npy,{tmp_path}/a.npy")
    ours(error, "b.npy", "write it again")


def dataset():
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(3)


@pytest.mark.parametrize("compression", [None, "GZIP"])
def test_dataset_folder(tmp_path, compression):
    dataset().save(str(tmp_path / "ds"), compression=compression)
    loaded = load_data(str(tmp_path / "ds"))
    batches = [y for _, y in loaded.as_numpy_iterator()]
    assert [len(batch) for batch in batches] == [3, 3, 2]
    assert np.array_equal(np.concatenate(batches), Y)


def test_dataset_folder_of_many_shards_is_read_shard_by_shard(tmp_path):
    numbers = tf.data.Dataset.range(40).batch(2)
    numbers.save(str(tmp_path / "ds"), shard_func=lambda batch: tf.cast(batch[0] // 2 % 4, tf.int64))
    read = [int(batch[0]) // 2 % 4 for batch in load_data(str(tmp_path / "ds")).as_numpy_iterator()]
    assert read == sorted(read)


def test_dataset_folders_that_cannot_be_read(tmp_path):
    (tmp_path / "plain").mkdir()
    with pytest.raises(DataError) as error:
        load_data(str(tmp_path / "plain"))
    ours(error, tmp_path / "plain", "dataset_spec.pb", "dataset.save(FOLDER)")

    list(dataset().snapshot(str(tmp_path / "cache")))
    with pytest.raises(DataError) as error:
        load_data(str(tmp_path / "cache"))
    ours(error, f"folder '{tmp_path / 'cache'}'", "Dataset.snapshot()", "dataset.save('cache-saved')")

    dataset().take(0).save(str(tmp_path / "nothing"))
    with pytest.raises(DataError) as error:
        load_data(str(tmp_path / "nothing"))
    ours(error, tmp_path / "nothing", "0 elements")

    for damage in ("spec", "metadata", "shard"):
        folder = tmp_path / damage
        dataset().save(str(folder))
        if damage == "spec":
            (folder / "dataset_spec.pb").write_bytes(b"\xff\xfe nonsense")
        elif damage == "metadata":
            (folder / "snapshot.metadata").unlink()
        else:
            (shard,) = folder.glob("*/*/*.snapshot")
            shard.write_bytes(shard.read_bytes()[:20])
        with pytest.raises(DataError) as error:
            load_data(str(folder))
        ours(error, folder, "dataset.save(FOLDER)")


USER_DATA = """
import numpy as np
import helper_for_data

def arrays():
    return np.ones((4, 3)), np.arange(4)

def weighted():
    return [np.ones((4, 3)), np.arange(4), np.ones(4)]

def unweighted():
    return np.ones((4, 3)), np.arange(4), None

def several():
    return {"a": np.ones((4, 3)), "b": np.ones((4, 1))}, np.arange(4)

def named():
    return {"x": np.ones((4, 3)), "y": np.arange(4)}

def dataset():
    import tensorflow as tf
    return tf.data.Dataset.from_tensor_slices(arrays()).batch(2)

def sequence():
    import keras
    class Batches(keras.utils.PyDataset):
        def __len__(self): return 2
        def __getitem__(self, index): return arrays()
    return Batches()

def tensors():
    import tensorflow as tf
    return tf.ones((4, 3)), tf.range(4)

def nothing(): pass
def text(): return "text"
def four(): return (np.ones((4, 3)),) * 4
def nan(): return np.full((4, 3), np.nan), np.arange(4)
def missing_keys(): return {"a": 1}
def ragged(): return [[1, 2], [3]], np.arange(2)
def fails(): raise KeyError("no such column")
def quits(): raise SystemExit(3)
def needs(argument): return argument
def both(): return (np.ones((4, 3)), np.arange(4)), (np.ones((2, 3)), np.arange(2))
def listed(): return [[np.ones((4, 3)), np.arange(4)], [np.ones((2, 3)), np.arange(2)]]
def equal(): return (np.ones((4, 3)), np.arange(4)), (np.ones((4, 3)), np.arange(4))
def crossed(): return (np.ones((4, 3)), np.arange(2)), (np.ones((4, 3)), np.arange(2))
def weighed(): return (np.ones((4, 3)), np.arange(4), np.ones(4)), (np.ones((2, 3)), np.arange(2))
class Group:
    @staticmethod
    def arrays(): return arrays()
constant = 3
"""


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    (tmp_path / "helper_for_data.py").write_text("")
    (tmp_path / "my_data.py").write_text(USER_DATA)
    (tmp_path / "broken_data.py").write_text("import not_there_at_all\n")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("name", "length"),
    [
        ("arrays", 2),
        ("weighted", 3),
        ("unweighted", 2),
        ("several", 2),
        ("named", 2),
        ("tensors", 2),
        ("Group.arrays", 2),
    ],
)
def test_callable_that_returns_arrays(user_module, name, length):
    before = list(sys.path)
    data = load_data(f"my_data:{name}")
    assert isinstance(data, tuple)
    assert len(data) == length
    assert all(isinstance(part, np.ndarray) for part in data[1:])
    assert len(data[1]) == 4
    assert sys.path == before
    assert not {"my_data", "helper_for_data"} & set(sys.modules)


@pytest.mark.parametrize("name", ["both", "listed"])
def test_of_training_and_test_data_the_training_pair_is_taken_and_told(user_module, name):
    (x, y), note = load_training_data(f"my_data:{name}")
    assert (x.shape, y.shape) == ((4, 3), (4,))
    assert "two pairs of 4 and 2 samples; the first" in note
    assert load_training_data("my_data:arrays")[1] == ""
    with pytest.raises(DataError) as error:  # of other data nobody knows which pair is meant
        load_data(f"my_data:{name}")
    ours(error, "different numbers of samples", "(x_train, y_train)")


def test_pairs_that_may_be_two_inputs_stay_these(user_module):
    (x, y), note = load_training_data("my_data:equal")
    assert note == ""
    assert [len(part) for part in (x, y)] == [2, 2]
    with pytest.raises(DataError) as error:
        check_data(tiny(), x, y)
    ours(error, "the data have 2", "If they are ((x_train, y_train), (x_test, y_test)), give one")
    with pytest.raises(DataError) as error:
        check_data(tiny(), (x[0], x[0]), y[0])
    assert "x_train" not in str(error.value)
    for name in ("crossed", "weighed"):
        with pytest.raises(DataError, match="different numbers"):
            load_training_data(f"my_data:{name}")


def test_callable_that_returns_a_dataset(user_module):
    assert isinstance(load_data("my_data:dataset"), tf.data.Dataset)
    assert isinstance(load_data("my_data:sequence"), keras.utils.PyDataset)


def test_callable_of_an_installed_module():
    images, _ = load_data("sdkeras.datasets:load_digits")
    assert images.shape == (1797, 8, 8)
    assert "sdkeras.datasets" in sys.modules


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("my_data:fails", ["KeyError: 'no such column'"]),
        ("my_data:quits", ["SystemExit: 3"]),
        ("my_data:needs", ["TypeError", "argument"]),
        ("my_data:nothing", ["returned None", "must return x, (x, y)"]),
        ("my_data:text", ["returned a str"]),
        ("my_data:four", ["tuple of length 4"]),
        ("my_data:nan", ["x is nan at index [0, 0]"]),
        ("my_data:missing_keys", ["arrays a,"]),
        ("my_data:ragged", ["x"]),
        ("my_data:constant", ["'constant' is no function but of type int"]),
        ("my_data:absent", ["has no 'absent'", "my_data.py"]),
        ("absent_module:f", ["no module 'absent_module'", "MODULE:CALLABLE"]),
        ("absent_module.part:f", ["no module 'absent_module.part'"]),
        ("broken_data:f", ["not_there_at_all"]),
    ],
)
def test_callable_that_fails(user_module, spec, parts):
    before = list(sys.path)
    with pytest.raises(DataError) as error:
        load_data(spec)
    ours(error, spec, *parts)
    assert sys.path == before


# Data against the model


def test_data_that_fit():
    model = tiny()
    check_data(model, X, Y)
    check_data(model, X.astype(np.float64), Y[:, None], np.ones(8))
    check_data(model, X, Y.astype(float))
    check_data(model, X.tolist(), Y.tolist())
    check_data(tiny(loss=None), X, np.zeros((5, 5)))
    check_data(tiny(loss=lambda y, p: keras.ops.sum(p)), X, Y[:, None, None] + 100)


class Counting(keras.layers.Layer):
    """Counts its calls and penalises its input."""

    def build(self, shape):
        self.calls = self.add_weight(initializer="zeros", trainable=False, name="calls")

    def call(self, inputs):
        self.calls.assign_add(1.0)
        self.add_loss(keras.ops.sum(inputs))
        return inputs


def test_check_leaves_the_model_as_it_was():
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.BatchNormalization(),
            Counting(),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(4),
        ]
    )
    model.compile(loss="sparse_categorical_crossentropy")
    before = [np.asarray(v).copy() for v in model.variables]
    check_data(model, X, Y)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.variables, strict=True))
    assert not model.losses


def test_input_of_the_wrong_shape():
    model = keras.Sequential([keras.Input((8, 8)), keras.layers.Flatten(), keras.layers.Dense(4)])
    with pytest.raises(DataError) as error:
        check_data(model, np.zeros((10, 64)), np.zeros(10))
    ours(error, "(None, 8, 8)", "x of shape (10, 64)", "x.reshape((10, 8, 8))")
    with pytest.raises(DataError) as error:
        check_data(model, np.zeros((10, 63)), np.zeros(10))
    ours(error, "(None, 8, 8)", "(10, 63)", "trained on")
    for fits in (np.zeros((10, 8, 8)), np.zeros((10, 8, 8, 1))):
        check_data(model, fits, np.zeros(10))


def test_axes_that_keras_adds_and_unknown_axes():
    column = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    column.compile(loss="mse")
    check_data(column, np.zeros(6), np.zeros(6))
    check_data(column, np.zeros((6, 1)), np.zeros((6, 1)))
    sequence = keras.Sequential([keras.Input((None, 2)), keras.layers.GlobalAveragePooling1D(), keras.layers.Dense(1)])
    check_data(sequence, np.zeros((6, 5, 2)), np.zeros(6))
    with pytest.raises(DataError) as error:
        check_data(sequence, np.zeros((6, 5, 3)), np.zeros(6))
    ours(error, "(None, None, 2)", "(6, 5, 3)")
    fixed = keras.Sequential([keras.Input(batch_shape=(4, 3)), keras.layers.Dense(1)])
    check_data(fixed, X, Y)
    stateful = keras.Sequential([keras.Input(batch_shape=(4, 3, 1)), keras.layers.LSTM(2, stateful=True)])
    check_data(stateful, X, Y)


def two_inputs(as_dict):
    a, b = keras.Input((3,), name="a"), keras.Input((2,), name="b")
    outputs = keras.layers.Dense(4)(keras.layers.Concatenate()([a, b]))
    model = keras.Model({"a": a, "b": b} if as_dict else [a, b], outputs)
    model.compile(loss="sparse_categorical_crossentropy")
    return model


@pytest.mark.parametrize("as_dict", [False, True])
def test_two_inputs(as_dict):
    model = two_inputs(as_dict)
    other = np.ones((8, 2))
    check_data(model, {"b": other, "a": X}, Y)
    check_data(model, (X, other), Y)
    with pytest.raises(DataError) as error:
        check_data(model, X, Y)
    ours(error, "2 inputs", "a (None, 3)", "b (None, 2)", "data have 1")
    with pytest.raises(DataError) as error:
        check_data(model, {"a": X, "c": other}, Y)
    ours(error, "named a, b", "have a, c")
    with pytest.raises(DataError) as error:
        check_data(model, {"a": X, "b": X}, Y)
    ours(error, "input 'b'", "(None, 2)", "(8, 3)")
    with pytest.raises(DataError) as error:
        check_data(model, (other, X), Y)
    ours(error, "input 'a'")


def test_dict_keys_need_not_be_the_names_of_the_inputs():
    a, b = keras.Input((3,), name="a"), keras.Input((2,), name="b")
    model = keras.Model({"left": a, "right": b}, keras.layers.Concatenate()([a, b]))
    check_data(model, {"left": X, "right": np.ones((8, 2))}, Y)
    with pytest.raises(DataError) as error:
        check_data(model, {"a": X, "b": np.ones((8, 2))}, Y)
    ours(error, "named left, right", "have a, b")


def test_more_inputs_than_a_dict_model_has():
    with pytest.raises(DataError) as error:
        check_data(two_inputs(True), {"a": X, "aa": X, "b": np.ones((8, 2))}, Y)
    ours(error, "named a, b", "have a, aa, b")


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(4)

    def call(self, inputs):
        return self.dense(inputs)


class WithoutCall(keras.Model):
    pass


def test_subclassed_models():
    model = Subclassed()
    model.compile(loss="sparse_categorical_crossentropy")
    check_data(model, np.zeros((5, 9)), np.zeros(5))  # not built: nothing is known
    assert not model.built
    model(X)
    check_data(model, X, Y)
    with pytest.raises(DataError) as error:
        check_data(model, np.zeros((8, 7)), Y)
    ours(error, "cannot be called on the data", "(8, 7)")
    with pytest.raises(DataError) as error:
        check_data(model, X, Y + 1)
    ours(error, "label 4", "sample 3", "4 classes", "0 to 3")
    uncalled = WithoutCall()
    uncalled.built = True
    check_data(uncalled, X, Y)


SPARSE = keras.losses.SparseCategoricalCrossentropy


@pytest.mark.parametrize(
    "loss",
    [
        "sparse_categorical_crossentropy",
        keras.losses.sparse_categorical_crossentropy,
        SPARSE(from_logits=True),
        {"output": SPARSE()},
        [SPARSE()],
    ],
)
def test_labels_out_of_range(loss):
    layers = [keras.Input((3,)), keras.layers.Dense(4, name="output")]
    model = keras.Sequential(layers)
    model.compile(loss=loss)
    for wrong, label, sample in ((Y + 1, 4, 3), (Y - 1, -1, 0), (Y + 0.5, 0.5, 0)):
        with pytest.raises(DataError) as error:
            check_data(model, X, wrong)
        ours(error, f"label {label} (sample {sample})", "4 classes", "0 to 3")
    check_data(model, X, Y)


def test_ignored_class_may_be_out_of_range():
    check_data(tiny(loss=SPARSE(ignore_class=-1)), X, np.where(Y == 2, -1, Y))
    with pytest.raises(DataError) as error:
        check_data(tiny(loss=SPARSE(ignore_class=-1)), X, np.where(Y == 2, -2, Y))
    ours(error, "label -2 (sample 2)")


def test_targets_of_the_wrong_shape():
    one_hot = np.eye(4)[Y]
    with pytest.raises(DataError) as error:
        check_data(tiny(), X, one_hot)
    ours(error, "(None, 4)", "(8, 4)", "categorical_crossentropy", "argmax")
    with pytest.raises(DataError) as error:
        check_data(tiny(loss="categorical_crossentropy"), X, Y)
    ours(error, "(None, 4)", "(8,)", "sparse_categorical_crossentropy")
    with pytest.raises(DataError) as error:
        check_data(tiny(loss=keras.losses.MeanSquaredError()), X, np.zeros((8, 5)))
    ours(error, "(None, 4)", "(8, 5)", "agree")
    check_data(tiny(loss="mse"), X, one_hot)


def test_sample_weights_of_the_wrong_length():
    with pytest.raises(DataError) as error:
        check_data(tiny(), X, Y, np.ones(7))
    ours(error, "sample_weight", "(7,)", "8 samples")


@pytest.mark.parametrize("as_dict", [False, True])
def test_two_outputs(as_dict):
    inputs = keras.Input((3,))
    first, second = keras.layers.Dense(4, name="p")(inputs), keras.layers.Dense(1, name="q")(inputs)
    model = keras.Model(inputs, {"p": first, "q": second} if as_dict else [first, second])
    sparse = "sparse_categorical_crossentropy"
    model.compile(loss={"p": sparse, "q": "mse"} if as_dict else [sparse, "mse"])
    good = {"p": Y, "q": np.zeros(8)} if as_dict else (Y, np.zeros(8))
    check_data(model, X, good)
    bad = {"p": Y + 1, "q": np.zeros(8)} if as_dict else (Y + 1, np.zeros(8))
    with pytest.raises(DataError) as error:
        check_data(model, X, bad)
    ours(error, "y of output 'p'", "label 4")
    with pytest.raises(DataError) as error:
        check_data(model, X, Y)
    ours(error, "2 outputs (p, q)", "shape (8,)", "one array of targets per output")


# Whatever is in a file, the error is ours


QUIET = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def only_ours(load, spec):
    message = ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            load(str(spec))
    except SdkerasError as error:
        message = str(error)
    assert "\n" not in message


@QUIET
@given(st.data())
@pytest.mark.parametrize("name", ["net.keras", "net.h5"])
def test_fuzzed_models(trained, tmp_path, name, data):
    whole = (trained[1] / name).read_bytes()
    keep = data.draw(st.integers(0, len(whole) - 1))
    path = tmp_path / name
    path.write_bytes(whole[:keep])
    only_ours(load_model, path)
    path.write_bytes(data.draw(st.binary(max_size=200)))
    only_ours(load_model, path)
    path.write_bytes(whole[: min(keep, 8)] + data.draw(st.binary(max_size=200)))
    only_ours(load_model, path)


@QUIET
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda s: st.lists(s, max_size=3)))
def test_fuzzed_configurations(trained, tmp_path, junk):
    """Well-formed archives whose configuration is not what Keras writes."""
    with zipfile.ZipFile(trained[1] / "net.keras") as old:
        config = json.loads(old.read("config.json"))
        weights = old.read("model.weights.h5")
    for place in (("config",), ("compile_config",), ("class_name",), ("config", "layers"), ("compile_config", "loss")):
        changed = json.loads(json.dumps(config))
        inner = changed
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = junk
        with zipfile.ZipFile(tmp_path / "junk.keras", "w") as new:
            new.writestr("config.json", json.dumps(changed))
            new.writestr("metadata.json", "{}")
            new.writestr("model.weights.h5", weights)
        only_ours(load_model, tmp_path / "junk.keras")


@QUIET
@given(st.data())
def test_fuzzed_data(tmp_path, data):
    stream = io.BytesIO()
    np.savez_compressed(stream, x=X, y=Y)
    whole = bytearray(stream.getvalue())
    position = data.draw(st.integers(0, len(whole) - 1))
    path = tmp_path / "data.npz"
    path.write_bytes(whole[:position])
    only_ours(load_data, path)
    whole[position] ^= data.draw(st.integers(1, 255))
    path.write_bytes(whole)
    only_ours(load_data, path)
    noise = data.draw(st.binary(max_size=100))
    path.write_bytes(noise)
    only_ours(load_data, path)
    npy = tmp_path / "a.npy"
    for start in (b"", b"\x93NUMPY\x01\x00", b"\x93NUMPY\x02\x00"):
        npy.write_bytes(start + noise)
        only_ours(load_data, f"{npy},{npy}")


@QUIET
@given(st.text(max_size=30))
def test_fuzzed_names(text):
    only_ours(load_model, text)
    only_ours(load_model, f"{text}.keras")
    only_ours(load_data, f"{text}.npz")
    only_ours(load_data, f"{text}.npy")
    only_ours(load_custom_objects, text)
