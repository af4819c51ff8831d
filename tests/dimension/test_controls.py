"""Means over minibatches by regression on controls: exact where the values are linear in them, and honest where not."""

import attrs
import numpy as np
import pytest

from sdkeras.dimension.controls import UNKNOWN, Fit, Population, Rows, whitened


def with_controls(table: np.ndarray, **known: object) -> Population:
    return Population(controls=lambda indices: table[np.asarray(indices)], **known)


def test_a_mean_without_controls_is_the_mean_with_students_interval() -> None:
    values = np.array([3.0, 5.0, 10.0])
    fit = Rows.of(3, UNKNOWN).fit(values)
    assert fit.mean == pytest.approx(6.0)
    assert fit.squared_error == pytest.approx(np.var(values, ddof=1) / 3)
    assert fit.half_width == pytest.approx(4.302652729749464 * np.std(values, ddof=1) / np.sqrt(3))  # t_{2, 0.975}
    assert Rows.of(1, UNKNOWN).fit(values[:1]).half_width == np.inf


def test_what_is_linear_in_the_controls_has_no_error_though_their_sample_mean_is_not_zero() -> None:
    table = np.random.default_rng(0).standard_normal((40, 3)) + 0.1
    rows = Rows.of(40, with_controls(table))
    assert rows.num_controls == 3
    assert rows.weights.sum() == pytest.approx(1.0)
    assert rows.weights @ table == pytest.approx(np.zeros(3), abs=1e-12)
    fit = rows.fit(7.0 + table @ [1.0, -2.0, 3.0])
    assert fit.mean == pytest.approx(7.0, abs=1e-12)
    assert fit.half_width < 1e-12
    assert fit.slopes == pytest.approx([1.0, -2.0, 3.0])
    assert np.mean(7.0 + table @ [1.0, -2.0, 3.0]) != pytest.approx(7.0, abs=0.05)


@pytest.mark.parametrize(("count", "controls"), [(19, 0), (20, 2), (24, 3), (200, 3)])
def test_there_are_eight_minibatches_for_each_control(count: int, controls: int) -> None:
    table = np.random.default_rng(1).standard_normal((count, 3))
    assert Rows.of(count, with_controls(table)).num_controls == controls


def test_a_control_that_the_sample_tells_little_of_goes() -> None:
    """Where its sample mean is far from 0 the intercept would be extrapolated, and with a small variance noise."""
    table = np.random.default_rng(2).standard_normal((30, 3))
    for last in (0.1 * table[:, 2], 2.0 + table[:, 2]):
        rows = Rows.of(30, with_controls(np.column_stack([table[:, :2], last])))
        assert rows.num_controls == 2
        assert 30 * rows.leverage <= 1.5
        assert np.array_equal(rows.design[:, 1:], table[:, :2])


def test_controls_that_a_few_examples_dominate_wait_for_a_whole_epoch() -> None:
    table = np.random.default_rng(1).standard_normal((60, 3))
    known = with_controls(table, per_epoch=50, needs_epoch=True)
    assert [Rows.of(count, known).num_controls for count in (24, 49, 50, 60)] == [0, 0, 3, 3]


def test_negative_weights_are_for_the_mean_alone() -> None:
    table = np.random.default_rng(3).standard_normal((24, 3)) + 0.2
    table[0] = [9.0, 9.0, 9.0]
    rows = Rows.of(24, with_controls(table))
    assert rows.weights.min() < 0
    assert np.array_equal(rows.run_weights, np.full(24, 1 / 24))


def test_the_error_of_controls_known_from_a_sample_is_added() -> None:
    table = np.random.default_rng(4).standard_normal((40, 2))
    values = table @ [2.0, 1.0]
    exact, sampled = (Rows.of(40, with_controls(table, error=error)).fit(values) for error in (0.0, 0.01))
    assert exact.squared_error == pytest.approx(0.0, abs=1e-20)
    assert sampled.squared_error == pytest.approx(0.01 * (2.0**2 + 1.0**2))


def test_probes_of_one_fixed_minibatch_are_one_row() -> None:
    population = Population(num_batches=3, per_epoch=3, batch=lambda index: [2, 0, 1][index % 3])
    rows = Rows.of(6, population)
    assert rows.membership.tolist() == [0, 1, 2, 0, 1, 2]
    fit = rows.fit(np.array([1.0, 10.0, 100.0, 3.0, 14.0, 106.0]))
    assert fit.means.tolist() == [2.0, 12.0, 103.0]
    assert fit.mean == pytest.approx(39.0)
    # All there are: what varies between minibatches is no error, what varies between probes is.
    within = (2.0 + 8.0 + 18.0) / 3
    assert fit.squared_error == pytest.approx(within / 2 / 3)
    assert fit.freedom == 3


def test_intervals_over_fixed_minibatches_cover_whole_and_in_part() -> None:
    """M = 40 fixed values with noisy probes: the mean of the 40, after 24 of them, all, and three passes."""
    generator = np.random.default_rng(5)
    truth = generator.standard_normal(40)
    hits, widths = np.zeros(3), np.zeros(3)
    for _ in range(400):
        orders = [generator.permutation(40) for _ in range(3)]
        values = np.concatenate([truth[order] for order in orders]) + 0.5 * generator.standard_normal(120)
        population = Population(num_batches=40, per_epoch=40, batch=np.concatenate(orders).tolist().__getitem__)
        for k, count in enumerate((24, 40, 120)):
            fit = Rows.of(count, population).fit(values[:count])
            hits[k] += abs(fit.mean - truth.mean()) <= fit.half_width
            widths[k] += fit.half_width / 400
    # 400 draws of 0.95: below 363 with probability 3e-4. One pass cannot tell probes from minibatches and is wide.
    assert np.all(hits >= 363)
    assert hits[2] <= 397
    assert widths[2] < 0.5 * 1.99 * 0.5 / np.sqrt(120) * 2.2  # t * 0.5 / sqrt(120), and a tenth more


def test_whole_epochs_and_passes() -> None:
    assert Population(per_epoch=42).pilot(24) == 42
    assert Population(per_epoch=10).pilot(24) == 30
    assert Population(per_epoch=48).pilot(24) == 24
    assert UNKNOWN.pilot(24) == 24
    fixed = Population(per_epoch=40, num_batches=40)
    assert [fixed.next_look(runs, np.inf) for runs in (24, 38, 40, 80)] == [32, 40, 80, 120]
    assert UNKNOWN.next_look(100, 103.2) == 108
    assert UNKNOWN.next_look(100, 1e9) == 125


def test_whitened_columns_are_uncorrelated_and_useless_ones_are_left_out() -> None:
    generator = np.random.default_rng(6)
    first, second = generator.standard_normal((2, 500))
    table = np.column_stack([1e-3 * first, 5.0 * (first + second), np.zeros(500), 2e-3 * first])
    table -= table.mean(axis=0)
    transform = whitened(table)
    assert transform.shape == (4, 2)
    made = table @ transform
    assert made.T @ made / 500 == pytest.approx(np.eye(2), abs=1e-10)
    assert whitened(np.zeros((5, 2))).shape == (2, 0)


def test_residuals_tell_of_one_row_that_dominates() -> None:
    values = np.zeros(30)
    values[7] = 30.0
    fit = Rows.of(30, UNKNOWN).fit(values)
    assert fit.largest_share == pytest.approx(29 / 30)
    assert fit.skewness == pytest.approx(28 / np.sqrt(29))  # of one success in 30
    assert isinstance(fit, Fit)
    assert attrs.evolve(fit, residuals=np.zeros(30)).skewness == 0.0
