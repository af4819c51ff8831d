"""Finding estimators: by entry point, by declaration, and what happens to broken ones."""

import importlib
import sys
from pathlib import Path

import attrs
import pytest

import sdkeras
from sdkeras.errors import PluginError, UnknownEstimatorError
from sdkeras.estimators import kinds, registry
from sdkeras.estimators.select import DEFAULTS, capabilities, estimator_of_extremes, steps_of, with_steps
from sdkeras.linalg.operators import DenseOperator
from sdkeras.results.estimates import Spectrum, TraceEstimate


def install(folder: Path, name: str, entry_points: str, module: str = "") -> None:
    """A distribution as an installer leaves it: metadata and one module."""
    info = folder / f"{name}-0.3.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.3\n")
    (info / "entry_points.txt").write_text(entry_points)
    (folder / f"{name}.py").write_text(module)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    known = kinds.declared()
    importlib.invalidate_caches()
    yield tmp_path
    kinds.forget_since(known)
    for file in tmp_path.glob("*.py"):
        sys.modules.pop(file.stem, None)


GOOD = """
import attrs, numpy as np, sdkeras
@sdkeras.spectrum_estimator("{name}")
@attrs.frozen
class Flat:
    def estimate(self, source: sdkeras.SymmetricOperator, *, seed: int) -> sdkeras.Spectrum:
        return sdkeras.Spectrum(np.zeros(1), np.array([float(source.size)]), num_matvecs=0, seed=seed)
"""


def test_built_ins_are_installed_and_sound() -> None:
    names = {(plugin.kind, plugin.name) for plugin in registry.installed() if plugin.problem is None}
    assert {("eigenpairs", "lanczos"), ("eigenpairs", "power-iteration"), ("spectrum", "slq")} <= names
    assert {("spectrum", "exact"), ("trace", "randomized-trace")} <= names


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(UnknownEstimatorError, match=r"no eigenpairs estimator 'lancsoz'; did you mean 'lanczos'\?"):
        sdkeras.get_estimator("eigenpairs", "lancsoz")
    with pytest.raises(UnknownEstimatorError, match="the kinds are"):
        sdkeras.get_estimator("spectra", "slq")


def test_a_third_party_plugin_is_found_by_its_entry_point(site: Path) -> None:
    install(site, "acme", "[sdkeras.spectrum]\nacme-flat = acme:Flat\n", GOOD.format(name="acme-flat"))
    estimator = sdkeras.get_estimator("spectrum", "acme-flat")()
    assert estimator.estimate(DenseOperator([[1.0]]), seed=3) == Spectrum([0.0], [1.0], num_matvecs=0, seed=3)
    assert any(plugin.name == "acme-flat" and plugin.distribution == "acme" for plugin in registry.installed())


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        ("raise RuntimeError('no licence')", "RuntimeError: no licence"),
        ("import nothing_of_that_name", "ModuleNotFoundError"),
        ("class Flat: pass", "not declared"),
        (GOOD.format(name="another"), "must be the same"),
    ],
)
def test_a_broken_plugin_is_listed_as_broken_and_stops_nothing_else(site: Path, module: str, reason: str) -> None:
    install(site, "broken_acme", "[sdkeras.spectrum]\nacme-broken = broken_acme:Flat\n", module)
    listed = {plugin.name: plugin.problem for plugin in registry.installed()}
    assert reason in listed["acme-broken"]
    assert "broken_acme" in listed["acme-broken"]
    assert listed["slq"] is None
    with pytest.raises(PluginError, match="acme-broken"):
        sdkeras.get_estimator("spectrum", "acme-broken")


def test_a_name_is_taken_once(site: Path) -> None:
    install(site, "thief", "[sdkeras.spectrum]\nslq = thief:Flat\n", GOOD.format(name="slq"))
    with pytest.raises(PluginError, match=r"claimed by sdkeras .* and thief 0\.3"):
        sdkeras.get_estimator("spectrum", "slq")
    assert [plugin.problem is None for plugin in registry.installed() if plugin.name == "lanczos"] == [True]

    def declare() -> None:
        @sdkeras.trace_estimator("randomized-trace")
        @attrs.frozen
        class Mine:
            def estimate(self, source: sdkeras.SymmetricOperator, *, seed: int) -> TraceEstimate: ...

    sdkeras.get_estimator("trace", "randomized-trace")
    with pytest.raises(PluginError, match="declared twice"):
        declare()


class NoAttrs:
    def estimate(self, source: sdkeras.SymmetricOperator, *, seed: int) -> Spectrum: ...


@attrs.frozen
class WrongResult:
    def estimate(self, source: sdkeras.SymmetricOperator, *, seed: int) -> TraceEstimate: ...


@attrs.frozen
class WrongSource:
    def estimate(self, source: str, *, seed: int) -> Spectrum: ...


@attrs.frozen
class WrongParameters:
    def estimate(self, source: sdkeras.SymmetricOperator, seed: int) -> Spectrum: ...


@attrs.frozen
class NoEstimate:
    pass


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (NoAttrs, "not an attrs class"),
        (WrongResult, "annotated to return TraceEstimate, expected Spectrum"),
        (WrongSource, "takes a str"),
        (WrongParameters, "expected \\(self, source, \\*, seed\\)"),
        (NoEstimate, "no estimate"),
    ],
)
def test_a_wrong_class_is_rejected_at_its_declaration(cls: type, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        sdkeras.spectrum_estimator("wrong")(cls)


def test_a_wrong_result_is_rejected_at_run_time(site: Path) -> None:
    @sdkeras.spectrum_estimator("liar")
    @attrs.frozen
    class Liar:
        honest: bool = False

        def estimate(self, source: sdkeras.SymmetricOperator, *, seed: int) -> Spectrum:
            if self.honest:
                return Spectrum([0.0], [1.0], num_matvecs=0, seed=seed)
            return TraceEstimate(1.0, 0.0, 0, seed)  # type: ignore[return-value]

    operator = DenseOperator([[1.0, 0.0], [0.0, 2.0]])
    with pytest.raises(PluginError, match="returns TraceEstimate, expected Spectrum"):
        Liar().estimate(operator, seed=0)
    with pytest.raises(PluginError, match="weights sum to 1, expected the operator's size 2"):
        Liar(honest=True).estimate(operator, seed=0)
    with pytest.raises(PluginError, match=r"sdkeras\.HessianOperator"):
        sdkeras.get_estimator("spectrum", "slq")().estimate("a model", seed=0)
    assert sdkeras.get_estimator("spectrum", "liar") is Liar


def test_the_built_ins_declare_what_they_can_do() -> None:
    ours = [(info.kind, info.name) for info in registry.installed() if info.distribution == "sdkeras"]
    can = {name: capabilities(registry.get_estimator(kind, name)) for kind, name in ours}
    assert {name for name in can if can[name].exact} == {"exact", "dense-svd"}
    assert {name for name in can if can[name].own_rate} == {"sd-slq", "sd-kde", "sd-ps"}
    assert {name for name in can if can[name].needs_basis} == {
        "lanczos",
        "slq",
        "golub-kahan",
        "sd-slq",
        "sd-kde",
        "sd-ps",
    }
    assert {name for name in can if can[name].many} == {"slq"}
    assert {kind for kind, name in DEFAULTS.items() if registry.kind_of(name, [kind])} == set(kinds.KINDS)


def test_a_class_that_declares_nothing_is_known_by_its_fields(site: Path) -> None:
    class Estimates:
        def estimate(self, source: sdkeras.SymmetricOperator, *, seed: int) -> Spectrum: ...

    fields = {"num_steps": attrs.field(default=40), "reorthogonalize": attrs.field(default=True)}
    with_steps_alone = attrs.make_class("Old", fields, bases=(Estimates,), frozen=True)
    old = sdkeras.spectrum_estimator("old")(with_steps_alone)
    assert capabilities(old) == kinds.Capabilities(steps="num_steps", needs_basis=True)
    bare = sdkeras.spectrum_estimator("bare")(
        attrs.make_class("Bare", {"depth": attrs.field(default=7)}, bases=(Estimates,), frozen=True)
    )
    assert capabilities(bare()) == kinds.Capabilities()
    assert steps_of(bare()) is None
    assert with_steps(bare(), 9) == bare()
    deep = attrs.make_class("Deep", {"depth": attrs.field(default=7)}, bases=(Estimates,), frozen=True)
    own = sdkeras.spectrum_estimator("deep", steps="depth")(deep)
    assert (steps_of(own()), steps_of(with_steps(own(), 9, basis=False))) == (7, 9)
    assert with_steps(old(), 9, basis=False) == old(num_steps=9, reorthogonalize=False)


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        ({"exact": True}, "declares exact and has no field memory_gb"),
        ({"steps": "depth"}, "declares steps and has no field depth"),
        ({"own_rate": True}, "no field learning_rate"),
        ({"in_analysis": {"which": "both"}}, r"in_analysis\['which'\] and has no field which"),
        ({"many": True}, "no method estimate_many"),
    ],
)
def test_a_capability_without_its_field_is_rejected(claim: dict[str, object], message: str) -> None:
    @attrs.frozen
    class Flat:
        def estimate(self, source: sdkeras.SymmetricOperator, *, seed: int) -> Spectrum: ...

    with pytest.raises(PluginError, match=message):
        sdkeras.spectrum_estimator("claims", **claim)(Flat)


@pytest.mark.parametrize(("settings", "most_steps"), [({"reorthogonalize": False}, 1000), ({}, 5), ({}, 1000)])
def test_eigenvectors_are_asked_for_where_there_is_a_basis(settings: dict[str, bool], most_steps: int) -> None:
    """Lanczos without one has none, by the memory or by the user's own setting."""
    estimator = estimator_of_extremes("lanczos", settings, most_steps=most_steps)
    assert estimator.eigenvectors == estimator.reorthogonalize == (not settings and most_steps == 1000)
