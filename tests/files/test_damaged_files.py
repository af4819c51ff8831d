"""Whatever is done to a file, reading it gives its content or an SdkerasError: no other error, and no warning."""

import contextlib
import io
import json
import random
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sample_log
import sample_runs
from flows import Henon
from sdkeras.errors import SdkerasError
from sdkeras.files.archive import load_checkpoint, save_checkpoint
from sdkeras.files.dataset import load_data
from sdkeras.files.model_file import read_model_file
from sdkeras.files.models import load_model
from sdkeras.files.user_code import load_custom_objects
from sdkeras.reporting.build import report_of
from sdkeras.reporting.compare import compare
from sdkeras.reporting.html import as_html
from sdkeras.reporting.terminal import as_text
from sdkeras.results import log as run_log
from sdkeras.results.answers import load_document
from sdkeras.runs.trajectory import Trajectory
from sdkeras.study.definition import read_study
from sdkeras.study.page import study_report
from sdkeras.study.results import read_results
from sdkeras.study.run_files import Failed, Measured, RunFolder, Scores, Trained, Value
from sdkeras_plugins.lyapunov_qr import LyapunovQr

_RUN = "lr0.1-bs8-moodgood-seed0"
FEW, QUICK, MANY, THOROUGH = 25, 50, 100, 1000
DEEP = 20_000
TOKENS = [
    *(b"[" * DEEP, b"{" * DEEP, b'{"a":' * DEEP, b"a.b." * 1000, b"[" * DEEP + b"]" * DEEP, b"9" * 5000, b"1e999"),
    *(b"-1", b"0", b"NaN", b"null", b"true", b'""', b"[]", b"{}", b'"\\ud800"', b"\x00", b"\xff\xfe", b"\x1b[31m"),
    *(b"\n", b"9" * 30, b"1979-05-27", b"'''", b"PK\x03\x04", b"\x93NUMPY"),
]
VALUES = [
    *(None, True, False, 0, -1, 1, 2**63, 2**200, 10**400, 1e-320, 1e308, -1e308, float("inf"), float("nan"), 0.5),
    *("", "x", "\x1b[31m\n", "\ud800", "9" * 5000, [], {}, [[]], [None], ["x"], [1e308] * 3, {"": None}),
    {"a": {"b": []}},
]


def mutated(content: bytes, chance: random.Random) -> bytes:
    """The bytes with one to three of: bits flipped, an end cut off, a piece moved, repeated or lost, a token put in."""
    for _ in range(chance.randint(1, 3)):
        place, other = (chance.randrange(len(content) + 1) for _ in range(2))
        low, high = sorted((place, other))
        kind = chance.choice(["flip", "flip", "cut", "move", "lose", "token", "token", "number"])
        if kind == "flip" and place < len(content):
            content = content[:place] + bytes([content[place] ^ 1 << chance.randrange(8)]) + content[place + 1 :]
        elif kind == "cut":
            content = content[:place]
        elif kind == "move":
            content = content[:place] + content[low : min(high, low + 200)] + content[place:]
        elif kind == "lose":
            content = content[:low] + content[min(high, low + 50) :]
        elif kind == "token":
            content = content[:place] + chance.choice(TOKENS) + content[place:]
        elif kind == "number":
            content = content[:place] + bytes(chance.randrange(256) for _ in range(4)) + content[place + 4 :]
    return content


def changed(value: Any, chance: random.Random) -> Any:
    """Nested values with one of them replaced, left out or doubled."""
    if isinstance(value, dict) and value and chance.random() < 0.95:
        key = chance.choice(list(value))
        others = {name: entry for name, entry in value.items() if name != key}
        way = chance.random()
        if way < 0.05:
            return others
        return {**others, f"{key}{key}": value[key]} if way < 0.1 else {**value, key: changed(value[key], chance)}
    if isinstance(value, (list, tuple)) and value and chance.random() < 0.9:
        place = chance.randrange(len(value))
        return type(value)([*value[:place], changed(value[place], chance), *value[place + 1 :]])
    if isinstance(value, np.ndarray) and chance.random() < 0.7:
        ways = [value[:0]]
        if value.dtype.kind in "fi":
            ways += [value[..., None], value.astype("U5"), value * np.nan, (value > 0).astype(np.int8), value > 0]
        return chance.choice(ways)
    return chance.choice(VALUES)


def changed_text(content: bytes, chance: random.Random) -> bytes:
    """JSON text, or lines of it, with a value replaced in one, or its bytes mutated."""
    if chance.random() < 0.4:
        return mutated(content, chance)
    lines = content.splitlines() if content.count(b"\n{") else [content]
    place = chance.randrange(len(lines))
    value = json.loads(lines[place])
    for _ in range(chance.randint(1, 3)):
        value = changed(value, chance)
    lines[place] = json.dumps(value).encode("utf-8")
    return b"\n".join(lines) + b"\n"


def changed_value(content: bytes, chance: random.Random) -> bytes:
    """A checkpoint as sdkeras writes it, with another value in it; or a damaged archive."""
    if chance.random() < 0.3:
        return changed_archive(content, chance)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.npz"
        path.write_bytes(content)
        value = load_checkpoint(path)
        for _ in range(chance.randint(1, 2)):
            value = changed(value, chance)
        with contextlib.suppress(SdkerasError, UnicodeEncodeError):  # what no checkpoint can hold
            save_checkpoint(path, value)
        return path.read_bytes()


def changed_archive(content: bytes, chance: random.Random) -> bytes:
    """A zip archive damaged as a file, or whole with a damaged part in it, by another method of compression."""
    if chance.random() < 0.4:
        return mutated(content, chance)
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(made, "w") as copy:
        names = archive.namelist()
        target = chance.choice(names)
        for name in names:
            part = archive.read(name)
            if name == target:
                change = changed_text if name.endswith(".json") else mutated
                part = change(part, chance)
            method = chance.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
            copy.writestr(name, part, compress_type=method)
    content = made.getvalue()
    if chance.random() < 0.3:  # compressed bytes that are none, with the checksums of before
        place = chance.randrange(len(content))
        return content[:place] + bytes(chance.randrange(256) for _ in range(8)) + content[place + 8 :]
    if chance.random() < 0.3:  # encrypted, or of an unknown method, by both headers of each part
        flags, method = (1, 0) if chance.random() < 0.5 else (0, 99)
        for signature, start in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            place = content.find(signature)
            while place >= 0:
                place += start
                content = content[:place] + bytes([flags, 0, method, 0]) + content[place + 4 :]
                place = content.find(signature, place)
    return content


def changed_model(content: bytes, chance: random.Random) -> bytes:
    """A model's file that is cut off and perhaps goes on with other bytes, or an archive of another configuration."""
    if chance.random() < 0.4:
        return content[: chance.randrange(len(content))] + chance.randbytes(chance.choice([0, 200]))
    if chance.random() < 0.1:
        return content[: chance.randrange(9)] + chance.randbytes(200)
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(made, "w") as copy:
        for name in archive.namelist():
            part = archive.read(name)
            copy.writestr(name, changed_text(part, chance) if name == "config.json" else part)
    return made.getvalue()


def changed_h5(content: bytes, chance: random.Random) -> bytes:
    """An HDF5 file that is cut off or begins with other bytes, or one whose attributes are others.

    Not with any bytes inside: the HDF5 library itself can run in circles on those.
    """
    if chance.random() < 0.2:
        return content[: chance.randrange(len(content))]
    if chance.random() < 0.2:
        return mutated(content[:64], chance) + content[64:]
    made = io.BytesIO()
    with h5py.File(io.BytesIO(content), "r") as file, h5py.File(made, "w") as copy:
        for name, text in file.attrs.items():
            if chance.random() < 0.6:
                change = changed_text if text.startswith("{") else mutated
                other = change(text.encode(), chance)
                text = chance.choice([other, np.frombuffer(other, np.uint8), 3, np.zeros((2, 2)), h5py.Empty("f")])
            with contextlib.suppress(ValueError, OSError):  # too large for an attribute, NUL in a text
                copy.attrs[name] = np.bytes_(text) if isinstance(text, bytes) else text
    return made.getvalue()


Reader = Callable[[Path], object]
Change = Callable[[bytes, random.Random], bytes]


def _document(path: Path) -> None:
    run = load_document(path)
    as_text(run)
    with contextlib.suppress(SdkerasError):  # of another kind
        compare(run, sample_runs.RUN)


def _page(path: Path) -> None:
    as_html(load_document(path))


def _log(path: Path) -> None:
    log = run_log.read_run_log(path)
    report_of(log)


def _toml(path: Path) -> None:
    for full in (False, True):
        with contextlib.suppress(SdkerasError):
            study = read_study(str(path), full=full)
            study.by_column()
            assert len(study.to_json()) > 0


def _study(path: Path) -> None:
    results = read_results(path.parent if path.name == "study.json" else path.parents[2])
    results.cells(), results.to_csv()
    correlations = results.correlations()
    correlations.to_csv(), study_report(results, correlations)


def _track_state(path: Path) -> None:
    from sdkeras.runs.track import _states

    for state in _states(load_checkpoint(path)):
        assert all(len(vectors) == state["size"] for vectors in state["monitor"]["vectors"].values())


class _Henon(Henon):
    """It refuses states of another shape, as the flow of a training does."""

    def restore(self, state: Any) -> None:
        if np.shape(state) != np.shape(self.state()) or not np.all(np.abs(np.asarray(state, np.float64)) < 10):
            raise SdkerasError("no state of this flow.")
        super().restore(np.asarray(state, np.float64))


def _lyapunov(path: Path) -> None:
    LyapunovQr(num_exponents=2, num_steps=40, transient=5, checkpoint=str(path)).estimate(_Henon(1.4, 0.3), seed=3)


def _loaded(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of Keras, of what it leaves out
        load_model(str(path))


GRID = """
[study]
name = "small"
model = "nets:net"
data = "nets:data"
epochs = 3
stop = { loss_below = 0.1 }
[grid]
learning_rate = [0.1, 0.2]
batch_size = 8
mood = ["good", "bad"]
[measures]
slq = { num_steps = 20 }
sharpness = {}
e_alpha = { trajectory = "backward", metric = ["euclidean", "data"] }
[trajectory]
steps = 100
alpha = 1.5
[analysis]
tolerance = 0.1
[full.study]
epochs = 30
[full.grid]
learning_rate = 0.3
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small valid file of each kind."""
    place = tmp_path_factory.mktemp("whole")
    (place / "run.json").write_text(sample_runs.RUN.to_json())
    for record in (sample_log.HEADER, sample_log.FOUND, sample_log.FOUND):
        run_log.append(place / "sharpness.jsonl", record)
    vectors = {"largest": np.eye(4, 2, dtype=np.float32)}
    state = [{"digest": "ab", "size": 4, "monitor": {"vectors": vectors, "num_steps": 3}}]
    save_checkpoint(place / "state.npz", state)
    iterates = np.arange(60.0, dtype=np.float32).reshape(20, 3)
    Trajectory(iterates, np.arange(20), iterates[:, :2], 3, None, 0, None).save(place / "trajectory.npz")
    (place / "study.toml").write_text(GRID)
    _write_study(place / "study")
    LyapunovQr(num_exponents=2, num_steps=20, transient=5, checkpoint=str(place / "lyapunov.npz")).estimate(
        Henon(1.4, 0.3), seed=3
    )
    config = {"config": {"dtype": {"config": {"name": "float32"}}}, "compile_config": {"loss": "mse"}}
    with zipfile.ZipFile(place / "model.keras", "w") as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("config.json", json.dumps(config))
    with h5py.File(place / "model.h5", "w") as file:
        file.attrs["model_config"] = json.dumps(config)
        file.attrs["training_config"] = json.dumps(config["compile_config"])
    np.savez(place / "data.npz", x=iterates, y=np.arange(20) % 3)
    np.save(place / "x.npy", iterates)
    np.save(place / "y.npy", np.arange(20) % 3)
    return place


def _write_study(place: Path) -> None:
    """Two runs that are done and two that have failed."""
    (place / "runs").mkdir(parents=True)
    (place / "study.toml").write_text(GRID)
    study = read_study(str(place / "study.toml"))
    study.save(place / "study.json")
    for position, run in enumerate(study.runs):
        files = RunFolder(place / "runs" / run.name)
        files.path.mkdir()
        files.write(files.settings, run.settings)
        if position >= 2:
            files.write(files.failure, Failed("training", "bad mood"))
            continue
        scores = Scores(0.5, 0.75), Scores(0.75, 0.5 / (position + 1))
        files.write(
            files.training,
            Trained(run.settings, study.training(), 3, 30, "epochs", *scores, "ab", {"loss": [1.0]}, 2.0),
        )
        values = {column: Value(0.5 + position, 0.1, "", by) for column, by in study.by_column().items()}
        files.write(files.measures, Measured(values, 1.0))
        sample_runs.RUN.save(files.analysis)


READERS: dict[str, tuple[str, Change, Reader]] = {
    "run.json": ("run.json", changed_text, _document),
    "sharpness.jsonl": ("sharpness.jsonl", changed_text, _log),
    "track's state": ("state.npz", changed_value, _track_state),
    "lyapunov's checkpoint": ("lyapunov.npz", changed_value, _lyapunov),
    "trajectory": ("trajectory.npz", changed_value, Trajectory.load),
    "study.json": ("study/study.json", changed_text, _study),
    "training.json": (f"study/runs/{_RUN}/training.json", changed_text, _study),
    "measures.json": (f"study/runs/{_RUN}/measures.json", changed_text, _study),
    "run.json of a study": (f"study/runs/{_RUN}/run.json", changed_text, _study),
    "keras": ("model.keras", changed_archive, lambda path: read_model_file(str(path))),
    "h5": ("model.h5", changed_h5, lambda path: read_model_file(str(path))),
    "study.toml": ("study.toml", mutated, _toml),
    "npz": ("data.npz", changed_archive, lambda path: load_data(str(path))),
    "npy": ("x.npy", mutated, lambda path: load_data(f"{path},{path.with_name('y.npy')}")),
}


def check(path: Path, change: Change, read: Reader, seed: int) -> None:
    """Reads the file after a change, and puts it back."""
    whole, message = path.read_bytes(), ""
    try:
        path.write_bytes(change(whole, random.Random(seed)))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                read(path)
            except SdkerasError as error:
                message = str(error)
        assert "\n" not in message
    finally:
        path.write_bytes(whole)


MODELS = {"net.keras": changed_model, "net.h5": changed_h5}


def examples(count: int) -> settings:
    return settings(max_examples=count, derandomize=True, database=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("kind", READERS)
@examples(QUICK)
@given(seed=st.integers(0, 2**32))
def test_any_change(folder: Path, kind: str, seed: int) -> None:
    name, change, read = READERS[kind]
    check(folder / name, change, read, seed)


@pytest.mark.parametrize("name", MODELS)
@examples(FEW)
@given(seed=st.integers(0, 2**32))
def test_any_change_of_a_whole_model(trained: tuple[Any, Path], name: str, seed: int) -> None:
    check(trained[1] / name, MODELS[name], _loaded, seed)


@examples(FEW)
@given(name=st.text(max_size=30))
def test_any_name(name: str) -> None:
    calls = {load_model: ("", ".keras"), load_data: (".npz", ".npy"), load_custom_objects: ("",)}
    for load, endings in calls.items():
        for ending in endings:
            with contextlib.suppress(SdkerasError):
                load(f"{name}{ending}")


def _with(path: str, value: str) -> Callable[[bytes], bytes]:
    """JSON text with the first number of this name replaced."""
    return lambda content: re.sub(rb'("%s": )[-0-9.e+]+' % path.encode(), rb"\g<1>" + value.encode(), content, count=1)


def _two_lines(_: bytes) -> bytes:
    """An archive of an array whose name has two lines."""
    stream = io.BytesIO()
    np.savez(stream, **{"first line\nsecond": np.ones(3)})
    return stream.getvalue()


HOSTILE: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "a model's file of two lines": ("keras", _two_lines),
    "an array's name of two lines": ("npz", _two_lines),
    "an iterate's name of two lines": ("trajectory", _two_lines),
    "more samples than a float can count": ("run.json", _with("num_samples", "9" * 400)),
    "a seed of 5,000 digits": ("run.json", _with("seed", "9" * 5000)),
    "a threshold of 0": ("run.json", _with("threshold", "0.0")),
    "lists in lists in run.json": ("run.json", lambda _: b'{"schema_version": 1, "model": ' + b"[" * 10**6),
    "lists in lists in a log": ("sharpness.jsonl", lambda content: content + b"[" * 10**6 + b"\n" + content),
    "a step of 5,000 digits": ("sharpness.jsonl", _with("step", "9" * 5000)),
    "lists in lists in TOML": ("study.toml", lambda _: b"x = " + b"[" * 10**5),
    "tables in tables in TOML": ("study.toml", lambda _: b"x = " + b"{a=" * 10**5),
    "a whole number of 5,000 digits in TOML": ("study.toml", lambda content: content + b"x = " + b"9" * 5000),
    "a rate of 400 digits": ("study.toml", lambda content: content.replace(b"[0.1, 0.2]", b"9" * 400)),
    "steps of 400 digits": ("study.toml", lambda content: content.replace(b"epochs = 3", b"steps = " + b"9" * 400)),
    "a threshold of 400 digits": (
        "study.toml",
        lambda content: content.replace(b"below = 0.1", b"below = " + b"9" * 400),
    ),
    "lists in lists of a training": ("training.json", lambda _: b"[" * 10**6),
    "lists in lists of a study": ("study.json", lambda _: b'{"document": "study", "schema_version": ' + b"[" * 10**6),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_content(folder: Path, case: str) -> None:
    kind, change = HOSTILE[case]
    name, _, read = READERS[kind]
    whole = (folder / name).read_bytes()
    assert change(whole) != whole
    check(folder / name, lambda content, _: change(content), read, 0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", READERS)
@examples(THOROUGH)
@given(seed=st.integers(0, 2**32))
def test_any_change_at_length(folder: Path, kind: str, seed: int) -> None:
    name, change, read = READERS[kind]
    check(folder / name, change, read, seed)


@pytest.mark.slow
@examples(MANY)
@given(seed=st.integers(0, 2**32))
def test_whatever_is_read_can_be_drawn(folder: Path, seed: int) -> None:
    check(folder / "run.json", changed_text, _page, seed)
