"""The attention backend: which plan a batch gets, and what cannot be done."""

from __future__ import annotations

import torch
from torch import Tensor

from pegboard.interfaces.attention import AttentionBackend
from pegboard.types import AttentionInputs, AttentionSpec, KVCache, KVLayout
from pegboard_sdpa.paged import PagedPlan
from pegboard_sdpa.static import StaticDecodePlan
from pegboard_sdpa.unpaged import UnpagedPlan

Plan = UnpagedPlan | PagedPlan | StaticDecodePlan


class SdpaAttention(AttentionBackend):
    """Attention by torch's scaled_dot_product_attention, on any device; by plain products where logits have a soft cap."""

    graph_safe = "decode"
    static_queries = 8

    def unsupported(self, spec: AttentionSpec, dtype: torch.dtype) -> str | None:
        if not spec.causal:
            return "only causal attention is planned for"
        return None

    def layout(
        self, spec: AttentionSpec, num_layers: int, page_size: int, dtype: torch.dtype, shard: tuple[int, int] = (0, 1)
    ) -> KVLayout:
        name = str(dtype).removeprefix("torch.")
        return KVLayout(page_size, num_layers, spec.num_kv_heads, spec.head_dim, name, "PSHD", shard)

    def plan(self, inputs: AttentionInputs, device: torch.device, layout: KVLayout | None) -> Plan:
        if layout is None:
            return UnpagedPlan(inputs, device)
        if inputs.pad_to is not None:
            return StaticDecodePlan(inputs, device, layout)
        return PagedPlan(inputs, device, layout)

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        spec: AttentionSpec,
        plan: Plan,  # type: ignore[override]  # a plan is opaque to all but the backend that made it
        cache: KVCache | None,
    ) -> Tensor:
        return plan.attend(q, k, v, spec, cache)
