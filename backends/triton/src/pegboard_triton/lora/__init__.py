"""What adapters in slots add to layers: the rows of one batch use different ones."""

from pegboard_triton.lora.catalogue import variants
from pegboard_triton.lora.ops import replacements

__all__ = ["replacements", "variants"]
