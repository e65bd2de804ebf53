"""Training steps on an accelerator, against other projects and the targets: tokens a second, peak memory, time to the first step.

    python benchmarks/train.py llama-1b [--rows full lora …] [--peer transformers liger …] [--steps 8] [--batch 8] [--length 2048]
        [--set KEY=VALUE …] [--profile] [--json FILE]

Ours is `peg run sft`, as users start it, over random tokens, in a process of its own for each row; `--set` adds keys to all rows.
Weights, gradients and moments are bfloat16, rounded at random, but for `full-masters`, which keeps float32 copies and moments.
`--profile` records one further step and tells where the device's time went. A peer (`benchmarks/train_peers.py`) is a plain loop over
such batches in plain bfloat16; install what you compare with. GiB are those of tensors at their peak; the first step counts from the
start of the process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from shapes import LLAMA_1B
from train_peers import PEERS, measure_peer

from pegboard_bench.train.measure import Plan, figures

SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 256}
SMALL |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
SHAPES = {"llama-1b": LLAMA_1B, "tiny": LLAMA_1B | SMALL | {"bos_token_id": 0, "eos_token_id": 0}}
DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
"""Kinds of a trace's events that the device has."""

NARROW = ("optimizer.rounding=stochastic", "optimizer.states=bfloat16")
EVERY = ("adapter.targets=all-linear", "adapter.rank=8", "adapter.alpha=16", "adapter.dtype=bfloat16", *NARROW)
CHEAP, AGAIN = ("memory.recompute=cheap", "memory.every=2"), "memory.recompute=all"
ROWS: dict[str, tuple[str, tuple[str, ...], float | None, float | None]] = {
    "full": ("full", (*NARROW, *CHEAP), 72000, 26),
    "full-masters": ("full", ("optimizer.rounding=master", *CHEAP), None, None),
    "full-checkpointing": ("full", (*NARROW, AGAIN), 58000, 10.7),
    "lora": ("lora", (*EVERY, *CHEAP), 90000, 22),
    "lora-checkpointing": ("lora", (*EVERY, AGAIN), 65000, 8),
    "qlora": ("qlora", (*EVERY, *CHEAP), 85000, 22),
    "qlora-checkpointing": ("qlora", (*EVERY, AGAIN), 62000, 6.6),
}
"""Config and keys of each row, and what is wanted of `llama-1b` on one H200 at 8 x 2,048: tokens a second, GiB."""


def make_model(folder: Path, shape: dict[str, Any]) -> None:
    """Write a model of random weights, and a tokenizer with as many words as it has ids."""
    import torch
    from tokenizers import Tokenizer, models

    from pegboard.weights import write_safetensors

    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    generator = torch.Generator(device).manual_seed(0)
    hidden, inner, head = shape["hidden_size"], shape["intermediate_size"], shape["head_dim"]
    heads, kv_heads = shape["num_attention_heads"] * head, shape["num_key_value_heads"] * head
    matrices = {"self_attn.q_proj": (heads, hidden), "self_attn.k_proj": (kv_heads, hidden)}
    matrices |= {"self_attn.v_proj": (kv_heads, hidden), "self_attn.o_proj": (hidden, heads)}
    matrices |= {"mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden), "mlp.down_proj": (hidden, inner)}
    sizes: dict[str, tuple[int, ...]] = {"embed_tokens": (shape["vocab_size"], hidden), "norm": (hidden,)}
    for index in range(shape["num_hidden_layers"]):
        norms = {"input_layernorm": (hidden,), "post_attention_layernorm": (hidden,)}
        sizes |= {f"layers.{index}.{name}": size for name, size in (matrices | norms).items()}
    weights = {}
    for name, size in sizes.items():
        values = torch.randn(size, device=device, generator=generator, dtype=torch.float32) * 0.02
        weights[f"model.{name}.weight"] = (values if len(size) == 2 else values + 1).to(torch.bfloat16).cpu()
    write_safetensors(folder / "model.safetensors", weights.items())
    (folder / "config.json").write_text(json.dumps(shape))
    words = {"<end>": 0} | {f"w{index}": index for index in range(1, shape["vocab_size"])}
    Tokenizer(models.WordLevel(words, unk_token="<end>")).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"}))


def ceilings() -> str:
    """Return what a copy (read and written) and a product in bfloat16 reach on the device; nothing on the host."""
    import torch

    device = torch.accelerator.current_accelerator()
    if device is None:
        return ""

    def fastest(run: Callable[[], object]) -> float:
        times = []
        for _ in range(12):
            begin, end = (torch.Event(device, enable_timing=True) for _ in range(2))
            begin.record()
            run()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) / 1e3)
        return statistics.median(times[2:])

    source = torch.randn(1 << 29, device=device, dtype=torch.bfloat16)
    copied = 2 * source.nbytes / fastest(source.clone)
    a = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    multiplied = 2 * 8192**3 / fastest(lambda: a @ a)
    source = None  # the runs need the memory
    torch.accelerator.empty_cache()
    return f", a copy at {copied / 1e12:.2f} TB/s, a product at {multiplied / 1e12:.0f} TFLOP/s"


def measure(args: argparse.Namespace, row: str, model: Path, folder: Path) -> dict[str, Any]:
    """Run `peg run sft` for a row and return its figures; with `--profile`, what the recorded step took by kernel."""
    config, keys, *_ = ROWS[row]
    warmup, output = args.warmup, folder / row
    given = [f"model.path={model}", "model.dtype=bfloat16", *keys, *args.set]
    plan = Plan("sft", args.steps + args.profile, warmup, args.batch, args.length, given)
    command = [sys.executable, "-m", "pegboard", *plan.arguments(config, output)]
    if args.profile:
        command.append(f"profile.first={warmup + args.steps + 1}")
    began = time.perf_counter()
    told, first = folder / f"{row}.log", None
    with told.open("w") as log, subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT) as process:
        while process.poll() is None:
            if first is None and (output / "metrics.jsonl").exists() and (output / "metrics.jsonl").stat().st_size:
                first = time.perf_counter() - began
            time.sleep(0.02)
    if process.returncode:
        return {"failed": "\n".join(told.read_text().rstrip().splitlines()[-12:])}
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    found = figures([line for line in lines if "tokens_per_second" in line][: warmup + args.steps], warmup)
    kept = ("tokens_per_second", "step_seconds", "fastest_step_seconds", "mfu", "losses")
    traces = sorted((output / "profile").glob("*.trace.json"))
    return {
        **{name: found[name] for name in kept},
        "gib": found["memory_gb"] * 1e9 / 2**30,
        "first_step_s": first,
        **({"profile": profile(traces[0])} if traces else {}),
    }


def profile(trace: Path) -> dict[str, Any]:
    """Return what a recorded step took on the device, in ms: from its first kernel to its last, without any, and of each kernel."""
    events = [e for e in json.loads(trace.read_text())["traceEvents"] if e.get("ph") == "X"]
    device = [e for e in events if e.get("cat") in DEVICE]
    device = device or [e for e in events if e.get("cat") == "cpu_op"]
    device.sort(key=lambda e: e["ts"])
    times: dict[str, list[float]] = defaultdict(list)
    gaps: list[tuple[float, float, str]] = []
    end = device[0]["ts"]
    for event in device:
        times[event["name"]].append(event["dur"] / 1e3)
        if event["ts"] > end:
            gaps.append(((event["ts"] - end) / 1e3, (end - device[0]["ts"]) / 1e3, event["name"]))
        end = max(end, event["ts"] + event["dur"])
    given = {
        e["args"]["correlation"]: e["ts"]
        for e in events
        if "correlation" in e.get("args", {}) and e.get("cat") not in DEVICE
    }
    ahead = [e["ts"] - given[e["args"]["correlation"]] for e in device if e["args"].get("correlation") in given]
    ordered = sorted(times.items(), key=lambda item: -sum(item[1]))
    return {
        "span_ms": (end - device[0]["ts"]) / 1e3,
        "idle_ms": sum(gap for gap, _, _ in gaps),
        "count": len(device),
        "ahead_ms": statistics.median(ahead) / 1e3 if ahead else 0.0,
        "gaps": sorted(gaps, reverse=True)[:6],
        "kernels": [(name, len(all_), sum(all_)) for name, all_ in ordered],
    }


def profile_lines(row: str, told: dict[str, Any], most: int) -> list[str]:
    """Return a profile for people."""
    lines = [
        f"{row}: {told['span_ms']:.1f} ms, {told['idle_ms']:.1f} of them idle, {told['count']} kernels, the host"
        f" {told['ahead_ms']:.1f} ms ahead"
    ]
    lines += [f"  {gap:7.2f} ms idle at {at:7.1f} before {name[:90]}" for gap, at, name in told["gaps"]]
    lines += [f"  {total:7.2f} ms {count:5} x {name[:120]}" for name, count, total in told["kernels"][:most]]
    rest = sum(total for _, _, total in told["kernels"][most:])
    return [*lines, f"  {rest:7.2f} ms       others"]


HEAD = f"{'':34}{'tokens/s':>10}{'wanted':>9}{'GiB':>8}{'at most':>9}{'s a step':>10}{'1st step':>10}  loss"


def line(name: str, told: dict[str, Any], *, targets: bool) -> str:
    """Return the table's line of a row, ours or a peer's."""
    if "failed" in told:
        return f"{name:34} failed: {told['failed']}"
    wanted, most = ROWS[name][2:] if targets and name in ROWS else (None, None)
    first, losses = told.get("first_step_s"), told["losses"]
    return (
        f"{name:34}{told['tokens_per_second']:>10,.0f}{f'{wanted:,.0f}' if wanted else '':>9}{told['gib']:>8.1f}"
        f"{most or '':>9}{told['step_seconds']:>10.4f}{f'{first:.1f}' if first else '':>10}"
        f"  {losses[0]:.4f} … {statistics.fmean(losses[-3:]):.4f}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all rows, ours first, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--rows", nargs="*", choices=ROWS, default=list(ROWS))
    parser.add_argument("--peer", nargs="*", choices=PEERS, default=[])
    for name, value in (("batch", 8), ("length", 2048), ("steps", 8), ("warmup", 3), ("kernels", 24)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="further keys of our runs")
    parser.add_argument("--profile", action="store_true", help="tell the kernels of one further step")
    parser.add_argument("--json", help="write all figures to a file")
    args = parser.parse_args(arguments)
    rows: dict[str, dict[str, Any]] = {}

    def tell(name: str, told: dict[str, Any]) -> None:
        rows[name] = told
        print(line(name, told, targets=args.shape == "llama-1b"), flush=True)
        if "profile" in told:
            print("\n".join(profile_lines(name, told["profile"], args.kernels)), flush=True)

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = folder / "model"
        model.mkdir()
        make_model(model, SHAPES[args.shape])
        print(f"{args.shape}, bfloat16, batch {args.batch} x {args.length}, medians of {args.steps} steps{ceilings()}")
        print(HEAD, flush=True)
        for row in args.rows:
            tell(row, measure(args, row, model, folder))
        for peer in args.peer:
            for row in args.rows:
                told = measure_peer(peer, row, model, args)
                if told is not None:
                    tell(f"{row}, {peer}", told)
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
