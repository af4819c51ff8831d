"""The conformance kit passes what is right and finds what is wrong; every built-in estimator goes through it."""

import attrs
import numpy as np
import pytest

import sdkeras
from sdkeras import testing
from sdkeras.errors import NonFiniteError, PluginError
from sdkeras.estimators import kinds, registry

SETTINGS = [
    ("spectrum", "exact", {}),
    ("spectrum", "exact", {"chunk": 5}),
    ("spectrum", "sd-kde", {}),
    ("spectrum", "sd-kde", {"num_steps": 5, "bandwidth": 0.3, "learning_rate": 0.1}),
    ("spectrum", "sd-ps", {}),
    ("spectrum", "sd-ps", {"num_quantiles": 1, "bandwidth": 1e-9, "learning_rate": 20.0}),
    ("spectrum", "sd-slq", {}),
    ("spectrum", "sd-slq", {"bin_width": 2.0, "bin_edge": 0.7, "reorthogonalize": False}),
    ("spectrum", "slq", {}),
    ("spectrum", "slq", {"num_steps": 1}),
    ("spectrum", "slq", {"num_steps": 10}),
    ("spectrum", "slq", {"num_steps": 10, "reorthogonalize": False}),
    ("eigenpairs", "lanczos", {}),
    ("eigenpairs", "lanczos", {"num_largest": 3, "num_smallest": 3, "eigenvectors": True}),
    ("eigenpairs", "lanczos", {"num_largest": 12, "num_smallest": 12}),
    ("eigenpairs", "lanczos", {"num_largest": 2, "num_smallest": 0, "num_steps": 4, "eigenvectors": True}),
    ("eigenpairs", "power-iteration", {}),
    ("eigenpairs", "power-iteration", {"num_eigenpairs": 3, "which": "both", "eigenvectors": True}),
    ("eigenpairs", "power-iteration", {"num_eigenpairs": 2, "which": "largest", "eigenvectors": True}),
    ("eigenpairs", "power-iteration", {"num_eigenpairs": 2, "which": "smallest", "num_steps": 3}),
    ("trace", "randomized-trace", {}),
    ("trace", "randomized-trace", {"num_probes": 20, "tolerance": 0.5}),
    ("trace", "randomized-trace", {"num_probes": 4, "method": "hutch++"}),
    ("trace", "randomized-trace", {"num_probes": 20, "method": "hutch++"}),
    ("trace", "randomized-trace", {"num_probes": 90, "method": "hutch++"}),
    ("trace", "randomized-trace", {"num_probes": 20, "method": "xtrace"}),
    ("trace", "randomized-trace", {"num_probes": 90, "method": "xtrace"}),
    ("singular_values", "dense-svd", {}),
    ("singular_values", "dense-svd", {"chunk": 5}),
    ("singular_values", "golub-kahan", {}),
    ("singular_values", "golub-kahan", {"num_steps": 1}),
    ("singular_values", "golub-kahan", {"num_steps": 10}),
    ("singular_values", "golub-kahan", {"num_steps": 10, "reorthogonalize": False}),
    ("lyapunov", "lyapunov-qr", {}),
    ("lyapunov", "lyapunov-qr", {"num_exponents": None, "num_steps": 200}),
    ("lyapunov", "lyapunov-qr", {"num_exponents": 1, "num_steps": 1, "transient": 0}),
    ("lyapunov", "lyapunov-qr", {"num_exponents": 3, "num_steps": 5000, "tolerance": 0.01}),
]


@pytest.mark.parametrize(("kind", "name", "settings"), SETTINGS)
def test_every_built_in_estimator_conforms(kind, name, settings):
    testing.check_estimator(sdkeras.get_estimator(kind, name)(**settings))


def test_no_built_in_estimator_is_left_out():
    # Those of this distribution; a developer's machine may have others.
    ours = {(info.kind, info.name) for info in registry.installed() if info.distribution == "sdkeras"}
    assert ours == {(kind, name) for kind, name, _ in SETTINGS}


@pytest.fixture(autouse=True)
def _forget_declarations():
    registry.installed()  # the built-ins' own declarations are made once in a process and must stay
    known = kinds.declared()
    yield
    kinds.forget_since(known)


def spectrum_plugin(change):
    """A plugin that is right but for what `change` does to its result and source."""

    @sdkeras.spectrum_estimator("suspect")
    @attrs.frozen
    class Suspect:
        def estimate(self, source: sdkeras.SymmetricOperator, *, seed: int) -> sdkeras.Spectrum:
            right = sdkeras.get_estimator("spectrum", "slq")().estimate(source, seed=seed)
            return change(right, source)

    return Suspect()


CHANGES = {
    "num_matvecs is .* products were spent": lambda right, source: attrs.evolve(right, num_matvecs=1 + source.size),
    "the same seed gives different numbers": lambda right, source: attrs.evolve(
        right, residuals=np.random.default_rng().random(len(right.nodes))
    ),
    "the result says seed": lambda right, source: attrs.evolve(right, seed=0),
    "the spectrum's mean .* is outside": lambda right, source: attrs.evolve(right, nodes=right.nodes + 100, reach=50.0),
    "but its residual is": lambda right, source: attrs.evolve(
        right, nodes=right.nodes + 0.01, residuals=np.zeros(len(right.nodes))
    ),
    "raises ZeroDivisionError": lambda right, source: right if source.size > 1 else 1 // 0,
}


@pytest.mark.parametrize("message", CHANGES)
def test_a_spectrum_plugin_that_breaks_the_contract_is_found_out(message):
    with pytest.raises(PluginError, match=f"spectrum plugin 'suspect': .*{message}"):
        testing.check_estimator(spectrum_plugin(CHANGES[message]))


def test_a_right_plugin_of_a_third_party_passes():
    testing.check_estimator(spectrum_plugin(lambda right, source: right))


MANY = {
    None: lambda results: results,
    "returns 2 results for 3 operators": lambda results: results[:2],
    "seed of operator 0 of estimate_many": lambda results: (results[1], results[0], *results[2:]),
    "operator 1 of estimate_many has other values": lambda results: tuple(
        attrs.evolve(one, nodes=one.nodes * (1.0 if row == 0 else 1.01)) for row, one in enumerate(results)
    ),
}


@pytest.mark.parametrize("message", MANY)
def test_many_runs_at_once_that_are_not_the_single_ones_are_found_out(message):
    slq = sdkeras.get_estimator("spectrum", "slq")()

    @sdkeras.spectrum_estimator("suspect")
    @attrs.frozen
    class Suspect:
        def estimate(self, source: sdkeras.SymmetricOperator, *, seed: int) -> sdkeras.Spectrum:
            return slq.estimate(source, seed=seed)

        def estimate_many(self, source: sdkeras.OperatorBatch, *, seeds: list[int]) -> tuple[sdkeras.Spectrum, ...]:
            return MANY[message](slq.estimate_many(source, seeds=seeds))

    if message is None:
        testing.check_estimator(Suspect())
    else:
        with pytest.raises(PluginError, match=message):
            testing.check_estimator(Suspect())


def test_a_class_that_is_not_declared_is_told_how():
    with pytest.raises(PluginError, match="object is not declared; put @sdkeras"):
        testing.check_estimator(object())


def test_swallowed_nan_is_found_out():
    @sdkeras.spectrum_estimator("suspect")
    @attrs.frozen
    class Swallows:
        def estimate(self, source: sdkeras.SymmetricOperator, *, seed: int) -> sdkeras.Spectrum:
            try:
                return sdkeras.get_estimator("spectrum", "slq")().estimate(source, seed=seed)
            except NonFiniteError:
                return sdkeras.Spectrum([0.0], [source.size], num_matvecs=1, seed=seed)

    with pytest.raises(PluginError, match="returns a result instead of raising NonFiniteError"):
        testing.check_estimator(Swallows())


@pytest.mark.parametrize(("factor", "fails"), [(1.0, False), (1.3, True)])
def test_a_biased_trace_is_found_out(factor, fails):
    @sdkeras.trace_estimator("suspect")
    @attrs.frozen
    class Biased:
        def estimate(self, source: sdkeras.SymmetricOperator, *, seed: int) -> sdkeras.TraceEstimate:
            right = sdkeras.get_estimator("trace", "randomized-trace")().estimate(source, seed=seed)
            return attrs.evolve(right, value=factor * right.value)

    if fails:
        with pytest.raises(PluginError, match="the mean over 32 seeds"):
            testing.check_estimator(Biased())
    else:
        testing.check_estimator(Biased())


@pytest.mark.parametrize(
    ("rotate", "message"), [(False, None), (True, r"\|A v - theta v\| is"), (None, "eigenvectors are not unit")]
)
def test_wrong_eigenvectors_are_found_out(rotate, message):
    @sdkeras.eigenpairs_estimator("suspect")
    @attrs.frozen
    class Suspect:
        def estimate(self, source: sdkeras.SymmetricOperator, *, seed: int) -> sdkeras.Eigenpairs:
            right = sdkeras.get_estimator("eigenpairs", "lanczos")(eigenvectors=True).estimate(source, seed=seed)
            vectors = 2 * right.vectors if rotate is None else right.vectors[:, ::-1] if rotate else right.vectors
            return attrs.evolve(right, vectors=vectors)

    if message is None:
        testing.check_estimator(Suspect())
    else:
        with pytest.raises(PluginError, match=message):
            testing.check_estimator(Suspect())


def lyapunov_plugin(sign):
    @sdkeras.lyapunov_estimator("suspect")
    @attrs.frozen
    class Qr:
        def estimate(self, source: sdkeras.TangentFlow, *, seed: int) -> sdkeras.LyapunovExponents:
            source.reset(seed)
            frame, total = np.eye(source.size, dtype=source.dtype), np.zeros(source.size)
            for _ in range(200):
                product = source.step(frame)
                if not np.all(np.isfinite(product)):
                    raise NonFiniteError("a tangent holds NaN")
                frame, r = np.linalg.qr(product)
                total += np.log(np.abs(np.diagonal(r)))
            values = np.sort(total / 200)[::sign]
            return sdkeras.LyapunovExponents(values, np.zeros(source.size), num_steps=200, seed=seed)

    return Qr()


def test_a_lyapunov_plugin_is_checked():
    testing.check_estimator(lyapunov_plugin(-1))
    with pytest.raises(PluginError, match="must be sorted, largest first"):
        testing.check_estimator(lyapunov_plugin(1))


def singular_values_plugin(change):
    """A plugin that is right but for what `change` does to its result and to the map it sees."""

    @sdkeras.singular_values_estimator("suspect")
    @attrs.frozen
    class Suspect:
        def estimate(self, source: sdkeras.LinearMap, *, seed: int) -> sdkeras.results.estimates.SingularValues:
            right = sdkeras.get_estimator("singular_values", "golub-kahan")(num_steps=10)
            return change(right, source, seed)

    return Suspect()


class WithoutAdjoint:
    """A map whose products from the left are those from the right."""

    def __init__(self, source):
        self.size, self.dtype = source.size, source.dtype
        self.jvp = self.vjp = source.jvp


def changed(**change):
    """The right result with some of its fields made from it anew."""

    def apply(right, source, seed):
        found = right.estimate(source, seed=seed)
        return attrs.evolve(found, **{name: make(found) for name, make in change.items()})

    return apply


WRONG_SINGULAR_VALUES = {
    "num_matvecs is 3, but .* products were spent": changed(num_matvecs=lambda found: 3),
    "values are outside 0.5 to 2: .2.55": lambda right, source, seed: right.estimate(WithoutAdjoint(source), seed=seed),
    "is .* from the nearest true one, but its residual is": changed(
        log_values=lambda found: 0.99 * found.log_values, residuals=lambda found: 0 * found.residuals
    ),
    "the mean over 32 seeds": changed(
        weights=lambda found: np.full_like(found.weights, found.size / len(found.weights))
    ),
    "the weights sum to": changed(weights=lambda found: 0.99 * found.weights),
}


@pytest.mark.parametrize("message", WRONG_SINGULAR_VALUES)
def test_a_singular_values_plugin_that_breaks_the_contract_is_found_out(message):
    with pytest.raises(PluginError, match=f"singular_values plugin 'suspect': .*{message}"):
        testing.check_estimator(singular_values_plugin(WRONG_SINGULAR_VALUES[message]))


def test_a_right_singular_values_plugin_passes():
    testing.check_estimator(singular_values_plugin(changed()))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dense_operator_has_the_eigenvalues_and_is_not_diagonal(dtype):
    operator = testing.dense_operator([-1.0, 0.0, 3.0, 3.0], dtype=dtype)
    assert operator.dtype == dtype
    np.testing.assert_allclose(np.linalg.eigvalsh(operator.matrix), [-1, 0, 3, 3], atol=20 * np.finfo(dtype).eps)
    off_diagonal = operator.matrix - np.diag(np.diagonal(operator.matrix))
    assert np.max(np.abs(off_diagonal)) > 0.1
    again = testing.dense_operator([-1.0, 0.0, 3.0, 3.0], dtype=dtype)
    np.testing.assert_array_equal(operator.matrix, again.matrix)
    other = testing.dense_operator([-1.0, 0.0, 3.0, 3.0], seed=1, dtype=dtype)
    assert not np.allclose(operator.matrix, other.matrix)


def test_counting_operator_counts_columns():
    counting = testing.CountingOperator(testing.dense_operator([1.0, 2.0, 3.0]))
    counting.matvec(np.ones(3))
    counting.matmat(np.ones((3, 5)))
    assert counting.count == 6
