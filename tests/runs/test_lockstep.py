"""Runs in lockstep are the single runs, in whatever groups and threads, and a budget binds between their steps."""

import attrs
import keras
import numpy as np
import pytest

from sdkeras.dimension.sampling import AdaptiveSettings
from sdkeras.errors import BudgetError
from sdkeras.operators.hessian import HessianOperator
from sdkeras.operators.lockstep import HessianBatch
from sdkeras.runs.budget import Meter, Resources, whole_budget
from sdkeras.runs.measure import HessianRuns, sampling
from sdkeras.runs.options import Options
from sdkeras.runs.problem import read_problem
from small_nets import X, Y, net

STEPS = 12


@pytest.fixture(scope="module")
def measured():
    """An RMSprop net with dropout, batch normalization and unequal decay, after some training."""
    model = net(keras.optimizers.RMSprop(0.01, weight_decay=0.1))
    model.optimizer.exclude_from_weight_decay(var_names=["bias"])
    model.fit(X, Y, batch_size=16, epochs=2, verbose=0)
    options = Options(batch_size=16, dtype="float64", settings={"slq": {"num_steps": STEPS}}, runs=70)
    problem, _ = read_problem(model, (X, Y), options)
    return problem, HessianOperator(problem.loss)


def runner_of(problem, hessian, budget, block=None, workers=1, required=True):
    room = Resources(1e9, workers, hessian.size, 8)
    how, runs = sampling(problem, "slq", required=required), HessianRuns(problem, hessian, block)
    return how, runs, room, how.on(runs, room, budget, budget)


def unlimited(hessian, **limits):
    return whole_budget(Resources(1e9, 1, hessian.size, 8), Meter(lambda: hessian.num_products, **limits))


def assert_same(together, single):
    assert (together.seed, together.num_matvecs) == (single.seed, single.num_matvecs)
    # Rounding of the products, grown in a few steps of Lanczos.
    scale = np.abs(single.nodes).max()
    np.testing.assert_allclose(together.nodes, single.nodes, rtol=0, atol=1e-9 * scale)
    np.testing.assert_allclose(together.weights @ together.nodes, single.weights @ single.nodes, rtol=1e-9)
    np.testing.assert_allclose(np.cumsum(together.weights), np.cumsum(single.weights), atol=1e-6 * single.size)


@pytest.mark.parametrize(("block", "workers"), [(None, 1), (slice(4, 30), 2)])
def test_runs_in_lockstep_are_the_single_runs_of_the_same_numbers(measured, block, workers, monkeypatch):
    problem, hessian = measured
    assert problem.shift is not None
    assert problem.scaling is not None
    counts = []
    product = HessianBatch.matvecs
    monkeypatch.setattr(HessianBatch, "matvecs", lambda self, rows: counts.append(len(rows)) or product(self, rows))
    budget = unlimited(hessian)
    how, runs, room, on = runner_of(problem, hessian, budget, block, workers)
    assert how.group(runs, room) == 32 * workers
    before = hessian.num_products
    with on as run:
        together = [*run(range(5), STEPS), *run(range(5, 6), STEPS)]
    assert hessian.num_products - before == sum(one.num_matvecs for one in together) == 6 * STEPS
    assert sorted({*counts}) == ([1, 5] if workers == 1 else [1, 2, 3])
    for index, one in enumerate(together):
        single = runs.run(how.of_a_run(STEPS, room), index, budget, exact=False)
        assert_same(one, single)
    assert len({one.nodes[0] for one in together}) == 6


def test_few_products_are_not_worth_a_trace(measured):
    problem, hessian = measured
    problem = attrs.evolve(problem, options=attrs.evolve(problem.options, runs=5))
    how, runs, room, _ = runner_of(problem, hessian, unlimited(hessian))
    assert how.group(runs, room) == 1 == AdaptiveSettings().group


def test_a_required_run_is_made_and_the_group_after_it_ends_with_the_budget(measured):
    problem, hessian = measured
    budget = unlimited(hessian, most=hessian.num_products + 1 + 2 * 5)  # two steps of five runs
    _, _, _, on = runner_of(problem, hessian, budget)
    before = hessian.num_products
    with on as run:
        spectra = iter(run(range(6), STEPS))
        assert next(spectra).num_matvecs == STEPS
        with pytest.raises(BudgetError):
            next(spectra)
    assert hessian.num_products - before == STEPS
    budget = unlimited(hessian, most=hessian.num_products + 2 * 6 + 5)
    _, _, _, on = runner_of(problem, hessian, budget, required=False)
    before = hessian.num_products
    with on as run, pytest.raises(BudgetError):
        list(run(range(6), STEPS))
    assert hessian.num_products - before == 2 * 6


def test_an_interruption_ends_a_group_between_its_steps(measured, monkeypatch):
    problem, hessian = measured
    budget = unlimited(hessian)
    product, steps = HessianBatch.matvecs, []

    def interrupted(self, rows):
        steps.append(len(rows))
        if len(steps) == 3:
            budget.meter.interrupt()
        return product(self, rows)

    monkeypatch.setattr(HessianBatch, "matvecs", interrupted)
    _, _, _, on = runner_of(problem, hessian, budget)
    with on as run, pytest.raises(BudgetError, match="Ctrl-C"):
        list(run(range(4), STEPS))
    assert steps == [4, 4, 4]
