"""The attention oracle as a backend, so that a model's tests depend on no plugin."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pegboard import reference
from pegboard.interfaces.attention import AttentionBackend
from pegboard.reference.attention import token
from pegboard.types import AttentionInputs, AttentionSpec, KVCache, KVLayout


@dataclass(slots=True)
class ReferencePlan:
    """The batch as it was given."""

    inputs: AttentionInputs

    def update_(self, inputs: AttentionInputs) -> None:
        """Plan another batch."""
        self.inputs = inputs


class ReferenceAttention(AttentionBackend):
    """Computes whatever a spec may ask for, head by head in float64. Never inside a graph."""

    def unsupported(self, spec: AttentionSpec, dtype: torch.dtype) -> str | None:
        return None

    def layout(
        self, spec: AttentionSpec, num_layers: int, page_size: int, dtype: torch.dtype, shard: tuple[int, int] = (0, 1)
    ) -> KVLayout:
        name = str(dtype).removeprefix("torch.")
        return KVLayout(page_size, num_layers, spec.num_kv_heads, spec.head_dim, name, "PSHD", shard)

    def plan(self, inputs: AttentionInputs, device: torch.device, layout: KVLayout | None) -> ReferencePlan:
        return ReferencePlan(inputs)

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        spec: AttentionSpec,
        plan: ReferencePlan,  # type: ignore[override]  # a plan is opaque to all but the backend that made it
        cache: KVCache | None,
    ) -> Tensor:
        inputs = plan.inputs
        if cache is None:
            return reference.ragged_attention(q, k, v, spec, inputs.query_lens).to(q.dtype)
        write(k, v, spec.layer, inputs, cache)
        return reference.paged_attention(q, k, v, spec, inputs, cache).to(q.dtype)


def write(k: Tensor, v: Tensor, layer: int, inputs: AttentionInputs, cache: KVCache) -> None:
    """Put the new tokens' keys and values, [T, num_kv_heads, D], where the slot mapping says."""
    if inputs.slot_mapping is None:
        raise ValueError("a batch over a cache has a slot mapping")
    size = cache.layout.page_size
    for row, slot in enumerate(inputs.slot_mapping.tolist()):
        token(cache.k[layer], cache.layout, [slot // size], slot % size).copy_(k[row])
        token(cache.v[layer], cache.layout, [slot // size], slot % size).copy_(v[row])
