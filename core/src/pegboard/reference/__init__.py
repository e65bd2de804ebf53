"""Slow, obviously right forms of what layers compute: the oracles that conformance suites and tests compare with.

Everything is computed in float64, by definition rather than by trick, and is differentiable by autograd alone. Nothing here is
used to train or to serve.
"""

from pegboard.reference.attention import attention, paged_attention, ragged_attention
from pegboard.reference.loss import cross_entropy_sum, token_logps
from pegboard.reference.ops import OPS

__all__ = ["OPS", "attention", "cross_entropy_sum", "paged_attention", "ragged_attention", "token_logps"]
