"""Spanning trees against SciPy's; dimensions of sets whose dimension is known."""

import re

import numpy as np
import pytest
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.spatial.distance import cdist, pdist, squareform

from sdkeras.errors import SdkerasError
from sdkeras.study import topology
from sdkeras.study.topology import (
    box_counting_dimension,
    e_alpha,
    euclidean_distances,
    log_power_sum,
    loss_distances,
    ph_dimension,
    spanning_tree_edges,
)


def points(n: int = 60, d: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d))


def cantor(rng: np.random.Generator, n: int, axes: int) -> np.ndarray:
    digits = 2 * rng.integers(0, 2, (n, axes, 30))
    return (digits * 3.0 ** -np.arange(1, 31)).sum(axis=2)


# Distances


def test_distances_are_scipys_in_ragged_blocks(monkeypatch) -> None:
    monkeypatch.setattr(topology, "_BLOCK_BYTES", 8 * 4 * 7)
    np.testing.assert_allclose(euclidean_distances(points()), pdist(points()), rtol=1e-12, atol=0)
    losses = np.abs(points(23)).astype(np.float32)
    expected = np.abs(losses[:, None].astype(float) - losses).mean(axis=2)
    np.testing.assert_allclose(squareform(loss_distances(losses)), expected, rtol=1e-12, atol=1e-15)


def test_close_points_far_from_the_origin_keep_their_distances() -> None:
    """Where |a|^2 + |b|^2 - 2ab would cancel: steps of 1e-7 on a path of length 1, 1e4 away from 0."""
    x = 1e4 + points(40, 6) * 0.1
    x = np.concatenate([x, x + 1e-7 * points(40, 6, seed=1), x[:3]])
    found = squareform(euclidean_distances(x))
    # a and b are known to eps * 1e4 only; SciPy subtracts the same numbers. The centre costs as much again.
    np.testing.assert_allclose(found, cdist(x, x), rtol=1e-9, atol=4e-12 * np.sqrt(6))
    assert np.array_equal(found[80:, :3].diagonal(), np.zeros(3))


# Trees


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_trees_are_scipys(alpha: float) -> None:
    distances = euclidean_distances(points(150))
    matrix = squareform(distances)
    edges = minimum_spanning_tree(matrix).data
    assert len(edges) == 149
    np.testing.assert_allclose(np.sort(spanning_tree_edges(distances)), np.sort(edges), rtol=1e-14)
    assert e_alpha(distances, alpha) == pytest.approx(np.sum(edges**alpha), rel=1e-13)
    some = np.random.default_rng(3).permutation(150)[:40]
    inner = minimum_spanning_tree(matrix[np.ix_(some, some)]).data
    np.testing.assert_allclose(np.sort(spanning_tree_edges(distances, some)), np.sort(inner), rtol=1e-14)


def test_points_at_distance_zero_are_one() -> None:
    """SciPy's tree of a matrix with zeros falls apart; that of the distinct points is the truth."""
    x = points(30)
    distinct, distances = euclidean_distances(x), euclidean_distances(np.concatenate([x, x[:12], x[:5]]))
    truth = minimum_spanning_tree(squareform(distinct)).sum()
    assert e_alpha(distances) == pytest.approx(truth, rel=1e-13)
    assert minimum_spanning_tree(squareform(distances)).sum() != pytest.approx(truth, rel=1e-3)
    found = ph_dimension(distances)
    assert (found.num_points, found.num_merged) == (30, 17)
    assert found.slope == pytest.approx(ph_dimension(distinct).slope, rel=1e-13)


def test_e_alpha_of_a_path_by_hand() -> None:
    """Points 0, 1, 3, 6 on a line: edges 1, 2, 3."""
    distances = euclidean_distances(np.array([[3.0], [0], [6], [1]]))
    assert e_alpha(distances) == 6
    assert e_alpha(distances, 2.0) == 14
    assert e_alpha(np.zeros(10)) == 0


# Dimensions. The bias of 1,500 points is part of the tolerance: the boundary's for cubes, -0.04 d^2/3 or so.


@pytest.mark.parametrize(
    ("make", "alpha", "truth", "tolerance"),
    [
        (lambda rng, n: rng.random((n, 1)), 0.5, 1.0, 0.04),
        (lambda rng, n: rng.random((n, 2)), 1.0, 2.0, 0.12),
        (lambda rng, n: rng.random((n, 3)), 1.0, 3.0, 0.3),
        (lambda rng, n: cantor(rng, n, 1), 0.3, np.log(2) / np.log(3), 0.06),
        (lambda rng, n: cantor(rng, n, 2), 0.5, 2 * np.log(2) / np.log(3), 0.1),
        (lambda rng, n: np.cumsum(rng.standard_normal((n, 3)), axis=0), 1.0, 2.0, 0.35),
        (lambda rng, n: np.cumsum(rng.standard_normal((n, 12)), axis=0), 1.0, 2.0, 0.4),
    ],
    ids=["interval", "square", "cube", "cantor", "cantor-square", "walk-3", "walk-12"],
)
def test_dimensions_that_are_known(make, alpha: float, truth: float, tolerance: float) -> None:
    found = ph_dimension(euclidean_distances(make(np.random.default_rng(7), 1500)), alpha, num_repeats=4)
    assert abs(found.value - truth) < tolerance
    assert 0 < found.stderr < 0.1 * truth
    assert found.sizes[0] == 150
    assert found.sizes[-1] == found.num_points == 1500


def test_a_flat_sheet_in_many_dimensions_keeps_its_dimension() -> None:
    """An isometry changes nothing; nor does the unit of length."""
    rng = np.random.default_rng(0)
    x = rng.random((400, 2))
    frame = np.linalg.qr(rng.standard_normal((50, 2)))[0]
    flat, embedded = (ph_dimension(euclidean_distances(y), num_repeats=3) for y in (x, 1e-3 * x @ frame.T + 1))
    assert embedded.value == pytest.approx(flat.value, rel=1e-8)


def test_the_standard_error_is_that_of_fresh_points_or_more() -> None:
    """Over 30 sets of 300 points: their spread is between 0.3 and 1.2 of the mean standard error."""
    made = [
        ph_dimension(euclidean_distances(np.random.default_rng([9, k]).random((300, 2))), num_repeats=5, seed=k)
        for k in range(30)
    ]
    spread = np.std([found.value for found in made], ddof=1)
    assert 0.3 < spread / np.mean([found.stderr for found in made]) < 1.2


@pytest.mark.parametrize(
    ("distances", "alpha", "said"),
    [
        # Above the dimension, .63.
        (euclidean_distances(cantor(np.random.default_rng(0), 400, 1)), 2.0, "not above alpha"),
        # All distances equal: E_alpha = n - 1, the set has no finite dimension.
        (np.ones(200 * 199 // 2), 1.0, r"n\^(1|1\.0\d|0\.9\d).*slope below 1"),
        (euclidean_distances(np.repeat(points(19), 10, axis=0)), 1.0, "^19 distinct points of 190 are too few"),
    ],
)
def test_where_the_formula_does_not_hold_it_says_so(distances: np.ndarray, alpha: float, said: str) -> None:
    found = ph_dimension(distances, alpha)
    assert (found.value, found.stderr) == (None, None)
    assert re.search(said, found.reason)


def test_alphas_far_out_are_told_and_warn_of_nothing(recwarn) -> None:
    """E_alpha of a path of edges 1, 2, 3 at alpha = 1e4 is 3^1e4 (1 + ...): its logarithm is 1e4 ln 3."""
    path = euclidean_distances(np.array([[0.0], [1], [3], [6]]))
    assert log_power_sum(spanning_tree_edges(path), 1e4) == pytest.approx(1e4 * np.log(3), rel=1e-12)
    assert log_power_sum(spanning_tree_edges(path), 2.0) == pytest.approx(np.log(14), rel=1e-13)
    with pytest.raises(SdkerasError, match=r"alpha = 10000 is 1\.099e\+04 in its logarithm"):
        e_alpha(path, 1e4)
    with pytest.raises(SdkerasError, match="take a smaller alpha"):
        e_alpha(path / 100, 1e4)
    assert e_alpha(np.zeros(6), 1e4) == 0
    for alpha in (1e9, 1e200, 1e308):
        found = ph_dimension(euclidean_distances(10 * points(100)), alpha, num_repeats=3)
        assert found.value is None
        assert found.reason
        assert "nan" not in found.reason
    assert not list(recwarn)


def test_the_seed_determines_the_subsamples() -> None:
    first, again, other = (ph_dimension(euclidean_distances(points(100)), seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first.slope != other.slope


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda distances: e_alpha(squareform(distances)), r"condensed.*shape \(60, 60\).*euclidean_distances"),
        (lambda distances: e_alpha(distances[:-1]), "each pair of points, got 1769"),
        (lambda distances: e_alpha(-distances), "at least 0"),
        (lambda distances: e_alpha(distances, 0), "alpha is 0"),
        (lambda distances: ph_dimension(distances * np.inf), "infinity"),
        (lambda distances: ph_dimension(distances, num_repeats=1), "num_repeats"),
        (lambda distances: euclidean_distances(points(1)), "at least 2 points"),
        (lambda distances: loss_distances(np.array([[1.0, np.nan], [0, 0]])), "NaN"),
    ],
)
def test_what_is_no_set_of_points_is_refused(call, said: str) -> None:
    with pytest.raises(SdkerasError, match=said):
        call(euclidean_distances(points()))


# Boxes


def sierpinski(rng: np.random.Generator, n: int) -> np.ndarray:
    corners, at = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, 0.75**0.5]]), np.zeros((n, 2))
    for _ in range(40):
        at = (at + corners[rng.integers(0, 3, n)]) / 2
    return at


SETS = {
    "interval": (lambda rng, n: rng.random(n), 1.0),
    "segment in space": (lambda rng, n: rng.random((n, 1)) * [[1.0, 2.0, 3.0]], 1.0),
    "circle far away": (lambda rng, n: 1e6 + np.exp(2j * np.pi * rng.random(n))[:, None].view(float), 1.0),
    "square": (lambda rng, n: rng.random((n, 2)), 2.0),
    "Cantor set": (lambda rng, n: cantor(rng, n, 1), np.log(2) / np.log(3)),
    "Cantor dust": (lambda rng, n: cantor(rng, n, 2), np.log(4) / np.log(3)),
    "Sierpinski triangle": (sierpinski, np.log(3) / np.log(2)),
}


@pytest.mark.parametrize("name", SETS)
def test_box_counting_of_sets_of_known_dimension(name: str) -> None:
    """Known in closed form; the interval holds it, and is narrow."""
    make, dimension = SETS[name]
    found = box_counting_dimension(make(np.random.default_rng(0), 20_000))
    low, high = found.interval
    assert low <= dimension <= high
    assert high - low < 0.4
    assert abs(found.value - dimension) < 0.07
    np.testing.assert_allclose(found.sizes[:-1] / found.sizes[1:], 2.0)


def test_more_points_and_the_unit_of_length() -> None:
    make, _ = SETS["Cantor dust"]
    rng = np.random.default_rng(0)
    few, many = (make(rng, n) for n in (10_000, 160_000))
    widths = [np.ptp(box_counting_dimension(each).interval) for each in (few, many)]
    assert widths[1] < widths[0]
    small = box_counting_dimension(2.0**-40 * few, seed=3)
    same = box_counting_dimension(few, seed=3)
    assert small.interval == same.interval
    np.testing.assert_allclose(small.sizes, 2.0**-40 * same.sizes)


def test_points_that_are_missed_are_counted() -> None:
    """A square meets (1/size + 1)^2 boxes of a grid anywhere. 20,000 points miss a few of the finest boxes.

    Of N boxes n points miss exp(-n/N) each: at most 0.9 % here. From the thirds, tenths and hundredths that a quarter,
    a half and all of them miss, the extrapolation finds up to 5.6 % for it.
    """
    found = box_counting_dimension(np.random.default_rng(0).random((20_000, 2)))
    beyond = found.log_counts - 2 * np.log(1 / found.sizes + 1)
    assert np.all(beyond > -0.01)
    assert np.all(beyond < 0.056)
    assert beyond[-1] > 0.01  # so that the correction is at work


def test_box_counting_of_few_points_and_of_one_place() -> None:
    assert box_counting_dimension(np.ones((5, 2))).interval == (0.0, 0.0)
    two = box_counting_dimension(np.repeat([[0.0, 1.0], [3.0, 4.0]], 2000, axis=0))
    assert two.value == pytest.approx(0.0, abs=1e-9)
    cube = box_counting_dimension(np.random.default_rng(0).random((1000, 3)))
    assert (cube.value, cube.interval) == (None, None)
    assert "1,000 points find the boxes of" in cube.reason
    wide = box_counting_dimension(np.repeat(np.random.default_rng(0).random((3, 60)), 2000, axis=0))
    assert wide.value == pytest.approx(0.0, abs=1e-9)  # more columns than a key of 64 bits has room for
    for wrong in ([[np.nan, 0.0], [1.0, 1.0]], [[1.0, 2.0]], "points"):
        with pytest.raises(SdkerasError):
            box_counting_dimension(wrong)


@pytest.mark.parametrize("count", [2, 3, 127])
def test_boxes_of_a_handful_of_points_are_undetermined(count: int) -> None:
    found = box_counting_dimension(points(count, 2))
    assert (found.value, f"{count} points find the boxes of 0 scales" in found.reason) == (None, True)
