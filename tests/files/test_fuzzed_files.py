"""Whatever is in a file, the error is ours."""

import io
import json
import warnings
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from file_checks import X, Y
from sdkeras.errors import SdkerasError
from sdkeras.files.dataset import load_data
from sdkeras.files.models import load_model
from sdkeras.files.user_code import load_custom_objects

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
