"""How a record looks where Python shows it: a line in a console, the report in print, its page in a notebook."""

from __future__ import annotations

import importlib

from sdkeras.results.arrays import Value


class Shown:
    """A record with a report. Its attrs class is made with `repr=False`, since this has the one line."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(face("build").in_one_line(self, self._report()))

    def __str__(self) -> str:
        return str(face("terminal").as_text(self._report()))

    def _repr_html_(self) -> str:
        """The page, as notebooks ask for it."""
        return str(face("html").as_frame(self._report()))

    def _report(self) -> Value:
        return face("build").report_of(self)


def face(name: str) -> Value:
    """A module of `sdkeras.reporting`: the one place where a result knows of what shows it."""
    return importlib.import_module(f"sdkeras.reporting.{name}")
