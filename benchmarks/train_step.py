"""Training steps here and in other projects, in turn, each in a process of its own: tokens a second and peak memory.

    python benchmarks/train_step.py [--model FOLDER] [--dtype bfloat16] [--methods full lora] [--peers transformers torchtune]
        [--rounds 3] [--steps 3] [--threads 2] [--cpus 0,2] [--set optimizer.states=bfloat16 …]

Batches of random tokens. Ours is `peg bench train sft`, the run that users start, with its own optimizer's settings (`--set` adds keys);
the peers are a plain loop with torch's AdamW: transformers, with PEFT for lora, and torchtune's model, chunked loss and LoRA. lora is
rank 8 on q, k, v and o. Without a model it makes one of SmolLM2-135M's shape with random weights. The peers are not requirements of any
member: install what you compare with.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
PEERS = ("transformers", "torchtune")
Figures = dict[str, float]


def ours(args: argparse.Namespace, method: str) -> Figures:
    """Run `peg bench train` and return tokens_s and peak_mb."""
    command = [sys.executable, "-m", "pegboard", "bench", "train", "sft", "--config", method, "--json"]
    command += ["--steps", str(args.steps), "--size", str(args.batch), "--length", str(args.length)]
    command += [f"model.path={args.model}", f"model.dtype={args.dtype}", "model.platform=cpu", *args.set]
    if method == "lora":
        command += ["adapter.rank=8", "adapter.alpha=16", f"adapter.targets=[{','.join(TARGETS)}]"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    told = json.loads(done.stdout)["medians"][method]
    return {"tokens_s": told["tokens_per_second"], "peak_mb": told["memory_gb"] * 1e9 / 2**20}


def theirs(args: argparse.Namespace, method: str, peer: str) -> Figures:
    """The same in another project, in a child process."""
    command = [sys.executable, __file__, "--child", peer, "--methods", method, "--model", args.model]
    command += ["--dtype", args.dtype, "--steps", str(args.steps), "--batch", str(args.batch)]
    command += ["--length", str(args.length), "--threads", str(args.threads)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    told: Figures = json.loads(done.stdout.splitlines()[-1])
    return told


def child(args: argparse.Namespace) -> None:
    """Train a few steps with one peer and print its figures."""
    import torch

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    make = {"transformers": _transformers, "torchtune": _torchtune}[args.child]
    parameters, loss_of = make(args, args.methods[0])
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=True)
    tokens, times = args.batch * args.length, []
    for _ in range(args.steps + 1):
        ids = torch.randint(1000, 48000, (args.batch, args.length))
        start = time.perf_counter()
        loss_of(ids).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        times.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"tokens_s": tokens / statistics.median(times[1:]), "peak_mb": peak}))


def _transformers(args: argparse.Namespace, method: str) -> tuple[list, Callable]:
    import torch
    from transformers import AutoModelForCausalLM

    dtype = getattr(torch, args.dtype)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype, attn_implementation="sdpa")
    model.config.use_cache = False
    if method == "lora":
        from peft import LoraConfig, get_peft_model

        settings = LoraConfig(r=8, lora_alpha=16, target_modules=list(TARGETS), task_type="CAUSAL_LM")
        model = get_peft_model(model, settings)
    model.train()
    return [p for p in model.parameters() if p.requires_grad], lambda ids: model(input_ids=ids, labels=ids).loss


def _torchtune(args: argparse.Namespace, method: str) -> tuple[list, Callable]:
    import torch
    from torchtune.models.llama3_2 import llama3_2, lora_llama3_2
    from torchtune.modules.loss import CEWithChunkedOutputLoss
    from torchtune.modules.peft import get_adapter_params, set_trainable_params

    config = json.loads((Path(args.model) / "config.json").read_text())
    shape = {
        "vocab_size": config["vocab_size"],
        "num_layers": config["num_hidden_layers"],
        "num_heads": config["num_attention_heads"],
        "num_kv_heads": config["num_key_value_heads"],
        "embed_dim": config["hidden_size"],
        "intermediate_dim": config["intermediate_size"],
        "max_seq_len": 2048,
    }
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, args.dtype))
    if method == "lora":
        names = ["q_proj", "k_proj", "v_proj", "output_proj"]
        model = lora_llama3_2(lora_attn_modules=names, lora_rank=8, lora_alpha=16, **shape)
        set_trainable_params(model, get_adapter_params(model))
    else:
        model = llama3_2(**shape)
    torch.set_default_dtype(before)
    loss = CEWithChunkedOutputLoss()
    model.set_num_output_chunks(loss.num_output_chunks)
    model.train()

    def step(ids: torch.Tensor) -> torch.Tensor:
        labels = torch.hstack((ids[..., 1:], torch.full((len(ids), 1), loss.ignore_index)))
        return loss(model(ids), labels)

    return [p for p in model.parameters() if p.requires_grad], step


def main() -> None:
    """Run the rounds and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--methods", nargs="+", choices=("full", "lora"), default=["full", "lora"])
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=["transformers"])
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="further keys of our run")
    for name, value in (("batch", 4), ("length", 512), ("steps", 3), ("rounds", 3), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--cpus", help="processors to run on, such as 0,2")
    parser.add_argument("--json", help="write all figures to a file")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args)
        return
    if args.cpus:
        os.sched_setaffinity(0, {int(cpu) for cpu in args.cpus.split(",")})
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    rows: dict[str, dict[str, list[Figures]]] = {
        m: {who: [] for who in ("pegboard", *args.peers)} for m in args.methods
    }
    with tempfile.TemporaryDirectory() as folder:
        if args.model is None:
            generate = str(Path(__file__).with_name("generate.py"))
            subprocess.run([sys.executable, generate, "--make", folder], check=True, stderr=subprocess.DEVNULL)
            args.model = folder
        for turn in range(args.rounds):
            for method in args.methods:
                order = ["pegboard", *args.peers]
                for who in order if turn % 2 == 0 else reversed(order):
                    told = ours(args, method) if who == "pegboard" else theirs(args, method, who)
                    rows[method][who].append(told)
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1))
    print(f"{args.dtype}, {args.threads} threads, batch {args.batch} x {args.length}, medians of {args.rounds} rounds")
    for method, who in rows.items():
        middle = {n: {k: statistics.median(one[k] for one in all_) for k in all_[0]} for n, all_ in who.items()}
        best = middle["pegboard"]
        for name, told in middle.items():
            print(
                f"{method:6} {name:14} {told['tokens_s']:>9.1f} tokens/s ({best['tokens_s'] / told['tokens_s']:5.2f})"
                f" {told['peak_mb']:>8.0f} MB ({best['peak_mb'] / told['peak_mb']:5.2f})"
            )


if __name__ == "__main__":
    main()
