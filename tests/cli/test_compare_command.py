"""`compare`: no TensorFlow, one message for bad input, exit statuses, and conditions on differences."""

import json
import subprocess
import sys
from pathlib import Path

import attrs
import pytest

import sdkeras
from sample_runs import ALONE, ESTIMATE, FOUND, RUN
from sdkeras.errors import SdkerasError
from sdkeras_cli import conditions
from sdkeras_cli import main as cli_main


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A run, one with SD 30.25 lower, and one under another map."""
    lower = attrs.evolve(
        ESTIMATE, value=1500.0, interval=(1490.0, 1510.0), codimension=500.0, codimension_interval=(490.0, 510.0)
    )
    other = attrs.evolve(lower, map="hessian")
    runs = (RUN, *(attrs.evolve(RUN, sharpness_dimension=each, estimates=(each,)) for each in (lower, other)))
    paths = tuple(tmp_path / f"{name}.json" for name in "abc")
    for run, path in zip(runs, paths, strict=True):
        run.save(path)
    return paths


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit_info:
        cli_main.main([str(argument) for argument in arguments])
    return int(exit_info.value.code or 0)


def test_outputs_without_tensorflow(files, tmp_path: Path) -> None:
    page, out = tmp_path / "page.html", tmp_path / "out.json"
    arguments = ["compare", str(files[0]), str(files[1]), "--html", str(page), "--json", str(out)]
    code = (
        f"import sys\nfrom sdkeras_cli.main import main\ntry: main({arguments!r})\n"
        "except SystemExit as e: assert not e.code, e.code\n"
        "assert not {'tensorflow', 'keras', 'matplotlib.pyplot'} & set(sys.modules)\n"
    )
    shown = subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True, text=True).stdout
    assert "fell by 30 ± 14" in shown
    assert "fell by 30 ± 14" in page.read_text()
    found = sdkeras.Comparison.load(out)
    assert found == sdkeras.compare(
        sdkeras.Analysis.load(files[0]), sdkeras.Analysis.load(files[1]), names=(str(files[0]), str(files[1]))
    )


def test_the_same_file_twice(files, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("compare", files[0], files[0]) == 0
    assert "Nothing differs" in capsys.readouterr().out
    assert call("compare", files[0], files[1], "--quiet") == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("second", "expression", "status"),
    [
        (1, "sharpness_dimension.value < 1501", 3),
        (1, "a.sharpness_dimension.value < 1501", 0),
        (1, "b.sharpness_dimension.value < 1501", 3),
        (1, "delta.sharpness_dimension.value < -30", 3),
        (1, "delta.sharpness_dimension.value < -31", 0),
        (1, "delta.sharpness_dimension.value == -30.25 and delta.edge_of_stability.ratio == 0", 3),
        (1, "delta.rds_sharpness.leading.0 > 0 or delta.sharpness_dimension.codimension > 30", 3),
        (2, "delta.edge_of_stability.sharpness > 0", 0),
        (2, "delta.sharpness_dimension.value < 0", 2),  # another map
        (2, "delta.edge_of_stability.ratio < 9 or delta.rds_sharpness.leading.0 > 0", 2),
        (2, "b.sharpness_dimension.value < 1501", 3),
        (1, "delta.hessian.trace.value > 0", 2),  # null
        (1, "a.hessian.trace.value > 0", 2),
        (1, "delta.hessian.trase.value > 0", 2),
        (1, "delta > 0", 2),
        (1, "delta.delta.edge_of_stability.ratio > 0", 2),
    ],
)
def test_fail_if(files, second: int, expression: str, status: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("compare", files[0], files[second], "--quiet", "--fail-if", expression) == status
    assert len(capsys.readouterr().err.splitlines()) == (status != 0)


def test_prefixes_are_of_compare_alone() -> None:
    conditions.parse("delta.edge_of_stability.ratio > 1", prefixes=conditions.OF_TWO)
    with pytest.raises(SdkerasError, match="has no 'delta'"):
        conditions.parse("delta.edge_of_stability.ratio > 1")


def test_bad_input_is_one_message(files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads(files[0].read_text())
    bad = {
        "newer.json": json.dumps(document | {"schema_version": 99}),
        "list.json": "[]",
        "text.json": "not JSON",
        "comparison.json": sdkeras.compare(RUN, RUN).to_json(),
        "lyapunov.json": json.dumps(document | {"document": "lyapunov"}),
    }
    for name, text in bad.items():
        (tmp_path / name).write_text(text)
    for name in ("none.json", *bad):
        for pair in ((files[0], tmp_path / name), (tmp_path / name, files[0])):
            assert call("compare", *pair) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert line.startswith("sdkeras: error: ")
            assert name in line
    assert call("compare", files[0]) == 2
    assert call("compare", files[0], files[1], "--json", files[1]) == 2
    assert call("compare", files[0], files[1], "--json", tmp_path / "o", "--html", tmp_path / "o") == 2
    assert len(capsys.readouterr().err.splitlines()) == 3
    assert sdkeras.Analysis.load(files[1]).sharpness_dimension.value == 1500.0


@pytest.mark.parametrize(
    ("expression", "status"),
    [
        ("delta.lyapunov.values.0 == 0.25", 3),
        ("a.lyapunov.values.0 > 0.5", 0),
        ("delta.lyapunov.dimension.value > 0", 2),  # null in both
        ("edge_of_stability.ratio > 0", 2),  # of no trajectory
    ],
)
def test_fail_if_of_trajectories(
    tmp_path: Path, expression: str, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    ALONE.save(tmp_path / "a.json")
    faster = attrs.evolve(FOUND, values=FOUND.values + 0.25)
    attrs.evolve(ALONE, lyapunov=faster).save(tmp_path / "b.json")
    assert call("compare", tmp_path / "a.json", tmp_path / "b.json", "--quiet", "--fail-if", expression) == status
    assert len(capsys.readouterr().err.splitlines()) == (status != 0)
