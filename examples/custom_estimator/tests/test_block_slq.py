"""The contract of the kind in several settings, and what a block of probes sees that a single one does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sdkeras_block_slq import BlockLanczosQuadrature

import sdkeras
from sdkeras.testing import CountingOperator, check_estimator, dense_operator

# 200 small eigenvalues, and 5 three times over.
BULK = np.linspace(-0.1, 0.3, 200)
REPEATED = np.concatenate([BULK, [5.0, 5.0, 5.0]])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_steps": 1},
        {"num_steps": 5, "block_size": 1},
        {"num_steps": 5, "block_size": 3},
        {"num_steps": 40, "block_size": 7},
        {"block_size": 100},
    ],
)
def test_conforms(settings: dict[str, Any]) -> None:
    check_estimator(BlockLanczosQuadrature(**settings))


def test_is_installed_under_its_name() -> None:
    assert sdkeras.get_estimator("spectrum", "block-slq") is BlockLanczosQuadrature


@pytest.mark.parametrize(("block_size", "nodes"), [(1, 1), (2, 2), (4, 3)])
def test_a_repeated_eigenvalue_has_as_many_nodes_as_probes_see(block_size: int, nodes: int) -> None:
    rule = BlockLanczosQuadrature(num_steps=12, block_size=block_size).estimate(dense_operator(REPEATED), seed=0)
    near = np.abs(rule.nodes - 5.0) < 1e-9
    assert near.sum() == nodes
    # All the copies' mass is there, on average: 3 chi^2 with 3 * block_size degrees of freedom over as many.
    assert rule.weights[near].sum() == pytest.approx(3.0, abs=5 * np.sqrt(6 / block_size))


def test_the_weight_of_a_simple_eigenvalue_varies_less_with_more_probes() -> None:
    operator = dense_operator(np.append(BULK, 5.0))
    for block_size in (1, 4):
        estimator = BlockLanczosQuadrature(num_steps=6, block_size=block_size)
        weights = np.array([estimator.estimate(operator, seed=seed).weights[-1] for seed in range(400)])
        # chi^2_b / b: mean 1, variance 2 / b; the variance of a variance is (2 + 12 / b) / runs times its square.
        variance = 2 / block_size
        assert weights.mean() == pytest.approx(1.0, abs=5 * np.sqrt(variance / 400))
        assert weights.var() == pytest.approx(variance, rel=5 * np.sqrt((2 + 12 / block_size) / 400))


def test_the_rule_integrates_polynomials_exactly_over_its_probes() -> None:
    operator = dense_operator(np.linspace(-1.0, 1.0, 24))
    coarse = BlockLanczosQuadrature(num_steps=2, block_size=3).estimate(operator, seed=1)
    fine = BlockLanczosQuadrature(num_steps=8, block_size=3).estimate(operator, seed=1)
    for degree in range(4):
        assert coarse.weights @ coarse.nodes**degree == pytest.approx(fine.weights @ fine.nodes**degree, abs=1e-12)
    assert abs(coarse.weights @ coarse.nodes**4 - fine.weights @ fine.nodes**4) > 1e-3


@pytest.mark.parametrize("block_size", [1, 2, 7])
def test_with_all_the_steps_the_nodes_are_the_eigenvalues(block_size: int) -> None:
    eigenvalues = np.geomspace(1e-6, 1e2, 120)
    rule = BlockLanczosQuadrature(num_steps=120, block_size=block_size).estimate(dense_operator(eigenvalues), seed=0)
    # Rounding: 100 eps times the norm 100.
    np.testing.assert_allclose(rule.nodes, eigenvalues, rtol=0, atol=1e4 * np.finfo(np.float64).eps)


def test_a_block_that_loses_rank_goes_on_narrower_and_ends_exact() -> None:
    operator = CountingOperator(dense_operator(np.append(np.zeros(9), 5.0)))
    rule = BlockLanczosQuadrature(block_size=3).estimate(operator, seed=0)
    # Three probes span part of the null space and one direction more, the fourth: the eigenvector of 5.
    assert rule.num_matvecs == operator.count == 4
    assert rule.nested is None
    np.testing.assert_allclose(rule.nodes, [0, 0, 0, 5], atol=1e-12)


def test_the_coarser_rule_is_that_of_fewer_steps() -> None:
    operator = dense_operator(REPEATED, dtype=np.float32)
    rule = BlockLanczosQuadrature(num_steps=10, block_size=2).estimate(operator, seed=0)
    shorter = BlockLanczosQuadrature(num_steps=7, block_size=2).estimate(operator, seed=0)
    assert rule.nested is not None
    np.testing.assert_allclose(rule.nested.nodes, shorter.nodes, rtol=0, atol=1e-12)
    np.testing.assert_allclose(rule.nested.weights, shorter.weights, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("copies", [2, 3, 6])
def test_copies_of_an_eigenvalue_are_not_reported_as_converged_simple_ones(dtype: type, copies: int) -> None:
    operator = dense_operator(np.append(BULK, np.full(copies, 5.0)), dtype=dtype)
    for seed in range(10):
        rule = BlockLanczosQuadrature(num_steps=12, block_size=2).estimate(operator, seed=seed)
        assert rule.residuals is not None
        near = np.abs(rule.nodes - 5.0) < 1e-4
        # The analysis sets weights to 1 only where the residual is below 1e-4 of the gap to the next node.
        assert np.all(rule.residuals[near] > 1e-4 * np.ptp(rule.nodes[near]))
        assert near.sum() >= 2  # rounding sets copies apart, and then more of them are seen
