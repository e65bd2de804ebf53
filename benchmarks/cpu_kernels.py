"""Compiled CPU kernels against torch's operations, for the shapes of SmolLM2-135M: microseconds, GB/s of weights, GFLOP/s; JSON on request.

    python benchmarks/cpu_kernels.py [--threads 2] [--isa avx2] [--dtype bfloat16] [--rows 1,8,32,256] [--json out.json]

Weights are read in turn from copies that exceed the caches, as a model's layers are. `step` is every product and norm of a decode step
of one sequence, the head included, without attention. Pin the process (taskset) and leave the machine alone for figures that count.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pegboard.ops import registered
from pegboard_cpu import kernels
from pegboard_cpu_kernels import ops
from pegboard_cpu_kernels.library import ISAS, find

SHAPES = {"qkv": (960, 576), "o": (576, 576), "gate_up": (3072, 576), "down": (576, 1536), "head": (49152, 576)}
LAYERS = 30
CACHES = 96 << 20
"""Bytes of weights after which the first ones are gone from the caches."""


def seconds(work: Callable[[int], Any], budget: float) -> float:
    """Best mean of a few rounds of calls that take `budget` seconds in all; `work` gets a running number."""
    start = time.perf_counter()
    work(0)
    once = time.perf_counter() - start
    count, best, number = max(1, int(budget / 5 / max(once, 1e-7))), float("inf"), 0
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(count):
            work(number)
            number += 1
        best = min(best, (time.perf_counter() - start) / count)
    return best


def products(library: Any, dtype: torch.dtype, rows: list[int], budget: float) -> list[dict[str, Any]]:
    """Time every shape: ours, torch's, and torch's in float32 from widened weights."""
    ours = ops.linear(library, F.linear, most=1 << 30)
    out = []
    for name, (n, k) in SHAPES.items():
        copies = [torch.randn(n, k).to(dtype) for _ in range(CACHES // (n * k * dtype.itemsize) + 1)]
        for m in rows:
            if name == "head" and m > 64:
                continue  # no more rows are sampled from at once
            x = torch.randn(m, k).to(dtype)
            ways: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"ours": ours, "torch": F.linear}
            if dtype != torch.float32:
                ways["wide"] = lambda x, w: kernels._wide(x, w, None)
            row: dict[str, Any] = {"op": name, "m": m, "n": n, "k": k}
            for way, function in ways.items():
                took = seconds(lambda i, f=function: f(x, copies[i % len(copies)]), budget)  # noqa: B023
                row[way] = {
                    "us": round(took * 1e6, 1),
                    "gb_s": round(n * k * dtype.itemsize / took / 1e9, 1),
                    "gflop_s": round(2 * m * n * k / took / 1e9, 1),
                }
            shown = (f"{w} {v['us']:.1f} us {v['gb_s']} GB/s {v['gflop_s']} GF" for w, v in row.items() if w in ways)
            print(f"{name:8} m={m:5}  " + "   ".join(shown), flush=True)
            out.append(row)
    return out


def elementwise(library: Any, dtype: torch.dtype, rows: list[int], budget: float) -> list[dict[str, Any]]:
    """Time norms, gates and rotary positions."""
    plain = {name: op.function for name, op in registered().items()}
    ours = ops.replacements(library, dtype, plain)
    out = []
    for m in rows:
        x, r, w = torch.randn(m, 576).to(dtype), torch.randn(m, 576).to(dtype), torch.randn(576).to(dtype)
        both, heads, cos = (
            torch.randn(m, 3072).to(dtype),
            torch.randn(m, 15, 64).to(dtype),
            torch.randn(m, 1, 64).to(dtype),
        )
        calls: dict[str, tuple[Any, ...]] = {
            "rms_norm": (x, w, 1e-5),
            "add_rms_norm": (x, r, w, 1e-5),
            "silu_mul": (both,),
            "rotary": (heads[:, :12], cos, cos),
        }
        for name, arguments in calls.items():
            row: dict[str, Any] = {"op": name, "m": m}
            for way, table in (("ours", ours), ("torch", plain)):
                row[way] = {"us": round(seconds(lambda i, f=table[name], a=arguments: f(*a), budget) * 1e6, 1)}
            print(f"{name:12} m={m:5} ours {row['ours']['us']:9.1f} us  torch {row['torch']['us']:9.1f} us", flush=True)
            out.append(row)
    return out


def step(table: dict[str, Callable[..., Any]], dtype: torch.dtype, disturb: bool = False) -> Callable[[int], Any]:
    """Return the work of a decode step. disturb: one operation of torch's own threads in each, as a sampler has."""
    layers = [
        {name: torch.randn(n, k).to(dtype) for name, (n, k) in SHAPES.items() if name != "head"} for _ in range(LAYERS)
    ]
    head, norm = torch.randn(*SHAPES["head"]).to(dtype), torch.ones(576).to(dtype)
    cos = torch.randn(1, 1, 64).to(dtype)
    first, large = torch.randn(1, 576).to(dtype), torch.randn(200_000)
    linear, add_norm = table["linear"], table["add_rms_norm"]

    def work(_: int) -> Any:
        x = first
        residual = first
        for w in layers:
            qkv = linear(x, w["qkv"]).view(1, 15, 64)
            q = table["rotary"](qkv[:, :12], cos, cos)
            x, residual = add_norm(linear(q[:, :9].reshape(1, 576), w["o"]), residual, norm, 1e-5)
            x, residual = add_norm(linear(table["silu_mul"](linear(x, w["gate_up"])), w["down"]), residual, norm, 1e-5)
        logits = linear(x, head)
        return large.exp() if disturb else logits

    return work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--isa", choices=ISAS, help="a poorer instruction set than the best")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rows", default="1,2,4,8,16,32,64,256,2048")
    parser.add_argument("--ops", default="step,products,elementwise")
    parser.add_argument("--budget", type=float, default=0.3, help="seconds for one figure")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = find()
    if found.library is None:
        raise SystemExit(f"there are no compiled kernels: {found.reason}")
    library, dtype = found.library, getattr(torch, arguments.dtype)
    if arguments.isa:
        library.peg_set_isa(ISAS.index(arguments.isa))
    torch.set_num_threads(arguments.threads)
    ops.follow_torch(library)
    rows = [int(m) for m in arguments.rows.split(",")]
    result: dict[str, Any] = {
        "isa": ISAS[library.peg_isa()], "dtype": arguments.dtype, "threads": arguments.threads, "torch": torch.__version__,
    }  # fmt: skip
    print(json.dumps(result))
    with torch.inference_mode():
        if "step" in arguments.ops:
            plain = {name: op.function for name, op in registered().items()}
            for name, table in (("ours", ops.replacements(library, dtype, plain)), ("torch", plain)):
                for disturb in (False, True):
                    took = seconds(step(table, dtype, disturb), 10 * arguments.budget) * 1e3
                    result[f"step_{name}{'_disturbed' if disturb else ''}_ms"] = round(took, 2)
                    print(f"step, {name}{', disturbed' if disturb else ''}: {took:.2f} ms", flush=True)
        if "products" in arguments.ops:
            result["products"] = products(library, dtype, rows, arguments.budget)
        if "elementwise" in arguments.ops:
            result["elementwise"] = elementwise(library, dtype, rows, arguments.budget)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
