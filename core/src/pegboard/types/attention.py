"""What an attention layer computes, and over which batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """What one attention layer computes; constant over the life of the model.

    layer: index of the layer, which is also the index of its cache tensors.
    num_heads, num_kv_heads, head_dim: local to this shard; num_heads % num_kv_heads == 0.
    scale: factor on q·k, usually head_dim ** -0.5.
    window: a query sees itself and the `window - 1` tokens before it; None for all.
    softcap: logits become softcap * tanh(logits / softcap); None for none.
    group: index of the cache group whose plan this layer uses (layers with the same cache needs share a group).
    causal: a token sees only itself and what comes before it.
    """

    layer: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    window: int | None = None
    softcap: float | None = None
    group: int = 0
    causal: bool = True


@dataclass(frozen=True, slots=True)
class HeadNorms:
    """Norms over each head of queries and keys, before they are turned: x / sqrt(mean(x^2) + eps) * (offset + weight).

    q, k: [head_dim] weights. offset: added to them, 0 or 1.
    """

    q: Tensor
    k: Tensor
    eps: float
    offset: float = 0.0


@dataclass(slots=True)
class AttentionInputs:
    """What a plan is made from: the shape of one ragged batch.

    Host values are the truth (no device sync is needed to plan); a backend copies what it needs to the device.
    query_lens: [N] new tokens of each sequence, so T = sum(query_lens); a list or an int32 numpy array, as seq_lens is.
    seq_lens: [N] tokens of each sequence after this step (cached + new); equal to query_lens in training.
    block_table: rows of page numbers, page j of a row holds tokens j * page_size …: [N] lists, or an int32 host tensor [S, W] of
    which only the first pages of a row count, as many as its tokens need; None without a cache.
    table_rows: [N] the row of block_table of each sequence, int32 where it is an array; None when row i is sequence i's.
    slot_mapping: [T] position of each new token in the cache, page * page_size + offset; None without a cache. A token whose
    position lies in page 0 while one of its sequence's pages covers it is in the cache already: its key is read from there.
    num_decodes: the first `num_decodes` sequences have one new token each.
    pad_to, pad_pages: tokens of a static (captured) batch, and pages of each sequence; None for a batch planned for itself.
    pad_queries: most new tokens of a sequence of a static batch, at most the backend's `static_queries`.
    device_table: where block_table is a tensor, the same on the device, int32 and contiguous, whose last row is no sequence's and holds
    page 0 alone; whoever keeps it there changes it in place, before the step that needs the change, so that a plan may read from it
    for as long as it lives. None: a plan copies what it needs.
    apart: sequences that somebody else attends for. Their keys and values are written; their rows of the result may hold anything.
    """

    query_lens: Sequence[int]
    seq_lens: Sequence[int]
    block_table: Sequence[Sequence[int]] | Tensor | None = None
    slot_mapping: Tensor | None = None
    num_decodes: int = 0
    pad_to: int | None = None
    pad_pages: int | None = None
    table_rows: Sequence[int] | None = None
    device_table: Tensor | None = None
    pad_queries: int = 1
    apart: Sequence[int] = ()

    @property
    def num_tokens(self) -> int:
        """T, new tokens of the whole batch."""
        return int(sum(self.query_lens))

    def pages(self, index: int, page_size: int) -> list[int]:
        """Return the pages that hold the tokens of sequence `index`."""
        if self.block_table is None:
            raise ValueError("a batch without a cache has no pages")
        row = self.block_table[index if self.table_rows is None else int(self.table_rows[index])]
        used = row[: -(-int(self.seq_lens[index]) // page_size)]
        return used.tolist() if hasattr(used, "tolist") else list(used)


class AttentionPlan(Protocol):
    """Opaque to models: whatever a backend needs to attend over one batch, made once and used by every layer."""

    def update_(self, inputs: AttentionInputs) -> None:
        """Refill the plan's buffers in place for another batch of the same static shape (captured graphs stay valid)."""
