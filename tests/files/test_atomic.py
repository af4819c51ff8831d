"""Files are written whole and never through a link; killed writers leave nothing for long; writers are alone."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest

from sdkeras.errors import SdkerasError
from sdkeras.files.archive import load_checkpoint, save_checkpoint
from sdkeras.files.atomic import (
    Claim,
    beside,
    check_is_file,
    lock,
    make_folder,
    only_writer,
    open_own,
    shown,
    write_whole,
)
from sdkeras.results import log

ADVICE = "wait"


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def run(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A file that nothing here may touch."""
    path = tmp_path / "outside.txt"
    path.write_text("precious")
    return path


WRITERS = {
    "lock of a file": (".run.npz.lock", lambda place: Claim(place.with_name("run.npz"), ADVICE)),
    "lock of a folder": (".lock", lambda place: Claim(place.parent, ADVICE)),
    "log": (log.FILE_NAME, lambda place: log.place_in(place.parent)),
    "line of a log": (log.FILE_NAME, lambda place: os.close(open_own(place, os.O_WRONLY | os.O_CREAT))),
    "checkpoint": ("run.npz", lambda place: save_checkpoint(place, 1)),
    "file of a study": ("study.json", lambda place: write_whole(place, lambda file: file.write(b"{}"))),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_no_writer_follows_a_link(tmp_path: Path, outside: Path, writer: str) -> None:
    name, write = WRITERS[writer]
    (tmp_path / "folder").mkdir()
    place = tmp_path / "folder" / name
    for target in (outside, tmp_path / "made by no one"):
        place.symlink_to(target)
        with pytest.raises(SdkerasError, match="is a link, and only"):
            write(place)
        place.unlink()
    assert outside.read_text() == "precious"
    assert names(tmp_path) == ["folder", "outside.txt"]


@pytest.mark.parametrize("writer", [name for name in WRITERS if name not in ("checkpoint", "file of a study")])
def test_no_writer_opens_a_second_name_or_what_is_no_file(tmp_path: Path, outside: Path, writer: str) -> None:
    name, write = WRITERS[writer]
    (tmp_path / "folder").mkdir()
    place = tmp_path / "folder" / name
    kinds = {
        r"a file with 2 names \(hard links\)": lambda: os.link(outside, place),
        "a FIFO": lambda: os.mkfifo(place),
        "a folder": place.mkdir,
    }
    for kind, make in kinds.items():
        make()
        with pytest.raises(SdkerasError, match=f"is {kind}, and only"):
            write(place)
        place.rmdir() if place.is_dir() else place.unlink()
    assert outside.read_text() == "precious"


def test_a_file_with_a_second_name_is_replaced_under_its_own_only(tmp_path: Path, outside: Path) -> None:
    os.link(outside, tmp_path / "run.npz")
    save_checkpoint(tmp_path / "run.npz", 1)
    assert outside.read_text() == "precious"
    assert load_checkpoint(tmp_path / "run.npz") == 1


def test_a_file_of_the_user_in_the_place_of_a_lock_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("the user's own")
    with pytest.raises(SdkerasError, match="is not an sdkeras lock"):
        Claim(tmp_path, ADVICE)
    assert (tmp_path / ".lock").read_text() == "the user's own"


# Writers.


HOLD = (
    "import sys; from sdkeras.files.atomic import Claim; "
    "kept = Claim(sys.argv[1], 'wait'); print('held', flush=True); input()"
)


@pytest.mark.parametrize("target", ["run.npz", "."])
def test_a_second_writer_is_told_who_the_first_is(tmp_path: Path, target: str) -> None:
    holder = run(HOLD, tmp_path / target)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(SdkerasError, match=rf"in use by process {holder.pid} on .*; wait\."):
        Claim(tmp_path / target, ADVICE)
    holder.communicate("\n")
    with only_writer(tmp_path / target, ADVICE):
        assert len(names(tmp_path)) == 1
    assert names(tmp_path) == []


def test_a_killed_writer_holds_nothing(tmp_path: Path) -> None:
    holder = run(HOLD, tmp_path / "run.npz")
    assert holder.stdout is not None
    holder.stdout.readline()
    holder.kill()
    holder.communicate()
    assert names(tmp_path) == [".run.npz.lock"]
    with only_writer(tmp_path / "run.npz", ADVICE):
        assert f" {os.getpid()} " in (tmp_path / ".run.npz.lock").read_text()
    assert names(tmp_path) == []


def test_windows_locks_a_byte_behind_all_that_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The content stays readable for others; the place in the file is as before."""
    places: list[int] = []

    def locking(handle: int, mode: int, count: int) -> None:
        places.append(os.lseek(handle, 0, os.SEEK_CUR))
        if len(places) > 1:
            raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setitem(sys.modules, "msvcrt", types.SimpleNamespace(LK_NBLCK=2, locking=locking))
    monkeypatch.setattr(sys, "platform", "win32")
    with open(tmp_path / "file", "wb") as file:
        assert lock(file.fileno())
        assert os.lseek(file.fileno(), 0, os.SEEK_CUR) == 0
        assert not lock(file.fileno())
    assert places == [2**30, 2**30]


def test_a_later_claim_of_the_same_process_takes_the_place_of_an_earlier_one(tmp_path: Path) -> None:
    """A training that was interrupted in a notebook does not keep its log from the next one."""
    first = Claim(tmp_path / "run.npz", ADVICE)
    second = Claim(tmp_path / "run.npz", ADVICE)
    assert first.lost
    first.close()
    other = run("import sys; from sdkeras.files.atomic import Claim; Claim(sys.argv[1], 'wait')", tmp_path / "run.npz")
    assert "in use by process" in other.communicate()[1]
    second.close()
    assert names(tmp_path) == []


def test_two_writers_that_come_together_never_both_hold(tmp_path: Path) -> None:
    """The lock's file is removed by its holder while the other waits to look at it."""
    code = """
import sys
from sdkeras.errors import SdkerasError
from sdkeras.files.atomic import only_writer
done = 0
for _ in range(100000):
    try:
        with only_writer(sys.argv[1] + "/run.npz", "wait"):
            value = int(open(sys.argv[1] + "/count").read())
            open(sys.argv[1] + "/count", "w").write(str(value + 1))
        done += 1
    except SdkerasError:
        pass
    if done == 100:
        break
"""
    (tmp_path / "count").write_text("0")
    both = [run(code, tmp_path) for _ in range(2)]
    assert [process.communicate()[1] for process in both] == ["", ""]
    assert (tmp_path / "count").read_text() == "200"


# What killed writers leave.


def leftover(target: Path) -> Path:
    """A temporary file of the target, as a killed writer leaves it."""
    code = """
import os, signal, sys
from sdkeras.files.atomic import write_whole
write_whole(sys.argv[1], lambda file: (file.write(b"half"), file.flush(), os.kill(os.getpid(), signal.SIGKILL)))
"""
    before = set(names(target.parent))
    process = run(code, target)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    (left,) = set(names(target.parent)) - before
    return target.with_name(left)


def test_what_a_killed_writer_has_left_is_removed_by_the_next_and_nothing_else(tmp_path: Path) -> None:
    target, other = tmp_path / "run.npz", tmp_path / "other.npz"
    leftover(target), leftover(target)
    alike = [".run.npz.part", ".run.npz.0123abcd.partly", "run.npz.0123abcd.part", ".run.npz.x.part"]
    for name in alike:
        (tmp_path / name).touch()
    others = leftover(other).name
    save_checkpoint(target, 1)
    assert names(tmp_path) == sorted([*alike, others, "run.npz"])
    with only_writer(other, ADVICE):
        pass
    assert names(tmp_path) == sorted([*alike, "run.npz"])


def test_the_temporary_file_of_a_living_writer_stays(tmp_path: Path) -> None:
    target, begun, go_on = tmp_path / "run.npz", threading.Event(), threading.Event()

    def slowly(file: object) -> None:
        begun.set()
        go_on.wait()
        file.write(b"slow")  # type: ignore[attr-defined]

    writer = threading.Thread(target=write_whole, args=(target, slowly))
    writer.start()
    begun.wait()
    write_whole(target, lambda file: file.write(b"quick"))
    assert target.read_bytes() == b"quick"
    go_on.set()
    writer.join()
    assert target.read_bytes() == b"slow"
    assert names(tmp_path) == ["run.npz"]


# Names.


@pytest.mark.parametrize("name", ["a" * 255, "é" * 127 + "a", "a" * 251 + ".npz", os.fsdecode(b"\xff" * 255)])
def test_a_name_may_be_as_long_as_names_can_be(tmp_path: Path, name: str) -> None:
    target = tmp_path / name
    with only_writer(target, ADVICE):
        with contextlib.suppress(OSError):  # a file system that takes UTF-8 only
            target.touch()
            save_checkpoint(target, 1)
            assert load_checkpoint(target) == 1
    left = leftover(target)
    assert len(os.fsencode(left.name)) <= 255
    save_checkpoint(target, 2)
    assert names(tmp_path) == [name]


def test_one_byte_more_is_told_before_anything_is_written(tmp_path: Path) -> None:
    def never(file: object) -> None:
        raise AssertionError

    with pytest.raises(SdkerasError, match="cannot be written: File name too long"):
        write_whole(tmp_path / ("a" * 256), never)


def test_long_names_that_differ_at_their_ends_have_temporary_files_of_their_own(tmp_path: Path) -> None:
    assert beside(tmp_path / ("a" * 254 + "b"), ".lock") != beside(tmp_path / ("a" * 254 + "c"), ".lock")


def test_names_in_messages_are_quoted_where_they_must_be() -> None:
    for clear in ("runs/a-1_b.json", "Größe.json"):
        assert shown(clear) == clear
    words = {"two words.json": "'two words.json'", "it's": '"it\'s"', "": "''"}
    words |= {"new\nline": r"'new\nline'", "\x1b[31mred": r"'\x1b[31mred'", "\udc80": r"'\udc80'"}
    assert {path: shown(path) for path in words} == words


def test_an_input_is_called_what_it_is(tmp_path: Path) -> None:
    fifo, folder, link = tmp_path / "fifo", tmp_path / "folder", tmp_path / "link"
    os.mkfifo(fifo)
    folder.mkdir()
    link.symlink_to(fifo)
    for path, kind in ((fifo, "a FIFO"), (link, "a FIFO"), (folder, "a folder")):
        with pytest.raises(SdkerasError, match=f"{path.name} is {kind}, not a file; give a file"):
            check_is_file(path, SdkerasError, "give a file.")
    check_is_file("/dev/stdin", SdkerasError, "")
    check_is_file(tmp_path / "missing", SdkerasError, "")


@pytest.mark.parametrize("url", ["gs://bucket/run", "s3://bucket", "file:///tmp/run", "hdfs://host/a"])
def test_no_folder_is_called_after_the_scheme_of_a_url(url: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for make in (make_folder, log.place_in):
        with pytest.raises(SdkerasError, match=f"{url} is a URL"):
            make(url)
    assert not [*tmp_path.iterdir()]
    make_folder("gs:/bucket")  # a folder like any other
