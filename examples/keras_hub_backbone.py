"""A KerasHub backbone with random weights, trained for seconds and analysed: nothing is downloaded.

A BERT of one block and width 16 learns which of two symbols is the more frequent in a sequence of 16. A preset is
analysed the same way: `keras_hub.models.BertBackbone.from_preset(...)` in place of the backbone below.

    pip install keras-hub
    python examples/keras_hub_backbone.py [--results JSON]
"""

import argparse
from pathlib import Path

import keras
import numpy as np
from result_files import markdown, save

import sdkeras

LENGTH = 16
SYMBOLS = 8
SAMPLES = 256
BATCH_SIZE = 32
LEARNING_RATE = 0.005


def sequences(count: int, seed: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Random symbols 1..8, and whether 1 is more frequent than 2; 0 is padding, at the end of every other sequence."""
    generator = np.random.default_rng(seed)
    tokens = generator.integers(1, SYMBOLS + 1, (count, LENGTH)).astype("int32")
    tokens[::2, LENGTH * 3 // 4 :] = 0
    labels = (tokens == 1).sum(axis=1) > (tokens == 2).sum(axis=1)
    inputs = {
        "token_ids": tokens,
        "segment_ids": np.zeros_like(tokens),
        "padding_mask": (tokens > 0).astype("int32"),
    }
    return inputs, labels.astype("int64")


def classifier() -> keras.Model:
    """A two-class head on the pooled output of the backbone."""
    import keras_hub

    keras.utils.set_random_seed(0)
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=SYMBOLS + 1,
        num_layers=1,
        num_heads=2,
        hidden_dim=16,
        intermediate_dim=32,
        max_sequence_length=LENGTH,
        dropout=0.0,
    )
    logits = keras.layers.Dense(2, name="logits")(backbone.output["pooled_output"])
    model = keras.Model(backbone.input, logits, name="bert")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(LEARNING_RATE), loss, metrics=["accuracy"])
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, metavar="JSON")
    results = parser.parse_args().results
    model, data = classifier(), sequences(SAMPLES)
    history = model.fit(*data, batch_size=BATCH_SIZE, epochs=15, verbose=0).history
    run = sdkeras.analyze(model, data, batch_size=BATCH_SIZE, preset="quick", max_hvps=600, seed=0)
    print(run)
    check = run.verification
    rows = [
        {"quantity": "trainable parameters", "value": run.model.num_trainable_analysed},
        {"quantity": "accuracy", "value": history["accuracy"][-1]},
        {"quantity": "preconditioned sharpness / threshold", "value": run.edge_of_stability.ratio},
        {"quantity": "codimension", "value": run.sharpness_dimension.codimension},
        {"quantity": "Hessian-vector product against finite differences", "value": check.finite_difference_error},
    ]
    print(markdown(rows, {"quantity": "{quantity}", "value": "{value:.3g}"}))
    if results is not None:
        save(results, rows, command="python examples/keras_hub_backbone.py")


if __name__ == "__main__":
    main()
