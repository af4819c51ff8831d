"""Mean-square stability and gradient noise of linear regression, whose minibatches' matrices are known."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import sdkeras
from sdkeras.reporting.build_analysis import analysis_report
from sdkeras.results.answers import Analysis
from sdkeras.results.codec import as_plain, from_plain
from sdkeras.results.dimension import EdgeOfStability

ETA, DECAY = 0.125, 0.25
X = np.random.default_rng(0).standard_normal((80, 5)) * np.array([2.0, 1.0, 1.0, 0.5, 0.5])
Y = X @ np.ones((5, 1)) + np.random.default_rng(1).standard_normal((80, 1))


def analysed(data: object, optimizer: keras.optimizers.Optimizer, **options: object) -> Analysis:
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(1, use_bias=False)])
    model.layers[0].set_weights([np.array([[0.5], [1.0], [-1.0], [2.0], [0.25]])])
    model.compile(optimizer, "mse")
    return sdkeras.analyze(model, data, dtype="float64", seed=0, **options)


@pytest.fixture(scope="module")
def of_fixed_batches() -> Analysis:
    """Twenty fixed batches of four, which are all in the estimate."""
    return analysed(tf.data.Dataset.from_tensor_slices((X, Y)).batch(4), keras.optimizers.SGD(ETA))


def matrices() -> np.ndarray:
    batches = X.reshape(20, 4, 5)
    return 2 * batches.transpose(0, 2, 1) @ batches / 4


def test_kappa_of_fixed_batches_is_that_of_the_whole_map(of_fixed_batches: Analysis) -> None:
    """At eta / kappa the spectral radius of C -> mean J_B C J_B passes 1."""
    found = of_fixed_batches.edge_of_stability.mean_square_stability
    assert found is not None
    assert found.kappa is not None
    assert found.max_learning_rate == pytest.approx(ETA / found.kappa.value)
    assert found.kappa.interval == (found.kappa.value, found.kappa.value)
    assert (found.num_minibatches, found.num_directions) == (20, 5)
    radii = []
    for rate in found.max_learning_rate * np.array([1 - 1e-6, 1 + 1e-6]):
        steps = np.eye(5) - rate * matrices()
        radii.append(np.abs(np.linalg.eigvals(np.mean([np.kron(step, step) for step in steps], axis=0))).max())
    assert radii[0] < 1 < radii[1]


def test_noise_of_the_gradients_of_all_fixed_batches(of_fixed_batches: Analysis) -> None:
    noise = of_fixed_batches.edge_of_stability.gradient_noise
    assert noise is not None
    weights = np.array([[0.5], [1.0], [-1.0], [2.0], [0.25]])
    gradients = np.array(
        [2 * x.T @ (x @ weights - y)[:, 0] / 4 for x, y in zip(X.reshape(20, 4, 5), Y.reshape(20, 4, 1), strict=True)]
    )
    u = np.linalg.eigh(matrices().mean(axis=0))[1][:, -1]
    along = gradients @ u
    assert abs(noise.mean.value) == pytest.approx(abs(along.mean()), rel=1e-3)
    assert noise.deviation.value == pytest.approx(along.std(), rel=1e-3)
    assert noise.share.value == pytest.approx(along.var() / gradients.var(axis=0).sum(), rel=1e-3)
    assert noise.share.stderr == 0
    assert noise.num_minibatches == 20


def test_both_stand_in_the_report_and_in_the_file(of_fixed_batches: Analysis) -> None:
    edge = of_fixed_batches.edge_of_stability
    assert from_plain(as_plain(edge), EdgeOfStability, "it") == edge
    rows = [
        row for section in analysis_report(of_fixed_batches).sections for table in section.tables for row in table.rows
    ]
    labels = [row[0] for row in rows]
    assert {"mean-square stability", "largest stable learning rate by noise"} <= set(labels)
    assert "gradient noise on the top eigenvector" in labels


@pytest.mark.slow
def test_one_batch_of_all_the_data_has_the_ratio_of_the_eigenvalue_with_decay() -> None:
    """Without noise mean-square stability is that of the largest eigenvalue: eta (lambda + wd) / 2."""
    run = analysed((X, Y), keras.optimizers.SGD(ETA, weight_decay=DECAY), batch_size=80)
    found = run.edge_of_stability.mean_square_stability
    assert found is not None
    assert found.kappa is not None
    top = np.linalg.eigvalsh(2 * X.T @ X / 80)[-1]
    assert found.kappa.value == pytest.approx(ETA * (top + DECAY) / 2, rel=1e-6)
    assert run.edge_of_stability.gradient_noise is None


@pytest.mark.slow
def test_drawn_minibatches_are_near_the_truth_and_counted() -> None:
    """The interval, for the four leading directions of C, is below the truth of many minibatches, but not by much."""
    run = analysed((X, Y), keras.optimizers.SGD(ETA), batch_size=4)
    found = run.edge_of_stability.mean_square_stability
    assert found is not None
    assert found.kappa is not None
    assert found.kappa.interval is not None
    generator = np.random.default_rng(5)
    batches = X[np.array([generator.choice(80, 4, replace=False) for _ in range(4000)])]
    k = 2 * batches.transpose(0, 2, 1) @ batches / 4
    low, high = 0.0, 10.0
    fourth = np.mean([np.kron(each, each) for each in k], axis=0)
    once = np.kron(k.mean(axis=0), np.eye(5)) + np.kron(np.eye(5), k.mean(axis=0))
    for _ in range(50):
        middle = (low + high) / 2
        radius = np.abs(np.linalg.eigvals(np.eye(25) - middle * once + middle**2 * fourth)).max()
        low, high = (low, middle) if radius > 1 else (middle, high)
    assert found.kappa.interval[0] < ETA / low
    assert found.kappa.interval[1] > 0.8 * ETA / low
    assert found.num_minibatches >= 40


@pytest.mark.slow
def test_what_is_not_measured_says_why() -> None:
    momentum = analysed((X, Y), keras.optimizers.SGD(ETA, momentum=0.5), batch_size=8)
    missing = momentum.edge_of_stability.mean_square_stability
    assert missing is not None
    assert missing.kappa is None
    assert "SGD with momentum" in missing.reason
    quick = analysed((X, Y), keras.optimizers.SGD(ETA), batch_size=8, preset="quick").edge_of_stability
    assert quick.mean_square_stability is None
    assert quick.gradient_noise is None
