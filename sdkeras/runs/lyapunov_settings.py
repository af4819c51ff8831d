"""How a trajectory of training is followed: settings and their checks, without TensorFlow."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs

from sdkeras.errors import OperatorSizeError, SdkerasError
from sdkeras.estimators import registry
from sdkeras.estimators.kinds import Estimator
from sdkeras.estimators.select import DEFAULTS, configured
from sdkeras.linalg.memory import memory_limit
from sdkeras.results.arrays import Value
from sdkeras.runs.options import DEFAULT_STEPS, DEFAULT_TRANSIENT

DEFAULT_ESTIMATOR = DEFAULTS["lyapunov"]
DEFAULT_EXPONENTS = 10
# Fields of an estimator that have settings of their own here.
_SHARED = ("num_exponents", "num_steps", "transient", "checkpoint", "checkpoint_interval")
# The singular values of one matrix of this size take half a minute on a core (0.2 s at 1,000), and there is one for
# each step and for each window.
_LARGEST_DENSE = 5000
# Float64 matrices that a window's product and its singular values take at once, beside the kept Jacobians.
_WORKING_MATRICES = 8


def _with_one(windows: Sequence[int]) -> tuple[int, ...]:
    """Each length once, ascending; SD itself is always among them."""
    return tuple(sorted({1, *windows})) if windows else ()


@attrs.frozen(kw_only=True)
class LyapunovSettings:
    """How a trajectory is followed; see `sdkeras.lyapunov`."""

    num_exponents: int | None = None
    num_steps: int = DEFAULT_STEPS
    transient: int = DEFAULT_TRANSIENT
    seed: int = 0
    checkpoint: str | None = None
    checkpoint_interval: int = 100
    windows: tuple[int, ...] = attrs.field(default=(), converter=_with_one)
    estimator: str = DEFAULT_ESTIMATOR
    estimator_settings: Mapping[str, Value] = attrs.field(factory=dict)
    memory_gb: float | None = None
    time_limit: float | None = None

    def __attrs_post_init__(self) -> None:
        least = {"num_exponents": 1, "num_steps": 1, "transient": 0, "seed": 0, "checkpoint_interval": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise SdkerasError(f"{name} is {value}; it must be at least {low}.")
        for name in ("memory_gb", "time_limit"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise SdkerasError(f"{name} is {value!r}; it must be positive and finite.")
        if self.checkpoint is not None:
            _check_folder(self.checkpoint)
        if self.windows:
            check_windows(self.windows, self.num_steps)
        if self.windows and self.checkpoint is not None:
            raise SdkerasError(
                "windows and a checkpoint do not go together: the file holds no Jacobians, and a run that goes on from "
                "it would lack those of the steps before; leave one of them out."
            )
        self.made_estimator(1)

    def exponents_of(self, size: int) -> int:
        """How many exponents are computed of a state of this size: with windows all of them unless told otherwise."""
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

    def made_estimator(self, num_exponents: int) -> Estimator:
        """The estimator, with what it takes of these settings.

        Raises:
            SdkerasError: There is none of this name, it has not these fields, or it lacks what is asked of it.
        """
        cls = registry.get_estimator("lyapunov", self.estimator)
        fields = attrs.fields_dict(cls)
        taken = [name for name in self.estimator_settings if name in _SHARED]
        if taken:
            raise SdkerasError(
                f"{taken[0]} of '{self.estimator}' is a setting of the run; give it as such ("
                "`num_exponents`, `num_steps`, `transient`, `checkpoint`, `checkpoint_interval`)."
            )
        needed = (["checkpoint"] if self.checkpoint is not None else []) + (
            ["num_steps", "transient"] if self.windows else []
        )
        lacking = [name for name in needed if name not in fields]
        if lacking:
            raise SdkerasError(
                f"the lyapunov estimator '{self.estimator}' has no field {lacking[0]}, which "
                f"{'windows need' if self.windows else 'a checkpoint needs'}; take {DEFAULT_ESTIMATOR}, or leave them "
                "out."
            )
        given = {name: getattr(self, name) for name in _SHARED if name in fields} | dict(self.estimator_settings)
        if "num_exponents" in fields:
            given["num_exponents"] = num_exponents
        return configured(cls, given)

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


def settings_of(
    *, estimator: str = DEFAULT_ESTIMATOR, settings: Mapping[str, Mapping[str, Value]] | None = None, **options: Value
) -> LyapunovSettings:
    """The settings among the options of `sdkeras.lyapunov`, by the names they have there.

    Raises:
        SdkerasError: One is out of its range, or of an estimator that is not used.
    """
    given = dict(settings or {})
    own = given.pop(estimator, {})
    if given:
        raise SdkerasError(f"settings were given for '{min(given)}', which is not used here; used is: {estimator}.")
    names = {field.name for field in attrs.fields(LyapunovSettings)}
    known = {name: value for name, value in options.items() if name in names}
    return LyapunovSettings(estimator=estimator, estimator_settings=own, **known)


def check_windows(windows: Sequence[int], num_steps: int) -> None:
    """Refuses windows that do not cover the steps evenly, with the nearest choices that do.

    Raises:
        SdkerasError: See above.
    """
    for m in windows:
        if m < 1:
            raise SdkerasError(f"a window of {m} steps is none; windows must be at least 1.")
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
