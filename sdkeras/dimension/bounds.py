"""Generalization bounds in which the sharpness dimension enters, term by term.

Every term is non-negative, so that a partial sum is a lower bound of the total: above the loss's own range B the
bound says nothing whatever the missing terms are ("vacuous"); below it with terms missing nothing can be said
("undetermined").

Reference: Tuci, Korkmaz, Simsekli, Birdal (2026), arXiv 2604.19740, Theorems 4.5 and B.5.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import attrs

from sdkeras.errors import SdkerasError
from sdkeras.results.arrays import is_number
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
# ln 1e-12 stands for ln 0 in the exponents.
_LOG_ZERO = math.log(1e-11)
_FRACTIONS = ("delta", "zeta")
_POSITIVE = ("loss_bound", "lipschitz", "stability")


@attrs.frozen
class Training:
    """Facts about the map that training iterates, in words; "" where nothing speaks against it.

    Attributes:
        other_map: Reason why the map whose SD was measured is not training's own step.
        time_dependence: Reason why the step depends on time: a schedule, a bias correction.
        stationary: Period over which training's steps are stationary.
        absorbing: Evidence on an absorbing set.
        kinks: Parts of the optimizer's update that are not twice differentiable, by name.
    """

    other_map: str = ""
    time_dependence: str = ""
    stationary: str = "nothing is known about the optimizer"
    absorbing: str = "nothing here shows one"
    kinks: tuple[str, ...] = ()


@attrs.frozen
class Facts:
    """Facts that an analysis knows about the assumptions; None where it knows nothing.

    Attributes:
        dimension: The dimension that enters the bounds: SD, or another by `facts_over` or `facts_along`.
        state_size: d.
        num_samples: n.
        kinks: Layers and activations that are not twice differentiable (ReLU, max-pooling), by name.
        clipped: Whether the optimizer clips gradients.
        unbounded_loss: Name of a loss that has no upper bound, or None.
        smallest_exponent: Smallest exponent seen; the Jacobian is singular where it is -infinity.
        dimension_name: Which dimension it is: 'SD', 'sup SD' or 'D_s'.
        dimension_reason: Reason for that choice, in words.
        local: Set over which the dimension was taken, in words: all that is known of the attractor.
        training: Facts about the map that training iterates.
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
    supremum over the attractor. The local SD at one checkpoint cannot be ordered against D_s, so it makes no
    difference which is smaller.

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
            f"{measured}, {facts.dimension:,.1f} of {facts.state_size:,}, cannot be ordered against it"
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
        if not is_number(value) or not math.isfinite(value) or value < 0:
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
        inputs: Values by name, see INPUTS and `check_inputs`; a missing one leaves its terms and the total None.
        estimated: Names of the inputs that were estimated.

    Returns:
        Both bounds, in this order.
    """
    check_inputs(inputs)
    values = {name: inputs.get(name) for name in INPUTS}
    n, loss_bound, delta = facts.num_samples, values["loss_bound"], values["delta"]
    reason = facts.dimension_reason
    if facts.training.other_map:
        reason += f"; it is not of training's own random dynamical system: {facts.training.other_map}"
    common, beta = _assumptions(facts, delta), values["stability"]
    evaluated = []
    for theorem, terms, assumptions in (
        ("Theorem 4.5", _attractor_terms(facts, values), common),
        ("Theorem B.5", _stability_terms(facts, values), (*common, *_of_stability(beta, n))),
    ):
        known = [term.value for term in terms if term.value is not None]
        total = math.fsum(known) if len(known) == len(terms) else None
        evaluated.append(
            Bound(
                theorem=theorem,
                inputs=tuple(
                    BoundInput(name, *INPUTS[name], values[name], name in estimated) for name in THEOREMS[theorem]
                ),
                terms=terms,
                partial_sum=math.fsum(known),
                total=total,
                verdict=_verdict(math.fsum(known), total, loss_bound, "loss_bound" in estimated, assumptions),
                assumptions=assumptions,
                dimension_name=facts.dimension_name,
                dimension_reason=reason,
            )
        )
    return tuple(evaluated)


_Values = Mapping[str, float | None]


def _attractor_terms(facts: Facts, values: _Values) -> tuple[BoundTerm, ...]:
    """Terms of Theorem 4.5."""
    inverse_root, loss_bound, delta = 1 / math.sqrt(facts.num_samples), values["loss_bound"], values["delta"]
    information, zeta = values["mutual_information"], values["zeta"]
    luck = None if information is None or zeta is None else information + math.log(1 / zeta)
    return (
        BoundTerm("2 L delta", _product(2, values["lipschitz"], delta)),
        BoundTerm(
            f"2 B sqrt(4 {facts.dimension_name} ln(1/delta)/n)",
            _product(2, loss_bound, _spread(facts, delta), inverse_root),
        ),
        BoundTerm("(I_inf + ln(1/zeta))/sqrt(n)", _product(luck, inverse_root)),
        BoundTerm("C B^2/sqrt(n)", _product(values["constant"], loss_bound, loss_bound, inverse_root)),
    )


def _stability_terms(facts: Facts, values: _Values) -> tuple[BoundTerm, ...]:
    """Terms of Theorem B.5."""
    loss_bound, delta, beta = values["loss_bound"], values["delta"], values["stability"]
    cube_root = None if beta is None else beta ** (1 / 3)
    return (
        BoundTerm("2 B/n", _product(2, loss_bound, 1 / facts.num_samples)),
        BoundTerm("2 delta L", _product(2, delta, values["lipschitz"])),
        BoundTerm("2 beta_n^(1/3)", _product(2, cube_root)),
        BoundTerm(
            f"2 beta_n^(1/3) B sqrt(4 {facts.dimension_name} ln(1/delta))",
            _product(2, cube_root, loss_bound, _spread(facts, delta)),
        ),
    )


def _spread(facts: Facts, delta: float | None) -> float | None:
    return None if delta is None else math.sqrt(4 * facts.dimension * math.log(1 / delta))


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
    """Assumptions of both theorems, each with the evidence for it."""
    training, lowest, loss = facts.training, facts.smallest_exponent, facts.unbounded_loss
    singular = lowest is not None and lowest < _LOG_ZERO
    finite = "" if lowest is None or singular else "; the exponents that were measured are finite"
    kinks = (*facts.kinks, *training.kinks)[:6]
    rough = f"kinks of {', '.join(kinks)}" if kinks else "gradient clipping has kinks" if facts.clipped else ""
    other = training.other_map and f"{training.other_map}; neither D_s <= SD nor the theorem is about this number"
    inside = 1 <= facts.dimension < facts.state_size
    rows = (
        (
            "unique compact random pullback attractor",
            "unknown",
            f"it exists where there is an absorbing set (Prop. 4.1): {training.absorbing}",
        ),
        ("integrability on the attractor (4.4.2)", "unknown", f"a mean over the whole attractor{finite}"),
        (
            "time-homogeneous random dynamical system",
            "fails" if training.time_dependence else "not contradicted",
            training.time_dependence or training.stationary,
        ),
        ("the dimension is of training's own step", "fails" if other else "not contradicted", other),
        (
            "1 <= j* < d",
            "holds" if inside else "fails",
            f"{facts.dimension_name} is {facts.dimension:,.1f} of {facts.state_size:,}",
        ),
        ("0 < delta < 1", *(("unknown", "delta is not given") if delta is None else ("holds", ""))),
        ("delta below delta_(n, gamma)", "unknown", "delta_(n, gamma) cannot be computed from a model"),
        (
            "twice continuously differentiable map",
            "fails" if rough else "not contradicted",
            rough or "no layer with known kinks was found",
        ),
        (
            "non-singular Jacobian",
            "fails" if singular else "unknown" if lowest is None else "not contradicted",
            "no exponent was measured" if lowest is None else f"smallest exponent of any run {lowest:.3g}",
        ),
        ("bounded distortion (eq. 13)", "unknown", "neither a checkpoint nor one trajectory can show it"),
        (
            "loss in [0, B]",
            *(("fails", f"{loss} has no upper bound") if loss else ("unknown", "the loss's range is not known here")),
        ),
        (
            "loss Lipschitz in the weights",
            "fails" if loss else "unknown",
            f"not globally for {loss} of a net of several layers"
            if loss
            else "gradients at these weights say nothing of others",
        ),
        ("SD over the whole attractor", "unknown", facts.local),
    )
    return tuple(Assumption(*row) for row in rows)


def _of_stability(beta: float | None, n: int) -> tuple[Assumption, ...]:
    """Assumptions of Theorem B.5 beside the common ones."""
    stability, divisor = "beta_n-stable training", "beta_n^(-2/3) an integer divisor of n"
    expectation = Assumption("expectation over data sets", "unknown", "one data set was seen; the terms are its sample")
    if beta is None:
        unknown = "beta_n is not given"
        return Assumption(stability, "unknown", unknown), Assumption(divisor, "unknown", unknown), expectation
    blocks = beta ** (-2 / 3)
    whole = round(blocks)
    # beta_n is typed with a few digits.
    holds = whole >= 1 and abs(blocks - whole) < 1e-3 * blocks and n % whole == 0
    return (
        Assumption(stability, "unknown", "beta_n is an input; nothing here measures it"),
        Assumption(divisor, "holds" if holds else "fails", f"beta_n^(-2/3) = {blocks:.6g}, n = {n:,}"),
        expectation,
    )
