"""How a trajectory of training is followed: its options and their checks, without TensorFlow."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import attrs

from sdkeras.errors import OperatorSizeError, SdkerasError
from sdkeras.estimators import registry
from sdkeras.estimators.kinds import Estimator
from sdkeras.estimators.select import DEFAULTS, configured
from sdkeras.files.keras_types import Loss
from sdkeras.linalg.memory import memory_limit
from sdkeras.results.arrays import Value
from sdkeras.results.progress import Progress
from sdkeras.runs.options import (
    COUNT,
    DEFAULT_STEPS,
    DEFAULT_TRANSIENT,
    NOT_NEGATIVE,
    is_number,
    must,
    option,
    parse_learning_rate,
    shared,
    words,
)

DEFAULT_ESTIMATOR = DEFAULTS["lyapunov"]
DEFAULT_EXPONENTS = 10
# Fields of an estimator that are options of the run.
_OF_THE_RUN = ("num_exponents", "num_steps", "transient", "checkpoint", "checkpoint_interval")
# The singular values of one matrix of this size take half a minute on a core (0.2 s at 1,000), and there is one for
# each step and for each window.
_LARGEST_DENSE = 5000
# Float64 matrices that a window's product and its singular values take at once, beside the kept Jacobians.
_WORKING_MATRICES = 8


def _with_one(windows: Sequence[int]) -> tuple[int, ...]:
    """Each length once, ascending; SD itself is always among them."""
    return tuple(sorted({1, *windows})) if windows else ()


def _path(path: str | os.PathLike[str] | None) -> str | None:
    return None if path is None else os.fspath(path)


def _known_rate(instance: object, field: attrs.Attribute[Value], value: Value) -> None:
    if value is not None:
        parse_learning_rate(value)


@attrs.frozen(kw_only=True)
class TrainingOptions:
    """Options that make a model and its data a training that can be continued."""

    batch_size: int | None = shared("batch_size")
    learning_rate: float | str | None = option(
        None,
        _known_rate,
        group="training",
        metavar="F|peak|mean|step:N",
        text="Learning rate at every step, in place of the optimizer's or its schedule's.",
        more="A number; or, of the schedule, 'peak' or 'mean' over the steps so far, or 'step:N', the rate that step N "
        "used, counted from 0.",
    )
    loss: Loss = shared("loss")
    loss_fn: Loss = shared("loss_fn")
    class_weight: Mapping[int, float] | None = shared("class_weight")
    samples: int | None = option(
        None, COUNT, group="training", text="Number of samples to read of an endless data set."
    )
    dtype: str = shared("dtype")
    seed: int = shared("seed", help="Seed for minibatches, dropout masks and the first tangent vectors.")


@attrs.frozen(kw_only=True)
class LyapunovOptions(TrainingOptions):
    """All options of `sdkeras.lyapunov`; see there.

    Raises:
        SdkerasError: A value out of its range, options that contradict each other, or an estimator that lacks what is
            asked of it.
    """

    num_exponents: int | None = option(
        None,
        COUNT,
        group="trajectory",
        metavar="K",
        text="Number of exponents; default 10, or all where the state has fewer.",
        more="With windows all.",
    )
    num_steps: int = option(DEFAULT_STEPS, COUNT, group="trajectory", text="Steps to average over.")
    transient: int = option(DEFAULT_TRANSIENT, NOT_NEGATIVE, group="trajectory", text="Burn-in steps to discard.")
    windows: tuple[int, ...] = attrs.field(
        default=(),
        converter=_with_one,
        metadata=words(
            "trajectory",
            "SD, and SD^(m) of M steps taken as one, over the same steps as D_s; all exponents (small models).",
            more="Each length a divisor of num_steps; 1 is always among them. Not with a checkpoint, which holds no "
            "Jacobians.",
            metavar="M,M,...",
        ),
    )
    checkpoint: str | None = attrs.field(
        default=None,
        converter=_path,
        metadata=words(
            "trajectory",
            "Keep the run in this file, and continue it if it is there.",
            more="A continued run is bit for bit the uninterrupted one; the same file extends a finished run to a "
            "larger num_steps.",
            metavar="FILE",
        ),
    )
    checkpoint_interval: int = option(
        100, COUNT, group="trajectory", text="Steps between two writes of the checkpoint."
    )
    initial_slots: bool = option(
        False, group="trajectory", text="For an optimizer that has taken no step: start from its initial slots."
    )
    estimator: str = option(DEFAULT_ESTIMATOR, group="estimators", text="Lyapunov estimator to use.")
    settings: Mapping[str, Mapping[str, Value]] = shared(
        "settings", more='For example {"lyapunov-qr": {"tolerance": 0.001}}.'
    )
    product_mode: str = shared("product_mode")
    allow_unverified: bool = shared("allow_unverified", help="Continue with a step that failed its verification.")
    memory_gb: float | None = shared(
        "memory_gb", help="Memory for the windows' Jacobians.", more="Default: 60 % of what is free."
    )
    time_limit: float | None = option(
        None,
        must("positive and finite", lambda value: is_number(value) and 0 < value < math.inf),
        group="budget",
        metavar="SECONDS",
        text="Seconds after which no further step begins, as after Ctrl-C.",
        more="The windows of the steps so far are still evaluated.",
    )
    progress: Callable[[Progress], None] | None = shared("progress", help="Function called after every step.")

    def __attrs_post_init__(self) -> None:
        others = set(self.settings) - {self.estimator}
        if others:
            raise SdkerasError(
                f"settings were given for '{min(others)}', which is not used here; used is: {self.estimator}."
            )
        if self.checkpoint is not None:
            _check_folder(self.checkpoint)
        if self.windows:
            check_windows(self.windows, self.num_steps)
        if self.windows and self.checkpoint is not None:
            raise SdkerasError(
                "windows and a checkpoint cannot be combined: the file holds no Jacobians, and a continued run would "
                "lack those of the steps before; leave one of them out."
            )
        self.configured_estimator(1)

    def exponents_of(self, size: int) -> int:
        """How many exponents are computed of a state of this size: with windows all of them by default."""
        if self.num_exponents is None:
            return size if self.windows else min(DEFAULT_EXPONENTS, size)
        return self.num_exponents

    def check_exponents(self, size: int, num_weights: int) -> None:
        """Refuses more exponents than a state of this size has.

        Raises:
            SdkerasError: See above.
        """
        wanted = self.num_exponents
        if wanted is not None and wanted > size:
            raise SdkerasError(
                f"num_exponents={wanted} exceeds the size of the state, {size} ({num_weights} weights and "
                f"{size - num_weights} slots); use num_exponents <= {size} ({size} gives all of them)."
            )

    def configured_estimator(self, num_exponents: int) -> Estimator:
        """The estimator, with what it takes of these settings.

        Raises:
            SdkerasError: There is none of this name, it lacks these fields, or a required capability.
        """
        cls = registry.get_estimator("lyapunov", self.estimator)
        fields, settings = attrs.fields_dict(cls), dict(self.settings.get(self.estimator, {}))
        of_the_run = [name for name in settings if name in _OF_THE_RUN]
        if of_the_run:
            raise SdkerasError(
                f"{of_the_run[0]} of '{self.estimator}' is an option of the run; give it as such ("
                "`num_exponents`, `num_steps`, `transient`, `checkpoint`, `checkpoint_interval`)."
            )
        needed = [*(["checkpoint"] if self.checkpoint else []), *(["num_steps", "transient"] if self.windows else [])]
        lacking = [name for name in needed if name not in fields]
        if lacking:
            raise SdkerasError(
                f"the lyapunov estimator '{self.estimator}' has no field {lacking[0]}, which "
                f"{'windows need' if self.windows else 'a checkpoint needs'}; take {DEFAULT_ESTIMATOR}, or leave them "
                "out."
            )
        for name in _OF_THE_RUN:
            if name in fields:
                settings[name] = num_exponents if name == "num_exponents" else getattr(self, name)
        return configured(cls, settings)

    def dense_bytes(self, size: int, itemsize: int) -> int:
        """Memory that the windows' Jacobians take, and the work on them; 0 without windows."""
        if not self.windows:
            return 0
        return size**2 * (self.num_steps * itemsize + _WORKING_MATRICES * 8)

    def check_dense(self, size: int, itemsize: int) -> None:
        """Refuses windows over Jacobians that are too large, or do not fit the memory.

        Raises:
            OperatorSizeError: See above, with the numbers.
        """
        if not self.windows:
            return
        if size > _LARGEST_DENSE:
            raise OperatorSizeError(
                f"windows need dense Jacobians, and the state has {size:,} dimensions; {_LARGEST_DENSE:,} are the "
                "most. Leave windows out, or take a smaller model."
            )
        needed, limit = self.dense_bytes(size, itemsize), memory_limit(self.memory_gb)
        if needed > limit:
            fits = int((limit / size**2 - _WORKING_MATRICES * 8) // itemsize)
            most = f"at most {fits:,} steps fit (`num_steps`)" if fits >= 1 else "not even one step fits"
            raise OperatorSizeError(
                f"the Jacobians of {self.num_steps:,} steps of a state of {size:,} dimensions need {needed / 1e9:.3g} "
                f"GB, and {limit / 1e9:.3g} GB may be used: {most}; or allow more memory (`memory_gb`)."
            )


def check_windows(windows: Sequence[int], num_steps: int) -> None:
    """Refuses windows that do not cover the steps evenly, with the nearest choices that do.

    Raises:
        SdkerasError: See above.
    """
    for m in windows:
        if m < 1:
            raise SdkerasError(f"windows must be positive, got {m}.")
    uneven = [m for m in windows if num_steps % m]
    if not uneven:
        return
    m, whole = uneven[0], math.lcm(*windows)
    divisors = [k for k in range(1, num_steps + 1) if num_steps % k == 0]
    near = [*[k for k in divisors if k < m][-1:], *[k for k in divisors if k > m][:1]]
    below = num_steps // whole * whole
    steps = [count for count in (below, below + whole) if count > 0]
    raise SdkerasError(
        f"a window of {m} steps does not divide the {num_steps:,} steps, and the windows must cover the same ones: "
        f"take {' or '.join(map(str, near))} in its place, or {' or '.join(f'{count:,}' for count in steps)} steps "
        "(`num_steps`), which all the windows divide."
    )


def _check_folder(checkpoint: str) -> None:
    """Refuses a checkpoint that could not be written, before the work.

    Raises:
        SdkerasError: See above.
    """
    target = Path(checkpoint)
    if not checkpoint or target.is_dir() or not target.parent.is_dir() or not os.access(target.parent, os.W_OK):
        raise SdkerasError(
            f"the checkpoint {checkpoint!r} cannot be written there; give the name of a file in a folder that exists."
        )
