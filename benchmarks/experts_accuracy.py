"""What fewer bits cost a mixture of experts: the error of one layer, and the loss of a toy that has learned something.

    python benchmarks/experts_accuracy.py [--steps 300]

The layer has the sizes of Qwen3-30B-A3B's, with fewer experts, and normal weights; its outputs are compared with those in float64. The toy
is a byte-level mixture that reads the project's own documentation; the last tenth is held out. About two minutes on two cores.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pegboard.build import BuiltModel, build_model
from pegboard.interfaces.quantizer import Quantizer
from pegboard.nn import MoE
from pegboard.nn.loss import cross_entropy_sum
from pegboard.nn.moe import mixtures
from pegboard.plugins.load import Registry
from pegboard.types import ForwardContext
from pegboard_sdk.toys.model import Held, RandomFiles

KINDS: Mapping[str, Any] = {
    "bfloat16": None,
    "int8, a scale for each output": "int8",
    "fp8, blocks of 128": "fp8",
    "fp8, a scale for each matrix": {"use": "fp8", "block": None},
    "int4, groups of 32": {"use": "int4", "activations": False},
    "int4, groups of 32, inputs int8": "int4",
    "nf4": "nf4",
}
LAYER = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "vocab_size": 64,
    "hidden_size": 2048,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "intermediate_size": 64,
    "num_experts": 8,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
}
TOY = {
    **LAYER,
    "vocab_size": 256,
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 128,
}
LENGTH = 256


def build(registry: Registry, files: RandomFiles, kind: Any, dtype: str, phase: Any = "decode") -> BuiltModel:
    quantizer: Quantizer | None = None if kind is None else registry.create("quantizer", kind)
    return build_model(registry, files, platform="cpu", dtype=dtype, phase=phase, quantizer=quantizer)


def output(layer: MoE, x: Tensor, chosen: tuple[Tensor, Tensor]) -> Tensor:
    """The experts' output with a routing that is given: an error of the router's would be of another kind."""
    ids, weights = chosen
    with torch.no_grad():
        return layer.experts(x, ids, weights.to(torch.float32), ForwardContext(torch.arange(len(x)), [])).double()


def layer_errors(registry: Registry) -> dict[str, float]:
    files = RandomFiles(registry.create("model", "qwen"), LAYER)
    (exact,) = mixtures(build(registry, files, None, "float64").model)
    x = torch.randn(64, LAYER["hidden_size"], generator=torch.Generator().manual_seed(1)).bfloat16()
    with torch.no_grad():
        chosen = exact.kernels.moe_route(exact.gate(x.double()), exact.k, True)
        wanted = exact.experts(x.double(), *chosen)
    found = {}
    for name, kind in KINDS.items():
        (layer,) = mixtures(build(registry, files, kind, "bfloat16").model)
        found[name] = float((output(layer, x, chosen) - wanted).norm() / wanted.norm())
    return found


def loss(built: BuiltModel, text: Tensor) -> Tensor:
    """Mean over the text's bytes, in sequences of LENGTH."""
    lens = [len(part) for part in text.split(LENGTH)]
    positions = torch.cat([torch.arange(n) for n in lens])
    targets = torch.full_like(text, -100)
    targets[:-1] = text[1:]
    targets[torch.tensor(lens).cumsum(0) - 1] = -100
    rows = (targets != -100).nonzero().squeeze(1)
    hidden = built.model(text, built.context(lens, positions))
    return cross_entropy_sum(hidden, built.model.head, targets, rows) / len(rows)


def toy_losses(registry: Registry, steps: int) -> dict[str, float]:
    folder = Path(__file__).parents[1]
    text = b"".join(path.read_bytes() for path in sorted(folder.glob("docs/*.md")))
    data = torch.tensor(list(text))
    train, held_out = data[: -len(data) // 10], data[-len(data) // 10 :]
    files = RandomFiles(registry.create("model", "qwen"), TOY)
    built = build(registry, files, None, "float32", "train")
    optimizer = torch.optim.AdamW(built.model.parameters(), lr=2e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        starts = torch.randint(len(train) - LENGTH, (8,), generator=generator).tolist()
        loss(built, torch.cat([train[start : start + LENGTH] for start in starts])).backward()
        optimizer.step()
        optimizer.zero_grad()
    files.tensors = {name: Held(name, p.detach().clone()) for name, p in built.model.named_parameters()}
    found = {}
    for name, kind in {"float32": None, **KINDS}.items():
        dtype = "float32" if name == "float32" else "bfloat16"
        with torch.no_grad():
            found[name] = float(loss(build(registry, files, kind, dtype), held_out))
    return found


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="of the toy")
    steps = parser.parse_args(argv).steps
    registry = Registry.discover()
    errors, losses = layer_errors(registry), toy_losses(registry, steps)
    print("| weights | relative error of the layer | held-out loss of the toy |\n|---|---|---|")
    for name, value in losses.items():
        print(f"| {name} | {f'{errors[name]:.2%}' if name in errors else ''} | {value:.4f} |")


if __name__ == "__main__":
    main()
