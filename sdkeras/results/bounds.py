"""A generalization bound: its terms, inputs and assumptions."""

from __future__ import annotations

import attrs


@attrs.frozen
class BoundTerm:
    """One term of a bound: its formula, and its value or None where an input is missing."""

    formula: str
    value: float | None


@attrs.frozen
class BoundInput:
    """An input of a bound.

    Attributes:
        name: The key in `bound_inputs`.
        symbol: The paper's letter.
        meaning: Description in words.
        value: None where it is missing.
        estimated: Whether sdkeras estimated it (a lower bound, see `estimate_bound_inputs`).
    """

    name: str
    symbol: str
    meaning: str
    value: float | None
    estimated: bool


@attrs.frozen
class Assumption:
    """An assumption of a theorem and what is known of it here.

    Attributes:
        name: The assumption.
        status: 'holds', 'fails', 'not contradicted' or 'unknown'.
        remark: Why, with numbers.
    """

    name: str
    status: str
    remark: str


@attrs.frozen
class Bound:
    """A generalization bound, term by term.

    Attributes:
        theorem: Which, in arXiv 2604.19740.
        inputs: Its inputs.
        terms: All of them, each >= 0.
        partial_sum: Sum of the known terms, a lower bound on the total.
        total: Sum of all terms; None where one is missing.
        verdict: 'vacuous' (even the known terms reach B, the loss's range), 'undetermined' (terms are missing, or an
            assumption fails), or that the bound is below B if every assumption holds.
        assumptions: Each with what is known of it.
        dimension_name: The dimension in its terms: 'SD' (local, at the checkpoint), 'sup SD' (over snapshots) or 'D_s'
            (along training).
        dimension_reason: Reason for that choice.
    """

    theorem: str
    inputs: tuple[BoundInput, ...]
    terms: tuple[BoundTerm, ...]
    partial_sum: float
    total: float | None
    verdict: str
    assumptions: tuple[Assumption, ...]
    dimension_name: str = "SD"
    dimension_reason: str = ""
