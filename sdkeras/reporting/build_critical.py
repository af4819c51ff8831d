"""The report of a critical learning rate."""

from __future__ import annotations

import math

import attrs

from sdkeras.reporting.loss_figures import critical_figure
from sdkeras.reporting.numbers import ABSENT, number, with_span
from sdkeras.reporting.report import Card, Paragraph, Report, Row, Section, Table, present
from sdkeras.reporting.tables import frame, optimizer_in_words, provenance_table
from sdkeras.results.answers import CriticalRun
from sdkeras.results.critical import CriticalStep
from sdkeras.results.measured import Measured

_SIGNS = {"lower": ">= ", "upper": "<= "}


def critical_report(run: CriticalRun) -> Report:
    """How far the learning rate in use is from the one at which this step raises the loss."""
    verdict, figure = verdict_of(run), critical_figure(run)
    return attrs.evolve(
        frame(run, verdict, "update", "minibatches"),
        eyebrow="Is this step too long?",
        lines=(verdict,),
        cards=_cards(run),
        paragraphs=(Paragraph("What it means", _meaning(run)),),
        sections=present(
            Section("Along the update", "along", "Along the update", figures=(figure,)) if figure else None,
            Section("The numbers", "numbers", "Numbers", tables=(_table(run), provenance_table(run))),
        ),
    )


def verdict_of(run: CriticalRun) -> str:
    """One sentence: the rate in use against the critical one."""
    step, ratio = run.critical, run.critical.ratio
    of = " (median over minibatches)" if step.num_minibatches is not None else ""
    if step.outcome == "no step":
        return "No critical learning rate: the gradient is 0, or the update is, to the rounding of the weights."
    if step.outcome == "ascent":
        why = "a velocity or a weight decay that outweighs the gradient"
        if run.optimizer.learning_rate < 0:
            why = f"the learning rate {number(run.optimizer.learning_rate)} is negative"
        return f"The critical learning rate is 0: the update leads uphill, and the loss rises along it at once ({why})."
    rate = "" if step.learning_rate is None else f" {shown(step.learning_rate, step.outcome)}"
    if ratio is None:
        return "No critical learning rate: the search gave none."
    if step.outcome in _SIGNS:
        return _without_threshold(run, ratio)
    beside = f"the rate in use is {shown(ratio)} times as large{of}"
    low, high = ratio.interval or (ratio.value, ratio.value)
    if low <= 1 <= high:
        return f"At the critical learning rate{rate}: {beside}."
    return f"{'Past' if ratio.value > 1 else 'Below'} the critical learning rate{rate}: {beside}."


def _without_threshold(run: CriticalRun, ratio: Measured) -> str:
    """What a search says that ended without a threshold, from the rate in use to where it ended."""
    step, in_use = run.critical, run.optimizer.learning_rate
    bound, of = (1 / ratio.value, "times the update in use")
    ends = (1.0, bound)
    if step.learning_rate is not None:
        ends, of = (in_use, step.learning_rate.value), ""
    low, high = map(number, sorted(ends))
    where = f"between {low} and {high} {of}".rstrip()
    begin = f"No critical learning rate was found {where}: the loss rises at"
    if step.outcome == "lower":
        return f"{begin} none that was tried, so that it is larger."
    return (
        f"{begin} each that was tried, so that it is smaller, and the rate in use is far past it. Search from a rate "
        "at which this net trains (`learning_rate=F`)."
    )


def shown(value: Measured | None, outcome: str = "") -> str:
    """A number with its bracket, or the bound that it is."""
    if value is None:
        return ABSENT
    return f"{_SIGNS.get(outcome, '')}{with_span(value.value, value.interval)}"


def _inverted(outcome: str) -> str:
    """The outcome of one over the rate."""
    return {"lower": "upper", "upper": "lower"}.get(outcome, outcome)


def _cards(run: CriticalRun) -> tuple[Card, ...]:
    step, rate = run.critical, run.optimizer.learning_rate
    in_use = "rate unknown" if math.isnan(rate) else f"the rate in use is {number(rate)}"
    inverse = _inverted(step.outcome)
    return (
        Card("Ratio to the critical rate", shown(step.ratio, inverse), in_use, "above 1 this step raises the loss"),
        Card(
            "Critical learning rate eta_c",
            shown(step.learning_rate, step.outcome),
            _evidence(step),
            "the smallest at which the loss after the step exceeds the loss before it",
        ),
        Card("Critical sharpness 2/eta_c", shown(step.sharpness, inverse), "", "curvature along the update"),
    )


def _evidence(step: CriticalStep) -> str:
    if step.num_minibatches is not None:
        return f"median of {step.num_minibatches:,} minibatches"
    return {"measured": "bracket of the search", "lower": "a lower bound", "upper": "an upper bound"}.get(
        step.outcome, ""
    )


def _meaning(run: CriticalRun) -> str:
    """Which curvature it is, by the optimizer."""
    optimizer = run.optimizer
    begin = (
        "The optimizer's next update as a whole, from its stored slots, is made longer or shorter until the loss after "
        "it just exceeds the loss before it. "
    )
    if optimizer.name == "SGD" and not optimizer.momentum:
        return begin + (
            "For plain SGD on a quadratic 2/eta_c is g'Hg/g'g, the curvature along the gradient: at most the largest "
            "eigenvalue of the Hessian, and close to it where the gradient lies along the steepest direction."
        )
    if optimizer.momentum and optimizer.name == "SGD":
        return begin + (
            "With momentum the update holds earlier gradients: a ratio above 1 says that this one step raises the "
            "loss, which oscillating momentum does now and then, not that training is past its threshold "
            "2 (1 + beta)/eta."
        )
    return begin + (
        f"{optimizer.name}'s update has a scale of its own for each weight: compare 2/eta_c with eigenvalues of the "
        "preconditioned Hessian, not of the Hessian."
    )


def _table(run: CriticalRun) -> Table:
    step = run.critical
    change = f"{number(step.slope, 3)} is what the step in use would change it by, were it linear"
    rows: tuple[Row | None, ...] = (
        (
            "ratio",
            shown(step.ratio, _inverted(step.outcome)),
            "rate in use over eta_c; above 1 the step raises the loss",
        ),
        ("eta_c", shown(step.learning_rate, step.outcome), _evidence(step)),
        ("2/eta_c", shown(step.sharpness, _inverted(step.outcome)), "critical sharpness"),
        _of_minibatches(step),
        ("optimizer", run.optimizer.name, optimizer_in_words(run)),
        ("loss before the step", number(step.loss, 6), change),
        ("losses taken", f"{step.num_evaluations:,}", f"to {number(100 * step.tolerance, 2)} % of the rate"),
        (
            "step",
            "not compared" if step.step_error is None else f"{step.step_error:.1e}",
            "distance from one step of the optimizer itself, relative",
        ),
    )
    return Table("Critical learning rate along the update", present(*rows), brief=4)


def _of_minibatches(step: CriticalStep) -> Row | None:
    if step.ratios is None or step.num_minibatches is None:
        return None
    uphill = f"{step.num_ascents:,} of {step.num_minibatches:,} updates lead uphill"
    if step.quartiles is None:
        return "between minibatches", ABSENT, uphill
    low, high = (number(each, 3) for each in step.quartiles)
    return "between minibatches", f"{low} to {high}", f"half of the ratios; {uphill}"
