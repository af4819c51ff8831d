"""Limits on products and on time bind in every stage of an analysis, and what they leave out is said."""

import time

import attrs
import keras
import numpy as np
import pytest

import sdkeras
from oracles import rotated
from sdkeras.errors import BudgetError
from sdkeras.estimators import kinds
from sdkeras.linalg.operators import DenseOperator
from sdkeras.linalg.probes import rademacher_probes
from sdkeras.operators.hessian import HessianOperator
from sdkeras.reporting.html import as_html
from sdkeras.runs import analyze
from sdkeras.training_step.map import UpdateMap

GENERATOR = np.random.default_rng(0)
X = GENERATOR.standard_normal((64, 5)).astype("float32")
Y = GENERATOR.integers(0, 3, 64)
BATCH, NUM_BATCHES, SIZE = 16, 4, 6 * 4 + 5 * 3


def net(optimizer: object) -> keras.Model:
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(4, "tanh"), keras.layers.Dense(3)], name="small")
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(X, Y, batch_size=BATCH, epochs=3, verbose=0)
    return model


@pytest.fixture(scope="module")
def sgd() -> keras.Model:
    return net(keras.optimizers.SGD(1.0))


@pytest.fixture(scope="module")
def adam() -> keras.Model:
    return net(keras.optimizers.Adam(0.05))


@pytest.fixture(scope="module")
def checks(sgd: keras.Model) -> tuple[int, int]:
    """Products that verify the Hessian, and those that verify it and the step."""
    loss = sdkeras.EmpiricalLoss(sgd, (X, Y), batch_size=BATCH)
    alone = HessianOperator(loss).num_products
    return alone, UpdateMap(loss, sgd.optimizer).num_products


def required(run: sdkeras.Analysis, checked: int) -> int:
    """Products of the checks and of one run; a dense one is not required, and there are others then."""
    estimate = run.sharpness_dimension
    return checked + (estimate.num_hvps if estimate.num_runs == 1 else 0)


def messages(run: sdkeras.Analysis, code: str) -> str:
    return "\n".join(warning.message for warning in run.warnings if warning.code == code)


def assert_every_absence_has_its_reason(run: sdkeras.Analysis, options: dict) -> None:
    said, edge = messages(run, "not-measured"), run.edge_of_stability
    assert (run.hessian.largest is None) == ("largest and smallest eigenvalue" in said)
    assert (run.hessian.trace is None) == ("trace of the data-set Hessian" in said)
    assert (edge.batch_sharpness is None) == ("batch sharpness" in said)
    if edge.sharpness is None:
        assert "the budget left no room" in edge.verdict
    wanted = (["exact"] if options.get("exact") else []) + list(options.get("estimators", ["slq"]))
    measured = [estimate.estimator for estimate in run.estimates]
    assert [name for name in wanted if f"sharpness dimension ({name})" not in said] == measured
    for what, field in (("largest eigenvalue of", "largest"), ("trace of", "trace"), ("codimension of", "codimension")):
        absent = [layer for layer in run.layers if getattr(layer, field) is None]
        assert not absent or f"{what} {len(absent)} of the 2 layers" in said
        assert not absent or field != "codimension" or "not estimated" in str(run)
    if options.get("per_layer"):
        assert len(run.layers) == 2
    if options.get("snapshots") and run.supremum is None:
        assert messages(run, "no-supremum")
    if options.get("lyapunov") and run.lyapunov is None:
        assert "there are no Lyapunov exponents" in messages(run, "limit-on-products") + messages(run, "time-limit")


OPTIONS = {
    "plain": {},
    "layers": {"per_layer": True},
    "exact": {"exact": True},
    "snapshots": {"snapshots": 2, "every": 2},
    "lyapunov": {"lyapunov": 2, "lyapunov_steps": 5, "lyapunov_transient": 0},
    "estimators": {"estimators": ["slq", "sd-slq"]},
    "all": {"per_layer": True, "exact": True, "snapshots": 2, "every": 2, "lyapunov": 1, "lyapunov_transient": 0},
}


MORE_LIMITS = [
    *[("plain", 1), ("plain", 60), ("all", 5), ("all", 400)],
    *[(name, 60) for name in ("estimators", "adam", "layers", "exact", "snapshots", "lyapunov")],
]


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        *[("plain", 5), ("all", 60)],
        *[pytest.param(name, limit, marks=pytest.mark.slow) for name, limit in MORE_LIMITS],
    ],
)
def test_a_limit_on_products_binds_everywhere(
    name: str, limit: int, sgd: keras.Model, adam: keras.Model, checks: tuple[int, int]
) -> None:
    options = OPTIONS.get(name, {})
    model = adam if name == "adam" else sgd
    run = sdkeras.analyze(model, (X, Y), batch_size=BATCH, max_hvps=limit, **options)
    assert_every_absence_has_its_reason(run, options)
    spent = run.provenance.num_hvps
    checked = checks["snapshots" in options or "lyapunov" in options]
    checked += "exact" in options  # a product tells whether the Hessian splits, and so what an exact spectrum costs
    assert spent <= max(limit, required(run, checked))
    assert (spent > limit) == (
        f"{spent - limit:,} Hessian-vector products beyond the limit" in messages(run, "limit-exceeded")
    )
    if spent > limit:
        assert "the first run of slq took" in messages(run, "limit-exceeded")
    assert sdkeras.Analysis.from_json(run.to_json()) == run
    plan = analyze.plan(model, (X, Y), batch_size=BATCH, max_hvps=limit, **options)
    steps = 20 * ("snapshots" in options or "lyapunov" in options)
    assert plan.num_hvps <= max(limit, 10 + steps + SIZE)  # what a plan takes for the checks, and one run


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that products alone move, by half a second each and one by one, as those of a long LSTM do."""
    clock, apply = [0.0], HessianOperator._apply

    def dear(self: HessianOperator, array: object, shape: tuple[int, ...], groups: object, product: object) -> object:
        def one(vector: object, group: object) -> object:
            clock[0] += 0.5 * (1 if len(shape) == 1 else shape[0])
            return product(vector, group)

        return apply(self, array, shape, groups, one)

    monkeypatch.setattr(HessianOperator, "_apply", dear)
    monkeypatch.setattr(HessianOperator, "rows_together", lambda *_, **__: 1)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    return clock


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        *[("plain", 0.01), ("exact", 1.0), ("adam", 1.0)],
        *[
            pytest.param(name, limit, marks=pytest.mark.slow)
            for name, limit in (("estimators", 1.0), ("layers", 1.0), ("layers", 400.0))
        ],
    ],
)
def test_a_time_limit_binds_everywhere(
    name: str, limit: float, slow: list[float], sgd: keras.Model, adam: keras.Model
) -> None:
    options = OPTIONS.get(name, {})
    run = sdkeras.analyze(adam if name == "adam" else sgd, (X, Y), batch_size=BATCH, time_limit=limit, **options)
    assert_every_absence_has_its_reason(run, options)
    # One run, and what was under way: a product, or a block of 16 probes.
    first = run.sharpness_dimension.num_hvps if limit < 100 else 0
    assert slow[0] <= limit + 0.5 * (first + (1 if limit < 100 else 16))
    if limit > 100:
        assert run.sharpness_dimension.interval is not None
        assert run.hessian.largest is not None
    else:
        assert "the first run of slq took 1" in messages(run, "limit-exceeded")  # 35 products of 0.5 s
        assert "No verdict" in run.edge_of_stability.verdict


def test_a_limit_in_real_time(sgd: keras.Model, checks: tuple[int, int]) -> None:
    run = sdkeras.analyze(sgd, (X, Y), batch_size=BATCH, time_limit=0.01)
    assert "tracing and verification took" in messages(run, "limit-exceeded")
    assert run.provenance.num_hvps <= required(run, checks[0])


def greedy_estimators() -> None:
    """Estimators that multiply for ever: one of each kind that an analysis takes."""
    results = {"eigenpairs": sdkeras.Eigenpairs, "trace": sdkeras.TraceEstimate, "spectrum": sdkeras.Spectrum}
    for kind, result in results.items():

        @getattr(sdkeras, f"{kind}_estimator")(f"greedy-{kind}")
        @attrs.frozen
        class Greedy:
            def estimate(self, source: sdkeras.SymmetricOperator, *, seed: int) -> result:
                while True:
                    source.matmat(np.ones((source.size, 2), source.dtype))


@pytest.mark.parametrize(
    "stage",
    ["greedy-eigenpairs", *(pytest.param(f"greedy-{kind}", marks=pytest.mark.slow) for kind in ("trace", "spectrum"))],
)
def test_a_stage_that_takes_all_it_can_leaves_their_share_to_the_others(
    stage: str, sgd: keras.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kinds, "_declared", dict(kinds._declared))
    greedy_estimators()
    estimators = ["slq", stage] if stage == "greedy-spectrum" else [stage]
    run = sdkeras.analyze(sgd, (X, Y), batch_size=BATCH, max_hvps=1200, tolerance=0.9, estimators=estimators)
    assert run.provenance.num_hvps <= 1200
    assert run.sharpness_dimension.estimator == "slq"
    assert run.sharpness_dimension.interval is not None
    assert (run.hessian.largest is None) == (stage == "greedy-eigenpairs")
    assert (run.hessian.trace is None) == (stage == "greedy-trace")
    assert len(messages(run, "not-measured").splitlines()) == 1
    assert run.edge_of_stability.batch_sharpness is not None


def test_an_eigenvalue_that_has_not_converged_gives_no_verdict_below_the_edge(sgd: keras.Model) -> None:
    hessian = HessianOperator(sdkeras.EmpiricalLoss(sgd, (X, Y), batch_size=BATCH))
    converged = sdkeras.get_estimator("eigenpairs", "lanczos")().estimate(hessian, seed=0).values[0]
    run = sdkeras.analyze(sgd, (X, Y), batch_size=BATCH, max_hvps=60)
    largest = run.hessian.largest
    assert not largest.converged
    assert largest.value <= converged * (1 + 1e-5)
    assert largest.residual > 0
    assert "not converged" in messages(run, "not-converged") + run.edge_of_stability.verdict
    assert run.edge_of_stability.verdict.startswith("No verdict within the limit: the sharpness is at least")


def test_a_value_without_an_interval_is_no_headline(sgd: keras.Model) -> None:
    run = sdkeras.analyze(sgd, (X, Y), batch_size=BATCH, max_hvps=60)
    assert run.sharpness_dimension.interval is None
    value = f"{run.sharpness_dimension.value:.1f}"
    lead = str(run)[: str(run).index("╰")]
    assert "not determined (1 run within the limit; 3 are needed)" in lead
    assert "batch sharpness" in lead
    assert value not in lead
    cards = as_html(run).split("Main numbers")[1].split("</section>")[0]
    assert "not determined" in cards
    assert "1 run within the limit; 3 are needed" in cards
    assert value not in cards
    none = sdkeras.analyze(sgd, (X, Y), batch_size=BATCH, max_hvps=60, estimators=["exact"])
    assert none.sharpness_dimension is None
    assert "not determined (no run within the limit; 3 are needed)" in str(none)
    assert "no run within the limit" in as_html(none)
    few = sdkeras.analyze(sgd, (X, Y), batch_size=BATCH, runs=2, tolerance=0.9)
    assert "not determined (2 runs; 3 are needed)" in str(few)


class Limited(DenseOperator):
    """Refuses a product, and a block of them, that there is no room for."""

    def __init__(self, matrix: np.ndarray, products: int) -> None:
        super().__init__(matrix)
        self.left = products

    def matvec(self, vector: np.ndarray) -> np.ndarray:
        return self.matmat(vector[:, None])[:, 0]

    def matmat(self, matrix: np.ndarray) -> np.ndarray:
        if matrix.shape[1] > self.left:
            raise BudgetError("the limit on products")
        self.left -= matrix.shape[1]
        return self.matrix @ matrix


@pytest.mark.parametrize("products", [2, 3, 7])
def test_lanczos_gives_what_it_has(products: int) -> None:
    values = np.linspace(-3, 9, 60)
    matrix = rotated(values)
    lanczos = sdkeras.get_estimator("eigenpairs", "lanczos")
    found = lanczos(tolerance=1e-12).estimate(Limited(matrix, products), seed=0)
    assert found == lanczos(tolerance=1e-12, num_steps=products).estimate(Limited(matrix, 60), seed=0)
    assert not found.converged.any()
    assert found.num_matvecs == products
    for value, residual in zip(found.values, found.residuals, strict=True):
        assert np.min(np.abs(values - value)) <= residual
    with pytest.raises(BudgetError):
        lanczos().estimate(Limited(matrix, 1), seed=0)


@pytest.mark.parametrize("products", [2, 15, 16, 21])
def test_the_trace_is_over_the_probes_that_were_affordable(products: int) -> None:
    matrix = rotated(np.linspace(-3, 9, 60))
    found = sdkeras.get_estimator("trace", "randomized-trace")(num_probes=64).estimate(
        Limited(matrix, products), seed=0
    )
    probes = np.concatenate([rademacher_probes(60, 16, seed=0, dtype=np.float64, stream=stream) for stream in (1, 2)])
    assert found.num_probes == products
    terms = np.einsum("pi,ij,pj->p", probes[:products], matrix, probes[:products])
    assert found.value == pytest.approx(terms.mean(), rel=1e-12)
    assert found.stderr == pytest.approx(terms.std(ddof=1) / np.sqrt(products), rel=1e-12)
