"""Runs of a study in processes of their own: failures, resumption after a kill, changed definitions."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from sdkeras.errors import SdkerasError
from sdkeras.study.definition import read_study
from sdkeras.study.results import read_results
from sdkeras.study.run_files import plan_study
from sdkeras.study.runner import Finished, run_study
from study.small_study import calls, started, wait_until, written


def twice(*whom: str) -> list[str]:
    """The factory is called to train a run and again to measure it."""
    return [each for each in whom for _ in range(2)]


def states(plan) -> dict[str, str]:
    return {each.run.name: each.state for each in plan.runs}


def run(grid: Path, **options: object):
    return run_study(read_study(str(grid)), grid.parent / "out", code=grid.parent, jobs=1, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study in which one run succeeds and three fail, each in its own way; done beside modules that set traps."""
    folder, trap = tmp_path_factory.mktemp("study"), tmp_path_factory.mktemp("trap")
    for name in ("queue", "attrs"):
        (trap / f"{name}.py").write_text(f"open({str(trap / 'marker')!r}, 'w')")
    lines: list[Finished] = []
    grid = written(folder, grid='mood = ["good", "raise", "kill", "nan"]')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(trap)
        after = run(grid, progress=lines.append)
    assert not (trap / "marker").exists()
    subprocess.run([sys.executable, "-c", "import attrs"], cwd=trap, env={"PYTHONPATH": ""}, check=True)
    assert (trap / "marker").exists()
    assert states(after) == {
        f"lr0.1-bs8-mood{mood}-seed0": state
        for mood, state in (("good", "done"), ("raise", "failed"), ("kill", "failed"), ("nan", "failed"))
    }
    assert [line.num_finished for line in lines] == [1, 2, 3, 4]
    assert lines[-1].remaining == 0
    assert [line.failure is None for line in lines] == [True, False, False, False]
    results = read_results(folder / "out")
    assert results.summary() == "1 of 4 runs done, 3 failed"
    (folder / "reasons.json").write_text(json.dumps(dict(results.failures())))
    return folder


def test_failed_runs_are_written_down_with_their_reasons(folder: Path) -> None:
    reasons = json.loads((folder / "reasons.json").read_text())
    assert "RuntimeError: bad mood" in reasons["lr0.1-bs8-moodraise-seed0"]
    assert "training: its process was killed by SIGKILL" in reasons["lr0.1-bs8-moodkill-seed0"]
    assert "training diverged: the loss was nan in epoch 1" in reasons["lr0.1-bs8-moodnan-seed0"]
    log = (folder / "out/runs/lr0.1-bs8-moodraise-seed0/log.txt").read_text()
    assert "Traceback" in log
    assert "the factory speaks" in log
    good = folder / "out/runs/lr0.1-bs8-moodgood-seed0"
    assert json.loads((good / "settings.json").read_text())["learning_rate"] == 0.1
    assert {file.name for file in good.iterdir()} == {
        *("settings.json", "training.json", "measures.json", "model.weights.h5", "log.txt")
    }


@pytest.mark.slow
def test_the_same_call_goes_on_and_repeats_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, without_processes: Callable[..., None]
) -> None:
    without_processes(monkeypatch, folder)
    before = calls(folder)
    grid = written(folder, rates="[0.1, 0.2]", grid='mood = ["good", "raise"]')
    plan = plan_study(read_study(str(grid)), folder / "out")
    assert len(plan.others) == 2
    assert [each.run.settings["learning_rate"] for each in plan.to_do(retry=False)] == [0.2, 0.2]
    run(grid)
    assert calls(folder)[len(before) :] == [*twice("good 0.2"), "raise 0.2"]
    assert read_results(folder / "out").summary() == "2 of 4 runs done, 2 failed"

    # Failed runs on request; a training whose measures were lost is measured only, to the same numbers.
    grid = written(folder, rates="0.2", grid='mood = ["good", "raise"]')
    measures = folder / "out/runs/lr0.2-bs8-moodgood-seed0/measures.json"
    values = json.loads(measures.read_text())["values"]
    measures.unlink()
    (folder / "cured").touch()
    before = calls(folder)
    assert set(states(run(grid, retry=True)).values()) == {"done"}
    assert calls(folder)[len(before) :] == ["good 0.2", *twice("raise 0.2")]
    assert json.loads(measures.read_text())["values"] == values
    # The numbers are of the settings, whatever ran before in the same process and in which order.
    rows = {row.state.run.name: row for row in read_results(folder / "out").rows}
    good, cured = (rows[f"lr0.2-bs8-mood{mood}-seed0"] for mood in ("good", "raise"))
    column = "e_alpha-forward-euclidean"
    assert good.measure(column).value == cured.measure(column).value > 0
    assert good.trained.history == cured.trained.history
    run(grid)
    assert calls(folder)[len(before) + 3 :] == []


def test_another_definition_is_noticed(folder: Path) -> None:
    grid = written(folder, epochs=3)
    with pytest.raises(SdkerasError, match="another definition: epochs was 2 and is 3"):
        run(grid)
    new = 'e_alpha = { trajectory = "forward", metric = "euclidean" }\nsharpness = {}'
    plan = plan_study(read_study(str(written(folder, measures=new))), folder / "out")
    assert states(plan) == {"lr0.1-bs8-moodgood-seed0": "trained"}
    assert "sharpness" in plan.notes[0]


@pytest.mark.slow
def test_a_killed_study_goes_on_where_it_stopped(tmp_path: Path) -> None:
    grid = written(tmp_path, grid='mood = ["good", "wait"]')
    process = started(grid, tmp_path / "out")
    wait_until(lambda: calls(tmp_path) == [*twice("good 0.1"), "wait 0.1"], 120)
    with pytest.raises(SdkerasError, match=f"in use by process {process.pid} on "):
        run(grid)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    worker = int((tmp_path / "calls.txt").read_text().split()[-1])
    wait_until(lambda: not _alive(worker), 20)
    assert not _alive(worker)
    assert read_results(tmp_path / "out").summary() == "1 of 2 runs done, 1 to do"
    (tmp_path / "cured").touch()
    assert set(states(run(grid)).values()) == {"done"}
    assert calls(tmp_path) == [*twice("good 0.1"), "wait 0.1", *twice("wait 0.1")]


@pytest.mark.slow
def test_ctrl_c_ends_the_command_and_its_workers(tmp_path: Path) -> None:
    grid = written(tmp_path, grid='mood = ["wait"]')
    command = [Path(sys.executable).parent / "sdkeras", "study", "run", grid, "--out", tmp_path / "out"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # shells ignore it in what they run behind
    )
    wait_until(lambda: calls(tmp_path) == ["wait 0.1"], 120)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err.strip() == "sdkeras: interrupted."
    assert not _alive(int((tmp_path / "calls.txt").read_text().split()[-1]))
    assert read_results(tmp_path / "out").summary() == "0 of 1 run done, 1 to do"


def _alive(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
