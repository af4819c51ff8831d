"""D_s, SD^(m) and their order: exact vectors, independent singular values, and a training written out by hand."""

import itertools

import attrs
import numpy as np
import pytest

import sdkeras
from flows import MatrixSequence, RandomProducts, TanhTraining, coin_flow
from oracles import VECTORS
from sdkeras.dimension.lyapunov import lyapunov_dimension, sharpest_dimension
from sdkeras.dimension.m_step import m_step_sharpness
from sdkeras.linalg.products import log_singular_values
from sdkeras.results.estimates import LyapunovExponents
from sdkeras.results.lyapunov import LyapunovDimension, MStepSharpness

LyapunovQr = sdkeras.get_estimator("lyapunov", "lyapunov-qr")


def exponents(values, stderr=1e-4, num_steps=1000, **fields):
    """Exponents with independent errors and a history of 40 blocks that has exactly these: pairs cancel."""
    values = np.asarray(values, float)
    spread = np.broadcast_to(np.asarray(stderr, float), values.shape)
    half = np.linalg.qr(np.random.default_rng(1).standard_normal((20, len(values))))[0] * np.sqrt(39 / 2)
    blocks = np.stack([half, -half], axis=1).reshape(40, -1)
    means = values + blocks * spread * np.sqrt(num_steps / 25)
    history = np.cumsum(means, axis=0) / np.arange(1, 41)[:, None]
    return LyapunovExponents(values, spread, num_steps=num_steps, seed=0, history=history, block_size=25, **fields)


# D_s.


@pytest.mark.parametrize("case", VECTORS["sd_unweighted"])
def test_sharp_exponents_give_the_definition(case):
    values = np.asarray(case["exponents"], float)
    found = lyapunov_dimension(exponents(values, stderr=1e-9), len(values))
    if values[0] == 0:
        assert found.status == "undetermined"
        assert "contains 0" in found.reason
        return
    total = values.sum()
    if abs(total) < 1e-6:
        # D_s = d needs a sum that is surely not negative; the bracket holds d.
        assert found.interval[1] == pytest.approx(case["sd"])
        return
    assert found.status == "determined"
    assert found.value == pytest.approx(case["sd"], abs=1e-6)
    assert found.interval[0] <= found.value + 1e-9
    assert found.interval[1] >= found.value - 1e-9
    assert found.interval[1] - found.interval[0] < 1e-6
    assert found.codimension == pytest.approx(len(values) - case["sd"], abs=1e-6)


def test_the_interval_is_the_error_of_the_sum_over_the_next_exponent():
    # Lambda_2 = 0.3 with errors of 0.03 and 0.04: 0.05 together; D_s = 2 + 0.3/0.6.
    found = lyapunov_dimension(exponents([0.4, -0.1, -0.6, -2.0], stderr=[0.03, 0.04, 0.0, 0.0]), 4)
    quantile = 2.0227  # Student's t, 39 degrees of freedom
    assert found.value == pytest.approx(2.5)
    assert found.interval == pytest.approx((2.5 - quantile * 0.05 / 0.6, 2.5 + quantile * 0.05 / 0.6), abs=1e-4)
    assert (found.j_star, found.threshold_exponent) == (2, -0.6)


def test_directions_that_go_together_count_together():
    # Two exponents whose errors cancel: their sum is sharp, though neither of them is.
    record = exponents([0.4, -0.1, -0.6], stderr=[0.05, 1e-6, 1e-6])
    history = record.history.copy()
    history[:, 1] = 0.3 - history[:, 0]
    sharp = attrs.evolve(record, history=history, stderr=[0.05, 0.05, 1e-6])
    assert np.ptp(lyapunov_dimension(sharp, 3).interval) < 1e-4
    assert np.ptp(lyapunov_dimension(record, 3).interval) > 0.1
    # Without the history errors of sums are sums of errors.
    blind = lyapunov_dimension(attrs.evolve(sharp, history=np.zeros((0, 0))), 3)
    assert np.ptp(blind.interval) == pytest.approx(2 * 1.96 * 0.1 / 0.6, rel=1e-3)


def test_what_is_not_sharp_is_no_point():
    found = lyapunov_dimension(exponents([0.5, -0.1, -0.2, -0.3, -0.4], stderr=0.04), 5)
    assert (found.status, found.value, found.codimension) == ("bracketed", None, None)
    assert "not sharp beside |ell_4| = 0.3" in found.reason
    assert 3 < found.interval[0] < 3 + 2 / 3 < found.interval[1] < 5
    assert found.j_star == 3


@pytest.mark.parametrize("stderr", [0.02, 0.06])
def test_a_first_exponent_that_may_be_0_determines_nothing(stderr):
    for first in (0.05, -0.05):
        found = lyapunov_dimension(exponents([first, -0.5, -1.0], stderr=[stderr, 0.01, 0.01]), 3)
        if stderr == 0.06:
            assert (found.status, found.value, found.interval) == ("undetermined", None, None)
            assert "contains 0" in found.reason
        else:
            assert found.value == pytest.approx(1.1 if first > 0 else 0.0)


def test_a_neutral_direction_is_not_taken_for_a_contracting_one():
    """J = diag(1, .5, ..., .5): D_s >= 1, and until the frame has turned every ln R_ii is negative."""
    jacobians = np.stack([np.diag([1.0, *([0.5] * 19)])] * 12)
    settings = LyapunovQr(num_exponents=1, num_steps=12, transient=0)
    found = settings.estimate(MatrixSequence(jacobians), seed=0)
    assert -0.5 * np.log(20) - 2.77 < 12 * found.values[0] < -0.3
    answer = lyapunov_dimension(LyapunovExponents(found.values, [1e-6], num_steps=12, seed=0), 20)
    assert answer.status == "undetermined"
    assert "may rise or fall while it turns (4.3)" in answer.reason
    components = np.abs(np.random.default_rng(1).standard_normal((4000, 20)))
    falls = -np.log(components[:, 0] / np.linalg.norm(components, axis=1))
    assert np.mean(falls < 4.3) == pytest.approx(0.95, abs=0.015)
    # The same exponent over ten times the steps has fallen further than a turn explains.
    longer = LyapunovExponents(found.values, [1e-6], num_steps=120, seed=0)
    assert lyapunov_dimension(longer, 20).value == 0.0


def test_a_small_rise_is_not_taken_for_chaos():
    # 0.3 over 1,000 steps with a small error: weights and velocity are not orthogonal, and a turn explains it.
    answer = lyapunov_dimension(exponents([0.0003, -0.01], stderr=1e-6, num_steps=1000), 170)
    assert answer.status == "undetermined"
    assert "adds up to 0.3 over 1,000 steps" in answer.reason
    longer = lyapunov_dimension(exponents([0.0003, -0.01], stderr=1e-6, num_steps=100_000), 170)
    assert "adds up" not in longer.reason


def test_rounding_counts_as_error():
    neutral = exponents([1e-7, -0.5], stderr=1e-9, num_steps=10**9)
    assert lyapunov_dimension(neutral, 2).status == "determined"
    assert lyapunov_dimension(attrs.evolve(neutral, rounding=[1e-6, 1e-6]), 2).status == "undetermined"


def test_no_point_from_a_diverged_or_a_short_run():
    diverged = lyapunov_dimension(exponents([0.5, -1.0], stopped_at=77), 2)
    assert (diverged.status, diverged.reason) == ("undetermined", "the trajectory diverged at step 77")
    short = LyapunovQr(num_steps=9, transient=0).estimate(coin_flow(), seed=1)
    assert lyapunov_dimension(short, 2).status == "undetermined"
    assert "9 blocks" in lyapunov_dimension(short, 2).reason


# Only the leading exponents are known.


def test_a_crossing_among_the_leading_exponents_is_a_point():
    assert lyapunov_dimension(exponents([0.4, -0.1, -0.6], stderr=1e-5), 1000).value == pytest.approx(2.5)


def bracket(values, size, **known):
    found = lyapunov_dimension(exponents(values, stderr=1e-12), size, **known)
    assert (found.status, found.value) == ("bracketed", None)
    return found.interval


def test_brackets_from_the_leading_exponents():
    # K = 2, Lambda_2 = 0.9, Lambda_10 = -3: 2 + 0.9 * 8 / 3.9; upper end 2 + 0.9/0.1.
    assert bracket([1.0, -0.1], 10, log_det=-3.0) == pytest.approx((2 + 0.9 * 8 / 3.9, 10.0))
    assert bracket([1.0, -0.5], 10, log_det=-6.0) == pytest.approx((2 + 0.5 * 8 / 6.5, 3.0))
    assert bracket([1.0, -0.5], 10) == pytest.approx((2.0, 3.0))
    assert bracket([1.0, 0.5], 10, log_det=-3.0, sharpness_dimension=7.5) == pytest.approx((2 + 1.5 * 8 / 4.5, 7.5))
    assert bracket([1.0, 0.5], 10) == pytest.approx((2.0, 10.0))
    certain = lyapunov_dimension(exponents([1.0, 0.5], stderr=1e-6), 10, log_det=0.2)
    assert (certain.status, certain.value) == ("determined", 10.0)


@pytest.mark.parametrize("size", [3, 7, pytest.param(20, marks=pytest.mark.slow)])
def test_brackets_hold_every_spectrum_with_these_leading_exponents(size):
    rng = np.random.default_rng(size)
    tight = 0
    for _ in range(200):
        z = np.sort(rng.standard_normal(size) * rng.choice([0.1, 1.0, 3.0], size) - 0.4)[::-1]
        truth = sdkeras.sharpness_dimension(z)
        for k in range(1, size + 1):
            found = lyapunov_dimension(exponents(z[:k], stderr=1e-12), size, log_det=z.sum())
            assert found.interval[0] - 1e-6 <= truth <= found.interval[1] + 1e-6
            assert found.value is None or found.value == pytest.approx(truth, abs=1e-6)
            tight += found.value is None and found.interval[0] > k + 0.05
    assert tight > 10


def test_exponents_hidden_by_rounding_give_no_point():
    sharp = exponents([1.0, -0.1, -0.5, -1.0], stderr=1e-6)
    assert lyapunov_dimension(sharp, 4).value == pytest.approx(3.4)
    for resolved, lower in ((3, 3.0), (2, 2.0)):
        found = lyapunov_dimension(attrs.evolve(sharp, num_resolved=resolved), 4)
        assert (found.status, found.value) == ("bracketed", None)
        assert found.interval == pytest.approx((lower, 3.4), abs=1e-4)
        assert "rounding hides" in found.reason


def test_d_s_of_the_random_diagonal_map_is_covered():
    truth, inside = VECTORS["random_diagonal_map"]["d_s"], []
    settings = LyapunovQr(num_steps=1500, transient=20)
    for seed in range(60):
        found = lyapunov_dimension(settings.estimate(coin_flow(), seed=seed), 2)
        assert found.status == "determined"
        inside.append(found.interval[0] <= truth <= found.interval[1])
    # 95 % of 60 and 4 standard deviations; intervals half as wide would hold it 67 % of the time.
    assert np.mean(inside) > 0.84


# SD^(m).


def compound(matrix, j):
    """Determinants of all j x j minors: its largest singular value is sigma_1 ... sigma_j."""
    subsets = list(itertools.combinations(range(len(matrix)), j))
    return np.array([[np.linalg.det(matrix[np.ix_(rows, columns)]) for columns in subsets] for rows in subsets])


def slow_log_singular_values(factors):
    """From the norms of products of compounds, which multiply like the matrices: only largest singular values."""
    sums = [0.0]
    for j in range(1, len(factors[0]) + 1):
        product, scale = np.eye(1), 0.0
        for factor in factors:
            minors = compound(factor, j)
            product = minors @ product if product.shape == minors.shape else minors
            norm = np.linalg.norm(product, 2)
            product, scale = product / norm, scale + np.log(norm)
        sums.append(scale)
    return np.diff(sums)


@pytest.mark.parametrize(("count", "spread"), [(1, 0), (3, 5), (20, 30), (60, 120), (130, 250)])
def test_singular_values_of_long_products(count, spread):
    rng = np.random.default_rng(count)
    factors = [rng.standard_normal((4, 4)) * np.exp(np.linspace(1, -2, 4))[:, None] for _ in range(count)]
    truth = slow_log_singular_values(factors)
    assert truth[0] - truth[-1] > spread
    found = log_singular_values(factors)
    # An eps times the condition of a factor (some hundreds) for each, and the slow way's own.
    np.testing.assert_allclose(found, truth, atol=1e-13 * (count + 5))
    if count > 40:
        explicit = np.log(np.linalg.svd(np.linalg.multi_dot(factors[::-1]), compute_uv=False))
        assert abs(explicit - truth).max() > 10


def test_singular_values_that_are_zero_or_out_of_reach():
    np.testing.assert_array_equal(log_singular_values([np.zeros((3, 3))] * 2), [-np.inf] * 3)
    singular = log_singular_values([np.diag([2.0, 1.0, 0.0]), np.diag([3.0, 0.5, 1.0])])
    np.testing.assert_allclose(singular, [np.log(6), np.log(0.5), -np.inf])
    far = log_singular_values([np.diag([1e3, 1.0, 1e-3])] * 60)
    np.testing.assert_allclose(far[:2], [60 * np.log(1e3), 0.0], atol=1e-11)
    assert far[2] == -np.inf
    assert log_singular_values([np.diag([1e3, 1e-2])] * 200)[0] == pytest.approx(200 * np.log(1e3))


def test_one_step_is_the_definition():
    case = VECTORS["two_minibatches"]
    jacobians = [np.diag(np.exp(z)) for z in case["log_singular_values"]]
    (found,) = m_step_sharpness(jacobians)
    np.testing.assert_allclose(found.exponents, case["rds_sharpness"], atol=1e-14)
    assert found.dimension == pytest.approx(case["sd_definition"])
    (two,) = m_step_sharpness(jacobians, (2,))
    np.testing.assert_allclose(two.exponents, [1.5, -1.1, -2.2], atol=1e-14)
    assert two.dimension == pytest.approx(2 + 0.4 / 2.2)
    diagonal = VECTORS["random_diagonal_map"]
    (found,) = m_step_sharpness([np.diag([3.0, 0.2]), np.diag([0.5, 0.9])] * 5)
    assert found.dimension == pytest.approx(diagonal["sd"])


def training(learning_rate, num_steps):
    flow = TanhTraining(learning_rate=learning_rate)
    flow.reset(2)
    return np.stack([flow.next_jacobian() for _ in range(num_steps)])


def random_matrices(num_steps):
    return 0.5 * np.random.default_rng(1).standard_normal((num_steps, 7, 7)) + 0.3 * np.eye(7)


def random_expansions(num_steps):
    rng = np.random.default_rng(2)
    return (
        np.stack(
            [np.exp(0.4 * rng.standard_normal((6, 6)) - 0.2) * rng.choice([-1, 1], (6, 6)) for _ in range(num_steps)]
        )
        / 2
    )


SEQUENCES = {
    "training at 0.5": training(0.5, 120),
    "training at 2": training(2.0, 120),
    "training at 3": training(3.0, 120),
    "random matrices": random_matrices(120),
    "random signs": random_expansions(120),
}
DIVISORS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 24, 30, 40, 60, 120)


def test_the_training_s_hessian_is_that_of_its_loss():
    flow, batch = TanhTraining(), np.array([3, 9, 4, 4, 20])
    w = flow.weights
    shifted = [(w + 1e-5 * e, w - 1e-5 * e) for e in np.eye(flow.size)]
    columns = [(flow.derivatives(up, batch)[0] - flow.derivatives(down, batch)[0]) / 2e-5 for up, down in shifted]
    np.testing.assert_allclose(flow.derivatives(w, batch)[1], np.stack(columns, axis=1), atol=1e-8)
    t = np.tanh(np.outer(flow.x[batch], w[: flow.size // 2]) + w[flow.size // 2 :])

    def loss(weights):
        a, b = weights.reshape(2, -1)
        return np.mean((np.tanh(np.outer(flow.x[batch], a) + b) @ flow.c - flow.y[batch]) ** 2) / 2

    assert t.shape == (5, flow.size // 2)
    slope = [(loss(up) - loss(down)) / 2e-5 for up, down in shifted]
    np.testing.assert_allclose(flow.derivatives(w, batch)[0], slope, atol=1e-8)


@pytest.mark.parametrize("name", SEQUENCES)
def test_the_order_of_the_dimensions(name):
    jacobians = SEQUENCES[name]
    size = jacobians.shape[1]
    found = {entry.num_window_steps: entry for entry in m_step_sharpness(jacobians, DIVISORS)}
    assert {"explicit products", "stabilised products"} == {entry.method for entry in found.values()}
    dimensions = {m: entry.dimension for m, entry in found.items()}
    assert None not in dimensions.values()
    for m, longer in itertools.product(DIVISORS, DIVISORS):
        if longer % m == 0:
            assert dimensions[longer] <= dimensions[m] + 1e-6
    for entry in found.values():
        # The windows cover the same steps: the sum is that of ln |det|.
        if entry.num_resolved == size:
            total = entry.exponents.sum() / entry.num_window_steps
            assert total == pytest.approx(np.linalg.slogdet(jacobians)[1].mean(), abs=1e-7)
    for seed in range(10):
        qr = LyapunovQr(num_exponents=None, num_steps=120, transient=0).estimate(MatrixSequence(jacobians), seed=seed)
        d_s = sdkeras.sharpness_dimension(qr.values)
        assert all(d_s <= dimension + 1e-6 for dimension in dimensions.values())
        d_s_known = lyapunov_dimension(qr, size)
        assert d_s_known.value is None or d_s_known.value == pytest.approx(d_s)
        assert d_s_known.interval is None or d_s_known.interval[0] <= d_s <= d_s_known.interval[1]
    # The inequalities are not equalities here: 1 % more would be seen.
    assert dimensions[120] < 0.99 * dimensions[1] or dimensions[1] == size


@pytest.mark.parametrize("name", SEQUENCES)
def test_explicit_and_stabilised_products_agree(name):
    jacobians = SEQUENCES[name]
    for m in (2, 4, 10):
        (found,) = m_step_sharpness(jacobians, (m,))
        slow = np.mean(
            [log_singular_values(list(part)) for part in jacobians.reshape(-1, m, *jacobians.shape[1:])], axis=0
        )
        np.testing.assert_allclose(found.exponents, slow[: found.num_resolved], atol=1e-6)
        assert found.dimension == pytest.approx(sdkeras.sharpness_dimension(slow), abs=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_long_products_of_a_constant_map(dtype):
    # z = (0.5, -0.2, -0.6, -1.5) whatever m: SD = 2 + 0.3/0.6.
    z = np.array([0.5, -0.2, -0.6, -1.5])
    q = np.linalg.qr(np.random.default_rng(0).standard_normal((4, 4)))[0]
    jacobian = ((q * np.exp(z)) @ q.T).astype(dtype)
    reach = {np.float32: 12, np.float64: 22}[dtype]
    for m in (1, 5, 20, 100, 280):
        (found,) = m_step_sharpness([jacobian] * m, (m,))
        assert found.method == ("explicit products" if m * 1.1 < reach else "stabilised products")
        assert found.dimension == pytest.approx(2.5, abs=1e-4 if dtype == np.float32 else 1e-7)
    # 600 * 1.1 is beyond what float64 holds: unknown, and not a number.
    (found,) = m_step_sharpness([jacobian] * 600, (600,))
    assert (found.dimension, found.num_resolved) == (None, 2)
    assert "2 exponents that rounding has left, of 4" in found.reason


def test_a_window_that_grows_faster_than_the_others_is_stabilised():
    # 10 (z_1 - t*) = 17.8 on the average, but 38 in the first window.
    q = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0]
    fast, slow = ((q * np.exp(z)) @ q.T for z in ([2.0, -0.2, -1.8], [0.5, -0.2, -0.6]))
    (found,) = m_step_sharpness([fast] * 10 + [slow] * 30, (10,))
    assert found.method == "stabilised products"
    assert found.dimension == pytest.approx(2 + 0.675 / 0.9)


def test_hidden_singular_values_are_not_made_up():
    # A float32 Jacobian cannot show a singular value of 1e-7 beside 1.
    hidden = np.diag([2.0, 1.0, 1e-7]).astype(np.float32)
    (found,) = m_step_sharpness([hidden])
    assert (found.dimension, found.num_resolved) == (None, 2)
    assert m_step_sharpness([hidden.astype(np.float64)])[0].dimension == pytest.approx(2 + np.log(2) / np.log(1e7))
    # Two such steps can hide two directions.
    other = np.diag([2.0, 1e-7, 1.0]).astype(np.float32)
    (found,) = m_step_sharpness([hidden, other], (2,))
    assert (found.dimension, found.num_resolved) == (None, 1)
    (zero,) = m_step_sharpness([np.zeros((2, 2))])
    assert (zero.dimension, zero.num_resolved) == (None, 0)


def test_windows_that_do_not_cover_the_steps_are_refused():
    with pytest.raises(ValueError, match="a window of 4 steps does not divide the 6 steps"):
        m_step_sharpness([np.eye(2)] * 6, (1, 4))
    with pytest.raises(ValueError, match="at least one"):
        m_step_sharpness([])
    with pytest.raises(ValueError, match="square"):
        m_step_sharpness([np.ones((2, 3))])
    with pytest.raises(ValueError, match="NaN"):
        m_step_sharpness([np.full((2, 2), np.nan)])
    with pytest.raises(ValueError, match="int64"):
        m_step_sharpness([np.eye(2, dtype=np.int64)])


# The sharpest.


def m_step(m, dimension, num_steps=1000, size=10):
    return MStepSharpness(m, num_steps, np.zeros(0), 0, size, dimension, "explicit products")


def d_s(status, value=None, interval=None, num_steps=1000, size=10, reason=""):
    return LyapunovDimension(status, value, interval, reason, None, None, size, size, num_steps)


def test_the_sharpest_determined_dimension():
    steps = (m_step(1, 8.0), m_step(2, 7.0), m_step(5, 7.5), m_step(10, None))
    assert sharpest_dimension(steps).name == "SD^(2)"
    assert sharpest_dimension(steps).value == 7.0
    found = sharpest_dimension(steps, d_s("determined", 4.0, (3.8, 4.2)))
    assert (found.name, found.value) == ("D_s", 4.0)
    found = sharpest_dimension(steps, d_s("bracketed", interval=(3.0, 6.0), reason="more steps"))
    assert (found.name, found.value, found.reason) == ("upper end of D_s", 6.0, "more steps")
    found = sharpest_dimension(steps, d_s("undetermined", reason="the trajectory diverged at step 3"))
    assert (found.name, found.value) == ("SD^(2)", 7.0)
    assert found.reason.endswith("D_s is undetermined")  # and why stands with D_s
    assert sharpest_dimension(steps[:1]).name == "SD"
    assert sharpest_dimension(steps[3:]) is None
    assert sharpest_dimension() is None
    # With a maximum over snapshots it is above D_s, and not above SD^(m).
    assert sharpest_dimension(steps[1:], supremum=6.5).name == "SD over snapshots"


def test_dimensions_of_other_steps_are_refused():
    with pytest.raises(ValueError, match="different steps"):
        sharpest_dimension([m_step(1, 8.0), m_step(2, 7.0, num_steps=500)])
    with pytest.raises(ValueError, match="different steps"):
        sharpest_dimension([m_step(1, 8.0)], d_s("determined", 4.0, (3.8, 4.2), num_steps=500))
    with pytest.raises(ValueError, match=r"SD\^\(4\) = 7.5 is above SD\^\(2\) = 7"):
        sharpest_dimension([m_step(2, 7.0), m_step(4, 7.5)])
    with pytest.raises(ValueError, match=r"D_s >= 7.1 is above SD\^\(2\) = 7"):
        sharpest_dimension([m_step(2, 7.0)], d_s("determined", 7.2, (7.1, 7.3)))


def test_a_trajectory_of_the_training_from_end_to_end():
    flow = TanhTraining(learning_rate=4.0)
    flow.decay = 0.05
    qr = LyapunovQr(num_exponents=None, num_steps=3000).estimate(flow, seed=2)
    flow.reset(2)
    jacobians = [flow.next_jacobian() for _ in range(3100)][100:]
    steps = m_step_sharpness(jacobians, (1, 5))
    found = sharpest_dimension(steps, lyapunov_dimension(qr, flow.size))
    assert found.name == "D_s"
    assert 11 < found.value < steps[1].dimension < steps[0].dimension < 12


def test_gaussian_products_are_determined():
    flow = RandomProducts(2, lambda rng: rng.standard_normal((2, 2)))
    found = lyapunov_dimension(LyapunovQr(num_steps=8000).estimate(flow, seed=3), 2)
    assert found.status == "determined"
    # Its error is that of ell_1 over |ell_2|: 5 * .64 / sqrt(8000) / .635.
    assert found.value == pytest.approx(VECTORS["gaussian_products_2x2"]["d_ky"], abs=0.06)
