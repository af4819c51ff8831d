"""The one list of options: signature, docstring and refusals come from it."""

import inspect

import attrs
import pytest

import sdkeras
from sdkeras.runs import analyze
from sdkeras.runs.options import Options


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
