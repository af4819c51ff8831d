"""Checks of an operator, and of a training step."""

from __future__ import annotations

import attrs


@attrs.frozen
class Verification:
    """The checks of an operator on one batch."""

    mode: str  # of the derivative: 'reverse-over-reverse', 'forward-over-reverse' or 'finite-differences'
    # Relative error of H v against a central difference of the gradient (median of three random directions), in
    # float64 where a float64 clone could be made.
    finite_difference_error: float
    finite_difference_dtype: str
    hvp_relative_error: float  # of a product from rounding: float32 against float64 product of the same v
    symmetry_error: float  # |u'Hv - v'Hu| / (|u| |Hv|)
    repeatability_error: float  # relative difference of two products with the same v; 0 on most devices
    passed: bool  # whether every check met its tolerance
    details: str = ""  # why no float64 clone, which layers are suspect, why the products are not linearised
    linearized: bool = False  # whether each batch is linearised once, for all its products
    jit: bool = False  # whether XLA compiled all functions, products and gradients alike

    @property
    def product_mode(self) -> str:
        """The option that pins these products: a later analysis then gives the same bits."""
        return "linearized" if self.linearized else self.mode


@attrs.frozen
class StepVerification:
    """The checks of the map of a training step, beside those of its Hessian-vector products."""

    # The map's step against one step of the optimizer itself, relative to how far each variable moved; NaN if no copy
    # of the optimizer could be made.
    step_error: float
    finite_difference_error: float  # J v against central differences, relative
    checked: str  # the differentiated function: 'map', or 'update' (the remaining terms are the Hessian's products)
    jvp_relative_error: float  # of a product J v from rounding
    adjoint_error: float  # |u'(J v) - (J'u)'v|, relative
    passed: bool  # whether every check met its tolerance
    details: str = ""
