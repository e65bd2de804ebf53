"""Attention of a model's layer on a GPU, `triton` beside `sdpa`: microseconds, and what that is of the card's own ceilings.

    python benchmarks/attention_gpu.py [--cases decode] [--cells int8] [--prompts cudnn fa3] [--device 0] [--json out.json]

Each time is of one layer, writes of new keys and values included, inside a captured graph over several layers with caches of their own,
so that nothing is read from the chip's cache that a model would not find there; median of several replays. TB/s counts each key and
value that a sequence has once, TFLOP/s what a causal mask leaves. The ceilings are measured first: a copy, and a product of matrices.
Only decodes of `sdpa` can be captured; its prompts are timed as they are launched. `--prompts` names plugins that compute prompts with
nothing cached beside `triton` (which writes for them); with them more lengths are timed, and how long the first batch of a length takes.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from pegboard.fresh import FreshPrompts, unusable
from pegboard.interfaces.attention import AttentionBackend
from pegboard.plugins.load import Registry
from pegboard.types import AttentionInputs, AttentionSpec, KVCache
from pegboard_sdpa.backend import SdpaAttention
from pegboard_triton.attention.backend import TritonAttention

DIM, PAGE = 128, 16
SHAPES = {"Qwen3-0.6B": (16, 8), "Llama-3.1-8B": (32, 8), "Qwen3-30B-A3B": (32, 4)}
DECODES = [(batch, length) for length in (512, 2048, 8192) for batch in (1, 8, 64, 256)]
PROMPTS = [(1, 2048, 0), (8, 2048, 0), (1, 512, 8192)]
FRESH = [(1, 512, 0), (32, 512, 0), (1, 1024, 0), (16, 1024, 0), (1, 2048, 0), (8, 2048, 0), (1, 8192, 0), (4, 8192, 0)]
MOST_LAYERS, LAYER_BYTES, MOST_BYTES = 16, 200 << 20, 40 << 30


def timed(work: Callable[[], object], *, graph: bool, repeats: int = 7) -> float:
    """Return the median of `repeats` runs of `work` in microseconds, by the device's events."""
    for _ in range(3):
        work()
    torch.cuda.synchronize()
    run: Callable[[], object] = work
    if graph:
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            work()
        run = captured.replay
        run()
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3)
    return median(times)


def ceilings(device: torch.device) -> tuple[float, float]:
    """Return bytes a second of a copy (read and written) and operations a second of a product in bfloat16."""
    source = torch.randn(1 << 29, device=device, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / timed(lambda: target.copy_(source), graph=False) * 1e6
    a, b = (torch.randn(8192, 8192, device=device, dtype=torch.bfloat16) for _ in range(2))
    return copied, 2 * 8192**3 / timed(lambda: a @ b, graph=False) * 1e6


class Layers:
    """A batch of `count` sequences of `length` tokens, `new` of them new, over the caches of several layers."""

    def __init__(
        self,
        backend: AttentionBackend,
        heads: tuple[int, int],
        count: int,
        length: int,
        new: int,
        device: torch.device,
        cells: torch.dtype,
    ) -> None:
        self.backend, self.new = backend, new
        spec = AttentionSpec(0, *heads, DIM, DIM**-0.5)
        wide = -(-length // PAGE)
        layout = backend.layout(spec, 1, PAGE, cells)
        size = (1 + count * wide) * layout.page_bytes
        layers = max(1, min(MOST_LAYERS, -(-LAYER_BYTES // size)))
        self.specs = [AttentionSpec(i, *heads, DIM, DIM**-0.5) for i in range(layers)]
        self.layout = backend.layout(spec, layers, PAGE, cells)
        self.cache = KVCache.allocate(self.layout, 1 + count * wide, device)
        for x in (*self.cache.k, *self.cache.v):
            x.copy_(torch.randn(x.shape, device=device).mul_(1 if cells.itemsize > 1 else 30).to(cells))
        for x in (*(self.cache.k_scale or ()), *(self.cache.v_scale or ())):
            x.fill_(1 / 30)
        table = (torch.randperm(count * wide) + 1).view(count, wide).int()
        places = torch.arange(length - new, length)
        slots = table[:, places // PAGE].long() * PAGE + places % PAGE
        pads = {"pad_to": count, "pad_pages": wide} if new == 1 else {}
        inputs = AttentionInputs(
            [new] * count, [length] * count, table, slots.flatten(), count if new == 1 else 0, **pads
        )
        self.plan = backend.plan(inputs, device, self.layout)
        shapes = [(count * new, h, DIM) for h in (heads[0], heads[1], heads[1])]
        self.qkv = [torch.randn(shape, device=device, dtype=torch.bfloat16) for shape in shapes]
        row = DIM * cells.itemsize + (4 if self.layout.scaled else 0)
        self.bytes = 2 * count * length * heads[1] * row
        self.operations = 4 * heads[0] * DIM * count * (new * (length - new) + new * (new + 1) / 2)

    def run(self) -> Tensor:
        """Attend in every layer."""
        for spec in self.specs:
            out = self.backend.attend(*self.qkv, spec, self.plan, self.cache)
        return out

    def time(self, *, graph: bool) -> float:
        """Return microseconds a layer."""
        return timed(self.run, graph=graph) / len(self.specs)


def one(name: str, case: tuple[int, int, int], device: torch.device, cells: torch.dtype, peer: bool) -> dict[str, Any]:
    """Time a case with both backends. case: sequences, new tokens, cached tokens of each."""
    count, new, cached = case
    found: dict[str, Any] = {"shape": name, "sequences": count, "new": new, "cached": cached}
    backends: dict[str, AttentionBackend] = {"triton": TritonAttention()} | ({"sdpa": SdpaAttention()} if peer else {})
    for label, backend in backends.items():
        try:
            layers = Layers(backend, SHAPES[name], count, new + cached, new, device, cells)
            found[label] = layers.time(graph=label == "triton" or new == 1)
            found["bytes"], found["operations"] = layers.bytes, layers.operations
        except torch.OutOfMemoryError:
            found[label] = None
        layers = None  # type: ignore[assignment]
        torch.cuda.empty_cache()
    return found


def fresh(names: list[str], shape: str, device: torch.device) -> None:
    """Print prompts with nothing cached by `triton` alone and beside each of the plugins: TFLOP/s, and ms of the first call of a length."""
    registry = Registry.discover()
    backends: dict[str, AttentionBackend] = {"triton": TritonAttention()}
    for name in names:
        if reason := unusable(registry, name):
            print(f"{name}: {reason}")
            continue
        backends[f"triton+{name}"] = FreshPrompts(TritonAttention(), registry.create("attention", name), 2)
    print(f"{'TFLOP/s (first call, ms)':42}" + "".join(f"{label:>24}" for label in backends))
    for model, heads in SHAPES.items():
        if shape not in model:
            continue
        for count, new, _ in FRESH:
            told = f"{model:14} {heads[0]:2}/{heads[1]} {count:3} x {new:5}"
            line, wanted = f"{told:42}", None
            for backend in backends.values():
                torch.manual_seed(0)
                with torch.inference_mode():
                    layers = Layers(backend, heads, count, new, new, device, torch.bfloat16)
                    torch.cuda.synchronize()
                    begin = time.perf_counter()
                    out = layers.run()
                    torch.cuda.synchronize()
                    first = (time.perf_counter() - begin) * 1e3
                    rate = layers.operations / layers.time(graph=False) / 1e6
                wanted = out if wanted is None else wanted
                error = float((out.float() - wanted.float()).norm() / wanted.float().norm())
                line += f"{rate:12.0f} ({first:7.1f})" + (" !" if not error < 2e-2 else "  ")
                del layers, out
            print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="", help="decode or prompt; both without")
    parser.add_argument("--shape", default="", help="part of a model's name")
    parser.add_argument("--cells", default="bfloat16", help="dtype of the cache")
    parser.add_argument("--no-peer", action="store_true", help="leave `sdpa` out")
    parser.add_argument(
        "--prompts", nargs="+", default=[], metavar="NAME", help="plugins for prompts with nothing cached"
    )
    parser.add_argument("--device", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device, cells = torch.device("cuda", options.device), getattr(torch, options.cells)
    copied, multiplied = ceilings(device)
    print(
        f"{torch.cuda.get_device_name(device)}: copy {copied / 1e12:.2f} TB/s, product {multiplied / 1e12:.0f} TFLOP/s"
    )
    if options.prompts:
        fresh(options.prompts, options.shape, device)
        return
    cases = [("decode", (batch, 1, length - 1)) for batch, length in DECODES]
    cases += [("prompt", (batch, new, cached)) for batch, new, cached in PROMPTS]
    rows = []
    for name, (heads, kv_heads) in SHAPES.items():
        for kind, case in cases:
            if options.cases not in kind or options.shape not in name:
                continue
            if 2 * case[0] * sum(case[1:]) * kv_heads * DIM * cells.itemsize > MOST_BYTES:
                continue
            with torch.inference_mode():
                row = one(name, case, device, cells, not options.no_peer)
            rows.append(row)
            rate, ceiling, unit = row["bytes"], copied, "TB/s"
            if kind == "prompt":
                rate, ceiling, unit = row["operations"], multiplied, "TFLOP/s"
            reached = rate / row["triton"] * 1e6
            peer = "" if row.get("sdpa") is None else f"  sdpa {row['sdpa']:9.1f} us"
            print(
                f"{name:14} {heads:2}/{kv_heads} {kind} {case[0]:3} x {case[1]:4} new + {case[2]:4} cached {row['triton']:9.1f} us "
                f"{reached / 1e12:6.2f} {unit} {reached / ceiling:5.0%}{peer}",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
