"""What a forward pass needs beside its hidden states, and how parameters split over processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from pegboard.types.attention import AttentionPlan
    from pegboard.types.cache import KVCache


@dataclass(frozen=True, slots=True)
class EmbeddingSpan:
    """Rows of the input that are embeddings from elsewhere (an image, say): rows start … start + len(embeds) of the flat batch."""

    start: int
    embeds: Tensor


@dataclass(slots=True)
class ForwardContext:
    """Everything that a forward pass needs beside its hidden states; every layer is called as `layer(x, ctx)`.

    positions: [T] int64, or [3, T] for families with three-axis rotary positions.
    plans: one attention plan per cache group.
    cache: the paged cache, or None (training, scoring).
    adapter_slots: [T] int64 on the host, which loaded adapter each row uses (-1: none); None when all rows use the model as built.
    adapter_rows: [T] int64, the same where the model is. It alone is there in work that is captured, which serves other rows later.
    adapter_plans: what the owner of the slots made of them, by owner, so that it is made once a pass and not in every layer.
    logits_indices: [M] int64 rows whose logits are wanted; None for all.
    spans: rows whose input embeddings come from outside.
    extents: [T] int64, for rotary tables whose angles depend on it: how many tokens each row's sequence has, or may come to have;
        None: as many as the greatest position says.
    rope: (cos, sin) pairs, each [T, 1, rotary_dim] and sin with its first half negated, one per rotary table of the model;
        set by the model before its first layer.
    """

    positions: Tensor
    plans: Sequence[AttentionPlan]
    cache: KVCache | None = None
    adapter_slots: Tensor | None = None
    adapter_rows: Tensor | None = None
    logits_indices: Tensor | None = None
    spans: Sequence[EmbeddingSpan] = ()
    extents: Tensor | None = None
    rope: Sequence[tuple[Tensor, Tensor]] = ()
    adapter_plans: dict[Any, Any] = field(default_factory=dict)


ParallelStyle = Literal["column", "row", "vocab", "expert", "replicate"]


@dataclass(frozen=True, slots=True)
class ParallelRule:
    """How parameters whose name matches `pattern` (fnmatch) split over a tensor-parallel group.

    style: "expert" is not about that group: matching parameters, of whole experts, may go to the ranks of an expert-parallel one. A
        tensor-parallel group passes the rule by, so that a plan can say both of the same parameters.
    unit: rows (or columns) that must stay together, such as head_dim for attention projections.
    parts: sizes of the blocks of rows that follow one another in a parameter, each of which splits by itself (q, k and v of one
        fused layer); empty for one block. Who cannot split so must refuse the rule by name.
    """

    pattern: str
    style: ParallelStyle
    unit: int = 1
    parts: tuple[int, ...] = ()
