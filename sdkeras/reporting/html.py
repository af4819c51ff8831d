"""The report as one self-contained page."""

from __future__ import annotations

import math
import os

import attrs
import jinja2
import markupsafe

from sdkeras._version import __version__
from sdkeras.reporting import explanations
from sdkeras.reporting.comparison import Comparison
from sdkeras.reporting.figures import figures, supremum_figures
from sdkeras.reporting.lyapunov_figures import trajectory_figures
from sdkeras.reporting.numbers import (
    batch_size_in_words,
    dimension,
    interval,
    measured,
    number,
    root_ratio,
    taken_for_granted,
    undetermined,
)
from sdkeras.reporting.tables import (
    attractor_dimension,
    difference_groups,
    exponent,
    layer_rows,
    not_comparable,
    printable,
    sharpness_name,
    tables,
)
from sdkeras.results.answers import Analysis, LyapunovRun
from sdkeras.results.document import write_atomically
from sdkeras.results.lyapunov import LyapunovSummary

# The gauge shows ratios up to here; the edge is in its middle.
_GAUGE_END = 2.0


@attrs.frozen
class Card:
    """One of the large numbers at the top: its name, value, evidence, and what it is."""

    name: str
    value: str
    evidence: str
    meaning: str


def environment() -> jinja2.Environment:
    """The templates, in which whatever came from a model or a data file is escaped."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("sdkeras.reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def as_html(run: Analysis | LyapunovRun | Comparison) -> str:
    """The page; whatever came from a model or a data file is escaped."""
    templates = environment()
    if isinstance(run, Comparison):
        headline, _, detail = run.summary.partition("; ")
        return templates.get_template("comparison.html.j2").render(
            comparison=run,
            headline=headline.rstrip("."),
            detail=detail[:1].upper() + detail[1:],
            groups=difference_groups(run),
            not_comparable=not_comparable(run),
            errors_in_words=explanations.ERRORS_IN_WORDS,
            made_by=__version__,
        )
    found = run.lyapunov
    along = {
        "attractor_in_words": "" if found is None else explanations.attractor_in_words(found),
        "trajectory_figures": () if found is None else trajectory_figures(found),
        "taken_for_granted": taken_for_granted(run),
        "batch_size": batch_size_in_words(run.data.batch_size, run.data.batch_size_source),
    }
    if isinstance(run, LyapunovRun):
        headline, _, detail = explanations.trajectory_in_words(run.lyapunov).partition(": ")
        return templates.get_template("lyapunov.html.j2").render(
            run=run,
            headline=headline.rstrip("."),
            detail=detail[:1].upper() + detail[1:],
            cards=_trajectory_cards(run.lyapunov),
            tables=tables(run),
            **along,
        )
    headline, _, detail = run.edge_of_stability.verdict.partition(": ")
    return templates.get_template("report.html.j2").render(
        run=run,
        headline=headline.rstrip("."),
        detail=detail[:1].upper() + detail[1:],
        edge_in_words=explanations.edge_in_words(run.edge_of_stability),
        dimension_in_words=explanations.dimension_in_words(run),
        trust_in_words=explanations.trust_in_words(run),
        gauge=_gauge_position(run.edge_of_stability.ratio),
        ratio=number(run.edge_of_stability.ratio, 3),
        sharpness=f"{sharpness_name(run.edge_of_stability.operator)} {number(run.edge_of_stability.sharpness)}",
        threshold=number(run.edge_of_stability.threshold),
        cards=_cards(run),
        figures=figures(run),
        supremum_in_words="" if run.supremum is None else explanations.supremum_in_words(run.supremum),
        supremum_figures=supremum_figures(run),
        layers=layer_rows(run),
        tables=tables(run),
        **along,
    )


def save_html(run: Analysis | LyapunovRun | Comparison, path: str | os.PathLike[str]) -> None:
    """Writes the page, all of it or nothing.

    Raises:
        SdkerasError: The file cannot be written.
    """
    write_atomically(path, as_html(run))


def _shown(value: object) -> object:
    """Names without what no page can show; markup made here passes as it is."""
    return printable(value) if isinstance(value, str) and not isinstance(value, markupsafe.Markup) else value


def _gauge_position(ratio: float | None) -> float | None:
    """Where the ratio stands on the gauge, in per cent of its length."""
    if ratio is None or math.isnan(ratio):
        return None
    return round(100 * min(max(ratio, 0.0), _GAUGE_END) / _GAUGE_END, 2)


def _cards(run: Analysis) -> tuple[Card, ...]:
    estimate, rds = run.sharpness_dimension, run.rds_sharpness
    if (estimate is None and explanations.is_limited(run)) or (estimate is not None and estimate.interval is None):
        return _cards_without_dimension(run, 0 if estimate is None else estimate.num_runs)
    cards = []
    if estimate is None and run.hessian.largest is not None:
        value, evidence = measured(run.hessian.largest)
        meaning = "largest eigenvalue of the Hessian: the steepest curvature of the loss"
        cards.append(Card("Sharpness", value, evidence, meaning))
    if estimate is None and run.hessian.trace is not None:
        cards.append(
            Card("Trace", *measured(run.hessian.trace), "sum of the Hessian's eigenvalues: all curvature together")
        )
    if estimate is not None:
        span = estimate.interval
        half = None if span is None else 0.5 * (span[1] - span[0])
        cards.append(
            Card(
                "Sharpness dimension",
                dimension(estimate.value, half),
                f"{interval(span)} of {estimate.state_size:,}",
                "largest dimension whose volumes steps do not contract on average",
            )
        )
        span = estimate.codimension_interval
        cards.append(
            Card(
                "Codimension",
                dimension(estimate.codimension, half),
                interval(span),
                "the rest of the state; neutral directions do not change it"
                if estimate.frozen_lyapunov is None
                else "the rest of the state, the velocity's share in it",
            )
        )
    if rds is not None and len(rds.leading):
        cards.append(
            Card(
                "RDS sharpness λ₁",
                number(float(rds.leading[0]), 3),
                "per step",
                "the fastest stretching of distances, as a logarithm; 0 is neutral",
            )
        )
    if estimate is not None:
        cards.append(
            Card(
                "√(SD/n)",
                number(root_ratio(estimate.value, run.data.num_samples)),
                f"n = {run.data.num_samples:,} samples",
                "compares runs on the same data; the bounds grow with it",
            )
        )
    return tuple(cards)


def _cards_without_dimension(run: Analysis, num_runs: int) -> tuple[Card, ...]:
    """Says that the dimension is not determined, and what else is known: no number without its evidence."""
    cards = [
        Card(
            "Sharpness dimension",
            "not determined",
            undetermined(num_runs, explanations.is_limited(run)),
            "a value without an interval says nothing",
        )
    ]
    for name, found, meaning in (
        ("Largest eigenvalue", run.hessian.largest, "steepest curvature of the loss over the data"),
        ("Trace", run.hessian.trace, "sum of the curvatures in all directions"),
    ):
        if found is not None:
            cards.append(Card(name, *measured(found), meaning))
    edge = run.edge_of_stability
    if edge.batch_sharpness is not None and edge.batch_sharpness_stderr is not None:
        evidence = f"± {edge.batch_sharpness_stderr:.2g}"
        meaning = "curvature along a minibatch's own gradient"
        cards.append(Card("Batch sharpness", number(edge.batch_sharpness), evidence, meaning))
    return tuple(cards)


def _trajectory_cards(found: LyapunovSummary) -> tuple[Card, ...]:
    value, remark = attractor_dimension(found)
    first, _, evidence = exponent(found, 0).partition(" ")
    return (
        Card(
            "Leading exponent ell_1",
            first,
            evidence,
            "per step: above 0 nearby trajectories come apart, below 0 together",
        ),
        Card("Attractor dimension D_s", value, remark, "where volumes stop growing along this training"),
        Card(
            "Steps",
            f"{found.num_steps:,}",
            f"of {found.num_steps_asked:,}, after {found.transient:,} discarded",
            "real training steps, on copies, from the checkpoint on",
        ),
    )
