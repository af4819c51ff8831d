"""The command line as people meet it: exit statuses, one message, nothing half-written, a quick start."""

import io
import json
import os
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import Any

import attrs
import pytest

import sdkeras
from processes import WITHOUT_TENSORFLOW, python
from sample_log import FOUND, HEADER
from sample_runs import RUN
from sdkeras.errors import SdkerasError
from sdkeras.estimators import kinds, registry
from sdkeras.reporting import progress_bar
from sdkeras.reporting.advice import as_options, rendered
from sdkeras.reporting.report import printable
from sdkeras.results import progress
from sdkeras.results.log import FILE_NAME, append
from sdkeras_cli import output
from sdkeras_cli.main import cli


def test_quick_commands_load_no_tensorflow(tmp_path: Path) -> None:
    """And `sdkeras.callbacks` would, at its first use."""
    for record in (HEADER, FOUND):
        append(tmp_path / FILE_NAME, record)
    for name in ("run.json", "other.json"):
        RUN.save(tmp_path / name)
    then = "import sdkeras\nsys.modules['keras'] = None\ntry:\n    sdkeras.callbacks\n"
    then += "except ImportError as error:\n    assert error.name == 'keras'\nelse:\n    raise AssertionError"
    lines = ["--help", "--version", "plugins list", "analyze --help", "report run.json --html report.html"]
    lines += ["compare run.json other.json --html compare.html --json out.json", "track . --html track.html"]
    done = python(f"{WITHOUT_TENSORFLOW}\n{then}", 0, *lines, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Usage: " in done.stdout
    assert {"report.html", "compare.html", "track.html", "out.json"} <= {path.name for path in tmp_path.iterdir()}


def test_analyze_writes_a_run_that_reads_back(analysed: Path) -> None:
    assert "Sharpness dimension" in (analysed / "stdout.txt").read_text()
    found = sdkeras.Analysis.load(analysed / "run.json")
    assert found.optimizer.learning_rate == 0.125
    assert found.optimizer.iterations == 9
    assert found.data.batch_size == 32
    assert found.verification.passed
    assert (found.partial, found.status) == (False, "finished")
    low, high = found.sharpness_dimension.interval
    assert low <= found.sharpness_dimension.value <= high
    assert "<html" in (analysed / "report.html").read_text()
    assert sorted(path.name for path in analysed.iterdir()) == ["report.html", "run.json", "stdout.txt"]


def test_another_backend_is_refused(files: Path) -> None:
    environment = os.environ | {"KERAS_BACKEND": "jax"}
    run = python("", "analyze", "model.keras", "--data", "data.npz", cwd=files, env=environment)
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
    assert status == 130, err
    assert err.strip() == "sdkeras: interrupted."
    assert list(tmp_path.iterdir()) == []


def test_a_terminal_without_unicode_gets_the_whole_report() -> None:
    code = (
        "from rich.console import Console\nfrom sdkeras_cli import main, plugins\n"
        "plugins.registry.installed = lambda: Console().print('3 \u00b1 1, |g|\u00b2, \u4e2d') or []\n"
        "main.main(['plugins', 'list'])"
    )
    run = python(code, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("3 +- 1, |g|^2, ?\n")


@pytest.mark.parametrize("arguments", [[], ["plugins"]])
def test_no_command_shows_the_help_and_is_wrong_use(arguments: list[str], in_process) -> None:
    status, _, err = in_process(*arguments)
    assert status == 2
    assert err.startswith("Usage:")


def test_a_broken_plugin_is_listed_and_stops_nothing(in_process, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = registry.PluginInfo("spectrum", "acme", "acme-sd", "0.3", "acme:Acme", "no module [acme]")
    known = registry.installed()
    monkeypatch.setattr(registry, "installed", lambda: [broken, *known])
    status, out, _ = in_process("plugins", "list")
    assert status == 0
    assert "broken: no module [acme]" in " ".join(out.split())
    assert sum(line.split()[-1] == "ok" for line in out.splitlines()) == len(known)


def test_plugins_check(in_process) -> None:
    status, out, _ = in_process("plugins", "check", "power-iteration")
    assert (status, "passes" in out) == (0, True)
    status, _, err = in_process("plugins", "check", "power-iteratoin")
    assert (status, "did you mean 'power-iteration'" in err) == (2, True)

    @sdkeras.trace_estimator("off-by-one")
    @attrs.frozen
    class OffByOne:
        def estimate(self, source: sdkeras.SymmetricOperator, *, seed: int) -> sdkeras.TraceEstimate:
            return sdkeras.TraceEstimate(1.0, 0.0, num_matvecs=1, seed=seed)

    try:
        status, _, err = in_process("plugins", "check", "off-by-one")
        assert (status, "num_matvecs is 1" in err) == (2, True)
    finally:
        del kinds._declared["trace", "off-by-one"]


def test_the_demo_writes_its_files_and_the_command_to_repeat_it(tmp_path: Path, in_process, monkeypatch) -> None:
    from sdkeras_cli import demo, request

    calls, real = [], request.Request.answer

    def planned(asked: Any, *arguments: Any) -> int:
        """The analysis of the demo, which is planned and not made."""
        calls.append((asked, *arguments))
        return real(attrs.evolve(asked, dry_run=True), *arguments)

    monkeypatch.setattr(demo, "_EPOCHS", 1)
    monkeypatch.setattr(request.Request, "answer", planned)
    folder = tmp_path / "my demo"
    status, out, err = in_process("demo", "--output-dir", folder, "--seed", 7)
    assert status == 0, err
    model, data = str(folder / "model.keras"), str(folder / "data.npz")
    ((asked, function, options, _),) = calls
    assert (asked.model, asked.data, function, options) == (model, data, "analyze", {"batch_size": 32, "seed": 7})
    assert asked.outputs.jsons == [str(folder / "run.json")]
    assert asked.outputs.pages == [str(folder / "report.html")]
    assert f"written: {model}, {data}\n" in out
    assert sorted(path.name for path in folder.iterdir()) == ["data.npz", "model.keras"]
    again = shlex.split(out.strip().splitlines()[-1])
    assert again[:4] == ["sdkeras", "analyze", model, "--data"]
    assert again[again.index("--seed") + 1] == "7"
    assert again[-2:] == ["--out", str(folder)]


def test_progress_shows_what_was_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal products, value, interval, and each measurement when it is done; nothing if quiet."""
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    with output.progress_bar(quiet=True) as report:
        assert report is None
    with output.progress_bar(quiet=False) as report:
        assert report is not None
        report(progress.Progress("checking the operator", 0))
        for half_width in (0.0, 5e-324, float("nan"), float("inf")):
            report(progress.Progress("runs", 960, value=3447.0, half_width=half_width, num_runs=24, target=0.9))
        late = progress.Progress("runs", 1920, value=3447.125, half_width=0.75, num_runs=48, target=0.9)
        report(attrs.evolve(late, seconds_left=41.0))
        report(progress.Progress("runs", 1920, reading="largest eigenvalue [1.86]"))
    assert "SD 3,447.12 within 0.75 (aim: 0.9), 48/48 runs, about 40 s left" in screen.getvalue()
    assert "largest eigenvalue [1.86]" in screen.getvalue()


def test_a_log_gets_a_line_every_ten_seconds(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress_bar.time, "monotonic", lambda: now[0])
    with output.progress_bar(quiet=False) as report:
        report(progress.Progress("trace", 10, reading="largest eigenvalue 1.86"))
        now[0] = 9.9
        report(progress.Progress("trace", 20))
        assert capsys.readouterr().err == ""
        now[0] = 10.0
        report(progress.Progress("runs", 960, value=3447.0, half_width=0.75, num_runs=24))
        assert capsys.readouterr().err == "largest eigenvalue 1.86\nruns: 960 HVPs, 24 runs, SD 3,447.00\n"
        report(progress.Progress("runs", 1000, reading="Sharpness dimension 3,447"))
        assert capsys.readouterr().err == ""


def test_failed_verification_is_status_4(files: Path, tmp_path: Path, in_process) -> None:
    arguments = ["analyze", files / "up.keras", "--data", files / "data.npz", "--json", tmp_path / "run.json"]
    status, _, err = in_process(*arguments)
    assert status == 4
    assert "UpSampling2D" in err
    assert not (tmp_path / "run.json").exists()
    with pytest.warns(UserWarning, match="failed its verification"):
        status, out, _ = in_process(*arguments, "--allow-unverified", "--tolerance", 0.9, "--max-hvps", 100)
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
    for word in ("parameters", "products", "memory", "time", "standard: samples 4,096, tolerance 0.05", str(target)):
        assert word in out
    assert list(folder.iterdir()) == []


def test_interruption_writes_what_there_is(files: Path, tmp_path: Path, in_process, monkeypatch) -> None:
    from sdkeras_plugins.quadrature import StochasticLanczosQuadrature

    groups = []
    original = StochasticLanczosQuadrature.estimate_many

    def interrupted(self, source, *, seeds):
        groups.append(len(seeds))
        if len(groups) == 3:
            signal.raise_signal(signal.SIGINT)
        return original(self, source, seeds=seeds)

    monkeypatch.setattr(StochasticLanczosQuadrature, "estimate_many", interrupted)
    out = tmp_path / "run.json"
    command = ("analyze", files / "model.keras", "--data", files / "data.npz", "--tolerance", 0.001, "--json", out)
    status, _, err = in_process(*command)
    assert status == 130, err
    found = sdkeras.Analysis.load(out)
    assert (found.partial, found.status) == (True, "interrupted")
    assert 3 <= found.sharpness_dimension.num_runs == sum(groups[:2])
    assert found.sharpness_dimension.interval is not None


@pytest.mark.slow
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


@pytest.mark.parametrize(
    ("setting", "message"), [("bandwith=1", "has no field 'bandwith'"), ("learning_rate=0.5", "leave the setting out")]
)
def test_settings_of_the_papers_estimators(files: Path, in_process, setting: str, message: str) -> None:
    command = ("analyze", files / "model.keras", "--data", files / "data.npz", "--estimator", "sd-kde")
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
    monkeypatch.setattr(registry, "installed", lambda: 1 / 0)
    status, _, err = in_process("plugins", "list")
    assert status == 1
    assert "internal error: ZeroDivisionError" in err
    assert "Traceback" not in err


def test_start_is_quick() -> None:
    """No timing claim: a start that imported TensorFlow would take several times this."""
    start = time.perf_counter()
    assert python("", "--version").returncode == 0
    assert time.perf_counter() - start < 5


def test_debug_shows_the_traceback_and_keeps_the_status(in_process) -> None:
    status, _, err = in_process("analyze", "missing.keras", "--data", "missing.npz", "--debug")
    assert status == 2
    assert "Traceback" in err
    assert "sdkeras: error: there is no file missing.keras" in err


@pytest.mark.parametrize("words", ["sdkeras report ru", "sdkeras analyze mo", "sdkeras analyze model.keras --json ru"])
def test_file_names_complete_in_the_shell(words: str, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    for name, text in (("_SDKERAS_COMPLETE", "bash_complete"), ("COMP_WORDS", words)):
        monkeypatch.setenv(name, text)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    with pytest.raises(SystemExit):
        cli(prog_name="sdkeras")
    assert capsys.readouterr().out.startswith("file,")


OPTIONS = {name: f"--{name.replace('_', '-')}" for name in ("learning_rate", "loss", "dtype", "exact", "class_weight")}
OPTIONS |= {"settings": "--set", "memory_gb": "--memory"}


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("give it (`learning_rate=F`).", "give it (--learning-rate F)."),
        ("take `exact=True`", "take --exact"),
        ("`loss=NAME, dtype='float64'`", "--loss NAME --dtype float64"),
        ("leave out `learning_rate` or `loss`", "leave out --learning-rate or --loss"),
        ("`class_weight={0: 1.0, 1: 9.0}`", "--class-weight 0=1.0,1=9.0"),
        ("`settings={'sd-kde': {'bandwidth': H}}`", "--set sd-kde.bandwidth=H"),
        ("`memory_gb=2.5`", "--memory 2.5"),
        ("`loss='FILE.py:FUNCTION'`", "--loss FILE.py:FUNCTION"),
        ("`fit` takes `workers=2`, `f(x)`, `x y`, ``, `loss", "`fit` takes `workers=2`, `f(x)`, `x y`, ``, `loss"),
        ("`loss=NAME, workers=2`", "`loss=NAME, workers=2`"),
    ],
)
def test_an_argument_is_shown_as_its_reader_writes_it(message: str, shown: str) -> None:
    assert rendered(message) == message
    with as_options(OPTIONS):
        assert rendered(message) == shown
        assert printable(message) == shown
    assert printable(message) == message


def test_errors_of_a_command_name_its_options(monkeypatch: pytest.MonkeyPatch, in_process: Any) -> None:
    def refuse(*_: Any) -> None:
        raise SdkerasError("give `memory_gb=GB, lyapunov_steps=N`, or `windows`.")

    monkeypatch.setattr("sdkeras_cli.request.check_inputs", refuse)
    status, _, err = in_process("analyze", "model.keras", "--data", "data.npz")
    assert status == 2
    assert err == "sdkeras: error: give --memory GB --lyapunov-steps N, or `windows`.\n"
    assert rendered("`memory_gb=GB`") == "`memory_gb=GB`"
