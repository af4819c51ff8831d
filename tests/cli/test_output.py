"""What commands write and how they say so, the page in the browser, and the groups of their help."""

import os
import re
import webbrowser
from collections.abc import Iterator
from pathlib import Path

import attrs
import click
import pytest

import sdkeras
from processes import python
from sample_log import FOUND, HEADER
from sample_runs import ALONE, RUN
from sdkeras.results.log import FILE_NAME, append
from sdkeras.runs.declare import GROUPS
from sdkeras.runs.lyapunov_options import LyapunovOptions
from sdkeras.runs.options import Options
from sdkeras_cli.main import cli
from sdkeras_cli.options import _OF_PYTHON as OF_PYTHON


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of different presets, and a log."""
    folder = tmp_path_factory.mktemp("saved")
    for name in ("quick", "standard"):
        attrs.evolve(RUN, provenance=attrs.evolve(RUN.provenance, preset=name)).save(folder / f"{name}.json")
    append(folder / FILE_NAME, HEADER)
    append(folder / FILE_NAME, FOUND)
    return folder


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The pages that were opened."""
    pages: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda page: pages.append(page) is None)
    return pages


def test_a_folder_holds_the_answer_and_its_page(saved: Path, tmp_path: Path, in_process, opened) -> None:
    for number, (words, names) in enumerate(
        (
            (("report", saved / "quick.json"), ["report.html"]),
            (("track", saved), ["track.html"]),
            (("compare", saved / "quick.json", saved / "standard.json"), ["comparison.json", "comparison.html"]),
        )
    ):
        folder = tmp_path / "new" / str(number)
        more = tmp_path / f"{number}.html"
        status, out, err = in_process(*words, "--out", folder, "--html", more, "--open")
        assert (status, err) == (0, "")
        paths = [folder / name for name in names]
        assert sorted(folder.iterdir()) == sorted(paths)
        assert more.read_text() == paths[-1].read_text()
        listed = [str(path) for path in (*paths[:-1], more, paths[-1])]
        assert out.splitlines()[-2:] == [f"written: {', '.join(listed)}", f"opened: {more}"]
        assert opened[-1] == more.as_uri()
        assert in_process(*words, "--out", folder, "--quiet") == (0, "", "")
    assert sdkeras.Comparison.load(tmp_path / "new" / "2" / "comparison.json").settings[0].label == "preset"


@pytest.mark.parametrize("failure", [False, webbrowser.Error("no display"), OSError("none")])
def test_without_a_browser_that_is_a_note(saved: Path, tmp_path: Path, in_process, monkeypatch, failure) -> None:
    def no_browser(page: str) -> bool:
        if isinstance(failure, Exception):
            raise failure
        return False

    monkeypatch.setattr(webbrowser, "open", no_browser)
    page = tmp_path / "page.html"
    status, out, err = in_process("report", saved / "quick.json", "--html", page, "--open")
    assert (status, out) == (0, f"written: {page}\n")
    assert err == f"sdkeras: note: no browser could be started; open {page}\n"


def test_the_rest_is_there_with_verbose(saved: Path, in_process) -> None:
    _, brief, _ = in_process("report", saved / "quick.json")
    _, verbose, _ = in_process("report", saved / "quick.json", "--verbose")
    assert "Provenance" in verbose
    assert "Provenance" not in brief
    assert "--verbose shows every number" in brief
    assert "--verbose" not in verbose


def test_a_run_is_named_by_its_folder_too(tmp_path: Path, in_process) -> None:
    before, after, other = (tmp_path / name for name in ("before", "after", "other"))
    for folder in (before, after, other):
        folder.mkdir()
    RUN.save(before / "run.json")
    attrs.evolve(RUN, provenance=attrs.evolve(RUN.provenance, preset="quick")).save(after / "run.json")
    ALONE.save(other / "lyapunov.json")
    for folders in ((before,), (before, after), (other,)):
        command = "report" if len(folders) == 1 else "compare"
        files = [next(folder.iterdir()) for folder in folders]
        status, out, _ = in_process(command, *folders)
        assert (status, out) == (0, in_process(command, *files)[1])
    (before / "lyapunov.json").touch()
    for arguments, words in {
        (before,): f"{before} holds run.json and lyapunov.json; name the file",
        (tmp_path,): f"{tmp_path} holds neither run.json nor lyapunov.json; name the file",
        ("",): "it is empty",
    }.items():
        status, _, err = in_process("report", *arguments)
        assert (status, err.count("\n")) == (2, 1)
        assert words in err


def test_a_stream_is_not_called_a_file(saved: Path, in_process) -> None:
    words = ("compare", saved / "quick.json", saved / "standard.json", "--json", "/dev/null")
    assert "written" not in in_process(*words)[1]


@pytest.fixture
def closed() -> Iterator[int]:
    """A pipe whose reader has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@pytest.mark.parametrize("command", ["compare", "--help"])
def test_a_reader_who_goes_is_one_line_and_files_are_whole(command: str, saved: Path, tmp_path: Path, closed) -> None:
    answer = tmp_path / "comparison.json"
    files = (saved / "quick.json", saved / "standard.json", "--json", answer) if command == "compare" else ()
    done = python("", command, *files, stdout=closed)
    said = "sdkeras: error: the output cannot be written: its reader has closed the pipe (as head does).\n"
    assert (done.returncode, done.stderr) == (2, said)
    assert not files or sdkeras.Comparison.load(answer).settings
    assert sorted(tmp_path.iterdir()) == ([answer] if files else [])


def test_nor_does_it_fail_where_nobody_reads_the_error(closed) -> None:
    assert python("", "--help", stdout=closed, stderr=closed).returncode == 2


def command_of(*names: str) -> tuple[click.Command, click.Context]:
    """The command, and a context that is 80 columns wide."""
    command: click.Command = cli
    context = click.Context(cli, info_name="sdkeras", terminal_width=80)
    for name in names:
        assert isinstance(command, click.Group)
        found = command.get_command(context, name)
        assert found is not None
        command, context = found, click.Context(found, context, info_name=name, terminal_width=80)
    return command, context


@pytest.mark.parametrize("names", [("analyze",), ("lyapunov",), ("track",), ("study", "run"), ("study", "trajectory")])
def test_options_are_in_groups_and_the_help_ends_with_an_example(names: tuple[str, ...]) -> None:
    command, context = command_of(*names)
    text = command.get_help(context)
    first = text.split("\n\n")[1].strip()
    assert first[0].isupper()
    assert first.endswith(".")
    text = text[text.index(f"\n{GROUPS[0]}:") :]
    assert max(map(len, text.splitlines())) <= 80
    headings = [line.removesuffix(":") for line in text.splitlines() if line[:1].isalpha() and line.endswith(":")]
    assert headings == [title for title in GROUPS if title in headings]
    assert {"What to analyse", "Output", "Expert"} <= set(headings)
    shown = [line.split()[0].rstrip(",") for line in text.splitlines() if line.startswith("  -")]
    assert len(shown) == len(set(shown)) == sum(isinstance(each, click.Option) for each in command.get_params(context))
    for block in text.split("\n\n"):
        options = [line.split()[0] for line in block.splitlines() if line.startswith("  --")]
        assert [each for each in options if each not in ("--data", "--out")] == sorted(
            each for each in options if each not in ("--data", "--out")
        )
    assert text.splitlines()[-1].strip().startswith(f"sdkeras {' '.join(names)} ")


@pytest.mark.parametrize("names", [("analyze",), ("lyapunov",), ("track",), ("study", "run"), ("report",)])
def test_each_group_of_options_has_an_example_that_is_taken(names: tuple[str, ...]) -> None:
    command, context = command_of(*names)
    groups = [block for block in command.get_help(context).split("\n\n") if block.split(":")[0] in GROUPS]
    examples = [re.findall(r"^  Example: (.*)$", block, re.MULTILINE) for block in groups]
    if names == ("analyze",):
        assert [len(each) for each in examples] == [1] * len(GROUPS)
    taken = {option: each for each in command.params for option in each.opts}
    for block, lines in zip(groups, examples, strict=True):
        for option, value in re.findall(r"(--\S+)(?: (?!--)(\S+))?", " ".join(lines)):
            assert f"  {option}" in block
            taken[option].process_value(context, value or True)
    assert any(examples)


def test_every_option_of_the_library_is_in_the_help() -> None:
    for name, record in (("analyze", Options), ("lyapunov", LyapunovOptions)):
        command, _ = command_of(name)
        parameters = {each.name for each in command.params}
        assert set(attrs.fields_dict(record)) - set(OF_PYTHON) <= parameters


def test_the_help_shows_the_ranges_that_are_taken(in_process) -> None:
    shown = " ".join(in_process("landscape", "--help")[1].split())
    assert "[3<=x<=1001]" in shown
    assert "1<=x<=2]" in shown
    lyapunov = " ".join(in_process("lyapunov", "--help")[1].split())
    forks = lyapunov[lyapunov.index("--forks") :]
    assert "4 or more. [default: 1]" in forks[: forks.index("--", 2)]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--batchsize", "--batch-size"),
        ("--batch_size", "--batch-size"),
        ("-batch-size", "--batch-size"),
        ("--bacth-size=3", "--batch-size"),
        ("--learningrate", "--learning-rate"),
        ("--lr", "--learning-rate"),
        ("--sample", "--samples"),
        ("--toleranse", "--tolerance"),
        ("--Seed", "--seed"),
        ("--report_to", "--report-to"),
        ("--memory-gb", "--memory"),
        ("--output", "--out"),
        ("--noexact", "--no-exact"),
        ("--TOLERANCE", "--tolerance"),
        ("--foo", None),  # nor --log, which has two dashes and an o of it
        ("--xyz", None),
        ("-q", "--quiet"),
        ("-s", None),
    ],
)
def test_an_option_that_is_mistyped_gets_one_suggestion(typed: str, meant: str | None, in_process) -> None:
    status, out, err = in_process("analyze", "model.keras", "--data", "data.npz", typed, "3")
    hint = "." if meant is None else f". Did you mean '{meant}'?"
    said = f"sdkeras: error: No such option '{typed.partition('=')[0]}'{hint} See '"
    assert (status, out, err[: len(said)]) == (2, "", said)
