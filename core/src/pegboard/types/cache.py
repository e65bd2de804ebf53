"""What layers remember of past tokens: the paged cache, its layout, and what an executor allocates for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch
    from torch import Tensor

CacheKind = Literal["full", "sliding", "latent", "state"]


@dataclass(frozen=True, slots=True)
class CacheSpec:
    """What a layer must remember of past tokens.

    kind: "full" keeps all tokens, "sliding" the last `window`, "latent" one compressed row a token, "state" a fixed-size state.
    """

    kind: CacheKind
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype
    window: int | None = None


@dataclass(frozen=True, slots=True)
class KVLayout:
    """Layout of a paged cache, a value that two parties compare before pages change hands.

    The tensors of layer i are `k[i]`, `v[i]` of shape given by `order`:
    "PSHD" is [num_pages, page_size, num_kv_heads, head_dim], "PHSD" is [num_pages, num_kv_heads, page_size, head_dim].
    dtype is torch's name without the prefix ("bfloat16"); shard = (rank, world) of the heads.
    Of dtype "int8" and "float8_e4m3fn" each row of head_dim values has a float32 scale, by which they are multiplied: `k_scale[i]`,
    `v_scale[i]`, of the same shape without head_dim. The row's greatest magnitude is 127, or 448.
    """

    page_size: int
    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: str
    order: str = "PSHD"
    shard: tuple[int, int] = (0, 1)

    @property
    def page_bytes(self) -> int:
        """Bytes of one page over all layers, keys and values together."""
        import torch

        item: int = getattr(torch, self.dtype).itemsize
        row = self.head_dim * item + (4 if self.scaled else 0)
        return 2 * self.num_layers * self.page_size * self.num_kv_heads * row

    @property
    def scaled(self) -> bool:
        """Whether each row of values has a scale."""
        return self.dtype in ("int8", "float8_e4m3fn")

    def shape(self, num_pages: int) -> tuple[int, int, int, int]:
        """Return the shape of a layer's keys, or values, of so many pages."""
        sizes = {"P": num_pages, "S": self.page_size, "H": self.num_kv_heads, "D": self.head_dim}
        pages, outer, inner, dim = (sizes[axis] for axis in self.order)
        return pages, outer, inner, dim


@dataclass(slots=True)
class KVCache:
    """Cache tensors, one per layer, all of `layout`. Owned by the runner; attention backends write into them in place.

    Page 0 is never handed out: padded rows of a captured graph write their keys there.
    k_scale, v_scale: where the layout is `scaled`, one float32 tensor a layer; None elsewhere.
    """

    layout: KVLayout
    k: list[Tensor]
    v: list[Tensor]
    k_scale: list[Tensor] | None = None
    v_scale: list[Tensor] | None = None

    @classmethod
    def allocate(cls, layout: KVLayout, num_pages: int, device: torch.device) -> KVCache:
        """Return a cache of zeros: a masked read of garbage that happens to be NaN would spread.

        On the host a page takes memory when it is first written.
        """
        import torch

        shape, dtype = layout.shape(num_pages), getattr(torch, layout.dtype)

        def tensors(shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
            if device.type == "cpu":
                from pegboard.host import host_zeros

                return [host_zeros(shape, dtype) for _ in range(layout.num_layers)]
            return [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layout.num_layers)]

        scales = [tensors(shape[:-1], torch.float32) if layout.scaled else None for _ in "kv"]
        return cls(layout, tensors(shape, dtype), tensors(shape, dtype), *scales)

    @property
    def num_pages(self) -> int:
        """Pages, the reserved page 0 included."""
        return self.k[0].shape[0]


@dataclass(frozen=True, slots=True)
class CachePlan:
    """What an executor allocates beside the weights.

    num_pages: pages of `layout`, the reserved page 0 included. num_slots: sequences at once. max_pages: pages of one sequence.
    max_adapters: adapters that may be loaded at once, beside the model; max_adapter_rank: the highest rank of any of them.
    graphs: whether decode steps may be captured, where platform and attention can.
    count_experts: whether the tokens of each expert of a mixture are counted.
    most_queries: most new tokens of a sequence in a step that is worth capturing; above 1 where proposed tokens are checked.
    rehearse: whether what the first steps ask of a device is made ready while weights are read (`Platform.rehearse`).
    """

    layout: KVLayout
    num_pages: int
    num_slots: int
    max_pages: int
    max_adapters: int = 0
    max_adapter_rank: int = 0
    graphs: bool = True
    count_experts: bool = False
    most_queries: int = 1
    rehearse: bool = False
