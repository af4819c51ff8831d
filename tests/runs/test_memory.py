"""Large models: what is done with fewer vectors at once, and that it gives the same."""

import keras
import numpy as np
import pytest

import sdkeras
import sdkeras_plugins.randomized_trace
from oracles import rotated
from sdkeras.linalg.operators import DenseOperator
from sdkeras.operators import hessian, verification
from sdkeras.runs import analyze
from sdkeras.runs.budget import VECTORS, resources
from small_nets import X, Y, net

VALUES = np.concatenate([np.linspace(-0.5, 1.0, 90), [-4.0, -3.0, 6.0, 8.0, 12.0]])


@pytest.fixture(scope="module")
def trained() -> keras.Model:
    model = net(keras.optimizers.SGD(0.1))
    model.fit(X, Y, batch_size=16, epochs=3, verbose=0)
    return model


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("num_steps", [60, 95])
def test_both_ends_without_a_basis(dtype: type, num_steps: int) -> None:
    make = sdkeras.get_estimator("eigenpairs", "lanczos")
    operator = DenseOperator(rotated(VALUES).astype(dtype))
    # So small a tolerance goes on until copies of converged values appear.
    found = make(num_steps=num_steps, tolerance=1e-5, reorthogonalize=False).estimate(operator, seed=0)
    np.testing.assert_allclose(found.values, [12.0, -4.0], rtol=2e-5)
    assert found.converged.all()
    assert (np.abs(found.values - [12.0, -4.0]) <= found.residuals + 1e-5).all()
    for asked in ({"num_largest": 2}, {"eigenvectors": True}):
        with pytest.raises(ValueError, match="without reorthogonalisation"):
            make(reorthogonalize=False, **asked)


def test_a_trace_of_few_probes_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    operator = DenseOperator(rotated(VALUES))
    monkeypatch.setattr(sdkeras_plugins.randomized_trace, "_CHUNK_BYTES", 3.5 * 8 * len(VALUES))
    columns = []
    product = operator.matmat
    monkeypatch.setattr(operator, "matmat", lambda matrix: (columns.append(matrix.shape[1]), product(matrix))[1])
    make = sdkeras.get_estimator("trace", "randomized-trace")
    found = make(num_probes=4000).estimate(operator, seed=0)
    assert set(columns) == {3, 1}  # 16 probes are 5 times 3 and 1
    assert abs(found.value - VALUES.sum()) < 5 * found.stderr
    assert found.stderr < 0.4
    columns.clear()
    assert make(num_probes=100, tolerance=10.0).estimate(operator, seed=0).num_matvecs == 16


def test_products_one_by_one_are_those_of_a_block(trained: keras.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    operator = sdkeras.HessianOperator(sdkeras.EmpiricalLoss(trained, (X, Y), batch_size=40))
    rows = np.random.default_rng(0).standard_normal((5, operator.size)).astype("float32")
    expected = operator.rows(rows)
    for share in (2.5, 0.5):
        monkeypatch.setattr(hessian, "_BLOCK_BYTES", share * operator.size * 4)
        np.testing.assert_allclose(operator.rows(rows), expected, atol=1e-5)


@pytest.mark.slow
def test_without_room_for_float64_the_check_is_in_float32(trained: keras.Model, monkeypatch) -> None:
    loss = sdkeras.EmpiricalLoss(trained, (X, Y), batch_size=40)
    monkeypatch.setattr(verification, "_SMALL", 0.0)
    checked = sdkeras.HessianOperator(loss, memory=1.0).verification
    assert checked.finite_difference_dtype == "float32"
    assert "no float64 clone (it takes" in checked.details
    assert checked.passed
    again = sdkeras.EmpiricalLoss(trained, (X, Y), batch_size=40)
    assert sdkeras.HessianOperator(again, memory=1e12).verification.finite_difference_dtype == "float64"


def test_bases_may_take_what_the_products_leave() -> None:
    found = resources(1_000_000, 4, memory_gb=0.5, workers=2)
    assert found.memory == 0.5e9 - 2 * VECTORS * 4e6
    assert found.fits(50)
    assert not found.fits(51)
    assert resources(1_000_000, 4, memory_gb=0.01, workers=1).memory > 0


def test_large_products_do_not_go_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tensorflow.config.threading.get_intra_op_parallelism_threads", lambda: 1)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    both = 2 * 2 * VECTORS * 4e6 / 1e9  # products of two workers, and as much for bases
    assert resources(1_000_000, 4, memory_gb=1.01 * both, workers=None).workers == 2
    assert resources(1_000_000, 4, memory_gb=0.99 * both, workers=None).workers == 1
    assert resources(1_000_000, 4, memory_gb=0.99 * both, workers=2).workers == 2


@pytest.mark.slow
def test_the_budget_is_shared_by_the_estimators(trained: keras.Model) -> None:
    options = {"batch_size": 16, "estimators": ["sd-kde", "slq"], "tolerance": 0.001, "samples": 16, "seed": 1}
    options["settings"] = {"sd-kde": {"num_steps": 10}, "slq": {"num_steps": 10}}
    run = sdkeras.analyze(trained, (X, Y), max_hvps=400, **options)
    first, second = run.estimates
    assert first.num_runs >= 3
    assert abs(first.num_hvps - second.num_hvps) <= 20
    assert run.provenance.num_hvps <= 400


@pytest.mark.slow
def test_a_plan_knows_the_limit_on_products(trained: keras.Model) -> None:
    free = analyze.plan(trained, (X, Y), batch_size=16, samples=16)
    held = analyze.plan(trained, (X, Y), batch_size=16, samples=16, max_hvps=300)
    assert free.num_hvps > 900
    assert held.num_hvps <= 300
    assert 3 <= held.num_runs < free.num_runs
    few = {"lanczos": {"num_steps": 5}, "randomized-trace": {"num_probes": 3}}
    assert analyze.plan(trained, (X, Y), batch_size=16, samples=16, settings=few).num_hvps == free.num_hvps - (
        25 - 5
    ) - (64 - 3)
