"""The Hessian on the data subspace: an exact reduction for small minibatches.

A kernel W that acts only through X W (a first Dense layer; X holds the batch's inputs to it) is not felt along
directions orthogonal to the row space of X: these are exact null vectors of the Hessian, whatever follows.
With B an orthonormal basis of the row space, the Hessian splits into its restriction to B (x) I and the rest,
where it is 0 (an L2 regulariser of the kernel puts its own constant there). Embedding rows of tokens that are
not in the batch split off in the same way. Structure only proposes a splitting; a product with a random
direction of the complement decides.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import TYPE_CHECKING

import keras
import numpy as np
import tensorflow as tf

from sdkeras.files.keras_types import Data, Layer, Model, Tensor, Variable, layers_of
from sdkeras.linalg.operators import Reduction, RowsOperator, SymmetricOperator
from sdkeras.operators.batch_loss import keras_structure
from sdkeras.results.arrays import Array

if TYPE_CHECKING:
    from sdkeras.operators.hessian import CurvatureOperator

# A product with a complement direction is pure rounding, about 1e-6 of a typical eigenvalue in float32 and
# 1e-15 in float64; a kernel that is felt there shows at order 1.
_SPLIT_TOLERANCE = {"float32": 1e-4, "float64": 1e-9}


class SubspaceOperator(RowsOperator):
    """E' A E for the embedding E whose columns are orthonormal: identity but for kernels with a basis, by position.

    The basis [p, r] of a kernel [p, q] is that of the part of its input space that is felt.
    """

    def __init__(self, operator: CurvatureOperator, bases: Mapping[int, Array]) -> None:
        self.operator = operator
        self.dtype = operator.dtype
        self.space = operator.space
        layout = operator.loss.layout
        self.pieces = []
        start = 0
        for position, (shape, place) in enumerate(zip(layout.shapes, layout.slices, strict=True)):
            basis = bases[position].astype(self.dtype) if position in bases else None
            length = place.stop - place.start if basis is None else basis.shape[1] * shape[1]
            self.pieces.append((place, slice(start, start + length), basis, shape))
            start += length
        self.size = start

    def lift(self, rows: Array) -> Array:
        """Rows in the subspace as rows in the full space, [k, size] -> [k, n]; arrays or tensors."""
        parts, np_or_tf = [], _namespace(rows)
        for _, small, basis, shape in self.pieces:
            block = rows[:, small]
            if basis is not None:
                block = np_or_tf.matmul(basis, np_or_tf.reshape(block, (len(rows), -1, shape[1])))
            parts.append(np_or_tf.reshape(block, (len(rows), -1)))
        lifted: Array = np_or_tf.concat(parts, axis=1)
        return lifted

    def project(self, rows: Array) -> Array:
        """Coordinates in the subspace, [k, n] -> [k, size]; arrays or tensors."""
        parts, np_or_tf = [], _namespace(rows)
        for place, _, basis, shape in self.pieces:
            block = rows[:, place]
            if basis is not None:
                block = np_or_tf.matmul(basis.T, np_or_tf.reshape(block, (len(rows), *shape)))
            parts.append(np_or_tf.reshape(block, (len(rows), -1)))
        projected: Array = np_or_tf.concat(parts, axis=1)
        return projected

    def rows(self, rows: Array) -> Array:
        return self.project(self.operator.rows(self.lift(rows)))


def _namespace(rows: Tensor) -> ModuleType:
    """The module of which the functions take these."""
    return tf if tf.is_tensor(rows) else np


class ScaledSubspaceOperator(SymmetricOperator):
    """G^1/2 (E' A E) G^1/2 with G = E' D^2 E for a diagonal D: the nonzero eigenvalues of D A D.

    For A = E (E' A E) E' the product D A D = F (E' A E) F' with F = D E has the nonzero eigenvalues of
    (E' A E) (F'F). G falls into one small matrix for each column of a kernel and the diagonal of the rest.
    """

    def __init__(self, subspace: SubspaceOperator, diagonal: Array) -> None:
        self.subspace = subspace
        self.size = subspace.size
        self.dtype = subspace.dtype
        self.space = subspace.space
        diagonal = diagonal.astype(self.dtype, copy=False)
        self._roots = [
            (small, diagonal[place] if basis is None else _root(basis, diagonal[place].reshape(shape)))
            for place, small, basis, shape in subspace.pieces
        ]

    def _scaled(self, matrix: Array) -> Array:
        """G^1/2 V, shape [size, k] -> [size, k]; arrays or tensors."""
        parts, np_or_tf = [], _namespace(matrix)
        for small, root in self._roots:
            block = matrix[small]
            if root.ndim == 1:
                parts.append(np_or_tf.multiply(root[:, None], block))
            else:  # [q, r, r] times [q, r, k], the coordinates being [r, q]
                columns = np_or_tf.reshape(block, (root.shape[1], root.shape[0], -1))
                columns = np_or_tf.matmul(root, np_or_tf.transpose(columns, (1, 0, 2)))
                parts.append(np_or_tf.reshape(np_or_tf.transpose(columns, (1, 0, 2)), block.shape))
        product: Array = np_or_tf.concat(parts, axis=0)
        return product

    def matvec(self, vector: Array) -> Array:
        product: Array = self.matmat(vector[:, None])[:, 0]
        return product

    def matmat(self, matrix: Array) -> Array:
        return self._scaled(self.subspace.matmat(self._scaled(matrix)))


def _root(basis: Array, diagonal: Array) -> Array:
    """(B' D_c^2 B)^1/2 for each column c of a kernel [p, q], shape [q, r, r], in the basis' precision."""
    squared = np.square(diagonal.astype(np.float64)).T
    wide = basis.astype(np.float64)
    values, vectors = np.linalg.eigh(np.einsum("pr,qp,ps->qrs", wide, squared, wide, optimize=True))
    roots = (vectors * np.sqrt(np.maximum(values, 0.0))[:, None, :]) @ vectors.transpose(0, 2, 1)
    narrow: Array = roots.astype(basis.dtype)
    return narrow


def reduction(operator: CurvatureOperator) -> Reduction | None:
    """The splitting for the operator's batches, or None where there is none (that is worth having)."""
    bases: dict[int, Array] = {}
    eigenvalue = None
    generator = np.random.default_rng(0)
    vector = generator.standard_normal(operator.size).astype(operator.dtype)
    typical = float(np.linalg.norm(operator.matvec(vector)) / np.linalg.norm(vector))  # root mean square eigenvalue
    tolerance = _SPLIT_TOLERANCE[operator.dtype.name] * typical
    for position, basis in _candidates(operator):
        constant = _constant_on_complement(operator, position, basis, tolerance, generator)
        if constant is None or (eigenvalue is not None and abs(constant - eigenvalue) > tolerance):
            continue
        eigenvalue = constant
        bases[position] = basis
    if eigenvalue is None:
        return None
    small = SubspaceOperator(operator, bases)
    scaled = functools.partial(ScaledSubspaceOperator, small)
    return Reduction(small, eigenvalue, operator.size - small.size, scaled if eigenvalue == 0 else None)


def _constant_on_complement(
    operator: CurvatureOperator, position: int, basis: Array, tolerance: float, generator: np.random.Generator
) -> float | None:
    """c if A v = c v for a random v in the kernel's complement of its basis, else None."""
    layout = operator.loss.layout
    kernel = generator.standard_normal(layout.shapes[position])
    kernel -= basis @ (basis.T @ kernel)
    vector = np.zeros(operator.size)
    vector[layout.slices[position]] = (kernel / np.linalg.norm(kernel)).ravel()
    product = np.asarray(operator.matvec(vector.astype(operator.dtype)), np.float64)
    constant = float(vector @ product)
    if np.linalg.norm(product - constant * vector) > tolerance:
        return None
    return constant if abs(constant) > tolerance else 0.0


def _candidates(operator: CurvatureOperator) -> Iterator[tuple[int, Array]]:
    """First Dense and Embedding layers of a functional model, with bases from the operator's batches."""
    function = operator.loss.function
    model = function.model
    places = {id(variable): position for position, variable in enumerate(function.analysed)}
    if not getattr(model, "inputs", None):
        return
    batches = [tf.nest.pack_sequence_as(function.structure, list(batch.tensors))[0] for batch in operator.batches]
    names = {keras.layers.Dense: "kernel", keras.layers.Embedding: "embeddings"}
    for layer in layers_of(model):
        name = next((name for cls, name in names.items() if isinstance(layer, cls)), "")
        kernel: Variable = getattr(layer, name, None)
        if id(kernel) in places:
            features = _features(model, layer, batches)
            basis = None if features is None else _basis(layer, features, int(kernel.shape[0]))
            if basis is not None:
                yield places[id(kernel)], basis


def _features(model: Model, layer: Layer, batches: list[Data]) -> Array | None:
    """The layer's inputs on all batches, if the graph gives them without passing a trainable layer."""
    try:
        upstream = keras.Model(model.inputs, layer.input)
        if upstream.trainable_variables:
            return None
        outputs = [np.asarray(upstream(keras_structure(batch), training=False)) for batch in batches]
    except (AttributeError, ValueError, TypeError):  # a subclassed model, or a layer used more than once
        return None
    return np.concatenate([output.reshape(-1, output.shape[-1]) for output in outputs]) if outputs else None


def _basis(layer: Layer, features: Array, width: int) -> Array | None:
    """Orthonormal basis of what the batch feels of an input space of this width; None if that is all of it."""
    if isinstance(layer, keras.layers.Embedding):
        tokens = np.unique(features.astype(np.int64))
        if len(tokens) >= width:
            return None
        basis = np.zeros((width, len(tokens)))
        basis[tokens, np.arange(len(tokens))] = 1.0
        return basis
    if features.shape[0] > 4 * width:
        features = np.asarray(np.linalg.qr(features.astype(np.float64), mode="r"))
    _, values, rows = np.linalg.svd(features.astype(np.float64), full_matrices=False)
    if not len(values) or values[0] == 0:
        return None
    # Features are stored in single precision at best: smaller singular values are rounding.
    rank = int(np.sum(values > values[0] * max(features.shape) * np.finfo(np.float32).eps))
    return None if rank >= width else rows[:rank].T
