"""What an analysis, or a trajectory, would do and cost, from one timed gradient."""

from __future__ import annotations

import time

import attrs
import numpy as np

from sdkeras.dimension.sampling import AdaptiveSettings
from sdkeras.estimators import registry
from sdkeras.estimators.select import Chosen
from sdkeras.linalg.memory import memory_limit, peak_memory, used_memory
from sdkeras.operators import verification
from sdkeras.operators.loss import EmpiricalLoss
from sdkeras.results.plans import LyapunovPlan, Plan
from sdkeras.runs import problem
from sdkeras.runs.budget import KEPT, Resources
from sdkeras.runs.edge import expected_minibatches
from sdkeras.runs.lyapunov_settings import LyapunovSettings
from sdkeras.runs.problem import Subject
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


def planned(subject: Subject, estimators: Chosen, resources: Resources) -> Plan:
    """The plan of an analysis; runs one gradient four times and nothing else."""
    options, loss, workers = subject.options, subject.loss, resources.workers
    gradient, activations = timed_gradient(loss)
    name = estimators.spectrum[0]
    num_batches, size, min_runs = len(loss.batches), loss.size, AdaptiveSettings().min_runs
    full = options.map == "full"
    mapped = subject.rate is not None
    state = _full_state(subject) if full else subject.exponents.branches * size if mapped else size
    source = state if full else size  # of what the estimator sees
    resources = attrs.evolve(resources, size=source, bases=2 if full else 1)
    steps: int | None = None
    can = estimators.can(name)
    if can.steps is not None:
        default = attrs.fields_dict(registry.get_estimator(estimators.kind, name))[can.steps].default
        steps = min(int(options.settings.get(name, {}).get(can.steps, default)), source)
    runs = (options.exact_minibatches if can.exact else options.runs) or min_runs
    per_run = source if steps is None else resources.bases * steps
    # Eigenpairs and trace take about 40 + 32 on every batch, unless they are held to fewer.
    pairs = min(40, int(options.settings.get(estimators.eigenpairs, {}).get("num_steps", 40)))
    probes = min(32, int(options.settings.get(estimators.trace, {}).get("num_probes", 32)))
    before = (pairs * (1 if subject.scaling is None else 2) + probes) * num_batches
    before += expected_minibatches(options.max_hvps, options.tolerance)
    # A run that the budget has no room for is made all the same, unless it is a dense one.
    fewest, required = (0, _CHECKS) if can.exact else (1, _CHECKS + per_run)
    if options.max_hvps is not None:
        left = max(0, options.max_hvps - _CHECKS)
        before = min(before, int(left * (1 - KEPT)), max(0, left - fewest * per_run))
        stages = len(estimators.spectrum) - 1 + (options.snapshots or 1)
        stages += options.per_layer + (options.lyapunov is not None)
        runs = min(runs, max(fewest, (left - before) // (stages * per_run)))
    products = _CHECKS + before + runs * per_run
    if options.per_layer:
        layers = loss.layout.layers.values()
        products += 32 * num_batches
        products += sum(40 * num_batches + runs * min(per_run, part.stop - part.start) for part in layers)
    training_steps, kept = 0, 0
    if options.snapshots is not None and options.every is not None and mapped:
        later = options.snapshots - 1
        products += later * runs * per_run
        training_steps = later * options.every
        # Weights of each snapshot, P^-1/2 where there is one, and the spectra of all minibatches.
        kept = later * size * (resources.itemsize + (8 if subject.scaling is not None else 0))
        kept += options.snapshots * runs * 16 * per_run
    if options.lyapunov is not None:
        products += options.lyapunov * (options.lyapunov_steps + options.lyapunov_transient)
    if options.max_hvps is not None:
        products = min(products, max(options.max_hvps, required))
    per_product = gradient * _GRADIENTS_PER_PRODUCT / max(1, workers)
    seconds = per_product * products + gradient * training_steps
    if options.time_limit is not None:
        seconds = min(seconds, max(options.time_limit, per_product * required))
    if steps is None:
        basis = resources.dense_bytes() * resources.workers_for(exact=can.exact)
    else:
        basis = resources.basis_bytes(steps if resources.fits(steps) else 4) * workers
    working = basis + workers * (3 * activations + _WORKING_VECTORS * size * resources.itemsize)
    limit = memory_limit(options.memory_gb)
    if loss.dtype == np.float32 and not verification.no_room(size, limit):
        working = max(working, verification.clone_bytes(size))
    memory = max(peak_memory(), used_memory() + _COMPILED + kept + working)
    return Plan(
        num_parameters=size,
        state_size=state,
        map=options.map if full else subject.exponents.name if mapped else "none",
        num_batches=num_batches,
        num_runs=runs,
        num_steps=steps,
        num_hvps=products,
        peak_memory=int(memory),
        seconds=seconds,
        seconds_per_gradient=gradient,
        num_snapshots=options.snapshots if mapped else None,
        every=options.every if mapped else None,
        optimizer=subject.optimizer_info(),
        data=data_info(loss.source, loss.num_examples),
    )


def _full_state(subject: Subject) -> int:
    """Size of the state of the optimizer's own step."""
    optimizer = problem.training_optimizer(
        subject.compiled_as,
        subject.loss,
        subject.options.learning_rate,
        changed=subject.model is not subject.compiled_as,
        warnings=[],
    )
    return state_size(subject.loss, optimizer)


def planned_trajectory(loss: EmpiricalLoss, size: int, settings: LyapunovSettings) -> LyapunovPlan:
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
