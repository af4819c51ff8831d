"""The check that every estimator must pass: its kind's contract, run on operators with known spectra."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import numpy as np

from sdkeras.errors import NonFiniteError, PluginError
from sdkeras.estimators.kinds import KINDS, Estimator, Result, Source
from sdkeras.linalg.operators import DenseOperator, FunctionOperator, OperatorBatch
from sdkeras.results.arrays import SMALLEST_FACTOR, Array, DType, FloatArray
from sdkeras.results.estimates import Eigenpairs, LyapunovExponents, SingularValues, Spectrum, TraceEstimate
from sdkeras.testing.operators import CountingOperator, MatrixFlow, MatrixMap, dense_operator, rotation

_SEED = 3
# Negative, zero, repeated and well separated eigenvalues in one spectrum.
_EIGENVALUES = np.concatenate([[-1.5, -0.4], np.zeros(6), np.linspace(0.05, 1.0, 12), [2.0, 2.0, 5.0, 9.0]])
_SINGULAR_VALUES = np.linspace(0.5, 2.0, 8)
# An unbiased estimator's mean over this many seeds is within 6 of its standard errors of the truth, but for one in
# a million (Student's t, 31 degrees of freedom).
_UNBIASED_SEEDS = 32
_UNBIASED_Z = 6.0


def check_estimator(estimator: Estimator) -> None:
    """Runs an estimator through its kind's contract.

    Checked for float32 and float64, on a spectrum with negative, zero and repeated eigenvalues (singular values), on
    one dimension and on a zero operator: the class is declared, the result has the kind's type, the same seed gives
    the same numbers, `num_matvecs` counts the products that were spent, weights sum to the size, values lie where the
    spectrum is, residuals hold, a trace and the mean square of singular values are unbiased, an operator that gives NaN
    raises NonFiniteError, and `estimate_many`, where it is declared, gives what `estimate` does.

    Args:
        estimator: An instance with the settings to check, for example `MySLQ(num_steps=20)`.

    Raises:
        PluginError: It breaks the contract; the message says where.
    """
    declaration = getattr(type(estimator), "__sdkeras__", None)
    if declaration is None:
        raise PluginError(
            f"{type(estimator).__name__} is not declared; put @sdkeras.<kind>_estimator('<name>') above its class. "
            f"The kinds are: {', '.join(KINDS)}."
        )
    contract = _Contract(estimator, f"{declaration.kind} plugin '{declaration.name}'")
    for dtype in (np.dtype(np.float32), np.dtype(np.float64)):
        _CHECKS[declaration.kind](contract, dtype)


@attrs.frozen
class _Contract:
    estimator: Estimator
    who: str

    def require(self, holds: bool, what: str, where: str) -> None:
        if not holds:
            raise PluginError(f"{self.who}: {what} (on {where}).")

    def run(self, source: Source, where: str, seed: int = _SEED) -> Result:
        try:
            return self.estimator.estimate(source, seed=seed)
        except PluginError:
            raise
        except Exception as error:
            raise PluginError(f"{self.who}: raises {type(error).__name__}: {error} (on {where}).") from error

    def run_twice(self, make: Callable[[], Result], where: str) -> tuple[Result, Result]:
        """The result and the source it was made from, after a second run has given the same."""
        source = make()
        result = self.run(source, where)
        again = self.run(make(), where)
        self.require(result == again, "the same seed gives different numbers", where)
        self.require(result.seed == _SEED, f"the result says seed {result.seed}, it was given {_SEED}", where)
        return result, source

    def require_nan_error(self, source: Source, where: str) -> None:
        try:
            self.estimator.estimate(source, seed=_SEED)
        except NonFiniteError:
            return
        except Exception as error:
            raise PluginError(
                f"{self.who}: raises {type(error).__name__} instead of NonFiniteError (on {where})."
            ) from error
        raise PluginError(f"{self.who}: returns a result instead of raising NonFiniteError (on {where}).")


def _check_symmetric(contract: _Contract, dtype: DType) -> None:
    for name, eigenvalues in (
        ("a spectrum of both signs", _EIGENVALUES),
        ("one dimension", np.array([2.0])),
        ("a zero operator", np.zeros(6)),
    ):
        where = f"{name}, {dtype.name}"
        operator = dense_operator(eigenvalues, seed=1, dtype=dtype)
        result, source = contract.run_twice(lambda operator=operator: CountingOperator(operator), where)  # type: ignore[misc]
        spent = source.count
        contract.require(
            result.num_matvecs == spent, f"num_matvecs is {result.num_matvecs}, but {spent} products were spent", where
        )
        # Rounding: eps for each of n terms of a product, ten times over.
        tolerance = 10 * len(eigenvalues) * float(np.finfo(dtype).eps) * float(np.max(np.abs(eigenvalues)))
        _check_values(contract, result, operator, eigenvalues, tolerance, where)
        if type(contract.estimator).__sdkeras__.capabilities.many:
            _check_many(contract, operator, where)
    size = len(_EIGENVALUES)
    broken = FunctionOperator(size, lambda vector: np.full(size, np.nan, dtype), dtype)
    contract.require_nan_error(broken, f"products of NaN, {dtype.name}")


def _check_many(contract: _Contract, operator: DenseOperator, where: str) -> None:
    """Of operators whose Krylov spaces end at different steps, each row is the single run with its seed."""
    size, scale = operator.size, operator.dtype.type(0.5)
    smaller, multiple = DenseOperator(scale * operator.matrix), DenseOperator(np.eye(size, dtype=operator.dtype))
    counting = [CountingOperator(each) for each in (operator, multiple, smaller)]
    seeds = [_SEED + row for row in range(len(counting))]
    try:
        many = contract.estimator.estimate_many(OperatorBatch(counting), seeds=seeds)
    except PluginError:
        raise
    except Exception as error:
        raise PluginError(
            f"{contract.who}: estimate_many raises {type(error).__name__}: {error} (on {where})."
        ) from error
    for row, (source, seed) in enumerate(zip(counting, seeds, strict=True)):
        result, single = many[row], _moments(contract.run(source.operator, where, seed))
        which = f"operator {row} of estimate_many"
        same = result.num_matvecs == source.count and result.seed == seed
        contract.require(same, f"num_matvecs or seed of {which} is not what was spent or given", where)
        rounding = 1000 * float(np.finfo(operator.dtype).eps) * max(1.0, float(np.max(np.abs(single), initial=0.0)))
        alike = np.shape(_moments(result)) == np.shape(single) and np.allclose(_moments(result), single, 0, rounding)
        contract.require(bool(alike), f"{which} has other values than estimate gives", where)


def _moments(result: Result) -> FloatArray:
    """Numbers of a result that rounding changes little, whatever ended its run."""
    if isinstance(result, Spectrum):
        return np.array([result.weights @ result.nodes, result.weights @ result.nodes**2])
    return np.atleast_1d(result.values if isinstance(result, Eigenpairs) else result.value)


def _check_values(
    contract: _Contract, result: Result, operator: DenseOperator, truth: FloatArray, tolerance: float, where: str
) -> None:
    if isinstance(result, Spectrum):
        mean = float(result.weights @ result.nodes) / len(truth)
        allowed = tolerance + result.reach
        inside = truth.min() - allowed <= mean <= truth.max() + allowed
        contract.require(inside, f"the spectrum's mean {mean:g} is outside {truth.min():g} to {truth.max():g}", where)
        if result.residuals is not None:
            _check_residuals(contract, result.nodes, result.residuals, truth, tolerance, where)
    elif isinstance(result, Eigenpairs):
        contract.require(len(result.values) > 0, "there are no eigenvalues in the result", where)
        contract.require(len(result.values) <= len(truth), "there are more eigenvalues than dimensions", where)
        _check_residuals(contract, result.values, result.residuals, truth, tolerance, where)
        if result.vectors is not None:
            vectors = np.asarray(result.vectors, np.float64)
            lengths = np.linalg.norm(vectors, axis=0)
            # Unit vectors are as good as their dtype: 1e-5 leaves float32 room.
            contract.require(bool(np.allclose(lengths, 1, atol=1e-5)), "eigenvectors are not unit vectors", where)
            errors = np.linalg.norm(operator.matrix @ vectors - vectors * result.values, axis=0)
            contract.require(
                bool(np.all(errors <= result.residuals + tolerance)),
                f"|A v - theta v| is {errors}, but the residuals are {result.residuals}",
                where,
            )
    elif isinstance(result, TraceEstimate):
        total, allowed = float(truth.sum()), tolerance * len(truth)
        _check_unbiased(contract, operator, lambda trace: float(trace.value), total, allowed, "the trace", where)


def _check_residuals(
    contract: _Contract, values: FloatArray, residuals: FloatArray, truth: FloatArray, tolerance: float, where: str
) -> None:
    """An eigenvalue (a singular value) lies within the residual of each value."""
    distances = np.min(np.abs(values[:, None] - truth), axis=1)
    worst = int(np.argmax(distances - residuals))
    contract.require(
        bool(distances[worst] <= residuals[worst] + tolerance),
        f"the value {values[worst]:g} is {distances[worst]:.2g} from the nearest true one, but its residual is "
        f"{residuals[worst]:.2g}",
        where,
    )


def _check_unbiased(
    contract: _Contract,
    source: Source,
    quantity: Callable[[Result], float],
    truth: float,
    tolerance: float,
    what: str,
    where: str,
) -> None:
    """The mean of a quantity of the result over many seeds is the truth."""
    values = [quantity(contract.run(source, where, seed)) for seed in range(_UNBIASED_SEEDS)]
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(len(values)))
    contract.require(
        abs(mean - truth) <= _UNBIASED_Z * error + tolerance,
        f"the mean over {_UNBIASED_SEEDS} seeds is {mean:g} +- {error:.2g}, {what} is {truth:g}",
        where,
    )


def _general_matrix(singular_values: FloatArray, dtype: DType) -> Array:
    """A matrix of these singular values that is not symmetric."""
    size = len(singular_values)
    matrix: Array = (rotation(size, seed=1) * singular_values) @ rotation(size, seed=2).T
    return matrix.astype(dtype)


def _check_singular_values(contract: _Contract, dtype: DType) -> None:
    for name, truth in (
        ("singular values from 0.5 to 2", _SINGULAR_VALUES),
        ("small, zero and repeated singular values", np.abs(_EIGENVALUES)),
        ("one dimension", np.array([2.0])),
        ("a zero map", np.zeros(6)),
    ):
        where = f"{name}, {dtype.name}"
        matrix = _general_matrix(truth, dtype)
        result, source = contract.run_twice(lambda matrix=matrix: MatrixMap(matrix), where)  # type: ignore[misc]
        contract.require(
            result.num_matvecs == source.count,
            f"num_matvecs is {result.num_matvecs}, but {source.count} products were spent (J and J' together)",
            where,
        )
        tolerance = 10 * len(truth) * float(np.finfo(dtype).eps) * float(np.max(truth)) + 2 * SMALLEST_FACTOR
        values = np.exp(result.log_values)
        inside = np.all(values >= truth.min() - tolerance) and np.all(values <= truth.max() + tolerance)
        contract.require(bool(inside), f"values are outside {truth.min():g} to {truth.max():g}: {values}", where)
        if result.residuals is not None:
            _check_residuals(contract, values, result.residuals, truth, tolerance, where)
        # Every rule, however coarse, has the right mean square: its probe's |J v|^2.
        total, allowed = float(truth @ truth), len(truth) * max(1.0, float(np.max(truth))) * tolerance
        _check_unbiased(contract, MatrixMap(matrix), _squares, total, allowed, "|J|^2 (Frobenius)", where)
    matrix = np.full((8, 8), np.nan, dtype)
    contract.require_nan_error(MatrixMap(matrix), f"products of NaN, {dtype.name}")


def _squares(result: SingularValues) -> float:
    """|J|^2 (Frobenius) by the rule."""
    return float(result.weights @ np.exp(2 * result.log_values))


def _check_lyapunov(contract: _Contract, dtype: DType) -> None:
    where = f"a constant map with singular values from 0.5 to 2, {dtype.name}"
    matrix = _general_matrix(_SINGULAR_VALUES, dtype)
    exponents: LyapunovExponents = contract.run_twice(lambda: MatrixFlow(matrix), where)[0]
    contract.require(bool(np.all(exponents.stderr >= 0)), "standard errors are negative", where)
    # Rounding of log singular values: eps times the condition number 4 times n = 8, thirty times over.
    tolerance = 1000 * float(np.finfo(dtype).eps)
    values, (lowest, highest) = exponents.values, np.log(_SINGULAR_VALUES[[0, -1]])
    inside = np.all(values >= lowest - tolerance) and np.all(values <= highest + tolerance)
    contract.require(bool(inside), f"values are outside {lowest:.3f} to {highest:.3f}: {values}", where)
    contract.require(bool(np.all(np.diff(values) <= 0)), "values must be sorted, largest first", where)
    contract.require_nan_error(MatrixFlow(np.full_like(matrix, np.nan)), f"products of NaN, {dtype.name}")


_CHECKS: dict[str, Callable[[_Contract, DType], None]] = {
    **dict.fromkeys(("eigenpairs", "spectrum", "trace"), _check_symmetric),
    "singular_values": _check_singular_values,
    "lyapunov": _check_lyapunov,
}
