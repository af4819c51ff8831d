"""`sdkeras watch`: a log that grows between two looks, which the tests make happen in place of waiting."""

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import attrs
import pytest

from processes import python
from sample_log import FOUND, HEADER
from sdkeras.files.atomic import Claim, beside, holder_of
from sdkeras.reporting import html
from sdkeras.results.log import FILE_NAME, append, claim
from sdkeras_cli import watch

RELOAD = '<meta http-equiv="refresh" content="2">'


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], object]]:
    """What happens between two looks, one after the other; then Ctrl-C."""
    steps: list[Callable[[], object]] = []

    def sleep(seconds: float) -> None:
        assert seconds == 2.0
        if not steps:
            raise KeyboardInterrupt
        steps.pop(0)()

    monkeypatch.setattr(watch.time, "sleep", sleep)
    return steps


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int | None]]:
    """The pages that were written: their headlines, and when they load themselves again."""
    written: list[tuple[str, int | None]] = []

    def save(report, path: str) -> None:
        written.append((report.headline, report.reload))
        Path(path).write_text("drawn")

    monkeypatch.setattr(html, "save_html", save)
    return written


def begin(place: Path) -> Claim:
    place.parent.mkdir(exist_ok=True)
    writer = claim(place)
    append(place, HEADER)
    append(place, FOUND)
    return writer


def at(step: int, ratio: float = 0.6):
    values = FOUND.values | {"sharpness_ratio": attrs.evolve(FOUND.values["sharpness_ratio"], value=ratio)}
    return attrs.evolve(FOUND, step=step, epoch=step // 10, values=values)


def test_a_training_from_before_its_folder_to_its_end(in_process, tmp_path: Path, looks, pages) -> None:
    place, writers = tmp_path / "run" / FILE_NAME, []
    looks += [
        place.parent.mkdir,
        place.touch,
        lambda: place.write_text('{"schema_version": 1, "sd'),  # half a header
        lambda: writers.append(begin(place.with_name("other"))) or place.unlink(),
        lambda: writers.append(begin(place)),
        lambda: None,
        lambda: append(place, at(20, 1.2)),
        lambda: place.open("ab").write(b'{"source": "fit", "st'),  # half a line, by a writer at work
        lambda: append(place, at(30)),
        lambda: writers[-1].close(),
    ]
    status, out, err = in_process("watch", place.parent)
    assert (status, err, looks) == (0, "", [])
    lines = out.splitlines()
    assert lines[0] == f"waiting for a measurement: there is no folder {place.parent} yet"
    assert lines[1] == f"net: 1 measurement so far; the page is {place.parent}/watch.html"
    assert [re.match(r"step (\d+), epoch (\d+): sharpness 12,", line).groups() for line in lines[2:5]] == [
        ("10", "1"),
        ("20", "2"),
        ("30", "3"),
    ]
    assert "sharpness_codimension 470 [460, 480]" in lines[2]
    assert "hessian_trace" not in out
    assert lines[5].startswith(f"no training writes {place} any more")
    # One page for each time that the log had changed, and at the end one that rests.
    where = [("Below", 10, 2), ("Above", 20, 2), ("Above", 20, 2), ("Below", 30, 2), ("Below", 30, None)]
    assert pages == [(f"{word} the edge of stability at step {step}", reload) for word, step, reload in where]
    assert (place.parent / "watch.html").read_text() == "drawn"


def test_ctrl_c_ends_it_with_a_page_that_rests(in_process, tmp_path: Path, looks) -> None:
    writer = begin(tmp_path / FILE_NAME)
    page = tmp_path / "page.html"
    drawn = []
    looks.append(lambda: drawn.append(page.read_text()))
    status, out, err = in_process("watch", tmp_path, "--html", page, "--quiet")
    assert (status, out, err) == (130, "", "sdkeras: interrupted.\n")
    assert page.read_text().startswith("<!doctype html>")
    assert 'http-equiv="refresh"' not in page.read_text()
    writer.close()


def test_a_training_that_has_ended_is_shown_once(in_process, tmp_path: Path, looks, pages) -> None:
    begin(tmp_path / FILE_NAME).close()
    status, out, _ = in_process("watch", tmp_path)
    assert (status, len(pages)) == (0, 1)
    assert "no training writes" in out
    assert pages[0][1] is None


def test_what_it_refuses(in_process, tmp_path: Path, looks) -> None:
    (tmp_path / FILE_NAME).write_text("no log\n")
    (tmp_path / "old" / "watch.html").mkdir(parents=True)
    for arguments, words in {
        (tmp_path / FILE_NAME,): "is a file; give the folder of the log",
        (tmp_path / "new", "--html", tmp_path / "nowhere" / "a.html"): "nowhere/a.html does not exist",
        (tmp_path, "--html", tmp_path / FILE_NAME): "would be overwritten",
        (tmp_path / FILE_NAME / "below",): f"{FILE_NAME} is a file; give the folder of the log",
        (tmp_path / "old",): "old/watch.html is a folder",
        ("",): "Invalid value for 'RUN_DIR': it is empty",
        (tmp_path, "--html", ""): "the name of a file to write is empty",
        (tmp_path / "new", "--interval", 0): "Invalid value for '--interval'",
        (tmp_path / "new", "--timeout", 1e-9): "nothing was measured in 1e-09 s: there is no folder",
        (tmp_path,): "does not begin with the header",
    }.items():
        status, _, err = in_process("watch", *arguments)
        assert (status, err.count("\n")) == (2, 1), err
        assert words in err


def test_it_waits_no_longer_than_it_was_told(in_process, tmp_path: Path, monkeypatch) -> None:
    """Looks two seconds apart, of which the last one is after half a second."""
    now, pauses = [100.0], []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(watch, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    status, _, err = in_process("watch", tmp_path / "new", "--timeout", 4.5)
    assert (status, pauses) == (2, [2.0, 2.0, 0.5])
    assert "nothing was measured in 4.5 s" in err


def test_the_holder_of_a_log_is_the_process_that_writes_it_while_it_lives(tmp_path: Path) -> None:
    place = tmp_path / FILE_NAME
    assert holder_of(place) is None
    writer = Claim(place, "wait")
    lock = beside(place, ".lock")
    process = lock.read_text().split()[1]
    assert holder_of(place).startswith(f"process {process} on ")
    here = lock.read_text()
    dead = python("import os; print(os.getpid())").stdout.strip()
    for text, lives in {
        here.replace(process, dead, 1): False,
        f"sdkeras {dead} another-host\n": True,
        "": False,
    }.items():
        lock.write_text(text)
        assert (holder_of(place) is not None) == lives
    writer.close()
    assert holder_of(place) is None
