"""The part of an analysis' report about the matrices that were measured beside the Hessian."""

from __future__ import annotations

import math
from collections.abc import Callable

from sdkeras.reporting.figures import operator_spectra
from sdkeras.reporting.numbers import measured, number, with_span
from sdkeras.reporting.report import Cell, Row, Section, Table, present
from sdkeras.results.answers import Analysis, Expansion, OperatorSpectrum
from sdkeras.results.dimension import SharpnessDimension
from sdkeras.results.measured import Measured

_SPLIT = (
    "H = G + R: the Gauss-Newton matrix G is what the curvature of the loss in the outputs makes of the weights', R "
    "what the curvature of the outputs themselves adds. Where the loss is convex in the outputs, as cross-entropy and "
    "squared error are, G has no negative eigenvalue: along an eigenvector u of a negative eigenvalue of H, u'Ru is at "
    "most that eigenvalue."
)
_FISHER = (
    "The Fisher matrix F is the model's own expectation of g g', g the gradient of an example's loss; for "
    "cross-entropy on softmax or sigmoid and for squared error it is G without regularizers."
)
# Two sums of the same terms in another order.
_SAME = 1e-9
_NO_SHARE = "E+ of H less that of another matrix is a difference and not a share, since E+ is not additive."


def operators_section(run: Analysis) -> Section | None:
    """Eigenvalues, E+ and spectra side by side; None where only the Hessian was measured."""
    if not run.operators:
        return None
    expansions = [each.expansion for each in run.operators if each.expansion is not None]
    is_fisher = any(each.kind == "fisher" for each in run.operators)
    said = (*((_FISHER,) if is_fisher else ()), *((_NO_SHARE,) if expansions else ()))
    return Section(
        f"The Hessian and its {_listed([each.name for each in run.operators])}",
        "operators",
        "Other matrices",
        " ".join((_SPLIT, *said)),
        said,
        figures=present(operator_spectra(run)),
        tables=(_table(run, expansions),),
    )


def _listed(names: list[str]) -> str:
    return " and ".join(names)


def _table(run: Analysis, expansions: list[Expansion]) -> Table:
    operators, hessian = run.operators, run.hessian
    rows: list[Row] = [
        ("largest eigenvalue", _cell(hessian.largest), *(_cell(each.largest) for each in operators)),
        ("smallest eigenvalue", _cell(hessian.smallest), *(_cell(each.smallest) for each in operators)),
        ("trace", _cell(hessian.trace), *(_cell(each.trace) for each in operators)),
    ]
    if expansions:
        first = expansions[0]
        own = _with_interval(first.hessian, first.hessian_interval)
        rows += [
            (f"E+ in {first.num_runs:,} runs", own, *(_expansion(each) for each in operators)),
            *_parts(run, first),
            ("E+ of H less this", "", *(_difference(each) for each in operators)),
        ]
    checks = ["passed" if each.verification.passed else "FAILED" for each in operators]
    rows += [("verification", "passed" if run.verification.passed else "FAILED", *checks)]
    names = ("Hessian H", *(f"{each.name.removesuffix(' matrix')} {each.symbol}" for each in operators))
    title = f"The same loss over {run.data.num_samples_hessian:,} samples, matrix by matrix"
    return Table(title, tuple(rows), ("", *names))


def _cell(value: Measured | None) -> Cell:
    text, evidence = measured(value)
    return Cell(text, remark=evidence)


def _parts(run: Analysis, first: Expansion) -> tuple[Row, ...]:
    """The parts of E+; the Hessian's are known where its E+ is of the same runs."""
    estimate = run.sharpness_dimension
    same = estimate is not None and math.isclose(estimate.expansion, first.hessian, rel_tol=_SAME)

    def row(label: str, of: Callable[[SharpnessDimension], float], beside: Callable[[Expansion], float]) -> Row:
        own = number(of(estimate)) if same and estimate is not None else ""
        parts = [(each.expansion, 0.0 if each.expansion is None else beside(each.expansion)) for each in run.operators]
        found = ("" if e is None else number(value) if value > e.rounding else "0" for e, value in parts)
        return label, own, *found

    momentum = row(
        "for a step or two by momentum",
        lambda e: e.expansion - e.expansion_negative_curvature - e.expansion_unstable,
        lambda e: e.value - e.negative_curvature - e.unstable,
    )
    return present(
        row("by negative curvature", lambda e: e.expansion_negative_curvature, lambda e: e.negative_curvature),
        row("by overshooting", lambda e: e.expansion_unstable, lambda e: e.unstable),
        momentum if estimate is not None and estimate.frozen_lyapunov is not None else None,
    )


def _expansion(operator: OperatorSpectrum) -> str | Cell:
    found = operator.expansion
    if found is None:
        return "not measured"
    if not found.is_resolved:
        return Cell("0 up to rounding", remark=number(found.value, 2))
    return _with_interval(found.value, found.interval)


def _difference(operator: OperatorSpectrum) -> str:
    found = operator.expansion
    return "" if found is None else _with_interval(found.difference, found.difference_interval)


def _with_interval(value: float, span: tuple[float, float] | None) -> str:
    return f"{number(value)} (no interval)" if span is None else with_span(value, span)
