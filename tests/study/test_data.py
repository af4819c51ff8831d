"""The batches that a study trains on."""

import itertools

import numpy as np

from sdkeras.study.train import shuffled

X = np.arange(10.0)[:, None]
Y = np.arange(10)


def epochs(count: int, seed: int) -> list[list[int]]:
    every = list(itertools.islice(shuffled((X, Y), 4, seed), 3 * count))
    for x, y in every:
        assert x.dtype == "float32"
        assert np.array_equal(x[:, 0], y)
    return [[int(k) for _, y in every[3 * e : 3 * e + 3] for k in y] for e in range(count)]


def test_every_epoch_has_every_example_once_in_an_order_of_its_own_by_the_seed() -> None:
    orders = epochs(4, seed=0)
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert len(set(map(tuple, orders))) == 4
    assert epochs(3, seed=1) == epochs(3, seed=1) != epochs(3, seed=2)
