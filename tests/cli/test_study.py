"""`sdkeras study`: wrong definitions in one line, a small study from the command to its page and figures."""

import csv
import html
import json
import re
from pathlib import Path

import keras
import numpy as np
import pytest

import sdkeras
from sdkeras.study.definition import read_study
from sdkeras.study.run_files import Failed, Measured, RunFolder, Scores, Trained, Value
from study.small_study import written

ALL = """
lambda_1 = {}
sd = { minibatches = 3 }
slq = { num_steps = 20 }
sharpness = {}
trace = {}
e_alpha = {}
ph_dimension = { trajectory = "backward" }
"""


def made_up(folder: Path, *, failed: bool = True) -> Path:
    """The folder of a study of 6 runs as `study run` would leave it, one failed, from numbers alone."""
    grid = written(folder, rates="[0.1, 0.2, 0.4]", grid='mood = ["good", "<b>bad</b>"]')
    study = read_study(str(grid))
    out = folder / "out"
    (out / "runs").mkdir(parents=True)
    study.save(out / "study.json")
    for k, run in enumerate(study.runs):
        files = RunFolder(out / "runs" / run.name)
        files.path.mkdir()
        if failed and k == 5:
            files.write(files.failure, Failed("training", "oh <script>no</script>"))
            continue
        scores = Scores(0.1, 0.9), Scores(0.1 + 0.1 * k, 0.9 - 0.01 * k)
        files.write(
            files.training,
            Trained(run.settings, study.training(), 2, 10, "epochs", *scores, "", {"loss": [1.0, 0.1]}, 3.0),
        )
        by = study.by_column()
        reason = "too few points" if k == 0 else ""
        values = {name: Value(None if reason else float(k), None, reason, wanted) for name, wanted in by.items()}
        files.write(files.measures, Measured(values, 5.0))
    return out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("[grid]", "[grid"), "is not TOML"),
        (("e_alpha = ", "e_alhpa = "), "has no 'e_alhpa'; did you mean 'e_alpha'"),
        (("epochs = 2", ""), "needs either epochs or steps"),
    ],
)
def test_a_wrong_definition_is_one_line(in_process, tmp_path: Path, change: tuple[str, str], said: str) -> None:
    grid = written(tmp_path)
    grid.write_text(grid.read_text().replace(*change))
    status, out, err = in_process("study", "run", grid, "--out", tmp_path / "out")
    assert (status, out) == (2, "")
    assert said in err
    assert err.startswith("sdkeras: error: ")
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("study:net", "study:nte", "model 'small_nets_of_a_study:nte': module 'small_nets_of_a_study'"),
        pytest.param(
            *("learning_rate = ", "width = 3\nlearning_rate = ", "the grid has width, which the factory"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "study:data", "study:number", "'number' is not a function but of type int", marks=pytest.mark.slow
        ),
    ],
)
def test_user_code_that_cannot_be_used_is_one_line(in_process, tmp_path: Path, old: str, new: str, said: str) -> None:
    grid = written(tmp_path)
    grid.write_text(grid.read_text().replace(old, new))
    status, _, err = in_process("study", "run", grid, "--out", tmp_path / "out", "--quiet")
    assert status == 2
    assert said in err
    assert err.count("\n") == 1
    assert not list((tmp_path / "out" / "runs").iterdir())


def test_a_dry_run_tells_what_is_done(in_process, tmp_path: Path) -> None:
    grid, out = written(tmp_path, rates="[0.1, 0.2, 0.4]"), tmp_path / "out"
    status, shown, _ = in_process("study", "run", grid, "--out", out, "--dry-run")
    assert status == 0
    assert shown.splitlines()[0] == "lr0.1-bs8-moodgood-seed0: new"
    assert "0 of 3 runs are done; 3 to do" in shown
    assert not out.exists()
    made_up(tmp_path, failed=True)
    status, shown, _ = in_process("study", "run", tmp_path / "grid.toml", "--out", out, "--dry-run")
    assert status == 0
    assert "seed0: failed (training: oh <script>no</script>)" in shown
    assert "5 of 6 runs are done" in shown


@pytest.mark.parametrize("quiet", [(), ("--quiet",)])
def test_some_failed_runs_have_a_status_of_their_own(in_process, tmp_path: Path, quiet: tuple[str, ...]) -> None:
    out = made_up(tmp_path)
    status, shown, err = in_process("study", "run", tmp_path / "grid.toml", "--out", out, *quiet)
    assert status == 5
    assert err == (
        f"sdkeras: error: 1 of 6 runs failed, with the reason in {out / 'runs'}/NAME/failed.json; --retry runs it "
        "again.\n"
    )
    assert shown == "" if quiet else " failed: training: oh <script>no</script>" in shown


def test_runs_that_all_failed_are_an_error_that_says_where_and_how_to_go_on(in_process, tmp_path: Path) -> None:
    out = made_up(tmp_path)
    for run in read_study(str(tmp_path / "grid.toml")).runs:
        RunFolder(out / "runs" / run.name).failure.write_text(json.dumps({"stage": "training", "reason": "oh"}))
        RunFolder(out / "runs" / run.name).measures.unlink(missing_ok=True)
    status, _, err = in_process("study", "run", tmp_path / "grid.toml", "--out", out)
    assert status == 2
    assert err == (
        f"sdkeras: error: all 6 runs have failed, with the reasons in {out / 'runs'}; the first in training: oh. Set "
        "--retry to run them again.\n"
    )


@pytest.mark.slow
def test_a_study_from_the_command_to_its_figures(in_process, tmp_path: Path) -> None:
    grid, out = written(tmp_path, rates="[0.1, 0.3]", epochs=6, measures=ALL, analysis="runs = 30"), tmp_path / "out"
    status, shown, _ = in_process("study", "run", grid, "--out", out, "--dry-run")
    assert status == 0
    assert shown.splitlines()[0] == "lr0.1-bs8-moodgood-seed0: new"
    assert "0 of 2 runs are done; 2 to do" in shown
    assert not out.exists()
    status, shown, err = in_process("study", "run", grid, "--out", out, "--jobs", "1")
    assert (status, err) == (0, "")
    assert "[2/2] lr0.3-bs8-moodgood-seed0 done, " in shown
    status, shown, _ = in_process("study", "run", grid, "--out", out, "--dry-run")
    assert "2 of 2 runs are done; 0 to do" in shown
    assert "in about 0 s" in shown

    # The numbers are those of the library on the saved model.
    files = RunFolder(out / "runs" / "lr0.3-bs8-moodgood-seed0")
    found = files.measured().values
    run = sdkeras.Analysis.load(files.analysis)
    assert found["sd"].value == run.estimates[0].definition_value
    assert [each.estimator for each in run.estimates] == ["exact", "slq"]
    assert found["slq"].value == run.estimates[1].value
    assert [each.num_runs for each in run.estimates] == [3, 30]
    assert found["lambda_1"].value == run.rds_sharpness.leading[0]
    assert found["sharpness"].value == run.hessian.largest.value
    assert found["trace"].value == run.hessian.trace.value
    assert found["e_alpha-backward-euclidean"].value > 0
    assert not files.trajectory.exists()
    trained = files.trained()
    assert trained.num_steps == 6 * 5
    layers = [keras.layers.Dense(5, activation="tanh"), keras.layers.Dense(2)]
    model = keras.Sequential([keras.Input((3,)), *layers])
    model.load_weights(files.weights)
    draw = np.random.default_rng(0)
    x = draw.normal(size=(60, 3)).astype("float32")
    y = (x[:, 0] * x[:, 1] > 0).astype("int64")
    logits = model.predict(x, verbose=0).astype(np.float64)
    right = np.argmax(logits, axis=1) == y
    losses = np.log(np.sum(np.exp(logits), axis=1)) - logits[np.arange(60), y]
    assert trained.accuracy_gap == pytest.approx(abs(right[:40].mean() - right[40:].mean()), abs=1e-6)
    assert trained.loss_gap == pytest.approx(abs(losses[:40].mean() - losses[40:].mean()), abs=1e-6)

    status, shown, err = in_process("study", "correlate", out)
    assert (status, err) == (0, "")
    assert "2 of 2 runs done" in shown
    with (out / "runs.csv").open() as file:
        row = next(row for row in csv.DictReader(file) if row["learning_rate"] == "0.3")
    assert (row["map"], int(row["state_size"])) == (run.sharpness_dimension.map, run.sharpness_dimension.state_size)
    assert row["warnings"].split(";") == list(dict.fromkeys(warning.code for warning in run.warnings))
    files.analysis.write_text("{")
    status, _, err = in_process("study", "plot", out)
    assert status == 2
    assert f"Delete {files.path}, and the run is done again." in err
    run.save(files.analysis)
    assert in_process("study", "plot", out)[0] == 0


def test_correlations_page_and_figures_are_of_the_done_runs(in_process, tmp_path: Path) -> None:
    out = made_up(tmp_path)
    status, shown, _ = in_process("study", "correlate", out)
    assert status == 0
    assert "5 of 6 runs done, 1 failed" in shown
    document = json.loads((out / "correlations.json").read_text())
    rows = {row["target"]: row for row in document["rows"]}
    # Four runs have the measure, in the order of both gaps.
    assert rows["accuracy_gap"]["num_runs"] == 4
    assert rows["accuracy_gap"]["num_missing"] == 1
    assert rows["loss_gap"]["tau_b"] == pytest.approx(1.0)
    with (out / "runs.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["state"] for row in table] == ["done"] * 5 + ["failed"]
    assert float(table[2]["loss_gap"]) == pytest.approx(0.2)
    assert table[5]["reason"] == "training: oh <script>no</script>"
    page = (out / "study.html").read_text()
    assert not re.findall(r'\b(?:src|href)="(?!#)', page)  # it loads nothing
    assert re.findall(r"<(?:script|img|image)\b[^>]*>", page) == ["<script>"]  # the page's own
    said = " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split())
    assert "oh <script>no</script>" in said
    assert "e_alpha-forward-euclidean has no number in 1 run, for example: too few points." in said
    assert "<svg" in page
    assert in_process("study", "plot", out)[0] == 0
    made = {file.name for file in out.iterdir()}
    assert {
        "heat_map.png",
        "heat_map.svg",
        "matrix.png",
        "accuracy_gap.png",
        "accuracy_gap.svg",
        "loss_gap.svg",
    } <= made


def test_folders_that_are_no_studies_are_refused(in_process, tmp_path: Path) -> None:
    status, _, err = in_process("study", "correlate", tmp_path)
    assert (status, err.count("\n")) == (2, 1)
    assert "holds no study" in err
    out = made_up(tmp_path)
    for each in list((out / "runs").iterdir())[1:]:
        for file in each.iterdir():
            file.unlink()
    status, _, err = in_process("study", "correlate", out)
    assert status == 2
    assert "at least 2 that are done" in err
    (out / "runs" / "lr0.1-bs8-moodgood-seed0" / "training.json").write_text("{")
    status, _, err = in_process("study", "plot", out)
    assert status == 2
    assert "training.json is damaged" in err
