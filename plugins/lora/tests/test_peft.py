"""The same tensors in PEFT and here: outputs, gradients and files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pegboard.nn import Linear
from pegboard_lora import DoraAdapter, LoraAdapter, open_adapter
from pegboard_lora.options import LoraOptions

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "down_proj"]


def tiny(dtype: torch.dtype) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return LlamaForCausalLM(config).to(dtype).eval()


def ours_in(model: Any) -> Any:
    """Put our Linear, with the same values, in the place of each of the blocks' linear layers."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name != "lm_head":
            plain = Linear(module.in_features, module.out_features)
            plain.weight = module.weight
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, plain)
    return model


def peft_model(dtype: torch.dtype, *, dora: bool, rslora: bool = False) -> Any:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=4, lora_alpha=6, target_modules=TARGETS, task_type="CAUSAL_LM", use_dora=dora, use_rslora=rslora,
        rank_pattern={"q_proj": 2}, alpha_pattern={r"layers\.1\.self_attn\.v_proj": 3},
    )  # fmt: skip
    model = get_peft_model(tiny(dtype), config).to(dtype).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "magnitude" in name:
                parameter.mul_(1 + 0.2 * torch.rand(parameter.shape, generator=generator))
            elif "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
    return model


@pytest.mark.parametrize(("dora", "rslora"), [(False, False), (False, True), (True, False)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_peft_folder_gives_equal_logits_and_gradients_here(
    dora: bool, rslora: bool, dtype: torch.dtype, tmp_path: Path
) -> None:
    theirs = peft_model(dtype, dora=dora, rslora=rslora)
    theirs.save_pretrained(tmp_path)
    adapter, tensors = open_adapter(tmp_path)
    adapter = type(adapter)(adapter.options.model_copy(update={"dtype": str(dtype).removeprefix("torch.")}))
    ours = ours_in(tiny(dtype))
    adapter.attach(ours)
    adapter.load(ours, tensors)
    ids = torch.randint(0, 97, (2, 11))
    out, expected = ours(input_ids=ids, labels=ids), theirs(input_ids=ids, labels=ids)
    torch.testing.assert_close(out.logits, expected.logits, rtol=1e-5, atol=1e-5)
    out.loss.backward()
    expected.loss.backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters() if p.requires_grad}
    compared = 0
    for name, parameter in ours.named_parameters():
        if not parameter.requires_grad:
            continue
        module, _, leaf = name.rpartition(".")
        attribute = {"lora_a": "lora_A", "lora_b": "lora_B", "magnitude": "lora_magnitude_vector"}[leaf]
        wanted = gradients[f"base_model.model.{module}.{attribute}.default.weight"]
        assert (parameter.grad - wanted).norm() <= 1e-5 * wanted.norm() + 1e-8, name
        compared += 1
    assert compared == len(gradients)


@pytest.mark.parametrize("kind", [LoraAdapter, DoraAdapter])
def test_our_folder_loads_in_peft_with_equal_logits(kind: type[LoraAdapter], tmp_path: Path) -> None:
    from peft import PeftModel

    ours = ours_in(tiny(torch.float32))
    adapter = kind(LoraOptions(rank=3, alpha=6, targets=["*.self_attn.?_proj", "up_proj"], rank_pattern={"up_proj": 5}))
    adapter.attach(ours)
    adapter.initialise(ours, seed=0, dtype=torch.float32)
    generator = torch.Generator().manual_seed(3)
    for name, tensor in adapter.tensors(ours).items():
        noise = torch.randn(tensor.shape, generator=generator)
        tensor.mul_(1 + noise / 9) if "magnitude" in name else tensor.copy_(noise / 4)
    (tmp_path / "adapter_config.json").write_text(json.dumps(adapter.config("org/base")))
    save_file(adapter.tensors(ours), tmp_path / "adapter_model.safetensors")
    theirs = PeftModel.from_pretrained(tiny(torch.float32), tmp_path).eval()
    ids = torch.randint(0, 97, (2, 11))
    with torch.no_grad():
        torch.testing.assert_close(ours(input_ids=ids).logits, theirs(input_ids=ids).logits, rtol=1e-5, atol=1e-5)
        merged, expected = ours, theirs.merge_and_unload()
        adapter.merge(merged)
        torch.testing.assert_close(merged(input_ids=ids).logits, expected(input_ids=ids).logits, rtol=1e-5, atol=1e-5)
