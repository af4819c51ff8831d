"""The one list of options: signature, docstring and refusals come from it."""

import inspect

import attrs
import pytest

import sdkeras
from sdkeras.estimators import registry
from sdkeras.estimators.select import configured
from sdkeras.runs import analyze
from sdkeras.runs.options import LyapunovOptions, Options


def test_the_signature_and_the_docstring_are_the_list_of_options() -> None:
    for function in (sdkeras.analyze, analyze.plan):
        parameters = inspect.signature(function).parameters
        assert list(parameters) == ["model", "data", *attrs.fields_dict(Options)]
        assert parameters["tolerance"].default == 0.05
    for field in attrs.fields(Options):
        assert f"\n        {field.name}: " in (sdkeras.analyze.__doc__ or "")
        assert field.metadata["help"].endswith(".")


@pytest.mark.parametrize(("name", "hint"), [("tolerence", "did you mean 'tolerance'?"), ("qqq", "no option 'qqq'.")])
def test_an_option_that_there_is_not(name: str, hint: str) -> None:
    with pytest.raises(TypeError) as caught:
        sdkeras.analyze(None, None, **{name: 1})
    assert hint in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[(name, value) for name in ("batch_size", "snapshots", "every") for value in ("8", 1.5, True)],
        *[(name, 10**400) for name in ("max_hvps", "workers", "time_limit", "samples", "memory_gb")],
        *[(name, "no") for name in ("exact", "per_layer", "allow_unverified", "estimate_bound_inputs")],
        ("params", True),
        ("progress", "bar"),
        ("estimators", ["slq", 1]),
        ("estimators", 5),
        ("settings", 5),
        ("settings", [("slq", {})]),
    ],
)
def test_a_value_of_another_type_or_beyond_all_machines_is_refused(name: str, value: object) -> None:
    with pytest.raises(sdkeras.SdkerasError, match=f"^{name} is .*; it must be ") as caught:
        Options(**{name: value})
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("windows", ["1,2", (1.5,), [True]])
def test_windows_are_whole_numbers(windows: object) -> None:
    with pytest.raises(sdkeras.SdkerasError, match=r"^windows is .*; it must be whole numbers"):
        LyapunovOptions(windows=windows)


@pytest.mark.parametrize(
    ("kind", "name", "field", "value"),
    [
        *[("spectrum", "slq", "num_steps", value) for value in (1.5, "10", float("inf"), True)],
        ("spectrum", "slq", "reorthogonalize", "maybe"),
        ("eigenpairs", "lanczos", "num_largest", 1.5),
        ("spectrum", "exact", "memory_gb", "2"),
    ],
)
def test_a_setting_of_another_type_is_refused_first(kind: str, name: str, field: str, value: object) -> None:
    with pytest.raises(sdkeras.SdkerasError, match=f"{field} is .*; it must be of type "):
        configured(registry.get_estimator(kind, name), {field: value})


def test_one_name_is_a_list_of_one() -> None:
    assert Options(estimators="slq").estimators == ("slq",)
