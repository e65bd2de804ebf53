from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from pegboard.host import HUGE, host_zeros
from pegboard.types import KVCache, KVLayout


def resident_kb() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1])


@pytest.mark.parametrize("huge", [False, True])
@pytest.mark.parametrize(("shape", "dtype"), [((3, 5), torch.bfloat16), ((7,), torch.float32), ((0, 4), torch.int8)])
def test_zeros_of_any_shape(shape: tuple[int, ...], dtype: torch.dtype, huge: bool) -> None:
    zeros = host_zeros(shape, dtype, huge=huge)
    assert zeros.shape == shape and zeros.dtype is dtype and zeros.is_contiguous()
    assert not zeros.any()
    zeros += 1
    assert bool((zeros == 1).all())


def test_huge_memory_begins_at_a_huge_page() -> None:
    assert host_zeros((10,), torch.uint8, huge=True).data_ptr() % HUGE == 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_cache_takes_memory_as_it_is_written() -> None:
    before = resident_kb()
    layout = KVLayout(16, 2, 4, 64, "float32", "PHSD")
    cache = KVCache.allocate(layout, 2048, torch.device("cpu"))  # 128 MiB
    assert sum(t.nbytes for t in (*cache.k, *cache.v)) == 128 << 20
    assert resident_kb() - before < 16 << 10
    cache.k[0].fill_(1)
    assert resident_kb() - before >= 31 << 10
