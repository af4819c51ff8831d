"""mypy --strict accepts a right plugin and rejects a wrong source or result where it is defined."""

import subprocess
import sys
from pathlib import Path

import pytest

PLUGIN = """
import attrs
import sdkeras

@sdkeras.{decorator}("typed")
@attrs.frozen
class Typed:
    def estimate(self, source: {source}, *, seed: int) -> {result}:
        raise NotImplementedError
"""


@pytest.mark.parametrize(
    ("decorator", "source", "result", "right"),
    [
        ("spectrum_estimator", "sdkeras.SymmetricOperator", "sdkeras.Spectrum", True),
        ("spectrum_estimator", "sdkeras.SymmetricOperator", "sdkeras.TraceEstimate", False),
        ("spectrum_estimator", "sdkeras.TangentFlow", "sdkeras.Spectrum", False),
        ("lyapunov_estimator", "sdkeras.TangentFlow", "sdkeras.LyapunovExponents", True),
        ("lyapunov_estimator", "sdkeras.SymmetricOperator", "sdkeras.LyapunovExponents", False),
        ("trace_estimator", "sdkeras.SymmetricOperator", "float", False),
    ],
)
def test_mypy(tmp_path: Path, decorator: str, source: str, result: str, right: bool) -> None:
    file = tmp_path / "plugin.py"
    file.write_text(PLUGIN.format(decorator=decorator, source=source, result=result))
    cache = str(Path(__file__).parents[2] / ".mypy_cache")
    config = tmp_path / "mypy.ini"
    config.write_text("[mypy]\nstrict = true\n[mypy-tensorflow.*,keras.*,scipy.*]\nfollow_imports = skip\n")
    run = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", str(config), "--cache-dir", cache, str(file)],
        capture_output=True,
        text=True,
        check=False,
    )
    own = [line for line in run.stdout.splitlines() if line.startswith(str(file)) and "error" in line]
    if right:
        assert run.returncode == 0, run.stdout
    else:
        assert own, run.stdout
        assert "arg-type" in own[0] or "type-var" in own[0]
