"""Mixtures of experts: routing order, grouped products, and the sum over the experts of a token."""

from pegboard_triton.moe.catalogue import variants

__all__ = ["variants"]
