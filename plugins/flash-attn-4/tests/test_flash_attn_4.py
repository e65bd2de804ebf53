"""The library's function replaced by float64 sums of its signature, and what is given to it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from pegboard import reference
from pegboard.errors import PluginError
from pegboard.types import AttentionInputs, AttentionSpec
from pegboard_flash_attn_4.backend import FlashAttn4Attention
from pegboard_flash_attn_4.plugin import SPEC
from pegboard_flash_attn_4.probe import probe
from pegboard_sdk.conformance import AttentionSuite

CALLS: list[tuple[Any, float]] = []


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    qv: None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    min_seqlen_k: None = None,
    seqused_q: None = None,
    seqused_k: None = None,
    gather_kv_indices: None = None,
    page_table: None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int | None, int | None] = (None, None),
    learnable_sink: None = None,
    softcap: float = 0.0,
) -> tuple[Tensor, None]:
    """Causal attention as the library documents it: of a window, (keys to the left, to the right), None for all; a soft cap of 0 is none.

    The second of what it returns are the sums of the softmax, where they are asked for.
    """
    CALLS.append((window_size, softcap))
    assert cu_seqlens_q is not None and cu_seqlens_k is not None and torch.equal(cu_seqlens_q, cu_seqlens_k)
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    lens = cu_seqlens_q.diff().tolist()
    assert causal and max_seqlen_q == max_seqlen_k == max(lens) and int(cu_seqlens_q[-1]) == len(q)
    assert q.stride(-1) == k.stride(-1) == v.stride(-1) == 1
    left, right = window_size
    assert (left is None) == (right is None) and right in (None, 0) and softmax_scale is not None
    window = None if left is None else left + 1
    spec = AttentionSpec(0, q.shape[1], k.shape[1], q.shape[2], softmax_scale, window=window, softcap=softcap or None)
    return reference.ragged_attention(q, k, v, spec, lens).to(q.dtype), None


@pytest.fixture(autouse=True)
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The library; the real one on a GPU."""
    if not request.node.get_closest_marker("gpu"):
        CALLS.clear()
        package, module = ModuleType("flash_attn"), ModuleType("flash_attn.cute")
        module.flash_attn_varlen_func = flash_attn_varlen_func  # type: ignore[attr-defined]
        package.cute = module  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "flash_attn", package)
        monkeypatch.setitem(sys.modules, "flash_attn.cute", module)
    yield


class TestFlashAttn4(AttentionSuite):
    spec = SPEC
    dtype = torch.bfloat16
    tolerance = 2e-2
    bidirectional = False
    gradients = False
    paged = False


@pytest.mark.gpu
class TestOnGpu(TestFlashAttn4):
    device = "cuda"
    num_heads = 16
    head_dim = 128


def test_what_is_passed() -> None:
    backend, lens = FlashAttn4Attention(), [5, 0, 3]
    q = torch.randn(8, 6, 16, dtype=torch.bfloat16)
    plan = backend.plan(AttentionInputs(lens, lens), q.device, None)
    for window, softcap in ((None, None), (4, None), (1, 30.0)):
        spec = AttentionSpec(0, 2, 2, 16, 0.25, window=window, softcap=softcap)
        backend.attend(q[:, :2], q[:, 2:4], q[:, 4:], spec, plan, None)
    assert CALLS == [((None, None), 0.0), ((3, 0), 0.0), ((0, 0), 30.0)]


@pytest.mark.parametrize(
    ("changes", "dtype", "reason"),
    [
        ({}, torch.float32, "torch.float32 is none of"),
        ({"head_dim": 12}, torch.bfloat16, "no multiple of 8"),
        ({"head_dim": 256}, torch.bfloat16, "up to 128"),
        ({"causal": False}, torch.bfloat16, "only causal"),
    ],
)
def test_what_it_lacks_is_refused(changes: dict[str, Any], dtype: torch.dtype, reason: str) -> None:
    layer = {"layer": 0, "num_heads": 4, "num_kv_heads": 2, "head_dim": 128, "scale": 0.1} | changes
    assert reason in (FlashAttn4Attention().unsupported(AttentionSpec(**layer), dtype) or "")


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn.cute", None)
    backend, x = FlashAttn4Attention(), torch.zeros(2, 2, 64, dtype=torch.bfloat16)
    plan = backend.plan(AttentionInputs([2], [2]), x.device, None)
    with pytest.raises(PluginError, match="flash-attn-4 cannot be imported") as raised:
        backend.attend(x, x, x, AttentionSpec(0, 2, 2, 64, 0.1), plan, None)
    assert raised.value.fix is not None and "pegboard-flash-attn-4[kernels]" in raised.value.fix


def test_the_probe_gives_a_reason() -> None:
    """Here the library is missing, or a GPU for it, or it is there."""
    found = probe()
    assert "flash-attn-4" in found.reason and found.usable == found.present
