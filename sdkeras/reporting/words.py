"""Sentences of the reports, for somebody who knows Keras and has not read the paper."""

from __future__ import annotations

import math

from sdkeras.dimension.exponents import FULL, PRECONDITIONED
from sdkeras.dimension.next_steps import MOST_ROOM
from sdkeras.dimension.noise_limit import NoiseLimit
from sdkeras.dimension.stability import EDGE, settled_at
from sdkeras.errors import counted
from sdkeras.reporting.numbers import dimension, estimated, measured, number, share_of_state, undetermined, with_error
from sdkeras.results.answers import Analysis
from sdkeras.results.dimension import EdgeOfStability, SharpnessDimension, Supremum
from sdkeras.results.lyapunov import LyapunovSummary

CODIMENSION = "what SD leaves of the state; neutral directions, which steps hardly change, do not affect it"
BOUND_INPUTS = "Give inputs with `bound_inputs={'NAME': VALUE}`, or estimate them with `estimate_bound_inputs=True`."


def edge_in_words(edge: EdgeOfStability, noise: NoiseLimit | None = None) -> str:
    """The ratio of sharpness and threshold, for somebody who trains.

    `noise`: the limit of minibatch noise, where it may set in before full-batch steps grow.
    """
    if edge.ratio is None or not math.isfinite(edge.ratio):
        return (
            "Every optimizer has a steepest curvature that it can follow at its learning rate; beyond it steps "
            "overshoot and grow. Here the two could not be compared."
        )
    meaning = (
        "Sharpness is the steepest upward curvature of the loss at these weights, the algebraically largest "
        "eigenvalue. Every optimizer has a steepest curvature that it can follow at its learning rate, the threshold; "
        "beyond it steps overshoot and grow. "
    )
    if edge.ratio <= 0:
        return meaning + "Here nothing curves upwards, so no step overshoots."
    if edge.ratio < EDGE[0]:
        room = f"about {number(1 / edge.ratio, 2)}"
        if edge.ratio < 0.1:
            room = f"about {1 / edge.ratio:,.0f}" if edge.ratio * MOST_ROOM >= 1 else f"more than {MOST_ROOM:g}"
        words = (
            f"Here there is room: the learning rate could be {room} times as large before full-batch steps "
            "began to grow, if the sharpness stayed as it is"
        )
        if noise is not None:
            words += "; the noise of minibatches " + (
                "may set in earlier, which is not known here (headroom)"
                if noise.between
                else "sets in earlier (headroom)"
            )
        words += "."
        plateau = settled_at(edge)
        if plateau is not None:
            words += (
                " Minibatches leave none: curvature along their own gradients, the batch sharpness, is where momentum "
                f"in {plateau.minibatches} minibatches is reported to settle, {plateau.formula}."
            )
        return meaning + words
    if edge.ratio <= EDGE[1]:
        return meaning + (
            "Training sits at that limit, where full-batch training is often found: how sharp a minimum can be is "
            "decided by the learning rate and not by the loss alone."
        )
    return meaning + (
        "Here the steepest direction is beyond it. With minibatches or adaptive steps training can live there for a "
        "while; with full-batch steps the loss would rise along this direction until the sharpness falls, or diverge."
    )


def is_limited(run: Analysis) -> bool:
    """Whether a limit on products or time has left something out, or ended runs."""
    return any(warning.code in ("budget-ended", "not-measured") for warning in run.warnings)


def known_in_words(run: Analysis) -> str:
    """Numbers of the loss that do not need the sharpness dimension; "" where there are none."""
    edge = run.edge_of_stability
    known = []
    for label, estimate in (("largest eigenvalue", run.hessian.largest), ("trace", run.hessian.trace)):
        if estimate is not None:
            value, evidence = measured(estimate)
            known.append(f"{label} {value}" + (f" ({evidence})" if evidence else ""))
    if edge.batch_sharpness is not None and edge.batch_sharpness_stderr is not None:
        known.append(f"batch sharpness {with_error(edge.batch_sharpness, edge.batch_sharpness_stderr)}")
    return ", ".join(known)


def dimension_in_words(run: Analysis) -> str | None:
    """The sharpness dimension of this run; None where there is none."""
    estimate = run.sharpness_dimension
    if estimate is None:
        return None
    if estimate.interval is None:
        return (
            f"It is not determined: {undetermined(estimate.num_runs, is_limited(run))} for an interval, and a value "
            "without one says nothing. Give a larger budget of Hessian-vector products or of time."
        )
    size, value, codimension = estimate.state_size, estimate.value, estimate.codimension
    if not (math.isfinite(value) and math.isfinite(codimension)):
        return None
    if value <= 0:
        return (
            f"On average a training step from here contracts distances in all {size:,} directions: SD is 0. Were it so "
            "everywhere that training goes, its attractor would be a point."
        )
    if codimension <= 0:
        return (
            f"On average a training step from here contracts volumes of no dimension, up to all {size:,}: SD is at its "
            "upper bound and distinguishes nothing."
        )
    whole = estimate.map == FULL and size > run.model.num_trainable_analysed
    state, remark = _state_in_words(estimate, run.model.num_trainable_analysed)
    words = (
        f"{state} can move in {size:,} directions, and a training step stretches or contracts small distances along "
        "each. The sharpness dimension (SD) is the largest dimension whose volumes such steps do not contract on "
        f"average, here {dimension(value)}. Contracting directions count in it until the expansion of the others is "
        f"used up. {remark}"
    )
    neutral = estimate.neutral_mass
    if neutral is not None and neutral > 0:
        most = "Most of the dimension is not chaos but flatness: " if neutral > 0.5 * value else ""
        words += (
            f"{most}{dimension(neutral)} directions are neutral, that is, a step hardly changes distances along them. "
        )
    if estimate.map in PRECONDITIONED:
        words += (
            f"SD is that of a step with the second moments of {run.optimizer.name} frozen as the last step left them. "
            "Training keeps changing them, so this SD does not describe training itself. "
        )
    if whole:
        return words
    return words + (
        "The bounds on the generalization gap grow with SD, so it can rank trainings on the same data; at one "
        "checkpoint it bounds nothing by itself."
    )


def _state_in_words(estimate: SharpnessDimension, weights: int) -> tuple[str, str]:
    """The name of the state, and its codimension."""
    size, value = estimate.state_size, estimate.value
    codimension = estimated(estimate.codimension, estimate.codimension_interval)
    lead = f"The rest, the codimension, is {codimension}, {share_of_state(estimate)} of the state"
    if size <= weights:
        return "The weights", f"{lead}; neutral directions and dead parameters do not affect it. "
    if estimate.map == FULL:
        return (
            f"The state of this training, {weights:,} weights and {size - weights:,} entries of the optimizer's slots,",
            f"{lead}; running averages contract whatever the loss is. Weights and slots have different units, and "
            f"these values are for one choice of them ({estimate.coordinates}): compare them only with runs in the "
            "same coordinates. ",
        )
    return (
        "The state of this training, weights and the optimizer's velocity,",
        "Momentum damps the velocity's directions whatever the loss is: on a flat loss SD would be the number of "
        f"weights, {weights:,} (less with weight decay); here it is {dimension(abs(weights - value))} "
        f"{'below' if value < weights else 'above'} that. {lead}. ",
    )


def trust_in_words(run: Analysis) -> str:
    """Whether the numbers may be believed, and why."""
    check = run.verification
    if not check.passed:
        return (
            "The Hessian-vector products failed their check against finite differences of the gradient: no number "
            "here can be trusted."
        )
    words = (
        "Everything here is computed from Hessian-vector products (HVPs). They agree with finite differences of the "
        f"gradient to {check.finite_difference_error:.1e} (in {check.finite_difference_dtype}); rounding costs "
        f"{check.hvp_relative_error:.1e}. "
    )
    estimate = run.sharpness_dimension
    if estimate is not None and estimate.interval is not None:
        words += f"The 95 % interval of SD rests on {runs_in_words(estimate)}. "
    return words + f"{run.provenance.num_hvps:,} HVPs were made in all."


def runs_in_words(estimate: SharpnessDimension) -> str:
    """How many runs an estimate rests on, and of how many steps."""
    runs, sampled = f"{counted(estimate.num_runs, 'run')} on single minibatches", estimate.sampled
    steps = estimate.num_steps
    if steps is None:
        return runs
    if sampled is None or not 0 < sampled.num_audits < estimate.num_runs:
        return f"{runs}, of {steps} steps each"
    return f"{runs} ({sampled.num_audits:,} of them take {steps} steps, the others {sampled.num_steps})"


def trajectory_in_words(summary: LyapunovSummary) -> str:
    """The verdict of the leading exponent on the training, in one sentence."""
    first = number(float(summary.values[0]), 3)
    per_step = f"ell_1 = {first} per step"
    if summary.stopped_at is not None:
        return f"The training diverged: NaN or infinity at step {summary.stopped_at:,} from here."
    if summary.dimension.status == "undetermined":
        return f"No verdict on the trajectory: {summary.dimension.reason}."
    if summary.values[0] < 0:
        return f"The training settles: nearby trajectories come together ({per_step})."
    return f"The training wanders: nearby trajectories come apart ({per_step})."


def attractor_in_words(summary: LyapunovSummary, after_verdict: bool = False) -> str:
    """The meaning of D_s, and how far it is known, unless `trajectory_in_words` has said that already."""
    meaning = (
        "Two copies of this training, a hair apart and fed the same minibatches, come apart or together by the factor "
        "exp(ell_1) a step; sums of the leading exponents say the same of areas, volumes and so on. D_s is the "
        "dimension at which volumes stop growing: under the paper's assumptions, which one trajectory cannot show, an "
        "upper bound for the dimension of what training wanders on. "
    )
    answer = summary.dimension
    if answer.status == "determined" and answer.value == 0:
        return meaning + "Here everything contracts: copies end in the same place, and D_s is 0."
    if answer.status == "determined":
        return meaning + "It is free of the units of weights and velocities."
    if after_verdict and answer.status == "undetermined":
        return meaning
    return meaning + f"Here it is not known exactly: {answer.reason}."


def since_then(run: Analysis) -> str | None:
    """The codimension then and now, in one line; None where none are comparable."""
    now = run.sharpness_dimension
    if now is None or now.interval is None:
        return None
    known = [(each.codimension, each.when) for each in (run.at_init, run.earlier) if each is not None]
    then = [f"{estimated(at.value, at.interval)} {when}" for at, when in known if at is not None and at.interval]
    if not then:
        return None
    return f"Codimension {', '.join(then)}, now {estimated(now.codimension, now.codimension_interval)}."


def supremum_headline(supremum: Supremum) -> str:
    """The supremum in one line, beside the value at the checkpoint."""
    about = "approximately " if supremum.approximate else ""
    if supremum.interval is None:
        why = undetermined(supremum.num_minibatches, False, "minibatch")
        return f"Supremum over {supremum.num_snapshots:,} snapshots of training: not determined ({why})."
    return (
        f"Supremum over {supremum.num_snapshots:,} snapshots of training: {about}"
        f"{estimated(supremum.value, supremum.interval)}; at the checkpoint alone, computed the same way, "
        f"{dimension(supremum.single_point_value)}."
    )


def supremum_in_words(supremum: Supremum) -> str:
    """The meaning of the supremum, and how far it may be believed."""
    words = (
        f"Training went on from the checkpoint, on a copy, for {supremum.steps[-1]:,} steps of its own optimizer. For "
        f"each minibatch and each direction the strongest stretching among the {supremum.num_snapshots:,} snapshots "
        "was kept, and only then averaged: the sharpness dimension of the definition, with these snapshots in place "
        "of the attractor. More snapshots can only raise it, so it is a lower bound. "
    )
    if supremum.num_snapshots < 2:
        words = "Only the checkpoint itself was reached, so this is the value at one point. "
    else:
        raised = supremum.value - supremum.single_point_value
        words += (
            f"It lies {dimension(raised)} above the checkpoint's own. "
            if raised >= 0.05  # what a tenth shows
            else "It hardly differs from the checkpoint's own: the spectrum does not move along these steps. "
        )
    if supremum.approximate:
        words += (
            "It is approximate: each spectrum is a quadrature with errors of its own, and the largest of several such "
            "numbers lies too high on average. Exact spectra (`exact=True`) are free of that."
        )
    return words.strip()
