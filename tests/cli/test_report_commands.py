"""`report`, `plugins check` and `--fail-if`: no TensorFlow, one message, exit statuses."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import attrs
import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as examples
from hypothesis import strategies as st

import sdkeras
from sdkeras.errors import SdkerasError
from sdkeras.estimators import kinds, registry
from sdkeras_cli import conditions, options
from sdkeras_cli import main as cli_main


@pytest.fixture(scope="module")
def run_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import keras
    import numpy as np

    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).standard_normal((40, 4)).astype("float32")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    model.compile(keras.optimizers.SGD(0.5), "mse")
    path = tmp_path_factory.mktemp("run") / "run.json"
    run = sdkeras.analyze(model, (x, x[:, :2]), bound_inputs={"delta": 0.1, "loss_bound": 0.5})
    attrs.evolve(run, model=attrs.evolve(run.model, name="<b>net")).save(path)
    return path


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit_info:
        cli_main.main([str(argument) for argument in arguments])
    return exit_info.value.code


def test_report_redraws_without_tensorflow(run_json: Path, tmp_path: Path) -> None:
    page = tmp_path / "again.html"
    code = (
        "import sys\nfrom sdkeras_cli.main import main\n"
        f"try: main(['report', {str(run_json)!r}, '--html', {str(page)!r}])\n"
        "except SystemExit as e: assert not e.code, e.code\n"
        "assert not {'tensorflow', 'keras'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert "Theorem 4.5" in page.read_text()
    assert "&lt;b&gt;net" in page.read_text()
    assert "<b>net" not in page.read_text()


def test_report_in_the_terminal(run_json: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("report", run_json) == 0
    shown = capsys.readouterr().out
    assert "Sharpness dimension" in shown
    assert "Assumptions of the bounds" in shown
    assert call("report", run_json, "--quiet") == 0
    assert capsys.readouterr().out == ""


def test_report_refuses(run_json: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("report", tmp_path / "none.json") == 2
    assert call("report", run_json, "--html", run_json) == 2
    assert call("report", run_json, "--html", tmp_path / "no" / "page.html") == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3
    assert all(line.startswith("sdkeras: error: ") for line in errors)


@pytest.mark.parametrize(
    ("expression", "status"),
    [
        ("sharpness_dimension.state_size == 10", 3),
        ("sharpness_dimension.state_size != 10", 0),
        ("sharpness_dimension.state_size>=10 and hessian.trace.value > 0", 3),
        ("sharpness_dimension.state_size > 10 and hessian.trace.value > 0", 0),
        ("sharpness_dimension.state_size > 10 or hessian.trace.value > 0", 3),
        # and binds more tightly than or
        ("hessian.trace.value > 0 or hessian.trace.value > 0 and data.num_samples < 1", 3),
        ("rds_sharpness.leading.0 > 1e9", 0),
        ("bounds.0.partial_sum >= 0", 3),
        ("bounds.0.total > 1", 2),  # null
        ("hessian.trace.value > 0 or bounds.0.total > 1", 2),  # a null never hides behind an or
        ("bounds.7.total > 1", 2),
        ("layers.0.codimension > 1", 2),
    ],
)
def test_fail_if(run_json: Path, expression: str, status: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("report", run_json, "--quiet", "--fail-if", expression) == status
    assert len(capsys.readouterr().err.splitlines()) == (status != 0)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("", "PATH OP NUMBER"),
        ("x", "PATH OP NUMBER"),
        ("edge_of_stability.ratio > 1 and", "PATH OP NUMBER"),
        ("edge_of_stability.ratio > many", "'many' is not a number"),
        ("edge_of_stability.ratio > nan", "not a number"),
        ("edge_of_stability.ration > 1", "did you mean 'ratio'"),
        ("edge_of_stability > 1", "go on with one of"),
        ("edge_of_stability.verdict == 1", "not a number"),
        ("edge_of_stability.ratio.value > 1", "has no 'value'"),
        ("rds_sharpness.leading > 1", "not a number"),
        ("rds_sharpness.leading.x > 1", "lists take a number"),
        ("sharpness_dimension.interval.2 > 1", "has no '2'"),
        ("delta.edge_of_stability.ratio > 1", "has no 'delta'"),
    ],
)
def test_expressions_that_are_refused_before_the_work(expression: str, message: str) -> None:
    with pytest.raises(SdkerasError, match=message):
        conditions.parse(expression)
    assert call("analyze", "no-such-model.keras", "--data", "x.npz", "--fail-if", expression) == 2


def test_every_path_of_a_run_is_known(run_json: Path) -> None:
    def paths(value: object, at: str) -> list[str]:
        if isinstance(value, dict):
            return [path for key, entry in value.items() for path in paths(entry, f"{at}.{key}" if at else key)]
        if isinstance(value, list):
            return [path for k, entry in enumerate(value[:2]) for path in paths(entry, f"{at}.{k}")]
        return [at] if isinstance(value, (int, float)) else []

    document = json.loads(run_json.read_text())
    found = paths(document, "")
    assert len(found) > 60
    for path in found:
        conditions.parse(f"{path} > 0")


def test_plugins_check(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert call("plugins", "check", "power-iteration") == 0
    assert "passes" in capsys.readouterr().out
    assert call("plugins", "check", "power-iteratoin") == 2
    assert "did you mean 'power-iteration'" in capsys.readouterr().err

    @sdkeras.trace_estimator("off-by-one")
    @attrs.frozen
    class OffByOne:
        def estimate(self, source: sdkeras.SymmetricOperator, *, seed: int) -> sdkeras.TraceEstimate:
            return sdkeras.TraceEstimate(1.0, 0.0, num_matvecs=1, seed=seed)

    try:
        assert call("plugins", "check", "off-by-one") == 2
        assert "num_matvecs is 1" in capsys.readouterr().err
    finally:
        del kinds._declared["trace", "off-by-one"]


@pytest.mark.parametrize("text", ["delta", "delta=x", "=1", "delta=2", "gamma=1"])
def test_bad_bound_inputs(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("analyze", "no-such-model.keras", "--data", "x.npz", "--bound", text) == 2
    assert "no file" not in capsys.readouterr().err


@examples(suppress_health_check=[HealthCheck.too_slow], deadline=None)  # a busy machine
@given(st.text() | st.from_regex(r"[a-z_.0-9]+ (<|>=|!=) \S+( (and|or) [a-z_.0-9]+ < [0-9]+)?", fullmatch=True))
@example("hessian.largest.value < " + "9" * 5000)
@example(f"rds_sharpness.values.{'9' * 5000} < 1")
@example(f"warnings.{'9' * 5000}.code < 1")
@example("a.b " * 5000)
def test_no_text_of_an_option_leaves_a_traceback(text: str) -> None:
    for parse in (
        conditions.parse,
        lambda t: options.bound_inputs(None, None, (t,)),
        lambda t: options.settings_of(registry.ANALYSIS_KINDS, "")(None, None, (t,)),
    ):
        with contextlib.suppress(SdkerasError):
            parse(text)


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs /dev/full")
def test_a_full_disk_behind_the_output_is_one_message(run_json: Path) -> None:
    code = "from sdkeras_cli.main import main; main()"
    with open("/dev/full", "w") as full:
        run = subprocess.run(
            [sys.executable, "-c", code, "report", str(run_json)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert run.returncode == 2
    assert "No space left" in run.stderr
    assert "internal error" not in run.stderr


def test_sigterm_ends_a_command_as_ctrl_c_does(run_json: Path) -> None:
    code = (
        "import os, signal\nfrom sdkeras_cli import main, report\n"
        "report.load_document = lambda *_: os.kill(os.getpid(), signal.SIGTERM)\nmain.main()"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, "report", str(run_json)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 130
    assert run.stderr.strip() == "sdkeras: interrupted."


@pytest.mark.parametrize("words", ["sdkeras report ru", "sdkeras analyze mo", "sdkeras analyze model.keras --json ru"])
def test_file_names_complete_in_the_shell(words: str) -> None:
    environment = os.environ | {"_SDKERAS_COMPLETE": "bash_complete", "COMP_WORDS": words}
    environment["COMP_CWORD"] = str(len(words.split()) - 1)
    code = "from sdkeras_cli.main import cli; cli(prog_name='sdkeras')"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert run.stdout.startswith("file,")
