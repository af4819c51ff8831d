"""Data and models that change: which function the Hessian is of, and its mean over several draws."""

import attrs
import keras
import numpy as np
import pytest
import tensorflow as tf

import sdkeras
from sdkeras.errors import DataError
from sdkeras.operators.minibatches import as_source, changes
from sdkeras.reporting.terminal import as_text
from sdkeras.runs.analyze import plan

GENERATOR = np.random.default_rng(0)
X, Y = GENERATOR.standard_normal((24, 3)).astype("float32"), GENERATOR.standard_normal((24, 1)).astype("float32")


def augmented(shuffled: bool = False) -> tf.data.Dataset:
    """Samples with noise that is drawn at each reading; TensorFlow's own would repeat with a global seed."""

    def noise(x: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        drawn = tf.numpy_function(lambda: GENERATOR.normal(size=3).astype("float32"), [], tf.float32)
        return x + tf.ensure_shape(drawn, [3]), y

    noisy = tf.data.Dataset.from_tensor_slices((X, Y)).map(noise)
    return (noisy.shuffle(24) if shuffled else noisy).batch(8)


def linear(*layers: keras.layers.Layer) -> keras.Model:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), *layers, keras.layers.Dense(1, use_bias=False)])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    return model


def test_what_changes_between_readings() -> None:
    fixed = tf.data.Dataset.from_tensor_slices((X, Y))
    once = iter([(X, Y)])
    spec = (tf.TensorSpec([None, 3]), tf.TensorSpec([None, 1]))
    for data, expected in (
        ((X, Y), False),
        (fixed.batch(8), False),
        (fixed.shuffle(24, seed=1).batch(8), False),  # the same samples in another order
        (tf.data.Dataset.from_generator(lambda: once, output_signature=spec), False),  # which cannot be read again
        (augmented(), True),
        (augmented(shuffled=True), True),
    ):
        assert changes(data, as_source(data, batch_size=None)) == expected


def once_and_then(*later: object) -> tf.data.Dataset:
    """A dataset with three batches of 8 samples at its first reading, and these, one to raise among them, after it."""
    readings = iter([(X[:8], X[8:16], X[16:]), later])

    def batches():
        for batch in next(readings):
            if isinstance(batch, Exception):
                raise batch
            yield batch, batch[:, :1]

    spec = (tf.TensorSpec([None, None]), tf.TensorSpec([None, 1]))
    return tf.data.Dataset.from_generator(batches, output_signature=spec)


@pytest.mark.parametrize(
    ("later", "message"),
    [
        ((), "reading 2 of the dataset failed, .*: the dataset is empty"),
        ((X[:8], OSError("the disk is gone")), "reading 2 of the dataset failed, .*the disk is gone"),
        ((X[:8], X[8:16]), "has 16 samples in place of 24;"),
        ((X[:4], X[4:16], X[16:]), "has batches of other sizes"),
        (
            (X[:8, :2], X[8:16, :2], X[16:, :2]),
            r"has samples of shape \[\(2,\), \(1,\)\] in place of \[\(3,\), \(1,\)\]",
        ),
    ],
)
def test_a_second_reading_that_fails_or_differs_is_told(later: tuple[object, ...], message: str) -> None:
    with pytest.raises(DataError, match=f"draws is 2, and .*{message}.*leave draws out"):
        as_source(once_and_then(*later), batch_size=None, draws=2)
    assert as_source(once_and_then(*later), batch_size=None).num_samples == 24


@pytest.mark.parametrize("batch_size", [None, 6])
def test_the_hessian_is_the_mean_over_the_passes(batch_size: int | None) -> None:
    """Of a linear model it is 2 X'X / n of each pass."""
    source = as_source(augmented(), batch_size=batch_size, draws=3)
    assert (source.num_samples, source.samples_per_pass, source.passes) == (72, 24, 3)
    hessian = sdkeras.HessianOperator(sdkeras.EmpiricalLoss(linear(), source, draws=3, dtype="float64"))
    passes = [source.arrays[0][k * 24 : (k + 1) * 24].astype("float64") for k in range(3)]
    assert not np.allclose(passes[0], passes[1])
    each = [2 * x.T @ x / 24 for x in passes]
    identity = np.eye(3)
    np.testing.assert_allclose(hessian.matmat(identity), np.mean(each, axis=0), rtol=1e-12)
    for number, expected in enumerate(each):
        np.testing.assert_allclose(hessian.on_draw(number).matmat(identity), expected, rtol=1e-12)
    assert {len(source.minibatch(k, 0)[0]) for k in range(9)} == {source.batch_size}


def test_masks_are_drawn_anew_for_each_draw_and_the_first_is_that_of_one() -> None:
    model = linear(keras.layers.Dropout(0.5))
    loss = sdkeras.EmpiricalLoss(model, (X, Y), 8, dtype="float64", draws=3)
    one = sdkeras.EmpiricalLoss(model, (X, Y), 8, dtype="float64")
    values = [loss.of_draw(k).value() for k in range(3)]
    assert values[0] == pytest.approx(one.value(), rel=1e-14)
    assert len({round(value, 9) for value in values}) == 3
    assert loss.value() == pytest.approx(np.mean(values), rel=1e-14)
    gradients = [loss.of_draw(k).gradient() for k in range(3)]
    np.testing.assert_allclose(loss.gradient(), np.mean(gradients, axis=0), rtol=1e-12)


def test_an_analysis_over_draws_tells_them_and_its_function() -> None:
    run = sdkeras.analyze(linear(), augmented(), draws=3, preset="quick", dtype="float64")
    draws = run.data.draws
    assert (draws.count, draws.of, len(draws.largest)) == (3, "passes", 3)
    assert draws.spread == pytest.approx(np.std(draws.largest, ddof=1), rel=1e-12)
    # The largest eigenvalue is convex.
    assert run.hessian.largest.value <= np.mean(draws.largest) + 1e-9
    assert (run.data.num_samples, run.data.num_samples_hessian) == (24, 72)
    assert sdkeras.Analysis.from_json(run.to_json()) == run
    words = next(note.message for note in run.warnings if note.code == "held-fixed")
    assert "3 passes of it are used and held fixed. The Hessian is that of their mean." in words
    assert "largest of 3 draws" in as_text(run, 80)
    bare = attrs.evolve(run, data=attrs.evolve(run.data, draws=None))
    assert "draws" not in as_text(attrs.evolve(bare, warnings=()), 80)


def test_the_plan_says_what_is_held_fixed() -> None:
    dropout = keras.layers.Dropout(0.5)
    assert (
        "one draw a batch is used and held fixed. The Hessian is that of this one function"
        in plan(linear(dropout), (X, Y)).held_fixed
    )
    assert "2 draws a batch" in plan(linear(dropout), (X, Y), draws=2).held_fixed
    assert "one pass of it" in plan(linear(), augmented()).held_fixed
    assert plan(linear(dropout), (X, Y), mode="inference").held_fixed == ""
    assert plan(linear(), (X, Y)).held_fixed == ""


@pytest.mark.parametrize("data", [(X, Y), tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)])
def test_draws_of_nothing_random_are_refused(data: object) -> None:
    with pytest.raises(DataError, match="draws is 2, and nothing in data or model is random"):
        plan(linear(), data, draws=2)
