"""The marginal likelihood and what maximises it, against the dense formula and a general optimizer."""

import math

import numpy as np
import pytest
import scipy.optimize

from sdkeras.errors import DataError, ModelError
from sdkeras.runs.evidence import Evidence

GENERATOR = np.random.default_rng(1)
SIZE = 9
FACTOR, REST = GENERATOR.standard_normal((4, SIZE)), GENERATOR.uniform(0, 0.1, SIZE)


def evidence(targets: float | None, *, negative: float = 12.0, square: float = 3.0) -> Evidence:
    return Evidence(FACTOR, REST, 40.0, negative, targets, square)


def log_z(each: Evidence, prior: float, noise: float) -> float:
    """Written down from the definition."""
    precision = each.scale / noise * (FACTOR.T @ FACTOR + np.diag(REST)) + prior * np.eye(SIZE)
    likelihood = -each.negative / noise - (each.targets or 0) / 2 * math.log(2 * math.pi * noise)
    occam = SIZE / 2 * math.log(prior) - np.linalg.slogdet(precision)[1] / 2
    return float(likelihood - prior * each.square / 2 + occam)


@pytest.mark.parametrize("targets", [None, 50.0])
def test_log_z_is_its_definition(targets: float | None) -> None:
    noise = 1.0 if targets is None else 0.3
    each = evidence(targets)
    found = each.log_marginal(2.0, each.precision(2.0, noise), noise)
    assert found == pytest.approx(log_z(each, 2.0, noise), rel=1e-12)


@pytest.mark.parametrize(
    ("targets", "prior", "noise"), [(None, None, None), (50.0, None, None), (50.0, 2.0, None), (50.0, None, 0.3)]
)
def test_what_is_not_given_maximises_log_z(targets: float | None, prior: float | None, noise: float | None) -> None:
    each = evidence(targets)
    free = [prior is None, noise is None and targets is not None]

    def minus(logs: np.ndarray) -> float:
        known = iter(np.exp(logs))
        values = [next(known) if is_free else value for is_free, value in zip(free, (prior, noise or 1.0), strict=True)]
        return -log_z(each, *values)

    best = scipy.optimize.minimize(minus, np.zeros(sum(free)), method="Nelder-Mead", options={"xatol": 1e-7})
    chosen = each.chosen(prior, noise)
    found = [value for is_free, value in zip(free, chosen, strict=True) if is_free]
    assert np.log(found) == pytest.approx(best.x, abs=1e-5)
    assert -log_z(each, *chosen) <= best.fun + 1e-9
    assert all(fixed in (None, value) for fixed, value in zip((prior, noise), chosen, strict=True))


def test_what_has_no_maximum_is_refused() -> None:
    with pytest.raises(DataError, match=r"met exactly.*noise_variance"):
        evidence(50.0, negative=0.0).chosen(None, None)
    with pytest.raises(ModelError, match=r"all weights are 0.*prior_precision"):
        evidence(None, square=0.0).chosen(None, None)
    flat = Evidence(np.zeros((1, SIZE)), np.zeros(SIZE), 40.0, 12.0, None, 3.0)
    with pytest.raises(ModelError, match="no maximum"):
        flat.chosen(None, None)
