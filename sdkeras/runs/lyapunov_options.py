"""The options of Lyapunov exponents along training; no TensorFlow."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import attrs

from sdkeras.dimension.forks import FEWEST_FORKS
from sdkeras.errors import OperatorSizeError, SdkerasError
from sdkeras.estimators import registry
from sdkeras.estimators.kinds import Estimator
from sdkeras.estimators.select import DEFAULTS, configured
from sdkeras.linalg.memory import memory_limit
from sdkeras.operators.modes import (
    MIXED,
)
from sdkeras.results.arrays import is_number
from sdkeras.runs.declare import (
    COUNT,
    FINITE,
    MOST,
    NOT_NEGATIVE,
    OUTPUT,
    PRECISION,
    TEXT,
    WHAT,
    as_path,
    described,
    is_writable,
    must,
    option,
)
from sdkeras.runs.options import NO_STEPS, STEPS, TRANSIENT, EstimationOptions

# Exponents along a trajectory.
_EXPONENTS = 10
# Fields of a Lyapunov estimator that are options of the run.
_OF_THE_RUN = ("num_exponents", "num_steps", "transient", "checkpoint", "checkpoint_interval")
# The singular values of one matrix of this size take half a minute on a core (0.2 s at 1,000), and there is one for
# each step and for each window.
_LARGEST_DENSE = 5000
# Float64 matrices that a window's product and its singular values take at once, beside the kept Jacobians.
_WORKING_MATRICES = 8
_FORKS = must(
    f"1, or {FEWEST_FORKS} or more, from which on they tell whether they are samples of one distribution",
    lambda value: is_number(value, whole=True) and (value == 1 or FEWEST_FORKS <= value < MOST),
)


def _with_one(windows: Sequence[int]) -> tuple[int, ...]:
    """Each length once, ascending; SD itself is always among them."""
    lengths = tuple(windows) if isinstance(windows, Iterable) else (windows,)
    if not all(is_number(length, whole=True) for length in lengths):
        raise SdkerasError(f"windows is {windows!r}; it must be whole numbers of steps, such as (1, 10).")
    return tuple(sorted({1, *lengths})) if lengths else ()


@attrs.frozen(kw_only=True)
class LyapunovOptions(EstimationOptions):
    """All options of `sdkeras.lyapunov`; see there.

    Raises:
        SdkerasError: A value out of its range, options that contradict each other, or an estimator that lacks what is
            asked of it.
    """

    num_exponents: int | None = option(
        None,
        "Number of exponents; default 10, or all where the state has fewer.",
        COUNT,
        metavar="K",
        more="With windows all.",
        group=WHAT,
    )
    num_steps: int = option(
        STEPS,
        "Steps to average over; an error bar takes 10 epochs of them, or forks.",
        COUNT,
        more="Minibatches of one epoch are not independent samples.",
        group=PRECISION,
    )
    transient: int = option(TRANSIENT, "Burn-in steps to discard.", NOT_NEGATIVE, group=PRECISION)
    windows: tuple[int, ...] = attrs.field(
        default=(),
        converter=_with_one,
        metadata=described(
            "SD, and SD^(m) of M steps taken as one, over the same steps as D_s; all exponents (small models).",
            "Each length a divisor of num_steps; 1 is always among them. Not with a checkpoint, which holds no "
            "Jacobians.",
            "M,M,...",
            group=WHAT,
        ),
    )
    forks: int = option(
        1,
        "Trajectories from the checkpoint, each with minibatches of its own: R-hat and ESS; 4 or more.",
        _FORKS,
        metavar="M",
        more="The first is followed once more with another start frame, whose difference is an error of alignment: "
        "M + 1 times the products and the time of one. Not with windows.",
        group=PRECISION,
    )
    checkpoint: str | None = attrs.field(
        default=None,
        converter=as_path,
        metadata=described(
            "Keep the run in this file, and continue it if it is there.",
            "With forks in files beside it too, FILE.fork2 and so on, and FILE.frame2. "
            "A continued run is bit for bit the uninterrupted one; the same file extends a finished run to a larger "
            "num_steps.",
            "FILE",
            group=OUTPUT,
        ),
    )
    checkpoint_interval: int = option(100, "Steps between two writes of the checkpoint.", COUNT, group=OUTPUT)
    initial_slots: bool = option(False, "For an optimizer that has taken no step: start from its initial slots.")
    estimator: str = option(DEFAULTS["lyapunov"], "Lyapunov estimator to use.", TEXT)
    time_limit: float | None = option(
        None,
        "Seconds after which no further step begins, as after Ctrl-C.",
        FINITE,
        metavar="SECONDS",
        more="The windows of the steps so far are still evaluated.",
        group=PRECISION,
    )

    def __attrs_post_init__(self) -> None:
        if self.dtype == MIXED:
            raise SdkerasError(f"{NO_STEPS}; take float32 or float64 (`dtype`).")
        others = set(self.settings) - {self.estimator}
        if others:
            raise SdkerasError(
                f"settings were given for '{min(others)}', which is not used here; used is: {self.estimator}."
            )
        if self.checkpoint is not None and not is_writable(self.checkpoint):
            raise SdkerasError(
                f"the checkpoint {self.checkpoint!r} cannot be written there; give the name of a file in a folder that "
                "exists."
            )
        if self.windows:
            _check_windows(self.windows, self.num_steps)
        if self.windows and self.checkpoint is not None:
            raise SdkerasError(
                "windows and a checkpoint cannot be combined: the file holds no Jacobians, and a continued run would "
                "lack those of the steps before; leave one of them out."
            )
        if self.windows and self.forks > 1:
            raise SdkerasError(
                "windows and forks cannot be combined: the dense Jacobians of one trajectory would stand beside the "
                "exponents of several; leave one of them out."
            )
        self.configured_estimator(1)

    @property
    def num_followed(self) -> int:
        """Trajectories that are followed: one, or the forks and the second frame of the first."""
        return self.forks + 1 if self.forks > 1 else 1

    def exponents_of(self, size: int) -> int:
        """How many exponents are computed of a state of this size: with windows all of them by default."""
        default = size if self.windows else min(_EXPONENTS, size)
        return default if self.num_exponents is None else self.num_exponents

    def check_exponents(self, size: int, num_weights: int) -> None:
        """Refuses more exponents than a state of this size has."""
        wanted = self.num_exponents
        if wanted is not None and wanted > size:
            raise SdkerasError(
                f"num_exponents={wanted} exceeds the size of the state, {size} ({num_weights} weights and "
                f"{size - num_weights} slots); use num_exponents <= {size} ({size} gives all of them)."
            )

    def configured_estimator(self, num_exponents: int, steps_per_epoch: int = 1) -> Estimator:
        """The estimator, with what it takes of these settings, and blocks of whole epochs.

        Raises:
            SdkerasError: There is none of this name, it lacks these fields, or a required capability.
        """
        cls = registry.get_estimator("lyapunov", self.estimator)
        fields, settings = attrs.fields_dict(cls), dict(self.settings.get(self.estimator, {}))
        of_the_run = [name for name in settings if name in _OF_THE_RUN]
        if of_the_run:
            raise SdkerasError(
                f"{of_the_run[0]} of '{self.estimator}' is an option of the run; give it as such ("
                f"{', '.join(f'`{name}`' for name in _OF_THE_RUN)})."
            )
        needed = {
            **({"checkpoint": "a checkpoint needs"} if self.checkpoint else {}),
            **(dict.fromkeys(("num_steps", "transient"), "windows need") if self.windows else {}),
            **({"keep_steps": "forks need"} if self.forks > 1 else {}),
        }
        lacking = [name for name in needed if name not in fields]
        if lacking:
            raise SdkerasError(
                f"the lyapunov estimator '{self.estimator}' has no field {lacking[0]}, which {needed[lacking[0]]}; "
                f"take {DEFAULTS['lyapunov']}, or leave them out."
            )
        of_this_run = {**attrs.asdict(self, recurse=False), "num_exponents": num_exponents}
        settings |= {name: of_this_run[name] for name in _OF_THE_RUN if name in fields}
        settings |= {"keep_steps": True} if self.forks > 1 else {}
        settings = {**({"block_unit": steps_per_epoch} if "block_unit" in fields else {}), **settings}
        return configured(cls, settings)

    def dense_bytes(self, size: int, itemsize: int) -> int:
        """Memory that the windows' Jacobians take, and the work on them; 0 without windows."""
        return size**2 * (self.num_steps * itemsize + _WORKING_MATRICES * 8) if self.windows else 0

    def check_dense(self, size: int, itemsize: int) -> None:
        """Refuses windows over Jacobians that are too large, or do not fit the memory."""
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


def _check_windows(windows: Sequence[int], num_steps: int) -> None:
    """Refuses windows that do not cover the steps evenly, with the nearest choices that do."""
    if windows[0] < 1:
        raise SdkerasError(f"windows must be positive, got {windows[0]}.")
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
