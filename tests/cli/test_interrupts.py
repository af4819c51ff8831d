"""Ctrl-C at any moment is exit status 130 and one message, imports, writing and the shutdown included."""

import signal
import subprocess
from pathlib import Path

import pytest

from processes import python
from sample_runs import RUN

# Sends the signal at the import of a module, from inside it.
AT_IMPORT = """
import importlib.abc, os, signal, sys
class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except BaseException:  # as a library may
                raise ImportError("broken")
sys.meta_path.insert(0, Finder())
from sdkeras_cli.__main__ import main
main()
"""


def run(code: str, *arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    # Shells ignore the signal in what they run behind.
    return python(code, *arguments, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), **options)


@pytest.fixture(scope="module")
def run_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "run.json"
    RUN.save(path)
    return path


@pytest.mark.parametrize(
    "module",
    ["sdkeras_cli.main", "click", "sdkeras_cli.report", "cattrs", pytest.param("rich.table", marks=pytest.mark.slow)],
)
def test_while_modules_are_imported(run_json: Path, module: str) -> None:
    done = run(AT_IMPORT.format(module=module), "report", run_json)
    assert (done.returncode, done.stderr) == (130, "sdkeras: interrupted.\n")


@pytest.mark.parametrize(
    "module",
    [
        "tensorflow.python.framework.ops",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("tensorflow", "keras")),
    ],
)
def test_while_tensorflow_is_imported(run_json: Path, module: str, tmp_path: Path) -> None:
    """Its chatter is silenced meanwhile, and the message is not."""
    for name in ("model.keras", "data.npz"):
        (tmp_path / name).touch()
    done = run(AT_IMPORT.format(module=module), "analyze", tmp_path / "model.keras", "--data", tmp_path / "data.npz")
    told = "starting TensorFlow, which takes a few seconds\n"
    assert (done.returncode, done.stderr) == (130, f"{told}sdkeras: interrupted.\n")


def interrupted_in(place: str) -> str:
    """A program in which a signal comes at a place of the report command."""
    return f"""
import os, signal, sys
from sdkeras_cli import main, output, report
send = lambda *_, **__: os.kill(os.getpid(), signal.SIGINT)
{place}
from sdkeras_cli.__main__ import main
main()
"""


@pytest.mark.parametrize("name", ["SIGINT", pytest.param("SIGTERM", marks=pytest.mark.slow)])
def test_while_a_file_is_written(run_json: Path, tmp_path: Path, name: str) -> None:
    code = interrupted_in("os.replace = send").replace("SIGINT", name)
    done = run(code, "compare", run_json, run_json, "--json", tmp_path / "out.json")
    assert (done.returncode, done.stderr.strip()) == (130, "sdkeras: interrupted.")
    assert list(tmp_path.iterdir()) == []


def test_the_second_one_ends_a_command_that_catches_the_first(run_json: Path) -> None:
    code = interrupted_in("""
def stubborn(*_):
    for _ in range(3):
        try:
            send()
        except KeyboardInterrupt:
            print("caught", flush=True)
report.load_document = stubborn
""")
    done = run(code, "report", run_json)
    assert (done.returncode, done.stdout, done.stderr) == (130, "caught\n", "sdkeras: interrupted.\n")


def test_a_library_that_makes_another_error_of_it(run_json: Path) -> None:
    code = interrupted_in("""
def converting(*_):
    try:
        send()
    except KeyboardInterrupt:
        raise RuntimeError("callback failed")
report.load_document = converting
""")
    done = run(code, "report", run_json)
    assert (done.returncode, done.stderr) == (130, "sdkeras: interrupted.\n")


def test_while_the_message_of_an_error_is_made(run_json: Path) -> None:
    code = interrupted_in("import sdkeras.reporting.report\nsdkeras.reporting.report.printable = send")
    done = run(code, "report", "no-such.json")
    assert (done.returncode, done.stderr) == (130, "sdkeras: interrupted.\n")


def test_while_the_interpreter_shuts_down(run_json: Path) -> None:
    done = run(interrupted_in("import atexit\natexit.register(send)"), "report", run_json)
    assert (done.returncode, done.stderr) == (130, "sdkeras: interrupted.\n")


def test_a_process_that_was_started_to_ignore_it_does(run_json: Path) -> None:
    code = "import os, signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n" + interrupted_in("send()")
    done = run(code + "\n", "report", run_json)
    assert (done.returncode, done.stderr) == (0, "")


def test_sigterm_does_the_same(run_json: Path) -> None:
    code = AT_IMPORT.format(module="cattrs").replace("SIGINT", "SIGTERM")
    done = run(code, "report", run_json)
    assert (done.returncode, done.stderr) == (130, "sdkeras: interrupted.\n")


@pytest.mark.parametrize("columns", ["0", "1", "7"])
def test_a_terminal_of_no_width(run_json: Path, in_process, monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    """Every number is still there, in 40 columns at least."""
    monkeypatch.setenv("COLUMNS", columns)
    status, shown, err = in_process("report", run_json)
    assert (status, err) == (0, "")
    assert "1,530.2" in shown
    widest = max(len(line) for line in shown.splitlines())
    assert 30 < widest <= (80 if columns == "0" else 40)
