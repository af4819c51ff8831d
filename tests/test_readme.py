"""Every Python block of the README runs, and its shell commands name options that exist."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from sdkeras_cli.analyze import command

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_python_blocks_run(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "readme"}
    exec(block, namespace)
    if "MeanDiagonal" in namespace:
        import numpy as np

        from oracles import rotated
        from sdkeras.operators.base import DenseOperator

        values = np.linspace(1, 2, 40)
        found = namespace["MeanDiagonal"](num_probes=400).estimate(DenseOperator(rotated(values)), seed=0)
        assert abs(found.value - values.sum()) < 5 * found.stderr


def test_options_exist() -> None:
    help_text = CliRunner().invoke(command, ["--help"]).output
    table = README.split("## Your own model")[1].split("## From Python")[0]
    options = set(re.findall(r"(--[a-z][a-z-]+)", table))
    assert len(options) > 10
    assert all(option in help_text for option in options), options
