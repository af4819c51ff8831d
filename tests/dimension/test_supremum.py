"""The supremum over snapshots against its definition written out, and its interval's coverage."""

import numpy as np
import pytest

from sdkeras import sharpness_dimension
from sdkeras.dimension.supremum import estimate_supremum


def measures(z: np.ndarray) -> list[list[list[tuple[np.ndarray, np.ndarray]]]]:
    """Exact spectra z of shape [runs, snapshots, d] as the kernel takes them."""
    return [[[(own, np.ones(len(own)))] for own in run] for run in z]


def by_definition(z: np.ndarray) -> float:
    """Sort, maximum over snapshots of each rank, mean over runs, Def. 4.2."""
    ordered = -np.sort(-z, axis=2)
    ranks = range(z.shape[2])
    averages = [np.mean([max(snapshot[k] for snapshot in run) for run in ordered]) for k in ranks]
    return sharpness_dimension(averages)


def test_it_is_the_definition_on_random_spectra() -> None:
    generator = np.random.default_rng(0)
    for _ in range(300):
        runs, snapshots, d = generator.integers((1, 1, 4), (6, 6, 9))
        z = generator.standard_normal((runs, snapshots, d)) - generator.uniform(0, 1)
        found = estimate_supremum(measures(z), int(d))
        assert found.value == pytest.approx(by_definition(z), abs=1e-9)
        for k in range(snapshots):
            assert found.per_snapshot[k] == pytest.approx(by_definition(z[:, [k]]), abs=1e-9)


def test_it_is_no_smaller_than_any_snapshot_to_the_bit() -> None:
    """Also with quadrature weights, where steps differ between runs and snapshots."""
    generator = np.random.default_rng(1)
    for _ in range(300):
        runs, snapshots, size = generator.integers(1, 5), generator.integers(2, 5), int(generator.integers(5, 40))
        made = []
        for _ in range(runs):
            weights = [generator.exponential(size=4) for _ in range(snapshots)]
            z = [generator.standard_normal(4) - 0.5 for _ in weights]
            made.append([[(own, w * (size / w.sum()))] for own, w in zip(z, weights, strict=True)])
        found = estimate_supremum(made, size)
        assert found.value >= found.per_snapshot.max()
        still = estimate_supremum([[run[0]] * 3 for run in made], size)
        assert still.value == still.per_snapshot[0] == pytest.approx(found.per_snapshot[0], abs=1e-9)


def test_the_maximum_comes_before_the_average() -> None:
    """Two minibatches whose stretching is at different snapshots: no snapshot alone has the supremum."""
    high, low = [2.0, -0.5, -4.0], [-1.0, -2.0, -4.0]
    found = estimate_supremum(measures(np.array([[high, low], [low, high]])), 3)
    assert found.value == pytest.approx(2 + 1.5 / 4)  # lambda = 2, -0.5, -4
    np.testing.assert_allclose(found.per_snapshot, 1 + 0.5 / 1.25)  # lambda = 0.5, -1.25, -4


def test_a_repeated_value_counts_as_often_as_its_weight() -> None:
    plain = np.array([[[1.0, 0.0, 0.0, 0.0, -3.0], [0.5, 0.2, 0.0, -0.1, -1.0]]] * 3)
    short = [[[(np.array([1.0, 0.0, -3.0]), np.array([1.0, 3.0, 1.0]))], [(run[1], np.ones(5))]] for run in plain]
    assert estimate_supremum(short, 5).value == pytest.approx(by_definition(plain), abs=1e-12)


@pytest.mark.parametrize(("spread", "runs"), [(0.2, 24), pytest.param(0.5, 96, marks=pytest.mark.slow)])
def test_the_interval_covers_the_value_of_the_population(spread: float, runs: int) -> None:
    """Toy minibatches: a spectrum that varies from one to the next and moves between snapshots.

    The interval is first order: 24 runs at the larger spread, where SD varies by a whole dimension, cover 0.91.
    """
    d, snapshots, trials = 12, 3, 400
    generator = np.random.default_rng(2)

    def population(count: int) -> np.ndarray:
        level = np.linspace(0.6, -1.4, d) + spread * generator.standard_normal((count, 1, 1))
        return level + 0.3 * generator.standard_normal((count, snapshots, d))

    truth = by_definition(population(20_000))
    intervals = [estimate_supremum(measures(population(runs)), d).interval for _ in range(trials)]
    covered = np.mean([low <= truth <= high for low, high in intervals])
    assert 0.95 - 3.5 * np.sqrt(0.95 * 0.05 / trials) < covered < 0.995
    # An interval a fifth narrower would not pass.
    shorter = [(0.5 * (a + b), 0.4 * (b - a)) for a, b in intervals]
    assert np.mean([abs(truth - middle) <= half for middle, half in shorter]) < covered - 0.02


def test_below_three_runs_there_is_no_interval() -> None:
    z = np.random.default_rng(3).standard_normal((2, 2, 4))
    assert estimate_supremum(measures(z), 4).interval is None
    assert estimate_supremum(measures(np.concatenate([z, z])), 4).interval is not None


def test_probes_are_averaged_before_the_maximum_which_noise_would_raise() -> None:
    """One spectrum at three snapshots, seen through noise of its own at each: four probes rise half as much as two."""
    generator, level, values = np.random.default_rng(4), np.linspace(0.6, -1.4, 12), {}
    noisy = level + 0.2 * generator.standard_normal((200, 3, 8, 12))
    for count in (1, 2, 4, 8):
        made = [[[(z, np.ones(12)) for z in probes[:count]] for probes in run] for run in noisy]
        values[count] = estimate_supremum(made, 12).value
    truth = sharpness_dimension(level)
    rise = [values[count] - truth for count in (1, 2, 4, 8)]
    assert rise[0] > rise[1] > rise[2] > rise[3] > 0
    assert rise[3] < 0.5 * rise[0]
