"""Products with weights of 8 or 4 bits, in place of the ops that the distributions of such weights register."""

from pegboard_triton.quantized.catalogue import variants
from pegboard_triton.quantized.ops import replacements

__all__ = ["replacements", "variants"]
