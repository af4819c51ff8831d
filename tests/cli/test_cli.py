"""The command line as people meet it: exit statuses, one message, nothing half-written, a quick start."""

import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest

import sdkeras
from sdkeras.results import progress as records
from sdkeras_cli import output as progress

layers = keras.layers


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, its data, and things that are neither."""
    folder = tmp_path_factory.mktemp("files")
    keras.utils.set_random_seed(0)
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((70, 6)).astype("float32"), generator.integers(0, 3, 70)
    np.savez(folder / "data.npz", x=x, y=y)
    np.savez(folder / "nan.npz", x=np.where(x > 2, np.nan, x), y=y)
    np.savez(folder / "shape.npz", x=x[:, :5], y=y)
    np.savez(folder / "objects.npz", x=np.array([{}, {}], dtype=object), y=y[:2])
    model = keras.Sequential([keras.Input((6,)), layers.Dense(5, "tanh"), layers.LayerNormalization(), layers.Dense(3)])
    model.compile(keras.optimizers.SGD(0.125), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, y, epochs=3, verbose=0)
    model.save(folder / "model.keras")
    bare = keras.Sequential([keras.Input((6,)), layers.Dense(3)])
    bare.save(folder / "bare.keras")
    up = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(4),
            layers.Reshape((2, 2, 1)),
            layers.UpSampling2D(interpolation="bilinear"),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )
    up.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    up.save(folder / "up.keras")
    (folder / "junk.keras").write_bytes(b"not a model")
    (folder / "mine.py").write_text("")
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", y)
    return folder


def sdkeras_command(*arguments: object, folder: Path | None = None, **environment: str) -> subprocess.CompletedProcess:
    code = "from sdkeras_cli.main import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | environment,
        check=False,
    )


def test_quick_commands_load_no_tensorflow() -> None:
    code = (
        "import sys\nfrom sdkeras_cli.main import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n    assert not end.code\n"
        "assert not {'tensorflow', 'keras'} & set(sys.modules)"
    )
    for arguments in (["--help"], ["--version"], ["plugins", "list"], ["analyze", "--help"]):
        run = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        assert run.stdout.strip()


def test_analyze_writes_a_run_that_reads_back(files: Path, tmp_path: Path) -> None:
    out, page = tmp_path / "run.json", tmp_path / "report.html"
    run = sdkeras_command("analyze", files / "model.keras", "--data", files / "data.npz", "--json", out, "--html", page)
    assert run.returncode == 0, run.stderr
    assert "Sharpness dimension" in run.stdout
    found = sdkeras.Analysis.load(out)
    assert found.optimizer.learning_rate == 0.125
    assert found.optimizer.iterations == 9
    assert found.data.batch_size == 32
    assert found.verification.passed
    low, high = found.sharpness_dimension.interval
    assert low <= found.sharpness_dimension.value <= high
    assert "<html" in page.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "run.json"]


def test_another_backend_is_refused(files: Path) -> None:
    run = sdkeras_command("analyze", "model.keras", "--data", "data.npz", folder=files, KERAS_BACKEND="jax")
    assert run.returncode == 2
    assert "KERAS_BACKEND is 'jax'" in run.stderr
    assert "Traceback" not in run.stderr


def test_ctrl_c_outside_the_runs_is_a_short_message(files: Path, tmp_path: Path, in_process, monkeypatch) -> None:
    from sdkeras.files import dataset

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(dataset, "load_training_data", interrupt)
    out = tmp_path / "run.json"
    status, _, err = in_process("analyze", files / "model.keras", "--data", files / "data.npz", "--json", out)
    assert status == 130
    assert err.strip() == "sdkeras: interrupted."
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback(files: Path) -> None:
    run = sdkeras_command("analyze", "none.keras", "--data", "data.npz", "--debug", folder=files)
    assert run.returncode != 0
    assert "Traceback" in run.stderr


def test_a_terminal_without_unicode_gets_the_whole_report() -> None:
    code = (
        "from rich.console import Console\nfrom sdkeras_cli import main, plugins\n"
        "plugins.registry.installed = lambda: Console().print('3 \u00b1 1, |g|\u00b2, \u4e2d') or []\n"
        "main.main(['plugins', 'list'])"
    )
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("3 +- 1, |g|^2, ?\n")


def test_no_command_shows_the_help_and_is_wrong_use() -> None:
    for arguments in ([], ["plugins"]):
        run = sdkeras_command(*arguments)
        assert run.returncode == 2
        assert run.stderr.startswith("Usage:")


def test_a_broken_plugin_is_listed_and_stops_nothing(in_process, monkeypatch: pytest.MonkeyPatch) -> None:
    from sdkeras.estimators import registry

    broken = registry.PluginInfo("spectrum", "acme", "acme-sd", "0.3", "acme:Acme", "no module [acme]")
    known = registry.installed()
    monkeypatch.setattr(registry, "installed", lambda: [broken, *known])
    status, out, _ = in_process("plugins", "list")
    assert status == 0
    assert "broken: no module [acme]" in " ".join(out.split())
    assert sum(line.split()[-1] == "ok" for line in out.splitlines()) == len(known)


def test_the_demo_writes_its_files_and_the_command_to_repeat_it(tmp_path: Path, in_process, monkeypatch) -> None:
    from sdkeras_cli import analyze, demo

    calls = []
    monkeypatch.setattr(demo, "_EPOCHS", 1)
    monkeypatch.setattr(analyze, "run", lambda request, options: calls.append((request, options)) or 0)
    folder = tmp_path / "my demo"
    status, out, err = in_process("demo", "--output-dir", folder, "--seed", 7)
    assert status == 0, err
    model, data = str(folder / "model.keras"), str(folder / "data.npz")
    ((request, options),) = calls
    assert (request.model, request.data, options) == (model, data, {"batch_size": 32, "seed": 7})
    assert request.json_path == str(folder / "run.json")
    assert sorted(path.name for path in folder.iterdir()) == ["data.npz", "model.keras"]
    again = shlex.split(out.strip().splitlines()[-1])
    assert again[:4] == ["sdkeras", "analyze", model, "--data"]
    assert again[again.index("--seed") + 1] == "7"


def test_progress_shows_what_was_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal products, value and interval; nothing where nobody looks."""
    with progress.progress_bar(quiet=False) as report:
        assert report is None  # pytest's stderr is no terminal
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    with progress.progress_bar(quiet=True) as report:
        assert report is None
    with progress.progress_bar(quiet=False) as report:
        assert report is not None
        report(records.Progress("checking the operator", 0))
        for half_width in (0.0, 5e-324, float("nan"), float("inf")):
            report(records.Progress("runs", 960, value=3447.0, half_width=half_width, num_runs=24, target=0.9))
        report(records.Progress("runs", 1920, value=3447.125, half_width=0.75, num_runs=48, target=0.9))
    assert "1,920 HVPs, 48 runs, SD 3,447.12 ± 0.75 (target 0.9)" in screen.getvalue()


def test_failed_verification_is_status_4(files: Path, tmp_path: Path, in_process) -> None:
    arguments = ["analyze", files / "up.keras", "--data", files / "data.npz", "--json", tmp_path / "run.json"]
    status, _, err = in_process(*arguments)
    assert status == 4
    assert "UpSampling2D" in err
    assert not (tmp_path / "run.json").exists()
    with pytest.warns(UserWarning, match="failed its verification"):
        status, out, _ = in_process(*arguments, "--allow-unverified")
    assert status == 0
    assert "UNVERIFIED" in out
    assert any(w["code"] == "unverified" for w in json.loads((tmp_path / "run.json").read_text())["warnings"])


def test_dry_run_plans_and_writes_nothing(files: Path, tmp_path: Path, in_process) -> None:
    folder = tmp_path / ("a folder [bold] with a long name " * 3)
    folder.mkdir()
    target = folder / "run.json"
    status, out, _ = in_process(
        "analyze", files / "model.keras", "--data", files / "data.npz", "--json", target, "--dry-run"
    )
    assert status == 0
    for word in ("parameters", "products", "memory", "time", str(target)):
        assert word in out
    assert list(folder.iterdir()) == []


def test_interruption_writes_what_there_is(files: Path, tmp_path: Path, in_process, monkeypatch) -> None:
    from sdkeras_plugins.quadrature import StochasticLanczosQuadrature

    calls = []
    original = StochasticLanczosQuadrature.estimate

    def interrupted(self, source, *, seed):
        calls.append(seed)
        if len(calls) == 5:
            signal.raise_signal(signal.SIGINT)
        return original(self, source, seed=seed)

    monkeypatch.setattr(StochasticLanczosQuadrature, "estimate", interrupted)
    out = tmp_path / "run.json"
    status, _, _ = in_process("analyze", files / "model.keras", "--data", files / "data.npz", "--json", out)
    assert status == 130
    found = sdkeras.Analysis.load(out)
    assert found.partial
    assert 3 <= found.sharpness_dimension.num_runs <= 5
    assert found.sharpness_dimension.interval is not None


def test_the_papers_estimators_by_name(files: Path, tmp_path: Path, in_process) -> None:
    out = tmp_path / "run.json"
    command = ("analyze", files / "model.keras", "--data", files / "data.npz", "--estimator", "sd-kde")
    status, _, err = in_process(
        *(*command, "--estimator", "slq", "--set", "sd-kde.bandwidth=1e-4"),
        *("--json", out, "--tolerance", 0.9, "--quiet"),
    )
    assert status == 0, err
    kde, slq = json.loads(out.read_text())["estimates"]
    assert (kde["estimator"], slq["estimator"]) == ("sd-kde", "slq")
    assert kde["settings"]["bandwidth"] == 1e-4
    assert kde["settings"]["learning_rate"] == 0.125
    for setting, message in (("bandwith=1", "has no field 'bandwith'"), ("learning_rate=0.5", "leave the setting out")):
        status, _, err = in_process(*command, "--set", f"sd-kde.{setting}")
        assert status == 2
        assert err.count("sdkeras: error:") == 1
        assert message in err


def test_exact_settings_and_budget(files: Path, tmp_path: Path, in_process) -> None:
    out = tmp_path / "run.json"
    status, _, err = in_process(
        *("analyze", files / "model.keras", "--data", files / "data.npz", "--json", out, "--quiet"),
        *("--exact-minibatches", 5, "--set", "slq.num_steps=12", "--loss", "sparse_categorical_crossentropy"),
        *("--learning-rate", 0.25, "--dtype", "float64", "--map", "hessian", "--mode", "inference"),
    )
    assert status == 0, err
    found = sdkeras.Analysis.load(out)
    assert [estimate.estimator for estimate in found.estimates] == ["exact", "slq"]
    assert found.estimates[0].num_runs == 5
    assert found.estimates[0].definition_value is not None
    assert found.sharpness_dimension.map == "hessian"
    assert found.optimizer.learning_rate_source == "given"


def test_internal_errors_ask_for_a_report(in_process, monkeypatch: pytest.MonkeyPatch) -> None:
    from sdkeras.estimators import registry

    monkeypatch.setattr(registry, "installed", lambda: 1 / 0)
    status, _, err = in_process("plugins", "list")
    assert status == 1
    assert "internal error: ZeroDivisionError" in err
    assert "Traceback" not in err


def test_start_is_quick() -> None:
    """No timing claim: a start that imported TensorFlow would take several times this."""
    start = time.perf_counter()
    assert sdkeras_command("--version").returncode == 0
    assert time.perf_counter() - start < 5


def test_debug_shows_the_traceback_and_keeps_the_status(in_process) -> None:
    status, _, err = in_process("analyze", "missing.keras", "--data", "missing.npz", "--debug")
    assert status == 2
    assert "Traceback" in err
    assert "sdkeras: error: there is no file missing.keras" in err
