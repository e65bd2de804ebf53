from __future__ import annotations

import pytest
import torch

from pegboard.types import KVCache, KVLayout


@pytest.mark.parametrize("order", ["PSHD", "PHSD"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_a_cache_has_the_bytes_that_its_layout_counts(order: str, dtype: str) -> None:
    layout = KVLayout(page_size=4, num_layers=3, num_kv_heads=2, head_dim=8, dtype=dtype, order=order)
    cache = KVCache.allocate(layout, 5, torch.device("cpu"))
    tensors = [*cache.k, *cache.v, *(cache.k_scale or []), *(cache.v_scale or [])]
    assert sum(t.numel() * t.element_size() for t in tensors) == 5 * layout.page_bytes
    assert cache.num_pages == 5
    assert all(tensor.shape == layout.shape(5) and not tensor.any() for tensor in cache.k + cache.v)
    assert layout.shape(5) == ((5, 4, 2, 8) if order == "PSHD" else (5, 2, 4, 8))


def test_only_int8_has_scales() -> None:
    plain = KVCache.allocate(KVLayout(4, 3, 2, 8, "float16"), 5, torch.device("cpu"))
    assert plain.k_scale is None and plain.v_scale is None
    scaled = KVCache.allocate(KVLayout(4, 3, 2, 8, "int8", "PHSD"), 5, torch.device("cpu"))
    assert scaled.k_scale is not None and scaled.v_scale is not None
    assert [t.shape for t in (*scaled.k_scale, *scaled.v_scale)] == [(5, 2, 4)] * 6
    assert all(t.dtype == torch.float32 for t in (*scaled.k_scale, *scaled.v_scale))
