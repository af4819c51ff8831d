"""The report of a landscape."""

from __future__ import annotations

import math

import attrs

from sdkeras.dimension.landscape import HOLDS_WITHIN
from sdkeras.errors import counted
from sdkeras.reporting.loss_figures import landscape_figure
from sdkeras.reporting.numbers import ABSENT, measured, number
from sdkeras.reporting.report import Card, Paragraph, Report, Row, Section, Table, present
from sdkeras.reporting.tables import frame, provenance_table, verification_table
from sdkeras.results.answers import LandscapeRun
from sdkeras.results.landscape import Axis, WorstCase

_BALLS = {"plain": "|e| <= {rho}", "adaptive": "|e / w| <= {rho}"}


def landscape_report(run: LandscapeRun) -> Report:
    """How the loss looks around the weights, and how far its quadratic model holds."""
    verdict, figure = _verdict(run), landscape_figure(run)
    worst = tuple(_worst_in_words(each) for each in run.worst_case)
    tables = present(_along(run), _worst_cases(run) if run.worst_case else None)
    return attrs.evolve(
        frame(run, verdict, "operator", "losses"),
        eyebrow="What the loss looks like around here",
        lines=(verdict, *worst),
        cards=_cards(run),
        paragraphs=present(Paragraph("Within a ball", " ".join(worst)) if worst else None),
        sections=present(
            Section("The landscape", "landscape", "Landscape", figures=(figure,)) if figure else None,
            Section(
                "The numbers", "numbers", "Numbers", tables=(*tables, verification_table(run), provenance_table(run))
            ),
        ),
    )


def _verdict(run: LandscapeRun) -> str:
    drawn = run.landscape
    names = " and ".join(axis.name for axis in drawn.axes)
    left, right = drawn.quadratic_to
    if len(drawn.axes) == 1:
        span = f"{number(float(drawn.axes[0].coordinates[-1]), 3)} drawn to each side"
        reach = f"from {number(-left, 3)} to {number(right, 3)}"
    else:
        corner = math.hypot(*(float(axis.coordinates[-1]) for axis in drawn.axes))
        span, reach = f"{number(corner, 3)} drawn to the corners", f"to a distance of {number(left, 3)}"
    return (
        f"The loss along {names}: its quadratic model holds {reach}, of {span} (off by at most "
        f"{100 * HOLDS_WITHIN:g} %)."
    )


def _unit(run: LandscapeRun) -> str:
    drawn = run.landscape
    if drawn.filter_normalized:
        return "of the weights' length, filter by filter"
    return {"random": "of the weights' length", "step": "of the update"}.get(
        drawn.directions, "in the space of the weights"
    )


def _cards(run: LandscapeRun) -> tuple[Card, ...]:
    drawn = run.landscape
    first, worst = drawn.axes[0], run.worst_case[0] if run.worst_case else None
    left, right = drawn.quadratic_to
    nearer = "on the nearer side" if len(drawn.axes) == 1 else "distance in the plane, every way"
    return present(
        Card("Loss at the weights", number(drawn.loss), "", "over the data"),
        Card(f"Curvature along {first.name}", number(first.curvature), _evidence(first), _unit(run)),
        Card("The quadratic model holds to", number(min(left, right), 3), _unit(run), nearer),
        None
        if worst is None
        else Card("Worst increase in the ball", f">= {number(worst.increase, 3)}", _ball(worst), "found by ascent"),
    )


def _evidence(axis: Axis) -> str:
    if axis.share is not None:
        return f"{100 * axis.share:.0f} % of the path's variance"
    return "" if axis.eigenvalue is None else measured(axis.eigenvalue)[1]


def _ball(worst: WorstCase) -> str:
    return _BALLS[worst.kind].format(rho=number(worst.rho, 3))


def _worst_in_words(worst: WorstCase) -> str:
    beside = "" if worst.second_order is None else f"; the quadratic model by {number(worst.second_order, 3)} at least"
    name = "adaptive sharpness" if worst.kind == "adaptive" else "SAM's sharpness"
    return f"Within {_ball(worst)} the loss rises by at least {number(worst.increase, 3)} ({name}{beside})."


def _along(run: LandscapeRun) -> Table:
    drawn = run.landscape
    rows: list[Row] = [("loss", number(drawn.loss, 6), "at the weights")]
    for axis in drawn.axes:
        value, evidence = measured(axis.eigenvalue) if axis.eigenvalue else (ABSENT, "")
        rows += present(
            (axis.name, f"length {number(axis.length, 3)}", f"drawn to {number(float(axis.coordinates[-1]), 3)} of it"),
            ("  slope", number(axis.slope), "of the loss along it"),
            ("  curvature", number(axis.curvature), "by a Hessian-vector product"),
            ("  eigenvalue", value, evidence) if axis.eigenvalue else None,
            ("  share", f"{100 * axis.share:.1f} %", "of the path's variance") if axis.share is not None else None,
        )
    left, right = (number(each, 3) for each in drawn.quadratic_to)
    within = f"off by at most {100 * HOLDS_WITHIN:g} % of slope and curvature parts"
    reach = f"distance {left}" if len(drawn.axes) == 2 else f"-{left}, {right}"
    rows.append(("quadratic to", reach, within))
    rows.append(("points", counted(sum(map(len, drawn.losses)), "loss", "losses"), _unit(run)))
    return Table("Along the directions", tuple(rows))


def _worst_cases(run: LandscapeRun) -> Table:
    rows = [
        (
            _ball(worst),
            f">= {number(worst.increase)}",
            number(worst.first_step),
            number(worst.first_order),
            ABSENT if worst.second_order is None else f">= {number(worst.second_order)}",
            ABSENT if worst.eigenvalue is None else number(worst.eigenvalue.value),
            f"{number(worst.distance, 3)}",
        )
        for worst in run.worst_case
    ]
    columns = ("ball", "increase", "one step (SAM)", "first order", "second order", "eigenvalue", "found at")
    return Table("Worst loss within a ball, by ascent: lower bounds", tuple(rows), columns=columns)
