from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import ClassVar

import pytest
import torch

from pegboard_cpu_kernels.library import ISAS, find
from pegboard_cpu_kernels.plugin import ATTENTION
from pegboard_sdk.conformance import AttentionSuite

LIBRARY = find().library
pytestmark = pytest.mark.skipif(LIBRARY is None, reason=f"no library: {find().reason}")


class Cpu(AttentionSuite):
    """isa: the instruction set to compute with; skipped where the processor lacks it."""

    spec = ATTENTION
    gradients = False
    isa: ClassVar[str] = ISAS[LIBRARY.peg_isa()] if LIBRARY else ""

    @pytest.fixture(autouse=True)
    def instructions(self) -> Iterator[None]:
        assert isinstance(LIBRARY, ctypes.CDLL)
        if LIBRARY.peg_set_isa(ISAS.index(self.isa)) != ISAS.index(self.isa):
            LIBRARY.peg_set_isa(-1)
            pytest.skip(f"this processor has no {self.isa}")
        yield
        LIBRARY.peg_set_isa(-1)


class TestBest(Cpu):
    pass


class TestBestWholeVectors(Cpu):
    head_dim = 64
    page_size = 16


class TestBestBfloat16(Cpu):
    dtype = torch.bfloat16
    tolerance = 1e-2
    head_dim = 64


class TestBestFloat16(Cpu):
    dtype = torch.float16
    tolerance = 2e-3
    head_dim = 32


class TestPortable(Cpu):
    isa = "portable"


class TestAvx2(Cpu):
    isa = "avx2"
    head_dim = 128
    num_heads = 8


class TestAvx512(Cpu):
    isa = "avx512"
    head_dim = 64


class TestAvx512Bfloat16(Cpu):
    isa = "avx512bf16"
    dtype = torch.bfloat16
    tolerance = 1e-2
    head_dim = 64
