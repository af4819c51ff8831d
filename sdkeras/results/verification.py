"""Checks of an operator, and of a training step."""

from __future__ import annotations

import attrs


@attrs.frozen
class Verification:
    """The checks of an operator on one batch.

    Attributes:
        mode: Product mode in use: 'reverse-over-reverse', 'forward-over-reverse' or 'finite-differences'.
        finite_difference_error: Relative error of H v against a central difference of the gradient
            (median of three random directions).
        finite_difference_dtype: Precision of that check; float64 when a float64 clone could be made.
        hvp_relative_error: Error of a product from rounding: float32 against float64 product of the same v.
        symmetry_error: |u'Hv - v'Hu| / (|u| |Hv|).
        repeatability_error: Relative difference of two products with the same v; 0 on most devices.
        passed: Whether every check met its tolerance.
        details: Remarks on the check (why no float64 clone, which layers are suspect).
    """

    mode: str
    finite_difference_error: float
    finite_difference_dtype: str
    hvp_relative_error: float
    symmetry_error: float
    repeatability_error: float
    passed: bool
    details: str = ""


@attrs.frozen
class StepVerification:
    """The checks of the map of a training step, beside those of its Hessian-vector products.

    Attributes:
        step_error: The map's step against one step of the optimizer itself, relative to how far each variable moved;
            NaN if no copy of the optimizer could be made.
        finite_difference_error: J v against central differences, relative.
        checked: The differentiated function: 'map', or 'update' (the remaining terms are the Hessian's products).
        jvp_relative_error: Error of a product J v from rounding.
        adjoint_error: |u'(J v) - (J'u)'v|, relative.
        passed: Whether every check met its tolerance.
        details: Further remarks.
    """

    step_error: float
    finite_difference_error: float
    checked: str
    jvp_relative_error: float
    adjoint_error: float
    passed: bool
    details: str = ""
