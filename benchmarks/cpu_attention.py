"""Compiled CPU attention against the sdpa backend, for the shapes of SmolLM2-135M: microseconds a layer, GB/s of cache, GFLOP/s.

    python benchmarks/cpu_attention.py [--threads 2] [--isa avx2] [--dtype bfloat16] [--cache int8] [--json out.json]

Layers have caches of their own, pages of a sequence lie in no order. GB/s counts each key and value once; GFLOP/s counts what a causal
mask leaves. `call` is what Python needs beside the computation: a step of one sequence of one token. Pin the process (taskset) and leave
the machine alone for figures that count.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pegboard.interfaces.attention import AttentionBackend
from pegboard.types import AttentionInputs, AttentionSpec, KVCache
from pegboard_cpu_kernels.backend import CpuAttention
from pegboard_cpu_kernels.library import ISAS, find
from pegboard_sdpa.backend import SdpaAttention

HEADS, KV_HEADS, DIM, PAGE = 9, 3, 64, 16
CPU = torch.device("cpu")
MOST_CACHE = 1 << 30
CASES: list[tuple[str, list[int], int]] = [
    ("call", [1], 1),
    ("decode 1 x 128", [128], 1),
    ("decode 1 x 2k", [2048], 1),
    ("decode 1 x 32k", [32768], 1),
    ("decode 32 x 128", [128] * 32, 1),
    ("decode 32 x 2k", [2048] * 32, 1),
    ("prefill 128", [128], 128),
    ("prefill 512", [512], 512),
    ("prefill 2k", [2048], 2048),
    ("chunk 512 of 8k", [8192], 512),
]


class Case:
    """A batch over caches of as many layers as fit into memory, up to a model's 30."""

    def __init__(
        self, backend: AttentionBackend, lens: list[int], new: int, dtype: torch.dtype, cached: torch.dtype
    ) -> None:
        self.backend, self.lens, self.new = backend, lens, new
        layers = 30
        layout = backend.layout(AttentionSpec(0, HEADS, KV_HEADS, DIM, DIM**-0.5), 1, PAGE, cached)
        counts = [-(-n // PAGE) for n in lens]
        pages = 1 + sum(counts)
        layers = max(1, min(layers, MOST_CACHE // (pages * layout.page_bytes)))
        self.specs = [AttentionSpec(i, HEADS, KV_HEADS, DIM, DIM**-0.5) for i in range(layers)]
        layout = backend.layout(self.specs[0], layers, PAGE, cached)
        self.cache = KVCache.allocate(layout, pages, CPU)
        first = self.cache.k[0]
        first.random_(-127, 128) if cached == torch.int8 else first.normal_()
        for tensor in (*self.cache.k[1:], *self.cache.v):
            tensor.copy_(first)
        for tensor in (*(self.cache.k_scale or ()), *(self.cache.v_scale or ())):
            tensor.fill_(1 / 127)
        order = (torch.randperm(pages - 1) + 1).to(torch.int32)
        table = torch.zeros(len(lens), max(counts), dtype=torch.int32)
        for row, part in enumerate(order.split(counts)):
            table[row, : len(part)] = part
        slots = torch.cat(
            [table[i, t // PAGE] * PAGE + t % PAGE for i, n in enumerate(lens) for t in [torch.arange(n - new, n)]]
        )
        self.inputs = AttentionInputs([new] * len(lens), lens, table, slots.long(), len(lens) if new == 1 else 0)
        rows = new * len(lens)
        self.q, self.k, self.v = (torch.randn(rows, heads, DIM).to(dtype) for heads in (HEADS, KV_HEADS, KV_HEADS))

    def step(self) -> Tensor:
        """All layers once."""
        plan = self.backend.plan(self.inputs, CPU, self.cache.layout)
        for spec in self.specs:
            out = self.backend.attend(self.q, self.k, self.v, spec, plan, self.cache)
        return out

    def figures(self, budget: float) -> dict[str, float]:
        """Best of a few rounds that take `budget` seconds in all, per layer."""
        start = time.perf_counter()
        self.step()
        once = time.perf_counter() - start
        count, took = max(1, int(budget / 5 / once)), float("inf")
        for _ in range(5):
            start = time.perf_counter()
            for _ in range(count):
                self.step()
            took = min(took, (time.perf_counter() - start) / count / len(self.specs))
        read = sum(self.lens) * self.cache.layout.page_bytes / PAGE / len(self.specs)
        pairs = sum(n * self.new - self.new * (self.new - 1) / 2 for n in self.lens)
        return {
            "us": round(took * 1e6, 1),
            "gb_s": round(read / took / 1e9, 2),
            "gflop_s": round(4 * pairs * HEADS * DIM / took / 1e9, 1),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--isa", choices=ISAS)
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--cache", choices=["float32", "bfloat16", "float16", "int8"], help="default: dtype")
    parser.add_argument("--budget", type=float, default=2.0, help="seconds for each figure")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--ours", action="store_true", help="do not run the sdpa backend")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    library = find().library
    if library is None:
        raise SystemExit(f"no library: {find().reason}")
    if options.isa:
        library.peg_set_isa(ISAS.index(options.isa))
    isa, dtype = ISAS[library.peg_isa()], getattr(torch, options.dtype)
    cached = getattr(torch, options.cache or options.dtype)
    backends: dict[str, AttentionBackend] = {"ours": CpuAttention()} | (
        {} if options.ours else {"sdpa": SdpaAttention()}
    )
    out = []
    with torch.inference_mode():
        for name, lens, new in CASES:
            if options.only not in name:
                continue
            row: dict[str, Any] = {"case": name}
            for way, backend in backends.items():
                torch.manual_seed(0)
                row[way] = Case(backend, lens, new, dtype, cached).figures(options.budget)
            shown = (
                f"{way} {v['us']:.1f} us {v['gb_s']} GB/s {v['gflop_s']} GF" for way, v in row.items() if way != "case"
            )
            print(f"{name:16} " + "   ".join(shown), flush=True)
            out.append(row)
    if options.json:
        head = {
            "isa": isa,
            "threads": options.threads,
            "dtype": options.dtype,
            "cache": str(cached),
            "torch": torch.__version__,
        }
        options.json.write_text(json.dumps({**head, "rows": out}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
