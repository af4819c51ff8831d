"""`sdkeras.landscape` against linear regression, whose loss is its own quadratic model, and rescaled ReLU nets."""

from typing import Any

import keras
import matplotlib as mpl
import numpy as np
import pytest

import sdkeras
from sdkeras.errors import DataError, ModelError, SdkerasError
from sdkeras.linalg.projection import Distortion
from sdkeras.operators.loss import EmpiricalLoss
from sdkeras.results.answers import load_document
from sdkeras.runs.landscape import plan
from sdkeras.runs.loss_options import LandscapeOptions
from sdkeras.runs.trajectory import Trajectory
from small_nets import X, Y
from small_trainings import everything, quadratic

mpl.use("Agg")
layers = keras.layers
CURVATURES = [0.5, 2.0, 5.0]


@pytest.fixture(scope="module")
def regression() -> tuple[keras.Model, tuple[np.ndarray, np.ndarray]]:
    return quadratic(CURVATURES, keras.optimizers.SGD(0.1, momentum=0.5))


def loss_of(data: tuple[np.ndarray, np.ndarray], w: np.ndarray) -> float:
    return float(np.mean((data[0] @ w - data[1][:, 0]) ** 2))


def weights(model: keras.Model) -> np.ndarray:
    return np.concatenate([np.asarray(v, np.float64).ravel() for v in model.trainable_variables])


@pytest.fixture(scope="module")
def along_eigenvectors(regression) -> sdkeras.LandscapeRun:
    """Batches of 5, 5 and 2 examples: weighted as one batch."""
    model, data = regression
    before = everything(model)
    run = sdkeras.landscape(
        model, data, batch_size=5, dtype="float64", dimensions=2, points=5, span=0.5, rho=0.3, ascent_steps=100
    )
    assert everything(model) == before
    return run


def test_eigenvectors_of_a_quadratic_and_its_losses(regression, along_eigenvectors: sdkeras.LandscapeRun) -> None:
    model, data = regression
    drawn, w = along_eigenvectors.landscape, weights(model)
    gradient = 2 * data[0].T @ (data[0] @ w - data[1][:, 0]) / len(data[0])
    values, vectors = np.linalg.eigh(2 * data[0].T @ data[0] / len(data[0]))
    for axis, place in zip(drawn.axes, (-1, -2), strict=True):
        assert axis.curvature == pytest.approx(values[place], rel=1e-9)
        assert axis.eigenvalue.value == pytest.approx(values[place], rel=1e-6)
        assert abs(axis.slope) == pytest.approx(abs(gradient @ vectors[:, place]), rel=1e-6)
        assert axis.length == pytest.approx(1)
    assert drawn.mixed_curvature == pytest.approx(0, abs=1e-9)
    # Everywhere, the corners included, the loss is its quadratic model.
    assert drawn.quadratic_to == pytest.approx((0.5 * 2**0.5,) * 2)
    signs = [np.sign(axis.slope * (gradient @ vectors[:, k])) for axis, k in zip(drawn.axes, (-1, -2), strict=True)]
    for row, b in zip(drawn.losses, drawn.axes[1].coordinates, strict=True):
        for value, a in zip(row, drawn.axes[0].coordinates, strict=True):
            there = w + a * signs[0] * vectors[:, -1] + b * signs[1] * vectors[:, -2]
            assert value == pytest.approx(loss_of(data, there), rel=1e-9)


def test_loss_and_gradient_at_the_weights_are_taken_once(regression, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the picture and for two balls."""
    counts = {"value": 0, "gradient": 0}
    for name, method in ((name, getattr(EmpiricalLoss, name)) for name in counts):

        def counted(self: EmpiricalLoss, *point: object, name: str = name, method: Any = method) -> Any:
            counts[name] += not point
            return method(self, *point)

        monkeypatch.setattr(EmpiricalLoss, name, counted)
    model, data = regression
    sdkeras.landscape(model, data, dtype="float64", points=3)
    alone = dict(counts)
    run = sdkeras.landscape(model, data, dtype="float64", points=3, rho=0.1, adaptive_rho=0.1, ascent_steps=2)
    assert len(run.worst_case) == 2
    assert counts == {name: 2 * count for name, count in alone.items()}
    assert alone["gradient"] == 1


def test_the_worst_case_of_a_quadratic_is_that_of_its_trust_region(regression, along_eigenvectors) -> None:
    """By its eigenvalues and the secular equation, bisected here."""
    model, data = regression
    w, (worst,) = weights(model), along_eigenvectors.worst_case
    gradient = 2 * data[0].T @ (data[0] @ w - data[1][:, 0]) / len(data[0])
    values, vectors = np.linalg.eigh(2 * data[0].T @ data[0] / len(data[0]))
    parts, low, high = vectors.T @ gradient, values[-1], values[-1] + np.linalg.norm(gradient) / 0.3
    for _ in range(200):
        mu = 0.5 * (low + high)
        low, high = (mu, high) if np.linalg.norm(parts / (mu - values)) > 0.3 else (low, mu)
    e = parts / (mu - values)
    exact = parts @ e + 0.5 * values @ e**2
    assert worst.increase == pytest.approx(exact, rel=1e-6)
    assert worst.increase <= exact * (1 + 1e-9)
    assert worst.second_order <= exact * (1 + 1e-9)
    assert worst.first_order == pytest.approx(0.3 * np.linalg.norm(gradient), rel=1e-6)
    sam = 0.3 * gradient / np.linalg.norm(gradient)
    assert worst.first_step == pytest.approx(loss_of(data, w + sam) - loss_of(data, w), rel=1e-6)
    assert worst.eigenvalue.value == pytest.approx(max(CURVATURES), rel=1e-6)
    assert worst.distance == pytest.approx(0.3)


def test_the_answer_is_saved_shown_and_drawn(along_eigenvectors: sdkeras.LandscapeRun, tmp_path) -> None:
    along_eigenvectors.save(tmp_path / "landscape.json")
    assert load_document(tmp_path / "landscape.json") == along_eigenvectors
    text = str(along_eigenvectors)
    assert "Within |e| <= 0.3 the loss rises by at least" in " ".join(text.replace("│", " ").split())
    assert "holds to a distance of 0.707, of 0.707 drawn to the corners" in " ".join(text.replace("│", " ").split())
    page = along_eigenvectors._repr_html_()
    assert "The loss in a plane" in page
    assert "distance in the plane, every way" in page
    axes = sdkeras.plot.landscape(along_eigenvectors)
    loss, model = axes.collections  # the contours of both, which are the same for a quadratic
    assert model.levels == pytest.approx(loss.levels)
    assert model.get_linestyle() != loss.get_linestyle()
    vertices = [np.concatenate([path.vertices for path in lines.get_paths()]) for lines in (loss, model)]
    nearest = np.abs(vertices[0][:, None] - vertices[1]).sum(axis=2).min(axis=1)
    assert np.mean(nearest > 1e-6) < 0.25  # but where a level goes through a point of the grid, and rounding decides
    assert axes.get_xlabel() == "along eigenvector 1"
    with pytest.raises(SdkerasError, match="of type LandscapeRun, got int"):
        sdkeras.plot.landscape(1)
    assert "landscape.axes.0.eigenvalue.value" in along_eigenvectors.summary().index


def test_the_step_is_keras_own_and_leads_to_the_loss_after_it(regression) -> None:
    """One unit along the update is the loss after `train_on_batch` on all the data."""
    model, data = quadratic(CURVATURES, keras.optimizers.SGD(0.1, momentum=0.5))
    run = sdkeras.landscape(model, data, directions="step", points=3, span=1.0, dtype="float64")
    before = weights(model)
    model.train_on_batch(*data)
    after = weights(model)
    assert run.landscape.losses[0][2] == pytest.approx(loss_of(data, after), rel=1e-5)
    assert run.landscape.axes[0].length == pytest.approx(np.linalg.norm(after - before), rel=1e-5)
    plane = sdkeras.landscape(model, data, directions="step", dimensions=2, points=3, dtype="float64")
    assert plane.landscape.axes[1].name == "the top eigenvector across the update"
    assert plane.landscape.axes[1].length == pytest.approx(plane.landscape.axes[0].length)


def test_a_trajectory_lies_in_its_own_plane(tmp_path) -> None:
    """Iterates in a plane of three weights: losses at their coordinates are those of the iterates."""
    model, data = quadratic(CURVATURES, keras.optimizers.SGD(0.1))
    w, generator = weights(model), np.random.default_rng(0)
    plane = np.linalg.qr(generator.standard_normal((3, 2)))[0].T
    moves = np.array([[2.0, 0.5], [1.0, -0.5], [0.5, 0.25], [0.0, 0.0]])
    folder = tmp_path / "run"
    folder.mkdir()
    np.savez(folder / "trajectory.npz", trajectory=w + moves @ plane)
    run = sdkeras.landscape(
        model, data, directions=f"trajectory:{folder}", dimensions=2, points=3, span=2.0, dtype="float64"
    )
    drawn = run.landscape
    first, second = (axis for axis in drawn.axes)
    assert first.share + second.share == pytest.approx(1)
    np.testing.assert_allclose(np.hypot(*drawn.path), np.linalg.norm(moves, axis=1), atol=1e-9)
    from sdkeras.dimension.landscape import quadratic_change

    predicted = drawn.loss + quadratic_change(drawn.slopes, drawn.curvature, np.stack(drawn.path, axis=1))[0]
    np.testing.assert_allclose(predicted, [loss_of(data, w + move @ plane) for move in moves], rtol=1e-9)
    assert "random-walk" in {note.code for note in run.warnings}
    np.save(tmp_path / "other.npy", np.ones((3, 2)) * np.arange(3)[:, None])
    with pytest.raises(DataError, match=r"of 2 weights, and the model has 3"):
        sdkeras.landscape(model, data, directions=f"trajectory:{tmp_path / 'other.npy'}")
    whole = Trajectory(w + moves @ plane, np.arange(4), None, 3, Distortion(None, None, 0), 0, None)
    whole.save(tmp_path / "projected.npz")
    with pytest.raises(DataError, match="a random projection of the weights"):
        sdkeras.landscape(model, data, directions=f"trajectory:{tmp_path / 'projected.npz'}")
    np.save(tmp_path / "line.npy", np.ones((3, 3)) * np.arange(3)[:, None])
    with pytest.raises(DataError, match="span 1 dimensions"):
        sdkeras.landscape(model, data, directions=f"trajectory:{tmp_path / 'line.npy'}", dimensions=2)


def relu_net(scale: float) -> keras.Model:
    """The same function whatever the scale: layer 1 times it, layer 2 divided by it."""
    keras.utils.set_random_seed(3)
    first, second = layers.Dense(4, "relu"), layers.Dense(3, use_bias=False)
    model = keras.Sequential([keras.Input((5,)), first, second])
    first.bias.assign(np.linspace(-0.1, 0.2, 4))
    first.kernel.assign(scale * first.kernel)
    first.bias.assign(scale * first.bias)
    second.kernel.assign(second.kernel / scale)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def test_the_adaptive_worst_case_does_not_change_where_layers_are_rescaled() -> None:
    plain, adaptive, drawn = [], [], []
    for scale in (1.0, 8.0):
        run = sdkeras.landscape(
            relu_net(scale),
            (X, Y),
            dtype="float64",
            directions="random",
            filter_normalized=True,
            points=3,
            rho=0.1,
            adaptive_rho=0.5,
            ascent_steps=6,
        )
        assert [each.kind for each in run.worst_case] == ["plain", "adaptive"]
        plain.append(run.worst_case[0])
        adaptive.append(run.worst_case[1])
        drawn.append(run.landscape.loss)
    assert drawn[0] == pytest.approx(drawn[1], rel=1e-9)
    assert adaptive[1].increase == pytest.approx(adaptive[0].increase, rel=1e-6)
    assert adaptive[1].second_order == pytest.approx(adaptive[0].second_order, rel=1e-6)
    assert adaptive[1].eigenvalue.value == pytest.approx(adaptive[0].eigenvalue.value, rel=1e-6)
    assert adaptive[0].increase > 0
    assert abs(plain[1].increase / plain[0].increase - 1) > 0.5


def test_the_options_contradict_or_are_out_of_range() -> None:
    for values, words in (
        ({"directions": "up"}, "one of eigenvectors, random, step, or trajectory:PATH"),
        ({"directions": "trajectory:"}, "trajectory:PATH"),
        ({"dimensions": 3}, "must be 1 or 2"),
        ({"points": 2}, "from 3 to 1001"),
        ({"span": 0}, "span is 0"),
        ({"rho": -1.0}, "rho is -1"),
        ({"directions": "step", "mode": "inference"}, "training mode"),
        ({"settings": {"slq": {}}}, "used is: lanczos"),
        ({"ascent_steps": 5}, "give the ball's radius"),
        ({"initial_slots": True}, "take the step"),
    ):
        with pytest.raises(SdkerasError, match=words.replace(":", ".")):
            LandscapeOptions(**values)
    assert (LandscapeOptions().num_points, LandscapeOptions(dimensions=2).num_points) == (41, 441)


def test_what_cannot_be_drawn_is_refused_and_the_plan_counts(regression) -> None:
    model, data = regression
    with pytest.raises(SdkerasError, match="there is no file"):
        sdkeras.landscape(model, data, directions="trajectory:none.npz")
    one, more = quadratic([1.0], keras.optimizers.SGD(0.1))
    with pytest.raises(ModelError, match="a plane needs two"):
        sdkeras.landscape(one, more, dimensions=2)
    planned = plan(model, data, dimensions=2, points=5, rho=0.1)
    assert planned.num_evaluations == 1 + 25 + 60
    assert planned.num_gradients == 61
    assert planned.num_hvps > 0


def test_a_loss_that_is_no_quadratic_holds_less_far_than_it_is_drawn() -> None:
    run = sdkeras.landscape(relu_net(1.0), (X, Y), span=20.0, points=81, mode="inference")
    left, right = run.landscape.quadratic_to
    assert 0 <= min(left, right) < 20
    assert "The loss along a line" in run._repr_html_()
