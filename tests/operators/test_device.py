"""An accelerator's kernels, on this processor: the host's numbers, and nothing of a vector's length on the host."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework.ops import EagerTensor

from oracles import rotated
from sdkeras.errors import ModelError, NonFiniteError
from sdkeras.linalg import semiorthogonal
from sdkeras.linalg.lanczos import lanczos
from sdkeras.linalg.operators import (
    DiagonallyScaledOperator,
    DiagonallyShiftedOperator,
    RestrictedOperator,
    SymmetricOperator,
)
from sdkeras.linalg.orthogonal import orthogonalize, thin_qr
from sdkeras.linalg.probes import frame_of, probes_of, start_of
from sdkeras.linalg.vectors import dot, finite, norm
from sdkeras.operators import tensors
from sdkeras.operators.device import HOST, Devices, devices
from sdkeras.operators.hessian import HessianOperator
from sdkeras.operators.loss import EmpiricalLoss, evolved
from sdkeras.reporting.tables import plan_table
from sdkeras.runs import analyze
from sdkeras.runs.budget import resources
from sdkeras.training_step.flow import TrainingFlow
from sdkeras.training_step.map import UpdateMap
from sdkeras_plugins.dense_svd import DenseSvd
from sdkeras_plugins.exact import Exact
from sdkeras_plugins.golub_kahan import GolubKahan
from sdkeras_plugins.lanczos import Lanczos
from sdkeras_plugins.lyapunov_qr import LyapunovQr
from sdkeras_plugins.power_iteration import PowerIteration
from sdkeras_plugins.quadrature import StochasticLanczosQuadrature
from sdkeras_plugins.randomized_trace import RandomizedTrace

ESTIMATORS = {
    "slq": StochasticLanczosQuadrature(num_steps=40),
    "slq without a basis": StochasticLanczosQuadrature(num_steps=12, reorthogonalize=False),
    "lanczos": Lanczos(num_largest=3, num_smallest=2, tolerance=1e-5),
    "power iteration": PowerIteration(num_eigenpairs=2, which="both", num_steps=60),
    "hutchinson": RandomizedTrace(num_probes=20),
    "hutch++": RandomizedTrace(num_probes=30, method="hutch++"),
    "xtrace": RandomizedTrace(num_probes=12, method="xtrace"),
    "exact": Exact(),
}
MAPS = {"golub-kahan": GolubKahan(num_steps=20), "dense svd": DenseSvd()}


class Brought:
    """The draws of a device as NumPy arrays: the host's kernels with the device's probes."""

    def __getattr__(self, name: str) -> Callable[..., np.ndarray]:
        return lambda *values, **options: np.array(getattr(tensors.SPACE, name)(*values, **options))


def trained() -> keras.Model:
    keras.utils.set_random_seed(3)
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((9,)), layers.Dense(12, activation="tanh"), layers.LayerNormalization(), layers.Dense(3)]
    )
    model.compile(keras.optimizers.Adam(0.01), "mse")
    model.fit(*DATA, batch_size=16, epochs=2, verbose=0)
    return model


X = np.random.default_rng(0).standard_normal((50, 9)).astype("float32")
DATA = X, X[:, :3] ** 2


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return trained()


@pytest.fixture(scope="module")
def there(model: keras.Model) -> HessianOperator:
    """Its vectors are tensors."""
    return HessianOperator(EmpiricalLoss(model, DATA, 16, device="cpu:0"))


@pytest.fixture(scope="module")
def here(model: keras.Model) -> HessianOperator:
    """The same products for NumPy arrays, with the device's draws."""
    return evolved(HessianOperator(EmpiricalLoss(model, DATA, 16, device="cpu")), space=Brought())


@attrs.frozen
class HostMap:
    """A map of NumPy arrays with the device's draws."""

    source: UpdateMap
    space: Brought = Brought()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)


@pytest.fixture(scope="module")
def steps(model: keras.Model) -> list[UpdateMap]:
    losses = (EmpiricalLoss(model, DATA, 16, dtype="float64", device=device) for device in ("cpu:0", "cpu"))
    return [UpdateMap(loss, model.optimizer) for loss in losses]


def numbers(result: Any) -> list[np.ndarray]:
    """All arrays of a result but residuals, which are rounding where a pair has converged."""
    values = [getattr(result, field.name) for field in attrs.fields(type(result)) if field.name != "residuals"]
    return [np.asarray(value) for value in values if isinstance(value, (float, np.ndarray))]


def agree(device: Any, host: Any, eps: float, scale: float = 1.0) -> None:
    """To the rounding of products and sums."""
    for ours, theirs in zip(numbers(device), numbers(host), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=100 * eps * scale * max(1.0, np.max(np.abs(theirs))))


@pytest.mark.parametrize(
    "name", [pytest.param(each, marks=pytest.mark.slow) if each == "exact" else each for each in ESTIMATORS]
)
def test_device_kernels_give_the_hosts_numbers(name: str, there: HessianOperator, here: HessianOperator) -> None:
    eps = float(np.finfo(np.float32).eps)
    device, host = (ESTIMATORS[name].estimate(operator, seed=1) for operator in (there, here))
    if name.startswith("slq"):
        # Moments: single nodes and weights of a cluster are no more determined than their sum.
        for power in range(4):
            moments = [float(np.sum(rule.weights * rule.nodes**power)) for rule in (device, host)]
            assert moments[0] == pytest.approx(moments[1], rel=1e3 * eps, abs=1e3 * eps)
        assert device.num_matvecs == host.num_matvecs
        return
    # An eigenvalue's error is the residual, squared where the pair is isolated.
    agree(device, host, eps, scale=100.0 if name == "power iteration" else 1.0)


@pytest.mark.parametrize("name", MAPS)
def test_device_kernels_of_maps_give_the_hosts_numbers(name: str, steps: list[UpdateMap]) -> None:
    device, host = (MAPS[name].estimate(each, seed=1) for each in (steps[0], HostMap(steps[1])))
    kept = slice(8) if name == "golub-kahan" else slice(None)  # small Ritz values depend on rounding
    np.testing.assert_allclose(device.log_values[kept], host.log_values[kept], atol=1e-7)


def test_lyapunov_exponents_on_a_device_are_the_hosts(steps: list[UpdateMap]) -> None:
    estimator = LyapunovQr(num_exponents=4, num_steps=40, transient=5)
    flows = [TrainingFlow(step) for step in steps]
    flows[1] = HostFlow(flows[1])
    device, host = (estimator.estimate(flow, seed=0) for flow in flows)
    assert tf.is_tensor(flows[0].position)
    # The trajectory stretches rounding by e^(5 ell) at most.
    np.testing.assert_allclose(device.values, host.values, rtol=1e-6, atol=1e-9)


class HostFlow:
    """A flow of NumPy arrays with the device's draws."""

    space = Brought()

    def __init__(self, flow: TrainingFlow) -> None:
        self.flow = flow

    def __getattr__(self, name: str) -> Any:
        return getattr(self.flow, name)


def test_a_lyapunov_run_on_a_device_goes_on_from_its_checkpoint(steps: list[UpdateMap], tmp_path: Path) -> None:
    whole = LyapunovQr(num_exponents=3, num_steps=12, transient=3).estimate(TrainingFlow(steps[0]), seed=0)
    kept = LyapunovQr(num_exponents=3, num_steps=5, transient=3, checkpoint=str(tmp_path / "run.npz"))
    kept.estimate(TrainingFlow(steps[0]), seed=0)
    longer = attrs.evolve(kept, num_steps=12).estimate(TrainingFlow(steps[0]), seed=0)
    assert np.array_equal(longer.values, whole.values)


def test_wrapped_operators_on_a_device_give_the_hosts_products(there: HessianOperator, here: HessianOperator) -> None:
    diagonal = np.random.default_rng(0).uniform(0.5, 2, there.size)
    vector = np.random.default_rng(1).standard_normal(there.size).astype("float32")
    block = slice(20, 90)
    for wrap, of in (
        (lambda each: DiagonallyScaledOperator(each, diagonal), vector),
        (lambda each: DiagonallyShiftedOperator(each, diagonal), vector),
        (lambda each: RestrictedOperator(each, block), vector[block]),
    ):
        device, host = wrap(there), wrap(here)
        product = device.matvec(tf.constant(of))
        assert tf.is_tensor(product)
        expected = host.matvec(of)
        allowed = 100 * np.finfo(np.float32).eps * np.linalg.norm(expected)
        np.testing.assert_allclose(product, expected, atol=allowed)
        np.testing.assert_allclose(device.rows(tf.constant(np.stack([of, -of])))[1], -expected, atol=allowed)
        np.testing.assert_allclose(device.matvec(of), expected, atol=allowed)


# Copies to the host


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of all tensors that become NumPy arrays."""
    sizes: list[int] = []
    original = EagerTensor._numpy

    def counted(tensor: Any) -> Any:
        sizes.append(int(np.prod(tensor.shape)))
        return original(tensor)

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(value: Any, *rest: Any, **options: Any) -> Any:
            several = value if isinstance(value, (list, tuple)) else [value]
            sizes.extend(int(np.prod(each.shape)) for each in several if isinstance(each, EagerTensor))
            return function(value, *rest, **options)

        return call

    base = next(cls for cls in EagerTensor.__mro__ if "_numpy" in vars(cls))
    monkeypatch.setattr(base, "_numpy", counted)
    # NumPy reads a tensor's memory without asking it.
    for name in ("asarray", "array", "ascontiguousarray", "stack", "concatenate", "dot", "copyto", "sum"):
        monkeypatch.setattr(np, name, watched(getattr(np, name)))
    return sizes


def test_the_count_sees_copies(copied: list[int]) -> None:
    tensor = tf.zeros(1000)
    for copy in (tensor.numpy, lambda: np.asarray(tensor), lambda: np.array(tensor), lambda: np.stack([tensor])):
        copied.clear()
        copy()
        assert max(copied) == 1000


@pytest.mark.parametrize("name", [name for name in ESTIMATORS if name != "exact"])
def test_no_vector_comes_to_the_host(name: str, there: HessianOperator, copied: list[int]) -> None:
    ESTIMATORS[name].estimate(there, seed=0)
    ESTIMATORS[name].estimate(there.on_minibatch(1), seed=0)
    assert copied
    assert max(copied) < there.size / 4


def test_an_exact_spectrum_brings_its_eigenvalues_and_nothing_else(there: HessianOperator, copied: list[int]) -> None:
    result = Exact(reduce=False).estimate(there, seed=0)
    assert sorted(copied)[-2:] == [1, len(result.nodes)]


@pytest.mark.parametrize("scaled", [False, True])
def test_a_reduced_spectrum_on_a_device_is_the_hosts(scaled: bool, model: keras.Model) -> None:
    # Four examples of nine inputs: the first kernel has null directions.
    operators: list[SymmetricOperator] = []
    for device in ("cpu:0", "cpu"):
        loss = EmpiricalLoss(model, (X[:12], X[:12, :3]), 4, device=device)
        operators.append(HessianOperator(loss).on_minibatch(0))
    if scaled:
        diagonal = np.random.default_rng(0).uniform(0.5, 2, operators[0].size)
        operators = [DiagonallyScaledOperator(operator, diagonal) for operator in operators]
    device, host = (Exact().estimate(operator, seed=0) for operator in operators)
    assert host.num_matvecs == device.num_matvecs < operators[1].size
    # The null space is one node of its dimension; rounding decides on which side of it an eigenvalue 0 beside it is.
    ours, theirs = (np.repeat(each.nodes, each.weights.astype(int)) for each in (device, host))
    assert len(theirs) == operators[1].size
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=100 * np.finfo(np.float32).eps * np.max(np.abs(theirs)))


def test_no_tangent_comes_to_the_host(steps: list[UpdateMap], copied: list[int]) -> None:
    step = steps[0]
    GolubKahan(num_steps=10).estimate(step.on_minibatch(1), seed=0)
    assert max(copied) < step.size / 4
    copied.clear()
    LyapunovQr(num_exponents=3, num_steps=10, transient=2).estimate(TrainingFlow(step), seed=0)
    # The start is read where the flow is made and where it is reset.
    assert [size for size in copied if size >= step.num_weights / 4] == [step.size] * 2


def test_lockstep_on_a_device(there: HessianOperator, here: HessianOperator, copied: list[int]) -> None:
    batches = [HessianOperator.batch([each.on_minibatch(k) for k in range(3)]) for each in (there, here)]
    estimator, seeds = StochasticLanczosQuadrature(num_steps=10), (4, 5, 6)
    copied.clear()
    device = estimator.estimate_many(batches[0], seeds=seeds)
    assert max(copied) < there.size / 4
    for ours, theirs in zip(device, estimator.estimate_many(batches[1], seeds=seeds), strict=True):
        means = [np.sum(rule.weights * rule.nodes) for rule in (ours, theirs)]
        assert means[0] == pytest.approx(means[1], rel=1e-4)


# The operations


def test_inner_products_are_accurate_on_a_device() -> None:
    generator = np.random.default_rng(0)
    for count in (7, 512, 100_001):
        first, second = generator.standard_normal((2, count)).astype(np.float32)
        exact = float(first.astype(np.float64) @ second.astype(np.float64))
        allowed = np.finfo(np.float32).eps * np.linalg.norm(first) * np.linalg.norm(second)
        assert abs(dot(tf.constant(first), tf.constant(second)) - exact) <= allowed
    for scale in (1e-25, 1e25):
        values = np.full(2_000, scale, np.float32)
        assert norm(tf.constant(values)) == pytest.approx(float(values[0]) * np.sqrt(2_000), rel=1e-6)


def test_a_basis_on_a_device_orthogonalizes_as_an_array_does() -> None:
    rows = np.ascontiguousarray(rotated(np.arange(60.0))[:40])
    rows = np.linalg.qr(rows.T)[0].T
    basis = tensors.Rows(60, 8)
    for k, row in enumerate(rows):
        basis.put(tf.constant(row), k)
    assert len(basis) == 40
    vector = np.random.default_rng(0).standard_normal(60)
    for stop in (1, 15, 16, 17, 33, 40):
        left, length = orthogonalize(tf.constant(vector), basis[:stop])
        expected, expected_length = orthogonalize(vector.copy(), rows[:stop])
        np.testing.assert_allclose(left, expected, atol=1e-14)
        assert length == pytest.approx(expected_length, rel=1e-13)
    np.testing.assert_array_equal(basis[-2], rows[-2])
    np.testing.assert_array_equal(basis[20], rows[20])


def test_lanczos_on_a_device_stays_semiorthogonal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(semiorthogonal, "_IN_CACHE", 0)
    matrix = rotated(np.append(0.1 * np.random.default_rng(0).standard_normal(290), np.geomspace(2, 50, 10)))
    there = tf.constant(matrix, tf.float32)
    start = tf.constant(np.random.default_rng(1).standard_normal(300), tf.float32)
    run = lanczos(lambda v: tf.linalg.matvec(there, v), start, 120)
    assert run.basis is not None
    q = np.concatenate([each.numpy() for each in run.basis.matrices()]).astype(np.float64)
    assert np.max(np.abs(q @ q.T - np.eye(120))) < np.sqrt(np.finfo(np.float32).eps)
    theta = np.linalg.eigvalsh(np.diag(run.alpha) + np.diag(run.beta[:-1], 1) + np.diag(run.beta[:-1], -1))
    assert theta[-1] == pytest.approx(50.0, rel=1e-5)


def test_draws_on_a_device(there: HessianOperator) -> None:
    signs = probes_of(there, 3, seed=4).numpy()
    assert signs.shape == (3, there.size)
    assert set(np.unique(signs)) == {-1.0, 1.0}
    assert np.array_equal(signs, probes_of(there, 3, seed=4))
    assert not np.array_equal(signs, probes_of(there, 3, seed=5))
    assert not np.array_equal(signs, probes_of(there, 3, seed=4, stream=1))
    assert abs(signs.mean()) < 5 / np.sqrt(signs.size)
    assert abs(float(np.mean(signs[0] * signs[1]))) < 5 / np.sqrt(there.size)
    assert norm(start_of(there, seed=0)) == pytest.approx(np.sqrt(there.size), rel=0.3)
    frame = frame_of(there, 4, seed=0).numpy()
    np.testing.assert_allclose(frame.T @ frame, np.eye(4), atol=1e-5)


def test_qr_on_a_device_is_the_hosts() -> None:
    matrix = np.random.default_rng(0).standard_normal((9, 4))
    (q, r), (expected, small) = thin_qr(tf.constant(matrix)), thin_qr(matrix)
    np.testing.assert_allclose(q, expected, atol=1e-13)
    np.testing.assert_allclose(r, small, atol=1e-13)


def test_what_is_not_finite_is_found_on_a_device() -> None:
    good = tf.ones(10)
    assert finite(good, "a product") is good
    with pytest.raises(NonFiniteError, match="a product holds NaN or infinity"):
        finite(tf.constant([1.0, np.nan]), "a product")


# The choice


def test_the_host_is_the_device_where_there_is_no_accelerator() -> None:
    assert devices() == HOST
    assert devices("cpu").space is None
    assert devices("cpu:0").space is tensors.SPACE


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ("gpu:7", "there is no device 'gpu:7' here; TensorFlow sees cpu:0"),
        ("gpu", "there is no device 'gpu' here"),
        ("cuda", "must be auto, cpu, gpu, tpu"),
        (None, "the device is None; it must be auto"),
        ("gpu:0 gpu:1", "must be auto"),
        ("cpu:0,cpu:0", "names one of them twice"),
        ("tpu", "there is no TPU here"),
    ],
)
def test_a_device_that_is_not_there_is_refused(wanted: Any, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        devices(wanted)


def test_the_memory_of_an_accelerator_is_planned_apart(model: keras.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Devices, "memory", lambda devices: 4e9 if devices.on_device else None)
    on_device, host = (analyze.plan(model, DATA, batch_size=16, device=device) for device in ("cpu:0", "cpu"))
    basis = 40 * on_device.num_parameters * 4
    assert host.device_memory is None
    assert on_device.device_memory is not None
    assert on_device.device_memory > basis
    assert "cpu:0" in on_device.device
    assert ("on", f"{on_device.device}, about {on_device.device_memory / 1e9:.2f} GB of its memory") in [
        row[:2] for row in plan_table(on_device).rows
    ]
    room = resources(10**6, 4, memory_gb=None, workers=None, devices=devices("cpu:0"))
    assert room.workers == 1
    assert 0.4 * 4e9 < room.memory < 0.6 * 4e9
