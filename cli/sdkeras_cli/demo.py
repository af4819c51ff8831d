"""`sdkeras demo`: a small net on real digits, trained in seconds, and what place it has found."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import cast

import click

from sdkeras.errors import SdkerasError
from sdkeras.files.atomic import make_folder
from sdkeras_cli import options, request
from sdkeras_cli.output import check_writable

_EPOCHS = 30
_BATCH_SIZE = 32
_LEARNING_RATE = 0.2


@click.command()
@click.option("--output-dir", default="sdkeras-demo", show_default=True, metavar="DIR")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True)
@options.quiet
@options.debug
def command(output_dir: str, seed: int, quiet: bool) -> int:
    """Train a small net on the 1,797 digits of UCI and analyse it."""
    if not output_dir:
        raise SdkerasError("--output-dir is empty; name a folder for the demo's files.")
    folder = Path(output_dir)
    make_folder(folder, "the folder ")
    paths = [str(folder / name) for name in ("model.keras", "data.npz", "run.json", "report.html")]
    for path in paths:
        check_writable(path)
    root = click.get_current_context().find_root()
    cast(click.Group, root.command).get_command(root, "analyze")  # whose options the messages name
    model, data, json_path, html_path = paths
    request.tensorflow_settings(quiet)
    _train(model, data, seed, quiet)
    analysis = request.Request(model, data, json_path=json_path, html_path=html_path, quiet=quiet)
    status = analysis.answer("analyze", {"batch_size": _BATCH_SIZE, "seed": seed}, analysis.check())
    if not quiet:
        again = ["sdkeras", "analyze", model, "--data", data, "--batch-size", str(_BATCH_SIZE), "--seed", str(seed)]
        click.echo(f"\nwritten: {', '.join(paths)}\nto repeat this, or to change the options:")
        click.echo(f"  {shlex.join([*again, '--json', json_path, '--html', html_path])}")
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
