"""Kind `attention`: attention over a ragged batch, with or without a paged cache."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pegboard.types import AttentionInputs, AttentionPlan, AttentionSpec, HeadNorms, KVCache, KVLayout

GraphSafe = Literal["none", "decode", "all"]


class AttentionBackend(ABC):
    """Attention for all layers of a model. Stateless: what belongs to a batch is in its plan, what belongs to a model in its cache.

    graph_safe: which plans may be used inside a captured graph: none, those of pure decode batches, or all.
    static_pages: whether what a static plan costs depends on `pad_pages`; False where it reads what each sequence has.
    static_queries: most new tokens of a sequence of a static plan.
    paged: whether it computes over a cache; False for one that computes whole sequences alone, which `pegboard.fresh` puts beside one that
    does.
    """

    graph_safe: ClassVar[GraphSafe] = "none"
    static_pages: ClassVar[bool] = True
    static_queries: ClassVar[int] = 1
    paged: ClassVar[bool] = True

    @abstractmethod
    def unsupported(self, spec: AttentionSpec, dtype: torch.dtype) -> str | None:
        """Return why such a layer cannot be computed here, or None when it can."""

    @abstractmethod
    def layout(
        self, spec: AttentionSpec, num_layers: int, page_size: int, dtype: torch.dtype, shard: tuple[int, int] = (0, 1)
    ) -> KVLayout:
        """Return the layout that this backend wants for its paged cache."""

    @abstractmethod
    def plan(self, inputs: AttentionInputs, device: torch.device, layout: KVLayout | None) -> AttentionPlan:
        """Prepare one batch. `layout` is None when there is no cache (then inputs.block_table is None too)."""

    @abstractmethod
    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, plan: AttentionPlan, cache: KVCache | None
    ) -> Tensor:
        """Attend, and with a cache first write `k`, `v` at the plan's slots.

        q is [T, num_heads, head_dim]; k and v are [T, num_kv_heads, head_dim], positions already applied.
        Returns [T, num_heads, head_dim]. Differentiable in q, k and v when `cache` is None.
        """

    def attend_qkv(
        self,
        qkv: Tensor,
        cos: Tensor,
        sin: Tensor,
        norms: HeadNorms | None,
        spec: AttentionSpec,
        plan: AttentionPlan,
        cache: KVCache | None,
    ) -> Tensor | None:
        """Norm and turn queries and keys, then do what `attend` does; None, for any reason, where that is to be done step by step.

        qkv is [T, num_heads + 2 * num_kv_heads, head_dim], queries first, values last. cos and sin are as of the op `rotary`.
        norms: those of the layer, or None. Returns [T, num_heads, head_dim].
        """
        return None

    def attend_qkv_kept(
        self,
        qkv: Tensor,
        cos: Tensor,
        sin: Tensor,
        norms: HeadNorms | None,
        spec: AttentionSpec,
        plan: AttentionPlan,
        cache: KVCache | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
        """Do what `attend_qkv` does, and return beside its result q, k and v as `attend` takes them; None as there."""
        return None
