"""What is read off an optimizer and a model about the assumptions of the bounds."""

import keras
import numpy as np
import pytest

from sdkeras.runs.assumptions import training_facts

CE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
SCHEDULE = keras.optimizers.schedules.CosineDecay(0.1, 100)


def facts(optimizer, map_name: str, *, loss=CE, regularizer=None, steps: int = 3, per_epoch: int = 4):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, kernel_regularizer=regularizer)])
    model.compile(optimizer, loss)
    if optimizer is not None:
        optimizer.build(model.trainable_variables)
        optimizer.iterations.assign(steps)
    return training_facts(model, optimizer, map_name, per_epoch)


@pytest.mark.parametrize(
    ("optimizer", "map_name", "words"),
    [
        (keras.optimizers.SGD(0.1), "sgd", ""),
        (keras.optimizers.SGD(0.1), "hessian", ""),
        (keras.optimizers.SGD(0.1, momentum=0.9), "heavy-ball", ""),
        (keras.optimizers.SGD(0.1, momentum=0.9), "hessian", "is not the step of SGD with momentum"),
        (keras.optimizers.SGD(0.1, weight_decay=0.1), "hessian", "is not the step of SGD with weight decay"),
        (keras.optimizers.Lion(0.1), "hessian", "is not the step of Lion"),
        (keras.optimizers.Adam(0.1), "adam", "holds the second moments of Adam as the last step left them"),
        (keras.optimizers.Nadam(0.1), "nadam", "holds the second moments of Nadam"),
        (keras.optimizers.RMSprop(0.1), "rmsprop", "holds the second moments of RMSprop"),
        (keras.optimizers.Adam(0.1), "full", ""),
        (None, "hessian", "no optimizer is known"),
    ],
)
def test_whether_the_analysed_map_is_training(optimizer, map_name: str, words: str) -> None:
    found = facts(optimizer, map_name).other_map
    assert words in found
    assert bool(found) == bool(words)


@pytest.mark.parametrize(
    ("optimizer", "steps", "words"),
    [
        (keras.optimizers.SGD(0.1), 0, ""),
        (keras.optimizers.SGD(SCHEDULE), 3, "follows CosineDecay"),
        (keras.optimizers.RMSprop(0.1), 3, ""),
        (keras.optimizers.Adam(0.1), 3, "bias correction of Adam"),
        (keras.optimizers.Adam(0.1), 10_000, ""),
        (keras.optimizers.AdamW(0.1, beta_2=0.9), 100, ""),
        (keras.optimizers.Adam(SCHEDULE), 10_000, "follows CosineDecay"),
    ],
)
def test_what_makes_a_step_depend_on_time(optimizer, steps: int, words: str) -> None:
    found = facts(optimizer, "full", steps=steps).time_dependence
    assert words in found
    assert bool(found) == bool(words)


def test_each_part_of_a_multi_optimizer_counts() -> None:
    parts = keras.optimizers.OptimizerMap(
        keras.optimizers.SGD(0.1), {".*bias": keras.optimizers.Adam(SCHEDULE, amsgrad=True, weight_decay=0.1)}
    )
    found = facts(keras.optimizers.MultiOptimizer(parts), "full")
    assert "follows CosineDecay" in found.time_dependence
    assert found.kinks == ("maximum (amsgrad of Adam)",)
    assert "pulls weights back" in found.absorbing
    assert found.other_map == ""


def test_epochs_without_replacement_are_stationary_over_whole_epochs() -> None:
    assert "over whole epochs only" in facts(keras.optimizers.SGD(0.1), "sgd", per_epoch=4).stationary
    assert "epoch" not in facts(keras.optimizers.SGD(0.1), "sgd", per_epoch=1).stationary


def test_an_absorbing_set() -> None:
    plain, decayed = keras.optimizers.SGD(0.1), keras.optimizers.SGD(0.1, weight_decay=0.1)
    assert "no weight decay and data that the net separates there is none" in facts(plain, "sgd").absorbing
    assert "cross-entropy" not in facts(keras.optimizers.SGD(0.1), "sgd", loss="mse").absorbing
    assert "pulls weights back" in facts(decayed, "sgd").absorbing
    assert "pulls weights back" in facts(keras.optimizers.SGD(0.1), "sgd", regularizer="l2").absorbing


def test_updates_with_kinks_of_their_own() -> None:
    optimizers = keras.optimizers
    assert facts(optimizers.Lion(0.1), "hessian").kinks == ("sign (Lion)",)
    assert facts(optimizers.Adamax(0.1), "hessian").kinks == ("maximum (Adamax)",)
    assert facts(optimizers.AdamW(0.1, amsgrad=True), "adam").kinks == ("maximum (amsgrad of AdamW)",)
    assert facts(optimizers.Adam(0.1), "adam").kinks == ()
    wrapped = optimizers.LossScaleOptimizer(optimizers.Adam(0.1))
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    model.compile(wrapped, CE)
    model.train_on_batch(np.ones((4, 2)), np.zeros(4))
    assert "of Adam as" in training_facts(model, wrapped, "adam", 1).other_map
