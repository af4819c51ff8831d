"""Every layer, activation and loss of the installed Keras, scanned: are its Hessian-vector products right?

`make layers` prints the table as Markdown. Each row analyses one small model (see
`layer_cases`) as a user would, and compares the products with differences of the gradient that are made here, apart
from the verification in `sdkeras.operators`. The command fails if sdkeras accepts products that are wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import platform
import re
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import attrs
import keras
import numpy as np
import tensorflow as tf

import sdkeras
from layer_scan.cases import MODULES, Case, cases, public_names
from layer_scan.models import FRONT, NotTriedError, Problem
from sdkeras.errors import SdkerasError
from sdkeras.files.user_code import last_line
from sdkeras.operators import engine
from sdkeras.operators.hessian import HessianOperator
from sdkeras.operators.loss import EmpiricalLoss, evolved
from sdkeras.results.arrays import FloatArray
from sdkeras.results.document import write_atomically

OUTCOMES = {
    "right": "sdkeras accepts the products and they are right",
    "corrected": "accepted and right, where TensorFlow alone is silently wrong: sdkeras puts its own formula in place",
    "refused": "sdkeras stops with an error that says what to do; the note says whether float64 with product mode "
    "finite-differences is a way",
    "no derivative": "no gradient passes through it, so that it can stand before the first weights only; the rest of "
    "such a model is right",
    "not tried": "no model of it could be made here, for the reason given",
    "WRONG": "sdkeras accepts products that are wrong, or fails without a message: a bug; please report it",
}
_NUM_DIRECTIONS = 3
# Four-point differences leave h^4 of truncation and eps/h of rounding, 1e-9 or less at the best of these steps.
# Kinks (ReLU, max pooling, rounding) may lie between the points: the fewer the shorter the step. The best step
# counts, which is fair in float64: products that are wrong agree with the differences at none of them.
_STEPS = {"float64": (1e-2, 1e-3, 1e-4, 1e-5, 1e-6), "float32": (1e-1, 3e-2, 1e-2, 3e-3, 1e-3)}
_ALLOWED = {"float64": 1e-5, "float32": 1e-2}


@attrs.frozen
class Row:
    """What was found for one case.

    Attributes:
        case: What was tried.
        outcome: One of `OUTCOMES`.
        mode: The product mode in use, '' if there was none.
        error: Of products against differences of the gradient, relative, the worst of three directions.
        dtype: The precision of both; float32 if the model cannot be rebuilt in float64.
        rounding: Of float32 products against float64 ones. Where random masks differ between the two, against
            differences of the float32 gradient; nan where there is nothing else than float32.
        plain_error: As `error`, with sdkeras' corrections of TensorFlow switched off.
        note: The reason, in a few words.
        xla: What XLA makes of the products in float32, where they are right without it: see `_by_xla`.
        seconds: Wall-clock time.
    """

    case: Case
    outcome: str
    mode: str = ""
    error: float = np.nan
    dtype: str = ""
    rounding: float = np.nan
    plain_error: float = np.nan
    note: str = ""
    xla: str = ""
    seconds: float = attrs.field(default=0.0, eq=False)


def measure(case: Case) -> Row:
    """Analyses one case's model as a user would, and says whether what sdkeras makes of it is right."""
    start = time.monotonic()
    keras.utils.set_random_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        row = _measure(case)
    keras.backend.clear_session()
    return attrs.evolve(row, seconds=time.monotonic() - start)


def _measure(case: Case) -> Row:
    try:
        problem = case.build()
    except NotTriedError as error:
        return Row(case, "not tried", note=str(error))
    except Exception as failure:  # another Keras may build it in another way
        return Row(case, "not tried", note=f"its model cannot be built: {last_line(failure)}")
    try:
        return _analysed(case, problem)
    except SdkerasError as refusal:
        return Row(case, "refused", note=f"after the verification of the first batch: {last_line(refusal)}")


def _analysed(case: Case, problem: Problem) -> Row:
    try:
        used = HessianOperator(_loss(problem, "float32"))
    except SdkerasError as refusal:
        return _refused(case, problem, refusal)
    except Exception as failure:  # the scan goes on, and the table shows it
        return Row(case, "WRONG", note=f"a traceback instead of a message: {last_line(failure)}")
    try:
        double = HessianOperator(_loss(problem, "float64"), allow_unverified=True)
    except SdkerasError:  # no float64 form of a layer
        double = used
    loss, dtype = double.loss, double.dtype.name
    note = case.no_derivative or _no_gradient(loss)
    directions = _directions(loss, front=not note)
    truths = [_differences(loss, direction) for direction in directions]
    error = _error(double, directions, truths)
    found = Row(case, "WRONG", used.verification.mode, error, dtype, _rounding(used, double, directions), note=note)
    # Products by differences are differences: good to 1e-2, which the report says of them as well.
    allowed = _ALLOWED["float32" if double.verification.mode == "finite-differences" else dtype]
    if error >= allowed or found.rounding >= _ALLOWED["float32"]:
        return found
    with plain_tensorflow():
        plain = _error(HessianOperator(_loss(problem, dtype), allow_unverified=True), directions, truths)
    outcome = "no derivative" if note else "corrected" if plain >= allowed else "right"
    xla = _by_xla(problem, used, directions)
    return attrs.evolve(found, outcome="WRONG" if xla == "WRONG" else outcome, plain_error=plain, xla=xla)


def _by_xla(problem: Problem, plain: HessianOperator, directions: list[FloatArray]) -> str:
    """What XLA makes of the first batch: 'right', 'refused' by XLA or, where wrong, by the verification, or 'WRONG'.

    The products are compared with those without XLA, and with differences of the gradient where masks are random.
    """
    try:
        loss = _loss(problem, "float32", jit="on")
        compiled = loss.engine()
    except SdkerasError as refusal:
        names = re.findall(r"XLA (?:does not know|knows no) ([\w ,]*?\w)(?:, which|[;.)])", str(refusal))
        return f"refused ({', '.join(dict.fromkeys(names)) or last_line(refusal)})"
    mode = "" if compiled.mode == plain.verification.mode else f" ({compiled.mode})"
    jit, ours = (evolved(each, batches=each.batches[:1]) for each in (loss, plain.loss))
    errors = []
    for direction in directions:
        vector = tf.constant(direction, tf.float32)
        product = compiled.product(compiled.point, vector, jit.batches[0]).numpy()
        truths = [plain.engine.product(compiled.point, vector, ours.batches[0]).numpy()]
        if loss.function.is_random:
            truths = _differences(jit, direction)
        errors.append(min(_distance(product, truth) for truth in truths))
    if max(errors) < _ALLOWED["float32"]:
        return f"right{mode}"
    try:
        HessianOperator(loss)
    except SdkerasError:
        return f"refused (wrong by {max(errors):.0e})"
    return "WRONG"


def _refused(case: Case, problem: Problem, refusal: SdkerasError) -> Row:
    """What the products would have been, and whether differences in the better precision are a way."""
    try:
        loss = _loss(problem, "float64")
    except SdkerasError:
        try:
            loss = _loss(problem, "float32")
        except SdkerasError:  # not even a gradient
            return Row(case, "refused", note=last_line(refusal))
    directions = _directions(loss, front=True)
    truths = [_differences(loss, direction) for direction in directions]
    dtype, mode, error, why = loss.dtype.name, "", np.nan, last_line(refusal)
    with contextlib.suppress(SdkerasError):
        operator = HessianOperator(loss, allow_unverified=True)
        mode, error = operator.verification.mode, _error(operator, directions, truths)
        asymmetry = operator.verification.symmetry_error
        why = (
            f"the gradient is not that of the loss (symmetry error {asymmetry:.0e})"
            if asymmetry > 1e-4 and error < _ALLOWED["float32"]
            else "products differ from differences of the gradient"
        )
    try:
        by_differences = HessianOperator(loss, product_mode="finite-differences")
        way = f"mode finite-differences in {dtype} passes, error {_error(by_differences, directions, truths):.0e}"
    except SdkerasError:
        way = f"mode finite-differences in {dtype} does not pass either"
    return Row(case, "refused", mode, error, dtype, note=f"{why.rstrip('.')}; {way}")


def _loss(problem: Problem, dtype: str, jit: str = "auto") -> EmpiricalLoss:
    data, size = (problem.x, problem.y), problem.batch_size
    return EmpiricalLoss(problem.model, data, batch_size=size, mode=problem.mode, dtype=dtype, seed=0, jit=jit)


def _no_gradient(loss: EmpiricalLoss) -> str:
    """Says so if no gradient reaches the weights before the thing under test."""
    gradient = loss.gradient()
    parts = [gradient[part] for name, part in _placed(loss) if FRONT in name]
    return "no gradient reaches the weights before it" if parts and not any(part.any() for part in parts) else ""


def _placed(loss: EmpiricalLoss) -> list[tuple[str, slice]]:
    return list(zip(loss.layout.names, loss.layout.slices, strict=True))


def _directions(loss: EmpiricalLoss, *, front: bool) -> list[FloatArray]:
    """Random directions; without the weights in front where a step of theirs only makes the loss jump."""
    generator = np.random.default_rng(17)
    directions = [generator.standard_normal(loss.size) for _ in range(_NUM_DIRECTIONS)]
    for name, part in _placed(loss):
        if FRONT in name and not front:
            for direction in directions:
                direction[part] = 0
    return directions


def _differences(loss: EmpiricalLoss, direction: FloatArray) -> list[FloatArray]:
    """Derivatives of the gradient along a direction by four-point differences, one for each step length.

    D(h) = (8 [g(w + h u) - g(w - h u)] - [g(w + 2h u) - g(w - 2h u)]) |v| / 12h, with u = v / |v|.
    """
    norm = float(np.linalg.norm(direction))

    def gradient(distance: float) -> FloatArray:
        return loss.gradient(loss.point + (distance / norm * direction).astype(loss.dtype))

    return [
        norm * (8 * (gradient(h) - gradient(-h)) - (gradient(2 * h) - gradient(-2 * h))) / (12 * h)
        for h in _STEPS[loss.dtype.name]
    ]


def _error(operator: HessianOperator, directions: list[FloatArray], truths: list[list[FloatArray]]) -> float:
    """The worst direction's error, by the step that agrees best."""
    return max(
        min(_distance(operator.matvec(direction), truth) for truth in several)
        for direction, several in zip(directions, truths, strict=True)
    )


def _rounding(single: HessianOperator, double: HessianOperator, directions: list[FloatArray]) -> float:
    if single is double:
        return np.nan
    function = single.loss.function
    if function.training and function.num_seeds:
        return _error(single, directions, [_differences(single.loss, direction) for direction in directions])
    return max(_distance(single.matvec(direction), double.matvec(direction)) for direction in directions)


def _distance(found: Any, truth: Any) -> float:
    """|found - truth| / |truth|; |found| if the truth vanishes."""
    scale = float(np.linalg.norm(truth))
    difference = float(np.linalg.norm(np.asarray(found, np.float64) - truth))
    return difference / scale if scale > 0 else difference


@contextlib.contextmanager
def plain_tensorflow() -> Iterator[None]:
    """While it lasts, sdkeras corrects nothing: products are TensorFlow's own."""
    module: Any = engine
    plain = dict.fromkeys(("exact_moments", "indexed_pooling"), contextlib.nullcontext)
    plain["inexact_moments"] = lambda graph: []
    ours = {name: getattr(module, name) for name in plain}
    try:
        for name, function in plain.items():
            setattr(module, name, function)
        yield
    finally:
        for name, function in ours.items():
            setattr(module, name, function)


# The table


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown document with versions, legend and counts."""
    xla = {word: sum(row.xla.startswith(word) for row in rows) for word in ("right", "refused")}
    counts = {outcome: sum(row.outcome == outcome for row in rows) for outcome in OUTCOMES}
    lines = [
        "# Every layer, activation and loss of Keras",
        "",
        f"Made by `make layers` on {datetime.date.today():%Y-%m-%d}: {_versions()}.",
        "",
        "Each row is one small model in which curvature passes through the thing named: weights before it, a nonlinear",
        "loss after it, random weights and data, a ragged last batch, training mode where the variant does not say",
        "otherwise. The model is analysed in float32 as a user would. *Error* compares its float64 products with",
        "four-point differences of the float64 gradient, made apart from sdkeras' own verification (worst of three",
        "random directions, best of several step lengths, since a ReLU may have its kink between two points); where a",
        "layer has no float64 form, both are float32, and 1e-2 is the limit in place of 1e-5. *float32* compares",
        "float32 products with float64 ones (with differences, where random masks differ between the two). *Plain",
        "TensorFlow* is the error with sdkeras' corrections switched off. *XLA*: whether all functions compiled by XLA",
        "(`--jit on`) give the same products in float32; in brackets the product mode where it is another, or the",
        "operations that XLA does not know.",
        "",
        *(f"- **{outcome}** ({counts[outcome]}): {meaning}." for outcome, meaning in OUTCOMES.items()),
        "",
        f"By XLA {xla['right']} are right and {xla['refused']} refused.",
    ]
    for module in MODULES:
        own = [row for row in rows if row.case.module == module]
        if own:
            lines += ["", f"## keras.{module}", "", *_HEAD, *(_line(row) for row in own)]
    return "\n".join(lines) + "\n"


def _versions() -> str:
    versions = {"sdkeras": sdkeras.__version__, "TensorFlow": tf.__version__, "Keras": keras.__version__}
    versions["Python"] = platform.python_version()
    for package in ("jax", "flax"):  # for JaxLayer and FlaxLayer
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    device = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    return ", ".join(f"{name} {version}" for name, version in versions.items()) + f", on the {device}"


_HEAD = (
    "| name | variant | outcome | product mode | error | float32 | plain TensorFlow | XLA | note |",
    "|---|---|---|---|---|---|---|---|---|",
)


def _line(row: Row) -> str:
    others = [*public_names(row.case.module).get(row.case.name, ()), *row.case.covers]
    note = row.note + (f"{'; ' if row.note else ''}also {', '.join(others)}" if others and not row.case.variant else "")
    error = _number(row.error) + (" (float32)" if row.dtype == "float32" else "")
    plain = _number(row.plain_error) if row.outcome == "corrected" else ""
    outcome = row.outcome if row.outcome == "right" else f"**{row.outcome}**"
    cells = (row.case.name, row.case.variant, outcome, row.mode, error, _number(row.rounding), plain, row.xla, note)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _number(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.0e}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: prints the table; exit status 1 if anything is WRONG, 2 for an unknown name."""
    parser = argparse.ArgumentParser(
        prog="make layers",
        description="Scans the layers, activations and losses of the installed Keras: are their products right?",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="public name, as LSTM or gelu; default: everything")
    parser.add_argument("--output", metavar="FILE", help="write the table to this file instead of printing it")
    options = parser.parse_args(arguments)
    chosen = [case for case in cases() if not options.names or case.name in options.names]
    unknown = sorted(set(options.names) - {case.name for case in chosen})
    if unknown:
        parser.error(f"no case is called {', '.join(unknown)}; names are those of keras.layers, activations and losses")
    rows = []
    for position, case in enumerate(chosen, start=1):
        rows.append(measure(case))
        print(f"{position}/{len(chosen)} {case.title}: {rows[-1].outcome} ({rows[-1].seconds:.0f} s)", file=sys.stderr)
    if options.output:
        write_atomically(options.output, table(rows))
    else:
        print(table(rows), end="")
    return int(any(row.outcome == "WRONG" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
