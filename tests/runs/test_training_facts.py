"""What is read off an optimizer and a model about the assumptions of the bounds."""

import keras
import numpy as np
import pytest

from sdkeras.runs.assumptions import training_facts

CE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
optimizers = keras.optimizers
SCHEDULE = optimizers.schedules.CosineDecay(0.1, 100)


def facts(optimizer, map_name: str = "full", *, loss=CE, regularizer=None, steps: int = 3, per_epoch: int = 4):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, kernel_regularizer=regularizer)])
    model.compile(optimizer, loss)
    if optimizer is not None:
        optimizer.build(model.trainable_variables)
        optimizer.iterations.assign(steps)
    return training_facts(model, optimizer, map_name, per_epoch)


OTHER_MAP = [
    (optimizers.SGD(0.1), "sgd", ""),
    (optimizers.SGD(0.1), "hessian", ""),
    (optimizers.SGD(0.1, momentum=0.9), "heavy-ball", ""),
    (optimizers.SGD(0.1, momentum=0.9), "hessian", "is not the step of SGD with momentum"),
    (optimizers.SGD(0.1, weight_decay=0.1), "hessian", "is not the step of SGD with weight decay"),
    (optimizers.Lion(0.1), "hessian", "is not the step of Lion"),
    (optimizers.Adam(0.1), "adam", "holds the second moments of Adam as the last step left them"),
    (optimizers.Nadam(0.1), "nadam", "holds the second moments of Nadam"),
    (optimizers.RMSprop(0.1), "rmsprop", "holds the second moments of RMSprop"),
    (optimizers.Adam(0.1), "full", ""),
    (None, "hessian", "no optimizer is known"),
]
TIME_DEPENDENCE = [
    (optimizers.SGD(0.1), 0, ""),
    (optimizers.SGD(SCHEDULE), 3, "follows CosineDecay"),
    (optimizers.RMSprop(0.1), 3, ""),
    (optimizers.Adam(0.1), 3, "bias correction of Adam"),
    (optimizers.Adam(0.1), 10_000, ""),
    (optimizers.AdamW(0.1, beta_2=0.9), 100, ""),
    (optimizers.Adam(SCHEDULE), 10_000, "follows CosineDecay"),
]
KINKS = [
    (optimizers.Lion(0.1), ("sign (Lion)",)),
    (optimizers.Adamax(0.1), ("maximum (Adamax)",)),
    (optimizers.AdamW(0.1, amsgrad=True), ("maximum (amsgrad of AdamW)",)),
    (optimizers.Adam(0.1), ()),
]


@pytest.mark.parametrize(
    ("field", "optimizer", "options", "words"),
    [
        *(("other_map", optimizer, {"map_name": name}, words) for optimizer, name, words in OTHER_MAP),
        *(("time_dependence", optimizer, {"steps": steps}, words) for optimizer, steps, words in TIME_DEPENDENCE),
    ],
)
def test_what_an_optimizer_tells_of_the_map_that_training_iterates(field, optimizer, options, words: str) -> None:
    found = getattr(facts(optimizer, **options), field)
    assert words in found if words else not found


def test_each_part_of_a_multi_optimizer_counts() -> None:
    parts = optimizers.OptimizerMap(
        optimizers.SGD(0.1), {".*bias": optimizers.Adam(SCHEDULE, amsgrad=True, weight_decay=0.1)}
    )
    found = facts(optimizers.MultiOptimizer(parts), "full")
    assert "follows CosineDecay" in found.time_dependence
    assert found.kinks == ("maximum (amsgrad of Adam)",)
    assert "pulls weights back" in found.absorbing
    assert found.other_map == ""


def test_epochs_without_replacement_are_stationary_over_whole_epochs() -> None:
    assert "over whole epochs only" in facts(optimizers.SGD(0.1), "sgd", per_epoch=4).stationary
    assert "epoch" not in facts(optimizers.SGD(0.1), "sgd", per_epoch=1).stationary


def test_an_absorbing_set() -> None:
    plain, decayed = optimizers.SGD(0.1), optimizers.SGD(0.1, weight_decay=0.1)
    assert "no weight decay and data that the net separates there is none" in facts(plain, "sgd").absorbing
    assert "cross-entropy" not in facts(optimizers.SGD(0.1), "sgd", loss="mse").absorbing
    assert "pulls weights back" in facts(decayed, "sgd").absorbing
    assert "pulls weights back" in facts(optimizers.SGD(0.1), "sgd", regularizer="l2").absorbing


@pytest.mark.parametrize(("optimizer", "kinks"), KINKS)
def test_updates_with_kinks_of_their_own(optimizer, kinks: tuple[str, ...]) -> None:
    assert facts(optimizer).kinks == kinks


def test_a_loss_scaling_wrapper_is_looked_through() -> None:
    wrapped = optimizers.LossScaleOptimizer(optimizers.Adam(0.1))
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    model.compile(wrapped, CE)
    model.train_on_batch(np.ones((4, 2)), np.zeros(4))
    assert "of Adam as" in training_facts(model, wrapped, "adam", 1).other_map
