"""Element-wise kernels of pegboard-triton beside torch's: microseconds, bytes moved a second, and that as a share of the card's copy.

    python benchmarks/kernels.py [--only rms_norm] [--copy 4.3] [--tune] [--json]

Shapes are those of training Llama-3.2-1B on 16,384 tokens and of decode steps of Qwen3-0.6B and Llama-3.1-8B. Work is captured as a
graph over several sets of buffers, so that launching does not count and training shapes come from memory; decode shapes are small enough
to stay in the cache, as they do in a model. `--tune` times every block size of `GRIDS` instead, and prints the best for each shape, to be
written to tuned/*.json. Needs pegboard-triton, pegboard-trainer and a GPU.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pegboard.ops import registered
from pegboard_triton import adamw, gated, loss, norm, rotary

COLD = 1 << 28
"""Bytes that sets of buffers have together, at least, where they are to come from memory."""

GRIDS: Mapping[str, tuple[Any, Mapping[str, Sequence[int]]]] = {
    "rms_norm": (norm, {"ROWS": (1, 2, 4, 8, 16), "num_warps": (1, 2, 4, 8)}),
    "rms_norm_backward": (norm, {"ROWS": (1, 2, 4, 8), "num_warps": (2, 4, 8), "programs": (264, 528, 1056)}),
    "gated": (gated, {"BLOCK": (256, 512, 1024, 2048, 4096), "num_warps": (1, 2, 4, 8)}),
    "gated_backward": (gated, {"BLOCK": (512, 1024, 2048, 4096), "num_warps": (2, 4, 8)}),
    "rotary": (rotary, {"HEADS": (4, 8, 16, 32, 64), "num_warps": (1, 2, 4, 8)}),
    "cross_entropy": (
        loss,
        {"BLOCK": (4096, 8192, 16384), "num_warps": (8, 16, 32), "programs": (132, 264, 528, 1024)},
    ),
    "logits_sums": (loss, {"BLOCK": (2048, 4096, 8192), "num_warps": (4, 8, 16), "parts": (1, 4, 16, 32)}),
    "logits_slope": (loss, {"BLOCK": (1024, 2048, 4096, 8192), "num_warps": (4, 8)}),
    "adamw": (adamw, {"BLOCK": (512, 1024, 2048, 4096), "num_warps": (4, 8)}),
}
"""Entry of tuned/ -> the module that reads it, and what is tried."""


@dataclass(frozen=True)
class Case:
    """One op on one shape. make: seed -> the arguments. moved: bytes read and written. tunes: the entry of tuned/ that it depends on."""

    op: str
    shape: str
    ours: Callable[..., Any]
    torchs: Callable[..., Any]
    make: Callable[[int], tuple[Any, ...]]
    moved: int
    tunes: str


def normal(*shape: int, seed: int, grad: bool = False) -> Tensor:
    """Return bfloat16 values on the GPU."""
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(shape, generator=generator, device="cuda", dtype=torch.bfloat16).requires_grad_(grad)


def forward(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function without gradients."""
    return torch.no_grad()(function)


def both(function: Callable[..., Any], upstream: int = 1) -> Callable[..., Any]:
    """Return forward and backward pass as one function; its last arguments are the gradients of the results."""

    def run(*arguments: Any) -> Any:
        inputs, grads = arguments[:-upstream], arguments[-upstream:]
        outs = function(*inputs)
        leaves = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
        return torch.autograd.grad(outs if isinstance(outs, tuple) else (outs,), leaves, grads)

    return run


def cases() -> Iterator[Case]:
    """Yield what is timed."""
    plain = {name: op.function for name, op in registered().items()}
    for rows, size in ((1, 1024), (8, 4096), (64, 4096), (256, 4096), (16384, 2048)):
        cell = 2 * rows * size
        shape = f"{rows} x {size}"

        def norms(seed: int, rows: int = rows, size: int = size, grad: bool = False, ups: int = 0) -> tuple[Any, ...]:
            x = normal(rows, size, seed=seed, grad=grad)
            return (x, normal(size, seed=seed + 1, grad=grad), 1e-5, *(normal(rows, size, seed=9),) * ups)

        def added(seed: int, rows: int = rows, size: int = size, grad: bool = False, ups: int = 0) -> tuple[Any, ...]:
            residual = normal(rows, size, seed=seed + 2, grad=grad)
            x, weight, eps, *rest = norms(seed, rows, size, grad, ups)
            return (x, residual, weight, eps, *rest)

        def add_norm(x: Tensor, r: Tensor, w: Tensor, eps: float) -> Any:
            return norm.add_rms_norm(x, r, w, eps)

        yield Case(
            "add_rms_norm", shape, forward(add_norm), forward(plain["add_rms_norm"]), added, 4 * cell, "rms_norm"
        )
        if rows < 1000:
            continue
        yield Case("rms_norm", shape, forward(norm.rms_norm), forward(plain["rms_norm"]), norms, 2 * cell, "rms_norm")
        yield Case(
            "rms_norm f+b",
            shape,
            both(norm.rms_norm),
            both(plain["rms_norm"]),
            partial(norms, grad=True, ups=1),
            5 * cell,
            "rms_norm_backward",
        )
        yield Case(
            "add_rms_norm f+b",
            shape,
            both(add_norm, 2),
            both(plain["add_rms_norm"], 2),
            partial(added, grad=True, ups=2),
            8 * cell,
            "rms_norm_backward",
        )
    for rows, size in ((1, 3072), (8, 14336), (64, 14336), (256, 14336), (16384, 8192)):
        cell, shape = 2 * rows * size, f"{rows} x {size}"

        def gate_up(seed: int, rows: int = rows, size: int = size, grad: bool = False) -> tuple[Any, ...]:
            x = normal(rows, 2 * size, seed=seed, grad=grad)
            return (x, normal(rows, size, seed=seed + 1)) if grad else (x,)

        yield Case("silu_mul", shape, forward(gated.silu_mul), forward(plain["silu_mul"]), gate_up, 3 * cell, "gated")
        if rows > 1000:
            yield Case(
                "silu_mul f+b",
                shape,
                both(gated.silu_mul),
                both(plain["silu_mul"]),
                partial(gate_up, grad=True),
                8 * cell,
                "gated_backward",
            )
    for rows, heads, dim in ((1, 24, 128), (64, 40, 128), (256, 40, 128), (16384, 40, 64)):
        cell, shape = 2 * rows * heads * dim, f"{rows} x {heads} x {dim}"

        def turned(
            seed: int, rows: int = rows, heads: int = heads, dim: int = dim, grad: bool = False
        ) -> tuple[Any, ...]:
            x = normal(rows, heads + 8, dim, seed=seed)[:, :heads].requires_grad_(grad)
            angles = normal(rows, 1, dim, seed=seed + 1), normal(rows, 1, dim, seed=seed + 2)
            return (x, *angles, normal(rows, heads, dim, seed=seed + 3)) if grad else (x, *angles)

        moved = 2 * cell + 4 * rows * dim
        yield Case("rotary", shape, forward(rotary.rotary), forward(plain["rotary"]), turned, moved, "rotary")
        if rows > 1000:
            yield Case(
                "rotary f+b",
                shape,
                both(rotary.rotary),
                both(plain["rotary"]),
                partial(turned, grad=True),
                2 * moved,
                "rotary",
            )
    for rows, columns in ((1, 151936), (8, 128256), (64, 151936), (1024, 128256), (2048, 128256)):
        cell, shape = 2 * rows * columns, f"{rows} x {columns}"

        def logits(seed: int, rows: int = rows, columns: int = columns) -> tuple[Any, ...]:
            x = normal(rows, columns, seed=seed) * 3
            return x, torch.randint(columns, (rows,), device="cuda"), None

        yield Case("logits_sums", shape, loss.logits_sums, plain["logits_sums"], logits, cell, "logits_sums")
        if rows < 1000:
            continue
        entropy = (loss.cross_entropy_, plain["cross_entropy_"])
        yield Case("cross_entropy_", shape, *entropy, logits, 2 * cell, "cross_entropy")

        def slopes(seed: int, make: Any = logits) -> tuple[Any, ...]:
            x, targets, _ = make(seed)
            return x, targets, x.float().logsumexp(-1), torch.rand(len(x), device="cuda")

        slope = (loss.logits_slope_, plain["logits_slope_"])
        yield Case("logits_slope_", shape, *slope, slopes, 2 * cell, "logits_slope")
    yield from updates()


def updates() -> Iterator[Case]:
    """Yield updates of a large weight: all in bfloat16, and with a float32 master and moments."""
    from pegboard_trainer.adamw_op import AdamWStep

    def fused(w: Any, g: Any, m: Any, v: Any, masters: Any, steps: Any, seeds: Any, how: Any, factor: Any) -> None:
        """Torch's fused update, which rounds to the nearest; with a master, the weight is copied from it."""
        wide = w if masters[0] is None else masters
        step = [torch.full((), 9.0, device="cuda")]
        gradients = [x.to(wide[0].dtype) for x in g]
        torch._fused_adamw_(
            wide,
            gradients,
            m,
            v,
            [],
            step,
            lr=how.lr,
            beta1=how.beta1,
            beta2=how.beta2,
            weight_decay=how.weight_decay,
            eps=how.eps,
            amsgrad=False,
            maximize=False,
        )
        if masters[0] is not None:
            w[0].copy_(masters[0])

    how = AdamWStep(1e-4, 0.9, 0.95, 1e-8, 0.1, at_random=True)
    ours = adamw.adamw_
    for name, wide in (("bfloat16", False), ("master", True)):
        count = 8192 * 2048

        def state(seed: int, wide: bool = wide, count: int = count) -> tuple[Any, ...]:
            weight, gradient = normal(count, seed=seed), normal(count, seed=seed + 1)
            dtype = torch.float32 if wide else torch.bfloat16
            moments = [torch.rand(count, device="cuda").to(dtype) for _ in range(2)]
            master = weight.float() if wide else None
            one = torch.ones((), device="cuda")
            return [weight], [gradient], [moments[0]], [moments[1]], [master], [10], [seed << 20], how, one

        moved = count * (2 + 2 + 24 if wide else 14)
        yield Case(f"adamw_ {name}", "8192 x 2048", ours, fused, state, moved, "adamw")


def time_of(function: Callable[..., Any], sets: Sequence[tuple[Any, ...]], rounds: int = 7) -> float:
    """Return microseconds of one call, the median of `rounds` replays of a graph over all sets; nan where it cannot be captured."""
    try:
        return captured_time(function, sets, rounds)
    except RuntimeError as error:
        if "capture" not in str(error):
            raise
        torch.cuda.synchronize()
        return math.nan


def captured_time(function: Callable[..., Any], sets: Sequence[tuple[Any, ...]], rounds: int) -> float:
    """Return microseconds of one call, from a graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for arguments in sets[:2]:
            function(*arguments)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for arguments in sets:
            function(*arguments)
    graph.replay()
    times = []
    for _ in range(rounds):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times) * 1e3 / len(sets)


def sets_of(case: Case) -> list[tuple[Any, ...]]:
    """Return as many sets of arguments as make them come from memory, and enough to time; the same one again where they stay cached."""
    count = min(8, max(2, -(-COLD // case.moved)))
    if case.moved < 1 << 25:
        return [case.make(number) for number in range(4)] * 5
    return [case.make(number) for number in range(count)]


def tune(case: Case) -> None:
    """Print the three fastest settings for a case."""
    module, grid = GRIDS[case.tunes]
    original, sets, found = module.choice, sets_of(case), []
    for values in itertools.product(*grid.values()):
        use = dict(zip(grid, values, strict=True))

        def chosen(op: str, device: torch.device, use: dict[str, int] = use, **sizes: int) -> Mapping[str, int]:
            return use if op == case.tunes else original(op, device, **sizes)

        module.choice = chosen
        try:
            found.append((time_of(case.ours, sets, 3), use))
        except Exception as error:  # a setting that does not fit the card is not among the fastest
            print(f"{case.op} {use}: {type(error).__name__}")
    module.choice = original
    best = ", ".join(f"{time:.1f} us {use}" for time, use in sorted(found, key=lambda entry: entry[0])[:3])
    print(f"{case.op:18} {case.shape:16} now {time_of(case.ours, sets, 3):.1f} | {best}", flush=True)


def main() -> None:
    """Time and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose op contains this")
    parser.add_argument("--shape", default="", help="cases whose shape contains this")
    parser.add_argument("--copy", type=float, default=4.3, help="TB/s, read and written, of a copy on this card")
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    print(f"{'op':18} {'shape':16} {'us':>9} {'torch us':>9} {'GB/s':>7} {'of copy':>7}")
    for case in cases():
        if options.only not in case.op or options.shape not in case.shape:
            continue
        if options.tune:
            tune(case)
            continue
        sets = sets_of(case)
        ours, torchs = (time_of(function, sets) for function in (case.ours, case.torchs))
        rate = case.moved / ours / 1e3
        row = {"op": case.op, "shape": case.shape, "us": ours, "torch_us": torchs, "gb_s": rate}
        if options.json:
            print(json.dumps(row), flush=True)
        else:
            share = rate / options.copy / 1e3
            print(f"{case.op:18} {case.shape:16} {ours:9.1f} {torchs:9.1f} {rate:7.0f} {share:7.0%}", flush=True)


if __name__ == "__main__":
    main()
