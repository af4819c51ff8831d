"""The projection against its matrix, and what it does to distances."""

import numpy as np
import pytest
from scipy.spatial.distance import pdist

from sdkeras.linalg import projection
from sdkeras.linalg.projection import Projection, distortion_bound


def test_it_is_one_linear_map_made_of_signs(monkeypatch) -> None:
    """Column by column, also in blocks of 7 columns and over several calls: S/sqrt(k) with S of signs, S the same."""
    monkeypatch.setattr(projection, "_BLOCK", 7 * 5)
    made = Projection(30, 5, seed=3)
    assert np.array_equal(made(np.zeros((1, 30))), np.zeros((1, 5)))  # the origin
    matrix = made(np.eye(30)).T * np.sqrt(5)
    np.testing.assert_allclose(np.abs(matrix), 1, rtol=1e-15)
    assert abs(matrix.mean()) < 5 / np.sqrt(150)
    assert not np.array_equal(matrix[:, :7], matrix[:, 7:14])  # blocks differ
    x = np.random.default_rng(0).standard_normal((4, 30))
    np.testing.assert_allclose(made(x), x @ matrix.T / np.sqrt(5), rtol=1e-12, atol=1e-14)
    other = Projection(30, 5, seed=4)
    other(np.zeros((1, 30)))
    assert not np.array_equal(other(np.eye(30)).T * np.sqrt(5), matrix)


def test_distances_are_kept_within_the_bound() -> None:
    x = np.cumsum(np.random.default_rng(1).standard_normal((50, 3000), dtype=np.float32), axis=0) + 100
    made = Projection(3000, 600, seed=0)
    y = np.concatenate([made(x[:20]), made(x[20:])])
    ratios = (pdist(y) / pdist(x)) ** 2
    found = made.distortion(50)
    assert found.bound == pytest.approx(distortion_bound(50, 600))
    assert np.max(np.abs(ratios - 1)) < found.bound < 0.4
    assert abs(ratios.mean() - 1) < 0.05
    assert found.num_pairs == 48
    assert 0 < found.measured <= np.max(np.abs(np.sqrt(ratios) - 1)) + 1e-6


def test_no_pair_counts_twice_in_a_call() -> None:
    """Three points, the first of them the origin: the pairs of the other two with it and with each other."""
    made = Projection(40, 20, seed=0)
    made(np.random.default_rng(2).standard_normal((3, 40)))
    assert made.distortion(3).num_pairs == 5  # the first point is met as itself and as the origin


def test_the_bound_solves_its_equation_and_says_where_it_promises_nothing() -> None:
    for points, dimension in ((50, 600), (5000, 1000), (5000, 100_000)):
        eps = distortion_bound(points, dimension)
        assert dimension * (eps**2 / 2 - eps**3 / 3) == pytest.approx(6 * np.log(points), rel=1e-9)
    # 6 ln 5000 / 1000 = 0.0511 = 0.368^2/2 - 0.368^3/3 on paper.
    assert distortion_bound(5000, 1000) == pytest.approx(0.368, abs=1e-3)
    assert distortion_bound(5000, 300) is None
