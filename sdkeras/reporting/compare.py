"""Compares two answers: which settings differ, and every number that both have."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator

import attrs

from sdkeras.dimension.lyapunov import FEWEST_BLOCKS
from sdkeras.errors import SdkerasError, instance
from sdkeras.reporting.comparison import (
    Comparison,
    Incomparable,
    NumberDifference,
    Quantity,
    SettingDifference,
    Side,
    number_difference,
)
from sdkeras.reporting.numbers import number
from sdkeras.reporting.tables import is_verified
from sdkeras.reporting.words import trajectory_in_words
from sdkeras.results.answers import Analysis, LyapunovRun, Run
from sdkeras.results.arrays import Value
from sdkeras.results.document import Document, walk
from sdkeras.results.lyapunov import LyapunovSummary
from sdkeras.results.measured import STANDARD_ERRORS

_SETTINGS = (
    ("provenance.sdkeras", "sdkeras"),
    ("provenance.tensorflow", "TensorFlow"),
    ("provenance.keras", "Keras"),
    ("provenance.python", "Python"),
    ("provenance.device", "device"),
    ("provenance.dtype", "precision"),
    ("provenance.seed", "seed"),
    ("provenance.preset", "preset"),
    ("provenance.data_digest", "data digest"),
    ("data.num_samples", "samples"),
    ("data.batch_size", "batch size"),
    ("data.batch_size_source", "batch size from"),
    ("data.class_weight", "class weights"),
    ("data.num_samples_hessian", "samples of the Hessian"),
    ("model.name", "model"),
    ("model.num_parameters", "parameters"),
    ("model.num_trainable_analysed", "parameters analysed"),
    ("model.mode", "mode"),
    ("model.loss", "loss"),
    ("optimizer.name", "optimizer"),
    ("optimizer.learning_rate", "learning rate"),
    ("optimizer.learning_rate_source", "learning rate from"),
    ("optimizer.momentum", "momentum"),
    ("optimizer.nesterov", "Nesterov"),
    ("optimizer.weight_decay", "weight decay"),
    ("optimizer.iterations", "iterations"),
    ("verification.mode", "product mode"),
    ("verification.passed", "verified"),
    ("edge_of_stability.operator", "operator of the threshold"),
    ("sharpness_dimension.map", "map"),
    ("sharpness_dimension.coordinates", "coordinates"),
    ("sharpness_dimension.state_size", "size of the state"),
    ("sharpness_dimension.estimator", "estimator"),
    ("sharpness_dimension.settings", "settings of the estimator"),
    ("lyapunov.estimator", "estimator of the exponents"),
    ("lyapunov.num_steps", "steps of the exponents"),
    ("lyapunov.forks.count", "forks of the trajectory"),
    ("lyapunov.transient", "steps before them"),
    ("lyapunov.num_weights", "weights in the trajectory's state"),
    ("lyapunov.dimension.size", "size of the trajectory's state"),
    ("lyapunov.coordinates", "coordinates of its windows"),
    ("partial", "interrupted"),
)
# The numbers that are compared, in the order of the report: (group, path with * for a position, label).
_EDGE, _HESSIAN, _SD = "Edge of stability", "Hessian of the loss", "Sharpness dimension"
_ALONG, _LAYER = "Lyapunov exponents along training", "Layer {item.name}"
_MATRIX = "{item.name} of the loss"
_NUMBERS = (
    (_EDGE, "edge_of_stability.sharpness", "sharpness, of {run.edge_of_stability.operator}"),
    (_EDGE, "edge_of_stability.threshold", "threshold"),
    (_EDGE, "edge_of_stability.ratio", "ratio to the threshold"),
    (_EDGE, "edge_of_stability.batch_sharpness", "batch sharpness, of H"),
    (_EDGE, "edge_of_stability.batch_sharpness_ratio_of_means", "batch sharpness of H, ratio of means"),
    (_HESSIAN, "hessian.largest.value", "largest eigenvalue"),
    (_HESSIAN, "hessian.smallest.value", "smallest eigenvalue"),
    (_HESSIAN, "hessian.trace.value", "trace"),
    (_SD, "sharpness_dimension.value", "pooled value"),
    (_SD, "sharpness_dimension.codimension", "codimension"),
    (_SD, "sharpness_dimension.definition_value", "definition's value"),
    (_SD, "sharpness_dimension.threshold_exponent", "threshold exponent t*"),
    (_SD, "sharpness_dimension.expansion", "E+ (sum of positive exponents)"),
    (_SD, "sharpness_dimension.expansion_negative_curvature", "E+ of negative curvature"),
    (_SD, "sharpness_dimension.expansion_unstable", "E+ of unstable directions"),
    (_SD, "sharpness_dimension.neutral_mass", "neutral directions"),
    (_SD, "sharpness_dimension.frozen_lyapunov.dimension", "frozen Lyapunov"),
    (_SD, "rds_sharpness.leading.0", "RDS sharpness lambda_1"),
    (_MATRIX, "operators.*.largest.value", "largest eigenvalue"),
    (_MATRIX, "operators.*.smallest.value", "smallest eigenvalue"),
    (_MATRIX, "operators.*.trace.value", "trace"),
    (_MATRIX, "operators.*.expansion.value", "E+ with it in place of the Hessian"),
    (_MATRIX, "operators.*.expansion.difference", "E+ of the Hessian less that"),
    (_ALONG, "lyapunov.values.*", "ell_{nth}"),
    (_ALONG, "lyapunov.dimension.value", "D_s"),
    (_ALONG, "lyapunov.log_det", "sum of all exponents"),
    (_ALONG, "lyapunov.windows.*.dimension", "{item.name} along the trajectory"),
    (_LAYER, "layers.*.largest.value", "largest eigenvalue"),
    (_LAYER, "layers.*.trace.value", "trace"),
    (_LAYER, "layers.*.codimension", "codimension"),
)
# Numbers with evidence that are not compared, in the same form.
_OTHERS = (
    (_EDGE, "edge_of_stability.mean_square_stability.kappa.value", "mean-square stability, kappa"),
    (_EDGE, "edge_of_stability.gradient_noise.mean.value", "gradient noise on the top eigenvector, mean"),
    (_EDGE, "edge_of_stability.gradient_noise.deviation.value", "gradient noise there, standard deviation"),
    (_EDGE, "edge_of_stability.gradient_noise.share.value", "gradient noise there, share of tr Cov(g)"),
    ("Supremum over snapshots", "supremum.value", "sharpness dimension"),
    (_MATRIX, "operators.*.expansion.hessian", "E+ of the Hessian in the same runs"),
)
# Where a run has quantities of `_NUMBERS` once more: (group, start of the path, start of the path with the label).
_AGAIN = (
    ("Sharpness dimension by {item.estimator}", "estimates.*", "sharpness_dimension"),
    ("The same net {run.at_init.when}", "at_init.sharpness.", "hessian.largest."),
    ("The same net {run.at_init.when}", "at_init.sharpness_dimension", "sharpness_dimension"),
    ("The same net {run.earlier.when}", "earlier.sharpness.", "hessian.largest."),
    ("The same net {run.earlier.when}", "earlier.sharpness_dimension", "sharpness_dimension"),
    ("The same net {run.earlier.when}", "earlier.codimension.value", "sharpness_dimension.codimension"),
)
_MISSING = ()
# What makes a sharpness dimension another quantity, and what is another quantity with it.
_SAME_DIMENSION = ("map", "coordinates", "state_size")
_OF_DIMENSION = (
    "sharpness_dimension.*",
    "estimates.*",
    "rds_sharpness.*",
    "layers.*.codimension*",
    "operators.*.expansion.*",
    "bounds.*",
)
# Layers are compared by name.
_BY_POSITION = ("layers.*",)

# Answers of which two can be compared.
_COMPARED = (Analysis, LyapunovRun)


def compare(a: Run, b: Run, *, names: tuple[str, str] = ("A", "B")) -> Comparison:
    """Compares two answers of the same command.

    A difference is B minus A. Its error is a 95 % half-width, the two runs taken as independent: see
    `comparison.number_difference`. Sharpness dimensions, their exponents and E+ are compared only under the same map,
    coordinates and size of the state, thresholds only of the same operator.

    Args:
        a: An `Analysis` or a `LyapunovRun`.
        b: Another of the same kind.
        names: Their names, for example their files.

    Returns:
        The settings that differ, and every number that both have with the error of its difference.

    Raises:
        SdkerasError: An analysis against a Lyapunov run, or an answer of another command.
    """
    if all(isinstance(run, Document) for run in (a, b)) and not any(type(a) is type(b) is kind for kind in _COMPARED):
        kinds = [f"{name} is an answer of {run.WRITTEN_BY[1]}" for name, run in zip(names, (a, b), strict=True)]
        raise SdkerasError(f"{kinds[0]}, {kinds[1]}; compare two of sdkeras analyze or two of sdkeras lyapunov.")
    a, b = (instance(run, name, *_COMPARED) for name, run in (("a", a), ("b", b)))
    barriers = tuple(_barriers(a, b))
    known = (known_numbers(a), known_numbers(b))
    numbers = tuple(_numbers(*known, barriers))
    settings = tuple(_settings(a, b))
    return Comparison(
        a=_side(a, names[0]),
        b=_side(b, names[1]),
        identical=a == b,
        summary=_summary(a == b, settings, numbers),
        settings=settings,
        numbers=numbers,
        incomparable=barriers,
        notes=(
            *_caveats(a, b),
            *_of_one("Only {} has", *map(_names, (a, b), known)),
            *_of_one("Warnings only in {}", *map(_codes, (a, b))),
        ),
    )


def _side(run: Analysis | LyapunovRun, name: str) -> Side:
    verdict = run.edge_of_stability.verdict if isinstance(run, Analysis) else trajectory_in_words(run.lyapunov)
    side = Side(name, run.model.name, run.provenance.created, verdict, is_verified(run), run.partial)
    if not isinstance(run, Analysis):
        return side
    spectrum, estimate = run.spectrum, run.sharpness_dimension
    return attrs.evolve(
        side,
        spectrum=spectrum and attrs.evolve(spectrum, exponents=None, log_moduli=None),
        rds_sharpness=run.rds_sharpness,
        state_size=0 if estimate is None else estimate.state_size,
    )


def _summary(identical: bool, settings: tuple[SettingDifference, ...], numbers: tuple[NumberDifference, ...]) -> str:
    if identical:
        return "Nothing differs: the two files hold the same."
    if not settings and all(row.outcome == "equal" for row in numbers):
        return "No setting and no number differs: the rest is when they were made, cost, and what only one has."
    first = {0: "No setting differs", 1: "1 setting differs"}.get(len(settings), f"{len(settings)} settings differ")
    moved = [row.error is None for row in numbers if row.outcome in ("rose", "fell")]
    text = f"{first}; of {len(numbers)} numbers that both have, {len(moved) - sum(moved)} changed beyond the error"
    apart = sum(row.outcome == "not comparable" for row in numbers)
    for count, words in ((sum(moved), "changed without an error bar"), (apart, "cannot be compared")):
        text += f", {count} {words}" if count else ""
    return f"{text}."


# Settings


def _settings(a: Value, b: Value) -> Iterator[SettingDifference]:
    for path, label in _SETTINGS:
        values = [_at(run, path) for run in (a, b)]
        if _MISSING in values or "" in values or values[0] == values[1] or all(value != value for value in values):
            continue
        texts = [_setting(value) for value in values]
        yield SettingDifference(path, label, *(texts if texts[0] != texts[1] else map(repr, values)))


def _at(run: Value, path: str) -> Value:
    """The value at a path; `_MISSING`, which is false, where a record on the way is None."""
    return functools.reduce(lambda record, name: getattr(record, name, _MISSING), filter(None, path.split(".")), run)


def _setting(value: Value) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_setting(entry)}" for name, entry in value.items()) or "none"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _against(a: Value, b: Value, fields: tuple[str, ...], path: str = "") -> str:
    """The fields in which the records at a path differ: 'map sgd against hessian, ...'; "" where one has no record."""
    first, second = _at(a, path), _at(b, path)
    pairs = [(name, getattr(first, name), getattr(second, name)) for name in fields] if first and second else []
    return ", ".join(
        f"{name.replace('_', ' ')} {_setting(one)} against {_setting(other)}"
        for name, one, other in pairs
        if one != other
    )


def _barriers(a: Value, b: Value) -> Iterator[Incomparable]:
    """Numbers that must not be subtracted."""
    edge = ("edge_of_stability.sharpness", "edge_of_stability.threshold")
    size = _against(a, b, ("size",), "lyapunov.dimension")
    trajectory = ("lyapunov.dimension.*", "lyapunov.log_det")
    lengths = [
        ", ".join(str(window.num_window_steps) for window in _at(run, "lyapunov.windows") or ()) for run in (a, b)
    ]
    other_lengths = "" if lengths[0] == lengths[1] else f"lengths {lengths[0]} against {lengths[1]}"
    of_windows = (size, _against(a, b, ("coordinates",), "lyapunov"), other_lengths) if all(lengths) else ()
    for what, paths, reason in (
        (
            "the sharpness dimensions and their exponents",
            _OF_DIMENSION,
            _against(a, b, _SAME_DIMENSION, "sharpness_dimension"),
        ),
        ("sharpness and threshold (the ratio is)", edge, _against(a, b, ("operator",), "edge_of_stability")),
        ("estimates by position", ("estimates.*",), _reordered(a, b, "estimates", "estimator")),
        ("layers by position", _BY_POSITION, _reordered(a, b, "layers", "name")),
        ("D_s and the sum of all exponents", trajectory, size and f"state {size}"),
        ("SD over windows", ("lyapunov.windows.*",), "; ".join(filter(None, of_windows))),
    ):
        if reason:
            yield Incomparable(what, paths, reason)


def _reordered(a: Value, b: Value, path: str, name: str) -> str:
    in_a, in_b = ([getattr(each, name) for each in _at(run, path) or ()] for run in (a, b))
    return "" if in_a == in_b else f"A and B have other {path}, or in another order"


# Numbers


@attrs.frozen
class KnownNumber:
    """A number of one run, and the entry of a list that it is of; the same `key` in both runs means the same number."""

    key: str
    path: str
    group: str
    label: str
    quantity: Quantity
    item: Value


def _numbers(
    in_a: list[KnownNumber], in_b: list[KnownNumber], barriers: tuple[Incomparable, ...]
) -> Iterator[NumberDifference]:
    """Rows of what both have, in the order of the report; layers by their names, wherever they stand."""
    by_key = {each.key: each for each in in_a}
    for each in in_b:
        if each.key in by_key:
            first = by_key[each.key]
            reasons = [entry.reason for entry in barriers if entry.covers(each.path) and entry.paths != _BY_POSITION]
            if each.path.startswith("layers.") and each.path.endswith("codimension"):
                reasons.append(_against(first.item, each.item, ("num_parameters",)))
            reason = "; ".join(filter(None, reasons))
            yield number_difference(
                each.path, each.group, each.label, first.quantity, each.quantity, incomparable=reason
            )


def known_numbers(run: Value) -> list[KnownNumber]:
    """The numbers of `_NUMBERS` that a run has, in their order; layers one after the other, at the end."""
    values, ranked = dict(walk(run)), []
    for group, pattern, label in _NUMBERS:
        of_layer, by_name = pattern.startswith("layers."), pattern.startswith(("layers.", "operators."))
        before, listed, after = pattern.partition("*")
        items = _at(run, before.removesuffix(".")) if listed else [None]
        for position, item in enumerate(items):
            path = f"{before}{position}{after}" if listed else pattern
            quantity = _quantity(run, path, values[path]) if path in values else Quantity()
            if quantity.known:
                title, name = (text.format(run=run, item=item, nth=position + 1) for text in (group, label))
                key = f"{title}.{name}" if by_name else path
                ranked.append((position if of_layer else -1, KnownNumber(key, path, title, name, quantity, item)))
    return [each for _, each in sorted(ranked, key=lambda entry: entry[0])]


def in_words(run: Value, path: str) -> str:
    """What the number at a path is: "trace (Hessian of the loss)"; the path itself where there are no words for it."""
    pattern = re.sub(r"\.\d+(?=\.)", ".*", path)
    labels = {path: (group, label) for group, path, label in (*_NUMBERS, *_OTHERS)}
    for group, start, same in _AGAIN:
        known = f"{same}{pattern.removeprefix(start)}"
        if pattern.startswith(start) and known in labels:
            labels[pattern] = group, labels[known][1]
    group, label = labels.get(pattern, ("", path))
    listed = re.match(r"(estimates|operators)\.(\d+)\.", path)
    item = getattr(run, listed[1])[int(listed[2])] if listed else None
    return f"{label} ({group.format(run=run, item=item)})" if group else path


def _quantity(run: Value, path: str, value: Value) -> Quantity:
    if path == "edge_of_stability.sharpness":
        return _sharpness(run)
    if path == "edge_of_stability.threshold" and value is not None:
        return Quantity(value, (value, value), "exact")
    if path == "edge_of_stability.ratio":
        sharpness, threshold = _sharpness(run), run.edge_of_stability.threshold
        if sharpness.interval is None or not threshold or value is None:
            return Quantity(value, remark=sharpness.remark)
        low, high = sharpness.interval
        return Quantity(value, (low / threshold, high / threshold), "residual", sharpness.remark)
    if path.startswith("lyapunov.values."):
        return _exponent(run.lyapunov, int(path.rpartition(".")[2]))
    return Quantity.of(value)


def _sharpness(run: Analysis) -> Quantity:
    """With its residual; in files of version 0.1 that of the Hessian's eigenvalue, where it is that."""
    edge, largest = run.edge_of_stability, run.hessian.largest
    same = edge.operator == "H" and largest is not None and largest.value == edge.sharpness
    return Quantity.of(largest if same else dict(walk(edge))["sharpness"])


def _exponent(lyapunov: LyapunovSummary, k: int) -> Quantity:
    value = float(lyapunov.values[k])
    if lyapunov.num_resolved is not None and k >= lyapunov.num_resolved:  # the exponent itself may be minus infinity
        return Quantity(value, remark="is an upper bound, by rounding")
    if lyapunov.forks is None and len(lyapunov.history[k]) < FEWEST_BLOCKS:
        return Quantity(value)
    half = STANDARD_ERRORS * float(lyapunov.stderr[k])
    evidence = "standard error"
    if lyapunov.forks is not None:
        half, evidence = float(lyapunov.forks.half_widths[k]), "interval"
    half += 0.0 if lyapunov.rounding is None else float(lyapunov.rounding[k])
    return Quantity(value, (value - half, value + half), evidence)


# Notes


def _caveats(a: Value, b: Value) -> Iterator[str]:
    if a.provenance.data_digest != b.provenance.data_digest:
        yield "The data differ: what differs below may come from the data alone."
    reason = _against(a.model, b.model, ("loss", "mode"))
    if reason:
        yield f"The Hessians are of different functions: {reason}."
    for name, run in (("A", a), ("B", b)):
        if run.optimizer.learning_rate_missing:
            yield f"{name} has nothing that needs a learning rate: {run.optimizer.learning_rate_missing}"
    parts = [
        f"{name}'s Hessian is over {number(run.data.num_samples_hessian)} of {number(run.data.num_samples)} samples"
        for name, run in (("A", a), ("B", b))
        if isinstance(run, Analysis) and run.data.num_samples_hessian < run.data.num_samples
    ]
    if parts:
        yield f"{', '.join(parts)}; residuals do not include the error of that choice."


def _of_one(words: str, in_a: list[str], in_b: list[str]) -> Iterator[str]:
    for name, one, other in (("A", in_a, in_b), ("B", in_b, in_a)):
        alone = [each for each in one if each not in other]
        if alone:
            yield f"{words.format(name)}: {', '.join(alone)}."


def _codes(run: Value) -> list[str]:
    return sorted({warning.code for warning in run.warnings})


def _names(run: Value, known: list[KnownNumber]) -> list[str]:
    """The numbers and layers of a run, in words."""
    numbers = [f"{each.label} ({each.group.lower()})" for each in known if not each.path.startswith("layers.")]
    return [*numbers, *(f"layer {layer.name}" for layer in _at(run, "layers"))]
