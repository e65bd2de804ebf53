"""Generation here and in transformers, in turn, each in a process of its own: tokens a second of `stream` and `prompt2k`.

    python benchmarks/generate.py [--model FOLDER] [--dtype bfloat16] [--threads 2] [--rounds 3] [--cpus 0,1]

Without a model it makes one of SmolLM2-135M's shape with random weights. Both take greedy tokens for random ids at a fixed length:
stream is 128 + 256 tokens, counted after the first one; prompt2k is 2,048 + 1. Needs transformers beside pegboard-engine,
pegboard-llama, pegboard-hub, pegboard-tokenizers, pegboard-sdpa and pegboard-cpu.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SHAPE = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
WORKLOADS = ("stream", "prompt2k")


def make_model(folder: Path) -> None:
    """Write a model of `SHAPE` with random weights, and a tokenizer that nobody asks for text."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SHAPE)).to(torch.bfloat16).save_pretrained(folder)
    Tokenizer(models.WordLevel({"<end>": 0}, unk_token="<end>")).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"}))


def ours(model: str, dtype: str, threads: int) -> dict[str, Any]:
    """Run `peg bench offline` and return rates by workload, and the peak memory in MB."""
    command = [sys.executable, "-m", "pegboard", "bench", "offline", model, "--json", "--dtype", dtype]
    command += ["--threads", str(threads), "--repetitions", "1", "--platform", "cpu"]
    command += [part for name in WORKLOADS for part in ("--workload", name)]
    told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {row["workload"]: row["value"] for row in told["workloads"]} | {"peak MB": told["peak_rss_mb"]}


def theirs(model: str, dtype: str, threads: int) -> dict[str, Any]:
    """The same in transformers, in a child process."""
    command = [sys.executable, __file__, "--child", "--model", model, "--dtype", dtype, "--threads", str(threads)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def child(model: str, dtype: str, threads: int) -> None:
    """Measure transformers and print the figures."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype), attn_implementation="sdpa").eval()
    loaded.generation_config.eos_token_id = None
    loaded.generation_config.pad_token_id = 0

    @torch.inference_mode()
    def seconds(prompt: int, output: int, seed: int) -> float:
        source = random.Random(seed)
        ids = torch.tensor([[source.randint(1000, 48000) for _ in range(prompt)]])
        began = time.perf_counter()
        loaded.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=output,
            min_new_tokens=output,
            do_sample=False,
        )
        return time.perf_counter() - began

    seconds(64, 16, 9)
    told: dict[str, Any] = {
        "stream": 255 / (seconds(128, 256, 0) - seconds(128, 1, 0)),
        "prompt2k": 2048 / seconds(2048, 1, 0),
    }
    told["peak MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps(told))


def main() -> None:
    """Run the rounds and print medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cpus", help="processors to run on, such as 0,1")
    parser.add_argument("--make", help=argparse.SUPPRESS)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make:
        make_model(Path(args.make))
        return
    if args.child:
        child(args.model, args.dtype, args.threads)
        return
    if args.cpus:
        os.sched_setaffinity(0, {int(cpu) for cpu in args.cpus.split(",")})
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        if args.model is None:
            # In a process of its own: what this one has held would count as the peak of those that it starts.
            subprocess.run([sys.executable, __file__, "--make", folder], check=True)
        model = args.model or folder
        rounds = [
            (ours(model, args.dtype, args.threads), theirs(model, args.dtype, args.threads)) for _ in range(args.rounds)
        ]
    print(f"{args.dtype}, {args.threads} threads, medians of {args.rounds} rounds")
    print(f"{'':10} {'pegboard':>10} {'transformers':>13} {'ratio':>6}")
    for name in (*WORKLOADS, "peak MB"):
        mine, other = (statistics.median(pair[side][name] for pair in rounds) for side in (0, 1))
        print(f"{name:10} {mine:>10.1f} {other:>13.1f} {mine / other:>6.2f}")


if __name__ == "__main__":
    main()
