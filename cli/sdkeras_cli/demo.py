"""`sdkeras demo`: a small net on real digits, trained in seconds, and what place it has found."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import cast

import click

from sdkeras.results.arrays import Value
from sdkeras_cli import options, request
from sdkeras_cli.output import OF_ANALYSIS, Outputs, check_outputs, say_written

_EPOCHS = 30
_BATCH_SIZE = 32
_LEARNING_RATE = 0.2


@options.command("sdkeras demo --out sdkeras-demo --open")
@options.out("the model, its data, run.json and report.html", "--output-dir", default="sdkeras-demo", show_default=True)
@options.seed
@options.open_page
@options.verbose
@options.quiet
@options.debug
def command(seed: int, **parameters: Value) -> int:
    """Train a small net on the 1,797 digits of UCI and analyse it."""
    outputs = Outputs.taken_from(parameters, OF_ANALYSIS)
    outputs.check([])
    folder = str(outputs.out)
    model, data = (str(Path(folder) / name) for name in ("model.keras", "data.npz"))
    check_outputs([model, data], [])
    root = click.get_current_context().find_root()
    cast(click.Group, root.command).get_command(root, "analyze")  # whose options the messages name
    request.tensorflow_settings(outputs.quiet)
    _train(model, data, seed, outputs.quiet)
    analysis = request.Request(model, data, outputs=outputs)
    status = analysis.answer("analyze", {"batch_size": _BATCH_SIZE, "seed": seed}, analysis.check())
    if not outputs.quiet:
        again = ["sdkeras", "analyze", model, "--data", data, "--batch-size", str(_BATCH_SIZE), "--seed", str(seed)]
        click.echo(f"to repeat this, or to change the options:\n  {shlex.join([*again, '--out', folder])}")
    return status


def _train(model_path: str, data_path: str, seed: int, quiet: bool) -> None:
    """Trains by plain SGD on three quarters of the digits and saves model and training data."""
    import keras
    import numpy as np

    from sdkeras.datasets import load_digits

    x, y = load_digits()
    order = np.random.default_rng(seed).permutation(len(x))
    train, test = order[: 3 * len(x) // 4], order[3 * len(x) // 4 :]
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input((8, 8), name="digit"),
            keras.layers.Flatten(),
            keras.layers.Dense(32, activation="tanh"),
            keras.layers.Dense(32, activation="tanh"),
            keras.layers.Dense(10),
        ],
        name="digits",
    )
    model.compile(
        optimizer=keras.optimizers.SGD(_LEARNING_RATE),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        steps_per_execution=-(-len(train) // _BATCH_SIZE),  # an epoch at once: the same steps in half the time
    )
    history = model.fit(x[train], y[train], batch_size=_BATCH_SIZE, epochs=_EPOCHS, verbose=0).history
    if not quiet:
        _, accuracy = model.evaluate(x[test], y[test], verbose=0)
        click.echo(
            f"trained {model.count_params():,} parameters for {_EPOCHS} epochs by SGD at learning rate "
            f"{_LEARNING_RATE}: accuracy {history['accuracy'][-1]:.3f} on {len(train):,} digits, "
            f"{accuracy:.3f} on {len(test):,} others"
        )
    model.save(model_path)
    np.savez_compressed(data_path, x=x[train], y=y[train])
    if not quiet:
        say_written([model_path, data_path])
