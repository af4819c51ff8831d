"""Generalization bounds in which the sharpness dimension enters, term by term.

Every term is non-negative, so that a partial sum is a lower end of the total: above the loss's own range B the
bound says nothing whatever the missing terms are ("vacuous"); below it with terms missing nothing can be said
("undetermined").

Reference: Tuci, Korkmaz, Simsekli, Birdal (2026), arXiv 2604.19740, Theorems 4.5 and B.5.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping

import attrs

from sdkeras.errors import SdkerasError
from sdkeras.results.bounds import Assumption, Bound, BoundInput, BoundTerm
from sdkeras.results.dimension import Supremum
from sdkeras.results.lyapunov import LyapunovDimension

# What may be given, its letter in the paper, and what it must be.
INPUTS = {
    "loss_bound": ("B", "the loss lies in [0, B]"),
    "lipschitz": ("L", "Lipschitz constant of the loss in the weights"),
    "delta": ("delta", "radius of the cover of the attractor, 0 < delta < 1"),
    "zeta": ("zeta", "probability that the bound may fail, 0 < zeta < 1"),
    "mutual_information": ("I_inf", "total mutual information between data and attractor"),
    "stability": ("beta_n", "algorithmic stability of the training, beta_n^(-2/3) a divisor of n"),
    "constant": ("C", "constant of the theorem"),
}
# Which inputs each theorem takes.
THEOREMS = {
    "Theorem 4.5": tuple(name for name in INPUTS if name != "stability"),
    "Theorem B.5": ("loss_bound", "lipschitz", "delta", "stability"),
}
_FRACTIONS = ("delta", "zeta")
_POSITIVE = ("loss_bound", "lipschitz", "stability")


@attrs.frozen
class Training:
    """What is known of the map that training iterates, each in words; "" where nothing speaks against it.

    Attributes:
        other_map: Why the map whose SD was measured is not training's own step.
        time_dependence: What makes the step depend on time: a schedule, a bias correction.
        stationary: Over what training's steps are stationary.
        absorbing: What is known of an absorbing set.
        kinks: Parts of the optimizer's update that are not twice differentiable, by name.
    """

    other_map: str = ""
    time_dependence: str = ""
    stationary: str = "nothing is known of the optimizer"
    absorbing: str = "nothing here shows one"
    kinks: tuple[str, ...] = ()


@attrs.frozen
class Facts:
    """What an analysis knows of the assumptions; None where it knows nothing.

    Attributes:
        dimension: The dimension that enters the bounds: SD, or another by `facts_over` or `facts_along`.
        state_size: d.
        num_samples: n.
        kinks: Layers and activations that are not twice differentiable (ReLU, max-pooling), by name.
        clipped: Whether the optimizer clips gradients.
        unbounded_loss: Name of a loss that has no upper bound, or None.
        smallest_exponent: Smallest exponent seen; the Jacobian is singular where it is -infinity.
        dimension_name: Which dimension it is: 'SD', 'sup SD' or 'D_s'.
        dimension_reason: Why that one, in words.
        local: What the dimension was taken over, in words: all that is known of the attractor.
        training: What is known of the map that training iterates.
    """

    dimension: float
    state_size: int
    num_samples: int
    kinks: tuple[str, ...] = ()
    clipped: bool = False
    unbounded_loss: str | None = None
    smallest_exponent: float | None = None
    dimension_name: str = "SD"
    dimension_reason: str = "the local SD at this checkpoint"
    local: str = "this is the local SD at one checkpoint, not the supremum, and bounds no dimension by itself"
    training: Training = Training()


def facts_along(facts: Facts, along: LyapunovDimension) -> Facts:
    """The facts with the sharpest dimension that is determined: D_s of a trajectory where it is a point.

    The theorems are about the attractor's dimension, which is at most D_s, and D_s at most their SD, the one with a
    supremum over the attractor. The local SD at one checkpoint has no order with D_s, so it makes no difference which
    is smaller.

    Args:
        facts: With SD.
        along: D_s. Where it is only bracketed or undetermined the facts stay with SD.
    """
    if along.value is None:
        return attrs.evolve(facts, dimension_reason=f"{facts.dimension_reason}; D_s is {along.status}: {along.reason}")
    measured = "the local SD" if facts.dimension_name == "SD" else "SD over the snapshots"
    return attrs.evolve(
        facts,
        dimension=along.value,
        state_size=along.size,
        dimension_name="D_s",
        dimension_reason=(
            f"D_s is determined over {along.num_steps:,} steps from here, and at most the SD of the theorem; "
            f"{measured}, {facts.dimension:,.1f} of {facts.state_size:,}, has no order with it"
        ),
        local=f"D_s is of one trajectory of {along.num_steps:,} steps",
        training=attrs.evolve(facts.training, other_map=""),  # D_s is of real steps
    )


def facts_over(facts: Facts, supremum: Supremum) -> Facts:
    """The facts with SD's supremum over snapshots, which is the SD of the theorems as far as it was measured.

    Args:
        facts: With the local SD.
        supremum: Over the snapshots; the facts stay as they are where only the checkpoint was reached.
    """
    count = supremum.num_snapshots
    if count < 2:
        return facts
    about = "approximately, from quadrature" if supremum.approximate else "from exact spectra"
    return attrs.evolve(
        facts,
        dimension=supremum.value,
        state_size=supremum.state_size,
        dimension_name="sup SD",
        dimension_reason=(
            f"the theorems' SD has a supremum over the attractor; it was measured over {count:,} snapshots ({about})"
        ),
        local=f"SD is the supremum over {count:,} snapshots, up to {supremum.steps[-1]:,} steps from here",
    )


def check_inputs(inputs: Mapping[str, float]) -> None:
    """Refuses inputs of the bounds that are unknown or out of range.

    Raises:
        SdkerasError: See above; the message has the names and ranges.
    """
    if not isinstance(inputs, Mapping):
        raise SdkerasError(f"the bounds' inputs are {inputs!r}; give them by name, such as {{'delta': 0.01}}.")
    for name, value in inputs.items():
        if name not in INPUTS:
            raise SdkerasError(f"a bound has no input '{name}'; its inputs are: {', '.join(INPUTS)}.")
        meaning = f"{INPUTS[name][0]}: {INPUTS[name][1]}"
        if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value) or value < 0:
            shown = f"{value:g}" if isinstance(value, float) else repr(value)
            raise SdkerasError(f"the bound's input {name} is {shown}; it must be finite and >= 0 ({meaning}).")
        if name in _FRACTIONS and not 0 < value < 1:
            raise SdkerasError(f"the bound's input {name} is {value:g}; it must lie between 0 and 1 ({meaning}).")
        if name in _POSITIVE and value == 0:
            raise SdkerasError(f"the bound's input {name} is 0; it must be positive ({meaning}).")


def bounds(facts: Facts, inputs: Mapping[str, float], estimated: frozenset[str] = frozenset()) -> tuple[Bound, ...]:
    """Theorem 4.5 and Theorem B.5 with these inputs.

    SD below stands for the dimension that the facts have.

    Theorem 4.5, with probability at least 1 - zeta - gamma: gap <= 2 L delta + 2 B sqrt(4 SD ln(1/delta)/n)
    + (I_inf + ln(1/zeta))/sqrt(n) + C B^2/sqrt(n).
    Theorem B.5, for a beta_n-stable training:
    E gap <= 2 E[B/n + delta L + beta_n^(1/3) (1 + B sqrt(4 SD ln(1/delta)))].

    Args:
        facts: SD, sizes and what is known of the assumptions.
        inputs: Values by name, see INPUTS; a missing one leaves its terms and the total None.
        estimated: Names of the inputs that were estimated and not given.

    Returns:
        Both bounds, in this order.

    Raises:
        SdkerasError: An unknown input, or one out of range.
    """
    check_inputs(inputs)
    given = {name: inputs.get(name) for name in INPUTS}
    n, root = facts.num_samples, math.sqrt(facts.num_samples)
    loss_bound, lipschitz, delta = given["loss_bound"], given["lipschitz"], given["delta"]
    spread = None if delta is None else math.sqrt(4 * facts.dimension * math.log(1 / delta))
    information, zeta, constant = given["mutual_information"], given["zeta"], given["constant"]
    luck = None if information is None or zeta is None else information + math.log(1 / zeta)
    cube_root = None if given["stability"] is None else given["stability"] ** (1 / 3)
    name, reason = facts.dimension_name, facts.dimension_reason
    if facts.training.other_map:
        reason += f"; it is not of training's own random dynamical system: {facts.training.other_map}"
    attractor = (
        BoundTerm("2 L delta", _product(2, lipschitz, delta)),
        BoundTerm(f"2 B sqrt(4 {name} ln(1/delta)/n)", _product(2, loss_bound, spread, 1 / root)),
        BoundTerm("(I_inf + ln(1/zeta))/sqrt(n)", _product(luck, 1 / root)),
        BoundTerm("C B^2/sqrt(n)", _product(constant, loss_bound, loss_bound, 1 / root)),
    )
    stable = (
        BoundTerm("2 B/n", _product(2, loss_bound, 1 / n)),
        BoundTerm("2 delta L", _product(2, delta, lipschitz)),
        BoundTerm("2 beta_n^(1/3)", _product(2, cube_root)),
        BoundTerm(f"2 beta_n^(1/3) B sqrt(4 {name} ln(1/delta))", _product(2, cube_root, loss_bound, spread)),
    )
    made = []
    for theorem, terms, assumptions in (
        ("Theorem 4.5", attractor, _assumptions(facts, delta)),
        (
            "Theorem B.5",
            stable,
            (
                *_assumptions(facts, delta),
                _stability(given["stability"]),
                _divisor(n, given["stability"]),
                _expectation(),
            ),
        ),
    ):
        known = [term.value for term in terms if term.value is not None]
        total = math.fsum(known) if len(known) == len(terms) else None
        made.append(
            Bound(
                theorem=theorem,
                inputs=tuple(
                    BoundInput(name, *INPUTS[name], given[name], name in estimated) for name in THEOREMS[theorem]
                ),
                terms=terms,
                partial_sum=math.fsum(known),
                total=total,
                verdict=_verdict(math.fsum(known), total, loss_bound, "loss_bound" in estimated, assumptions),
                assumptions=assumptions,
                dimension_name=name,
                dimension_reason=reason,
            )
        )
    return tuple(made)


def _product(*factors: float | None) -> float | None:
    known = [factor for factor in factors if factor is not None]
    return math.prod(known) if len(known) == len(factors) else None


def _verdict(
    partial: float, total: float | None, loss_bound: float | None, guessed: bool, assumptions: Iterable[Assumption]
) -> str:
    """A gap of losses in [0, B] is at most B: a bound above it says nothing."""
    if loss_bound is not None and partial >= loss_bound:
        return "vacuous" + (" (at the estimated B)" if guessed else "")
    if loss_bound is None or total is None:
        return "undetermined"
    failing = [each.name for each in assumptions if each.status == "fails"]
    if failing:
        return f"undetermined: the terms stay below B, and an assumption fails ({failing[0]})"
    return "below B if every assumption holds" + (" and the estimates are right" if guessed else "")


def _assumptions(facts: Facts, delta: float | None) -> tuple[Assumption, ...]:
    training, inside = facts.training, 1 <= facts.dimension < facts.state_size
    kinks = (*facts.kinks, *training.kinks)
    if kinks:
        smooth = Assumption("twice continuously differentiable map", "fails", f"kinks of {', '.join(kinks[:6])}")
    elif facts.clipped:
        smooth = Assumption("twice continuously differentiable map", "fails", "gradient clipping has kinks")
    else:
        smooth = Assumption(
            "twice continuously differentiable map", "not contradicted", "no layer with known kinks was found"
        )
    lowest = facts.smallest_exponent
    # ln 1e-12 stands for ln 0 in the exponents.
    singular = lowest is not None and lowest < math.log(1e-11)
    return (
        Assumption(
            "unique compact random pullback attractor",
            "unknown",
            f"it exists where there is an absorbing set (Prop. 4.1): {training.absorbing}",
        ),
        Assumption(
            "integrability on the attractor (4.4.2)",
            "unknown",
            "a mean over the whole attractor"
            + ("" if lowest is None else "; the exponents that were measured are finite" if not singular else ""),
        ),
        Assumption(
            "time-homogeneous random dynamical system",
            "fails" if training.time_dependence else "not contradicted",
            training.time_dependence or training.stationary,
        ),
        Assumption(
            "the dimension is of training's own step",
            "fails" if training.other_map else "not contradicted",
            training.other_map and f"{training.other_map}; neither D_s <= SD nor the theorem is about this number",
        ),
        Assumption(
            "1 <= j* < d",
            "holds" if inside else "fails",
            f"{facts.dimension_name} is {facts.dimension:,.1f} of {facts.state_size:,}",
        ),
        Assumption(
            "0 < delta < 1", "unknown" if delta is None else "holds", "delta is not given" if delta is None else ""
        ),
        Assumption("delta below delta_(n, gamma)", "unknown", "delta_(n, gamma) cannot be computed from a model"),
        smooth,
        Assumption(
            "non-singular Jacobian",
            "fails" if singular else "unknown" if lowest is None else "not contradicted",
            "no exponent was measured" if lowest is None else f"smallest exponent {lowest:.3g}",
        ),
        Assumption("bounded distortion (eq. 13)", "unknown", "neither a checkpoint nor one trajectory can show it"),
        Assumption(
            "loss in [0, B]",
            "fails" if facts.unbounded_loss else "unknown",
            f"{facts.unbounded_loss} has no upper bound"
            if facts.unbounded_loss
            else "the loss's range is not known here",
        ),
        Assumption(
            "loss Lipschitz in the weights",
            "fails" if facts.unbounded_loss else "unknown",
            f"not globally for {facts.unbounded_loss} of a net of several layers"
            if facts.unbounded_loss
            else "gradients at these weights say nothing of others",
        ),
        Assumption("SD over the whole attractor", "unknown", facts.local),
    )


def _divisor(n: int, beta: float | None) -> Assumption:
    name = "beta_n^(-2/3) an integer divisor of n"
    if beta is None:
        return Assumption(name, "unknown", "beta_n is not given")
    blocks = beta ** (-2 / 3)
    whole = round(blocks)
    # beta_n is typed with a few digits.
    holds = whole >= 1 and abs(blocks - whole) < 1e-3 * blocks and n % whole == 0
    return Assumption(name, "holds" if holds else "fails", f"beta_n^(-2/3) = {blocks:.6g}, n = {n:,}")


def _expectation() -> Assumption:
    return Assumption("expectation over data sets", "unknown", "one data set was seen; the terms are its sample")


def _stability(beta: float | None) -> Assumption:
    remark = "beta_n is not given" if beta is None else "beta_n is an input; nothing here measures it"
    return Assumption("beta_n-stable training", "unknown", remark)
