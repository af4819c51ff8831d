"""Large models: what is done with fewer vectors at once, and that it gives the same."""

import errno
import os
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from threadpoolctl import threadpool_info, threadpool_limits

import sdkeras
import sdkeras_plugins.randomized_trace
from oracles import rotated
from sdkeras.errors import SdkerasError
from sdkeras.linalg.memory import Scratch, large_arrays_in
from sdkeras.linalg.operators import DenseOperator
from sdkeras.linalg.vectors import new_rows
from sdkeras.operators import hessian, verification
from sdkeras.runs import analyze
from sdkeras.runs.budget import VECTORS, one_blas_thread, resources
from sdkeras.runs.options import Options
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
    monkeypatch.setattr(hessian, "_FEW_PRODUCTS", 0)
    expected = operator.rows(rows)
    assert operator.engine.has_block_product
    monkeypatch.setattr(hessian, "_FEWEST", 2)
    for share in (2.5, 0.5):
        monkeypatch.setattr(hessian, "_CACHE", share * operator.size * 4)
        np.testing.assert_allclose(operator.rows(rows), expected, atol=1e-5)


def test_blocks_are_compiled_once_an_operator_has_made_many(trained: keras.Model, monkeypatch) -> None:
    operator = sdkeras.HessianOperator(sdkeras.EmpiricalLoss(trained, (X, Y), batch_size=40))
    rows = np.random.default_rng(0).standard_normal((5, operator.size)).astype("float32")
    monkeypatch.setattr(hessian, "_FEW_PRODUCTS", 10 * len(operator.batches))
    first = operator.rows(rows)
    assert not operator.engine.has_block_product
    second = operator.rows(rows)
    assert operator.engine.has_block_product
    np.testing.assert_allclose(first, second, atol=1e-5)
    assert operator.rows(rows[:0]).shape == (0, operator.size)
    assert operator.matmat(tf.zeros([operator.size, 0])).shape == (operator.size, 0)
    graph = tf.function(lambda block: operator.rows(block))
    np.testing.assert_allclose(graph(tf.constant(rows)), second, atol=1e-5)


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
    assert found.held == 0.2 * 0.5e9  # for linearised batches
    assert found.memory == 0.5e9 - 2 * VECTORS * 4e6 - found.held
    assert found.fits(38)
    assert not found.fits(39)
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


def test_numpy_keeps_to_one_thread_while_runs_are_made() -> None:
    def threads() -> set[int]:
        return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}

    with threadpool_limits(2, user_api="blas"):
        for exact, workers, inside in ((False, 1, {1}), (False, 2, {1}), (True, 2, {1}), (True, 1, {2})):
            with resources(10, 4, memory_gb=1.0, workers=workers).mapper(exact=exact) as mapper:
                assert list(mapper(lambda _: threads(), range(2))) == [inside] * 2
            assert threads() == {2}
        first, second = one_blas_thread(), one_blas_thread()  # of two threads, which overlap
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert threads() == {1}
        second.__exit__(None, None, None)
        assert threads() == {2}


# Bases on disk


def test_a_basis_on_disk_is_that_in_memory(tmp_path: Path) -> None:
    source = DenseOperator(rotated(VALUES).astype(np.float32))
    estimator = sdkeras.get_estimator("spectrum", "slq")(num_steps=30)
    expected = estimator.estimate(source, seed=0)
    with large_arrays_in(Scratch(str(tmp_path), beyond=30 * 95 * 4 - 1)):
        basis = new_rows(np.zeros(95, np.float32), 30)
        assert isinstance(basis.base, np.memmap)
        assert list(tmp_path.iterdir()) == []  # nothing to clean up
        assert not isinstance(new_rows(np.zeros(95, np.float32), 29).base, np.memmap)
        on_disk = estimator.estimate(source, seed=0)
    assert np.array_equal(on_disk.nodes, expected.nodes)
    assert np.array_equal(on_disk.weights, expected.weights)
    assert not isinstance(new_rows(np.zeros(95, np.float32), 30).base, np.memmap)


def test_a_disk_that_is_full_is_reported_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with large_arrays_in(Scratch(str(tmp_path), beyond=0)):
        with pytest.raises(SdkerasError, match=r"a basis of 1.14e-05 GB cannot be kept in .*No space left.*`scratch`"):
            new_rows(np.zeros(95, np.float32), 30)


@pytest.mark.slow
def test_an_analysis_keeps_its_bases_on_disk(trained: keras.Model, tmp_path: Path) -> None:
    options = {"batch_size": 16, "runs": 3, "memory_gb": 1e-5, "seed": 1}
    runs = [sdkeras.analyze(trained, (X, Y), scratch=folder, **options) for folder in (None, str(tmp_path))]
    codes = [{warning.code for warning in run.warnings} for run in runs]
    assert "no-reorthogonalisation" in codes[0]
    assert "no-reorthogonalisation" not in codes[1]
    assert "bases-on-disk" in codes[1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("folder", ["nowhere", "file"])
def test_a_folder_that_is_none_is_refused(folder: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SdkerasError, match=r"scratch is .*; it must be a folder that exists"):
        Options(scratch=str(tmp_path / folder))
