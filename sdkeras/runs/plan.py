"""Steps and cost of an analysis or a trajectory, from one timed gradient."""

from __future__ import annotations

import time

import attrs
import numpy as np

from sdkeras.linalg.memory import memory_limit, peak_memory, used_memory
from sdkeras.operators import verification
from sdkeras.operators.loss import EmpiricalLoss
from sdkeras.results.plans import LyapunovPlan, Plan
from sdkeras.runs import measure
from sdkeras.runs.budget import KEPT, Resources
from sdkeras.runs.edge import cost_of_edge
from sdkeras.runs.layers import cost_of_layers
from sdkeras.runs.options import LyapunovOptions
from sdkeras.runs.problem import Problem
from sdkeras.runs.provenance import data_info
from sdkeras.training_step.map import state_size

# A Hessian-vector product takes about this many gradients (1.5-2.8 measured).
_GRADIENTS_PER_PRODUCT = 2.5
# Products that the checks of the Hessian-vector products make, and those of the step's map.
_CHECKS, _STEP_CHECKS = 10, 20
# Of a product and what goes on around it, beside the weights and the bases; and bytes that compiling it takes (measured
# with a decoder of 8 and 40 million parameters).
_WORKING_VECTORS, _COMPILED = 9, 5e8
# Size of the matrix whose singular values are timed; the time grows like the cube.
_TIMED_SIZE = 200


@attrs.frozen
class _Costs:
    """Products of an analysis as its measurements state them.

    Attributes:
        total: All of them.
        pilot: Those of the runs to start with, at every snapshot.
        required: Those that are made whatever the limit.
        count: Runs of the first spectrum estimator to start with, of `per_run` products each.
        copies: How often each minibatch of these is measured: once, or at every snapshot.
    """

    total: int
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
    counts = [sampling.fixed_runs or sampling.min_runs for sampling in samplings]
    copies = options.snapshots or 1 if problem.maps_spectra else 1
    before = measure.cost_of_extremes(problem) + measure.cost_of_trace(problem) + cost_of_edge(problem)
    checks = _CHECKS + _STEP_CHECKS * step
    # A run that the budget has no room for is made all the same, unless it is an exact one.
    fewest = 0 if samplings[0].exact else 1
    required, limit = checks + fewest * per_run[0], options.max_hvps
    if limit is not None:
        left = max(0, limit - checks)
        before = min(before, int(left * (1 - KEPT)), max(0, left - fewest * per_run[0]))
        stages = len(samplings) - 1 + copies + options.per_layer + (options.lyapunov is not None)
        shares = [max(fewest, (left - before) // (stages * products)) for products in per_run]
        counts = [min(pair) for pair in zip(counts, shares, strict=True)]
    first, *others = (count * products for count, products in zip(counts, per_run, strict=True))
    pilot = copies * first + sum(others)
    total = checks + before + pilot + (cost_of_layers(problem, first) if options.per_layer else 0)
    if options.lyapunov is not None:
        total += options.lyapunov * (options.lyapunov_steps + options.lyapunov_transient)
    if limit is not None:
        total = min(total, max(limit, required))
    return _Costs(total, pilot, required, counts[0], per_run[0], copies)


def planned(problem: Problem, resources: Resources, training_steps: int) -> Plan:
    """The plan of an analysis that takes or differentiates this many steps of training.

    Runs one gradient four times and nothing else.
    """
    options, loss = problem.options, problem.loss
    gradient, activations = timed_gradient(loss)
    full, mapped, size = problem.is_full, problem.rate is not None, loss.size
    state = size * (problem.exponents.branches if mapped else 1)
    if full:
        state = state_size(loss, problem.training_optimizer()[0])
        resources = attrs.evolve(resources, size=state, bases=2)
    costs = _costs(problem, state if full else size, training_steps > 0)
    first = measure.sampling(problem, problem.estimators.spectrum[0])
    steps = None if first.num_steps is None else min(first.num_steps, resources.size)
    per_product = gradient * _GRADIENTS_PER_PRODUCT / max(1, resources.workers)
    seconds = per_product * costs.total + gradient * training_steps
    if options.time_limit is not None:
        seconds = min(seconds, max(options.time_limit, per_product * costs.required))
    # Weights of each snapshot, P^-1/2 where there is one, and the spectra of all minibatches.
    scaled = 8 if problem.scaling is not None else 0
    kept = (costs.copies - 1) * size * (resources.itemsize + scaled)
    if costs.copies > 1:
        kept += costs.copies * costs.count * 16 * costs.per_run
    if steps is None:
        basis = resources.dense_bytes() * resources.workers_for(exact=first.exact)
    else:
        basis = resources.basis_bytes(steps if resources.fits(steps) else 4) * resources.workers
    working = basis + resources.workers * (3 * activations + _WORKING_VECTORS * size * resources.itemsize)
    if loss.dtype == np.float32 and not verification.no_room(size, memory_limit(options.memory_gb)):
        working = max(working, verification.clone_bytes(size))
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
        peak_memory=int(max(peak_memory(), used_memory() + _COMPILED + kept + working)),
        seconds=seconds,
        seconds_per_gradient=gradient,
        num_snapshots=options.snapshots if mapped else None,
        every=options.every if mapped else None,
        optimizer=problem.optimizer_info(),
        data=data_info(loss.source, loss.num_examples),
    )


def planned_trajectory(loss: EmpiricalLoss, size: int, settings: LyapunovOptions) -> LyapunovPlan:
    """The plan of a trajectory with a state of this size; runs one gradient four times and nothing else.

    Raises:
        SdkerasError: More exponents than the state has.
    """
    settings.check_exponents(size, loss.size)
    gradient, activations = timed_gradient(loss)
    count, itemsize = settings.exponents_of(size), loss.dtype.itemsize
    per_step = size if settings.windows else count
    products = _CHECKS + _STEP_CHECKS + settings.transient * count + settings.num_steps * per_step
    seconds = products * gradient * _GRADIENTS_PER_PRODUCT
    # Each step once for SD, each window once, and the determinants.
    matrices = sum(settings.num_steps // m for m in settings.windows) + len(settings.windows[1:]) * settings.num_steps
    if settings.windows:
        seconds += matrices * _seconds_of_singular_values(size)
    memory = peak_memory() + 3 * (activations + loss.size * itemsize) + 4 * size * per_step * itemsize
    return LyapunovPlan(
        num_parameters=loss.size,
        state_size=size,
        num_exponents=count,
        num_steps=settings.num_steps,
        transient=settings.transient,
        windows=settings.windows,
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


def timed_gradient(loss: EmpiricalLoss) -> tuple[float, int]:
    """Seconds of a minibatch's gradient, and bytes that it took beside vectors of the weights' length."""
    engine, batch = loss.gradients, loss.minibatch(0)
    before = peak_memory()
    engine.gradient(engine.point, batch).numpy()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        engine.gradient(engine.point, batch).numpy()
        times.append(time.perf_counter() - start)
    vectors = 3 * loss.size * loss.dtype.itemsize  # the weights' pieces, the gradient's, and the gradient
    return min(times), max(0, peak_memory() - before - vectors)
