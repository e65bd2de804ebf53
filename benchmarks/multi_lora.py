"""Tokens a second of a batch whose requests use several LoRA adapters of one base, in turn with none.

    python benchmarks/multi_lora.py [--model FOLDER] [--dtype bfloat16] [--threads 2] [--rank 16] [--rounds 3] [--json]
    python benchmarks/multi_lora.py --shape qwen3-0.6b --adapters 64 --batch 64     # on an accelerator

Without a model it makes one of SmolLM2-135M's shape with random weights; of another shape on its device. Each case is a batch of 32
requests of 128 + 64 tokens, greedy, whose adapters go round: none loaded, all loaded that nobody uses, 1, 4 (8 of many) and all of them
in use, and all that every second request uses. Two figures a case: `prompt`, prompt tokens a second until every request has its first
token, and `decode`, output tokens a second from then on. Medians of rounds in which the cases take turns; steps are captured before.
Needs pegboard-engine, pegboard-llama, pegboard-hub, pegboard-lora, a platform and an attention backend.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from serve_pegboard import RandomFiles
from shapes import SHAPES

from pegboard.build import choose_platform, find_family, prepare_model
from pegboard.interfaces.engine import RequestOptions
from pegboard.opened import open_any
from pegboard.plugins.load import Registry
from pegboard.types import SamplingParams
from pegboard.weights import write_safetensors
from pegboard_engine import EngineOptions, PagedEngine
from pegboard_lora import LoraAdapter
from pegboard_lora.options import LoraOptions

SHAPE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
FOLDERS = 8
"""Adapters with values of their own. Of more than these some have equal values, in memory of their own."""


def cases(most: int) -> dict[str, tuple[int, list[int]]]:
    """Return case -> how many adapters are loaded, and which the requests use in turn."""
    some = 4 if most <= 8 else 8
    return {
        "none": (0, [-1]),
        f"{most} idle": (most, [-1]),
        "1": (most, [0]),
        f"{some}": (most, list(range(some))),
        f"{most}": (most, list(range(most))),
        f"{most}, every second": (most, [slot for index in range(most) for slot in (index, -1)]),
    }


def make_model(folder: Path, registry: Registry) -> None:
    """Write a model of `SHAPE` with random weights."""
    with torch.device("meta"):
        model = find_family(registry, SHAPE).build(SHAPE)
    generator = torch.Generator().manual_seed(0)
    weights = [
        (name, (torch.randn(p.shape, generator=generator) * 0.04 + name.endswith("norm.weight")).bfloat16())
        for name, p in model.named_parameters()
    ]
    write_safetensors(folder / "model.safetensors", weights)
    (folder / "config.json").write_text(json.dumps(SHAPE))


def make_adapters(folder: Path, registry: Registry, config: Mapping[str, Any], rank: int) -> list[str]:
    """Write adapters with random values for every linear layer, and return their folders."""
    found = []
    adapter = LoraAdapter(LoraOptions(rank=rank, alpha=2 * rank, targets="all-linear"))
    with torch.device("meta"):
        built = find_family(registry, config).build(config)
    adapter.attach(built)
    for index in range(FOLDERS):
        generator = torch.Generator().manual_seed(index)
        tensors = [
            (name, torch.randn(tensor.shape, generator=generator) * 0.02)
            for name, tensor in adapter.tensors(built).items()
        ]
        path = folder / f"adapter-{index}"
        path.mkdir()
        write_safetensors(path / "adapter_model.safetensors", tensors)
        (path / "adapter_config.json").write_text(json.dumps(adapter.config("random")))
        found.append(str(path))
    return found


def measure(
    engine: PagedEngine, requests: int, which: list[int], seed: int, length: int, output: int
) -> dict[str, float]:
    """Run a batch and return its two rates."""
    source = random.Random(seed)
    params = SamplingParams(temperature=0.0, max_tokens=output, ignore_eos=True, detokenize=False)
    for index in range(requests):
        slot = which[index % len(which)]
        prompt = [source.randrange(1000, min(48000, engine.vocab_size)) for _ in range(length)]
        name = None if slot < 0 else str(slot)
        engine.add_request(f"{seed}-{index}", prompt, params, RequestOptions(adapter=name))
    begun, began, behind = set(), time.perf_counter(), 0
    first = began
    while engine.has_unfinished():
        outputs = engine.step()
        if len(begun) < requests:
            begun |= {output.request_id for output in outputs}
            first = time.perf_counter()
            continue
        behind += sum(len(output.token_ids) for output in outputs)
    ended = time.perf_counter()
    return {"prompt": requests * length / (first - began), "decode": behind / (ended - first)}


def main() -> None:
    """Run the rounds and print medians, and each as a share of the rate without adapters."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--shape", choices=SHAPES, help="of a model with random weights, made on its device")
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=128, help="tokens")
    parser.add_argument("--output", type=int, default=64, help="tokens")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    args = parser.parse_args()
    registry = Registry.discover()
    platform, hardware = choose_platform(registry)
    hardware.configure(threads=args.threads)
    told_cases = cases(args.adapters)
    rates: dict[str, list[dict[str, float]]] = {name: [] for name in told_cases}
    with tempfile.TemporaryDirectory() as folder:
        if args.shape is None:
            model = args.model or folder
            if args.model is None:
                make_model(Path(folder), registry)
            opened = open_any(registry, model)
            config, built = opened.files.config, opened.prepare(registry, platform=platform, dtype=args.dtype)
        else:
            config = SHAPES[args.shape]
            dtype, device = getattr(torch, args.dtype), hardware.device(0)
            files = RandomFiles(find_family(registry, config), config, dtype, device)
            built = prepare_model(registry, files, platform=platform, dtype=args.dtype, phase="decode")
        adapters = make_adapters(Path(folder), registry, config, args.rank)
        options = EngineOptions(
            max_num_seqs=args.batch,
            max_model_len=256,
            prefix_caching=False,
            max_adapters=args.adapters,
            max_adapter_rank=args.rank,
        )
        engine = PagedEngine(options)
        engine.load(built, None, registry)
        for number in range(args.rounds):
            for name, (loaded, which) in told_cases.items():
                for index in range(len(engine.adapters()), loaded):
                    engine.load_adapter(str(index), adapters[index % FOLDERS])
                # The first step of a set of adapters lays their weights side by side, where they are computed so.
                measure(engine, min(args.batch, 2 * args.adapters), which, -1 - number, 8, 2)
                while engine.prepare():
                    pass
                rates[name].append(measure(engine, args.batch, which, number, args.prompt, args.output))
            for name in list(engine.adapters()):
                engine.unload_adapter(name)
        engine.close()
    told = {
        name: {metric: statistics.median(one[metric] for one in rounds) for metric in ("prompt", "decode")}
        for name, rounds in rates.items()
    }
    if args.json:
        settings = {
            key: getattr(args, key)
            for key in ("shape", "adapters", "dtype", "threads", "rank", "batch", "prompt", "output", "rounds")
        }
        print(json.dumps({**settings, "platform": platform, "tokens_per_second": told}))
        return
    print(f"{args.dtype}, {args.threads} threads, {args.batch} requests, rank {args.rank}, all linear layers")
    print(f"{'adapters':16} {'prompt':>9} {'':>6} {'decode':>9} {'':>6}")
    for name, one in told.items():
        shares = {metric: one[metric] / told["none"][metric] for metric in one}
        print(
            f"{name:16} {one['prompt']:>9.1f} {shares['prompt']:>6.0%} {one['decode']:>9.1f} {shares['decode']:>6.0%}"
        )


if __name__ == "__main__":
    main()
