"""Attention by FlashInfer (arXiv:2501.01005): over a paged cache, and of whole sequences."""

from __future__ import annotations

import torch
from torch import Tensor

from pegboard.errors import ConfigError
from pegboard.interfaces.attention import AttentionBackend
from pegboard.types import AttentionInputs, AttentionSpec, KVCache, KVLayout
from pegboard_flashinfer.plans import PagedPlan, WholePlan

Plan = WholePlan | PagedPlan

_WIDTHS = (64, 128, 256)
_DTYPES = (torch.bfloat16, torch.float16)
_WORKSPACE = 128 << 20
"""Bytes of scratch memory that its manual recommends."""


class FlashInferAttention(AttentionBackend):
    """Decodes and prompts over pages, and prompts without a cache; no gradients.

    Batches are planned on the host, so that none is captured in a graph.
    """

    def __init__(self) -> None:
        self._workspaces: dict[torch.device, Tensor] = {}

    def unsupported(self, spec: AttentionSpec, dtype: torch.dtype) -> str | None:
        if not spec.causal:
            return "only causal attention is computed"
        if dtype not in _DTYPES:
            return f"{dtype} is none of bfloat16 and float16"
        if spec.head_dim not in _WIDTHS:
            return f"heads of {spec.head_dim} are none of {', '.join(map(str, _WIDTHS))}"
        return None

    def layout(
        self, spec: AttentionSpec, num_layers: int, page_size: int, dtype: torch.dtype, shard: tuple[int, int] = (0, 1)
    ) -> KVLayout:
        name = str(dtype).removeprefix("torch.")
        if dtype not in _DTYPES:
            raise ConfigError(
                f"attention 'flashinfer' is given a cache of {name}; it computes over one of bfloat16 or float16",
                fix="leave the cache's dtype to `auto`, or use `attention: triton`, which reads codes too",
            )
        return KVLayout(page_size, num_layers, spec.num_kv_heads, spec.head_dim, name, "PSHD", shard)

    def plan(self, inputs: AttentionInputs, device: torch.device, layout: KVLayout | None) -> Plan:
        if layout is None:
            return WholePlan(inputs, device, self._workspace)
        return PagedPlan(inputs, device, layout, self._workspace)

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        spec: AttentionSpec,
        plan: Plan,  # type: ignore[override]  # a plan is opaque to all but the backend that made it
        cache: KVCache | None,
    ) -> Tensor:
        if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
            raise ConfigError(
                "attention 'flashinfer' computes no gradients, and q, k or v of this layer require one",
                fix="train with `attention: sdpa`, or run under torch.no_grad()",
            )
        if not len(q):
            return torch.empty_like(q)
        q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
        if isinstance(plan, WholePlan):
            return plan.attend(q, k, v, spec)
        if cache is None:
            raise ValueError("a plan of a layout was made for a batch over a cache, and there is none")
        cells = cache.k[spec.layer], cache.v[spec.layer]
        plan.write(k, v, cells)
        return plan.attend(q, cells, spec)

    def _workspace(self, device: torch.device) -> Tensor:
        if device not in self._workspaces:
            self._workspaces[device] = torch.empty(_WORKSPACE, dtype=torch.uint8, device=device)
        return self._workspaces[device]
