"""Steps and cost of an analysis or a trajectory, from one timed gradient."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import attrs
import numpy as np

from sdkeras.estimators.select import capabilities
from sdkeras.linalg.memory import peak_memory, used_memory
from sdkeras.operators import controls, linearized, lockstep, verification
from sdkeras.operators.batch_loss import Batch
from sdkeras.operators.hessian import BLOCK_BYTES
from sdkeras.operators.loss import EmpiricalLoss
from sdkeras.results.plans import LyapunovPlan, Plan
from sdkeras.runs import measure
from sdkeras.runs.beside import cost_of_eigenvalues
from sdkeras.runs.budget import KEPT, Resources, room_to_verify
from sdkeras.runs.edge import cost_of_edge, first_minibatches, num_minibatches
from sdkeras.runs.layers import cost_of_layers
from sdkeras.runs.lyapunov_options import LyapunovOptions
from sdkeras.runs.mean_square import cost_of_mean_square
from sdkeras.runs.problem import Problem
from sdkeras.runs.provenance import data_info, device_name
from sdkeras.runs.snapshots import NUM_PROBES, cost_of_at_init
from sdkeras.training_step.map import state_size

# Gradients that a Hessian-vector product takes about: measured 1.4-2.4 for whole ones, 1.0-1.9 for linearised ones and
# up to 2.4 in two threads, 0.3-0.9 for one of a group in lockstep.
_PER_PRODUCT, _PER_LINEARISED, _PER_ROW = 2.2, 1.8, 0.8
# What goes on around a product, in seconds, and for each weight: NumPy in and out, and a step of Lanczos.
_AROUND, _AROUND_A_WEIGHT = 5e-4, 8e-9
# Times that tracing a gradient and its first call take for the other graphs. Measured for dense and convolutional nets
# and an unrolled GRU and LSTM: a product 1.9-2.8, with while loops 6.2, its linearised parts 1.7-2.6, the float64 clone
# 1.3-1.8, products in lockstep 6.0-8.1; loss and losses of single examples 0.3-0.6 each.
_PRODUCT, _LOOPS, _PARTS, _CLONE, _ROWS, _CONTROLS = 2.2, 6.2, 2.1, 1.6, 6.5, 0.5
# Gradients that the checks of the products make, most of them in float64.
_DIFFERENCES = 30
# Products that the checks of the Hessian-vector products make, and those of the step's map.
_CHECKS, _STEP_CHECKS = 10, 20
# Of a product and what goes on around it, beside the weights and the bases; and bytes that compiling takes, in all and
# for each operation of the gradient (measured: 15 MB for a dense net of 124, 500 MB for decoders of some 5,000).
_WORKING_VECTORS, _COMPILED, _OF_AN_OPERATION = 9, 5e7, 1e5
# What a linearised batch holds beside the weights' pieces, in activations of a gradient (measured: 0.1 for dense nets,
# 0.7 for convolutions, 1.7 for a transformer).
_HELD = 2
# Seconds after which gradients side by side are not timed once more.
_ENOUGH = 1.0
# Size of the matrix whose singular values are timed; the time grows like the cube.
_TIMED_SIZE = 200


@attrs.frozen
class _Costs:
    """Products of an analysis as its measurements state them.

    Attributes:
        total: All of them.
        data: Those with batches of the data-set Hessian.
        pilot: Those of the runs to start with, at every snapshot.
        required: Those that are made whatever the limit.
        count: Runs of the first spectrum estimator to start with, of `per_run` products each.
        copies: How often each minibatch of these is measured: once, or at every snapshot.
    """

    total: int
    data: int
    pilot: int
    required: int
    count: int
    per_run: int
    copies: int


def _costs(problem: Problem, size: int, step: bool) -> _Costs:
    """The costs for an operator of this size as the spectrum estimators see it, with or without a training step."""
    options, samplings = problem.options, [measure.sampling(problem, n) for n in problem.estimators.spectrum]
    if problem.rate is None and not problem.is_full:  # one spectrum alone
        samplings = samplings[:1]
    per_run = [measure.cost_of_run(sampling, size, 2 if problem.is_full else 1) for sampling in samplings]
    minibatches = controls.frame(problem.loss)
    counts = [sampling.fixed_runs or minibatches.pilot(sampling.min_runs) for sampling in samplings]
    copies = options.snapshots or 1 if problem.maps_spectra else 1
    minibatches_of_edge = first_minibatches(problem.loss, num_minibatches(options.max_hvps))
    before = measure.cost_of_extremes(problem) + measure.cost_of_trace(problem) + cost_of_edge(problem)
    of_mean_square = cost_of_mean_square(problem)
    data = before - minibatches_of_edge
    before += of_mean_square
    others = len(options.operator)
    checks = _CHECKS * (1 + others) + _STEP_CHECKS * step
    # A run that the budget has no room for is made all the same, unless it is an exact one.
    fewest = 0 if samplings[0].exact else 1
    required, limit = checks + fewest * per_run[0], options.max_hvps
    if limit is not None:
        left = max(0, limit - checks)
        before = min(before, int(left * (1 - KEPT)), max(0, left - fewest * per_run[0]))
        stages = len(samplings) - 1 + copies + options.per_layer + options.at_init + (options.lyapunov is not None)
        stages += others
        shares = [max(fewest, (left - before) // (stages * products)) for products in per_run]
        counts = [min(pair) for pair in zip(counts, shares, strict=True)]
    first, *later = (count * products for count, products in zip(counts, per_run, strict=True))
    probes = NUM_PROBES if copies > 1 and not samplings[0].exact else 1
    pilot = copies * probes * first + sum(later) + others * first
    beside = others * cost_of_eigenvalues(problem)
    total, data = checks + before + pilot + beside, data + beside
    if options.per_layer:
        of_layers = cost_of_layers(problem, first)
        total, data = total + of_layers, data + of_layers - (first if problem.maps_spectra else 0)
    if options.at_init:
        of_init = cost_of_at_init(problem)
        total, data = total + of_init, data + measure.cost_of_extremes(problem)
    if options.lyapunov is not None:
        total += options.lyapunov * (options.lyapunov_steps + options.lyapunov_transient)
    if limit is not None:
        total = min(total, max(limit, required))
    return _Costs(total, min(data, total), pilot, required, counts[0], per_run[0], copies)


def products_planned(problem: Problem, size: int, step: bool) -> int:
    """Products of an analysis in all, of which those of runs beyond the first ones are not known."""
    return _costs(problem, size, step).total


def planned(problem: Problem, resources: Resources, training_steps: int, reading: float = 0.0) -> Plan:
    """The plan of an analysis that takes or differentiates this many steps of training.

    Runs the gradients of a minibatch and of a batch of the data-set Hessian a dozen times each and nothing else;
    `reading` are the seconds that reading the problem took.
    """
    options, loss = problem.options, problem.loss
    gradient, activations, first_call = timed_gradient(loss, loss.minibatch(0))
    full, mapped, size = problem.is_full, problem.rate is not None, loss.size
    state = size * (problem.exponents.branches if mapped else 1)
    if full:
        state = state_size(loss, problem.training_optimizer()[0])
        resources = attrs.evolve(resources, size=state, bases=2)
    costs = _costs(problem, state if full else size, training_steps > 0)
    first = measure.sampling(problem, problem.estimators.spectrum[0])
    steps = None if first.num_steps is None else min(first.num_steps, resources.size)
    is_linearised = options.product_mode == "linearized" or (
        options.product_mode == "auto"
        and not loss.gradients.fixed
        and linearized.is_worth_trying(size, loss.minibatch(0))
    )
    single = _PER_LINEARISED if is_linearised else _PER_PRODUCT
    rows = _rows(problem, resources, costs, steps or 1, state if full else size)
    grouped = _rows_of_data(problem, resources)
    workers = max(1, resources.workers)
    of_data = of_run = gradient if workers == 1 else _side_by_side(loss, loss.minibatch(0), workers)
    if loss.batches[0].num_examples != loss.source.batch_size:
        engine = loss.gradients
        engine.gradient(engine.point, loss.batches[0])  # compiled, where that is done for each size
        of_data = _side_by_side(loss, loss.batches[0], min(workers, len(loss.batches)))
    # Long vectors are bound by memory, which threads share, as are linearised batches beyond what the cache holds.
    around = _AROUND / workers + _AROUND_A_WEIGHT * size
    per_run = of_run * (_PER_ROW if rows > 1 else single) + around
    of_pass = single if len(loss.batches) == 1 else _PER_PRODUCT
    per_pass = of_data * (_PER_ROW if grouped > 1 else of_pass) + around
    cloned = loss.dtype == np.float32 and not verification.no_room(
        size, room_to_verify(options.memory_gb, loss.devices)
    )
    product = _LOOPS if loss.gradients.has_operation(("While", "StatelessWhile")) else _PRODUCT
    graphs = product + _PARTS * is_linearised + _CLONE * cloned + _ROWS * (rows > 1 or grouped > 1)
    of_an_operator = (loss.gradients.seconds + first_call) * graphs + _DIFFERENCES * of_data
    before = reading + (loss.gradients.seconds + first_call) * _CONTROLS + (1 + len(options.operator)) * of_an_operator
    seconds = before + per_pass * costs.data + per_run * (costs.total - costs.data) + gradient * training_steps
    if options.time_limit is not None:
        seconds = min(seconds, max(options.time_limit, before + per_run * costs.required))
    # Weights of each snapshot, P^-1/2 where there is one, and the spectra of all minibatches.
    scaled = 8 if problem.scaling is not None else 0
    kept = (costs.copies - 1) * size * (resources.itemsize + scaled)
    if costs.copies > 1:
        kept += costs.copies * costs.count * 16 * costs.per_run
    if steps is None:
        basis = resources.dense_bytes() * resources.workers_for(exact=first.exact)
    else:
        basis = resources.resident_bytes(steps) * resources.workers * rows
    held = 0.0
    if is_linearised:
        batches = len(loss.batches) * (len(loss.batches) > 1) + resources.workers
        held = min(resources.held, batches * (_HELD * activations + size * resources.itemsize))
    together, compiled = max(rows, grouped), _COMPILED + _OF_AN_OPERATION * loss.gradients.num_operations
    working = (
        basis + held + resources.workers * together * (3 * activations + _WORKING_VECTORS * size * resources.itemsize)
    )
    if cloned:
        working = max(working, verification.clone_bytes(size))
    elsewhere = loss.devices.memory() is not None
    return Plan(
        num_parameters=size,
        state_size=state,
        map=options.map if full else problem.exponents.name if mapped else "none",
        num_batches=len(loss.batches),
        num_runs=costs.count,
        num_steps=steps,
        num_hvps=costs.total,
        num_hvps_pilot=costs.pilot,
        num_hvps_most=options.max_hvps,
        num_hvps_runs_most=_most_of_runs(problem, costs),
        num_minibatches=first_minibatches(loss, num_minibatches(options.max_hvps)),
        num_minibatches_most=num_minibatches(options.max_hvps),
        peak_memory=int(max(peak_memory(), used_memory() + compiled + (0 if elsewhere else kept + working))),
        device=device_name(loss.devices),
        device_memory=int(kept + working / resources.workers) if elsewhere else None,
        seconds=seconds,
        seconds_per_gradient=gradient,
        num_snapshots=options.snapshots if mapped else None,
        every=options.every if mapped else None,
        preset=options.preset_words,
        held_fixed=problem.held_fixed,
        optimizer=problem.optimizer_info(),
        data=data_info(loss),
    )


def _most_of_runs(problem: Problem, costs: _Costs) -> int | None:
    """Products that the runs may take: those to start with where their number is given, or what a limit leaves."""
    options = problem.options
    is_adaptive = problem.rate is not None or problem.is_full
    if not (is_adaptive and any(measure.sampling(problem, n).fixed_runs is None for n in problem.estimators.spectrum)):
        return costs.pilot
    return None if options.max_hvps is None else max(costs.pilot, options.max_hvps - (costs.total - costs.pilot))


def planned_trajectory(loss: EmpiricalLoss, size: int, settings: LyapunovOptions) -> LyapunovPlan:
    """The plan of a trajectory with a state of this size; runs one gradient four times and nothing else.

    Raises:
        SdkerasError: More exponents than the state has.
    """
    settings.check_exponents(size, loss.size)
    gradient, activations, _ = timed_gradient(loss, loss.minibatch(0))
    count, itemsize = settings.exponents_of(size), loss.dtype.itemsize
    per_step = size if settings.windows else count
    of_steps = settings.transient * count + settings.num_steps * per_step
    products = _CHECKS + _STEP_CHECKS + settings.num_followed * of_steps
    seconds = products * gradient * _PER_PRODUCT
    # Each step once for SD, each window once, and the determinants.
    matrices = sum(settings.num_steps // m for m in settings.windows) + len(settings.windows[1:]) * settings.num_steps
    if settings.windows:
        seconds += matrices * _seconds_of_singular_values(size)
    memory = peak_memory() + 3 * (activations + loss.size * itemsize) + 4 * size * per_step * itemsize
    if settings.forks > 1:  # ln R_ii of every step, and their sums
        memory += 4 * settings.num_followed * settings.num_steps * count * 8
    return LyapunovPlan(
        num_parameters=loss.size,
        state_size=size,
        num_exponents=count,
        num_steps=settings.num_steps,
        transient=settings.transient,
        windows=settings.windows,
        forks=settings.forks,
        num_hvps=products,
        peak_memory=int(memory + settings.dense_bytes(size, itemsize)),
        seconds=seconds,
        seconds_per_gradient=gradient,
    )


def _seconds_of_singular_values(size: int) -> float:
    """Estimated for a dense matrix of this size from a smaller one."""
    timed = min(size, _TIMED_SIZE)
    matrix = np.random.default_rng(0).standard_normal((timed, timed))
    start = time.perf_counter()
    np.linalg.svd(matrix, compute_uv=False)
    return (time.perf_counter() - start) * (size / timed) ** 3


def _rows(problem: Problem, resources: Resources, costs: _Costs, steps: int, size: int) -> int:
    """Runs in lockstep in each thread, of the first spectrum estimator."""
    can = capabilities(measure.sampling(problem, problem.estimators.spectrum[0]).estimator)
    if not can.many or problem.is_full:
        return 1
    room, products = resources.memory / resources.workers, costs.count * costs.per_run
    return _together(problem, products, room, min(steps, size))


def _rows_of_data(problem: Problem, resources: Resources) -> int:
    """Batches of the data-set Hessian that are multiplied together."""
    count = len(problem.loss.batches)
    return min(count, _together(problem, lockstep.USUAL_PRODUCTS * count, BLOCK_BYTES / resources.workers, 2))


def _together(problem: Problem, products: int, memory: float, vectors: int) -> int:
    if problem.options.product_mode in ("forward-over-reverse", "finite-differences"):
        return 1
    loss = problem.loss
    return lockstep.group_size(loss.gradients, loss.source.batch_size, products, memory=memory, vectors=vectors)


def _side_by_side(loss: EmpiricalLoss, batch: Batch, workers: int) -> float:
    """Seconds that each of many gradients takes in so many threads, which TensorFlow's own may slow down."""
    engine, best, began = loss.gradients, np.inf, time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        for _ in range(3):
            start = time.perf_counter()
            if start - began > _ENOUGH:
                break
            for gradient in pool.map(lambda _: engine.gradient(engine.point, batch), range(2 * workers)):
                gradient.numpy()
            best = min(best, (time.perf_counter() - start) / (2 * workers))
    return float(best)


def timed_gradient(loss: EmpiricalLoss, batch: Batch) -> tuple[float, int, float]:
    """Seconds of a batch's gradient, bytes that it took beside vectors of the weights' length, and its first call."""
    engine, before, start = loss.gradients, peak_memory(), time.perf_counter()
    engine.gradient(engine.point, batch).numpy()
    first = time.perf_counter() - start
    times = []
    for _ in range(3):
        start = time.perf_counter()
        engine.gradient(engine.point, batch).numpy()
        times.append(time.perf_counter() - start)
    vectors = 3 * loss.size * loss.dtype.itemsize  # the weights' pieces, the gradient's, and the gradient
    return min(times), max(0, peak_memory() - before - vectors), first
