"""Model files made to attack whoever loads them: nothing in them runs, and nothing outside of them is read or written.

The lower bound of Keras in pyproject.toml is the first version with which all of this holds.
"""

import contextlib
import re
import resource
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
from keras.src.saving.serialization_lib import in_safe_mode

from file_checks import refused, rewritten, with_config, with_weights
from sdkeras.errors import ModelError
from sdkeras.files.models import compile_problem, load_model, load_weights

# A .keras file of a few KB must not take more than this; TensorFlow itself has about 3 GB of addresses.
_ADDRESS_SPACE = 12 * 2**30
_ROOM = 8 * 2**30


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An innocent model as .keras and .h5."""
    folder = tmp_path_factory.mktemp("innocent")
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="dense")])
    model.compile("sgd", "mse")
    model.save(folder / "model.keras")
    model.save(folder / "model.h5")
    model.save_weights(folder / "model.weights.h5")
    return folder


def kernel_of(file: h5py.File) -> tuple[Any, str]:
    """The group and name of the first matrix in a file of weights."""
    places: list[str] = []
    file.visititems(lambda name, item: places.append(name) if getattr(item, "ndim", 0) == 2 else None)
    group, _, name = places[0].rpartition("/")
    return file[group], name


def injections(marker: Path) -> dict[str, dict[str, Any]]:
    """Serialised objects that would write the marker if somebody called what they name."""
    touch, unsafe = f"touch {marker}", "enable_unsafe_deserialization"
    objects = {
        "function of a module": ("os", "system", touch, None),
        "class of a module": ("subprocess", "Popen", {"args": ["touch", str(marker)]}, None),
        "builtin": ("builtins", "exec", {"source": f"open({str(marker)!r}, 'w')"}, "exec"),
        "function by name": ("builtins", "function", "os.system", "function"),
        "function that loads code": ("keras.src.utils.python_utils", "func_load", {"code": touch}, None),
        "enabling unsafe loading": ("keras.config", unsafe, {}, unsafe),
    }
    keys = ("module", "class_name", "config", "registered_name")
    return {way: dict(zip(keys, values, strict=True)) for way, values in objects.items()}


@pytest.mark.parametrize("name", sorted(injections(Path("x"))))
@pytest.mark.parametrize("place", ["layer", "activation", "loss", "model"])
def test_no_module_is_injected(files: Path, tmp_path: Path, name: str, place: str) -> None:
    marker = tmp_path / "marker"
    evil = injections(marker)[name]

    def change(config: dict[str, Any]) -> None:
        dense = config["config"]["layers"][1]
        if place == "layer":
            config["config"]["layers"][1] = evil
        elif place == "activation":
            dense["config"]["activation"] = evil
        elif place == "loss":
            config["compile_config"]["loss"] = evil
        else:
            weights = config["compile_config"]
            config.clear()
            config.update(evil, compile_config=weights)

    path = with_config(files / "model.keras", tmp_path / "evil.keras", change)
    if place == "loss":  # the compiled part alone is left out
        assert compile_problem(load_model(str(path)))
    else:
        refused(load_model, path)
    assert not marker.exists()
    assert in_safe_mode() in (None, True)


@pytest.mark.parametrize("kind", [".keras", ".h5"])
def test_no_stored_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """The Lambda's code writes the marker when the layer is built or called."""
    marker, path = tmp_path / "marker", tmp_path / f"lambda{kind}"
    monkeypatch.setenv("MARKER", str(marker))
    touch = keras.layers.Lambda(lambda x: (__import__("os").system("touch $MARKER"), x)[1], output_shape=(3,))
    model = keras.Sequential([keras.Input((3,)), touch, keras.layers.Dense(2)])
    model.compile("sgd", "mse")
    model(np.zeros((1, 3)))
    model.save(path)
    assert marker.exists(), "the code itself does not work, so the test shows nothing"
    marker.unlink()
    refused(load_model, path, says=("Lambda",))
    assert not marker.exists()


@pytest.mark.parametrize(
    ("layer", "field", "says"),
    [
        ("StringLookup", "vocabulary", ""),
        ("IntegerLookup", "vocabulary", ""),
        ("TextVectorization", "vocabulary", ""),
        ("TFSMLayer", "filepath", "a SavedModel outside of it"),
    ],
)
def test_no_layer_reads_from_outside(files: Path, tmp_path: Path, layer: str, field: str, says: str) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("1\n2\n3\n")
    settings = {"name": "outside", field: str(secret)}
    inserted = {"module": "keras.layers", "class_name": layer, "config": settings, "registered_name": None}

    def change(config: dict[str, Any]) -> None:
        config["config"]["layers"].insert(1, inserted)

    path = with_config(files / "model.keras", tmp_path / "evil.keras", change)
    assert not re.search("Lambda|safe_mode", refused(load_model, path, says=(says,)))


@pytest.mark.parametrize("kind", ["link", "soft link", "external storage"])
def test_no_weights_are_read_from_outside(files: Path, tmp_path: Path, kind: str) -> None:
    """The values of another file on this machine do not become weights."""
    secret = np.full((3, 2), 42.0, np.float32)
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["secret"] = secret
    (tmp_path / "secret.bin").write_bytes(secret.tobytes())

    def change(file: h5py.File) -> None:
        group, name = kernel_of(file)
        del group[name]
        if kind == "link":
            group[name] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "/secret")
        elif kind == "soft link":
            file["link"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "/secret")
            group[name] = h5py.SoftLink("/link")
        else:
            group.create_dataset(name, (3, 2), "f4", external=[(str(tmp_path / "secret.bin"), 0, h5py.h5f.UNLIMITED)])

    path = with_weights(files / "model.keras", tmp_path / "evil.keras", change)
    refused(load_model, path)
    weights = tmp_path / "evil.weights.h5"
    with zipfile.ZipFile(path) as archive:
        weights.write_bytes(archive.read("model.weights.h5"))
    model = load_model(str(files / "model.keras"))
    before = [np.array(variable) for variable in model.variables]
    refused(load_weights, weights, model)
    for variable, value in zip(model.variables, before, strict=True):
        assert not np.any(np.asarray(variable) == 42.0)
        assert np.shape(variable) == value.shape


@pytest.mark.parametrize("name", ["../outside.txt", "/outside.txt", "assets/../../outside.txt"])
def test_nothing_is_written_outside(files: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / "inner" / "evil.keras"
    path.parent.mkdir()
    rewritten(files / "model.keras", path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name.replace("/outside", f"{tmp_path}/outside") if name.startswith("/") else name, "evil")
        archive.writestr("assets/harmless.txt", "text")
    before = set(tmp_path.rglob("*"))
    with contextlib.suppress(ModelError):
        load_model(str(path))
    assert set(tmp_path.rglob("*")) == before


_LOAD = """
import os, resource, sys
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
import tensorflow, keras
from sdkeras.errors import ModelError
from sdkeras.files.models import load_model
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]), int(sys.argv[2])))
try:
    load_model(sys.argv[1])
except ModelError as error:
    print("refused:", error)
"""


def bomb(file: h5py.File) -> None:
    """Makes the weights of a layer a dataset of a few bytes that says it holds 2^42 numbers."""
    group, name = kernel_of(file)
    del group[name]
    group.create_dataset(name, (2**21, 2**21), "f4", chunks=(1024, 1024), compression="gzip", fillvalue=0.0)


@contextlib.contextmanager
def limited_memory() -> Iterator[None]:
    """This process may take so many addresses more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + _ROOM, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_weights_that_stand_for_terabytes_are_refused(files: Path, tmp_path: Path) -> None:
    path = with_weights(files / "model.keras", tmp_path / "evil.keras", bomb)
    assert path.stat().st_size < 10**6
    with limited_memory():
        refused(load_model, path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["weights", "layer"])
def test_a_shape_that_stands_for_terabytes_is_refused(files: Path, tmp_path: Path, kind: str) -> None:
    """In a process of little memory: those weights, and a layer of as many."""

    def wide(config: dict[str, Any]) -> None:
        config["config"]["layers"][1]["config"]["units"] = 2**42

    source, target = files / "model.keras", tmp_path / "evil.keras"
    path = with_weights(source, target, bomb) if kind == "weights" else with_config(source, target, wide)
    assert path.stat().st_size < 10**6
    answer = subprocess.run(
        [sys.executable, "-c", _LOAD, str(path), str(_ADDRESS_SPACE)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert answer.returncode == 0, answer.stderr[-2000:]
    assert answer.stdout.startswith("refused: ")
    assert answer.stdout.count("\n") == 1
