"""A LoRA training step here and in PEFT, in turn, each in a process of its own: tokens a second and peak memory.

    python benchmarks/lora_step.py [--dtype float32] [--rounds 3] [--steps 3]

Both train a model of SmolLM2-135M's shape with random weights, rank 8 on q, k, v and o, with torch's AdamW. Needs transformers and
peft beside pegboard, pegboard-sdpa, pegboard-cpu and pegboard-lora.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

SHAPE = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
}
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]


def peft_step(dtype: torch.dtype, batch: int, length: int, dora: bool) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**SHAPE, tie_word_embeddings=True, attn_implementation="sdpa")
    model = LlamaForCausalLM(config).to(dtype)
    model.config.use_cache = False
    settings = LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS, task_type="CAUSAL_LM", use_dora=dora)
    model = get_peft_model(model, settings).train()
    return model, lambda ids: model(input_ids=ids.view(batch, length), labels=ids.view(batch, length)).loss


def our_step(dtype: torch.dtype, batch: int, length: int, dora: bool) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    from pegboard.nn import Attention, CausalLM, Decoder, DecoderLayer, GatedMLP, Rotary
    from pegboard.nn.layer import bind_kernels
    from pegboard.nn.loss import cross_entropy_sum
    from pegboard.ops import kernel_table
    from pegboard.types import AttentionInputs, AttentionSpec, ForwardContext
    from pegboard_cpu.platform import CpuPlatform
    from pegboard_lora import DoraAdapter, LoraAdapter
    from pegboard_lora.options import LoraOptions
    from pegboard_sdpa.backend import SdpaAttention

    hidden, heads = SHAPE["hidden_size"], SHAPE["num_attention_heads"]
    width = hidden // heads
    backend = SdpaAttention()
    with torch.device("meta"):
        layers: list[nn.Module] = []
        for index in range(SHAPE["num_hidden_layers"]):
            spec = AttentionSpec(index, heads, SHAPE["num_key_value_heads"], width, width**-0.5)
            mlp = GatedMLP(hidden, SHAPE["intermediate_size"])
            layers.append(DecoderLayer(Attention(hidden, spec), mlp, hidden, 1e-5))
        decoder = Decoder(SHAPE["vocab_size"], hidden, layers, _norm(hidden))
        model = CausalLM(decoder, [Rotary(width, 10000.0)], tied=True, max_positions=length)
    adapter = (DoraAdapter if dora else LoraAdapter)(LoraOptions(rank=8, alpha=16, targets=TARGETS))
    adapter.attach(model)
    for module in model.modules():
        if isinstance(module, Attention):
            module.backend = backend
        if isinstance(module, Rotary):
            module.materialise(torch.device("cpu"))
        for name, parameter in list(module.named_parameters(recurse=False)):
            if not name.startswith("lora_") and name != "magnitude":
                value = torch.empty(parameter.shape, dtype=dtype)
                value = value.fill_(1.0) if value.dim() == 1 else value.normal_(0.0, 0.02)
                setattr(module, name, nn.Parameter(value, requires_grad=False))
    bind_kernels(model, kernel_table(CpuPlatform().kernels("train", dtype)))
    model.fuse()
    adapter.initialise(model, seed=0, dtype=dtype)
    model.train()
    plan = backend.plan(AttentionInputs([length] * batch, [length] * batch), torch.device("cpu"), None)
    positions = torch.arange(length).repeat(batch)
    rows = torch.arange(batch * length).view(batch, length)[:, :-1].flatten()

    def loss(ids: Tensor) -> Tensor:
        out = model(ids, ForwardContext(positions=positions, plans=[plan]))
        return cross_entropy_sum(out, model.head, ids.roll(-1), rows) / len(rows)

    return model, loss


def _norm(size: int) -> nn.Module:
    from pegboard.nn import RMSNorm

    return RMSNorm(size, 1e-5)


def child(args: argparse.Namespace) -> None:
    """Train a few steps and print one JSON line."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    make = {"pegboard": our_step, "peft": peft_step}[args.child]
    model, loss_of = make(getattr(torch, args.dtype), args.batch, args.length, args.dora)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    tokens = args.batch * args.length
    times = []
    for _ in range(args.steps + 1):
        ids = torch.randint(1000, 48000, (tokens,))
        start = time.perf_counter()
        loss = loss_of(ids)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        times.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"tokens_s": tokens / statistics.median(times[1:]), "peak_mb": peak, "loss": loss.item()}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--dora", action="store_true")
    for name, value in (("batch", 4), ("length", 512), ("steps", 3), ("rounds", 3), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--child", choices=["pegboard", "peft"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args)
        return
    results: dict[str, list[dict[str, float]]] = {"peft": [], "pegboard": []}
    for turn in range(args.rounds):
        for name in list(results) if turn % 2 == 0 else list(results)[::-1]:
            command = [sys.executable, __file__, *sys.argv[1:], "--child", name]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            results[name].append(json.loads(out.splitlines()[-1]))
            print(name, results[name][-1], flush=True)
    medians = {
        n: {k: round(statistics.median(r[k] for r in rs), 1) for k in ("tokens_s", "peak_mb")}
        for n, rs in results.items()
    }
    print(json.dumps({"dtype": args.dtype, "dora": args.dora, **medians}))


if __name__ == "__main__":
    main()
