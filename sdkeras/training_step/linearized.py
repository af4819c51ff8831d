"""The derivative of an optimizer's update at one state, ready for products from either side. NumPy in and out.

dU maps tangents of the state x = (w, s) and of the gradient g to one of the next state. Most optimizers treat each
weight by itself: dU is then a few diagonals, made once per state, and a product is as many multiplications; a clip by
norm in front of that is `norm_clip`. Where weights meet (Lamb, Adafactor, Muon) the products are those of the compiled
update.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np

from sdkeras.results.arrays import Array

# A diagonal of dU: all zero, the same number everywhere, or one number per weight.
Diagonal: TypeAlias = "np.floating[Any] | Array | None"


# Entries worked on at a time: a dozen passes over them should stay in the cache.
TILE = 32768


class Linearized(Protocol):
    """dU at one state; tangents and cotangents are the rows of a matrix."""

    def push(self, tangents: Array, slopes: Array) -> Array:
        """dU (t, h): [k, N] and [k, n] to [k, N]."""
        ...

    def pull(self, cotangents: Array) -> tuple[Array, Array]:
        """dU' u: [k, N] to [k, N] and [k, n]."""
        ...


class Compiled:
    """dU by compiled forward and backward products."""

    def __init__(self, push: Callable[[Array, Array], Array], pull: Callable[[Array], tuple[Array, Array]]) -> None:
        self.push = push
        self.pull = pull


class Diagonals:
    """dU of an update that treats each weight by itself.

    The state falls into kinds, each with one entry per weight: the weights, then as many slots as each has.

    Args:
        kinds: For each kind, where its variables lie in the state.
        diagonals: diagonals[a][b]: derivative of kind a of the next state in kind b; the last b is the gradient.
    """

    def __init__(self, kinds: Sequence[Sequence[slice]], diagonals: Sequence[Sequence[Diagonal]]) -> None:
        self._tiles = []
        for parts in zip(*kinds, strict=True):  # one variable's part of each kind
            start, size = parts[0].start, parts[0].stop - parts[0].start
            for low in range(0, size, TILE):
                high = min(low + TILE, size)
                own = slice(start + low, start + high)
                where = [slice(part.start + low, part.start + high) for part in parts]
                terms = [[d[own] if isinstance(d, np.ndarray) else d for d in row] for row in diagonals]
                self._tiles.append((own, where, terms, list(zip(*terms, strict=True))))

    def push(self, tangents: Array, slopes: Iterable[Array]) -> Array:
        out = np.empty_like(tangents)
        scratch = np.empty(TILE, tangents.dtype)
        for tangent, slope, row in zip(tangents, slopes, out, strict=True):
            for own, where, terms, _ in self._tiles:
                inputs = [*(tangent[part] for part in where), slope[own]]
                for part, diagonals in zip(where, terms, strict=True):
                    _combine(diagonals, inputs, row[part], scratch)
        return out

    def pull(self, cotangents: Array) -> tuple[Array, Array]:
        out = np.empty_like(cotangents)
        slopes = np.empty((len(cotangents), self._tiles[-1][0].stop), cotangents.dtype)
        scratch = np.empty(TILE, cotangents.dtype)
        for cotangent, row, slope in zip(cotangents, out, slopes, strict=True):
            for own, where, _, columns in self._tiles:
                inputs = [cotangent[part] for part in where]
                for part, diagonals in zip(where, columns, strict=False):
                    _combine(diagonals, inputs, row[part], scratch)
                _combine(columns[-1], inputs, slope[own], scratch)
        return out, slopes


def _combine(terms: Sequence[Diagonal], inputs: Sequence[Array], out: Array, scratch: Array) -> None:
    """out = sum of diagonal times input."""
    empty = True
    for diagonal, vector in zip(terms, inputs, strict=True):
        if diagonal is None:
            continue
        if empty:
            np.multiply(vector, diagonal, out=out)
        else:
            part = scratch[: len(out)]
            np.multiply(vector, diagonal, out=part)
            np.add(out, part, out=out)
        empty = False
    if empty:
        out[...] = 0


def compressed(diagonal: Array) -> Diagonal:
    """One number for a diagonal that is the same everywhere, None for zero."""
    first = diagonal.flat[0]
    if not np.all(diagonal == first):
        return diagonal
    return None if first == 0 else first
