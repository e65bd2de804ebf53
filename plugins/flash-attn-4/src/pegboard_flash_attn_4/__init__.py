"""FlashAttention 4 behind Pegboard's attention interface."""
