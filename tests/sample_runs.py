"""Records as an analysis leaves them, for the tests of reports."""

import math

import attrs
import numpy as np

import sdkeras
from sdkeras.dimension.exponents import ExponentMap, rds_sharpness
from sdkeras.results import answers, critical, lyapunov, measured, verification
from sdkeras.results.dimension import EdgeOfStability, RdsSharpness, SharpnessDimension
from sdkeras.results.lyapunov import LyapunovDimension
from sdkeras.results.note import Note
from sdkeras.results.verification import Verification

ESTIMATE = SharpnessDimension(
    value=1530.25,
    interval=(1520.5, 1540.0),
    codimension=469.75,
    codimension_interval=(460.0, 479.5),
    definition_value=None,
    definition_interval=(1500.0, 1540.0),
    quantile_average=1510.0,
    j_star=1529.5,
    threshold_exponent=-0.01,
    expansion=2.5,
    expansion_negative_curvature=2.25,
    expansion_unstable=0.25,
    neutral_mass=1000.0,
    margin=0.0025,
    resolution=30.0,
    map="sgd",
    coordinates="weights",
    state_size=2000,
    estimator="slq",
    num_runs=24,
    num_steps=40,
    num_hvps=960,
    history=np.array([1500.0, 1530.25]),
    history_half_width=np.array([math.nan, 9.75]),
    history_runs=np.array([24.0, 30.0]),
)
RUN = answers.Analysis(
    provenance=answers.Provenance("0.1.0", "2.21", "3.15", "3.11", "CPU", 0, "float32", 1234, 5.5, "ab12", "now"),
    model=answers.ModelInfo("net", 2000, 2000, "train", "mse", ("idle/kernel",)),
    data=answers.DataInfo(100, 32, 100),
    optimizer=answers.OptimizerInfo("SGD", 0.1, 0.0, None, 30, False),
    verification=Verification("reverse-over-reverse", 1e-9, "float64", 5e-7, 1e-8, 0.0, True),
    hessian=answers.HessianSummary(
        measured.Measured(12.0, True, residual=1e-4), None, measured.Measured(math.nan, False, stderr=math.nan)
    ),
    sharpness_dimension=ESTIMATE,
    estimates=(ESTIMATE,),
    rds_sharpness=RdsSharpness(np.array([0.5, 0.1]), np.array([0.5, 1.0]), np.array([0.1, -1.0])),
    edge_of_stability=EdgeOfStability("H", 12.0, 20.0, 0.6, 13.0, 1.5, "Below the edge of stability: 12 of 20."),
    spectrum=answers.SpectrumSummary(np.array([0.0, 12.0]), np.array([1999.0, 1.0])),
    warnings=(Note("negative-curvature", "90% of E+"),),
)
EMPTY = attrs.evolve(
    RUN,
    hessian=answers.HessianSummary(None, None, None),
    sharpness_dimension=None,
    estimates=(),
    rds_sharpness=None,
    edge_of_stability=EdgeOfStability("H", None, None, None, None, None, "No verdict."),
    spectrum=None,
    warnings=(),
    partial=True,
)
FOUND = lyapunov.LyapunovSummary(
    values=np.array([0.5, -0.25]),
    stderr=np.array([0.03, 0.04]),
    rounding=np.array([0.0, 0.0]),
    num_resolved=None,
    history=tuple(np.zeros((2, 12))),
    block_size=5,
    num_steps=60,
    num_steps_asked=60,
    transient=10,
    stopped_at=None,
    log_det=0.25,
    dimension=LyapunovDimension("bracketed", None, (1.0, 3.0), "two of four are known", 2, None, 4, 2, 60),
    num_weights=4,
    verification=verification.StepVerification(0.0, 1e-9, "map", 1e-7, 1e-9, True),
)
ALONE = answers.LyapunovRun(RUN.provenance, RUN.model, RUN.data, RUN.optimizer, RUN.verification, FOUND)

STEP = critical.CriticalStep(
    learning_rate=measured.Measured(0.25, True, interval=(0.2475, 0.2525)),
    sharpness=measured.Measured(8.0, True, interval=(7.92, 8.08)),
    ratio=measured.Measured(0.4, True, interval=(0.396, 0.404)),
    outcome="measured",
    loss=1.5,
    slope=-0.75,
    tolerance=0.02,
    num_evaluations=11,
    num_minibatches=None,
    ratios=None,
    quartiles=None,
    num_ascents=0,
    factors=np.array([1.0, 2.0, 2.5, 4.0]),
    losses=np.array([1.05, 1.2, 1.5, math.inf]),
    step_error=1e-12,
    verified=True,
)
CRITICAL = answers.CriticalRun(RUN.provenance, RUN.model, RUN.data, RUN.optimizer, STEP)


def with_estimate(run: answers.Analysis, **fields: object) -> answers.Analysis:
    """The run with another estimate of the sharpness dimension."""
    estimate = attrs.evolve(run.sharpness_dimension, **fields)
    return attrs.evolve(run, sharpness_dimension=estimate, estimates=(estimate,))


def with_edge(run: answers.Analysis, **fields: object) -> answers.Analysis:
    """The run with another verdict on the edge of stability."""
    return attrs.evolve(run, edge_of_stability=attrs.evolve(run.edge_of_stability, **fields))


def plausible_run() -> answers.Analysis:
    """A record whose spectrum, exponents and dimension belong together."""
    generator = np.random.default_rng(0)
    nodes = np.sort(np.concatenate([generator.normal(0, 0.01, 1900), generator.exponential(1.0, 100)]))
    weights = np.ones(len(nodes))
    z = ExponentMap("sgd", 0.1)(nodes)
    value = sdkeras.sharpness_dimension(z)
    run = with_estimate(
        RUN,
        value=value,
        interval=(value - 2, value + 2),
        codimension=2000 - value,
        codimension_interval=(1998 - value, 2002 - value),
        j_star=math.floor(value),
        threshold_exponent=-0.02,
    )
    evidence = measured.Measured(3.0, True, stderr=0.25), 4.0, (3.0, 5.0)
    layers = tuple(
        answers.LayerSharpness(name, 10, measured.Measured(top, True, residual=1e-6), *evidence)
        for name, top in (("stem", 2.0), ("head", 8.0), ("dead", 0.0))
    )
    return attrs.evolve(
        run,
        spectrum=answers.SpectrumSummary(nodes, weights, exponents=z),
        rds_sharpness=rds_sharpness(np.sort(z)[::-1], weights),
        layers=layers,
    )


PLAUSIBLE = plausible_run()
