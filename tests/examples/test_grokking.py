"""The example of grokking: it trains, measures, goes on after a kill, and its table is Kendall's tau-b."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import attrs
import numpy as np
import pytest
from scipy.stats import kendalltau

from example_scripts import EXAMPLES, load_script


@pytest.fixture(scope="module")
def example() -> ModuleType:
    return load_script("grokking")


@pytest.fixture(scope="module")
def tiny(example: ModuleType):
    return attrs.evolve(example.SETTINGS[0], modulus=5, steps=12, batches=2)


@pytest.fixture(scope="module")
def trained(example: ModuleType, tiny, tmp_path_factory: pytest.TempPathFactory):
    return example.train(tiny, tmp_path_factory.mktemp("run"), 3)


def test_the_sizes_are_the_papers(example: ModuleType) -> None:
    models = [setting.build() for setting in (example.GELU, example.RELU)]
    assert [model.count_params() for model in models] == [9441, 10497]
    assert [float(model.optimizer.momentum) for model in models] == [0.9, 0.0]
    assert all(model.optimizer.weight_decay > 0 for model in models)
    # Several rates, decays and seeds, each training in a folder of its own.
    of_gelu = [each for each in example.SETTINGS if each.network == "gelu"]
    for name in ("learning_rate", "weight_decay", "seed"):
        assert len({getattr(each, name) for each in of_gelu}) == 2
    assert len({each.name for each in example.SETTINGS}) == len(example.SETTINGS)


def test_minibatches_are_epochs(example: ModuleType) -> None:
    x = np.arange(10, dtype=np.float32)[:, None]
    batches = [part.numpy().ravel() for part, _ in example.minibatches(x, np.arange(10), 4, 5, seed=0)]
    assert [len(part) for part in batches] == [4] * 5
    assert len(np.unique(np.concatenate(batches[:2]))) == 8
    assert len(np.unique(np.concatenate(batches[2:4]))) == 8
    assert not np.array_equal(batches[0], batches[2])


@pytest.mark.slow
def test_every_checkpoint_is_measured(example: ModuleType, trained) -> None:
    assert list(trained.steps) == [4, 8, 12]
    for name in example.MEASURES:
        assert np.all(np.isfinite(trained.measure(name))), name
    assert trained.metric("accuracy")[-1] > trained.metric("accuracy")[0]
    assert trained.measurements[-1].map == "heavy-ball"
    assert trained.measurements[-1].state_size == 2 * trained.setting.build().count_params()


def test_the_table_is_the_median_and_range_of_kendalls(example: ModuleType, trained) -> None:
    backwards = attrs.evolve(trained, measurements=trained.measurements[::-1][:2])
    both = [trained, backwards]
    rows = example.correlations(both)
    for row in rows:
        of = [kendalltau(each.measure(row["measure"]), each.gaps("loss")).statistic for each in both]
        known = row["all"]["loss_gap"]
        assert known["median"] == pytest.approx(np.mean(of), abs=1e-12), row["measure"]
        assert known["range"] == pytest.approx(sorted(of), abs=1e-12), row["measure"]
    text = example.table(rows)
    known = rows[0]["all"]["loss_gap"]
    assert example.coefficient(known["median"], known["range"]) in text
    assert len(text.splitlines()) == 2 + len(example.MEASURES) + 1
    assert "never" in example.courses([example.course(trained)])
    assert len(example.draw([trained]).axes) == 2 * len(example.MEASURES)


@pytest.mark.slow
def test_the_papers_map_is_measured_beside_the_step_that_is_taken(example: ModuleType, trained) -> None:
    """Of the same weights; with momentum the two differ, and the state of the paper's map is the weights alone."""
    assert np.all(trained.measure("SD, paper") <= trained.setting.build().count_params())
    assert np.all(trained.measure("SD") > trained.measure("SD, paper"))
    assert not np.array_equal(trained.measure("lambda_1"), trained.measure("lambda_1, paper"))


@pytest.mark.slow
def test_a_kill_loses_a_segment_at_most(example: ModuleType, tiny, trained, tmp_path: Path, monkeypatch) -> None:
    """Killed between the log's line and the checkpoint: the segment is repeated, and the rest comes out the same."""
    calls = []

    def replace(source: object, target: object) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        Path(str(source)).rename(str(target))

    monkeypatch.setattr(example.os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        example.train(tiny, tmp_path, 3)
    again = example.train(tiny, tmp_path, 3)
    assert len(calls) == 2 + 2  # the second segment again, and the one after it
    assert list(again.steps) == list(trained.steps)
    for name in ("loss", "test_loss", "accuracy", "E_alpha", "E_alpha, data"):
        assert np.array_equal(again.metric(name), trained.metric(name)), name


@pytest.mark.slow
def test_the_script_runs(tmp_path: Path) -> None:
    out = tmp_path / "figure.png"
    command = [sys.executable, str(EXAMPLES / "grokking.py"), "--quick", "--out", str(tmp_path / "run")]
    run = subprocess.run([*command, "--figure", str(out)], capture_output=True, text=True, check=True)
    assert len([line for line in run.stdout.splitlines() if line.startswith("| ")]) == 1 + 3 + 1 + 18
    assert "nan" not in run.stdout
    assert out.read_bytes().startswith(b"\x89PNG")
