"""Saved models come back as they were, and what is wrong with a file is said in one line."""

import json
import os
import re
import shutil
import warnings
import zipfile

import h5py
import keras
import numpy as np
import pytest

from file_checks import X, Y, refused, saved, tiny, with_weights
from sdkeras.errors import SdkerasError
from sdkeras.files.dataset import load_data
from sdkeras.files.models import compile_problem, load_model


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
    path = saved(tiny(loss=loss), tmp_path / "short.h5")
    with pytest.raises(ValueError, match="not a KerasSaveable"):
        keras.saving.load_model(path)
    loaded = load_model(path)
    assert compile_problem(loaded) is None
    assert loaded.loss is keras.losses.get(loss)
    assert isinstance(loaded.optimizer, keras.optimizers.Adam)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "bfloat16"])
def test_reduced_precision_is_accepted(tmp_path, policy):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, dtype=policy)])
    assert load_model(saved(model, tmp_path / "half.keras")).layers[0].dtype_policy.name == policy


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("none.keras", "does not exist"),
        ("none.h5", "does not exist"),
        ("no/such/none.keras", "does not exist"),
        ("a\0b.keras", ""),
        ("x" * 5000 + ".keras", "cannot be opened"),
    ],
)
def test_path_of_no_file(path, says):
    refused(load_model, path, says=(repr(path), says))


def test_folders(tmp_path):
    refused(load_model, tmp_path, says=(tmp_path, "a folder", "model.save('model.keras')"))
    (tmp_path / "saved_model.pb").write_bytes(b"")
    refused(load_model, tmp_path, says=(tmp_path, "SavedModel", "Keras 3", "model.save('model.keras')"))


def test_other_extension_and_empty_file(tmp_path):
    for name, content, says in (
        ("net.pt", b"x", ("'.pt'", ".keras and .h5")),
        ("empty.keras", b"", ("empty",)),
        ("empty.h5", b"", ("empty",)),
    ):
        (tmp_path / name).write_bytes(content)
        refused(load_model, tmp_path / name, says=(name, *says))


@pytest.mark.parametrize("name", ["net.keras", "net.h5"])
@pytest.mark.parametrize("keep", [0.01, 0.5, 0.99])
def test_truncated_file(trained, tmp_path, name, keep):
    whole = (trained[1] / name).read_bytes()
    path = tmp_path / name
    path.write_bytes(whole[: int(len(whole) * keep)])
    refused(load_model, path, says=(path, "damaged", "save it again"))


def test_damaged_member_is_found_by_its_checksum(trained, tmp_path):
    whole = bytearray((trained[1] / "net.keras").read_bytes())
    kernel = np.asarray(trained[0].trainable_variables[0])[0].tobytes()
    position = bytes(whole).index(kernel)
    whole[position] ^= 1
    path = tmp_path / "flipped.keras"
    path.write_bytes(whole)
    refused(load_model, path, says=(path, "checksum", "model.weights.h5"))


@pytest.mark.parametrize(("kind", "other"), [(".keras", ".h5"), (".h5", ".keras")])
def test_swapped_names_of_the_two_formats(trained, tmp_path, kind, other):
    shutil.copy(trained[1] / f"net{kind}", tmp_path / f"a{other}")
    refused(load_model, tmp_path / f"a{other}", says=(f"a{other}", f"rename it to end in {kind}"))


def test_zip_without_a_model_and_h5_without_a_model(trained, tmp_path):
    with zipfile.ZipFile(tmp_path / "photos.keras", "w") as archive:
        archive.writestr("photo.png", b"x")
    refused(load_model, tmp_path / "photos.keras", says=("photos.keras", "no config.json", "photo.png", "model.save"))
    trained[0].save_weights(tmp_path / "only.weights.h5")
    refused(load_model, tmp_path / "only.weights.h5", says=("only.weights.h5", "only weights", "model.save"))


def test_config_that_is_no_model(tmp_path):
    for number, text in enumerate(["{", "[]", "null", "{}", json.dumps({"class_name": "Nothing"})]):
        path = tmp_path / f"{number}.keras"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("config.json", text)
            archive.writestr("metadata.json", "{}")
        refused(load_model, path, says=(path,))


@pytest.mark.parametrize("name", ["lambda.keras", "lambda.h5"])
def test_lambda_layer_needs_unsafe(tmp_path, name):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Lambda(lambda t: 2 * t), keras.layers.Dense(2)])
    path = saved(model, tmp_path / name)
    refused(load_model, path, says=(path, "Lambda", "`safe_mode=False`"))
    loaded = load_model(path, safe_mode=False)
    assert np.allclose(loaded.layers[0](np.ones((1, 3))), 2)


def test_a_vocabulary_outside_of_the_file_is_no_lambda(tmp_path):
    path, secret = tmp_path / "model.h5", tmp_path / "secret.txt"
    words = keras.layers.StringLookup(vocabulary=["a", "b"])
    keras.Sequential([keras.Input((1,), dtype="string"), words, keras.layers.Embedding(3, 2)]).save(path)
    secret.write_text("root\n")
    with h5py.File(path, "r+") as file:
        config = file.attrs["model_config"]
        file.attrs["model_config"] = config.replace('"vocabulary": ["a", "b"]', f'"vocabulary": "{secret}"')
    message = refused(load_model, path, says=(path, "the vocabulary of a layer from a file outside of it"))
    assert not re.search("Lambda|safe_mode|Python code", message)


@pytest.mark.parametrize("name", ["model.keras", "model.h5", "data.npz", "x.npy"])
def test_a_fifo_is_refused_and_not_waited_for(tmp_path, name):
    path = tmp_path / name
    os.mkfifo(path)
    read = load_model if name.startswith("model") else load_data
    with pytest.raises(SdkerasError, match=rf"{name} is a FIFO, not a file; give"):
        read(f"{path},{path}" if name.endswith("npy") else str(path))


def test_lost_optimizer_state_is_told(trained, tmp_path):
    def lose(file):
        del file["optimizer/vars/3"]

    loaded = load_model(str(with_weights(trained[1] / "net.keras", tmp_path / "lost.keras", lose)))
    assert "optimizer's state" in compile_problem(loaded)
    assert loaded.compiled


def test_keras_file_that_lost_its_optimizer(tmp_path):
    model = tiny(optimizer=keras.optimizers.SGD(0.3))
    model.save(tmp_path / "first.h5")
    path = saved(model, tmp_path / "second.keras")
    assert isinstance(keras.saving.load_model(path).optimizer, keras.optimizers.RMSprop)
    loaded = load_model(path)
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
    loaded = load_model(saved(model, tmp_path / f"mixed.{extension}"))
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
    path = saved(model, tmp_path / "own.keras")
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
    path = saved(model, tmp_path / "diverged.keras")
    refused(load_model, path, says=(path, f"{model.layers[1].name}/kernel", "1 of 20", "NaN", "earlier checkpoint"))


def with_nan_in_a_slot():
    model = tiny()
    model.optimizer.build(model.trainable_variables)
    model.optimizer.variables[3].assign(np.full(model.optimizer.variables[3].shape, np.nan))
    return model


def with_infinity_in_half_precision():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, dtype="bfloat16")])
    model.layers[0].bias.assign([0, np.inf, 0, 0])
    return model


def quantised():
    model = tiny(loss=None)
    model.quantize("int8")
    return model


def frozen():
    model = tiny()
    model.trainable = False
    return model


def unbuilt():
    return keras.Sequential([keras.layers.Dense(3)])


@pytest.mark.filterwarnings("ignore:Layer InputLayer does not have a `quantize`")
@pytest.mark.filterwarnings("ignore:You are saving a model that has not yet been built")
@pytest.mark.parametrize(
    ("made", "says"),
    [
        (with_nan_in_a_slot, ("optimizer variable", "{0}_kernel_velocity")),
        (with_infinity_in_half_precision, ("bias", "1 of 4")),
        pytest.param(quantised, ("quantised", "{0}", "before quantize()"), marks=pytest.mark.slow),
        (frozen, ("no trainable parameters", "4 variables", "trainable = True")),
        (unbuilt, ("before it was built", "save it again")),
    ],
)
def test_models_that_cannot_be_analysed(tmp_path, made, says):
    model = made()
    path = saved(model, tmp_path / "model.keras")
    refused(load_model, path, says=(path, *(part.format(model.layers[0].name) for part in says)))
