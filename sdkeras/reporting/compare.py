"""Compares two answers: which settings differ, and every number that both have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sdkeras.errors import SdkerasError
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
from sdkeras.reporting.words import trajectory_in_words
from sdkeras.results.answers import Analysis, LayerSharpness, LyapunovRun
from sdkeras.results.dimension import SharpnessDimension
from sdkeras.results.lyapunov import LyapunovSummary
from sdkeras.results.measured import Measured

# Standard errors in half of a 95 % interval: the 0.975 quantile of a normal distribution.
_STANDARD_ERRORS = 1.959963985

_SETTINGS = (
    ("provenance.sdkeras", "sdkeras"),
    ("provenance.tensorflow", "TensorFlow"),
    ("provenance.keras", "Keras"),
    ("provenance.python", "Python"),
    ("provenance.device", "device"),
    ("provenance.dtype", "precision"),
    ("provenance.seed", "seed"),
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
    ("lyapunov.transient", "steps before them"),
    ("lyapunov.num_weights", "weights in the trajectory's state"),
    ("lyapunov.dimension.size", "size of the trajectory's state"),
    ("lyapunov.coordinates", "coordinates of its windows"),
    ("partial", "interrupted"),
)
# What makes a sharpness dimension another quantity, and what is another quantity with it.
_SAME_DIMENSION = ("map", "coordinates", "state_size")
_OF_DIMENSION = ("sharpness_dimension.*", "estimates.*", "rds_sharpness.*", "layers.*.codimension*", "bounds.*")


def compare(a: Analysis | LyapunovRun, b: Analysis | LyapunovRun, *, names: tuple[str, str] = ("A", "B")) -> Comparison:
    """What differs between two answers of the same command.

    A difference is B minus A. Its error is a 95 % half-width, the two runs taken as independent: see
    `comparison.number_difference`. Sharpness dimensions, their exponents and E+ are compared only under the same map,
    coordinates and size of the state, thresholds only of the same operator.

    Args:
        a: An `Analysis` or a `LyapunovRun`.
        b: Another of the same kind.
        names: What to call them, for example their files.

    Returns:
        The settings that differ, and every number that both have with the error of its difference.

    Raises:
        SdkerasError: An analysis against a Lyapunov run.
    """
    if type(a) is not type(b):
        kinds = [f"{name} is an answer of {run.WRITTEN_BY[1]}" for name, run in zip(names, (a, b), strict=True)]
        raise SdkerasError(f"{kinds[0]}, {kinds[1]}; compare two answers of the same command.")
    barriers = tuple(_barriers(a, b))
    numbers = tuple(_numbers(a, b, barriers))
    settings = tuple(_settings(a, b))
    return Comparison(
        a=_side(a, names[0]),
        b=_side(b, names[1]),
        identical=a == b,
        summary=_summary(a == b, settings, numbers),
        settings=settings,
        numbers=numbers,
        incomparable=barriers,
        notes=tuple(_notes(a, b)),
    )


def _side(run: Analysis | LyapunovRun, name: str) -> Side:
    verdict = run.edge_of_stability.verdict if isinstance(run, Analysis) else trajectory_in_words(run.lyapunov)
    verified = run.verification.passed and (run.lyapunov is None or run.lyapunov.verification.passed)
    return Side(name, run.model.name, run.provenance.created, verdict, verified, run.partial)


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


def _settings(a: Any, b: Any) -> Iterator[SettingDifference]:
    for path, label in _SETTINGS:
        held = [_parent(run, path) for run in (a, b)]
        if None in held:
            continue
        values = [getattr(record, path.rpartition(".")[2]) for record in held]
        if values[0] != values[1] and "" not in values and not all(value != value for value in values):
            texts = [_setting(value) for value in values]
            if texts[0] == texts[1]:
                texts = [repr(value) for value in values]
            yield SettingDifference(path, label, *texts)


def _parent(run: Any, path: str) -> Any:
    """The record that has the last part of the path, or None where the run has none."""
    for part in path.split(".")[:-1]:
        run = getattr(run, part, None)
        if run is None:
            return None
    return run


def _setting(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_setting(entry)}" for name, entry in value.items()) or "none"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _against(a: Any, b: Any, fields: tuple[str, ...]) -> str:
    """The fields in which two records differ: 'map sgd against hessian, ...', or ""."""
    pairs = [(field, getattr(a, field), getattr(b, field)) for field in fields]
    return ", ".join(
        f"{field.replace('_', ' ')} {_setting(first)} against {_setting(second)}"
        for field, first, second in pairs
        if first != second
    )


def _barriers(a: Any, b: Any) -> Iterator[Incomparable]:
    """What must not be subtracted."""
    if isinstance(a, Analysis):
        if a.sharpness_dimension is not None and b.sharpness_dimension is not None:
            reason = _against(a.sharpness_dimension, b.sharpness_dimension, _SAME_DIMENSION)
            if reason:
                yield Incomparable("the sharpness dimensions and their exponents", _OF_DIMENSION, reason)
        reason = _against(a.edge_of_stability, b.edge_of_stability, ("operator",))
        if reason:
            paths = ("edge_of_stability.sharpness", "edge_of_stability.threshold")
            yield Incomparable("sharpness and threshold (the ratio is)", paths, reason)
        for path, name in (("estimates", "estimator"), ("layers", "name")):
            if [getattr(e, name) for e in getattr(a, path)] != [getattr(e, name) for e in getattr(b, path)]:
                yield Incomparable(
                    f"{path} by position", (f"{path}.*",), f"A and B have other {path}, or in another order"
                )
    if a.lyapunov is not None and b.lyapunov is not None:
        yield from _trajectory_barriers(a.lyapunov, b.lyapunov)


def _trajectory_barriers(a: LyapunovSummary, b: LyapunovSummary) -> Iterator[Incomparable]:
    size = _against(a.dimension, b.dimension, ("size",))
    if size:
        paths = ("lyapunov.dimension.*", "lyapunov.log_det")
        yield Incomparable("D_s and the sum of all exponents", paths, f"state {size}")
    if a.windows and b.windows:
        lengths = [", ".join(str(window.num_window_steps) for window in found.windows) for found in (a, b)]
        reasons = [size, _against(a, b, ("coordinates",))]
        reasons.append("" if lengths[0] == lengths[1] else f"lengths {lengths[0]} against {lengths[1]}")
        if any(reasons):
            yield Incomparable("SD over windows", ("lyapunov.windows.*",), "; ".join(filter(None, reasons)))


# Numbers


def _numbers(a: Any, b: Any, barriers: tuple[Incomparable, ...]) -> Iterator[NumberDifference]:
    """Rows of what both have, in the order of the report."""
    first, second = _quantities(a), _quantities(b)
    for path, (group, label, in_b) in second.items():
        in_a = first.get(path, ("", "", Quantity()))[2]
        if in_a.known and in_b.known:
            reasons = [barrier.reason for barrier in barriers if barrier.covers(path)]
            yield number_difference(path, group, label, in_a, in_b, incomparable="; ".join(reasons))
    if isinstance(a, Analysis):
        yield from _layers(a, b, barriers)


def _quantities(run: Any) -> dict[str, tuple[str, str, Quantity]]:
    """Every number of a run by its path, with its group and label."""
    found: dict[str, tuple[str, str, Quantity]] = {}

    def add(group: str, path: str, label: str, quantity: Quantity) -> None:
        found[path] = (group, label, quantity)

    if isinstance(run, Analysis):
        for path, label, quantity in _edge(run):
            add("Edge of stability", f"edge_of_stability.{path}", label, quantity)
        for path, label in (("largest", "largest eigenvalue"), ("smallest", "smallest eigenvalue"), ("trace", "trace")):
            add("Hessian of the loss", f"hessian.{path}.value", label, _measured(getattr(run.hessian, path)))
        if run.sharpness_dimension is not None:
            for path, label, quantity in _dimension(run.sharpness_dimension):
                add("Sharpness dimension", f"sharpness_dimension.{path}", label, quantity)
        if run.rds_sharpness is not None and len(run.rds_sharpness.leading):
            leading = Quantity(float(run.rds_sharpness.leading[0]))
            add("Sharpness dimension", "rds_sharpness.leading.0", "RDS sharpness lambda_1", leading)
    if run.lyapunov is not None:
        for path, label, quantity in _lyapunov(run.lyapunov):
            add("Lyapunov exponents along training", f"lyapunov.{path}", label, quantity)
    return found


def _bounded(value: float | None, half: float | None, evidence: str, remark: str = "") -> Quantity:
    if value is None or half is None:
        return Quantity(value, remark=remark)
    return Quantity(value, (value - half, value + half), evidence, remark)


def _measured(found: Measured | None) -> Quantity:
    if found is None:
        return Quantity()
    remark = "" if found.converged else "did not converge"
    if found.stderr is not None:
        return _bounded(found.value, _STANDARD_ERRORS * found.stderr, "standard error", remark)
    return _bounded(found.value, found.residual, "residual", remark)


def _edge(run: Analysis) -> Iterator[tuple[str, str, Quantity]]:
    edge, largest = run.edge_of_stability, run.hessian.largest
    # The record of the edge has no residual of its own; the Hessian's is the one where it is of the Hessian.
    own = edge.operator == "H" and largest is not None and largest.value == edge.sharpness
    sharpness = _measured(largest) if own else Quantity(edge.sharpness)
    yield "sharpness", f"sharpness, of {edge.operator}", sharpness
    yield "threshold", "threshold", _bounded(edge.threshold, 0.0, "exact")
    ratio = Quantity(edge.ratio, remark=sharpness.remark)
    if sharpness.interval is not None and edge.threshold and edge.ratio is not None:
        low, high = sharpness.interval
        ratio = Quantity(edge.ratio, (low / edge.threshold, high / edge.threshold), "residual", sharpness.remark)
    yield "ratio", "ratio to the threshold", ratio
    error = edge.batch_sharpness_stderr
    half = None if error is None else _STANDARD_ERRORS * error
    yield "batch_sharpness", "batch sharpness, of H", _bounded(edge.batch_sharpness, half, "standard error")
    error = edge.batch_sharpness_ratio_of_means_stderr
    half = None if error is None else _STANDARD_ERRORS * error
    quotient = _bounded(edge.batch_sharpness_ratio_of_means, half, "standard error")
    yield "batch_sharpness_ratio_of_means", "batch sharpness of H, ratio of means", quotient


def _dimension(found: SharpnessDimension) -> Iterator[tuple[str, str, Quantity]]:
    yield "value", "pooled value", _spanned(found.value, found.interval)
    yield "codimension", "codimension", _spanned(found.codimension, found.codimension_interval)
    yield "definition_value", "definition's value", _spanned(found.definition_value, found.definition_interval)
    for path, label in (
        ("threshold_exponent", "threshold exponent t*"),
        ("expansion", "E+ (sum of z > 0)"),
        ("expansion_negative_curvature", "E+ of negative curvature"),
        ("expansion_unstable", "E+ of unstable directions"),
        ("neutral_mass", "neutral directions"),
    ):
        yield path, label, Quantity(getattr(found, path))
    if found.frozen_lyapunov is not None:
        yield "frozen_lyapunov.dimension", "frozen Lyapunov", Quantity(found.frozen_lyapunov.dimension)


def _spanned(value: float | None, interval: tuple[float, float] | None) -> Quantity:
    if interval is None:
        return Quantity(value)
    return Quantity(value, interval, "bracket" if value is None else "interval")


def _lyapunov(found: LyapunovSummary) -> Iterator[tuple[str, str, Quantity]]:
    resolved = len(found.values) if found.num_resolved is None else found.num_resolved
    for k, value in enumerate(found.values):
        half = None if len(found.history[k]) < 2 else _STANDARD_ERRORS * float(found.stderr[k])
        if half is not None and found.rounding is not None:
            half += float(found.rounding[k])
        quantity = _bounded(float(value), half, "standard error")
        if k >= resolved:  # the exponent itself may be minus infinity
            quantity = Quantity(float(value), remark="has an upper end, by rounding")
        yield f"values.{k}", f"ell_{k + 1}", quantity
    yield "dimension.value", "D_s", _spanned(found.dimension.value, found.dimension.interval)
    half = None if found.log_det_stderr is None else _STANDARD_ERRORS * found.log_det_stderr
    yield "log_det", "sum of all exponents", _bounded(found.log_det, half, "standard error")
    for k, window in enumerate(found.windows):
        yield f"windows.{k}.dimension", f"{window.name} along the trajectory", Quantity(window.dimension)


def _layers(a: Analysis, b: Analysis, barriers: tuple[Incomparable, ...]) -> Iterator[NumberDifference]:
    """Of layers with the same name, wherever they stand."""
    in_a = {layer.name: layer for layer in a.layers}
    dimension = next((barrier.reason for barrier in barriers if barrier.paths == _OF_DIMENSION), "")
    for position, layer in enumerate(b.layers):
        other = in_a.get(layer.name)
        if other is None:
            continue
        sizes = _against(other, layer, ("num_parameters",))
        for (path, label, first), (_, _, second) in zip(_layer(other), _layer(layer), strict=True):
            if first.known and second.known:
                why = ", ".join(filter(None, (dimension, sizes))) if path == "codimension" else ""
                where = f"layers.{position}.{path}"
                yield number_difference(where, f"Layer {layer.name}", label, first, second, incomparable=why)


def _layer(layer: LayerSharpness) -> Iterator[tuple[str, str, Quantity]]:
    yield "largest.value", "largest eigenvalue", _measured(layer.largest)
    yield "trace.value", "trace", _measured(layer.trace)
    yield "codimension", "codimension", _spanned(layer.codimension, layer.codimension_interval)


# Notes


def _notes(a: Any, b: Any) -> Iterator[str]:
    if a.provenance.data_digest != b.provenance.data_digest:
        yield "The data differ: what differs below may come from the data alone."
    reason = _against(a.model, b.model, ("loss", "mode"))
    if reason:
        yield f"The Hessians are of different functions: {reason}."
    for name, run in (("A", a), ("B", b)):
        if run.optimizer.learning_rate_missing:
            yield f"{name} has nothing that needs a learning rate: {run.optimizer.learning_rate_missing}"
        used, total = run.data.num_samples_hessian, run.data.num_samples
        if isinstance(run, Analysis) and used < total:
            yield (
                f"{name}'s Hessian is of {number(used)} of {number(total)} samples; the error of that choice is in no "
                "residual."
            )
    first, second = _names(a), _names(b)
    for name, one, other in (("A", first, second), ("B", second, first)):
        alone = [label for label in one if label not in other]
        if alone:
            yield f"Only {name} has: {', '.join(alone)}."
    first, second = ([warning.code for warning in run.warnings] for run in (a, b))
    for name, one, other in (("A", first, second), ("B", second, first)):
        alone = sorted(set(one) - set(other))
        if alone:
            yield f"Warned of only in {name}: {', '.join(alone)}."


def _names(run: Any) -> list[str]:
    """What a run has, in words: its numbers and its layers."""
    found = [f"{label} ({group.lower()})" for group, label, quantity in _quantities(run).values() if quantity.known]
    return found + [f"layer {layer.name}" for layer in getattr(run, "layers", ())]
