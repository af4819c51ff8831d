"""Models and data of the studies text_sgd.toml, text_momentum.toml and text_adamw.toml."""

from typing import Any

import keras
import numpy as np
from decoder import build, compiled

from sdkeras.datasets import character_windows, load_documentation_text

CONTEXT = 32
_TRAIN, _TEST = 2000, 1000


def characters() -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """2,000 windows of 32 characters of Python's documentation for training and 1,000 from among them for the test."""
    (x, y), _ = character_windows(load_documentation_text(), CONTEXT)
    order = np.random.default_rng(0).permutation(_TRAIN + _TEST)
    train, test = order[:_TRAIN], order[_TRAIN:]
    return (x[train], y[train]), (x[test], y[test])


def sgd(learning_rate: float) -> keras.Model:
    """Plain SGD."""
    return _decoder(keras.optimizers.SGD(learning_rate))


def momentum(learning_rate: float) -> keras.Model:
    """SGD with momentum 0.9."""
    return _decoder(keras.optimizers.SGD(learning_rate, momentum=0.9))


def adamw(learning_rate: float, weight_decay: float) -> keras.Model:
    """AdamW."""
    return _decoder(keras.optimizers.AdamW(learning_rate, weight_decay=weight_decay))


def _decoder(optimizer: keras.optimizers.Optimizer) -> keras.Model:
    """One block of width 32, 16,864 parameters."""
    return compiled(build(96, CONTEXT, 32, 1, 4), optimizer)
