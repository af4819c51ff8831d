"""The one list of options: signature, docstring and refusals come from it."""

import inspect
import typing

import attrs
import keras
import numpy as np
import pytest

import sdkeras
from sdkeras.estimators import registry
from sdkeras.estimators.select import configured
from sdkeras.runs import analyze
from sdkeras.runs.lyapunov_options import LyapunovOptions
from sdkeras.runs.options import PRESETS, Options
from sdkeras.runs.problem import read_problem


def test_choices_are_types_that_editors_complete_and_values_that_are_checked() -> None:
    parameters = inspect.signature(sdkeras.analyze).parameters
    for name in ("preset", "mode", "map", "dtype", "product_mode", "jit", "cluster"):
        choices = typing.get_args(parameters[name].annotation)
        if name == "cluster":  # or None
            choices = typing.get_args(choices[0])
        assert parameters[name].default in (*choices, None)
        assert [getattr(Options(**{name: choice}), name) for choice in choices] == list(choices)
        with pytest.raises(sdkeras.SdkerasError, match=f"must be one of {', '.join(choices)}"):
            Options(**{name: "none"})
    for record, names in ((sdkeras.EmpiricalLoss, "mode dtype jit"), (sdkeras.HessianOperator, "product_mode")):
        hints = typing.get_type_hints(record.__init__)
        assert all(typing.get_origin(hints[name]) is typing.Literal for name in names.split())


def test_the_signature_and_the_docstring_are_the_list_of_options() -> None:
    for function in (sdkeras.analyze, analyze.plan):
        parameters = inspect.signature(function).parameters
        assert list(parameters) == ["model", "data", *attrs.fields_dict(Options)]
        assert parameters["preset"].default == "standard"
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


def test_a_preset_gives_what_is_left_out_and_a_single_option_overrides_it() -> None:
    for preset, values in PRESETS.items():
        options = Options(preset=preset, samples=7)
        assert {name: getattr(options, name) for name in values} == {**values, "samples": 7}
    assert Options() == Options(preset="standard")
    changed = attrs.evolve(Options(preset="quick", tolerance=0.05), seed=1)
    assert (changed.samples, changed.tolerance, changed.seed) == (1024, 0.05, 1)
    assert Options(preset="quick", tolerance=0.125).preset_words == "quick: samples 1,024, tolerance 0.125, min_runs 8"
    with pytest.raises(sdkeras.SdkerasError, match=r"^preset is 'slow'; it must be one of quick, standard, thorough"):
        Options(preset="slow")


@pytest.mark.parametrize(
    ("width", "options", "exact"),
    [
        (3, {}, True),
        (3, {"exact": False}, False),
        (3, {"preset": "standard"}, False),
        (3, {"memory_gb": 1e-6}, False),
        (3, {"map": "full"}, True),
        (80, {}, True),
        (130, {}, False),
        (80, {"map": "full"}, False),
    ],
)
def test_thorough_takes_exact_spectra_of_small_models(width: int, options: dict[str, object], exact: bool) -> None:
    layers = [keras.layers.Dense(width, "tanh"), keras.layers.Dense(10)]
    model = keras.Sequential([keras.Input((5,)), *layers])
    model.compile("sgd", "mse")
    data = (np.zeros((8, 5), np.float32), np.zeros((8, 10), np.float32))
    problem, _ = read_problem(model, data, Options(**({"preset": "thorough"} | options)))
    assert problem.options.exact is exact
    assert (problem.estimators.spectrum[0] in ("exact", "dense-svd")) is exact


def test_one_name_is_a_list_of_one() -> None:
    assert Options(estimators="slq").estimators == ("slq",)
