"""The scan of Keras' layers: thirty of its rows, that nothing public is left out, and that it can fail."""

import contextlib
import math
import re
import subprocess
import sys
from pathlib import Path

import keras
import pytest

from layer_scan import cases, scan
from sdkeras.operators import engine, verification

TABLE = Path(__file__).parents[2] / "examples" / "layers.md"
CASES = {f"{case.module}.{case.title}": case for case in cases.cases()}
EXACT, DIFFERENCES = "reverse-over-reverse", "finite-differences"

# What must come out: outcome and product mode.
EXPECTED = {
    "layers.Dense": ("right", EXACT),
    "layers.Embedding": ("right", EXACT),
    "layers.Lambda": ("right", EXACT),
    "layers.LayerNormalization": ("corrected", EXACT),
    "layers.GroupNormalization": ("corrected", EXACT),
    "layers.BatchNormalization (train)": ("corrected", EXACT),
    "layers.BatchNormalization (inference)": ("right", EXACT),
    "layers.Normalization (adapted)": ("right", EXACT),
    "layers.RMSNormalization": ("right", EXACT),
    "layers.SpectralNormalization (train)": ("refused", EXACT),
    "layers.MultiHeadAttention (causal)": ("right", EXACT),
    "layers.GroupQueryAttention": ("right", EXACT),
    "layers.Conv2D (strides)": ("right", EXACT),
    "layers.MaxPooling2D (overlapping)": ("right", EXACT),
    "layers.MaxPooling2D (strides=1, same)": ("corrected", EXACT),
    "layers.AveragePooling3D": ("right", EXACT),
    "layers.SimpleRNN (unroll)": ("right", EXACT),
    "layers.LSTM": ("right", EXACT),
    "layers.Dropout": ("right", EXACT),
    "layers.UpSampling2D (nearest)": ("right", EXACT),
    "layers.UpSampling2D (bilinear)": ("refused", EXACT),
    "layers.UpSampling2D (bicubic)": ("right", DIFFERENCES),
    "layers.Resizing (area)": ("refused", ""),
    "layers.RandomTranslation (bilinear)": ("refused", EXACT),
    "layers.RandomTranslation (before all weights)": ("right", EXACT),
    "layers.Discretization": ("no derivative", EXACT),
    "layers.IntegerLookup (adapted, tf_idf)": ("no derivative", EXACT),
    "layers.StringLookup": ("no derivative", "reverse-over-reverse"),
    "layers.TorchModuleWrapper": ("not tried", ""),
    "layers.TFSMLayer (a SavedModel with LayerNormalization)": ("corrected", DIFFERENCES),
    "activations.softsign": ("right", DIFFERENCES),
    "activations.sparsemax": ("right", EXACT),
    "losses.CTC": ("right", DIFFERENCES),
    "losses.Huber": ("right", EXACT),
    "losses.Circle (a label once in a batch)": ("refused", ""),
    "losses.CosineSimilarity": ("right", EXACT),
}

# What XLA makes of some of them.
BY_XLA = {
    "layers.Dense": "right",
    "layers.LayerNormalization": "right",
    "layers.MaxPooling2D (overlapping)": "right",
    "layers.UpSampling2D (bicubic)": "refused (ResizeBicubic)",
    "layers.StringLookup": "refused (text)",
    "activations.softsign": "right",
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "layers.Dense" else pytest.mark.slow) for name in EXPECTED]
)
def test_representatives(name: str) -> None:
    row = scan.measure(CASES[name])
    assert (row.outcome, row.mode) == EXPECTED[name], row
    assert row.xla == BY_XLA.get(name, row.xla)
    if row.outcome == "corrected":
        assert row.plain_error > 100 * row.error


def test_everything_public_has_a_case() -> None:
    for module in cases.MODULES:
        own = [case for case in CASES.values() if case.module == module]
        shown = {name for case in own for name in (case.name, *case.covers)}
        groups = cases.public_names(module)
        assert shown == set(groups)
        public = {name for name in dir(getattr(keras, module)) if not name.startswith("_")}
        assert {name for first, others in groups.items() for name in (first, *others)} == public
    assert not [case.title for case in CASES.values() if case.build is cases.unknown]


def test_what_a_newer_keras_adds_is_shown_as_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keras.activations, "brand_new", lambda x: x, raising=False)
    (case,) = (case for case in cases.cases() if case.name == "brand_new")
    row = scan.measure(case)
    assert row.outcome == "not tried"
    assert "| brand_new |" in scan.table([row])


@pytest.mark.slow
def test_the_scan_can_fail(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """TensorFlow's own moments and a verification that passes everything: the scan itself must see it."""
    monkeypatch.setattr(engine, "exact_moments", contextlib.nullcontext)
    monkeypatch.setattr(engine, "inexact_moments", lambda graph: [])
    monkeypatch.setattr(verification, "_ALLOWED", {"float64": math.inf, "float32": math.inf})
    assert scan.main(["GroupNormalization"]) == 1
    assert capsys.readouterr().out.count("| **WRONG** |") == 2


def test_the_command_writes_a_file_and_knows_its_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert scan.main(["TorchModuleWrapper", "--output", str(tmp_path / "table.md")]) == 0
    assert "| TorchModuleWrapper |" in (tmp_path / "table.md").read_text()
    with pytest.raises(SystemExit):
        scan.main(["TorchModuleWrappper"])
    assert "TorchModuleWrappper" in capsys.readouterr().err


def test_the_kept_table_is_whole_and_holds_nothing_wrong() -> None:
    text = TABLE.read_text()
    assert "| **WRONG** |" not in text
    if f"Keras {keras.__version__}," not in text:
        pytest.skip("the table was made with another Keras")
    rows = [tuple(cell.strip() for cell in line.split("|")[1:3]) for line in text.splitlines() if "|" in line]
    assert not {(case.name, case.variant) for case in CASES.values()} - set(rows)
    for name, (outcome, mode) in EXPECTED.items():
        case = CASES[name]
        expected = outcome if outcome == "right" else rf"\*\*{outcome}\*\*"
        row = rf"^\| {case.name} \| {re.escape(case.variant)} \| {expected} \| {mode} \|"
        line = re.search(f"{row}.*$", text, re.MULTILINE)
        assert line, name
        assert f"| {BY_XLA.get(name, '')}" in line[0], name


def test_importing_the_package_loads_no_tensorflow() -> None:
    code = "import sys, sdkeras.testing; sys.exit(bool({'tensorflow', 'keras'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
