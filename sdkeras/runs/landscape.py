"""The loss along directions through the weights, beside its quadratic model, and the worst of it within a ball."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import attrs
import numpy as np

from sdkeras import seeds
from sdkeras.dimension.landscape import ascend, ball_maximum, filter_normalized, holds_to, principal_components
from sdkeras.errors import BudgetError, DataError, ModelError, NonFiniteError, OperatorSizeError
from sdkeras.estimators.select import estimate, for_analysis, steps_of, with_steps
from sdkeras.files.keras_types import Data, Model
from sdkeras.linalg.memory import memory_limit, peak_memory
from sdkeras.linalg.operators import DiagonallyScaledOperator, SymmetricOperator
from sdkeras.operators.hessian import HessianOperator
from sdkeras.operators.loss import EmpiricalLoss
from sdkeras.results.answers import LandscapeRun, OptimizerInfo
from sdkeras.results.arrays import Array, FloatArray
from sdkeras.results.estimates import Eigenpairs
from sdkeras.results.landscape import Axis, Landscape, WorstCase
from sdkeras.results.measured import Measured
from sdkeras.results.note import Note
from sdkeras.results.plans import LossPlan
from sdkeras.results.progress import INTERRUPT, STATUS, Progress
from sdkeras.runs.budget import Budget, Meter, Notes, one_blas_thread, resources, room_to_verify, whole_budget
from sdkeras.runs.declare import parse_learning_rate, takes_options
from sdkeras.runs.loss_options import LandscapeOptions
from sdkeras.runs.measure import with_evidence
from sdkeras.runs.plan import timed_gradient
from sdkeras.runs.problem import Subject, read_subject
from sdkeras.runs.provenance import data_info, optimizer_info, provenance
from sdkeras.runs.trajectory import Trajectory
from sdkeras.training_step import settings
from sdkeras.training_step.update import stored_update

_T = TypeVar("_T")

# Beyond the coordinates of a trajectory, and by default for each kind.
_AROUND, _SPANS = 1.1, {"random": 1.0, "step": 4.0}
# Gradients in a product, and in a loss; products of the checks; Lanczos steps that an eigenpair takes about.
_PER_PRODUCT, _PER_LOSS, _CHECKS, _USUAL_STEPS = 2.2, 0.4, 10, 25
# Starts of an ascent: the gradient, and both ways along the top eigenvector.
_STARTS = 3


@takes_options(LandscapeOptions)
def landscape(model: Model, data: Data, options: LandscapeOptions) -> LandscapeRun:
    """The loss on a line or in a plane through the weights, and on request its worst within a ball.

    Along the top eigenvectors of the Hessian, the optimizer's next update, the first principal components of a
    trajectory, or random directions. Beside the loss stands its quadratic model there, by slope and curvature at the
    weights, and how far it holds: up to where it is off by a tenth of |slope s| + |curvature s^2|/2.

    A picture is of two directions among n; a random one sees mean curvature, trace over n, and nothing of the sharp
    directions. The principal components of a long random walk are cosines whatever the loss (arXiv 1806.08805).

    `filter_normalized` scales each filter of the directions to the length of the weights' own filter (Li et al. 2018).
    With batch normalization, or ReLU, the filters of a net can be made longer or shorter without changing its
    function, which makes unit directions look sharp or flat at will; filter-normalised ones turn with the weights'
    lengths, so that random directions of two nets can be compared. Biases and scales of normalizations are not moved.
    Eigenvectors so scaled are no longer eigenvectors: the curvature of what is drawn stands beside it.

    `rho` and `adaptive_rho` give `worst_case`: max L(w + e) - L(w) over |e| <= rho (Foret et al. 2021), and over
    |e / w| <= rho, entries divided by those of the weights (Kwon et al. 2021, with T = |w|), which no rescaling of
    ReLU layers changes. Projected ascent from the gradient and from the top eigenvector; the best point found is a
    lower bound of the maximum. Weights that are 0 do not move in the adaptive ball.

    Args:
        model: A `keras.Model`, compiled unless a loss is given. It is not changed.
        data: (x, y[, sample_weight]), a batched `tf.data.Dataset`, or a `keras.utils.PyDataset`.
        options: {options}

    Returns:
        The answer. Ctrl-C finishes the loss under way; points that were not reached are NaN.

    Raises:
        KeyboardInterrupt: Ctrl-C before the directions were known.
        SdkerasError: Unusable model, data, options or trajectory; see its subclasses.

    Reference: Li et al. (2018), arXiv 1712.09913; Foret et al. (2021), arXiv 2010.01412; Kwon et al. (2021),
        arXiv 2102.11600.
    """
    started = time.monotonic()
    tell = options.tell or (lambda _: None)
    tell(Progress("reading the model and the data", 0))
    recorded = None if options.trajectory is None else _recorded(options.trajectory)
    subject, notes = _read(model, data, options)
    loss = subject.loss
    with loss.devices.scope():
        tell(Progress("compiling and verifying the Hessian-vector products", 0))
        hessian = HessianOperator(
            loss,
            product_mode=options.product_mode,
            allow_unverified=options.allow_unverified,
            memory=room_to_verify(options.memory_gb, loss.devices),
        )
        meter = Meter(lambda: hessian.num_products, options.tell)
        limits = resources(loss.size, loss.dtype.itemsize, memory_gb=options.memory_gb, workers=1)
        budget = whole_budget(limits, meter)
        view = _View(subject, options, hessian, budget)
        with budget.interruptible():
            found = view.uninterrupted(lambda: view.directions(recorded))
            if found is None:
                raise KeyboardInterrupt
            here = loss.value(), loss.gradient()
            drawn, more = view.drawn(found, *here)
            worst = tuple(view.worst_cases(found.pairs, *here))
    return LandscapeRun(
        provenance=provenance(loss, seed=options.seed, num_hvps=hessian.num_products, started=started),
        model=subject.model_info(hessian.engine.unconnected),
        data=data_info(loss),
        optimizer=_optimizer_info(subject),
        verification=hessian.verification,
        landscape=drawn,
        worst_case=worst,
        warnings=(*notes, *found.notes, *more),
        partial=budget.interrupted,
        status=STATUS[INTERRUPT if budget.interrupted else ""],
    )


@takes_options(LandscapeOptions)
def plan(model: Model, data: Data, options: LandscapeOptions) -> LossPlan:
    """Cost of `landscape` with the same arguments, from one timed gradient; computes nothing else."""
    subject, _ = _read(model, data, options)
    loss, balls = subject.loss, [each for each in (options.rho, options.adaptive_rho) if each is not None]
    gradient, activations, _ = timed_gradient(loss, loss.batches[0])
    pairs = options.directions == "eigenvectors" or (options.directions == "step" and options.dimensions == 2)
    runs = max(int(pairs), int(options.rho is not None)) + int(options.adaptive_rho is not None)
    batches = len(loss.batches)
    products = _CHECKS + batches * (options.dimensions + runs * min(_USUAL_STEPS, loss.size))
    ascents = len(balls) * _STARTS * options.ascent_steps
    losses, gradients = 1 + options.num_points + ascents, 1 + ascents
    seconds = gradient * (_PER_PRODUCT * products + batches * (_PER_LOSS * losses + gradients))
    vectors = (runs > 0) * _USUAL_STEPS + 6 + 4 * options.dimensions
    return LossPlan(
        num_parameters=loss.size,
        state_size=loss.size,
        num_hvps=products,
        peak_memory=int(peak_memory() + 3 * activations + vectors * loss.size * 8),
        seconds=seconds,
        seconds_per_gradient=gradient,
        optimizer=_optimizer_info(subject),
        data=data_info(loss),
        num_evaluations=losses,
        num_batches=batches,
        num_gradients=gradients,
        what=f"{options.num_points:,} points along {options.directions}"
        + (f", and the worst case within {len(balls)} ball{'s' * (len(balls) > 1)}" if balls else ""),
    )


def _optimizer_info(subject: Subject) -> OptimizerInfo:
    """The optimizer as its step would be taken, for a report."""
    asked, optimizer = subject.options.learning_rate, getattr(subject.compiled_as, "optimizer", None)
    if asked is not None:
        optimizer, _ = subject.training_optimizer()
    used = settings.read_settings(optimizer)
    rate = math.nan if used is None or used.learning_rate is None else used.learning_rate
    source = "file" if asked is None else parse_learning_rate(asked)
    return optimizer_info(used, rate, source if isinstance(source, str) else "given")


def _read(model: Model, data: Data, options: LandscapeOptions) -> tuple[Subject, Notes]:
    subject, notes = read_subject(model, data, options, num_samples=options.samples, mode=options.mode, jit=options.jit)
    notes = (*notes, *(Note("data", f"{note}.") for note in subject.loss.notes))
    return subject, (*notes, *((Note("held-fixed", f"{subject.held_fixed}."),) if subject.held_fixed else ()))


def _recorded(path: str) -> Trajectory:
    """A trajectory of whole weights, from its file or the folder that holds it.

    Raises:
        DataError: It is a projection.
        SdkerasError: It is none.
    """
    place = Path(path)
    recorded = Trajectory.load(place / "trajectory.npz" if place.is_dir() else place)
    if recorded.distortion is not None:
        raise DataError(
            f"the trajectory {path} is a random projection of the weights, which no plane of weights can be made of; "
            "record it without one (`TrajectoryRecorder(projection=None)`)."
        )
    return recorded


@attrs.frozen(eq=False)
class _Directions:
    """Directions as rows [k, n], what is known of each, and the eigenpairs that were measured on the way."""

    rows: FloatArray
    names: tuple[str, ...]
    spans: tuple[float, ...] | None = None  # by default; None where the losses along them decide
    eigenvalues: tuple[Measured | None, ...] = (None, None)
    shares: tuple[float | None, ...] = (None, None)
    path: tuple[FloatArray, ...] | None = None
    pairs: Eigenpairs | None = None
    notes: Notes = ()


@attrs.frozen(eq=False)
class _View:
    """A landscape in the making."""

    subject: Subject
    options: LandscapeOptions
    hessian: HessianOperator
    budget: Budget

    @property
    def loss(self) -> EmpiricalLoss:
        return self.subject.loss

    @property
    def point(self) -> FloatArray:
        return np.asarray(self.loss.point, np.float64)

    def uninterrupted(self, work: Callable[[], _T]) -> _T | None:
        """What the work gives; None if Ctrl-C came before or meanwhile."""
        try:
            done = None if self.budget.interrupted else work()
        except BudgetError:  # of the product after it; there is no other limit
            return None
        return None if self.budget.interrupted else done

    # Directions

    def directions(self, recorded: Trajectory | None) -> _Directions:
        """The directions that were asked for, at the lengths that the options describe."""
        count = self.options.dimensions
        if count > self.loss.size:
            raise ModelError(f"the model has {self.loss.size} weight, and a plane needs two (`dimensions=1`).")
        if recorded is not None:
            found = self._of_trajectory(recorded)
        elif self.options.directions == "step":
            found = self._step()
        elif self.options.directions == "random":
            found = self._random()
        else:
            pairs = self.eigenpairs(count)
            names = tuple(f"eigenvector {k + 1}" for k in range(count))
            rows = np.ascontiguousarray(np.asarray(pairs.vectors, np.float64).T)
            found = _Directions(
                rows, names, eigenvalues=tuple(with_evidence(pairs, k) for k in range(count)), pairs=pairs
            )
        return self._normalized(found) if self.options.filter_normalized else found

    def _normalized(self, found: _Directions) -> _Directions:
        layout = self.loss.layout
        shaped = [
            [each[place].reshape(shape) for place, shape in zip(layout.slices, layout.shapes, strict=True)]
            for each in (self.point, *found.rows)
        ]
        rows = [layout.flatten(filter_normalized(each, shaped[0]), np.float64) for each in shaped[1:]]
        if not all(map(np.any, rows)):
            raise ModelError(
                "a filter-normalised direction is 0: it lies in biases, or the kernels are all 0; leave out "
                "`filter_normalized`."
            )
        notes, spans = found.notes, found.spans
        if found.pairs is not None and any(found.eigenvalues):
            words = "filter-normalised eigenvectors are no eigenvectors; the curvature drawn is that of what was drawn."
            notes = (*notes, Note("filter-normalized", words))
        if self.options.directions != "step":
            spans = (1.0,) * len(rows)
        unknown = (None,) * len(rows)
        return attrs.evolve(
            found, rows=np.stack(rows), spans=spans, eigenvalues=unknown, shares=unknown, path=None, notes=notes
        )

    def _random(self) -> _Directions:
        rows = np.stack(
            [
                seeds.generator(self.options.seed, seeds.Stream.LANDSCAPE, k).standard_normal(self.loss.size)
                for k in range(self.options.dimensions)
            ]
        )
        if len(rows) == 2:
            rows[1] -= rows[0] * (rows[0] @ rows[1]) / (rows[0] @ rows[0])
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        rows *= (float(np.linalg.norm(self.point)) or 1.0) / lengths
        spans = (_SPANS["random"],) * len(rows)
        return _Directions(rows, tuple(f"random direction {k + 1}" for k in range(len(rows))), spans)

    def _step(self) -> _Directions:
        optimizer, notes = self.subject.training_optimizer()
        settings.check_rates(optimizer, 1)
        update = stored_update(
            self.loss,
            optimizer,
            initial_slots=self.options.initial_slots,
            allow_unverified=self.options.allow_unverified,
            memory=room_to_verify(self.options.memory_gb, self.loss.devices),
        )
        row = np.asarray(update.along(self.loss.batches).update, np.float64)
        length = float(np.linalg.norm(row))
        if length == 0:
            raise ModelError(
                "the optimizer's update moves nothing: the gradient is 0; take other directions (`directions`)."
            )
        spans = (_SPANS["step"],) * self.options.dimensions
        if self.options.dimensions == 1:
            return _Directions(row[None], ("the update",), spans, notes=notes)
        pairs = self.eigenpairs(1)
        top = np.asarray(pairs.vectors, np.float64)[:, 0]
        across = top - row * (row @ top) / length**2
        if not np.linalg.norm(across) > 1e-6:
            raise ModelError("the update lies along the top eigenvector: there is no plane of both (`dimensions=1`).")
        across *= length / np.linalg.norm(across)
        names = ("the update", "the top eigenvector across the update")
        return _Directions(np.stack([row, across]), names, spans, pairs=pairs, notes=notes)

    def _of_trajectory(self, recorded: Trajectory) -> _Directions:
        if recorded.num_parameters != self.loss.size:
            raise DataError(
                f"the trajectory is of {recorded.num_parameters:,} weights, and the model has {self.loss.size:,}; give "
                "one of this model's training."
            )
        try:
            rows, shares, path = principal_components(recorded.iterates, self.point, self.options.dimensions)
        except ValueError as error:
            raise DataError(f"the trajectory has no such plane: {error} (`dimensions`).") from error
        spans = tuple(_AROUND * float(np.abs(each).max()) for each in path)
        names = tuple(f"principal component {k + 1}" for k in range(len(rows)))
        shown = tuple(float(share) for share in shares)
        return _Directions(rows, names, spans, shares=shown, path=tuple(np.ascontiguousarray(path)))

    def eigenpairs(self, count: int, scaling: FloatArray | None = None) -> Eigenpairs:
        """The largest eigenvalues of H, or of D H D, and eigenvectors, by Lanczos with a basis that fits the memory."""
        watched = self.budget.watched(self.hessian)
        operator: SymmetricOperator = watched if scaling is None else DiagonallyScaledOperator(watched, scaling)
        estimator = for_analysis("eigenpairs", "lanczos", self.options.settings.get("lanczos", {}))
        estimator = attrs.evolve(estimator, num_largest=count, num_smallest=0, eigenvectors=True, reorthogonalize=True)
        room = int(memory_limit(self.options.memory_gb) // (operator.size * operator.dtype.itemsize)) - 2
        wanted = steps_of(estimator) or 1
        if room < min(operator.size, 2 * _USUAL_STEPS, wanted):
            raise OperatorSizeError(
                f"the Lanczos basis of {operator.size:,} weights has room for {max(room, 0)} vectors in memory; allow "
                "more (`memory_gb`), or take directions that need no eigenvectors (`directions='step'`, 'random')."
            )
        self.budget.tell("top eigenvectors")
        with one_blas_thread():
            pairs: Eigenpairs = estimate(with_steps(estimator, min(wanted, room)), operator, self.options.seed)
        return pairs

    # Losses

    def drawn(self, found: _Directions, center: float, gradient: Array) -> tuple[Landscape, Notes]:
        """The losses at the points, and the quadratic model of them, from loss and gradient at the weights."""
        options, loss, rows = self.options, self.loss, found.rows
        slopes = rows @ gradient
        lengths = np.linalg.norm(rows, axis=1)
        products = np.stack([length * self._product(row / length) for row, length in zip(rows, lengths, strict=True)])
        curvature = rows @ products.T
        curvature = 0.5 * (curvature + curvature.T)
        spans = self._spans(found, center, curvature)
        axes = [np.linspace(-span, span, options.points or 0) for span in spans]
        grid = np.stack([each.ravel() for each in np.meshgrid(*axes)], axis=1)
        values = np.full(len(grid), math.nan)
        order = np.argsort(np.abs(grid / np.array(spans)).max(axis=1), kind="stable")
        for done, k in enumerate(order):
            if self.budget.interrupted:
                break
            if done % len(axes[0]) == 0:
                self.budget.tell(f"losses, {done:,} of {len(grid):,} points")
            values[k] = loss.value(loss.point + (grid[k] @ rows).astype(loss.dtype))
        rounding = float(np.finfo(loss.dtype).eps) * abs(center)
        sides = (grid[:, 0] <= 0, grid[:, 0] >= 0) if len(axes) == 1 else (grid[:, 0] < math.inf,) * 2

        def held(side: Array) -> float:
            return holds_to(grid[side], values[side] - center, slopes, curvature, rounding=rounding)

        drawn = Landscape(
            directions=options.directions.partition(":")[0],
            filter_normalized=options.filter_normalized,
            axes=tuple(
                Axis(
                    name=found.names[k],
                    length=float(lengths[k]),
                    slope=float(slopes[k]),
                    curvature=float(curvature[k, k]),
                    eigenvalue=found.eigenvalues[k],
                    share=found.shares[k],
                    coordinates=axes[k],
                )
                for k in range(len(rows))
            ),
            mixed_curvature=float(curvature[0, 1]) if len(rows) == 2 else None,
            loss=center,
            losses=tuple(values.reshape(-1, len(axes[0]))),
            quadratic_to=(held(sides[0]), held(sides[1])),
            path=found.path,
        )
        return drawn, tuple(_caveats(drawn, found))

    def _product(self, unit: FloatArray) -> FloatArray:
        return np.asarray(self.hessian.matvec(unit.astype(self.loss.dtype)), np.float64)

    def _spans(self, found: _Directions, center: float, curvature: FloatArray) -> tuple[float, ...]:
        if self.options.span is not None:
            return (self.options.span,) * len(found.rows)
        if found.spans is not None:
            return found.spans
        steepest = float(np.max(np.diag(curvature)))
        once_more = math.sqrt(2 * abs(center) / steepest) if steepest > 0 and center else 1.0
        return (once_more,) * len(found.rows)

    # Worst cases

    def worst_cases(self, pairs: Eigenpairs | None, center: float, gradient: Array) -> Iterator[WorstCase]:
        """Those of the balls that were asked for, the plain one first."""
        options = self.options
        if options.rho is not None:
            pairs = pairs or self.uninterrupted(lambda: self.eigenpairs(1))
            if pairs is None:
                return
            yield self._worst_case("plain", options.rho, pairs, np.ones(1), (center, gradient))
        if options.adaptive_rho is not None:
            scaling = np.abs(self.point)
            if not np.any(scaling):
                raise ModelError("all weights are 0, so that the adaptive ball is a point; leave out `adaptive_rho`.")
            scaled = self.uninterrupted(lambda: self.eigenpairs(1, scaling))
            if scaled is not None:
                yield self._worst_case("adaptive", options.adaptive_rho, scaled, scaling, (center, gradient))

    def _worst_case(
        self, kind: str, rho: float, pairs: Eigenpairs, scaling: FloatArray, here: tuple[float, Array]
    ) -> WorstCase:
        """In coordinates u, e = scaling * u, where the ball is |u| <= rho; `here` is loss and gradient at w."""
        loss, point = self.loss, self.loss.point
        self.budget.tell(f"worst loss within the {kind} ball")
        center, slope = here[0], scaling * here[1]
        top = np.asarray(pairs.vectors, np.float64)[:, 0]

        def moved(step: FloatArray) -> Array:
            there: Array = point + (scaling * step).astype(loss.dtype)
            return there

        def uphill(step: FloatArray) -> FloatArray:
            try:
                return scaling * loss.gradient(moved(step))
            except NonFiniteError:  # which ends the ascent
                return np.full(loss.size, math.nan)

        ascent = ascend(
            lambda step: loss.value(moved(step)),
            uphill,
            (center, slope),
            rho,
            [top, -top],
            self.options.ascent_steps,
            lambda: not self.budget.interrupted,
        )
        basis = np.linalg.qr(np.stack([top, slope], axis=1))[0] if np.any(slope) and loss.size > 1 else top[:, None]
        products = [scaling * self._scaled_product(scaling * column) for column in basis.T]
        small = basis.T @ np.stack(products, axis=1)
        return WorstCase(
            kind=kind,
            rho=rho,
            increase=ascent.value - center,
            first_step=ascent.first - center,
            first_order=rho * float(np.linalg.norm(slope)),
            second_order=ball_maximum(basis.T @ slope, 0.5 * (small + small.T), rho)[0],
            eigenvalue=with_evidence(pairs, 0),
            distance=ascent.distance,
            num_losses=ascent.num_values,
            num_gradients=ascent.num_gradients,
        )

    def _scaled_product(self, vector: FloatArray) -> FloatArray:
        length = float(np.linalg.norm(vector))
        return length * self._product(vector / length) if length else np.zeros_like(vector)


def _caveats(drawn: Landscape, found: _Directions) -> Iterator[Note]:
    for axis in drawn.axes:
        pair = axis.eigenvalue
        if pair is not None and not pair.converged:
            words = f"{axis.name} has not converged (residual {pair.residual:.2g} of {pair.value:.4g})"
            yield Note("not-converged", f"{words}: the direction drawn is a mixture of it and its neighbours.")
    if found.shares[0] is not None:
        yield Note(
            "random-walk",
            "the principal components of a long random walk are cosines whatever the loss is: read the path's shape "
            "with care (arXiv 1806.08805).",
        )
    if not np.all(np.isfinite(np.stack(drawn.losses))):
        missing = int(np.sum(~np.isfinite(np.stack(drawn.losses))))
        yield Note(
            "not-finite", f"the loss at {missing:,} points was not taken, or is NaN or infinite; they are left blank."
        )
