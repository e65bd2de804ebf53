"""What FlashInfer is told of a batch: once a batch and kind of layer, from values on the host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pegboard.errors import PluginError
from pegboard.types import AttentionInputs, AttentionSpec, KVLayout

Workspace = Callable[[torch.device], Tensor]
"""Gives the scratch memory of a device, [bytes] uint8, which all plans share: it is written and read within one launch."""


class _Plan:
    """Wrappers, FlashInfer's word for a planned batch, by what differs between layers."""

    def __init__(self, device: torch.device, workspace: Workspace) -> None:
        self._device, self._workspace = device, workspace
        self._wrappers: dict[tuple[Any, ...], Any] = {}

    def _wrapper(self, kind: str, batch: Sequence[Any], spec: AttentionSpec, dtype: torch.dtype, *sizes: int) -> Any:
        """Return the wrapper for such layers. kind: "Ragged" or "Paged". batch: what `plan` takes first. sizes: what it takes behind the
        width of heads.
        """
        key = (spec.num_heads, spec.num_kv_heads, spec.head_dim, spec.scale, spec.window, spec.softcap, dtype)
        if key not in self._wrappers:
            wrapper = _library(kind)(self._workspace(self._device), "NHD")
            wrapper.plan(
                *batch,
                spec.num_heads,
                spec.num_kv_heads,
                spec.head_dim,
                *sizes,
                causal=True,
                sm_scale=spec.scale,
                # The query itself is not counted.
                window_left=-1 if spec.window is None else spec.window - 1,
                logits_soft_cap=spec.softcap,
                q_data_type=dtype,
                kv_data_type=dtype,
            )
            self._wrappers[key] = wrapper
        return self._wrappers[key]


class WholePlan(_Plan):
    """Whole sequences without a cache. starts: [N + 1] int32 on the host."""

    def __init__(self, inputs: AttentionInputs, device: torch.device, workspace: Workspace) -> None:
        super().__init__(device, workspace)
        self.update_(inputs)

    def update_(self, inputs: AttentionInputs) -> None:
        """Plan another batch. Not for captured graphs."""
        self.starts = _starts(inputs.query_lens)
        self._wrappers.clear()

    def attend(self, q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec) -> Tensor:
        """[T, heads, D] -> [T, heads, D]."""
        wrapper = self._wrapper("Ragged", (self.starts, self.starts), spec, q.dtype)
        out: Tensor = wrapper.run(q, k, v)
        return out


class PagedPlan(_Plan):
    """Sequences over a paged cache.

    starts: [N + 1], page_starts: [N + 1], pages: those of all sequences, last: [N] tokens in the last page of each; int32 on the host.
    slots: [T] int64 on the device.
    """

    def __init__(self, inputs: AttentionInputs, device: torch.device, layout: KVLayout, workspace: Workspace) -> None:
        super().__init__(device, workspace)
        self.layout = layout
        self.update_(inputs)

    def update_(self, inputs: AttentionInputs) -> None:
        """Plan another batch. Not for captured graphs."""
        if inputs.block_table is None or inputs.slot_mapping is None:
            raise ValueError("a batch over a cache has a block table and a slot mapping")
        size = self.layout.page_size
        used = [inputs.pages(index, size) for index in range(len(inputs.seq_lens))]
        self.starts, self.page_starts = _starts(inputs.query_lens), _starts([len(pages) for pages in used])
        self.pages = torch.tensor([page for pages in used for page in pages], dtype=torch.int32)
        lens = [int(length) for length in inputs.seq_lens]
        self.last = torch.tensor([(length - 1) % size + 1 if length else 0 for length in lens], dtype=torch.int32)
        self.slots = inputs.slot_mapping.to(self._device, torch.int64, non_blocking=True)
        self._wrappers.clear()

    def write(self, k: Tensor, v: Tensor, cells: tuple[Tensor, Tensor]) -> None:
        """Put k and v, [T, kv_heads, D], at the slots of a layer's cache."""
        for new, old in zip((k, v), cells, strict=True):
            old.flatten(0, 1).index_copy_(0, self.slots, new.to(old.dtype))

    def attend(self, q: Tensor, cells: tuple[Tensor, Tensor], spec: AttentionSpec) -> Tensor:
        """[T, heads, D] -> [T, heads, D], the new keys and values being in the cache."""
        batch = (self.starts, self.page_starts, self.pages, self.last)
        # Also for decodes: with rows of one token it computes all heads that share a key head as one tile.
        wrapper = self._wrapper("Paged", batch, spec, q.dtype, self.layout.page_size)
        out: Tensor = wrapper.run(q, cells)
        return out


def _library(kind: str) -> Any:
    """Return the library's wrapper of a kind. Raises PluginError where it cannot be imported."""
    try:
        import flashinfer
    except ImportError as error:
        raise PluginError(
            f"flashinfer-python cannot be imported: {error}",
            fix="pip install 'pegboard-flashinfer[kernels]', for the torch that is here",
        ) from error
    return getattr(flashinfer, f"BatchPrefillWith{kind}KVCacheWrapper")


def _starts(sizes: Sequence[int]) -> Tensor:
    """[N] -> [N + 1] int32: sums of what comes before."""
    return torch.tensor([0, *(int(size) for size in sizes)]).cumsum(0, dtype=torch.int32)
