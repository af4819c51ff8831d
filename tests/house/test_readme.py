"""What the README says to type runs: its Python blocks, its shell commands, and every option of the table."""

import re
import shutil
from pathlib import Path

import attrs
import keras
import matplotlib
import numpy as np
import pytest

from oracles import rotated
from pages_of_text import blocks, call
from sample_log import HEADER
from sdkeras.linalg.operators import DenseOperator
from sdkeras.results.log import FILE_NAME, append
from sdkeras.study.definition import read_study
from sdkeras.testing import check_estimator

README = (Path(__file__).parents[2] / "README.md").read_text()


# What the blocks ask for -> something smaller, that asks the same of the code.
CHEAPER = {
    "batch_size=64, seed=0)": "batch_size=64, seed=0, tolerance=0.3)",
    "num_measurements=2": "num_measurements=1",
    "epochs=3": "epochs=1",
}


def cheaper(block: str) -> str:
    for wanted, less in CHEAPER.items():
        block = block.replace(wanted, less)
    return block


def test_blocks_can_be_made_cheaper() -> None:
    assert all(sum(wanted in block for block in blocks(README, "python")) == 1 for wanted in CHEAPER)


def last_words(block: str) -> str:
    return re.sub(r"\W+", " ", block)[-40:]


@pytest.mark.parametrize("block", blocks(README, "python"), ids=last_words)
def test_python_blocks_run(
    block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_block(cheaper(block), tmp_path, monkeypatch, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("block", [each for each in blocks(README, "python") if cheaper(each) != each], ids=last_words)
def test_python_blocks_run_as_they_stand(
    block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_block(block, tmp_path, monkeypatch, capsys)


def run_block(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    matplotlib.use("agg")
    if "plot" in block:  # of a run that was saved before
        shutil.copy(Path(__file__).parents[1] / "data" / "v0.1.0" / "run.json", tmp_path)
    namespace: dict[str, object] = {"__name__": "readme"}
    exec(block, namespace)
    if "the terminal report" in block:
        check_what_it_prints(block, capsys.readouterr().out)
    if "MeanDiagonal" in namespace:
        values = np.linspace(1, 2, 40)
        found = namespace["MeanDiagonal"](num_probes=400).estimate(DenseOperator(rotated(values)), seed=0)
        assert abs(found.value - values.sum()) < 5 * found.stderr
        check_estimator(namespace["MeanDiagonal"]())  # as the README says of it


def check_what_it_prints(block: str, printed: str) -> None:
    """SD lies inside its range with an interval, and where the comment in the block says, within both intervals."""
    said, found = (
        [float(value.replace(",", "")) for value in re.search(HEADLINE, text).groups()] for text in (block, printed)
    )
    value, low, high, size = found
    assert 1 < low < value < high < size - 1
    assert size == said[3]
    assert low <= said[2]
    assert said[1] <= high


HEADLINE = r"Sharpness dimension ([\d,.]+) \[([\d,.]+), ([\d,.]+)\] of ([\d,]+);"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the README's commands name."""
    place = tmp_path_factory.mktemp("readme")
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((200, 5)).astype("float32"), generator.integers(0, 3, 200)
    # Dropout, which `--draws` wants.
    layers = [
        keras.layers.Dense(4, "tanh", name="dense"),
        keras.layers.Dropout(0.1),
        keras.layers.Dense(3, name="dense_1"),
    ]
    model = keras.Sequential([keras.Input((5,)), *layers])
    rate = keras.optimizers.schedules.ExponentialDecay(0.1, 100, 0.9)
    model.compile(keras.optimizers.SGD(rate), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, y, verbose=0)
    model.save(place / "model.keras")
    np.savez(place / "train.npz", x=x, y=y)
    (place / "my_layers.py").write_text("")
    (place / "run").mkdir()
    append(place / "run" / FILE_NAME, attrs.evolve(HEADER, num_parameters=39))
    return place


TABLE = README.split("## Your own model")[1].split("## From Python")[0]
OPTIONS = [cell for row in re.findall(r"^\|.*\|$", TABLE, flags=re.MULTILINE) for cell in re.findall(r"`(--.*?)`", row)]


def test_the_table_has_options() -> None:
    assert len(OPTIONS) > 15


# Options that exclude some of the others.
ALONE = (
    "--draws",
    "--at-init",
    "--lyapunov",
    "--snapshots",
    "--params",
    "--map full",
    "--estimator power-iteration",
    "--dtype mixed",
)


def lines() -> list[str]:
    """The options of the table, as many in a line as go together."""
    found: list[str] = [each for each in OPTIONS if each.startswith(ALONE)]
    together: list[tuple[str, set[str]]] = []
    for options in (each for each in OPTIONS if each not in found and each != "--dry-run"):
        names = {*re.findall(r"--[a-z-]+", options)}
        place = next((k for k, (_, taken) in enumerate(together) if not names & taken), len(together))
        line, taken = together[place] if place < len(together) else ("", set())
        together[place : place + 1] = [(f"{line} {options}".strip(), names | taken)]
    return [*found, *(line for line, _ in together)]


@pytest.mark.parametrize("options", lines(), ids=lambda line: line[:60])
def test_options_of_the_table_are_understood_together(
    options: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call(f"sdkeras analyze model.keras --data train.npz {options} --dry-run", folder, monkeypatch) == 0


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS)
def test_options_of_the_table_are_understood(options: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = f"sdkeras analyze model.keras --data train.npz {options}"
    assert call(line if "--dry-run" in line else f"{line} --dry-run", folder, monkeypatch) == 0


def test_commands_of_the_shell_blocks_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for those in blocks of `shell`, which need several hosts."""
    lines = [line for block in blocks(README, "sh") for line in block.splitlines() if line.startswith("sdkeras")]
    assert len(lines) >= 1
    for line in lines:
        assert call(f"{line} --max-hvps 500 --quiet", folder, monkeypatch) == 0
    assert call("sdkeras report run.json --html report.html", folder, monkeypatch) == 0
    assert (folder / "report.html").read_text().startswith("<!doctype html>")


def test_the_entry_point_of_the_readme_is_toml() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 or newer")
    _, block = blocks(README, "toml")
    assert tomllib.loads(block) == {
        "project": {"entry-points": {"sdkeras.trace": {"mean-diagonal": "your_package:MeanDiagonal"}}}
    }


def test_the_study_of_the_readme_can_be_run(tmp_path: Path) -> None:
    (tmp_path / "grid.toml").write_text(blocks(README, "toml")[0])
    study = read_study(str(tmp_path / "grid.toml"))
    assert len(study.runs) == 12
    assert study.recorded


def test_links_of_the_readme_and_the_examples_lead_somewhere() -> None:
    root = Path(__file__).parents[2]
    for page in (root / "README.md", *(root / "docs").glob("*.md"), *(root / "examples").rglob("*.md")):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if not target.startswith(("http", "gallery/")):  # the site makes the gallery's reports
                assert (page.parent / target).exists(), f"{page.name}: {target}"
