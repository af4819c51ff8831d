import numpy as np
import pytest

from sdkeras.linalg.probes import rademacher_probes, start_vector


def test_rademacher_probes_are_signs_with_equal_chance():
    probes = rademacher_probes(1000, 50, seed=0, dtype=np.float32)
    assert probes.shape == (50, 1000)
    assert probes.dtype == np.float32
    assert set(np.unique(probes)) == {-1.0, 1.0}
    # Mean of 50,000 signs: standard error 1 / sqrt(50000); 5 of them.
    assert abs(probes.mean()) < 5 / np.sqrt(probes.size)
    # Independent entries: each pair of probes has correlation N(0, 1/1000), 1,225 pairs.
    correlations = (probes @ probes.T / 1000)[np.triu_indices(50, 1)]
    assert np.max(np.abs(correlations)) < 6 / np.sqrt(1000)


@pytest.mark.parametrize("make", [start_vector, lambda *a, **k: rademacher_probes(a[0], 1, **k)[0]])
def test_draws_depend_on_seed_and_stream_and_nothing_else(make):
    def draw(seed, stream):
        return make(64, seed=seed, dtype=np.float64, stream=stream)

    np.random.seed(0)  # noqa: NPY002 - the global state must not matter
    first = draw(1, 0)
    np.random.seed(1)  # noqa: NPY002
    np.testing.assert_array_equal(first, draw(1, 0))
    others = [draw(seed, stream) for seed in range(4) for stream in range(4) if (seed, stream) != (1, 0)]
    drawn = np.stack([first, *others])
    assert len(np.unique(drawn, axis=0)) == 16


def test_start_vector_is_a_unit_vector():
    vector = start_vector(10_000, seed=5, dtype=np.float32)
    assert vector.dtype == np.float32
    assert np.linalg.norm(vector.astype(np.float64)) == pytest.approx(1.0, abs=1e-6)
    # Uniform on the sphere: the sum is N(0, 1).
    assert abs(vector.astype(np.float64).sum()) < 5
