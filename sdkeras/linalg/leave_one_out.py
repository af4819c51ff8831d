"""Sketches of a symmetric operator with each random vector left out in turn: what XTrace and XDiag are made of.

Of probes w_1, ..., w_m the images Y = A W = Q R span a range that holds most of A. Q_i, the range without probe i, is
independent of that probe: an estimate from Q_i, corrected by probe i, is unbiased. All m of them come from one basis,
since Q_i Q_i' = Q (I - s_i s_i') Q' with s_i orthogonal to all columns of R but the i-th.

Reference: Epperly, Tropp, Webber (2024), "XTrace: making the most of every sample in stochastic trace estimation".
"""

from __future__ import annotations

import attrs
import numpy as np
import scipy.linalg

from sdkeras.linalg.operators import SymmetricOperator
from sdkeras.linalg.orthogonal import thin_qr
from sdkeras.linalg.vectors import components, finite, transposed
from sdkeras.results.arrays import Array, FloatArray

# What is left of an image counts as spanned by those before below this many eps of it.
SPANNED = 30.0


@attrs.frozen(eq=False)
class Sketch:
    """The range of A W, and A on it.

    Attributes:
        basis: Q' as rows, shape [k, n], where the operator's vectors live; k < m where k probes span the range of A.
        images: (A Q)' as rows, shape [k, n].
        factor: R, shape [m, m] with Q R = A W; shape [k, m] where the range is spanned.
        directions: Unit vectors s_i as columns, shape [m, m]; None where the range is spanned, and A = Q Q' A.
        num_matvecs: Products spent, m + k.
    """

    basis: Array
    images: Array
    factor: FloatArray
    directions: FloatArray | None
    num_matvecs: int

    @classmethod
    def of(cls, source: SymmetricOperator, probes: Array) -> Sketch:
        """The sketch with probes w_i as rows, shape [m, n], at most n of them; takes 2 m products."""
        count, what = len(probes), "a product with random probes"
        q, r = thin_qr(transposed(finite(source.rows(probes), what)))
        factor = np.asarray(r, np.float64)
        eps = float(np.finfo(source.dtype).eps)
        spanned = np.diagonal(factor) <= SPANNED * eps * np.linalg.norm(factor, axis=0)
        rank = int(np.argmax(spanned)) if spanned.any() else count
        basis = transposed(q)[:rank]
        images = finite(source.rows(basis), what) if rank else basis
        directions = None
        if rank == count:
            inverse = scipy.linalg.solve_triangular(factor, np.eye(count), trans="T")
            directions = inverse / np.linalg.norm(inverse, axis=0)
        return cls(basis, images, factor[:rank], directions, count + rank)

    def coordinates(self, vectors: Array) -> FloatArray:
        """Q' v for rows v, as columns [k, number of rows]."""
        columns = [components(vector, self.basis) for vector in vectors]
        return np.array(columns, np.float64).reshape(len(vectors), len(self.basis)).T
