"""What attention backends over a library's variable-length function have in common: whole sequences laid end to end, no cache."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from pegboard.errors import ConfigError, PluginError
from pegboard.interfaces.attention import AttentionBackend
from pegboard.types import AttentionInputs, AttentionSpec, KVCache, KVLayout


class PackedPlan:
    """Sequences laid end to end.

    cu_seqlens: [N + 1] int32 on the device, the first row of each and the end. lens: of each. longest: the greatest of them.
    """

    def __init__(self, inputs: AttentionInputs, device: torch.device) -> None:
        self._device = device
        self.update_(inputs)

    def update_(self, inputs: AttentionInputs) -> None:
        """Plan another batch. Not for captured graphs: shapes change."""
        self.lens = [int(length) for length in inputs.query_lens]
        self.longest = max(self.lens, default=0)
        starts = torch.zeros(len(self.lens) + 1, dtype=torch.int32, pin_memory=self._device.type != "cpu")
        starts[1:] = torch.tensor(self.lens, dtype=torch.int32).cumsum(0)
        self.cu_seqlens = starts.to(self._device, non_blocking=True)


class PackedAttention(AttentionBackend):
    """Causal attention of whole sequences, without gradients. label: the plugin's name in messages. widest: head that is computed."""

    paged = False
    label: ClassVar[str]
    widest: ClassVar[int]

    def dtypes(self) -> tuple[torch.dtype, ...]:
        """Return those that are computed."""
        return torch.bfloat16, torch.float16

    def unsupported(self, spec: AttentionSpec, dtype: torch.dtype) -> str | None:
        if not spec.causal:
            return "only causal attention is computed"
        if dtype not in (known := self.dtypes()):
            return f"{dtype} is none of {' and '.join(str(one).removeprefix('torch.') for one in known)}"
        if spec.head_dim % 8 or spec.head_dim > self.widest:
            return f"heads of {spec.head_dim} are no multiple of 8 up to {self.widest}"
        return None

    @abstractmethod
    def packed(self, q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, plan: PackedPlan) -> Tensor:
        """Attend, as `attend` without a cache. There is at least one row; rows of q, k and v have a last stride of 1."""

    def layout(
        self, spec: AttentionSpec, num_layers: int, page_size: int, dtype: torch.dtype, shard: tuple[int, int] = (0, 1)
    ) -> KVLayout:
        raise self._without_cache()

    def plan(self, inputs: AttentionInputs, device: torch.device, layout: KVLayout | None) -> PackedPlan:
        if layout is not None:
            raise self._without_cache()
        return PackedPlan(inputs, device)

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        spec: AttentionSpec,
        plan: PackedPlan,  # type: ignore[override]  # a plan is opaque to all but the backend that made it
        cache: KVCache | None,
    ) -> Tensor:
        if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
            raise ConfigError(
                f"attention {self.label!r} computes no gradients here, and q, k or v of this layer require one",
                fix="leave `attention` to `auto` where you train, or run under torch.no_grad()",
            )
        if not len(q):
            return torch.empty_like(q)
        q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
        return self.packed(q, k, v, spec, plan)

    def _without_cache(self) -> PluginError:
        return PluginError(
            f"attention {self.label!r} computes whole sequences and has no cache",
            fix=f"put one that has before it, as in `attention: NAME+{self.label}`, or leave the choice to `auto`",
        )
