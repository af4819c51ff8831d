"""What an analysis would do and cost, from one timed gradient."""

from __future__ import annotations

import time

import attrs

from sdkeras import lyapunov_run, registry
from sdkeras.dimension.adaptive import AdaptiveSettings
from sdkeras.estimators import Chosen
from sdkeras.memory import peak_memory
from sdkeras.reporting.schema import Plan
from sdkeras.resources import Resources
from sdkeras.subject import Subject

# A Hessian-vector product takes about this many gradients (1.5-2.8 measured).
_GRADIENTS_PER_PRODUCT = 2.5


def planned(subject: Subject, estimators: Chosen, resources: Resources) -> Plan:
    """The plan of an analysis; runs one gradient four times and nothing else."""
    options, loss, workers = subject.options, subject.loss, resources.workers
    gradient, activations = _timed_gradient(subject)
    name = estimators.spectrum[0]
    num_batches, size, min_runs = len(loss.batches), loss.size, AdaptiveSettings().min_runs
    steps: int | None = None
    fields = attrs.fields_dict(registry.get_estimator("spectrum", name))
    if "num_steps" in fields:
        own = options.settings.get(name, {})
        steps = min(int(own.get("num_steps", fields["num_steps"].default)), size)
    runs = (options.exact_minibatches or min_runs) if name == "exact" else min_runs
    per_run = size if steps is None else steps
    # Verification makes about ten products; eigenpairs and trace take about 40 + 32 on every batch.
    products = 10 + 72 * num_batches + min_runs + runs * per_run
    if subject.scaling is not None:
        products += 40 * num_batches
    if options.per_layer:
        layers = loss.layout.layers.values()
        products += 32 * num_batches
        products += sum(40 * num_batches + runs * min(per_run, part.stop - part.start) for part in layers)
    training_steps, kept = 0, 0
    if options.snapshots is not None and options.every is not None:
        later = options.snapshots - 1
        products += later * runs * per_run
        training_steps = later * options.every
        # Weights of each snapshot, P^-1/2 where there is one, and the spectra of all minibatches.
        kept = later * size * (resources.itemsize + (8 if subject.scaling is not None else 0))
        kept += options.snapshots * runs * 16 * per_run
    if options.lyapunov is not None:
        settings = lyapunov_run.LyapunovSettings()
        products += options.lyapunov * (settings.num_steps + settings.transient)
    if steps is None:
        basis = resources.dense_bytes() * resources.workers_for(name)
    else:
        basis = resources.basis_bytes(steps if resources.fits(steps) else 4) * workers
    memory = peak_memory() + basis + kept + workers * (3 * activations + 8 * size * resources.itemsize)
    return Plan(
        num_parameters=size,
        state_size=subject.exponents.branches * size,
        map=subject.exponents.name,
        num_batches=num_batches,
        num_runs=runs,
        num_steps=steps,
        num_hvps=products,
        peak_memory=int(memory),
        seconds=gradient * (products * _GRADIENTS_PER_PRODUCT / max(1, workers) + training_steps),
        seconds_per_gradient=gradient,
        num_snapshots=options.snapshots,
        every=options.every,
    )


def _timed_gradient(subject: Subject) -> tuple[float, int]:
    """Seconds of a minibatch's gradient, and bytes that it took."""
    engine, batch = subject.loss.gradients, subject.loss.minibatch(0)
    before = peak_memory()
    engine.gradient(engine.point, batch).numpy()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        engine.gradient(engine.point, batch).numpy()
        times.append(time.perf_counter() - start)
    return min(times), max(0, peak_memory() - before)
