"""A trajectory's E_alpha and PH dimension are those of its points, wherever the points came from."""

import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.spatial.distance import pdist, squareform

from sdkeras.errors import NonFiniteError, OperatorSizeError, SdkerasError
from sdkeras.reporting.html import as_html
from sdkeras.runs.trajectory import Trajectory
from sdkeras.study.simulate import ForwardOptions, forward, plan, simulate
from sdkeras.study.topology import TrajectoryMeasures, measure_trajectory
from sdkeras.study.trajectory_report import trajectory_report

RNG = np.random.default_rng(0)
WALK = np.cumsum(RNG.standard_normal((400, 6)), axis=0)


def trajectory(points: np.ndarray, losses: np.ndarray | None = None, **given: object) -> Trajectory:
    count, size = points.shape
    settings = {"iterates": points, "iterations": np.arange(1, count + 1), "losses": losses, "stopped_at": None}
    return Trajectory(**{**settings, **given}, num_parameters=size, distortion=None, seed=0)


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


@pytest.mark.parametrize(
    ("changed", "options", "error", "said"),
    [
        ({"iterates": WALK[:1], "stopped_at": 9}, {}, SdkerasError, "1 iterates, .* at least 2; it diverged at .* 9"),
        ({"iterates": np.where(np.arange(6) < 5, WALK, np.nan)}, {}, NonFiniteError, "cannot be measured"),
        ({}, {"memory_gb": 1e-4}, OperatorSizeError, "400 iterates .*every"),
        ({}, {"alpha": -1.0}, SdkerasError, "alpha"),
        ({"iterates": WALK[0]}, {}, ValueError, "Trajectory: .* matrices"),
        ({"iterations": np.arange(3)}, {}, ValueError, "Trajectory: 400 iterates"),
        ({"losses": WALK[:5]}, {}, ValueError, "Trajectory: .* 5 losses"),
    ],
)
def test_what_cannot_be_measured_is_refused(changed: dict, options: dict, error: type[Exception], said: str) -> None:
    count = len(changed.get("iterates", WALK))
    with pytest.raises(error, match=said):
        measure_trajectory(trajectory(WALK, **{"iterations": np.arange(count), **changed}), **options)


def test_files_that_are_no_trajectory_are_refused(tmp_path: Path) -> None:
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
SETTINGS: dict = {"steps": 20, "batch_size": 8, "losses_on": 0}


@pytest.fixture(scope="module")
def net() -> keras.Model:
    """Eight weights, which no simulation changes."""
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.5, momentum=0.5), loss)
    model.fit(X, Y, batch_size=8, verbose=0)
    return model


def test_forward_measures_what_is_simulated(net: keras.Model, tmp_path: Path) -> None:
    before = [variable.numpy() for variable in net.variables]
    path, told = tmp_path / "t.npz", []
    settings: dict = {"steps": 60, "every": 2, "batch_size": 8, "seed": 3}
    found = forward(net, (X, Y), **settings, losses_on=10, save=path, progress=lambda p: told.append(p.stage))
    assert all(np.array_equal(old, new.numpy()) for old, new in zip(before, net.variables, strict=True))
    kept = Trajectory.load(path)
    assert kept.losses.shape == (30, 10)
    assert np.array_equal(kept.iterates, simulate(net, (X, Y), **settings).iterates)
    again = measure_trajectory(kept, seed=3)
    assert again.euclidean.e_alpha == found.euclidean.e_alpha
    assert again.data.e_alpha == found.data.e_alpha
    assert found.num_examples == 10
    assert "losses-on" not in [warning.code for warning in found.warnings]
    assert found.simulation.verified
    assert found.simulation.optimizer.momentum == 0.5
    assert (found.simulation.data.batch_size, found.simulation.num_steps) == (8, 60)
    assert "step 60 of 60" in told
    assert TrajectoryMeasures.from_json(found.to_json()) == found
    assert "60 simulated steps from the checkpoint on" in as_html(trajectory_report(found))


def test_the_losses_are_of_training_examples(net: keras.Model) -> None:
    """By default of 1,000, or of all where there are fewer."""
    settings: dict = {"steps": 4, "batch_size": 8}
    whole = simulate(net, (X, Y), losses_on=(X, Y), **settings)
    every = forward(net, (X, Y), **settings)
    expected = tree_of(squareform(pdist(whole.losses.astype(float), "cityblock")) / 40, 1.0)
    assert every.num_examples == 40
    assert every.data.e_alpha == pytest.approx(expected, rel=1e-5)
    assert "losses-on" not in [warning.code for warning in every.warnings]


@pytest.mark.slow
def test_a_rate_of_its_own_and_a_divergence(net: keras.Model, tmp_path: Path) -> None:
    small, usual = forward(net, (X, Y), **SETTINGS, learning_rate=1e-4), forward(net, (X, Y), **SETTINGS)
    assert usual.data is None
    assert small.simulation.optimizer.learning_rate_source == "given"
    assert small.euclidean.e_alpha < 0.1 * usual.euclidean.e_alpha
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(1e6), "mse")
    model.optimizer.build(model.trainable_variables)
    with pytest.raises(NonFiniteError, match=r"diverged: .* at step \d+ of 50.*t\.npz"):
        forward(model, (X, X[:, :1]), steps=50, batch_size=8, allow_unverified=True, save=tmp_path / "t.npz")
    assert Trajectory.load(tmp_path / "t.npz").stopped_at < 50


def test_a_plan_computes_nothing_and_settings_are_checked(net: keras.Model) -> None:
    made = plan(net, (X, Y), batch_size=8, steps=100, every=4, losses_on=1000)
    assert (made.num_parameters, made.num_iterates, made.num_examples) == (8, 25, 40)
    assert made.seconds > 0
    for settings, said in (({"steps": 19, "every": 10}, "at least 20"), ({"losses_on": -1}, "losses_on")):
        with pytest.raises(SdkerasError, match=said):
            ForwardOptions(**settings)
    for call in (plan, forward):
        with pytest.raises(SdkerasError, match="projection is 8, and there are 8 weights"):
            call(net, (X, Y), projection=8)
    with pytest.raises(OperatorSizeError, match="1,000 iterates"):
        forward(net, (X, Y), steps=1000, memory_gb=1e-3)
