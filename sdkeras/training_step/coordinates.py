"""Coordinates of an optimizer's state: what the singular values of a step's Jacobian refer to."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import attrs
import keras
import numpy as np

from sdkeras import seeds
from sdkeras.files.keras_types import Optimizer
from sdkeras.linalg.operators import LinearMap
from sdkeras.linalg.probes import space_of
from sdkeras.linalg.vectors import joined_rows
from sdkeras.results.arrays import Array
from sdkeras.training_step.map import UpdateMap

# A coupling in one direction only, J_ab = 0 and J_ba not, has no balance: the larger the factor, the smaller |J_ba|,
# without end. It ends where what is left of J_ba is this much in each direction, far below what SD can feel.
_RESIDUAL_COUPLING = 1e-6
_SWEEPS = 1000
_CONVERGED = 1e-10
# Probes of a group of the state, for the norms of the Jacobian's blocks: they are known to about a quarter, their
# balance, a fourth root, to some per cent. A smaller state is taken whole.
_PROBES = 16
_SMALL_STATE = 256


@attrs.frozen
class Coordinates:
    """Fixed linear coordinates y = C x of the state; in them a step's Jacobian is C J C^-1.

    Exponents in the long run, determinants and eigenvalues are the same in all coordinates; singular values, and with
    them every SD, are not. C scales parts of the state, and then adds to weights a multiple of their velocities. Arrays
    are [N] or columns [N, k], and come out in new memory.
    """

    name: str  # 'weights' (no slots), 'balanced' (momentum), or 'diagonal scaling: ' with the factor of each slot kind
    scales: tuple[tuple[slice, float], ...] = ()  # parts of the state and their factors; the others stay as they are
    pairs: tuple[tuple[slice, slice], ...] = ()  # where variables and their velocities stand in the state
    shear: float = 0.0  # the multiple of the scaled velocities

    def forward(self, columns: Array) -> Array:
        """X -> C X."""
        return _joined(self._sheared(self._scaled(self._parts(columns), 1), self.shear))

    def backward(self, columns: Array) -> Array:
        """Y -> C^-1 Y."""
        return _joined(self._scaled(self._sheared(self._parts(columns), -self.shear), -1))

    def forward_transposed(self, columns: Array) -> Array:
        """U -> C' U."""
        return _joined(self._scaled(self._sheared(self._parts(columns), self.shear, transposed=True), 1))

    def backward_transposed(self, columns: Array) -> Array:
        """U -> C^-T U."""
        return _joined(self._sheared(self._scaled(self._parts(columns), -1), -self.shear, transposed=True))

    def _parts(self, columns: Array) -> _Parts:
        """The columns, cut wherever something is scaled or added, by where each part starts."""
        places = [place for place, _ in self.scales] + [place for pair in self.pairs for place in pair]
        edges = {edge for place in places for edge in (place.start, place.stop)}
        return {low: columns[low:high] for low, high in itertools.pairwise(sorted({0, len(columns), *edges}))}

    def _scaled(self, parts: _Parts, power: int) -> _Parts:
        for place, factor in self.scales:
            for low in parts:
                if place.start <= low < place.stop:
                    parts[low] = parts[low] * factor if power == 1 else parts[low] / factor
        return parts

    def _sheared(self, parts: _Parts, shear: float, *, transposed: bool = False) -> _Parts:
        for weights, velocity in self.pairs:
            target, source = (velocity, weights) if transposed else (weights, velocity)
            parts[target.start] = parts[target.start] + shear * parts[source.start]
        return parts


# Rows of columns [N, k], or entries of a vector, by where they start in the state.
_Parts: TypeAlias = dict[int, Array]


def _joined(parts: _Parts) -> Array:
    return joined_rows(*(parts[low] for low in sorted(parts)))


class ConjugatedMap:
    """C J C^-1, the Jacobian of a step in other coordinates; a `LinearMap`."""

    def __init__(self, source: LinearMap, coordinates: Coordinates) -> None:
        self.source = source
        self.coordinates = coordinates
        self.size = source.size
        self.dtype = source.dtype
        self.space = space_of(source)

    def jvp(self, vector: Array) -> Array:
        """C J C^-1 v."""
        return self.coordinates.forward(self.source.jvp(self.coordinates.backward(vector)))

    def vjp(self, vector: Array) -> Array:
        """C^-T J' C' u."""
        return self.coordinates.backward_transposed(self.source.vjp(self.coordinates.forward_transposed(vector)))


def training_coordinates(step: UpdateMap) -> Coordinates:
    """The coordinates of an optimizer's step in which singular values are taken.

    Weights alone stay as they are. For SGD with momentum beta, v Keras' velocity, they are the balanced ones,
    u = w + b^2/(1 - beta) v and p = b/(1 - beta) v with b = sqrt(beta) for heavy ball and beta for Nesterov: a step
    without curvature and decay is then exactly diag(1, beta). Any other slots are scaled, each kind by one factor that
    balances the Jacobian of the step on its first minibatch (`balancing_factors`), in three digits, so that the name
    says all of them.
    """
    if step.size == step.num_weights:
        return Coordinates("weights")
    pairs = _velocities(step)
    if pairs is not None:
        return balanced(float(step.optimizer.momentum), bool(step.optimizer.nesterov), pairs)
    groups = state_groups(step)
    norms = block_norms(step.on_minibatch(0), list(groups.values()), seed=step.loss.seed)
    factors = balancing_factors(norms, [sum(place.stop - place.start for place in parts) for parts in groups.values()])
    named = zip(list(groups)[1:], factors[1:], strict=True)
    return diagonal({kind: float(f"{factor:.3g}") for kind, factor in named}, groups)


def balanced(beta: float, nesterov: bool, pairs: Sequence[tuple[slice, slice]]) -> Coordinates:
    """Balanced coordinates of momentum 0 < beta < 1, see `training_coordinates`; `pairs` as in `Coordinates`."""
    root = beta if nesterov else float(np.sqrt(beta))
    scales = tuple((velocity, root / (1.0 - beta)) for _, velocity in pairs)
    return Coordinates("balanced", scales, tuple(pairs), root)


def diagonal(factors: Mapping[str, float], groups: Mapping[str, Sequence[slice]]) -> Coordinates:
    """The state with each named group of variables times its factor, and the others as they are."""
    scales = tuple((place, factor) for kind, factor in factors.items() for place in groups[kind])
    named = ", ".join(f"{kind} x {factor:.3g}" for kind, factor in factors.items())
    return Coordinates(f"diagonal scaling: {named}", scales)


def state_groups(step: UpdateMap) -> dict[str, list[slice]]:
    """Where the weights and each kind of slot stand in the state, by the kinds' names; the weights come first.

    A slot's kind is what its name adds to its variable's ('velocity_hat' of 'adam/dense_kernel_velocity_hat'), with
    the optimizer before it where several of them make up one. Adafactor's rows and columns are 'kernel slots': their
    names add nothing.
    """
    weights = [path.replace("/", "_") + "_" for path in step.layout.names[: len(step.loss.layout.names)]]
    slots = step.layout.names[len(weights) :]
    several = len({name.split("/")[0] for name in slots}) > 1
    groups = {"weights": list(step.layout.slices[: len(weights)])}
    for name, place in zip(slots, step.layout.slices[len(weights) :], strict=True):
        leaf = name.rpartition("/")[2].partition("#")[0]
        kind = next((leaf[len(owner) :] for owner in weights if leaf.startswith(owner)), f"{leaf} slots")
        groups.setdefault(f"{name.split('/')[0]}/{kind}" if several else kind, []).append(place)
    return groups


def block_norms(source: LinearMap, groups: Sequence[Sequence[slice]], *, seed: int) -> Array:
    """|J_ab| (Frobenius) between groups of the state, shape [groups, groups]: a row for each group of the next state.

    |J_ab|^2 is the mean of |J_ab z|^2 over random signs z (Hutchinson 1990); small states are taken whole.
    """
    squares = np.zeros((len(groups), len(groups)))
    for b, parts in enumerate(groups):
        inside = np.concatenate([np.arange(place.start, place.stop) for place in parts])
        whole = source.size <= _SMALL_STATE or len(inside) <= _PROBES
        count = len(inside) if whole else _PROBES
        probes: Array = np.zeros((source.size, count), source.dtype)
        signs = seeds.generator(seed, seeds.Stream.BLOCK_NORMS, b).integers(0, 2, (len(inside), count)) * 2 - 1
        probes[inside] = np.eye(count) if whole else signs / np.sqrt(count)
        pushed = np.asarray(source.jvp(probes), np.float64)
        for a, rows in enumerate(groups):
            squares[a, b] = sum(float(np.sum(pushed[place] ** 2)) for place in rows)
    return np.sqrt(squares)


def balancing_factors(norms: Array, sizes: Sequence[int]) -> Array:
    """Factors f > 0, f_0 = 1, for which the blocks f_a J_ab / f_b are balanced.

    For each group a but the first, the squares of the norms in its rows and in its columns then have the same sum
    (off the diagonal): the scaling of least Frobenius norm, unique where every group is coupled to the first, however
    indirectly. Other units of a group change its factor and nothing else. A group that is coupled to nothing keeps
    factor 1.

    Where the coupling of two groups goes one way only (a slot that nothing reads, or that reads nothing) the least
    norm is not attained. |J_ab| therefore counts as 1e-12 sqrt(n_a n_b) / |J_ba| at least, which is as free of units:
    what the scaling leaves of J_ba is then 1e-6 for each dimension. `norms` are |J_ab| (Frobenius), `sizes` n_a.

    Reference: Osborne (1960); Parlett and Reinsch (1969).
    """
    squares = np.asarray(norms, np.float64) ** 2
    np.fill_diagonal(squares, 0.0)
    floor = _RESIDUAL_COUPLING**4 * np.outer(sizes, sizes).astype(np.float64)
    back = squares.T
    squares = squares + np.where(back > 0, floor / np.where(back > 0, back, 1.0), 0.0)
    logs = np.zeros(len(squares))  # of f^2
    for _ in range(_SWEEPS):
        moved = 0.0
        for a in range(1, len(squares)):
            scaled = squares * np.exp(logs[:, None] - logs[None, :])
            row, column = float(scaled[a].sum()), float(scaled[:, a].sum())
            if row > 0 and column > 0:
                change = 0.5 * float(np.log(column) - np.log(row))
                logs[a] += change
                moved = max(moved, abs(change))
        if moved < _CONVERGED:
            break
    factors: Array = np.exp(0.5 * logs)
    return factors


def _velocities(step: UpdateMap) -> list[tuple[slice, slice]] | None:
    """Where each weight and its velocity stand, if the slots are the velocities of SGD and nothing else."""
    optimizer: Optimizer = step.optimizer
    if type(optimizer) is not keras.optimizers.SGD or not 0.0 < optimizer.momentum < 1.0:
        return None
    weights = step.layout.slices[: len(step.loss.layout.names)]
    slots = step.layout.slices[len(weights) :]
    owners = {id(velocity): place for velocity, place in zip(optimizer.momentums, weights, strict=True)}
    owned = [owners.get(id(optimizer.variables[position])) for position in step.slot_positions]
    if len(owned) != len(slots):
        return None
    pairs = [(owner, slot) for owner, slot in zip(owned, slots, strict=True) if owner is not None]
    return pairs if len(pairs) == len(slots) else None
