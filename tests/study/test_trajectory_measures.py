"""A trajectory's E_alpha and PH dimension are those of its points, wherever the points came from."""

import subprocess
import sys
from pathlib import Path

import attrs
import keras
import numpy as np
import pytest
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.spatial.distance import pdist, squareform

from sdkeras.errors import NonFiniteError, OperatorSizeError, SdkerasError
from sdkeras.reporting.html import as_html
from sdkeras.study.simulate import ForwardOptions, forward, plan, simulate
from sdkeras.study.topology import TrajectoryMeasures, measure_trajectory
from sdkeras.study.trajectory import Trajectory
from sdkeras.study.trajectory_report import trajectory_report

RNG = np.random.default_rng(0)
WALK = np.cumsum(RNG.standard_normal((400, 6)), axis=0)


def trajectory(points: np.ndarray, losses: np.ndarray | None = None, **given: object) -> Trajectory:
    count, size = points.shape
    made = Trajectory(points, np.arange(1, count + 1), losses, size, None, 0, None)
    return attrs.evolve(made, **given)


def tree_of(distances: np.ndarray, alpha: float) -> float:
    return float(np.sum(minimum_spanning_tree(distances).data ** alpha))


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.7])
def test_both_distances_against_scipy(alpha: float) -> None:
    losses = RNG.random((400, 30))
    found = measure_trajectory(trajectory(WALK, losses), alpha, num_repeats=3)
    assert found.euclidean.e_alpha == pytest.approx(tree_of(squareform(pdist(WALK)), alpha), rel=1e-9)
    expected = tree_of(squareform(pdist(losses, "cityblock")) / 30, alpha)
    assert found.data.e_alpha == pytest.approx(expected, rel=1e-9)
    fit = found.euclidean.ph_dimension
    assert fit.value == pytest.approx(alpha / (1 - fit.slope), rel=1e-12)
    assert fit.slope == pytest.approx(np.polyfit(np.log(fit.sizes), fit.log_e_alpha, 1)[0], rel=1e-9)
    assert np.exp(fit.log_e_alpha[-1]) == pytest.approx(found.euclidean.e_alpha, rel=1e-9)


def test_a_random_walk_has_dimension_two_and_a_line_one() -> None:
    walk = np.cumsum(np.random.default_rng(1).standard_normal((1500, 40)), axis=0)
    fit = measure_trajectory(trajectory(walk)).euclidean.ph_dimension
    assert abs(fit.value - 2) < 0.3
    assert fit.stderr < 0.1
    # Of a line E_1 is its length whatever the number of points: the formula needs a smaller alpha there.
    line = np.outer(np.random.default_rng(2).random(1000), np.ones(3))
    assert measure_trajectory(trajectory(line), 0.5).euclidean.ph_dimension.value == pytest.approx(1, abs=0.1)
    assert abs(measure_trajectory(trajectory(line)).euclidean.ph_dimension.slope) < 0.02


def test_the_answer_reads_back_and_says_what_it_is() -> None:
    found = measure_trajectory(trajectory(WALK, WALK**2, iterations=np.arange(400) * 5 + 10))
    assert (found.first_iteration, found.last_iteration, found.num_examples) == (10, 2005, 6)
    assert TrajectoryMeasures.from_json(found.to_json()) == found
    assert found.warnings == ()
    text = str(found)
    assert "400 iterates of a recorded trajectory, iterations 10 to 2,005" in text
    assert f"{found.euclidean.e_alpha:,.0f}"[:3] in text
    page = as_html(trajectory_report(found))
    assert len(trajectory_report(found).figures) == 2
    assert page.count("<svg") == 2
    assert "Growth of E_alpha, data-dependent" in page
    without = measure_trajectory(trajectory(WALK))
    assert without.data is None
    assert as_html(trajectory_report(without)).count("<svg") == 1
    assert TrajectoryMeasures.from_json(without.to_json()) == without


def test_cautions() -> None:
    repeated = np.concatenate([WALK, WALK[:7]])
    steps = np.concatenate([np.arange(400), 1000 + np.arange(7)])
    found = measure_trajectory(trajectory(repeated, iterations=steps, stopped_at=2000))
    assert [warning.code for warning in found.warnings] == ["diverged", "uneven-steps", "equal-iterates"]
    assert found.euclidean.e_alpha == pytest.approx(measure_trajectory(trajectory(WALK)).euclidean.e_alpha, rel=1e-12)
    # Three far points: subsamples with and without them have trees of other lengths.
    jumped = measure_trajectory(trajectory(WALK + 1e4 * (np.arange(400) < 3)[:, None]))
    assert [warning.code for warning in jumped.warnings] == ["no-power-law"]
    assert "needs a slope below 1" in jumped.euclidean.ph_dimension.reason
    assert "undetermined (Euclidean)" in str(jumped)
    few = measure_trajectory(trajectory(WALK[:5]))
    assert "too few" in few.euclidean.ph_dimension.reason
    assert trajectory_report(few).figures == ()
    assert "too few" in str(few)


@pytest.mark.parametrize("scale", [10.0, 1e-3])
def test_an_e_alpha_that_float64_does_not_hold_is_told(recwarn, scale: float) -> None:
    found = measure_trajectory(trajectory(scale * WALK), 1e9)
    assert np.isnan(found.euclidean.e_alpha)
    (warning,) = [warning for warning in found.warnings if warning.code == "e-alpha-range"]
    longest = minimum_spanning_tree(squareform(pdist(scale * WALK))).data.max()  # E_alpha is its power, or nearly
    logarithm = float(warning.message.split("its logarithm is ")[1].split(")")[0])
    assert logarithm == pytest.approx(1e9 * np.log(longest), rel=1e-3)
    assert found.euclidean.ph_dimension.value is None
    assert found.euclidean.ph_dimension.reason
    assert "float64 does not hold E_alpha" in " ".join(str(found).split())
    as_html(trajectory_report(found))
    assert TrajectoryMeasures.from_json(found.to_json()) == found
    same = measure_trajectory(trajectory(np.ones((9, 2))))
    assert same.euclidean.e_alpha == 0
    assert "e-alpha-range" not in [warning.code for warning in same.warnings]
    assert not list(recwarn)


def test_what_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SdkerasError, match="has 1 iterates, distances need at least 2; it diverged at iteration 9"):
        measure_trajectory(trajectory(WALK[:1], stopped_at=9))
    holed = WALK.copy()
    holed[3, 2] = np.nan
    with pytest.raises(NonFiniteError, match="cannot be measured"):
        measure_trajectory(trajectory(holed))
    with pytest.raises(OperatorSizeError, match=r"400 iterates .*every"):
        measure_trajectory(trajectory(WALK), memory_gb=1e-4)
    with pytest.raises(SdkerasError, match="alpha"):
        measure_trajectory(trajectory(WALK), -1.0)
    for broken in ({"iterates": WALK[0]}, {"iterations": np.arange(3)}, {"losses": WALK[:5]}):
        with pytest.raises(ValueError, match="Trajectory"):
            trajectory(WALK, **broken)
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04 cut off")
    for name, said in (("none.npz", "there is no file"), ("cut.npz", "cannot be read as a trajectory")):
        with pytest.raises(SdkerasError, match=said):
            Trajectory.load(tmp_path / name)


def test_no_tensorflow_for_a_recorded_file(tmp_path: Path) -> None:
    trajectory(WALK, WALK**2).save(tmp_path / "t.npz")
    code = (
        "import sys\n"
        "from sdkeras_cli.main import main\n"
        "try:\n"
        f"    main(['study', 'trajectory', {str(tmp_path / 't.npz')!r}, '--html', {str(tmp_path / 'p.html')!r}])\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0\n"
        "assert not {'tensorflow', 'keras'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert "<svg" in (tmp_path / "p.html").read_text()


X = RNG.standard_normal((40, 3)).astype(np.float32)
Y = RNG.integers(0, 2, 40)


def net(rate: float = 0.5) -> keras.Model:
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(rate, momentum=0.5), loss)
    model.fit(X, Y, batch_size=8, verbose=0)
    return model


def test_forward_measures_what_is_simulated(tmp_path: Path) -> None:
    model = net()
    before = [variable.numpy() for variable in model.variables]
    path = tmp_path / "t.npz"
    told: list[str] = []
    found = forward(
        model,
        (X, Y),
        steps=60,
        every=2,
        batch_size=8,
        losses_on=10,
        seed=3,
        save=path,
        progress=lambda p: told.append(p.stage),
    )
    assert all(np.array_equal(old, new.numpy()) for old, new in zip(before, model.variables, strict=True))
    kept = Trajectory.load(path)
    assert kept.losses.shape == (30, 10)
    assert found.num_examples == 10
    assert "losses-on" not in [warning.code for warning in found.warnings]
    assert np.array_equal(kept.iterates, simulate(model, (X, Y), steps=60, every=2, batch_size=8, seed=3).iterates)
    again = measure_trajectory(kept, seed=3)
    assert again.euclidean.e_alpha == found.euclidean.e_alpha
    assert again.data.e_alpha == found.data.e_alpha
    assert found.simulation.verified
    assert found.simulation.optimizer.momentum == 0.5
    assert (found.simulation.data.batch_size, found.simulation.num_steps) == (8, 60)
    assert "step 60 of 60" in told
    assert TrajectoryMeasures.from_json(found.to_json()) == found
    assert "60 simulated steps from the checkpoint on" in as_html(trajectory_report(found))


def test_the_losses_are_of_training_examples() -> None:
    """By default of 1,000, or of all where there are fewer."""
    model = net()
    settings = {"steps": 4, "batch_size": 8}
    whole = simulate(model, (X, Y), losses_on=(X, Y), **settings)
    every = forward(model, (X, Y), **settings)
    expected = tree_of(squareform(pdist(whole.losses.astype(float), "cityblock")) / 40, 1.0)
    assert every.num_examples == 40
    assert every.data.e_alpha == pytest.approx(expected, rel=1e-5)
    assert "losses-on" not in [warning.code for warning in every.warnings]


def test_a_rate_of_its_own_and_a_divergence(tmp_path: Path) -> None:
    small = forward(net(), (X, Y), steps=20, batch_size=8, losses_on=0, learning_rate=1e-4)
    usual = forward(net(), (X, Y), steps=20, batch_size=8, losses_on=0)
    assert small.simulation.optimizer.learning_rate_source == "given"
    assert small.data is None
    assert small.euclidean.e_alpha < 0.1 * usual.euclidean.e_alpha
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(1e6), "mse")
    model.optimizer.build(model.trainable_variables)
    with pytest.raises(NonFiniteError, match=r"diverged: .* at step \d+ of 50.*t\.npz"):
        forward(model, (X, X[:, :1]), steps=50, batch_size=8, allow_unverified=True, save=tmp_path / "t.npz")
    assert Trajectory.load(tmp_path / "t.npz").stopped_at < 50


def test_a_plan_computes_nothing_and_settings_are_checked() -> None:
    made = plan(net(), (X, Y), batch_size=8, steps=100, every=4, losses_on=1000)
    assert (made.num_parameters, made.num_iterates, made.num_examples) == (8, 25, 40)
    assert made.seconds > 0
    with pytest.raises(SdkerasError, match="at least 20"):
        ForwardOptions(steps=19, every=10)
    with pytest.raises(SdkerasError, match="losses_on"):
        ForwardOptions(losses_on=-1)
    for call in (
        lambda: plan(net(), (X, Y), projection=8),
        lambda: forward(net(), (X, Y), projection=8),
    ):
        with pytest.raises(SdkerasError, match="projection is 8, and there are 8 weights"):
            call()
    with pytest.raises(OperatorSizeError, match="1,000 iterates"):
        forward(net(), (X, Y), steps=1000, memory_gb=1e-3)
