"""`report`, `compare` and `--fail-if`: one message, exit statuses, and conditions on numbers and on differences."""

import contextlib
import json
import math
from pathlib import Path

import attrs
import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as examples
from hypothesis import strategies as st

import sdkeras
from processes import python
from sample_runs import ALONE, ESTIMATE, FOUND, RUN
from sdkeras.errors import SdkerasError
from sdkeras.estimators import registry
from sdkeras_cli import conditions, options


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run (a), one with SD 30.25 lower (b), one under another map (c); trajectories, one faster (slow, fast)."""
    lower = attrs.evolve(
        ESTIMATE, value=1500.0, interval=(1490.0, 1510.0), codimension=500.0, codimension_interval=(490.0, 510.0)
    )
    other = attrs.evolve(lower, map="hessian")
    runs = {"a": RUN, "slow": ALONE}
    for name, each in (("b", lower), ("c", other)):
        runs[name] = attrs.evolve(RUN, sharpness_dimension=each, estimates=(each,))
    runs["fast"] = attrs.evolve(ALONE, lyapunov=attrs.evolve(FOUND, values=FOUND.values + 0.25))
    folder = tmp_path_factory.mktemp("pair")
    for name, run in runs.items():
        run.save(folder / f"{name}.json")
    return {name: folder / f"{name}.json" for name in runs}


def test_report(run_json: Path, tmp_path: Path, in_process) -> None:
    status, shown, _ = in_process("report", run_json)
    assert status == 0
    assert "Sharpness dimension" in shown
    assert "Assumptions of the bounds" in shown
    assert in_process("report", run_json, "--quiet") == (0, "", "")
    page = tmp_path / "again.html"
    assert in_process("report", run_json, "--html", page) == (0, f"written: {page}\n", "")
    assert "Theorem 4.5" in page.read_text()
    assert "&lt;b&gt;net" in page.read_text()
    assert "<b>net" not in page.read_text()


def test_compare(pair, tmp_path: Path, in_process) -> None:
    page, out = tmp_path / "page.html", tmp_path / "out.json"
    names = (str(pair["a"]), str(pair["b"]))
    status, shown, _ = in_process("compare", *names, "--html", page, "--json", out)
    assert status == 0
    assert "fell by 30" in shown
    assert "fell by 30 [16, 44]" in page.read_text()
    assert sdkeras.Comparison.load(out) == sdkeras.compare(*map(sdkeras.Analysis.load, names), names=names)
    status, shown, _ = in_process("compare", names[0], names[0])
    assert (status, "Nothing differs" in shown) == (0, True)
    assert in_process("compare", *names, "--quiet") == (0, "", "")


@pytest.mark.parametrize(
    ("expression", "status"),
    [
        ("sharpness_dimension.state_size == 63", 3),
        ("sharpness_dimension.state_size != 63", 0),
        ("sharpness_dimension.state_size>=63 and hessian.trace.value > 0", 3),
        ("sharpness_dimension.state_size > 63 and hessian.trace.value > 0", 0),
        ("sharpness_dimension.state_size > 63 or hessian.trace.value > 0", 3),
        # and binds more tightly than or
        ("hessian.trace.value > 0 or hessian.trace.value > 0 and data.num_samples < 1", 3),
        ("rds_sharpness.leading.0 > 1e9", 0),
        ("bounds.0.partial_sum >= 0", 3),
        ("bounds.0.total > 1", 2),  # null
        ("hessian.trace.value > 0 or bounds.0.total > 1", 2),  # a null never hides behind an or
        ("bounds.7.total > 1", 2),
        ("layers.0.codimension > 1", 2),
    ],
)
def test_fail_if_of_a_run(run_json: Path, expression: str, status: int, in_process) -> None:
    found, _, err = in_process("report", run_json, "--quiet", "--fail-if", expression)
    assert (found, len(err.splitlines())) == (status, status != 0)


@pytest.mark.parametrize(
    ("second", "expression", "status"),
    [
        ("b", "sharpness_dimension.value < 1501", 3),
        ("b", "a.sharpness_dimension.value < 1501", 0),
        ("b", "b.sharpness_dimension.value < 1501", 3),
        ("b", "delta.sharpness_dimension.value < -30", 3),
        ("b", "delta.sharpness_dimension.value < -31", 0),
        ("b", "delta.sharpness_dimension.value == -30.25 and delta.edge_of_stability.ratio == 0", 3),
        ("b", "delta.rds_sharpness.leading.0 > 0 or delta.sharpness_dimension.codimension > 30", 3),
        ("c", "delta.edge_of_stability.sharpness > 0", 0),
        ("c", "delta.sharpness_dimension.value < 0", 2),  # another map
        ("c", "delta.edge_of_stability.ratio < 9 or delta.rds_sharpness.leading.0 > 0", 2),
        ("c", "b.sharpness_dimension.value < 1501", 3),
        ("b", "delta.hessian.trace.value > 0", 2),  # null
        ("b", "a.hessian.trace.value > 0", 2),
        ("b", "delta.hessian.trase.value > 0", 2),
        ("b", "delta > 0", 2),
        ("b", "delta.delta.edge_of_stability.ratio > 0", 2),
        ("fast", "delta.lyapunov.values.0 == 0.25", 3),
        ("fast", "a.lyapunov.values.0 > 0.5", 0),
        ("fast", "delta.lyapunov.dimension.value > 0", 2),  # null in both
        ("fast", "edge_of_stability.ratio > 0", 2),  # of no trajectory
    ],
)
def test_fail_if_of_two(pair, second: str, expression: str, status: int, in_process) -> None:
    first = pair["slow" if second == "fast" else "a"]
    found, _, err = in_process("compare", first, pair[second], "--quiet", "--fail-if", expression)
    assert (found, len(err.splitlines())) == (status, status != 0)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("", "PATH OP NUMBER"),
        ("x", "PATH OP NUMBER"),
        ("edge_of_stability.ratio > 1 and", "PATH OP NUMBER"),
        ("edge_of_stability.ratio > many", "'many' is not a number"),
        ("edge_of_stability.ratio > nan", "not a number"),
        ("edge_of_stability.ration > 1", "did you mean 'ratio'"),
        ("edge_of_stability > 1", "go on with one of"),
        ("edge_of_stability.verdict == 1", "not a number"),
        ("edge_of_stability.ratio.value > 1", "has no 'value'"),
        ("rds_sharpness.leading > 1", "not a number"),
        ("rds_sharpness.leading.x > 1", "lists take a number"),
        ("sharpness_dimension.interval.2 > 1", "has no '2'"),
        ("delta.edge_of_stability.ratio > 1", "has no 'delta'"),
    ],
)
def test_expressions_that_are_refused_before_the_work(
    expression: str, message: str, files: Path, in_process, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*_: object) -> None:
        raise AssertionError("the work has begun")

    monkeypatch.setattr("sdkeras_cli.request.Request.loaded", loaded)
    command = ("analyze", files / "model.keras", "--data", files / "data.npz")
    status, _, err = in_process(*command, "--fail-if", expression)
    assert (status, message in err) == (2, True)


def test_prefixes_are_of_compare_alone() -> None:
    conditions.parse("delta.edge_of_stability.ratio > 1", prefixes=conditions.OF_TWO)
    with pytest.raises(SdkerasError, match="has no 'delta'"):
        conditions.parse("delta.edge_of_stability.ratio > 1")


def test_every_path_of_a_run_is_known(run_json: Path) -> None:
    def paths(value: object, at: str) -> list[str]:
        if isinstance(value, dict):
            return [path for key, entry in value.items() for path in paths(entry, f"{at}.{key}" if at else key)]
        if isinstance(value, list):
            return [path for k, entry in enumerate(value[:2]) for path in paths(entry, f"{at}.{k}")]
        return [at] if isinstance(value, (int, float)) else []

    found = paths(json.loads(run_json.read_text()), "")
    assert len(found) > 60
    for path in found:
        conditions.parse(f"{path} > 0")


def test_bad_input_is_one_message(pair, tmp_path: Path, in_process) -> None:
    first, second = pair["a"], pair["b"]
    before, document = second.read_bytes(), json.loads(first.read_text())
    bad = {
        "newer.json": json.dumps(document | {"schema_version": 99}),
        "list.json": "[]",
        "text.json": "not JSON",
        "comparison.json": sdkeras.compare(RUN, RUN).to_json(),
        "lyapunov.json": json.dumps(document | {"document": "lyapunov"}),
    }
    for name, text in bad.items():
        (tmp_path / name).write_text(text)
    files = [tmp_path / name for name in ("none.json", *bad)]
    refused = [
        *((("report", file), file.name) for file in files),
        *((("compare", first, file), file.name) for file in files),
        *((("compare", file, first), file.name) for file in files),
        (("report", first, "--html", first), "overwritten"),
        (("report", first, "--html", tmp_path / "no" / "page.html"), "does not exist"),
        (("compare", first, second, "--json", second), "overwritten"),
        (("compare", first, second, "--json", tmp_path / "o", "--html", tmp_path / "o"), "a file of its own"),
        (("compare", first), "B.json"),
    ]
    for words, message in refused:
        status, _, err = in_process(*words)
        assert (status, err.count("\n")) == (2, 1)
        assert err.startswith("sdkeras: error: ")
        assert message in err
    assert second.read_bytes() == before


@pytest.mark.parametrize("text", ["delta", "delta=x", "=1", "delta=2", "gamma=1"])
def test_bad_bound_inputs(text: str, in_process) -> None:
    status, _, err = in_process("analyze", "no-such-model.keras", "--data", "x.npz", "--bound", text)
    assert (status, "no file" in err) == (2, False)


@examples(max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@given(st.text() | st.from_regex(r"[a-z_.0-9]+ (<|>=|!=) \S+( (and|or) [a-z_.0-9]+ < [0-9]+)?", fullmatch=True))
@example("hessian.largest.value < " + "9" * 5000)
@example(f"rds_sharpness.values.{'9' * 5000} < 1")
@example(f"warnings.{'9' * 5000}.code < 1")
@example("a.b " * 5000)
def test_no_text_of_an_option_leaves_a_traceback(text: str) -> None:
    for parse in (
        conditions.parse,
        lambda t: options.bound_inputs(None, None, (t,)),
        lambda t: options.settings_of(registry.ANALYSIS_KINDS, "")(None, None, (t,)),
    ):
        with contextlib.suppress(SdkerasError):
            parse(text)


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs /dev/full")
def test_a_full_disk_behind_the_output_is_one_message(run_json: Path) -> None:
    with open("/dev/full", "w") as full:
        run = python("", "report", run_json, stdout=full)
    assert run.returncode == 2
    assert "No space left" in run.stderr
    assert "internal error" not in run.stderr


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("80", int, 80),
        ("1e-4", float, 1e-4),
        ("TRUE", bool, True),
        ("no", bool, False),
        ("none", float | None, None),
        ("2.5", int | float, 2.5),
        ("left", str, "left"),
        ("nan", float, math.nan),
    ],
)
def test_a_setting_has_the_type_of_its_field(
    text: str, kind: type, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = attrs.make_class("Plugin", {"field": attrs.field(type=kind)})
    monkeypatch.setattr(registry, "kind_of", lambda *_: "trace")
    monkeypatch.setattr(registry, "get_estimator", lambda *_: plugin)
    found = options.settings_of(("trace",), "")(None, None, (f"plugin.field={text}",))["plugin"]["field"]
    assert type(found) is type(value)
    assert found == pytest.approx(value, nan_ok=True) if isinstance(value, float) else found == value
