"""Whether the callback measures the loss that training minimises, from what both sides say of its value."""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs

# Standard errors of a mean over batches: a part of the training data has another loss than all of them.
_ERRORS = 3.0
# Beside them, part of the loss: masks of dropout, batches of another composition, and weights that swing within an
# epoch, so that its last ones are no typical ones. Ordinary trainings (tests/callbacks/test_loss_check.py) are at most
# 0.22 of it outside the means.
_SHARE = 1 / 3
# Comparisons in a row that must disagree to the same side.
_IN_A_ROW = 3


@attrs.frozen
class _OwnLoss:
    """A loss of the callback's own with its standard error, and the epochs between whose means it must lie."""

    loss: float
    error: float
    neighbours: range


class LossCheck:
    """Compares losses at known weights with the means that `fit` logs of the epochs before and after.

    A mean over an epoch averages over moving weights: where the loss changes, it lags the loss at the epoch's end, and
    the next mean leads it. A loss far outside both, repeatedly on the same side, belongs to another function: to
    class weights, sample weights or data that only one side has.
    """

    def __init__(self) -> None:
        self._own_losses: list[_OwnLoss] = []
        self._means: dict[int, float] = {}
        self._sides: list[int] = []
        self._words = ""

    def measured(self, epochs: int, loss: float, error: float | None, *, within: bool) -> None:
        """A loss at the weights after this many whole epochs, or within the next one."""
        if error is not None and math.isfinite(loss) and not (within and epochs == 0):
            # At the end of one epoch and the start of the next, or somewhere in that one.
            self._own_losses.append(_OwnLoss(loss, error, range(epochs, epochs + (3 if within else 2))))

    def epoch_ended(self, epochs: int, mean: float | None) -> None:
        """The mean that `fit` logs of epoch number `epochs`, the first being 1."""
        if mean is None or not math.isfinite(mean):
            self._own_losses, self._means = [], {}
            return
        self._means = {epoch: value for epoch, value in self._means.items() if epoch >= epochs - 2} | {epochs: mean}
        ready = [measured for measured in self._own_losses if measured.neighbours[-1] <= epochs]
        self._own_losses = [measured for measured in self._own_losses if measured.neighbours[-1] > epochs]
        for measured in ready:
            means = [self._means[epoch] for epoch in measured.neighbours if epoch in self._means]
            if len(means) == len(measured.neighbours):
                self._compare(measured, means)

    def _compare(self, measured: _OwnLoss, means: Sequence[float]) -> None:
        low, high = min(means), max(means)
        slack = _ERRORS * measured.error + _SHARE * max(abs(low), abs(high), abs(measured.loss))
        side = 1 if measured.loss > high + slack else -1 if measured.loss < low - slack else 0
        self._sides = [*self._sides, side][-_IN_A_ROW:]
        if side:
            self._words = (
                f"fit logged a loss of {means[0]:.4g} for epoch {measured.neighbours[0]} and {means[-1]:.4g} for epoch "
                f"{measured.neighbours[-1]}, but on the data of the callback it was {measured.loss:.4g} in between"
            )

    def disagreement(self, *, ended: bool = False) -> str | None:
        """Disagreement, in words, once it is beyond doubt: three times in a row, or always in a short training."""
        enough = len(self._sides) >= (1 if ended else _IN_A_ROW)
        return self._words if enough and set(self._sides) in ({1}, {-1}) else None
