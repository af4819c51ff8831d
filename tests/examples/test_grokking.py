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
    models = [setting.build() for setting in example.SETTINGS]
    assert [model.count_params() for model in models] == [9441, 10497]
    assert [float(model.optimizer.momentum) for model in models] == [0.9, 0.0]
    assert all(model.optimizer.weight_decay > 0 for model in models)


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


def test_the_table_is_kendalls(example: ModuleType, trained) -> None:
    rows = example.correlations([trained])
    for row in rows:
        expected = kendalltau(trained.measure(row["measure"]), trained.gaps("loss")).statistic
        assert row["all"]["loss_gap"]["tau_b"] == pytest.approx(expected, abs=1e-12), row["measure"]
    text = example.table(rows)
    assert example.coefficient(rows[0]["all"]["loss_gap"]["tau_b"]) in text
    assert len(text.splitlines()) == 2 + len(example.MEASURES) + 1
    assert f"train accuracy {example.FITTED:.0%}" in example.summary(trained)
    assert len(example.draw([trained]).axes) == 2 * len(example.MEASURES)


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
    assert len([line for line in run.stdout.splitlines() if line.startswith("| ")]) == 1 + 14
    assert "nan" not in run.stdout
    assert out.read_bytes().startswith(b"\x89PNG")
