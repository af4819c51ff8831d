"""What the analysis of a run says beside its measures: of which map they are, and what to know of them."""

from __future__ import annotations

from pathlib import Path

import attrs

from sdkeras.errors import SdkerasError
from sdkeras.results.answers import Analysis
from sdkeras.results.note import Note
from sdkeras.study.measures import ESTIMATOR_OF, OF_ANALYSES, Settings

# The columns whose values are of a map and its state, and compare only within it.
OF_A_MAP = (*ESTIMATOR_OF, "lambda_1")


@attrs.frozen
class Analysed:
    """Of one run's analysis.

    Attributes:
        map: The map that its SD and exponents are of; None where it has no SD.
        state_size: Dimension d of that map's state; None as well.
        warnings: Of the analysis.
    """

    map: str | None
    state_size: int | None
    warnings: tuple[Note, ...]

    @property
    def codes(self) -> tuple[str, ...]:
        """Codes of the warnings, each once."""
        return tuple(dict.fromkeys(warning.code for warning in self.warnings))


def needs_analysis(measures: Settings) -> bool:
    """Whether a measure of the study is read from an analysis."""
    return any(name in OF_ANALYSES for name in measures)


def read_analysis(path: Path) -> Analysed | None:
    """Reads a run.json, or gives None where there is none.

    Raises:
        SdkerasError: It is damaged.
    """
    if not path.exists():
        return None
    try:
        found = Analysis.load(path)
    except SdkerasError as error:
        raise SdkerasError(f"{error} Delete {path.parent}, and the run is done again.") from error
    dimension = found.sharpness_dimension
    if dimension is None:
        return Analysed(None, None, found.warnings)
    return Analysed(dimension.map, dimension.state_size, found.warnings)
