"""Mixtures of experts: the load-balancing loss and its gradient, and files in 8-bit floats, against transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pegboard.build import build_model
from pegboard.cli import run_cli
from pegboard.nn.loss import cross_entropy_sum
from pegboard.opened import open_any
from pegboard.plugins.load import Registry
from pegboard.weights import write_safetensors
from pegboard_lora import LoraAdapter
from pegboard_lora.options import LoraOptions
from pegboard_sdk.toys.model import UNEVEN
from pegboard_trainer.config import RoutingSection
from pegboard_trainer.routing import follow

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("default")]

SIZES: dict[str, Any] = {**UNEVEN, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.3}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("mixtral", {"num_local_experts": 5}),
    "olmoe": ("olmoe", {"num_experts": 6}),
    "qwen2-moe": (
        "qwen2_moe",
        {"num_experts": 6, "moe_intermediate_size": 12, "shared_expert_intermediate_size": 20},
    ),
    "qwen3-moe": ("qwen3_moe", {"num_experts": 6, "moe_intermediate_size": 12, "mlp_only_layers": [1]}),
}
ADAPTED: dict[str, list[str]] = {
    "mixtral": ["q_proj", "w1", "w2", "w3"],
    "olmoe": ["q_proj", "gate_proj", "up_proj", "down_proj"],
    "qwen2-moe": ["q_proj", "v_proj"],  # PEFT would take the shared expert's for those of the experts
}
LENGTH = 33


def peer(name: str, folder: Path) -> Any:
    """A model of transformers, saved as it saves them."""
    from transformers import AutoConfig, AutoModelForCausalLM

    model_type, options = CASES[name]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **SIZES, **options)).float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("name", CASES)
def test_balance_loss(name: str, tmp_path: Path) -> None:
    model = peer(name, tmp_path)
    ids = torch.randint(0, 97, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    out = model(ids, labels=ids, output_router_logits=True)
    out.loss.backward()
    registry = Registry.discover()
    built = open_any(registry, str(tmp_path)).build(registry, dtype="float32", platform="cpu", phase="train")
    routing = follow([built.model], built.files.config, RoutingSection(balance="config"))
    assert routing is not None
    routing.begin(torch.ones(()))
    targets = torch.full_like(ids, -100)
    targets[:, :-1] = ids[:, 1:]
    rows = (targets.flatten() != -100).nonzero().squeeze(1)
    hidden = built.model(ids.flatten(), built.context([LENGTH] * 2, torch.arange(LENGTH).repeat(2)))
    (cross_entropy_sum(hidden, built.model.head, targets.flatten(), rows) / len(rows)).backward()
    total, count = routing.metrics()["router/balance"]
    assert float(total) / float(count) == pytest.approx(out.aux_loss.item(), rel=1e-5)
    mine = dict(built.model.named_parameters())
    theirs = {n: p.grad for n, p in model.named_parameters() if n.endswith((".gate.weight", "embed_tokens.weight"))}
    for theirs_name, gradient in theirs.items():
        own = mine[theirs_name.replace(".mlp.gate", ".block_sparse_moe.gate") if name == "mixtral" else theirs_name]
        torch.testing.assert_close(own.grad, gradient, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", ["mixtral", "qwen3-moe"])
def test_8_bit_files_are_read_there(name: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, FineGrainedFP8Config

    peer(name, tmp_path / "plain")
    arguments = ["convert", str(tmp_path / "plain"), str(tmp_path / "fp8"), "--to", "hf", "--quantizer", "fp8"]
    assert run_cli(arguments) == 0
    registry = Registry.discover()
    built = open_any(registry, str(tmp_path / "fp8")).build(registry, dtype="float32", platform="cpu")
    folder, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "fp8",
        quantization_config=FineGrainedFP8Config(dequantize=True),
        dtype=torch.float32,
        output_loading_info=True,
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    ids = torch.randint(0, 97, (LENGTH,), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        wanted = folder(ids[None]).logits[0].float()
        found = built.model.head(built.model(ids, built.context([LENGTH], torch.arange(LENGTH))))
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ADAPTED)
def test_adapters_on_experts_are_pefts(name: str, tmp_path: Path) -> None:
    """PEFT puts those of single experts together, where gate, up and down are all adapted."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    peer(name, tmp_path / "base")
    registry = Registry.discover()
    adapter = LoraAdapter(LoraOptions(rank=4, alpha=6, targets=ADAPTED[name]))
    files = open_any(registry, str(tmp_path / "base")).files
    built = build_model(registry, files, platform="cpu", dtype="float32", adapter=adapter)
    with torch.no_grad():
        for own, parameter in built.model.named_parameters():
            if "lora_" in own:
                parameter.copy_(torch.randn_like(parameter) / 4)
    (tmp_path / "adapter").mkdir()
    write_safetensors(tmp_path / "adapter" / "adapter_model.safetensors", adapter.tensors(built.model).items())
    config = json.dumps(adapter.config(str(tmp_path / "base")))
    (tmp_path / "adapter" / "adapter_config.json").write_text(config)
    theirs = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tmp_path / "base").float(), tmp_path / "adapter"
    ).eval()
    ids = torch.randint(0, 97, (LENGTH,), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found = built.model.head(built.model(ids, built.context([LENGTH], torch.arange(LENGTH))))
        torch.testing.assert_close(found, theirs(ids[None]).logits[0], atol=1e-4, rtol=1e-4)
