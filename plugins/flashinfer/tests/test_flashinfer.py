"""The library's two wrappers replaced by float64 sums of their signatures, over ragged keys and over pages."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from pegboard import reference
from pegboard.errors import ConfigError, PluginError
from pegboard.types import AttentionInputs, AttentionSpec, KVLayout
from pegboard_flashinfer.backend import FlashInferAttention
from pegboard_flashinfer.plugin import SPEC
from pegboard_flashinfer.probe import probe
from pegboard_sdk.conformance import AttentionSuite

PLANNED: list[dict[str, Any]] = []


class _Wrapper:
    """What both have in common: scratch memory, the order of a cache's axes, and the options of a plan."""

    def __init__(self, float_workspace_buffer: Tensor, kv_layout: str = "NHD") -> None:
        assert float_workspace_buffer.dtype == torch.uint8 and len(float_workspace_buffer) >= 1 << 20
        assert kv_layout == "NHD"

    def _options(
        self,
        *sizes: int,
        causal: bool = False,
        sm_scale: float | None = None,
        window_left: int = -1,
        logits_soft_cap: float | None = None,
        q_data_type: torch.dtype = torch.float16,
        kv_data_type: torch.dtype | None = None,
    ) -> None:
        heads, kv_heads, dim = sizes
        assert causal and sm_scale is not None
        PLANNED.append({"window_left": window_left, "logits_soft_cap": logits_soft_cap})
        self._dtypes = q_data_type, kv_data_type
        window = None if window_left < 0 else window_left + 1
        self._spec = AttentionSpec(0, heads, kv_heads, dim, sm_scale, window=window, softcap=logits_soft_cap)


class Ragged(_Wrapper):
    def plan(
        self,
        qo_indptr: Tensor,
        kv_indptr: Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim_qk: int,
        **options: Any,
    ) -> None:
        assert qo_indptr.dtype == kv_indptr.dtype == torch.int32 and qo_indptr.device.type == "cpu"
        assert torch.equal(qo_indptr, kv_indptr)
        self._lens = qo_indptr.diff().tolist()
        self._options(num_qo_heads, num_kv_heads, head_dim_qk, **options)

    def run(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        assert self._dtypes == (q.dtype, k.dtype)
        return reference.ragged_attention(q, k, v, self._spec, self._lens).to(q.dtype)


class Paged(_Wrapper):
    def plan(
        self,
        qo_indptr: Tensor,
        paged_kv_indptr: Tensor,
        paged_kv_indices: Tensor,
        paged_kv_last_page_len: Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim_qk: int,
        page_size: int,
        **options: Any,
    ) -> None:
        arrays = qo_indptr, paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len
        assert all(x.dtype == torch.int32 and x.device.type == "cpu" for x in arrays)
        assert ((paged_kv_last_page_len >= 1) & (paged_kv_last_page_len <= page_size)).all()
        self._new = qo_indptr.diff().tolist()
        self._pages = paged_kv_indices.long().split(paged_kv_indptr.diff().tolist())
        counts = (paged_kv_indptr.diff() - 1) * page_size + paged_kv_last_page_len
        self._counts, self._size = counts.tolist(), page_size
        self._options(num_qo_heads, num_kv_heads, head_dim_qk, **options)

    def run(self, q: Tensor, paged_kv_cache: tuple[Tensor, Tensor]) -> Tensor:
        k, v = paged_kv_cache
        assert self._dtypes == (q.dtype, k.dtype) and k.shape[1] == self._size
        parts = []
        for rows, pages, count in zip(q.split(self._new), self._pages, self._counts, strict=True):
            keys, values = (x[pages].flatten(0, 1)[:count] for x in (k, v))
            # The last of so many tokens are asked for.
            filled = torch.cat([torch.zeros(count - len(rows), *rows.shape[1:], dtype=q.dtype), rows])
            parts.append(reference.ragged_attention(filled, keys, values, self._spec, [count])[count - len(rows) :])
        return torch.cat(parts).to(q.dtype)


@pytest.fixture(autouse=True)
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The library; the real one on a GPU."""
    if not request.node.get_closest_marker("gpu"):
        PLANNED.clear()
        module = ModuleType("flashinfer")
        module.BatchPrefillWithRaggedKVCacheWrapper = Ragged  # type: ignore[attr-defined]
        module.BatchPrefillWithPagedKVCacheWrapper = Paged  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "flashinfer", module)
    yield


class TestFlashInfer(AttentionSuite):
    spec = SPEC
    dtype = torch.bfloat16
    tolerance = 2e-2
    head_dim = 64
    bidirectional = False
    gradients = False


@pytest.mark.gpu
class TestOnGpu(TestFlashInfer):
    device = "cuda"
    num_heads = 16
    head_dim = 128
    page_size = 16


def test_a_batch_is_planned_once_for_alike_layers() -> None:
    backend, lens = FlashInferAttention(), [5, 3]
    q = torch.randn(8, 6, 64, dtype=torch.bfloat16)
    plan = backend.plan(AttentionInputs(lens, lens), q.device, None)
    for layer, window, softcap in ((0, None, None), (1, 4, None), (2, None, None), (3, 1, 30.0), (4, 4, None)):
        spec = AttentionSpec(layer, 2, 2, 64, 0.25, window=window, softcap=softcap)
        backend.attend(q[:, :2], q[:, 2:4], q[:, 4:], spec, plan, None)
    assert PLANNED == [
        {"window_left": -1, "logits_soft_cap": None},
        {"window_left": 3, "logits_soft_cap": None},
        {"window_left": 0, "logits_soft_cap": 30.0},
    ]


@pytest.mark.parametrize(
    ("changes", "dtype", "reason"),
    [
        ({}, torch.float32, "torch.float32 is none of"),
        ({"head_dim": 80}, torch.bfloat16, "none of 64, 128, 256"),
        ({"causal": False}, torch.bfloat16, "only causal"),
    ],
)
def test_what_it_lacks_is_refused(changes: dict[str, Any], dtype: torch.dtype, reason: str) -> None:
    layer = {"layer": 0, "num_heads": 4, "num_kv_heads": 2, "head_dim": 128, "scale": 0.1} | changes
    assert reason in (FlashInferAttention().unsupported(AttentionSpec(**layer), dtype) or "")


def test_a_cache_of_codes_is_refused() -> None:
    with pytest.raises(ConfigError, match="is given a cache of int8"):
        FlashInferAttention().layout(AttentionSpec(0, 4, 2, 128, 0.1), 2, 16, torch.int8)


def test_mistakes_of_a_caller() -> None:
    backend, spec = FlashInferAttention(), AttentionSpec(0, 2, 2, 64, 0.25)
    x = torch.zeros(2, 2, 64, dtype=torch.bfloat16)
    layout = KVLayout(4, 1, 2, 64, "bfloat16")
    with pytest.raises(ValueError, match="a block table and a slot mapping"):
        backend.plan(AttentionInputs([2], [2]), x.device, layout)
    plan = backend.plan(AttentionInputs([2], [2], [[1]], torch.tensor([4, 5])), x.device, layout)
    with pytest.raises(ValueError, match="there is none"):
        backend.attend(x, x, x, spec, plan, None)
    with pytest.raises(ConfigError, match="no gradients"):
        backend.attend(x.clone().requires_grad_(), x, x, spec, plan, None)


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flashinfer", None)
    backend, x = FlashInferAttention(), torch.zeros(2, 2, 64, dtype=torch.bfloat16)
    plan = backend.plan(AttentionInputs([2], [2]), x.device, None)
    with pytest.raises(PluginError, match="flashinfer-python cannot be imported") as raised:
        backend.attend(x, x, x, AttentionSpec(0, 2, 2, 64, 0.1), plan, None)
    assert raised.value.fix is not None and "pegboard-flashinfer[kernels]" in raised.value.fix


def test_the_probe_gives_a_reason() -> None:
    """Here the library is missing, or a GPU for it, or it is there."""
    found = probe()
    assert "flashinfer-python" in found.reason and found.usable == found.present
