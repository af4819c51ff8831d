"""Lyapunov exponents against closed forms, sum rules, and themselves after every possible interruption."""

import itertools
import math
import os

import attrs
import numpy as np
import pytest
import scipy.special

import sdkeras
from flows import Henon, MatrixSequence, RandomProducts, TanhTraining, coin_flow
from oracles import VECTORS
from sdkeras.errors import NonFiniteError, SdkerasError
from sdkeras.linalg.orthogonal import thin_qr
from sdkeras.linalg.probes import start_frame
from sdkeras.testing import MatrixFlow, rotation

LyapunovQr = sdkeras.get_estimator("lyapunov", "lyapunov-qr")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_constant_diagonal_map_has_the_logarithms(dtype):
    diagonal = np.array([3.0, -1.5, 0.9, 0.5, 1e-3], dtype)
    eps = float(np.finfo(dtype).eps)
    found = LyapunovQr(num_exponents=None, num_steps=300).estimate(MatrixFlow(np.diag(diagonal)), seed=1)
    # Rounding of one step: eps times its condition number 3e3.
    np.testing.assert_allclose(found.values, np.log(np.abs(diagonal)), atol=3e3 * eps)
    np.testing.assert_array_less(np.abs(found.values - np.log(np.abs(diagonal))), found.rounding)
    assert found.num_resolved == 5
    # ln of |det| to roundoff, and the number of tangents to the last one.
    assert found.log_det == pytest.approx(float(np.log(np.abs(diagonal)).sum()), abs=3e3 * eps)
    assert (found.num_steps, found.transient, found.num_tangents, found.stopped_at) == (300, 100, 2000, None)


def within(found, truth):
    """Deviations in 5 standard errors: false alarms are one in a million. And errors below 3 %."""
    assert np.all(np.abs(found.values - truth) < 5 * found.stderr), (found.values, found.stderr)
    assert np.all(5 * found.stderr < 0.1)


def test_random_diagonal_map():
    case = VECTORS["random_diagonal_map"]
    found = LyapunovQr(num_steps=20_000).estimate(coin_flow(), seed=4)
    within(found, case["lyapunov"])
    # std of ln R_ii is .90 (and .75) per step; independent steps, so their mean's is that over sqrt(T).
    np.testing.assert_allclose(found.stderr, np.array([0.90, 0.752]) / math.sqrt(20_000), rtol=0.4)


def test_a_balanced_sequence_is_exact():
    case = VECTORS["random_diagonal_map"]
    steps = [np.diag([3.0, 0.2]), np.diag([0.5, 0.9])] * 500
    # From the coordinate frame (k = 1 and a start in its direction would do): rotate nothing, transient long enough
    # for the first direction to have converged to roundoff, and even.
    found = LyapunovQr(num_exponents=2, num_steps=800, transient=200).estimate(MatrixSequence(steps), seed=0)
    np.testing.assert_allclose(found.values, case["lyapunov"], atol=1e-12)
    assert sdkeras.sharpness_dimension(found.values) == pytest.approx(case["d_s"], abs=1e-10)


def gaussian(size, scale=1.0):
    return RandomProducts(size, lambda rng: scale * rng.standard_normal((size, size)))


def test_products_of_gaussian_matrices():
    case = VECTORS["gaussian_products_2x2"]
    within(LyapunovQr(num_steps=20_000).estimate(gaussian(2), seed=5), case["lyapunov"])
    # ell_i = (ln 2 + psi((n - i + 1)/2))/2 in n dimensions (Newman 1986).
    truth = (np.log(2) + scipy.special.digamma((6 - np.arange(6)) / 2)) / 2
    found = LyapunovQr(num_steps=8000).estimate(gaussian(6), seed=6)
    within(found, truth)
    leading = LyapunovQr(num_exponents=2, num_steps=8000).estimate(gaussian(6), seed=6)
    within(leading, truth[:2])
    assert leading.log_det is None
    assert (leading.num_tangents, found.num_tangents) == (2 * 8100, 6 * 8100)


def test_henon():
    case = VECTORS["henon"]
    flow = Henon(case["a"], case["b"])
    found = LyapunovQr(num_exponents=None, num_steps=30_000, transient=1000).estimate(flow, seed=0)
    assert found.values.sum() == pytest.approx(case["sum"], abs=1e-12)
    assert found.values.sum() == pytest.approx(math.log(case["b"]), abs=1e-12)
    assert found.log_det == pytest.approx(math.log(case["b"]), abs=1e-12)
    np.testing.assert_allclose(found.values, case["lyapunov"], atol=case["tolerance"])
    within(found, case["lyapunov"])
    assert sdkeras.sharpness_dimension(found.values) == pytest.approx(case["d_ky"], abs=0.005)


@pytest.mark.parametrize("num_steps", [1, 31, 64, 333])
def test_sum_rule_and_history(num_steps):
    steps = np.random.default_rng(num_steps).standard_normal((num_steps + 10, 5, 5))
    settings = LyapunovQr(num_exponents=None, num_steps=num_steps, transient=10)
    found = settings.estimate(MatrixSequence(steps), seed=2)
    log_dets = np.linalg.slogdet(steps)[1][10:]
    assert found.values.sum() == pytest.approx(log_dets.mean(), abs=1e-12)
    assert found.log_det == pytest.approx(log_dets.mean(), abs=1e-12)
    blocks = len(found.history)
    assert blocks == (num_steps // found.block_size)
    assert blocks == num_steps or 32 <= blocks < 64
    ends = found.block_size * np.arange(1, blocks + 1)
    np.testing.assert_allclose(found.history.sum(axis=1), np.cumsum(log_dets)[ends - 1] / ends, atol=1e-12)
    # Block means and standard errors are those of the steps, regrouped.
    means = log_dets[: ends[-1]].reshape(blocks, -1).mean(axis=1)
    np.testing.assert_allclose(found.block_means.sum(axis=1), means, atol=1e-11)
    if blocks > 1:
        expected = largest_error(found.block_means, found.block_size, num_steps)
        np.testing.assert_allclose(found.stderr, expected, rtol=1e-9)


def largest_error(means: np.ndarray, block_size: int, num_steps: int) -> np.ndarray:
    """Of the blocks as they are and merged by 2, 4 ... , where 8 or more are left, by hand."""
    found = []
    for merged in (1, 2, 4, 8):
        count = len(means) // merged
        if merged == 1 or count >= 8:
            groups = [means[k * merged : (k + 1) * merged].mean(axis=0) for k in range(count)]
            found.append(np.std(groups, axis=0, ddof=1) * math.sqrt(merged * block_size / num_steps))
    return np.max(found, axis=0)


def test_everything_is_sorted_together():
    # Nearly orthogonal maps over few steps: the directions do not come out in order.
    steps = np.stack([rotation(6, seed=k) * np.linspace(0.9, 1.1, 6) for k in range(40)])
    unsorted = 0
    for seed in range(10):
        found = LyapunovQr(num_exponents=None, num_steps=40, transient=0).estimate(MatrixSequence(steps), seed=seed)
        frame, logs = start_frame(6, 6, seed=seed, dtype=np.float64), []
        for step in steps:
            frame, r = thin_qr(step @ frame)
            logs.append(np.log(np.diagonal(r)))
        order = np.argsort(-np.mean(logs, axis=0))
        unsorted += not np.array_equal(order, np.arange(6))
        np.testing.assert_allclose(found.values, np.mean(logs, axis=0)[order], atol=1e-14)
        np.testing.assert_allclose(found.block_means, np.array(logs)[:, order], atol=1e-13)
        np.testing.assert_allclose(found.stderr, largest_error(np.array(logs), 1, 40)[order], rtol=1e-12)
    assert unsorted > 5


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_interval_between_decompositions_changes_nothing_but_rounding(dtype, monkeypatch):
    rng = np.random.default_rng(7)
    steps = (np.eye(6) + 0.15 * rng.standard_normal((2100, 6, 6))).astype(dtype)
    count = itertools.count()
    module = __import__("sdkeras_plugins.lyapunov_qr", fromlist=["_"])
    conditions = []

    def counting(matrix):
        next(count)
        conditions.append(float(np.linalg.cond(matrix.astype(np.float64))))
        return thin_qr(matrix)

    monkeypatch.setattr(module, "thin_qr", counting)
    found = LyapunovQr(num_exponents=None, num_steps=2000).estimate(MatrixSequence(steps), seed=3)
    made = next(count)
    assert made < 1100  # far fewer than steps
    assert max(conditions) < np.finfo(dtype).eps ** -0.5
    monkeypatch.setattr(module, "_LONGEST_INTERVAL", 1)
    every = LyapunovQr(num_exponents=None, num_steps=2000).estimate(MatrixSequence(steps), seed=3)
    assert next(count) - made - 1 == 2100
    allowed = {np.float32: 1e-5, np.float64: 1e-13}[dtype]
    np.testing.assert_allclose(found.values, every.values, atol=allowed)
    np.testing.assert_allclose(found.stderr, every.stderr, atol=allowed)
    assert np.all(found.rounding < 100 * np.finfo(dtype).eps ** 0.5)


def coverage(flow, settings, truth, seeds):
    """Part of the seeds whose 95 % interval holds the true exponents."""
    inside = []
    for seed in range(seeds):
        found = settings.estimate(flow, seed=seed)
        quantile = scipy.special.stdtrit(len(found.history) - 1, 0.975)
        inside.append(np.abs(found.values - truth) <= quantile * found.stderr)
    return np.mean(inside)


def test_standard_errors_are_covered():
    # Independent steps: 2 exponents of 150 runs; 95 % +- 4 standard deviations of that count, correlation included.
    rate = coverage(coin_flow(), LyapunovQr(num_steps=330, transient=20), [0.20273255, -0.85739921], 150)
    assert 0.88 < rate < 0.995


class Sticky:
    """A scalar map that grows by e^0.5 or shrinks by e^-0.3, and changes its mind one time in ten."""

    size, dtype = 1, np.dtype(np.float64)

    def reset(self, seed):
        self.rng = np.random.default_rng([seed, 97])
        self.up = bool(self.rng.integers(2))

    def step(self, tangents):
        self.up ^= bool(self.rng.random() < 0.1)
        return tangents * math.exp(0.5 if self.up else -0.3)

    def state(self):
        return [self.up, self.rng.bit_generator.state]

    def restore(self, state):
        self.up, self.rng.bit_generator.state = state


# Variance of the mean is 9 times that of independent steps, (1 + .8)/(1 - .8): without blocks 48 % would be covered.
# Blocks of 64 steps leave 7 % of the variance out.
CORRELATED = LyapunovQr(num_steps=2500, transient=0)


def test_standard_errors_of_correlated_steps():
    found = CORRELATED.estimate(Sticky(), seed=1)
    assert found.stderr[0] == pytest.approx(math.sqrt(9 * 0.16 / 2500), rel=0.4)


@pytest.mark.slow
def test_standard_errors_cover_correlated_steps():
    assert 0.86 < coverage(Sticky(), CORRELATED, [0.1], 120) < 0.995


def test_early_stop():
    settings = LyapunovQr(num_steps=50_000, tolerance=0.02)
    found = settings.estimate(coin_flow(), seed=1)
    # 0.90/sqrt(T) = 0.02 at T = 2025.
    assert 1200 < found.num_steps < 4000
    assert found.stderr.max() <= 0.02
    assert found.num_steps % found.block_size == 0
    fewer = LyapunovQr(num_steps=found.num_steps - 1, tolerance=0.02).estimate(coin_flow(), seed=1)
    assert fewer.num_steps == found.num_steps - 1
    within(found, VECTORS["random_diagonal_map"]["lyapunov"])


# Interruptions.


class Interrupted:
    """A flow that is interrupted in the middle of its n-th step, and is of no use afterwards."""

    def __init__(self, flow, at):
        self.flow, self.left = flow, at
        self.size, self.dtype = flow.size, flow.dtype

    def reset(self, seed):
        self.flow.reset(seed)

    def step(self, tangents):
        self.left -= 1
        moved = self.flow.step(tangents)
        if self.left == 0:
            raise KeyboardInterrupt
        return moved

    def state(self):
        return self.flow.state()

    def restore(self, state):
        self.flow.restore(state)


FLOWS = {
    "henon": lambda: Henon(1.4, 0.3),
    "training": lambda: TanhTraining(learning_rate=3.0),
    "float32": lambda: RandomProducts(4, lambda rng: np.eye(4) + 0.05 * rng.standard_normal((4, 4)), np.float32),
}


@pytest.fixture
def quick_disk(monkeypatch):
    # Waiting for the disk after each of thousands of writings would take minutes.
    monkeypatch.setattr(os, "fsync", lambda handle: None)


class Copied(Interrupted):
    """A flow that keeps a copy of the run's file from the middle of every step: what an interruption there leaves."""

    def __init__(self, flow, path):
        super().__init__(flow, 0)
        self.path, self.copies = path, []

    def step(self, tangents):
        self.copies.append(self.path.read_bytes() if self.path.exists() else None)
        return super().step(tangents)


@pytest.mark.usefixtures("quick_disk")
@pytest.mark.parametrize(
    ("name", "every"),
    [
        ("henon", 7),
        ("float32", 1),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in (("henon", 1), ("training", 1), ("training", 7), ("float32", 7))
        ),
    ],
)
def test_a_run_goes_on_after_every_possible_interruption(tmp_path, name, every):
    make, total, path = FLOWS[name], 20 + 75, tmp_path / "run.npz"
    settings = LyapunovQr(num_exponents=2, num_steps=75, transient=20)
    whole = settings.estimate(make(), seed=3)
    copied = Copied(make(), path)
    kept = attrs.evolve(settings, checkpoint=str(path), checkpoint_interval=every)
    assert kept.estimate(copied, seed=3) == whole
    assert len(copied.copies) == total
    for done, content in enumerate(copied.copies):
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        rest = Interrupted(make(), 10**9)
        assert attrs.evolve(kept, checkpoint_interval=1000).estimate(rest, seed=3) == whole
        # It did go on, and not start again.
        assert 10**9 - rest.left == total - done // every * every


def test_steps_that_are_kept_are_those_of_the_exponents():
    settings = LyapunovQr(num_exponents=2, num_steps=150, transient=10)
    found = attrs.evolve(settings, keep_steps=True).estimate(gaussian(3), seed=1)
    assert found.steps.shape == (150, 2)
    np.testing.assert_allclose(np.sort(found.steps.mean(axis=0))[::-1], found.values, atol=1e-14)
    order = np.argsort(-found.steps.mean(axis=0))
    blocks = found.steps[: len(found.history) * found.block_size, order].reshape(-1, found.block_size, 2)
    np.testing.assert_allclose(found.block_means, blocks.mean(axis=1), atol=1e-12)
    plain = settings.estimate(gaussian(3), seed=1)
    assert plain.steps is None
    np.testing.assert_allclose(plain.values, found.values, atol=1e-12)


def test_blocks_are_of_whole_epochs():
    settings = LyapunovQr(num_exponents=2, num_steps=500, transient=10, block_unit=7)
    found = settings.estimate(gaussian(3), seed=1)
    assert (found.block_size, len(found.history)) == (14, 35)  # 71 epochs, merged in pairs at the 64th
    steps = attrs.evolve(settings, keep_steps=True).estimate(gaussian(3), seed=1).steps
    np.testing.assert_allclose(found.block_means[0], steps[:14].mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(found.values, steps.mean(axis=0), atol=1e-12)
    short = attrs.evolve(settings, num_steps=20).estimate(gaussian(3), seed=1)
    assert (short.block_size, len(short.history)) == (7, 2)


@pytest.mark.usefixtures("quick_disk")
@pytest.mark.parametrize("keep", [False, True])
def test_a_run_that_is_interrupted_again_and_again(tmp_path, keep):
    settings = LyapunovQr(num_exponents=None, num_steps=300, tolerance=1e-9, checkpoint_interval=3, keep_steps=keep)
    whole = settings.estimate(TanhTraining(), seed=3)
    kept = attrs.evolve(settings, checkpoint=str(tmp_path / "run.npz"))
    for _ in range(1000):
        try:
            found = kept.estimate(Interrupted(TanhTraining(), 8), seed=3)
            break
        except KeyboardInterrupt:
            pass
    assert found == whole


def test_a_finished_run_costs_nothing_and_goes_further(tmp_path):
    kept = LyapunovQr(num_steps=75, checkpoint=str(tmp_path / "run.npz"))
    first = kept.estimate(coin_flow(), seed=1)
    again = Interrupted(coin_flow(), 1)
    assert kept.estimate(again, seed=1) == first
    longer = attrs.evolve(kept, num_steps=210)
    whole = attrs.evolve(longer, checkpoint=None).estimate(coin_flow(), seed=1)
    rest = Interrupted(coin_flow(), 10**9)
    assert longer.estimate(rest, seed=1) == whole
    assert 10**9 - rest.left == 210 - 75


@pytest.mark.parametrize(
    ("change", "seed", "flow", "what"),
    [
        ({}, 2, coin_flow(), "seed"),
        ({"transient": 5}, 1, coin_flow(), "transient"),
        ({"num_exponents": 1}, 1, coin_flow(), "num_exponents"),
        ({}, 1, gaussian(3), "size, num_exponents"),
        ({}, 1, Henon(1.4, 0.3), "the flow's start"),
    ],
)
def test_another_run_s_checkpoint_is_refused(tmp_path, change, seed, flow, what):
    kept = LyapunovQr(num_exponents=None, num_steps=20, checkpoint=str(tmp_path / "run.npz"))
    kept.estimate(coin_flow(), seed=1)
    with pytest.raises(SdkerasError, match=rf"another run \(it differs in: {what}"):
        attrs.evolve(kept, **change).estimate(flow, seed=seed)


def test_another_file_is_refused(tmp_path):
    from sdkeras.files.archive import save_checkpoint

    path = str(tmp_path / "run.npz")
    for content in (1, [1, 2, 3], [{}, {}, None], ["a", "b"]):
        save_checkpoint(path, content)
        with pytest.raises(SdkerasError, match="not a checkpoint of lyapunov-qr"):
            LyapunovQr(checkpoint=path).estimate(coin_flow(), seed=1)


@pytest.mark.parametrize(("num_steps", "interval"), [(6, 100), (40, 100), (200, 7)])
def test_a_file_without_some_of_its_blocks_is_refused(tmp_path, num_steps, interval):
    from sdkeras.files.archive import load_checkpoint, save_checkpoint

    path = str(tmp_path / "run.npz")
    kept = LyapunovQr(num_steps=num_steps, transient=5, checkpoint=path, checkpoint_interval=interval)
    kept.estimate(coin_flow(), seed=1)
    who, run, flow = load_checkpoint(path)
    longer = attrs.evolve(kept, num_steps=num_steps + 10)
    for blocks in (run["blocks"][:-1], np.concatenate([run["blocks"], run["blocks"][:1]])):
        save_checkpoint(path, [who, {**run, "blocks": blocks}, flow])
        with pytest.raises(SdkerasError, match="its numbers do not describe a run"):
            longer.estimate(coin_flow(), seed=1)
    save_checkpoint(path, [who, run, flow])
    assert longer.estimate(coin_flow(), seed=1) == attrs.evolve(longer, checkpoint=None).estimate(coin_flow(), seed=1)


# NaN, divergence, breakdown.


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("bad", [1, 5, 11])
def test_nothing_measured_is_an_error_that_says_at_which_step(value, bad):
    steps = np.stack([np.eye(3)] * 20)
    steps[bad - 1, 1, 1] = value
    with pytest.raises(NonFiniteError, match=f"after step {bad} of"):
        LyapunovQr(num_steps=10, transient=10).estimate(MatrixSequence(steps), seed=0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("bad", [12, 13, 60, 110])
def test_a_later_one_ends_the_run_and_keeps_what_was_measured(tmp_path, value, bad):
    steps = np.eye(3) + 0.1 * np.random.default_rng(1).standard_normal((200, 3, 3))
    settings = LyapunovQr(num_exponents=None, num_steps=bad - 11, transient=10)
    before = settings.estimate(MatrixSequence(steps), seed=0)
    steps[bad - 1, 1, 1] = value
    kept = attrs.evolve(settings, num_steps=150, checkpoint=str(tmp_path / "run.npz"))
    found = kept.estimate(MatrixSequence(steps), seed=0)
    assert found.stopped_at == bad
    assert found.num_steps == bad - 11
    assert attrs.evolve(found, stopped_at=None) == before
    # The file says the same, and a flow that raises is as good as one that returns NaN.
    assert kept.estimate(MatrixSequence(steps), seed=0) == found

    class Raises(MatrixSequence):
        def step(self, tangents):
            if self.position == bad - 1:
                raise NonFiniteError("the loss is NaN")
            return super().step(tangents)

    assert attrs.evolve(settings, num_steps=150).estimate(Raises(steps), seed=0) == found


def test_a_diverging_trajectory_says_where():
    # x -> -1.4 x^2 from 3: beyond 1e308 after ten squarings.
    found = LyapunovQr(num_steps=500, transient=2).estimate(Henon(1.4, 0.3, start=(3.0, 0.1)), seed=0)
    assert 8 <= found.stopped_at <= 14
    assert found.num_steps == found.stopped_at - 3
    assert np.all(np.isfinite(found.values))
    assert found.values[0] > 10


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_singular_map_is_a_result(dtype):
    q = rotation(4, seed=1)
    flow = MatrixFlow(((q * [2.0, 0.5, 0.0, 0.0]) @ q.T).astype(dtype))
    found = LyapunovQr(num_exponents=None, num_steps=100).estimate(flow, seed=0)
    np.testing.assert_allclose(found.values[:2], np.log([2.0, 0.5]), atol=1e-5)
    assert found.num_resolved == 2
    assert found.log_det is None
    # Upper ends: 30 eps of the largest.
    np.testing.assert_allclose(found.values[2:], math.log(30 * float(np.finfo(dtype).eps) * 2), atol=0.7)


def test_a_zero_map_and_one_zero_step():
    found = LyapunovQr(num_exponents=None, num_steps=50).estimate(MatrixFlow(np.zeros((3, 3))), seed=0)
    assert found.num_resolved == 0
    assert np.all(found.values < -700)
    steps = np.stack([np.diag([2.0, 0.5])] * 100)
    steps[40, :, 1] = 0
    found = LyapunovQr(num_steps=100, transient=0).estimate(MatrixSequence(steps), seed=0)
    # One bad step in a hundred must not make the exponent -infinity, but it is no longer more than an upper bound.
    assert found.num_resolved == 1
    assert -1.2 < found.values[1] < math.log(0.5) - 0.2


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_float32_does_not_overflow_between_decompositions(scale):
    flow = MatrixFlow(np.diag([1.0, 0.5]).astype(np.float32) * np.float32(scale))
    found = LyapunovQr(num_steps=200).estimate(flow, seed=0)
    np.testing.assert_allclose(found.values, np.log([scale, 0.5 * scale]), rtol=1e-6)


def test_a_flow_of_another_shape_is_told():
    class Wrong(MatrixFlow):
        def step(self, tangents):
            return tangents[:1]

    with pytest.raises(ValueError, match=r"shape \(1, 3\), expected \(3, 3\)"):
        LyapunovQr().estimate(Wrong(np.eye(3)), seed=0)


@pytest.mark.parametrize(
    "settings",
    [{"num_exponents": 0}, {"num_steps": 0}, {"transient": -1}, {"tolerance": 0.0}, {"checkpoint_interval": 0}],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        LyapunovQr(**settings)
