"""The example of a third-party package: built, installed beside broken ones, and run as its users would."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from sdkeras.estimators import registry

EXAMPLE = Path(__file__).parents[2] / "examples" / "custom_estimator"

PLUGIN = """
import attrs
import numpy as np
import sdkeras

@sdkeras.spectrum_estimator("{name}")
@attrs.frozen
class Flat:
    {fields}
    def estimate(self, source: sdkeras.SymmetricOperator, *, seed: int) -> sdkeras.{result}:
        {body}
        return sdkeras.Spectrum(np.zeros(1), np.array([float(source.size)]), num_matvecs=0, seed=seed)
"""


def plugin(name: str, *, fields: str = "pass", result: str = "Spectrum", body: str = "pass") -> str:
    return PLUGIN.format(name=name, fields=fields, result=result, body=body)


UNPRINTABLE = "class Odd(Exception):\n    def __str__(self): raise ValueError\nraise Odd"
# Name of the entry point -> source of the module and what the list must say. All claim the attribute Flat.
BROKEN = {
    "acme-needs": ("import nothing_of_that_name", "ModuleNotFoundError: No module named 'nothing_of_that_name'"),
    "acme-attribute": ("", "AttributeError: module 'acme_attribute' has no attribute 'Flat'"),
    "acme-raises-exit": ("raise SystemExit('no licence')", "SystemExit: no licence"),
    "acme-exits": ("import sys; sys.exit(0)", "SystemExit: 0"),
    "acme-base": ("class Stop(BaseException): pass\nraise Stop('stopped')", "Stop: stopped"),
    "acme-generator": ("raise GeneratorExit", "GeneratorExit"),
    "acme-syntax": ("def f(:\n", "SyntaxError: invalid syntax (acme_syntax.py, line 1)"),
    "acme-long": ("raise ValueError('first line\\n' + 10000 * 'x\\n')", "ValueError: first line x x"),
    "acme-escape": ("raise ValueError('\\x1b[31mred\\x1b]0;title\\x07')", "ValueError: red�]0;title�"),
    "acme-unprintable": (UNPRINTABLE, "Odd: (its message cannot be shown)"),
    "acme-undeclared": ("class Flat: pass", "is not declared with @sdkeras.spectrum_estimator('acme-undeclared')"),
    "acme-claims": ("class Flat: __sdkeras__ = 'spectrum'", "is not declared"),
    "acme-copied": (plugin("slq"), "declares spectrum 'slq'; the entry point's group and name must be the same"),
    "acme-result": (plugin("acme-result", result="TraceEstimate"), "annotated to return TraceEstimate, expected Spec"),
}
# Text of entry_points.txt and what the list must say.
BROKEN_METADATA = {
    "acme_value": ("[sdkeras.spectrum]\nacme-value = not a module!\n", "acme-value"),
    "acme_empty": ("[sdkeras.spectrum]\nacme-empty =\n", "acme-empty"),
    "acme_group": ("[sdkeras.spectra]\nacme-group = acme_group:Flat\n", "there is no group 'sdkeras.spectra'"),
    "acme_line": ("[sdkeras.spectrum]\nacme-line\n", "its entry_points.txt cannot be read: "),
    "acme_bytes": (b"[sdkeras.spectrum]\nacme = acme:\xff\xfe\n", "cannot be read: UnicodeDecodeError"),
    "acme_name": ("[sdkeras.spectrum]\nacme-\x1b[31mname = nothing_at_all:Flat\n", "acme-�[31mname"),
}
# METADATA, which says whose they are, is missing or is not text.
DAMAGED = {"acme_bare": None, "acme_noise": b"Name: \xff\xfe"}
# Whatever loads, but fails the moment it is made or run.
FAILING = {
    "acme-estimate": (plugin("acme-estimate", body="1 / 0"), "raises ZeroDivisionError: division by zero"),
    "acme-leaves": (plugin("acme-leaves", body="raise SystemExit"), "fails: SystemExit"),
    "acme-required": (plugin("acme-required", fields="order: int"), "has fields without a default: order"),
    "acme-default": (
        plugin("acme-default", fields="order: int = attrs.field(default=0, validator=attrs.validators.ge(1))"),
        "fails: ValueError",
    ),
}


def add(site: Path, name: str, entry_points: str | bytes, module: str | None = None) -> None:
    """A distribution as an installer leaves it."""
    info = site / f"{name}-0.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.3\n")
    text = entry_points if isinstance(entry_points, bytes) else entry_points.encode()
    (info / "entry_points.txt").write_bytes(text)
    if module is not None:
        (site / f"{name}.py").write_text(module)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "custom_estimator"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("__pycache__", ".*", "*.egg-info", "dist", "build"))
    return folder


@pytest.fixture(scope="module")
def site(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the example is installed, and nothing else."""
    target = tmp_path_factory.mktemp("site")
    command = "-m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --no-index --target"
    subprocess.run([sys.executable, *command.split(), str(target), str(source)], check=True)
    return target


@pytest.fixture(scope="module")
def crowded(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, installed beside every broken package."""
    target = tmp_path_factory.mktemp("crowded")
    shutil.copytree(site, target, dirs_exist_ok=True)
    for name, (module, _) in (BROKEN | FAILING).items():
        package = name.replace("-", "_")
        add(target, package, f"[sdkeras.spectrum]\n{name} = {package}:Flat\n", module)
    for name, (entry_points, _) in BROKEN_METADATA.items():
        add(target, name, entry_points)
    for name, metadata in DAMAGED.items():
        add(target, name, f"[sdkeras.spectrum]\n{name} = nothing_at_all:Flat\n")
        file = target / f"{name}-0.3.dist-info" / "METADATA"
        file.unlink() if metadata is None else file.write_bytes(metadata)
    return target


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained net and its data, of which the last batch is a short one."""
    folder = tmp_path_factory.mktemp("files")
    keras.utils.set_random_seed(0)
    generator = np.random.default_rng(0)
    x = generator.standard_normal((147, 6)).astype("float32")
    y = (x[:, 0] > 0).astype(int) + (x[:, 1] * x[:, 2] > 0)
    np.savez(folder / "train.npz", x=x, y=y)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(10, "tanh"), keras.layers.Dense(3)])
    model.compile(keras.optimizers.SGD(0.3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, y, batch_size=32, epochs=30, verbose=0)
    model.save(folder / "model.keras")
    return folder


def python(*arguments: str, path: Path | None = None, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"COLUMNS": "1000", "PYTHONIOENCODING": "utf-8", "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment["OPENBLAS_NUM_THREADS"] = "1"  # matrices are small, and other tests run beside these
    environment |= {} if path is None else {"PYTHONPATH": str(path)}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, encoding="utf-8", cwd=folder, env=environment, check=False
    )


def command(*arguments: str, path: Path, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    return python("-c", "from sdkeras_cli.main import main; main()", *arguments, path=path, folder=folder)


CHECKED = ["acme-exits", "acme-long", "acme-copied", *FAILING]
CHECKER = """
import contextlib, io, json, sys
from sdkeras_cli.main import main

outcomes = {}
for name in sys.argv[1:]:
    with contextlib.redirect_stderr(io.StringIO()) as errors, contextlib.redirect_stdout(io.StringIO()):
        try:
            main(["plugins", "check", name])
        except SystemExit as end:
            outcomes[name] = end.code, errors.getvalue()
print(json.dumps(outcomes))
"""


def assert_refused(status: int, error: str, reason: str) -> None:
    """Exit status 2 and one message that says why."""
    assert status == 2, error
    assert error.startswith("sdkeras: error: ")
    assert reason in error
    assert error.count("\n") == 1
    assert len(error) < 1000
    assert "\x1b" not in error


def test_the_package_is_complete(site: Path) -> None:
    package = site / "sdkeras_block_slq"
    assert {file.name for file in package.iterdir()} >= {"__init__.py", "estimator.py", "py.typed"}
    assert (site / "sdkeras_block_slq-0.1.0.dist-info" / "entry_points.txt").is_file()


def test_its_own_tests_pass(site: Path, source: Path) -> None:
    run = python("-m", "pytest", "-q", "-p", "no:cacheprovider", path=site, folder=source)
    assert run.returncode == 0, run.stdout


def test_it_is_listed_and_conforms(site: Path) -> None:
    listed = command("plugins", "list", path=site)
    assert re.search(r"^spectrum +block-slq +sdkeras-block-slq 0\.1\.0 +ok *$", listed.stdout, re.MULTILINE)
    assert "broken" not in listed.stdout
    checked = command("plugins", "check", "block-slq", path=site)
    assert checked.returncode == 0
    assert "passes its kind's contract" in checked.stdout


@pytest.mark.slow
def test_it_analyses_and_agrees_with_the_default_beside_broken_packages(crowded: Path, files: Path) -> None:
    common = ["analyze", "model.keras", "--data", "train.npz", "--batch-size", "32", "--quiet"]
    runs = {}
    for name, options in {"slq": [], "block-slq": ["--estimator", "block-slq"]}.items():
        settings = ["--set", "block-slq.block_size=2"] if options else []
        run = command(*common, *options, *settings, "--json", f"{name}.json", path=crowded, folder=files)
        assert run.returncode == 0, run.stderr
        whole = json.loads((files / f"{name}.json").read_text())
        runs[name] = whole["sharpness_dimension"]
        assert runs[name]["estimator"] == name
        # The dimension does not feel the scale of the spectrum; its trace, by another estimator, does.
        trace, spectrum = whole["hessian"]["trace"], whole["spectrum"]
        # Its probes by 3 standard errors, and some per cent for the minibatches, which are not all the data.
        allowed = 3 * trace["stderr"] + 0.05 * trace["value"]
        assert np.dot(spectrum["nodes"], spectrum["weights"]) == pytest.approx(trace["value"], abs=allowed)
    low, high = np.transpose([runs[name]["interval"] for name in runs])
    assert low.max() <= high.min()
    # Wide intervals would prove nothing.
    assert np.max(high - low) < 0.15 * runs["slq"]["codimension"]
    # Two products a step.
    block = runs["block-slq"]
    assert block["num_hvps"] >= 2 * block["sampled"]["num_steps"] * block["num_runs"]
    codes = {w["code"] for w in json.loads((files / "block-slq.json").read_text())["warnings"]}
    assert not codes & {"nested-check-missing", "mass-correction-off"}


@pytest.mark.slow
def test_a_broken_estimator_is_refused_when_it_is_asked_for(crowded: Path, files: Path) -> None:
    asked = ["analyze", "model.keras", "--data", "train.npz", "--estimator", "acme-escape"]
    run = command(*asked, path=crowded, folder=files)
    assert_refused(run.returncode, run.stderr, "red�]0;title�")


def test_broken_packages_are_listed_with_their_reasons_and_stop_nothing_else(crowded: Path) -> None:
    run = command("plugins", "list", path=crowded)
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    assert "\x1b" not in run.stdout
    rows = run.stdout.splitlines()[1:]
    broken = [row for row in rows if "broken: " in row]
    for name, (_, reason) in BROKEN.items():
        found = [row for row in broken if f" {name} " in row and f"{name.replace('-', '_')} 0.3" in row]
        assert len(found) == 1, name
        assert reason in found[0]
        assert len(found[0]) < 800
    for name, (_, reason) in BROKEN_METADATA.items():
        assert any(reason in row and f"{name} 0.3" in row for row in broken), name
    for name in DAMAGED:
        assert any(f" {name} " in row and "unknown ?" in row for row in broken), name
    assert len(broken) == len(BROKEN) + len(BROKEN_METADATA) + len(DAMAGED)
    sound = {row.split()[1] for row in rows if row not in broken}
    ours = {plugin.name for plugin in registry.installed() if plugin.distribution == "sdkeras"}
    assert len(ours) > 4
    assert sound == {*ours, "block-slq", *FAILING}


@pytest.fixture(scope="module")
def checked(crowded: Path) -> dict[str, tuple[int, str]]:
    """Exit status and stderr of `sdkeras plugins check` for each name, one after another in one process."""
    run = python("-c", CHECKER, *CHECKED, path=crowded)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("name", CHECKED)
def test_checking_what_is_broken_gives_one_message(checked: dict[str, tuple[int, str]], name: str) -> None:
    _, reason = (BROKEN | FAILING)[name]
    assert_refused(*checked[name], reason)


@pytest.mark.slow
def test_mypy_accepts_it(source: Path, tmp_path: Path) -> None:
    run = python("-m", "mypy", "--strict", "--cache-dir", str(tmp_path), "src", "tests", folder=source)
    assert run.returncode == 0, run.stdout
