"""`sdkeras study trajectory`: of a recorded file and simulated from a model on, from the options to the files."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest

from sdkeras.runs import trajectory
from sdkeras.runs.trajectory import Trajectory
from sdkeras.study.recorder import TrajectoryRecorder
from sdkeras.study.simulate import forward
from sdkeras.study.topology import TrajectoryMeasures, measure_trajectory

Command = Callable[..., tuple[int, str, str]]
RNG = np.random.default_rng(0)
X = RNG.standard_normal((60, 3)).astype(np.float32)
Y = RNG.integers(0, 2, 60)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    np.savez(folder / "data.npz", x=X, y=Y)
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, "tanh"), keras.layers.Dense(2)], name="small")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.5, momentum=0.5), loss)
    recorder = TrajectoryRecorder(path=folder / "recorded.npz", losses_on=(X[:9], Y[:9]))
    model.fit(X, Y, batch_size=10, epochs=10, verbose=0, callbacks=[recorder])
    model.save(folder / "model.keras")
    return folder


def test_a_recorded_file(files: Path, tmp_path: Path, in_process: Command) -> None:
    out, page = tmp_path / "out.json", tmp_path / "out.html"
    options = ("--alpha", 0.7, "--seed", 4, "--json", out, "--html", page)
    status, text, error = in_process("study", "trajectory", files / "recorded.npz", *options)
    assert (status, error) == (0, "")
    found = TrajectoryMeasures.load(out)
    assert found == measure_trajectory(Trajectory.load(files / "recorded.npz"), 0.7, seed=4)
    assert found.num_iterates == 60
    assert found.num_examples == 9
    assert "60 iterates of a recorded trajectory" in text
    assert "alpha = 0.7" in text
    assert page.read_text().count("<svg") == 2
    assert "http" not in page.read_text().replace("http://www.w3.org", "").replace("http-equiv", "")
    assert in_process("study", "trajectory", files / "recorded.npz", "--quiet") == (0, "", "")


@pytest.mark.parametrize("kind", ["<f8", ">f4", "<f2", "fortran", "one", "named"])
def test_a_plain_matrix(tmp_path: Path, in_process: Command, kind: str) -> None:
    points = np.random.default_rng(1).random((60, 7))
    values = points.astype(kind if kind in ("<f8", ">f4", "<f2") else "<f8")
    path, out = tmp_path / f"t.{'npz' if kind in ('one', 'named') else 'npy'}", tmp_path / "out.json"
    if kind == "one":
        np.savez(path, anything=values)
    elif kind == "named":
        np.savez_compressed(path, weights=values, losses=np.ones(60))
    else:
        np.save(path, np.asfortranarray(values) if kind == "fortran" else values)
    status, text, error = in_process("study", "trajectory", path, "--json", out)
    assert (status, error) == (0, "")
    found = TrajectoryMeasures.load(out)
    # A minimum spanning tree by Prim, straight from its definition.
    points = values.astype(np.float64)
    distances = np.linalg.norm(points[:, None] - points, axis=-1)
    reached, length = distances[0].copy(), 0.0
    inside = np.arange(60) == 0
    for _ in range(59):
        k = int(np.argmin(np.where(inside, np.inf, reached)))
        length, inside[k] = length + reached[k], True
        reached = np.minimum(reached, distances[k])
    # 59 edges, each a root of a sum with the rounding of float64 at distances near 1.
    assert found.euclidean.e_alpha == pytest.approx(length, rel=1e-12)
    assert (found.num_iterates, found.num_parameters, found.data) == (60, 7, None)
    assert (found.first_iteration, found.last_iteration) == (0, 59)
    assert "60 iterates of a recorded trajectory" in text


def test_a_large_matrix_is_not_read_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trajectory, "_BLOCK", 2**18)
    path, size = tmp_path / "sparse.npy", 2**26
    np.lib.format.open_memmap(path, "w+", np.float32, (4, size // 16)).flush()
    tracemalloc.start()
    try:
        iterates = Trajectory.load(path).iterates
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert iterates.nbytes == size
    assert peak < size / 16


def test_an_alpha_far_out_has_its_reason(files: Path, tmp_path: Path, in_process: Command) -> None:
    out = tmp_path / "out.json"
    status, text, error = in_process("study", "trajectory", files / "recorded.npz", "--alpha", "1e9", "--json", out)
    assert (status, error) == (0, "")
    assert "e-alpha-range: Euclidean: float64 does not hold E_alpha" in text
    found = TrajectoryMeasures.load(out)
    assert found.euclidean.ph_dimension.reason
    assert found.data.ph_dimension.reason
    assert [warning.code for warning in found.warnings].count("e-alpha-range") == 2


@pytest.mark.slow
def test_more_examples_than_there_are(files: Path, in_process: Command) -> None:
    options = ("--steps", 20, "--losses-on", 100_000)
    status, text, _ = in_process("study", "trajectory", files / "model.keras", "--data", files / "data.npz", *options)
    assert status == 0
    assert "losses of 100,000 examples were asked for, and the data have 60" in " ".join(text.split())


def test_a_simulation_is_one_library_call(files: Path, tmp_path: Path, in_process: Command) -> None:
    model, data = files / "model.keras", files / "data.npz"
    before = model.read_bytes()
    out, kept = tmp_path / "out.json", tmp_path / "kept.npz"
    options = ("--steps", 80, "--every", 2, "--losses-on", 20, "--batch-size", 10, "--projection", 5)
    status, text, error = in_process(
        "study", "trajectory", model, "--data", data, *options, "--json", out, "--save", kept
    )
    assert status == 0, error
    assert model.read_bytes() == before
    own = forward(keras.models.load_model(model), (X, Y), steps=80, every=2, losses_on=20, batch_size=10, projection=5)
    found = TrajectoryMeasures.load(out)
    assert found.euclidean == own.euclidean
    assert found.data == own.data
    assert found.num_columns == 5
    assert found.distortion.measured > 0
    assert "distances off by up to" in text
    assert "40 iterates of 80 simulated steps" in text
    status, _, _ = in_process("study", "trajectory", kept, "--json", tmp_path / "again.json", "--quiet")
    assert status == 0
    assert TrajectoryMeasures.load(tmp_path / "again.json").euclidean == found.euclidean


def test_a_dry_run_writes_nothing(files: Path, tmp_path: Path, in_process: Command) -> None:
    out = tmp_path / "out.json"
    status, text, _ = in_process(
        "study", "trajectory", files / "model.keras", "--data", files / "data.npz", "--dry-run", "--json", out
    )
    assert status == 0
    assert "5,000 iterates" in text
    assert f"files to be written: {out}" in text
    status, text, _ = in_process("study", "trajectory", files / "recorded.npz", "--dry-run")
    assert status == 0
    assert "60 iterates of 26 weights, losses of 9 examples" in text
    assert not list(tmp_path.iterdir())
