"""Serving on one device, random weights: `python benchmarks/serve.py SHAPE [--peer vllm] [--profile]`.

A fresh process: seconds from its start to the first token, with what was reached on the way; then the workloads of
`serve_workloads.py`, each warmed up once and told as the median of `--repeats`; what would not fit into `--seconds` is left out.
`--workloads ""` ends with the first token. `--peer vllm` runs vLLM in their place, in an environment where it is installed. `--profile`
tells where a decode step's time goes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from serve_workloads import UNITS, WORKLOADS, Requests, figure, shrunk
from shapes import SHAPES

TARGETS: dict[str, dict[str, float]] = {
    "qwen3-0.6b": {"first token": 8, "single": 1000, "shared": 0.75, "mixed": 28000},
    "llama-8b": {"first token": 10, "single": 240, "prefill": 90000, "shared": 1.45, "mixed": 11300},
    "qwen3-30b-a3b": {"first token": 15, "single": 400, "shared": 1.75, "mixed": 7000},
}
Generate = Callable[[Requests], int]
"""Runs requests together and returns the number of output tokens."""


def process_seconds() -> float:
    """Return the seconds since this process was started, by the kernel's clock where it tells."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError):
        return time.perf_counter() - _BEGAN


_BEGAN = time.perf_counter()


def say(text: str) -> None:
    """Print a line at once: whoever stops the program has what came before."""
    print(text, flush=True)


def start_pegboard(shape: str, args: argparse.Namespace) -> tuple[Generate, object]:
    """Return what runs requests, and the engine."""
    from pegboard.garbage import uncollected

    with uncollected():  # as the commands do
        from serve_pegboard import generate, start

        engine = start(SHAPES[shape], args, lambda what: say(f"  {process_seconds():6.2f} s  {what}"))
    return lambda requests: generate(engine, requests), engine


def start_vllm(shape: str, args: argparse.Namespace) -> tuple[Generate, object]:
    """Return what runs requests with vLLM, in this process."""
    import tempfile

    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    folder = Path(tempfile.mkdtemp())
    (folder / "config.json").write_text(json.dumps(SHAPES[shape]))
    from vllm import LLM, SamplingParams

    say(f"  {process_seconds():6.2f} s  imported")
    llm = LLM(
        model=str(folder),
        load_format="dummy",
        skip_tokenizer_init=True,
        dtype="bfloat16",
        max_model_len=args.max_model_len,
        gpu_memory_utilization=args.memory,
        enable_prefix_caching=True,
        disable_log_stats=True,
    )

    def generate(requests: Requests) -> int:
        prompts = [{"prompt_token_ids": prompt} for prompt, _ in requests]
        params = [
            SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=length, detokenize=False)
            for _, length in requests
        ]
        return sum(len(one.outputs[0].token_ids) for one in llm.generate(prompts, params, use_tqdm=False))

    return generate, llm


def measure(
    names: Iterable[str], generate: Generate, repeats: int, left: Callable[[], float], small: bool
) -> dict[str, tuple[float, list[float]]]:
    """Return (median, all) of each workload; those for which there is no time are not there."""
    found: dict[str, tuple[float, list[float]]] = {}
    for name in names:
        values: list[float] = []
        took = 0.0
        for repetition in range(repeats + 1):
            if left() < 1.3 * took:
                break
            requests = WORKLOADS[name](100 * repetition + 7)
            requests = shrunk(requests) if small else requests
            began = time.perf_counter()
            count = generate(requests)
            took = time.perf_counter() - began
            wanted = sum(output for _, output in requests)
            if count != wanted:
                sys.exit(f"{name}: {count} tokens of {wanted} came")
            value = figure(name, requests, took)
            if repetition:
                values.append(value)
            else:
                say(f"  {name}: {value:.4g} {UNITS[name]} at the first time ({took:.2f} s)")
        if values:
            found[name] = statistics.median(values), values
            say(f"  {name}: {found[name][0]:.4g} {UNITS[name]} of {', '.join(f'{v:.4g}' for v in values)}")
    return found


def table(shape: str, first: float, found: dict[str, tuple[float, list[float]]]) -> list[str]:
    """Return the rows for people."""
    targets = TARGETS.get(shape, {})
    rows = [("first token", first, "s from process start", "")]
    rows += [(name, value, UNITS[name], " ".join(f"{v:.4g}" for v in every)) for name, (value, every) in found.items()]
    lines = [f"{shape:14} {'figure':>10} {'wanted':>8}  unit"]
    for name, value, unit, every in rows:
        wanted = f"{targets[name]:g}" if name in targets else ""
        lines.append(f"{name:14} {value:>10.4g} {wanted:>8}  {unit:20} {every}")
    return lines


def main() -> None:
    """Run and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--peer", choices=["vllm"])
    parser.add_argument("--workloads", default=",".join(WORKLOADS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=480, help="of the whole run")
    parser.add_argument("--small", action="store_true", help="few short requests, as a test has time for")
    parser.add_argument("--profile", nargs="?", const="1,64,256", metavar="COUNTS", help="sequences at once")
    parser.add_argument("--memory", type=float, default=0.85, help="share of the device's memory")
    parser.add_argument("--max-model-len", type=int, default=4096)
    parser.add_argument("--max-num-tokens", type=int, default=8192, help="of a step")
    parser.add_argument("--no-graphs", action="store_true")
    parser.add_argument("--rehearse", action="store_true", help="make kernels ready while weights are made")
    parser.add_argument("--platform", default="auto")
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--dtype", default="bfloat16")
    args = parser.parse_args()
    # Not from the process's start: a test calls this in a process that has run for long.
    end = time.perf_counter() + args.seconds
    say(f"{args.shape}: starting")
    start = start_vllm if args.peer else start_pegboard
    generate, engine = start(args.shape, args)
    generate([([11] * 16, 1)])
    first = process_seconds()
    say(f"  {first:6.2f} s  first token")
    found: dict[str, tuple[float, list[float]]] = {}
    if args.profile:
        from serve_profile import profile

        profile(engine, say, [int(count) for count in args.profile.split(",")], small=args.small)
    else:
        names = [name for name in args.workloads.split(",") if name]
        found = measure(names, generate, args.repeats, lambda: end - time.perf_counter(), args.small)
    say("\n".join(table(args.shape, first, found)))


if __name__ == "__main__":
    main()
