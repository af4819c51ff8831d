"""Block Lanczos quadrature: a spectrum estimator for sdkeras, and the pattern for one of your own."""

from sdkeras_block_slq.estimator import BlockLanczosQuadrature

__all__ = ["BlockLanczosQuadrature"]
