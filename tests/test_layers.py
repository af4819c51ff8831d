"""Knowledge flows one way: which room may import which, and which libraries, read from the imports themselves."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {"sdkeras": ROOT / "sdkeras", "sdkeras_plugins": ROOT / "plugins" / "sdkeras_plugins"}
PACKAGES["sdkeras_cli"] = ROOT / "cli" / "sdkeras_cli"
FILES = sorted(file for folder in PACKAGES.values() for file in folder.rglob("*.py"))
NUMERICAL = {"numpy", "scipy", "attrs", "typing", "collections"}
HEAVY = {"tensorflow", "keras", "tensorflow_probability", "tf_keras"}


def room_of(file: Path) -> str:
    for package, folder in PACKAGES.items():
        if folder in file.parents:
            first = file.relative_to(folder).parts[0]
            return package if package != "sdkeras" else f"sdkeras.{first.removesuffix('.py')}"
    raise AssertionError(file)


def imports(file: Path, *, only_at_start: bool) -> set[str]:
    """Imported module names; with `only_at_start` those that importing the file itself triggers."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if only_at_start and isinstance(child, (ast.FunctionDef, ast.Lambda)):
                continue
            if only_at_start and isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                continue
            if isinstance(child, ast.Import):
                found.update(alias.name for alias in child.names)
            if isinstance(child, ast.ImportFrom) and child.module:
                found.update({child.module, *(f"{child.module}.{alias.name}" for alias in child.names)})
            visit(child)

    visit(ast.parse(file.read_text()))
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_the_library_never_imports_plugins_or_the_command_line(file: Path) -> None:
    names = {name.split(".")[0] for name in imports(file, only_at_start=False)}
    if file.is_relative_to(PACKAGES["sdkeras"]):
        assert not names & {"sdkeras_plugins", "sdkeras_cli"}
    if file.is_relative_to(PACKAGES["sdkeras_plugins"]):
        assert "sdkeras_cli" not in names
        assert not names & HEAVY


@pytest.mark.parametrize(
    "room",
    ["errors", "records", "kinds", "registry", "linalg", "dimension", "reporting", "memory", "finite", "long_vectors"],
)
def test_light_rooms_never_load_tensorflow(room: str) -> None:
    files = [file for file in FILES if room_of(file) == f"sdkeras.{room}"]
    assert files
    for file in files:
        names = imports(file, only_at_start=False)
        assert not {name.split(".")[0] for name in names} & HEAVY, file
        heavy_rooms = ("sdkeras.analysis", "sdkeras.loading", "sdkeras.operators.")
        reached = {name for name in names if name.startswith(heavy_rooms)} - {"sdkeras.operators.base"}
        assert not {name for name in reached if not name.startswith("sdkeras.operators.base")}, file


def test_the_statistics_of_a_study_load_no_tensorflow() -> None:
    files = {file.name: file for file in FILES if room_of(file) == "sdkeras.study"}
    heavy = ("recorder.py", "training.py", "measuring.py", "planned_rates.py", "worker.py", "forward.py")
    for name in sorted(set(files) - set(heavy)):
        names = imports(files[name], only_at_start=False)
        assert not {each.split(".")[0] for each in names} & HEAVY, name
        own = (
            "sdkeras.analysis",
            "sdkeras.loading",
            "sdkeras.operators",
            *(f"sdkeras.study.{each[:-3]}" for each in heavy),
        )
        assert not [each for each in names if each.startswith(own)], name


def test_dimension_and_linalg_are_numpy_and_scipy_only() -> None:
    for file in FILES:
        if room_of(file) in ("sdkeras.dimension", "sdkeras.linalg"):
            own = {name for name in imports(file, only_at_start=False) if name.startswith("sdkeras")}
            assert not [n for n in own if n.startswith(("sdkeras.operators", "sdkeras.registry", "sdkeras.reporting"))]


def test_operators_never_see_an_algorithm() -> None:
    for file in FILES:
        if room_of(file) == "sdkeras.operators":
            names = imports(file, only_at_start=False)
            assert not [name for name in names if name.startswith(("sdkeras.linalg", "sdkeras.dimension"))], file


def test_the_command_line_loads_no_tensorflow_at_start() -> None:
    for file in FILES:
        if room_of(file) == "sdkeras_cli":
            names = {name.split(".")[0] for name in imports(file, only_at_start=True)}
            assert not names & HEAVY, file
