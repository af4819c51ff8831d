"""The whole Jacobian of the optimizer's real step, for any optimizer: what an analysis with the map 'full' is of."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sdkeras.dimension.estimate import Context
from sdkeras.dimension.exponents import SingularValueMap
from sdkeras.dimension.sampling import Outcome
from sdkeras.linalg.lanczos import BREAKDOWN
from sdkeras.linalg.operators import LinearMap
from sdkeras.linalg.probes import space_of
from sdkeras.operators import controls
from sdkeras.results.arrays import Array
from sdkeras.results.note import Note
from sdkeras.runs.budget import Budget
from sdkeras.runs.measure import Runs
from sdkeras.training_step import settings
from sdkeras.training_step.coordinates import ConjugatedMap, training_coordinates
from sdkeras.training_step.map import UpdateMap

# Share of t* that rounding may blur an exponent by before it is reported.
_COARSE = 0.1


class LimitedMap:
    """A linear map whose products raise BudgetError where the budget has no room for them."""

    def __init__(self, source: LinearMap, budget: Budget) -> None:
        self.source = source
        self.budget = budget
        self.size = source.size
        self.dtype = source.dtype
        self.space = space_of(source)

    def jvp(self, vector: Array) -> Array:
        self._require(vector)
        return self.source.jvp(vector)

    def vjp(self, vector: Array) -> Array:
        self._require(vector)
        return self.source.vjp(vector)

    def _require(self, vector: Array) -> None:
        self.budget.require(1 if np.ndim(vector) == 1 else np.shape(vector)[1])


class FullMap(Runs):
    """A step's Jacobian J on weights and slots, in coordinates C that its name tells: C J C^-1.

    Its `exponents` are the map sigma -> ln sigma.
    """

    bases = 2

    def __init__(self, step: UpdateMap, seed: int = 0) -> None:
        self.step, self.seed, self.size = step, seed, step.size
        self.coordinates = training_coordinates(step)
        self.exponents = SingularValueMap(self.coordinates.name)

    def on_minibatch(self, index: int) -> LinearMap:
        """C J C^-1 of training's update on the minibatch of run `index`, from the state as it is."""
        number = controls.number(self.step.loss.source, index)
        return ConjugatedMap(self.step.on_minibatch(number), self.coordinates)

    def operator(self, index: int, budget: Budget) -> LinearMap:
        return LimitedMap(self.on_minibatch(index), budget)

    def context(self, estimator: str) -> Context:
        return Context(
            size=self.size,
            exponents=self.exponents,
            unstable_above=None,
            ignored_decay=0.0,
            product_error=self.step.verification.jvp_relative_error,
            estimator=estimator,
        )

    def notes(self, outcome: Outcome) -> Iterator[Note]:
        """Caveats, given the estimate."""
        largest, threshold = float(np.max(outcome.nodes)), outcome.sharpness_dimension.threshold_exponent
        slots = self.size - self.step.num_weights
        units = (
            f"mix units, those of {self.step.num_weights:,} weights and of {slots:,} entries of the optimizer's slots, "
            f"and depend on how these are scaled; here: {self.coordinates.name}"
            if slots
            else "are of the weights as they are: the optimizer has no slots"
        )
        yield Note(
            "full-map",
            f"singular values of one whole step {units}. sigma_1 = {largest:.3g}. Compare them, and SD, "
            "with values in the same coordinates only; D_s along training (`lyapunov`) does not depend on them.",
        )
        resolved = BREAKDOWN * float(np.finfo(self.step.dtype).eps) * largest
        if threshold is not None and resolved > _COARSE * abs(threshold):
            yield Note(
                "unresolved",
                f"beside sigma_1 = {largest:.3g} singular values are resolved to about {resolved:.1g} in "
                f"{self.step.dtype.name}, and exponents near 0 decide at t* = {threshold:.2g}"
                + ("; analyse in float64 (`dtype='float64'`)." if self.step.dtype == np.float32 else "."),
            )
        used = settings.read_settings(self.step.optimizer)
        if slots and used is not None and not used.iterations:
            yield Note(
                "initial-slots",
                f"the optimizer {used.name} has taken no step; the slots are those that training starts with.",
            )
        yield from (Note(code, words) for code, words in self.step.notes)
        if not self.step.verification.passed:
            yield Note(
                "unverified-step",
                "the training step's map FAILED its verification and was used anyway: its singular values "
                "cannot be trusted.",
            )
