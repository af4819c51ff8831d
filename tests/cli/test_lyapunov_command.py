"""`sdkeras lyapunov` as people meet it: reports, exit statuses, and runs that were ended half-way."""

import itertools
from pathlib import Path

import keras
import numpy as np
import pytest

import sdkeras
from sdkeras.datasets import load_digits
from sdkeras.results.progress import TIME
from sdkeras.runs.budget import Budget

layers = keras.layers


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    keras.utils.set_random_seed(0)
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((40, 3)).astype("float32"), generator.integers(0, 2, 40)
    np.savez(folder / "data.npz", x=x, y=y)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model = keras.Sequential([keras.Input((3,)), layers.Dense(3, "tanh"), layers.Dense(2)])
    model.compile(keras.optimizers.SGD(0.5, momentum=0.5), loss)
    model.fit(x, y, epochs=2, verbose=0)
    model.save(folder / "model.keras")
    untrained = keras.models.clone_model(model)
    untrained.compile(keras.optimizers.Adam(0.5), loss)
    untrained.save(folder / "untrained.keras")
    return folder


def test_the_plan_of_forks_says_what_they_cost(files: Path, in_process) -> None:
    call = ("lyapunov", files / "model.keras", "--data", files / "data.npz", "--batch-size", 16, "--dry-run")
    status, shown, err = in_process(*call, "--forks", 4, "--steps", 20, "--transient", 5, "--num-exponents", 2)
    assert status == 0, err
    shown = " ".join(shown.replace("│", " ").split())
    assert "4, and the first once more with another start frame: 5 times a trajectory's cost" in shown
    status, _, err = in_process(*call, "--forks", 2)
    assert status == 2
    assert "forks is 2; it must be 1, or 4 or more" in err


def test_a_run_and_its_reports(files: Path, tmp_path: Path, in_process) -> None:
    out, page = tmp_path / "out.json", tmp_path / "out.html"
    status, shown, err = in_process(
        *("lyapunov", files / "model.keras", "--data", files / "data.npz", "--batch-size", 16, "--num-exponents", 5),
        *("--steps", 24, "--transient", 4, "--learning-rate", 0.25, "--json", out, "--html", page),
        "--verbose",
    )
    assert status == 0, err
    assert "ell_5" in shown
    assert "D_s" in shown
    found = sdkeras.LyapunovRun.load(out)
    assert found.data.batch_size == 16
    assert found.optimizer.learning_rate == 0.25
    assert len(found.lyapunov.values) == 5
    assert (found.lyapunov.num_steps, found.lyapunov.transient) == (24, 4)
    status, again, _ = in_process("report", out, "--verbose")
    assert status == 0
    assert shown == f"{again}written: {out}, {page}\n"
    status, _, _ = in_process("report", out, "--html", tmp_path / "again.html")
    assert status == 0
    assert (tmp_path / "again.html").read_text() == page.read_text()
    assert page.read_text().count("<svg") == 2
    status, _, err = in_process("report", out, "--fail-if", "hessian.largest.value > 1")
    assert status == 2
    assert "lyapunov.json has no 'hessian'" in err


def test_windows_over_the_same_steps(files: Path, tmp_path: Path, in_process) -> None:
    out, page = tmp_path / "out.json", tmp_path / "out.html"
    common = ("lyapunov", files / "model.keras", "--data", files / "data.npz", "--batch-size", 16)
    wanted = ("--steps", 32, "--transient", 4, "--windows", "2, 8", "--dtype", "float64")
    status, shown, err = in_process(*common, *wanted, "--json", out, "--html", page)
    assert status == 0, err
    found = sdkeras.LyapunovRun.load(out)
    sd, sd_2, sd_8 = (window.dimension for window in found.lyapunov.windows)
    assert sd_8 <= sd_2 <= sd
    assert found.lyapunov.coordinates == "balanced"
    assert len(found.lyapunov.values) == 40
    assert found.lyapunov.log_det == pytest.approx(20 * np.log(0.5), abs=1e-8)
    assert "Dimensions over the same 32 steps" in shown
    rows = {line.split()[0]: line.split()[1] for line in shown.splitlines() if line.startswith("SD")}
    assert rows == {"SD": f"{sd:.1f}", "SD^(2)": f"{sd_2:.1f}", "SD^(8)": f"{sd_8:.1f}"}
    assert page.read_text().count("<svg") == 3
    for expression, expected in (
        (f"lyapunov.windows.2.dimension < {sd_2 + 1}", 3),
        (f"lyapunov.sharpest.value > {sd + 1}", 0),
        ("lyapunov.values.40 > 0", 2),
        ("lyapunov.nothing > 0", 2),
    ):
        status, _, err = in_process("report", out, "--fail-if", expression, "--quiet")
        assert status == expected, err


@pytest.mark.slow  # the order of windows is quick in tests/runs/test_windows.py, in double precision
def test_windows_of_a_net_on_real_digits(tmp_path: Path, in_process) -> None:
    """Minibatches of the 1,797 digits, in single precision: the order holds to what that resolves."""
    x, y = load_digits()
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.AveragePooling2D(4),
            layers.Flatten(),
            layers.Dense(3, "tanh"),
            layers.Dense(10),
        ]
    )
    model.compile(keras.optimizers.SGD(0.5), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x[..., None], y, batch_size=64, epochs=2, verbose=0)
    model.save(tmp_path / "model.keras")
    np.savez(tmp_path / "data.npz", x=x[..., None], y=y)
    status, _, err = in_process(
        *("lyapunov", tmp_path / "model.keras", "--data", tmp_path / "data.npz", "--batch-size", 64, "--steps", 64),
        *("--windows", "1,4,16", "--quiet", "--json", tmp_path / "out.json"),
    )
    assert status == 0, err
    found = sdkeras.LyapunovRun.load(tmp_path / "out.json").lyapunov
    assert (found.coordinates, len(found.values), found.dimension.size) == ("weights", 55, 55)
    sd, sd_4, sd_16 = (window.dimension for window in found.windows)
    assert sd_16 <= sd_4 + 0.02 <= sd + 0.04
    assert sd_16 < sd - 1
    assert sdkeras.sharpness_dimension(found.values) <= sd_16 + 0.02
    assert found.values.sum() == pytest.approx(found.log_det, abs=1e-4)


@pytest.mark.slow  # conditions are quick in test_documents.py
def test_fail_if_and_settings_of_the_estimator(files: Path, in_process) -> None:
    common = ("lyapunov", files / "model.keras", "--data", files / "data.npz", "--steps", 64, "--transient", 0)
    common += ("--quiet", "--num-exponents", 1, "--set", "lyapunov-qr.tolerance=10", "--estimator", "lyapunov-qr")
    status, _, err = in_process(*common, "--fail-if", "lyapunov.num_steps == 32 and lyapunov.values.0 < 10")
    assert status == 3, err
    assert "--fail-if holds" in err


def test_a_dry_run_writes_nothing(files: Path, tmp_path: Path, in_process) -> None:
    out = tmp_path / "out.json"
    status, shown, err = in_process(
        *("lyapunov", files / "model.keras", "--data", files / "data.npz", "--steps", 40, "--windows", "1,4"),
        *("--dry-run", "--json", out),
    )
    assert status == 0, err
    for words in ("40 (20 weights, 20 of the optimizer)", "40 after 100", "of 1, 4 steps", "peak memory", str(out)):
        assert words in shown, words
    assert not out.exists()


def test_a_time_limit_gives_a_partial_answer(files: Path, tmp_path: Path, in_process, monkeypatch) -> None:
    """The limit comes at the 20th look at it, on a machine of any speed."""
    out, looks = tmp_path / "out.json", itertools.count(1)
    common = ("lyapunov", files / "model.keras", "--data", files / "data.npz", "--num-exponents", 1, "--quiet")
    asked = ("--transient", 0, "--steps", 1_000_000, "--time-limit", 1e4, "--json", out)
    with monkeypatch.context() as patch:
        patch.setattr(Budget, "stop", lambda *_: TIME if next(looks) >= 20 else "")
        status, _, err = in_process(*common, *asked)
    assert status == 130, err
    found = sdkeras.LyapunovRun.load(out)
    assert (found.partial, found.status) == (True, "time limit")
    assert 0 < found.lyapunov.num_steps < 1_000_000
    status, _, err = in_process(*common, "--time-limit", 0.001)
    assert status == 130
    assert "before a step was measured" in err


@pytest.mark.slow  # the quick one is that of analyze
def test_an_optimizer_that_has_taken_no_step_is_told(files: Path, in_process) -> None:
    """Keras builds it on loading, with the slots that training would start with."""
    status, shown, err = in_process(
        *("lyapunov", files / "untrained.keras", "--data", files / "data.npz", "--steps", 2, "--num-exponents", 1),
        *("--transient", 0),
    )
    assert status == 0, err
    assert "initial-slots: the optimizer Adam has taken no step" in shown
