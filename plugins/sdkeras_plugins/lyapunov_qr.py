"""Leading Lyapunov exponents of a trajectory by repeated QR decompositions."""

from __future__ import annotations

import contextlib
import math
import os

import attrs
import numpy as np

from sdkeras.dimension.lyapunov import standard_error
from sdkeras.errors import Interrupted, NonFiniteError, SdkerasError
from sdkeras.estimators.kinds import lyapunov_estimator
from sdkeras.files.archive import fingerprint, load_checkpoint, save_checkpoint
from sdkeras.files.atomic import only_writer, shown
from sdkeras.files.reading import blamed_on
from sdkeras.linalg.operators import TangentFlow
from sdkeras.linalg.orthogonal import thin_qr
from sdkeras.linalg.probes import frame_of, space_of
from sdkeras.linalg.vectors import finite, owned, precision
from sdkeras.results.arrays import Array, BoolArray, FloatArray
from sdkeras.results.estimates import LyapunovExponents

# Standard errors rest on 32 to 63 blocks: at 64 they are merged in pairs. Fewer would not know their own spread
# (32 know it to 13 %, 1/sqrt(2 * 31)); more would be shorter, and short blocks are not independent. As the blocks grow
# with the run, whatever its length, the correlation time of the trajectory falls below them in time.
_FEWEST_BLOCKS = 32
# Products of a network are right to 3 to 10 eps in norm, so every r_ii is known to 10 eps times the largest column;
# a third of what is below 30 eps times it, or more, may be rounding.
_ROUNDING = 10.0
_UNRESOLVED = 30.0
# Steps between two decompositions at most, where nothing grows or shrinks: no reason to wait longer.
_LONGEST_INTERVAL = 64
# What no run reaches: steps, and the logarithm of the growth in one of them (that of the range of float64 is 1,420).
_MOST_STEPS, _FASTEST = 2**53, 1e4
# In the identity of a run that keeps its steps, and of no other, as in files of versions that kept none.
_KEPT = "steps that are kept"
_IN_USE = "wait until it has ended, end it, or name another checkpoint"


@lyapunov_estimator("lyapunov-qr", steps="num_steps")
@attrs.frozen
class LyapunovQr:
    """Lyapunov exponents ell_i = mean of ln R_ii, J_t V_t = V_(t+1) R with orthonormal V and positive R_ii.

    The frame V starts at random, from the seed. The burn-in (`transient`) is discarded: the trajectory reaches its
    attractor and the frame its directions; what has not settled by then leaves an error of order 1/num_steps.
    The decomposition is made every q steps only: q is the largest for which the frame's condition number, growing at
    the fastest rate seen so far, stays below eps^(-1/2) (ln: 8 in float32, 18 in float64), so that an ln R_ii is right
    to about eps^(1/2) even at the end of an interval. One step may exceed it; `rounding` and `num_resolved` of the
    result say what that did. R is the same for every q but for rounding. With k = size the exponents sum to the mean
    of ln|det J| exactly.

    A column that a singular Jacobian has taken to zero, or below what the dtype resolves beside the largest, counts
    as 30 eps times the largest, its upper bound: rounded numbers do not distinguish an exponent of -infinity from a
    very negative one. The frame continues with another orthonormal vector, and `num_resolved` says which exponents
    are upper bounds.

    A step that gives NaN or infinity after at least one was measured ends the run: the trajectory diverged, the
    result holds the steps before it, and `stopped_at` says where.

    With `checkpoint` the run is saved to that file and resumed from it, bit for bit as if it had not been interrupted,
    on the same machine and versions. The same file extends a finished run to a larger num_steps. It is
    refused for another seed, num_exponents, transient, or flow (identified by its state after `reset`).

    Attributes:
        num_exponents: k; None for all. Never more than the flow's size.
        num_steps: Maximum number of steps to measure.
        transient: Burn-in steps to discard.
        tolerance: Stop once every standard error is at most this, per step; at least 32 blocks. None takes all steps.
        checkpoint: File to save the run to and to resume from, or None.
        checkpoint_interval: Steps between two writes of it.
        keep_steps: Decompose at every step, and return ln R_ii of each (`steps` of the result).
        block_unit: Steps of a block, or of which a block has a whole multiple: those of an epoch, whose minibatches
            are not independent.

    Reference: Benettin, Galgani, Giorgilli, Strelcyn (1980); Dieci, Russell, Van Vleck (1997) for the QR form.
    """

    num_exponents: int | None = 10
    num_steps: int = attrs.field(default=1000, validator=attrs.validators.ge(1))
    transient: int = attrs.field(default=100, validator=attrs.validators.ge(0))
    tolerance: float | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.gt(0.0)))
    checkpoint: str | None = None
    checkpoint_interval: int = attrs.field(default=100, validator=attrs.validators.ge(1))
    keep_steps: bool = False
    block_unit: int = attrs.field(default=1, validator=attrs.validators.ge(1))

    def __attrs_post_init__(self) -> None:
        if self.num_exponents is not None and self.num_exponents < 1:
            raise ValueError(f"num_exponents={self.num_exponents} must be at least 1, or None for all of them.")

    def estimate(self, source: TangentFlow, *, seed: int) -> LyapunovExponents:
        """The exponents, largest first, with block standard errors and the running means.

        Where the flow raises Interrupted, or NaN comes up, before a step was measured, the error passes; later the
        result has the steps so far. The checkpoint is written in all cases; a damaged one, one of another run or one in
        use by a run is refused.
        """
        with contextlib.nullcontext() if self.checkpoint is None else only_writer(self.checkpoint, _IN_USE):
            return self._followed(source, seed)

    def _followed(self, source: TangentFlow, seed: int) -> LyapunovExponents:
        run = self._begin(source, seed)
        while not self._is_done(run):
            try:
                _advance(run, source)
            except Interrupted:
                self._save(run, source)
                if run.step <= run.transient:
                    raise
                break
            if self._is_done(run) or run.step % self.checkpoint_interval == 0:
                self._save(run, source)
        return _result(run)

    def _save(self, run: _Run, source: TangentFlow) -> None:
        if self.checkpoint is not None:
            flow = source.state() if run.stopped_at is None else None
            save_checkpoint(self.checkpoint, [_identity(run), attrs.asdict(_saved(run)), flow])

    def _begin(self, source: TangentFlow, seed: int) -> _Run:
        """A new run at its start, or the checkpoint's where it was; the flow stands at the same place."""
        source.reset(seed)
        wanted = source.size if self.num_exponents is None else min(self.num_exponents, source.size)
        start = _Run(
            frame=frame_of(source, wanted, seed=seed),
            flow=fingerprint(source.state()) if self.checkpoint is not None else "",
            seed=seed,
            transient=self.transient,
            keep_steps=self.keep_steps,
            block_size=self.block_unit,
        )
        if self.checkpoint is None or not os.path.exists(self.checkpoint):
            return start
        advice = "delete it to start again, or name another."
        content = load_checkpoint(self.checkpoint)
        with blamed_on(f"{shown(self.checkpoint)} is not a checkpoint of lyapunov-qr", advice):
            identity, fields, flow = content
            if identity != _identity(start):
                expected = _identity(start)
                names = {**expected, **identity, _KEPT: None}
                if {*identity, _KEPT} != {*names} or {*expected, _KEPT} != {*names}:
                    raise ValueError("it does not say which run it is of")
                differing = ", ".join(name for name in names if identity.get(name) != expected.get(name))
                raise SdkerasError(
                    f"{shown(self.checkpoint)} is the checkpoint of another run (it differs in: {differing}); {advice}"
                )
            run = _Run(**fields)
            _check(run, _saved(start))
            run.frame = space_of(source).moved(run.frame)
            if run.stopped_at is None:
                source.restore(flow)
        return run

    def _is_done(self, run: _Run) -> bool:
        if run.stopped_at is not None or run.step >= self.transient + self.num_steps:
            return True
        at_block_end = run.pending == 0 and run.partial_steps == 0
        if self.tolerance is None or not at_block_end or len(run.blocks) < _FEWEST_BLOCKS:
            return False
        means = run.blocks / run.block_size
        return bool(np.max(standard_error(means, run.block_size, len(means) * run.block_size)) <= self.tolerance)


@attrs.define(eq=False)
class _Run:
    """A run between two steps, all of it: what a checkpoint keeps, besides the flow's state.

    Attributes:
        frame: Tangents, shape [n, k]; orthonormal if `pending` is 0.
        flow: Fingerprint of the flow's state at the start; "" without a checkpoint.
        seed, transient: Seed and burn-in of the run.
        step: Steps made.
        pending: Steps since the last decomposition.
        interval: Steps q between two of them.
        growth: Fastest growth of the logarithm of the frame's condition number so far, per step.
        blocks: Sums of ln R_ii over the whole blocks, shape [number of blocks, k].
        block_size: Steps in a block.
        partial: Sum over the block under way, shape [k].
        partial_steps: Its steps, up to the last decomposition.
        rounding: Sum of the error of each ln R_ii, shape [k].
        unresolved: Directions that were ever below what the dtype resolves, shape [k].
        stopped_at: Step that gave NaN or infinity, or None.
        keep_steps: Whether every step is decomposed and kept.
        steps: ln R_ii of the steps kept so far, shape [num_kept, k], and room for more.
        num_kept: Rows of it that are taken.
    """

    frame: Array
    flow: str
    seed: int
    transient: int
    step: int = 0
    pending: int = 0
    interval: int = 1
    growth: float = 0.0
    blocks: FloatArray = attrs.field(default=attrs.Factory(lambda self: self._zeros(0), takes_self=True))
    block_size: int = 1
    partial: FloatArray = attrs.field(default=attrs.Factory(lambda self: self._zeros(), takes_self=True))
    partial_steps: int = 0
    rounding: FloatArray = attrs.field(default=attrs.Factory(lambda self: self._zeros(), takes_self=True))
    unresolved: BoolArray = attrs.field(
        default=attrs.Factory(lambda self: self._zeros().astype(np.bool_), takes_self=True)
    )
    stopped_at: int | None = None
    keep_steps: bool = False
    steps: FloatArray = attrs.field(default=attrs.Factory(lambda self: self._zeros(0), takes_self=True))
    num_kept: int = 0

    def keep(self, logs: FloatArray) -> None:
        """Keeps the logarithms of one more step."""
        if self.num_kept == len(self.steps):
            self.steps = np.concatenate([self.steps, self._zeros(max(64, len(self.steps)))])
        self.steps[self.num_kept] = logs
        self.num_kept += 1

    def _zeros(self, *shape: int) -> FloatArray:
        return np.zeros((*shape, self.frame.shape[1]))


def _saved(run: _Run) -> _Run:
    """The run with its frame as a NumPy array, wherever it is, and no room for more steps."""
    return attrs.evolve(run, frame=np.asarray(run.frame), steps=run.steps[: run.num_kept])


def _check(run: _Run, start: _Run) -> None:
    """Refuses a run whose fields are not of the types and shapes that those of a run have.

    Raises:
        ValueError: A field is not.
    """
    for field in attrs.fields(_Run):
        value, first = getattr(run, field.name), getattr(start, field.name)
        if isinstance(first, np.ndarray):
            shape = first.shape if field.name not in ("blocks", "steps") else (len(value), *first.shape[1:])
            alike = isinstance(value, np.ndarray) and value.shape == shape and value.dtype == first.dtype
            alike = alike and bool(np.all(np.isfinite(value)))
        else:
            alike = type(value) is type(first) or (field.name == "stopped_at" and type(value) is int)
        if not alike:
            raise ValueError(f"its {field.name} does not describe a run")
    counts = (run.step, run.pending, run.interval - 1, run.block_size - 1, run.partial_steps)
    sums = [np.abs(each).max(initial=0.0) for each in (run.blocks, run.partial, run.rounding, run.steps)]
    # Steps whose logarithms are in the sums: all after the transient but those since the last decomposition.
    measured = max(0, run.step - run.transient - run.pending)
    if (
        _identity(run) != _identity(start)
        or not 0 <= min(counts) <= max(counts) <= _MOST_STEPS
        or not 0.0 <= run.growth <= _FASTEST
        or max(sums) > _FASTEST * (run.step + 1)
        or len(run.blocks) >= 2 * _FEWEST_BLOCKS
        or len(run.blocks) * run.block_size + run.partial_steps != measured
        or not len(run.steps) == run.num_kept == (measured if run.keep_steps else 0)
    ):
        raise ValueError("its numbers do not describe a run")


def _identity(run: _Run) -> dict[str, object]:
    """Settings that a run must share with the checkpoint from which it continues."""
    return {
        "size": int(run.frame.shape[0]),
        "num_exponents": int(run.frame.shape[1]),
        "dtype": precision(run.frame).str,
        "seed": run.seed,
        "transient": run.transient,
        "the flow's start": run.flow,
        **({_KEPT: True} if run.keep_steps else {}),
    }


def _advance(run: _Run, source: TangentFlow) -> None:
    """One step of the flow, with a decomposition where one is due."""
    step, pending = run.step + 1, run.pending + 1
    due = run.keep_steps or pending >= run.interval or step == run.transient
    measuring = step > run.transient
    if measuring:
        due = due or run.partial_steps + pending == run.block_size
    try:
        frame = _stepped(source, run.frame, step)
        decomposition = _decompose(frame, step) if due else None
    except NonFiniteError:
        if run.step <= run.transient:
            raise
        run.stopped_at = step
        return
    run.step, run.pending, run.frame = step, pending, frame
    if decomposition is None:
        return
    run.frame, run.pending = decomposition.frame, 0
    if measuring:
        if run.keep_steps:
            run.keep(decomposition.logs)
        run.partial = run.partial + decomposition.logs
        run.partial_steps += pending
        run.rounding = run.rounding + decomposition.rounding
        run.unresolved = run.unresolved | decomposition.unresolved
        if run.partial_steps == run.block_size:
            _close_block(run)
    run.growth = max(run.growth, decomposition.spread / pending)
    bound = -0.5 * math.log(float(np.finfo(precision(run.frame)).eps))
    longest = int(bound / run.growth) if run.growth * _LONGEST_INTERVAL > bound else _LONGEST_INTERVAL
    # A rate seen over few steps may be a slow one's start: lengthen the interval by doubling only.
    run.interval = max(1, min(2 * run.interval, longest))


def _stepped(source: TangentFlow, frame: Array, step: int) -> Array:
    """The frame after one step, in memory of its own, so that a flow may use its buffers again."""
    with np.errstate(over="ignore", invalid="ignore"):
        moved = owned(frame, source.step(frame))
    if tuple(moved.shape) != tuple(frame.shape):
        raise ValueError(f"the flow returns tangents of shape {tuple(moved.shape)}, expected {tuple(frame.shape)}.")
    return finite(moved, f"the tangents after step {step} of the trajectory")


@attrs.frozen(eq=False)
class _Decomposition:
    """Result of one QR decomposition.

    Attributes:
        frame: Q, orthonormal.
        logs: ln R_ii, the unresolved ones at their upper bounds, shape [k].
        rounding: Bound on the rounding error of each, shape [k].
        unresolved: Whether each is below what the dtype resolves, shape [k].
        spread: Logarithm of the largest entry of R over the smallest R_ii, 1 being counted among both.
    """

    frame: Array
    logs: FloatArray
    rounding: FloatArray
    unresolved: BoolArray
    spread: float


def _decompose(frame: Array, step: int) -> _Decomposition:
    q, r = thin_qr(frame)
    finite(q, f"the orthonormalised tangents after step {step} of the trajectory")
    finite(r, f"the growth of the tangents after step {step} of the trajectory")
    limits = np.finfo(precision(frame))
    eps, tiny = float(limits.eps), float(limits.tiny)
    r = r.astype(np.float64)
    # Not the largest column's norm, within sqrt(k) of it, whose squares overflow shortly before a divergence.
    largest = float(np.max(np.abs(r)))
    floor = max(_UNRESOLVED * eps * largest, tiny)
    unresolved = np.diagonal(r) < floor
    diagonal = np.maximum(np.diagonal(r), floor)
    return _Decomposition(
        frame=owned(frame, q),
        logs=np.log(diagonal),
        rounding=_ROUNDING * eps * largest / diagonal,
        unresolved=unresolved,
        # With 1 among both the growth of the vectors themselves, towards overflow or underflow, is bounded too.
        spread=math.log(max(largest, 1.0)) - math.log(min(float(diagonal.min()), 1.0)),
    )


def _close_block(run: _Run) -> None:
    run.blocks = np.concatenate([run.blocks, run.partial[None]])
    run.partial, run.partial_steps = np.zeros_like(run.partial), 0
    if len(run.blocks) == 2 * _FEWEST_BLOCKS:
        run.blocks = run.blocks[0::2] + run.blocks[1::2]
        run.block_size *= 2


def _result(run: _Run) -> LyapunovExponents:
    """The record of a run as it stands; the run stays as it is, so that it can go on as if nobody had looked."""
    total, rounding, unresolved = run.blocks.sum(axis=0) + run.partial, run.rounding, run.unresolved
    if run.pending > 0:
        last = _decompose(run.frame, run.step)
        total, rounding, unresolved = total + last.logs, rounding + last.rounding, unresolved | last.unresolved
    steps = run.step - run.transient
    values = total / steps
    order = np.argsort(-values, kind="stable")
    counts = run.block_size * np.arange(1.0, len(run.blocks) + 1)[:, None]
    doubtful = np.flatnonzero(unresolved[order])
    num_resolved = int(doubtful[0]) if len(doubtful) else len(values)
    return LyapunovExponents(
        values=values[order],
        stderr=standard_error(run.blocks / run.block_size, run.block_size, steps)[order],
        num_steps=steps,
        seed=run.seed,
        history=(np.cumsum(run.blocks, axis=0) / counts)[:, order],
        block_size=run.block_size,
        transient=run.transient,
        num_tangents=len(values) * run.step,
        stopped_at=run.stopped_at,
        log_det=float(values.sum()) if num_resolved == run.frame.shape[0] else None,
        rounding=rounding[order] / steps,
        num_resolved=num_resolved,
        steps=run.steps[: run.num_kept].copy() if run.keep_steps else None,
    )
