"""FlashAttention 3 behind Pegboard's attention interface."""
