"""Signatures and docstrings that a decorator completes, as `help()` shows them: the options of analyze and lyapunov."""

import importlib
import inspect

import griffe


class Completed(griffe.Extension):
    """Takes them from the imported function."""

    def on_function(self, *, func: griffe.Function, **_: object) -> None:
        """Replaces parameters and docstring of a function that is decorated with `takes_options`."""
        if func.docstring is None or not any("takes_options" in str(each.value) for each in func.decorators):
            return
        function = getattr(importlib.import_module(func.module.path), func.name)
        func.docstring.value = inspect.getdoc(function) or ""
        func.parameters = griffe.Parameters(
            *(
                griffe.Parameter(
                    each.name,
                    annotation=None if each.annotation is each.empty else str(each.annotation),
                    kind=griffe.ParameterKind(each.kind.description),
                    default=None if each.default is each.empty else repr(each.default),
                )
                for each in inspect.signature(function).parameters.values()
            )
        )
