"""The peers of benchmarks/train.py: a plain loop each, in a process of its own. Not a program for people."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PEERS = ("transformers", "transformers-compile", "liger", "torchtune", "torchtune-compile")
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
Made = tuple[list[Any], Callable[[Any], Any]]


def measure_peer(peer: str, row: str, model: Path, args: argparse.Namespace) -> dict[str, Any] | None:
    """Return the figures of a peer for a row; None where it has no such thing."""
    if row == "full-masters" or (row.startswith("qlora") and not peer.startswith("torchtune")):
        return None
    command = [sys.executable, __file__, peer, row, str(model)]
    command += [str(value) for value in (args.batch, args.length, args.steps, args.warmup)]
    began = time.time()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"failed": done.stderr.rstrip().splitlines()[-1:]}
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told | {"first_step_s": told["first_step_at"] - began}


def child(peer: str, row: str, model: str, batch: int, length: int, steps: int, warmup: int) -> None:
    """Train some steps and print figures."""
    import torch

    torch.manual_seed(0)
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    config = json.loads((Path(model) / "config.json").read_text())
    make = _transformers if peer.startswith(("transformers", "liger")) else _torchtune
    parameters, loss_of = make(peer, row, model, config, device)
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=True)
    times, losses, first = [], [], 0.0
    for index in range(warmup + steps):
        ids = torch.randint(10, config["vocab_size"], (batch, length), device=device)
        if index == warmup and device.type != "cpu":
            torch.get_device_module(device).reset_peak_memory_stats()
        began = time.perf_counter()
        loss = loss_of(ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss))  # waits, as a loop that tells its loss does
        times.append(time.perf_counter() - began)
        first = first or time.time()
    middle = statistics.median(times[warmup:])
    peak = torch.get_device_module(device).max_memory_allocated() / 2**30 if device.type != "cpu" else 0.0
    told = {"tokens_per_second": batch * length / middle, "step_seconds": middle, "gib": peak, "losses": losses}
    print(json.dumps(told | {"first_step_at": first}))


def _transformers(peer: str, row: str, path: str, config: dict[str, Any], device: Any) -> Made:
    import torch
    from transformers import AutoModelForCausalLM

    if peer == "liger":
        from liger_kernel.transformers import apply_liger_kernel_to_llama

        apply_liger_kernel_to_llama()
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16, attn_implementation="sdpa").to(device)
    model.config.use_cache = False
    if row.startswith("lora"):
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS, task_type="CAUSAL_LM"))
    if row.endswith("checkpointing"):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if row.startswith("lora"):
            model.enable_input_require_grads()
    model.train()
    if peer.endswith("compile"):
        model.compile()
    return [p for p in model.parameters() if p.requires_grad], lambda ids: model(input_ids=ids, labels=ids).loss


def _torchtune(peer: str, row: str, path: str, config: dict[str, Any], device: Any) -> Made:
    import torch
    from torchtune import modules, training
    from torchtune.models.llama3_2 import llama3_2, lora_llama3_2
    from torchtune.modules.loss import CEWithChunkedOutputLoss

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
    torch.set_default_dtype(torch.bfloat16)
    with device:
        if row.startswith("full"):
            model = llama3_2(**shape)
        else:
            names = ["q_proj", "k_proj", "v_proj", "output_proj"]
            model = lora_llama3_2(
                lora_attn_modules=names,
                apply_lora_to_mlp=True,
                lora_rank=8,
                lora_alpha=16,
                quantize_base=row.startswith("qlora"),
                **shape,
            )
            adapters = modules.peft.get_adapter_params(model)
            modules.peft.set_trainable_params(model, adapters)
    torch.set_default_dtype(before)
    if row.endswith("checkpointing"):
        training.set_activation_checkpointing(model, auto_wrap_policy={modules.TransformerSelfAttentionLayer})
    loss = CEWithChunkedOutputLoss()
    model.set_num_output_chunks(loss.num_output_chunks)
    if peer.endswith("compile"):
        training.compile_model(model, verbose=False)
        training.compile_loss(loss, verbose=False)
    return [p for p in model.parameters() if p.requires_grad], lambda ids: loss(model(ids), torch.roll(ids, -1, 1))


if __name__ == "__main__":
    child(*sys.argv[1:4], *(int(value) for value in sys.argv[4:]))
