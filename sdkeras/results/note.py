"""A caveat: what the reader of a number must know."""

from __future__ import annotations

from collections.abc import Iterable

import attrs


@attrs.frozen
class Note:
    """Something the reader must know, with its numbers."""

    code: str  # stable identifier, for example 'ill-conditioned'
    message: str  # one sentence or two


# A number may be wrong, or of something else than was asked for.
SEVERE = frozenset(
    {
        *("unverified", "unverified-step", "diverged", "not-converged", "nested-check-failed", "drifting"),
        *("logits-as-probabilities", "compiled-part", "train-step", "optimizer-unknown", "plain-sgd"),
        *("ill-conditioned", "unresolved", "unresolved-rate", "no-reorthogonalisation"),
    }
)
# What is true of every run of its kind, whatever its numbers are, or only how they were made: the scope of a method.
FOOTNOTES = frozenset(
    {
        *("interval-scope", "frozen-preconditioner", "full-map", "hessian-map", "mixed-units", "while-training"),
        *("bases-on-disk", "data-dependent", "losses-on", "spectrum-alone", "mass-correction-off"),
        *("nested-check-missing", "random-walk"),
    }
)


def by_severity(notes: Iterable[Note]) -> tuple[Note, ...]:
    """Those of `SEVERE` first, `FOOTNOTES` last, all others and unknown codes between, each in the order given."""
    return tuple(sorted(notes, key=lambda note: (note.code in FOOTNOTES) - (note.code in SEVERE)))
