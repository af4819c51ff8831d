"""`--set NAME.FIELD=VALUE`: settings of estimators, as values of their fields' types."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs

from sdkeras.errors import SdkerasError
from sdkeras.estimators import registry

_EXAMPLES = {"spectrum": "slq.num_steps=80", "lyapunov": "lyapunov-qr.tolerance=0.001"}


def estimator_settings(assignments: Sequence[str], kinds: Sequence[str]) -> dict[str, dict[str, Any]]:
    """NAME.FIELD=VALUE as values of the fields' types, by estimator.

    Raises:
        SdkerasError: Not of the form, no estimator of these kinds or no field of this name, or a value of another type.
    """
    settings: dict[str, dict[str, Any]] = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        name, dot, field = path.partition(".")
        if not (equals and dot and name and field):
            raise SdkerasError(f"--set {assignment}: expected NAME.FIELD=VALUE, for example {_EXAMPLES[kinds[0]]}.")
        cls = registry.get_estimator(registry.kind_of(name, kinds), name)
        fields = attrs.fields_dict(cls)
        if field not in fields:
            raise SdkerasError(f"--set {assignment}: '{name}' has no field '{field}'; it has: {', '.join(fields)}.")
        settings.setdefault(name, {})[field] = _value(assignment, str(fields[field].type), text)
    return settings


def _value(assignment: str, type_name: str, text: str) -> Any:
    """The text as the field's type; annotations are strings under `from __future__ import annotations`."""
    if "None" in type_name and text.lower() == "none":
        return None
    try:
        if "bool" in type_name:
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[text.lower()]
        if "int" in type_name:
            return int(text)
        if "float" in type_name:
            return float(text)
    except (ValueError, KeyError) as error:
        raise SdkerasError(f"--set {assignment}: '{text}' is not a value of type {type_name}.") from error
    if "str" in type_name:
        return text
    raise SdkerasError(f"--set {assignment}: this field can be set from Python only.")
