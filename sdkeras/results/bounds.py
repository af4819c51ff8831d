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
    """An input of a bound."""

    name: str  # the key in `bound_inputs`
    symbol: str  # the paper's letter
    meaning: str
    value: float | None  # None where it is missing
    estimated: bool  # by sdkeras: a lower bound, see `estimate_bound_inputs`


@attrs.frozen
class Assumption:
    """An assumption of a theorem and what is known of it here."""

    name: str
    status: str  # 'holds', 'fails', 'not contradicted' or 'unknown'
    remark: str  # why, with numbers


@attrs.frozen
class Bound:
    """A generalization bound, term by term."""

    theorem: str  # of arXiv 2604.19740
    inputs: tuple[BoundInput, ...]
    terms: tuple[BoundTerm, ...]  # all of them, each >= 0
    partial_sum: float  # of the known terms, a lower bound on the total
    total: float | None  # None where a term is missing
    # 'vacuous' (even the known terms reach B, the loss's range), 'undetermined' (terms are missing, or an assumption
    # fails), or that the bound is below B if every assumption holds.
    verdict: str
    assumptions: tuple[Assumption, ...]
    # The dimension in its terms: 'SD' (local, at the checkpoint), 'sup SD' (over snapshots) or 'D_s' (along training).
    dimension_name: str = "SD"
    dimension_reason: str = ""
