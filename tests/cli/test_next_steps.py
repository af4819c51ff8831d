"""What to do next on the command line: commands with the user's own model, data and options, which can be pasted."""

import json
import shlex
from pathlib import Path

import sdkeras
from sdkeras.reporting.html import as_html
from sdkeras.results.next_step import NextStep
from sdkeras_cli.options import command_line

BEGINNING = ["sdkeras", "analyze", "my net.keras", "--data", "d.npz"]
GIVEN = {
    "batch_size": 64,
    "learning_rate": "peak",
    "settings": {"slq": {"num_steps": 20}, "exact": {}},
    "bound_inputs": {"delta": 0.1, "zeta": 0.5},
    "class_weight": {0: 1.0, 1: 9.0},
    "estimators": ("slq", "exact"),
    "exact": False,
    "per_layer": True,
    "memory_gb": 2.0,
    "checkpoint": "kept.npz",
    "seed": 0,
    "tolerance": None,
}


def test_a_call_as_it_is_typed() -> None:
    words = shlex.split(command_line("sdkeras.analyze(model, data)", BEGINNING, GIVEN))
    assert words[:5] == BEGINNING
    rest = " ".join(words[5:])
    for each in (
        "--batch-size 64",
        "--learning-rate peak",
        "--set slq.num_steps=20",
        "--bound delta=0.1 --bound zeta=0.5",
        "--class-weight 0=1.0,1=9.0",
        "--estimator slq --estimator exact",
        "--no-exact",
        "--per-layer",
        "--memory 2.0",
    ):
        assert each in rest
        rest = rest.replace(each, "")
    assert not rest.strip()  # neither defaults nor the checkpoint


def test_arguments_of_the_call_override() -> None:
    call = "sdkeras.analyze(model, data, batch_size=N, learning_rate=0.25, exact=True, params='^first/')"
    line = command_line(call, BEGINNING, {"batch_size": 64, "learning_rate": 0.5})
    assert line == (
        "sdkeras analyze 'my net.keras' --data d.npz --batch-size N --learning-rate 0.25 --exact --params '^first/'"
    )


def test_a_tolerance_stands_in_place_of_the_number_of_runs() -> None:
    """With `--runs` it would have no effect."""
    call = "sdkeras.analyze(model, data, tolerance=0.05)"
    assert command_line(call, BEGINNING, {"runs": 4}).endswith("d.npz --tolerance 0.05")
    assert command_line("sdkeras.analyze(model, data, runs=9)", BEGINNING, {"runs": 4}).endswith("d.npz --runs 9")


def test_commands_of_an_answer_run_as_they_are(files: Path, analysed: Path, in_process) -> None:
    run, text = json.loads((analysed / "run.json").read_text()), (analysed / "stdout.txt").read_text()
    steps = [NextStep(**each) for each in run["next_steps"]]
    assert steps
    assert "What to do next" in text
    assert "What to do next" in (analysed / "report.html").read_text()
    for step in steps:
        words = shlex.split(step.command)
        assert words[:5] == ["sdkeras", "analyze", str(files / "model.keras"), "--data", str(files / "data.npz")]
        assert "--json" not in words
        assert in_process(*words[1:], "--dry-run")[0] == 0
        shown = [line.strip().removesuffix("\\").strip() for line in text.splitlines()]
        assert step.command in " ".join(shown)


def test_a_report_without_steps_says_nothing(analysed: Path) -> None:
    run = sdkeras.Analysis.load(analysed / "run.json")
    other = sdkeras.Analysis.from_json(run.to_json().replace('"next_steps"', '"former"'))
    assert other.next_steps == ()
    assert "What to do next" not in str(other) + as_html(other)
