"""A fused mixture-of-experts layer on a GPU: milliseconds by tokens, beside the floor, the targets and, with --peer, vLLM's.

    python benchmarks/moe.py [qwen3-30b-a3b] [--weights bf16] [--tokens 1,8,128,2048,8192] [--peer] [--json FILE]
        [--products | --sweep | --variants]

Routing is given; ordering, both products, the activation and the weighted sum are timed. `graph` is the time in a device graph that runs
several inputs one after the other, as decoding does; `alone` that of a call by itself, its launches included, with cold caches (what
`triton.testing.do_bench` gives; the peer is timed so). The floor is the larger of the bytes of the experts that are used at --copy TB/s
and the arithmetic at --matmul TFLOP/s. Each row's first tokens are checked against float64. --products times products of few rows
with matrices in bf16 and in fewer bits, in GB/s of the weight as it is stored. --sweep tries block sizes and prints the best,
to be written to tuned/moe_*.json; --variants only what is not the default yet for many rows an expert: blocks with a tail, and the
order by ranks. Needs pegboard-triton and a GPU.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Shape(NamedTuple):
    experts: int
    top_k: int
    hidden: int
    inner: int


SHAPES = {
    "qwen3-30b-a3b": Shape(128, 8, 2048, 768),
    "mixtral-8x7b": Shape(8, 2, 4096, 14336),
    "olmoe-1b-7b": Shape(64, 8, 2048, 1024),
}
TARGETS = {1: 0.05, 8: 0.17, 128: 0.315, 2048: 0.45, 8192: 1.3}
"""Milliseconds wanted on one H200 for qwen3-30b-a3b in bf16."""

CHECKED = 32
"""Tokens of each row that are compared with float64."""

GROUP = 128
"""Weights that share a scale in int4; rows and columns of a block in fp8."""


def graph_ms(works: Sequence[Callable[[], Any]], rounds: int = 7) -> float:
    """Median time of one of `works`, captured one after the other in a graph."""
    for work in works:
        work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for work in works:
            work()
    graph.replay()
    times = []
    for _ in range(rounds):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / len(works))
    return sorted(times)[rounds // 2]


def alone_ms(work: Callable[[], Any]) -> float:
    from triton.testing import do_bench

    return float(do_bench(work, warmup=5, rep=40, return_mode="median"))


class Layer:
    """Weights of a shape, and the op on them. form: bf16, int8, fp8, int4 or nf4."""

    def __init__(self, shape: Shape, form: str) -> None:
        self.shape, self.form = shape, form
        experts, _, hidden, inner = shape
        generator = torch.Generator("cuda").manual_seed(1)
        made = {"bf16": self._plain, "int8": self._int8, "fp8": self._fp8, "int4": self._int4, "nf4": self._nf4}
        make = made[form]
        self.bytes_each = 0
        self.parts = [
            make(torch.randn(experts, rows, columns, device="cuda", dtype=torch.bfloat16, generator=generator) * 0.02)
            for rows, columns in ((2 * inner, hidden), (hidden, inner))
        ]

    def __call__(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        from pegboard_triton.moe import moe
        from pegboard_triton.moe.packed_forward import packed_forward

        stored = [part[0] for part in self.parts]
        if self.form == "bf16":
            return moe(x, stored[0], stored[1], ids, weights)
        return packed_forward(x, stored[0], stored[1], ids, weights, "silu")

    def exact(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """The same in float64, of the weights as they are stored."""
        out = torch.zeros_like(x, dtype=torch.float64)
        for expert in ids.unique().tolist():
            token, place = torch.where(ids == expert)
            up, down = (wide(expert) for _, wide in self.parts)
            gate, value = (x[token].double() @ up.T).chunk(2, -1)
            out.index_add_(0, token, (F.silu(gate) * value) @ down.T * weights[token, place, None].double())
        return out

    def _count(self, *tensors: Tensor) -> None:
        self.bytes_each += sum(t.numel() * t.element_size() for t in tensors) // self.shape.experts

    def _plain(self, weight: Tensor) -> tuple[Any, Callable[[int], Tensor]]:
        self._count(weight)
        return weight, lambda e: weight[e].double()

    def _int8(self, weight: Tensor) -> tuple[Any, Callable[[int], Tensor]]:
        from pegboard_triton.moe.packed_forward import Experts
        from pegboard_triton.quantized.packed import INT8

        scales = weight.float().abs().amax(2, keepdim=True) / 127
        codes = (weight / scales).round().to(torch.int8)
        self._count(codes, scales)
        columns = weight.shape[2]
        return Experts(INT8, codes, scales, columns, 1, columns), lambda e: codes[e].double() * scales[e]

    def _fp8(self, weight: Tensor) -> tuple[Any, Callable[[int], Tensor]]:
        from pegboard_triton.moe.packed_forward import Experts
        from pegboard_triton.quantized.packed import FLOAT8

        blocks = weight.float().unflatten(2, (-1, GROUP)).unflatten(1, (-1, GROUP))
        scales = blocks.abs().amax((2, 4)) / 448
        codes = (blocks / scales[:, :, None, :, None]).to(torch.float8_e4m3fn).view(weight.shape)
        self._count(codes, scales)

        def wide(e: int) -> Tensor:
            return codes[e].double() * scales[e].repeat_interleave(GROUP, 0).repeat_interleave(GROUP, 1)

        return Experts(FLOAT8, codes.view(torch.uint8), scales, weight.shape[2], GROUP, GROUP), wide

    def _int4(self, weight: Tensor) -> tuple[Any, Callable[[int], Tensor]]:
        from pegboard_triton.moe.packed_forward import Experts
        from pegboard_triton.quantized.packed import INT4

        groups = weight.float().unflatten(2, (-1, GROUP))
        scales = groups.abs().amax(3) / 7.5
        codes = (groups / scales[..., None]).round().clamp_(-8, 7).add_(8).to(torch.uint8).view(weight.shape)
        packed = codes[..., ::2] | (codes[..., 1::2] << 4)
        self._count(packed, scales)
        wide = lambda e: (codes[e].double() - 8) * scales[e].repeat_interleave(GROUP, 1)  # noqa: E731
        return Experts(INT4, packed, scales, weight.shape[2], 1, GROUP), wide

    def _nf4(self, weight: Tensor) -> tuple[Any, Callable[[int], Tensor]]:
        from pegboard.blockwise import normal_table
        from pegboard_triton.moe.nf4 import nf4_experts

        codes, scales = normal_table().quantise(weight, 64)
        packed = (codes[::2] << 4) | codes[1::2]
        packed, scales = packed.view(self.shape.experts, -1), scales.view(self.shape.experts, -1)
        self._count(packed, scales)
        values = normal_table().values.cuda().double()
        codes, wide_scales = codes.view(weight.shape), scales.double().repeat_interleave(64, 1).view(weight.shape)
        return nf4_experts(
            packed, scales, None, None, weight.shape[2]
        ), lambda e: values[codes[e].int()] * wide_scales[e]


def inputs(shape: Shape, tokens: int, count: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return `count` sets of x, ids and weights: random activations and a random router."""
    generator = torch.Generator("cuda").manual_seed(tokens)
    found = []
    for _ in range(count):
        x = torch.randn(tokens, shape.hidden, device="cuda", dtype=torch.bfloat16, generator=generator)
        logits = torch.randn(tokens, shape.experts, device="cuda", generator=generator)
        weights, ids = logits.softmax(-1).topk(shape.top_k)
        found.append((x, ids, weights / weights.sum(-1, keepdim=True)))
    return found


def measure(layer: Layer, tokens: int, options: argparse.Namespace) -> dict[str, Any]:
    shape = layer.shape
    sets = inputs(shape, tokens, 8 if tokens <= 4 else 4)
    x, ids, weights = sets[0]
    few = slice(min(tokens, CHECKED))
    exact = layer.exact(x[few], ids[few], weights[few])
    error = float((layer(x, ids, weights)[few].double() - exact).norm() / exact.norm())
    used = sum(len(one[1].unique()) for one in sets) / len(sets)
    flops = 6 * tokens * shape.top_k * shape.hidden * shape.inner
    floor = max(used * layer.bytes_each / options.copy / 1e9, flops / options.matmul / 1e9)
    row = {"tokens": tokens, "floor": floor, "error": error}
    row["graph"] = graph_ms([lambda one=one: layer(*one) for one in sets])
    row["alone"] = alone_ms(lambda: layer(x, ids, weights))
    if options.peer and layer.form == "bf16":
        os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")
        from vllm.model_executor.layers.fused_moe import fused_experts

        up, down = (part[0] for part in layer.parts)
        row["peer"] = alone_ms(lambda: fused_experts(x, up, down, weights, ids.to(torch.int32)))
    return row


def products(copy: float) -> Iterator[str]:
    """Yield a line for each matrix: one row times it, in bf16 and packed."""
    from pegboard_triton import linear_small
    from pegboard_triton.quantized.ops import _one_product
    from pegboard_triton.quantized.packed import FLOAT8, INT4, INT8, NF4, Packed
    from pegboard_triton.tuning import choice

    device = torch.device("cuda")
    yield "few rows: us and the share of the copy's rate at which the stored weight is read"
    for outputs, columns in ((4096, 1024), (1024, 3072), (6144, 4096), (28672, 4096), (4096, 14336), (151936, 2048)):
        size = 2 * outputs * columns
        plain = [
            torch.randn(outputs, columns, device=device, dtype=torch.bfloat16) for _ in range(2 + int(2e8) // size)
        ]
        for rows in (1, 16):
            x = torch.randn(rows, columns, device=device, dtype=torch.bfloat16)
            cells = {"torch": (graph_ms([partial(F.linear, x, w) for w in plain]), size)}
            if rows == 1:
                found = choice("linear_small", device, rows=rows, outputs=outputs, inputs=columns)
                use = {name: value for name, value in found.items() if name != "most"}
                cells["ours"] = graph_ms([partial(linear_small.launch, x, w, None, use) for w in plain]), size
            for name, form, half, scaled in (
                ("int8", INT8, 1, columns),
                ("fp8", FLOAT8, 1, columns),
                ("int4", INT4, 2, 128),
                ("nf4", NF4, 2, 64),
            ):
                if name == "nf4" and rows > 1:
                    continue
                stored = outputs * columns // half
                sets = []
                for _ in range(2 + int(2e8) // stored):
                    codes = torch.randint(0, 127, (outputs, columns // half), device=device, dtype=torch.uint8)
                    codes = codes.view(torch.int8) if name == "int8" else codes
                    scales = torch.rand(outputs * (columns // scaled), device=device)
                    sets.append(Packed(form, (outputs, columns), codes, scales, scaled))
                out = torch.empty(rows, outputs, device=device, dtype=torch.bfloat16)
                whole = stored + sets[0].scales.numel() * 4
                cells[name] = graph_ms([partial(_one_product, x, w, None, out) for w in sets]), whole
            line = "  ".join(
                f"{name} {ms * 1e3:7.1f} {size / ms / 1e9 / copy:4.0%}" for name, (ms, size) in cells.items()
            )
            yield f"{columns:6} -> {outputs:6}  rows {rows:2}  {line}"


SWEEP: Mapping[str, Sequence[int]] = {
    "BLOCK_M": (16, 32, 64, 128),
    "TAIL": (0, 32, 64),
    "BLOCK_N": (32, 64, 128, 256),
    "BLOCK_K": (64, 128, 256),
    "GROUP": (1,),
    "DESCRIBED": (0, 1),
    "num_warps": (2, 4, 8),
    "num_stages": (2, 3, 4),
}


def candidates(product: str, rows: int) -> list[dict[str, int]]:
    """Return block sizes that fit a card's shared memory and registers and suit `rows` pairs an expert."""
    found = []
    for values in itertools.product(*SWEEP.values()):
        use = dict(zip(SWEEP, values, strict=True))
        m, n = use["BLOCK_M"] + use["TAIL"], use["BLOCK_N"] * (2 if product == "gate_up" else 1)
        memory = (m + n) * use["BLOCK_K"] * 2 * use["num_stages"]
        registers = m * n / use["num_warps"] / 32
        near = use["BLOCK_M"] == max(16, min(128, 1 << max(rows - 1, 1).bit_length()))
        if near and 60_000 < memory < 225_000 and 8 <= registers <= 200 and not 0 < use["TAIL"] < use["BLOCK_M"] // 4:
            found.append(use)
    return found


def try_one(layer: Layer, product: str, tokens: int, use: dict[str, int], count: int) -> float:
    from pegboard_triton.moe import forward

    shape = layer.shape
    works = []
    for x, ids, weights in inputs(shape, tokens, count):
        routing = forward.route(ids, shape.experts, forward.SORTED)
        if product == "gate_up":
            works.append(lambda x=x, routing=routing: forward.gate_up(x, layer.parts[0][0], routing, "silu", use))
        else:
            act = torch.randn(routing.pairs, shape.inner, device="cuda", dtype=torch.bfloat16)
            works.append(lambda a=act, r=routing, w=weights: forward.down(a, layer.parts[1][0], r, w, use))
    return graph_ms(works, 3)


def _compile(rank: int, count: int, shape: Shape, jobs: list[tuple[str, int, dict[str, int]]]) -> None:
    layer = Layer(shape, "bf16")
    for product, tokens, use in jobs[rank::count]:
        try:
            try_one(layer, product, tokens, use, 1)
        except Exception as error:  # what does not fit is no candidate
            print(product, use, type(error).__name__, flush=True)


def _call(rank: int, count: int, shape: Shape, form: str, tokens: Sequence[int]) -> None:
    layer = Layer(shape, form)
    for number in tokens[rank::count]:
        layer(*inputs(shape, number, 1)[0])


def compile_first(shape: Shape, form: str, tokens: Sequence[int]) -> None:
    """Let several processes compile what will be timed: one after the other, compiling takes longer than all else."""
    workers = min(8, len(tokens), os.cpu_count() or 1)
    torch.multiprocessing.spawn(_call, args=(workers, shape, form, tokens), nprocs=workers)


def sweep(shape: Shape, tokens: Sequence[int]) -> None:
    """Print the best block sizes for each number of tokens: kernels are compiled by several processes first."""
    jobs = [
        (product, count, use)
        for count in tokens
        for product in ("gate_up", "down")
        for use in candidates(product, -(-count * shape.top_k // shape.experts))
    ]
    once = list({(product, str(use)): (product, count, use) for product, count, use in jobs}.values())
    workers = min(12, os.cpu_count() or 1)
    torch.multiprocessing.spawn(_compile, args=(workers, shape, once), nprocs=workers)
    layer = Layer(shape, "bf16")
    found: dict[tuple[str, int], list[tuple[float, dict[str, int]]]] = {}
    for product, count, use in jobs:
        try:
            found.setdefault((product, count), []).append((try_one(layer, product, count, use, 3), use))
        except Exception:
            torch.cuda.synchronize()
    for (product, count), results in found.items():
        for ms, use in sorted(results, key=lambda one: one[0])[:3]:
            print(f"{product:8} {count:6} tokens {ms * 1e3:8.1f} us {json.dumps(use)}")


def changed(product: str, base: Mapping[str, int]) -> list[dict[str, int]]:
    """Return the stored settings and some with tails beside them."""
    found = [dict(base)]
    for tail, stages, warps in ((16, 3, 8), (32, 3, 8), (32, 4, 8), (64, 3, 8), (64, 2, 8), (32, 3, 4)):
        use = {**base, "TAIL": tail, "num_stages": stages, "num_warps": warps}
        n = use["BLOCK_N"] * (2 if product == "gate_up" else 1)
        if (use["BLOCK_M"] + tail + n) * use["BLOCK_K"] * 2 * stages < 225_000:
            found.append(use)
    return found


def variants(shape: Shape, tokens: Sequence[int]) -> None:
    """Time ordering, both products and the whole layer, with what is stored and with what could be."""
    from pegboard_triton.moe import forward, moe, order
    from pegboard_triton.tuning import choice

    device = torch.device("cuda")
    jobs = []
    for count in tokens:
        pairs = count * shape.top_k
        sizes = {"bytes": 2, "rows": -(-pairs // shape.experts), "pairs": pairs}
        for product in ("gate_up", "down"):
            jobs += [(product, count, use) for use in changed(product, choice(f"moe_{product}", device, **sizes))]
    workers = min(12, os.cpu_count() or 1)
    torch.multiprocessing.spawn(_compile, args=(workers, shape, jobs), nprocs=workers)
    layer = Layer(shape, "bf16")
    stored = order.choice
    for count in tokens:
        best: dict[str, dict[str, int]] = {}
        routings = inputs(shape, count, 4)
        for way in (order.CHUNKS, order.RANKS):
            order.choice = lambda *_, way=way, **__: {"way": way}
            ms = graph_ms([partial(order.order_pairs, ids, shape.experts) for _, ids, _ in routings])
            print(f"order    {count:6} tokens {ms * 1e3:8.1f} us  way {way}", flush=True)
        for product in ("gate_up", "down"):
            times = []
            for use in [use for name, number, use in jobs if (name, number) == (product, count)]:
                try:
                    times.append((try_one(layer, product, count, use, 3), use))
                except Exception as error:  # what does not fit is no candidate
                    print(product, use, type(error).__name__, flush=True)
                    continue
                print(f"{product:8} {count:6} tokens {times[-1][0] * 1e3:8.1f} us  {json.dumps(use)}", flush=True)
            best[product] = min(times, key=lambda one: one[0])[1]

        def combined(x: Tensor, ids: Tensor, weights: Tensor, best: Mapping[str, dict[str, int]] = best) -> Tensor:
            routing = forward.route(ids, shape.experts, forward.SORTED)
            act = forward.gate_up(x, layer.parts[0][0], routing, "silu", best["gate_up"])
            return forward.down(act, layer.parts[1][0], routing, weights, best["down"])

        order.choice = stored
        right = moe(routings[0][0], layer.parts[0][0], layer.parts[1][0], *routings[0][1:])
        before = graph_ms([partial(layer, *one) for one in routings])
        order.choice = lambda *_, **__: {"way": order.RANKS}
        error = float((combined(*routings[0]).double() - right.double()).norm() / right.double().norm())
        after = graph_ms([partial(combined, *one) for one in routings])
        order.choice = stored
        print(
            f"layer    {count:6} tokens {before:.4f} -> {after:.4f} ms, wanted {TARGETS.get(count)}, error {error:.5f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("shape", nargs="?", default="qwen3-30b-a3b", choices=SHAPES)
    parser.add_argument("--weights", default="bf16", choices=("bf16", "int8", "fp8", "int4", "nf4"))
    parser.add_argument("--tokens", default="1,2,4,8,16,32,64,128,256,512,1024,2048,4096,8192")
    parser.add_argument("--copy", type=float, default=4.3, help="TB/s of a copy on this card")
    parser.add_argument("--matmul", type=float, default=775, help="TFLOP/s of a large bf16 product on this card")
    parser.add_argument("--peer", action="store_true", help="time vLLM's fused_experts beside ours")
    parser.add_argument("--products", action="store_true", help="time products of few rows instead")
    parser.add_argument("--sweep", action="store_true", help="try block sizes instead")
    parser.add_argument("--variants", action="store_true", help="time what is not the default yet, beside what is")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    tokens = [int(count) for count in options.tokens.split(",")]
    shape = SHAPES[options.shape]
    if options.products:
        for line in products(options.copy):
            print(line, flush=True)
        return
    if options.sweep:
        sweep(shape, tokens)
        return
    if options.variants:
        variants(shape, tokens)
        return
    compile_first(shape, options.weights, tokens)
    layer = Layer(shape, options.weights)
    wanted = TARGETS if options.shape == "qwen3-30b-a3b" and options.weights == "bf16" else {}
    print(f"{options.shape}, {options.weights}: ms on {torch.cuda.get_device_name()}")
    print(
        f"{'tokens':>7} {'floor':>8} {'graph':>8} {'of floor':>8} {'alone':>8} {'target':>8} {'peer':>8} {'error':>8}"
    )
    rows = []
    for count in tokens:
        row = measure(layer, count, options)
        rows.append(row)
        target, peer = (f"{value:8.3f}" if value else " " * 8 for value in (wanted.get(count), row.get("peer")))
        share = row["floor"] / row["graph"]
        print(
            f"{count:7} {row['floor']:8.4f} {row['graph']:8.4f} {share:8.0%} {row['alone']:8.4f} {target} {peer} "
            f"{row['error']:8.4f}",
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
