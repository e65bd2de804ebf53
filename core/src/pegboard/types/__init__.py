"""Value types that cross rooms. Each is passed as an argument; none is reachable through a module-level variable.

Shapes: T tokens of a ragged batch laid end to end, N sequences, H hidden size, L layers, P pages, S slots of a page.
Token-major layout everywhere: a training batch and a serving step are the same flat `[T]`, told apart only by the attention plan.
"""

from __future__ import annotations

from pegboard.types.attention import AttentionInputs, AttentionPlan, AttentionSpec, HeadNorms
from pegboard.types.cache import CacheKind, CachePlan, CacheSpec, KVCache, KVLayout
from pegboard.types.forward import EmbeddingSpan, ForwardContext, ParallelRule, ParallelStyle
from pegboard.types.serving import GrammarSpec, Message, SamplingParams, StepPlan, StepResult
from pegboard.types.training import Batch, Example, LossOutput, Row

__all__ = [
    "CacheKind",
    "CacheSpec",
    "KVLayout",
    "KVCache",
    "CachePlan",
    "AttentionSpec",
    "HeadNorms",
    "AttentionInputs",
    "AttentionPlan",
    "EmbeddingSpan",
    "ForwardContext",
    "ParallelStyle",
    "ParallelRule",
    "Row",
    "Example",
    "Batch",
    "LossOutput",
    "Message",
    "GrammarSpec",
    "SamplingParams",
    "StepPlan",
    "StepResult",
]
