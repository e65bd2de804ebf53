"""Mixtures of experts: routing order, grouped products, and the sum over the experts of a token."""

from pegboard_triton.moe.catalogue import variants
from pegboard_triton.moe.ops import moe, replacements

__all__ = ["moe", "replacements", "variants"]
