"""The house: what stands where, and that every room opens by itself. Which way imports go is import-linter's."""

import ast
import doctest
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {"sdkeras": ROOT, "sdkeras_plugins": ROOT / "plugins", "sdkeras_cli": ROOT / "cli"}
SOURCES = {
    ".".join(file.relative_to(folder).with_suffix("").parts).removesuffix(".__init__"): file
    for name, folder in PACKAGES.items()
    for file in sorted((folder / name).rglob("*.py"))
    if file.name != "__main__.py"
}
MODULES = sorted(SOURCES)
# What needs TensorFlow to be imported; everything else must load without it, in any process.
HEAVY = ("sdkeras.callbacks", "sdkeras.operators", "sdkeras.runs", "sdkeras.training_step")
HEAVY_FILES = {
    *(f"sdkeras.files.{name}" for name in ("compiled_part", "data_fit", "models", "optimizer_slots")),
    *(f"sdkeras.study.{name}" for name in ("measure", "recorder", "simulate", "train")),
}
LIGHT_FILES = {f"sdkeras.runs{name}" for name in ("", ".declare", ".loss_options", ".lyapunov_options", ".options")} | {
    "sdkeras.operators",
    "sdkeras.operators.modes",
    "sdkeras.training_step",
}
LIGHT = [name for name in MODULES if name in LIGHT_FILES or not (name.startswith(HEAVY) or name in HEAVY_FILES)]

# One process for all: a fork for each module has the third-party libraries in memory and nothing of sdkeras. Windows
# has neither fcntl nor resource.
IMPORTER = """
import importlib, os, sys
import attrs, cattrs, click, jinja2, matplotlib, numpy, psutil, rich, scipy.stats
sys.modules["fcntl"] = sys.modules["resource"] = None
failed = False
for name in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            importlib.import_module(name)
            heavy = {"tensorflow", "keras", "tensorflow_probability"} & set(sys.modules)
            status = 1 if heavy else 0
            if heavy:
                print(f"{name} loads {heavy}", flush=True)
        except BaseException as error:
            print(f"{name}: {type(error).__name__}: {error}", flush=True)
        finally:
            os._exit(status)
    failed |= os.waitpid(child, 0)[1] != 0
sys.exit(failed)
"""

PUBLIC = {
    "sdkeras": (
        "Analysis Comparison CriticalRun DiagonalEstimate Eigenpairs EmpiricalLoss FisherOperator "
        "GaussNewtonOperator HessianOperator LandscapeRun Laplace LinearMap LyapunovExponents LyapunovRun "
        "OperatorBatch SdkerasError SingularValues Spectrum SymmetricOperator TangentFlow TraceEstimate "
        "TrainingFlow UpdateMap analyze compare critical diagonal eigenpairs_estimator get_estimator "
        "landscape laplace lyapunov lyapunov_estimator sharpness_dimension singular_values_estimator "
        "spectrum_estimator trace_estimator track"
    ),
    "sdkeras.callbacks": "SharpnessDimension",
    "sdkeras.datasets": "character_windows load_digits load_documentation_text load_mnist_5k modular_addition",
    "sdkeras.errors": (
        "SdkerasError ModelError DataError PluginError UnknownEstimatorError MapError OperatorSizeError "
        "ArgumentTypeError NonFiniteError VerificationError BudgetError Interrupted"
    ),
    "sdkeras.linalg.probes": "frame_of probes_of start_of",
    "sdkeras.plot": (
        "compare convergence cumulative_exponents exponents landscape layers lyapunov_convergence "
        "lyapunov_exponents lyapunov_windows snapshots spectral_density track"
    ),
    "sdkeras.runs.cluster": "join",
    "sdkeras.study": "Trajectory TrajectoryRecorder measure_trajectory",
    "sdkeras.testing": "CountingOperator MatrixFlow MatrixMap check_estimator dense_operator rotation",
}


def test_nothing_stands_at_the_top_but_what_belongs_to_all() -> None:
    files = {file.name for file in (ROOT / "sdkeras").iterdir() if file.is_file()}
    assert files == {"__init__.py", "_version.py", "errors.py", "py.typed", "seeds.py"}


# Packages, what users import and what each worker process begins with; the slow run has every module.
SOME = {name for name, file in SOURCES.items() if file.name == "__init__.py"} | {
    "sdkeras_cli.main",
    "sdkeras.study.worker",
}
HOW_MANY = pytest.mark.parametrize(
    "modules", [pytest.param(SOME, id="some"), pytest.param({*MODULES}, id="all", marks=pytest.mark.slow)]
)


@HOW_MANY
def test_modules_without_tensorflow_import_alone(modules: set[str]) -> None:
    names = [name for name in LIGHT if name in modules]
    run = subprocess.run([sys.executable, "-c", IMPORTER, *names], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr


@HOW_MANY
def test_modules_with_tensorflow_import_alone(monkeypatch: pytest.MonkeyPatch, modules: set[str]) -> None:
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] in PACKAGES}
    importlib.import_module("tensorflow")  # which has a use for them
    failed = {}
    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, "resource", None)
    try:
        for name in sorted(modules - {*LIGHT}):
            for loaded in [each for each in sys.modules if each.split(".")[0] in PACKAGES]:
                del sys.modules[loaded]
            try:
                importlib.import_module(name)
            except ImportError as error:
                failed[name] = str(error)
    finally:
        for loaded in [each for each in sys.modules if each.split(".")[0] in PACKAGES]:
            del sys.modules[loaded]
        sys.modules.update(before)
    assert not failed


@pytest.mark.parametrize("package", PUBLIC)
def test_public_names_stay_where_users_import_them_from(package: str) -> None:
    module = importlib.import_module(package)
    for name in PUBLIC[package].split():
        assert hasattr(module, name), name
    if hasattr(module, "__all__"):
        assert set(module.__all__) == set(PUBLIC[package].split())


def test_completion_offers_what_is_public_and_nothing_else() -> None:
    """In a process of its own: here other tests have imported what they needed into the package."""
    packages = {"callbacks", "datasets", "errors", "plot", "study", "testing"}
    lazily = "sdkeras.datasets, sdkeras.study, sdkeras.testing, sdkeras.errors"
    code = f"import sdkeras; print(*dir(sdkeras)); print(*dir(sdkeras.plot)); {lazily}"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    names, plots = (set(line.split()) for line in run.stdout.splitlines())
    assert names == {*PUBLIC["sdkeras"].split(), *packages, "__version__"}
    assert plots == set(PUBLIC["sdkeras.plot"].split())


def test_one_version() -> None:
    import tomllib

    import sdkeras

    assert sdkeras.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


# Whole commands to type, where no argument of Python will do.
COMMANDS_IN_WORDS = {"results/log.py", "study/results.py", "runs/trajectory.py"}


def test_messages_of_the_library_name_arguments_and_no_options() -> None:
    """They say `learning_rate=F`; reporting/advice.py shows it as --learning-rate F where a command runs."""
    option = re.compile(r"(?<!var\()(?<![\w-])--[a-z]{2}")
    for file in sorted((ROOT / "sdkeras").rglob("*.py")):
        tree = ast.parse(file.read_text())
        docstrings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        texts = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and node not in docstrings]
        named = [node.value for node in texts if isinstance(node.value, str) and option.search(node.value)]
        assert not named or str(file.relative_to(ROOT / "sdkeras")) in COMMANDS_IN_WORDS, (file.name, named)


@pytest.mark.parametrize("name", [name for name in MODULES if ">>>" in SOURCES[name].read_text()])
def test_examples_in_docstrings(name: str) -> None:
    outcome = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert outcome.attempted > 0
    assert outcome.failed == 0
