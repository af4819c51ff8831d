"""The Fisher matrix: closed forms, gradients of single examples, and the spread of drawn targets themselves."""

from typing import Any

import keras
import numpy as np
import pytest
import scipy.linalg
import scipy.special

import sdkeras
from sdkeras.errors import DataError, ModelError, SdkerasError, VerificationError
from sdkeras.operators import fisher
from small_losses import CE, X, Y, compiled, dense, mlp

layers, losses = keras.layers, keras.losses
ONE_HOT = np.eye(3, dtype="float32")[Y]
TOKENS = np.array([[1, 2, 3, 0], [4, 0, 0, 0], [2, 2, 1, 3]])


@pytest.fixture(autouse=True)
def _seeds() -> None:
    keras.utils.set_random_seed(0)


def loss_of(model: keras.Model, data: Any = (X, Y), *sizes: int | None, **options: Any) -> sdkeras.EmpiricalLoss:
    return sdkeras.EmpiricalLoss(model, data, *sizes, **{"dtype": "float64", **options})


def gradients_of_examples(loss: sdkeras.EmpiricalLoss, *arrays: np.ndarray) -> np.ndarray:
    """By first derivatives on batches of one example, [examples, weights]."""
    engine = loss.gradients
    singles = (loss.batch([array[k : k + 1] for array in arrays], 0) for k in range(len(arrays[0])))
    return np.array([engine.gradient(engine.point, single) for single in singles])


def linear(loss: Any, units: int = 3, **options: Any) -> keras.Model:
    return compiled(keras.Input((6,)), layers.Dense(units, use_bias=False, **options), loss=loss)


def test_exact_is_that_of_softmax_regression_without_its_regularizer() -> None:
    loss = loss_of(linear(CE, kernel_regularizer=keras.regularizers.L2(0.5)), (X, Y), 8)
    p = scipy.special.softmax(X @ loss.point.reshape(6, 3), axis=1)
    blocks = np.einsum("na,nb,nij->aibj", X, X, p[:, :, None] * (np.eye(3) - p[:, None])) / 22
    found = sdkeras.FisherOperator(loss)
    assert np.allclose(dense(found), blocks.reshape(18, 18), atol=1e-12)
    assert np.allclose(dense(sdkeras.GaussNewtonOperator(loss)), dense(found) + np.eye(18), atol=1e-12)
    scores = np.einsum("na,ni->nai", X, p - np.eye(3)[Y]).reshape(22, 18)
    assert np.allclose(dense(sdkeras.FisherOperator(loss, "empirical")), scores.T @ scores / 22, atol=1e-12)


@pytest.mark.parametrize("case", ["mse", pytest.param("bce", marks=pytest.mark.slow)])
def test_exact_of_several_targets_for_each_example(case: str) -> None:
    """A Gaussian of variance C/2, and binary targets whose cross-entropies Keras averages."""
    loss = loss_of(linear("mse" if case == "mse" else losses.BinaryCrossentropy(True)), (X, ONE_HOT))
    p = scipy.special.expit(X @ loss.point.reshape(6, 3))
    curvature = np.full((22, 3), 2.0) if case == "mse" else p * (1 - p)
    expected = np.einsum("na,nb,ni,ij->aibj", X, X, curvature, np.eye(3)).reshape(18, 18) / 66
    assert np.allclose(dense(sdkeras.FisherOperator(loss)), expected, atol=1e-12)


def test_empirical_is_the_second_moment_of_the_gradients_of_single_examples() -> None:
    """Weighted as the loss has them, whatever the batches; and the check of the products rests on values alone."""
    model = mlp()
    weights = np.random.default_rng(2).uniform(0.1, 3, 22)
    gradients = gradients_of_examples(loss_of(model), X, Y)
    found = sdkeras.FisherOperator(loss_of(model, (X, Y, weights), 8), "empirical")
    assert np.allclose(dense(found), (weights[:, None] * gradients).T @ gradients / 22, atol=1e-12)
    assert found.verification.passed
    assert found.verification.finite_difference_error < 1e-6


@pytest.mark.slow
def test_empirical_of_sequences_and_several_outputs() -> None:
    """g_i is the gradient of the weighted mean over an example's places and outputs, w_i their weights' sum."""
    model = compiled(layers.Embedding(5, 3, mask_zero=True), layers.Dense(4, "tanh"), layers.Dense(2), loss=CE)
    labels = np.array([[0, 1, 0, 1], [1, 0, 0, 0], [1, 1, 0, 0]])
    model(TOKENS)
    loss = loss_of(model, (TOKENS, labels))
    gradients = gradients_of_examples(loss, TOKENS, labels)
    valid = np.array([3, 1, 4]) / 8
    found = dense(sdkeras.FisherOperator(loss, "empirical"))
    assert np.allclose(found, (valid[:, None] * gradients).T @ gradients, atol=1e-12)

    inputs = keras.Input((6,))
    model = keras.Model(inputs, {"a": layers.Dense(2, name="a")(inputs), "b": layers.Dense(3, name="b")(inputs)})
    model.compile("sgd", {"a": "mse", "b": CE}, loss_weights={"a": 0.5, "b": 2.0})
    targets = np.random.default_rng(4).standard_normal((22, 2))
    loss = loss_of(model, (X, {"a": targets, "b": Y}))
    gradients = gradients_of_examples(loss, X, targets, Y)
    found = dense(sdkeras.FisherOperator(loss, "empirical"))
    assert np.allclose(found, gradients.T @ gradients / 22 / 2.5, atol=1e-12)


def sequences() -> tuple[keras.Model, Any]:
    model = compiled(layers.Embedding(5, 3, mask_zero=True), layers.Dense(3), loss=CE)
    model(TOKENS)
    return model, (TOKENS, np.array([[0, 1, 0, 1], [1, 0, 0, 0], [1, 1, 2, 2]]))


def two_outputs() -> tuple[keras.Model, Any]:
    inputs = keras.Input((6,))
    model = keras.Model(inputs, {"a": layers.Dense(2, name="a")(inputs), "b": layers.Dense(3, name="b")(inputs)})
    model.compile("sgd", {"a": "mse", "b": CE}, loss_weights={"a": 0.5, "b": 2.0})
    return model, (X, {"a": np.zeros((22, 2)), "b": Y})


def ignoring() -> tuple[keras.Model, Any]:
    loss = losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    return linear(loss), (X, np.where(np.arange(22) < 9, -1, Y))


slow = pytest.mark.slow
DRAWN = {
    "sparse": lambda: (linear(CE), (X, Y)),
    "squared error": lambda: (linear("mse"), (X, ONE_HOT)),
    "weights": lambda: (linear(CE), (X, Y, np.random.default_rng(2).uniform(0, 3, 22))),
    "smoothed": lambda: (linear(losses.CategoricalCrossentropy(True, 0.4)), (X, ONE_HOT)),
    "binary": lambda: (linear(losses.BinaryCrossentropy(True, 0.3)), (X, ONE_HOT)),
    "softmax layer": lambda: (linear(losses.CategoricalCrossentropy(), activation="softmax"), (X, ONE_HOT)),
    "sigmoid layer": lambda: (linear(losses.BinaryCrossentropy(), 1, activation="sigmoid"), (X, ONE_HOT[:, :1])),
    "sequences": sequences,
    "two outputs": two_outputs,
    "ignored class": ignoring,
    "batch statistics": lambda: (mlp(layers.BatchNormalization()), (X, Y)),
}
FAST = ("sparse", "squared error")


@pytest.mark.parametrize("case", [case if case in FAST else pytest.param(case, marks=slow) for case in DRAWN])
def test_drawn_targets_have_the_exact_matrix_as_their_mean(case: str) -> None:
    """v'Fv over 100 seeds: unbiased within five standard errors of its own, and eight draws have an eighth of the
    variance (within a factor of 2: at 100 normal values the ratio of two variances is beyond it once in 2,000)."""
    model, data = DRAWN[case]()
    loss = loss_of(model, data)
    exact = sdkeras.FisherOperator(loss)
    v = np.random.default_rng(1).standard_normal(loss.size)
    forms = {
        draws: np.array(
            [v @ (sdkeras.FisherOperator(loss, "monte-carlo", draws=draws, seed=seed) @ v) for seed in range(100)]
        )
        for draws in (1, 8)
    }
    expected = v @ (exact @ v)
    for values in forms.values():
        stderr = np.std(values, ddof=1) / 10
        assert abs(np.mean(values) - expected) < 5 * stderr
        assert stderr < 0.1 * expected
    assert 4 < np.var(forms[1]) / np.var(forms[8]) < 16


def test_drawn_targets_are_fixed_by_seed_and_data() -> None:
    loss = loss_of(mlp(), (X, Y), 8)
    drawn = sdkeras.FisherOperator(loss, "monte-carlo", draws=2, seed=1)
    v = np.random.default_rng(1).standard_normal(loss.size)
    minibatch = drawn.on_minibatch(3) @ v
    assert np.array_equal(drawn.on_minibatch(3) @ v, minibatch)
    assert not np.allclose(drawn.on_minibatch(4) @ v, minibatch)
    assert not np.allclose(sdkeras.FisherOperator(loss, "monte-carlo", draws=2).on_minibatch(3) @ v, minibatch)
    elsewhere = loss.at(2 * loss.point)  # other predictions, other targets
    anew = sdkeras.FisherOperator(elsewhere, "monte-carlo", draws=2, seed=1)
    assert np.array_equal(drawn.at(elsewhere) @ v, anew @ v)
    assert len(anew.batches) == 2 * len(loss.batches)


@pytest.mark.slow
def test_batches_in_parts_are_drawn_part_by_part() -> None:
    loss = loss_of(mlp(), (X, Y), 8, micro_batch=3)
    v = np.random.default_rng(1).standard_normal(loss.size)
    expected = v @ (sdkeras.FisherOperator(loss) @ v)
    values = [v @ (sdkeras.FisherOperator(loss, "monte-carlo", seed=seed) @ v) for seed in range(100)]
    assert abs(np.mean(values) - expected) < 5 * np.std(values, ddof=1) / 10


def test_the_empirical_matrix_vanishes_at_interpolation() -> None:
    """Targets that the model meets: no gradient of any example, and the exact matrix is what it was."""
    model = linear("mse")
    exact = sdkeras.FisherOperator(loss_of(model, (X, ONE_HOT)))
    met = loss_of(model, (X, X.astype(float) @ exact.loss.point.reshape(6, 3).astype(float)))
    v = np.ones(18)
    assert np.linalg.norm(sdkeras.FisherOperator(met, "empirical") @ v) < 1e-12
    assert np.allclose(sdkeras.FisherOperator(met) @ v, exact @ v)


def test_what_is_no_likelihood_is_refused_and_gauss_newton_offered() -> None:
    with pytest.raises(ModelError, match=r"huber.* is no negative log-likelihood.*GaussNewtonOperator"):
        sdkeras.FisherOperator(loss_of(linear("huber"), (X, ONE_HOT)))
    shares = linear(losses.CategoricalCrossentropy(), activation="softplus")
    with pytest.raises(ModelError, match=r"not those of a softmax or sigmoid layer.*GaussNewtonOperator"):
        sdkeras.FisherOperator(loss_of(shares, (X, ONE_HOT)))
    with pytest.raises(ModelError, match="floating-point"):
        sdkeras.FisherOperator(loss_of(linear("mse"), (X, ONE_HOT.astype(int))), "monte-carlo")
    signed = loss_of(linear(CE), (X, Y, np.linspace(-1, 3, 22)))
    assert sdkeras.FisherOperator(signed).verification.passed
    with pytest.raises(DataError, match="a sample weight is -1"):
        sdkeras.FisherOperator(signed, "empirical")
    with pytest.raises(ValueError, match="'exact', 'monte-carlo' or 'empirical', got 'true'"):
        sdkeras.FisherOperator(loss_of(linear(CE)), "true")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="draws=3 are of kind='monte-carlo'"):
        sdkeras.FisherOperator(loss_of(linear(CE)), draws=3)


def test_coupled_examples_have_no_empirical_matrix() -> None:
    with pytest.raises(ModelError, match=r"batch normalization .* no gradients of single examples.*kind='exact'"):
        sdkeras.FisherOperator(loss_of(mlp(layers.BatchNormalization())), "empirical")
    assert sdkeras.FisherOperator(loss_of(mlp(layers.BatchNormalization()), mode="inference"), "empirical").kind

    def centred(y: Any, z: Any) -> Any:
        return keras.ops.mean(keras.ops.square(z - keras.ops.mean(z, axis=0) - y), axis=-1)

    with pytest.raises(ModelError, match="couples the examples"):
        sdkeras.FisherOperator(loss_of(linear(centred), (X, ONE_HOT)), "empirical")
    mean = linear(lambda y, z: keras.ops.mean(keras.ops.square(z - y)))
    with pytest.raises(ModelError, match="one number for a whole batch"):
        sdkeras.FisherOperator(loss_of(mean, (X, ONE_HOT)), "empirical")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["forward-over-reverse", "finite-differences", "linearized"])
def test_every_product_mode(mode: Any) -> None:
    loss = loss_of(mlp(layers.Dropout(0.3)), (X, Y), 8)
    for kind in fisher.KINDS:
        expected, found = (dense(sdkeras.FisherOperator(loss, kind, product_mode=each)) for each in ("auto", mode))
        assert np.allclose(found, expected, atol=1e-6 if mode == "finite-differences" else 1e-12)


@pytest.mark.slow
def test_wrong_products_do_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the exact matrix are not the empirical one's; nor are those of scores that are 1 % too long."""
    image = fisher._Scored.image
    monkeypatch.setattr(fisher._Scored, "image", fisher.Curved.image)
    with pytest.raises(VerificationError, match="Fisher"):
        sdkeras.FisherOperator(loss_of(mlp()), "empirical")
    monkeypatch.setattr(fisher._Scored, "image", lambda *arguments: 1.01 * image(*arguments))
    with pytest.raises(VerificationError, match="Fisher"):
        sdkeras.FisherOperator(loss_of(mlp()), "empirical")


@pytest.mark.slow
def test_float32_products_are_verified_by_a_float64_clone() -> None:
    model = mlp()
    for kind in fisher.KINDS:
        single, double = (sdkeras.FisherOperator(loss_of(model, dtype=dtype), kind) for dtype in ("float32", "float64"))
        assert single.verification.finite_difference_dtype == "float64"
        assert np.allclose(dense(single), dense(double), atol=1e-6)


@pytest.mark.parametrize("kind", ["gauss-newton", *(pytest.param(kind, marks=slow) for kind in fisher.KINDS)])
def test_a_small_batch_has_the_spectrum_of_its_gram_matrix(kind: Any) -> None:
    """(1/b) H_out^1/2 J J' H_out^1/2 from the Jacobian of a linear model, and the dense matrix of b C < n / 2."""
    x = np.random.default_rng(3).standard_normal((4, 12))
    model = compiled(keras.Input((12,)), layers.Dense(3, use_bias=False), loss=CE)
    loss = loss_of(model, (x, Y[:4]))
    operator = sdkeras.GaussNewtonOperator(loss) if kind == "gauss-newton" else sdkeras.FisherOperator(loss, kind)
    split = operator.reduced()
    assert split is not None
    assert split.operator.size <= (12 if kind in ("gauss-newton", "exact") else 4)
    small = np.linalg.eigvalsh(split.operator.as_matrix())
    whole = np.linalg.eigvalsh(dense(operator))
    assert np.allclose(np.sort(np.concatenate([small, np.zeros(split.multiplicity)])), whole, rtol=0, atol=1e-12)
    if kind in ("gauss-newton", "exact"):
        jacobian = np.einsum("na,ij->niaj", x, np.eye(3)).reshape(12, 36)
        p = scipy.special.softmax(x @ loss.point.reshape(12, 3), axis=1)
        values, vectors = np.linalg.eigh(scipy.linalg.block_diag(*(np.diag(each) - np.outer(each, each) for each in p)))
        root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
        gram = np.linalg.eigvalsh(root @ jacobian @ jacobian.T @ root) / 4
        assert np.allclose(gram[-split.operator.size :], small, rtol=0, atol=1e-12)
    exact = sdkeras.get_estimator("spectrum", "exact")().estimate(operator, seed=0)
    assert np.isclose(np.sum(exact.nodes * exact.weights), np.trace(dense(operator)))
    assert exact.num_matvecs < 36
    assert operator.loss.size == 36


@pytest.mark.slow
def test_a_regularizer_of_all_weights_is_no_low_rank() -> None:
    x = np.random.default_rng(3).standard_normal((4, 12))
    regularized = layers.Dense(3, use_bias=False, kernel_regularizer=keras.regularizers.L2(0.5))
    split = sdkeras.GaussNewtonOperator(loss_of(compiled(keras.Input((12,)), regularized), (x, Y[:4]))).reduced()
    assert split is not None  # by the first layer's inputs
    assert split.eigenvalue == pytest.approx(1.0)


def test_arguments_of_another_kind_are_named() -> None:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    with pytest.raises(
        SdkerasError, match=r"loss must be of type EmpiricalLoss, got Sequential; sdkeras.EmpiricalLoss"
    ):
        sdkeras.FisherOperator(model)
    loss = sdkeras.EmpiricalLoss(model, (np.ones((4, 2)), np.ones((4, 1))))
    for seed in (-1, 0.5):
        with pytest.raises(ValueError, match=f"seed is {seed}; it must be a whole number"):
            sdkeras.FisherOperator(loss, "monte-carlo", seed=seed)
        with pytest.raises(ValueError, match=f"seed is {seed}; it must be a whole number"):
            sdkeras.diagonal(sdkeras.HessianOperator(loss), seed=seed)
        with pytest.raises(ValueError, match=f"seed is {seed}; it must be a whole number"):
            sdkeras.laplace(model, (np.ones((4, 2)), np.ones((4, 1))), seed=seed)
