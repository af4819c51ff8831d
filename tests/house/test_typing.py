"""mypy --strict accepts right plugins and rejects a wrong source, result or seed where the class is defined."""

import subprocess
import sys
from pathlib import Path

import pytest

# Decorator, source, type of the seed, result.
RIGHT = [
    ("spectrum_estimator", "sdkeras.SymmetricOperator", "int", "sdkeras.Spectrum"),
    ("lyapunov_estimator", "sdkeras.TangentFlow", "int", "sdkeras.LyapunovExponents"),
]
WRONG = [
    ("spectrum_estimator", "sdkeras.SymmetricOperator", "int", "sdkeras.TraceEstimate"),
    ("spectrum_estimator", "sdkeras.SymmetricOperator", "str", "sdkeras.Spectrum"),
    ("spectrum_estimator", "sdkeras.TangentFlow", "int", "sdkeras.Spectrum"),
    ("lyapunov_estimator", "sdkeras.SymmetricOperator", "int", "sdkeras.LyapunovExponents"),
    ("trace_estimator", "sdkeras.SymmetricOperator", "int", "float"),
]
PLUGIN = """
import attrs
import sdkeras

@sdkeras.{}("typed")
@attrs.frozen
class Typed:
    def estimate(self, source: {}, *, seed: {}) -> {}:
        raise NotImplementedError
"""


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Errors in the plugins, file by file."""
    folder = tmp_path_factory.mktemp("plugins")
    for number, parts in enumerate([*RIGHT, *WRONG]):
        (folder / f"plugin_{number}.py").write_text(PLUGIN.format(*parts))
    config = folder / "mypy.ini"
    config.write_text("[mypy]\nstrict = true\n[mypy-tensorflow.*,keras.*,scipy.*]\nfollow_imports = skip\n")
    cache = str(Path(__file__).parents[2] / ".mypy_cache")
    command = [sys.executable, "-m", "mypy", "--config-file", str(config), "--cache-dir", cache, str(folder)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    return [line for line in run.stdout.splitlines() if "plugin_" in line and ": error: " in line]


@pytest.mark.parametrize("parts", [*RIGHT, *WRONG], ids=" ".join)
def test_mypy(errors: list[str], parts: tuple[str, ...]) -> None:
    own = [line for line in errors if f"plugin_{[*RIGHT, *WRONG].index(parts)}.py:" in line]
    if parts in RIGHT:
        assert not own
    else:
        assert own[0].endswith(("[arg-type]", "[type-var]"))
        assert 5 <= int(own[0].split(":")[1]) <= 7  # the decorators and the name of the class
