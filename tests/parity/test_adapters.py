"""Several adapters that PEFT made and wrote, served together: logits and greedy tokens are PEFT's with each of them active."""

from __future__ import annotations

import random
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from pegboard.interfaces.engine import RequestOptions
from pegboard.opened import open_any
from pegboard.plugins.load import Registry
from pegboard.types import SamplingParams
from pegboard_engine import EngineOptions, PagedEngine
from pegboard_lora import LoraAdapter, open_adapter
from pegboard_sdk.toys.model import UNEVEN

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("default")]

SIZES: dict[str, Any] = {**UNEVEN, "bos_token_id": None, "eos_token_id": None}
CHOICES: dict[str, dict[str, Any]] = {
    "attention": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]},
    "everything": {"r": 8, "lora_alpha": 5, "target_modules": "all-linear", "use_rslora": True},
    "patterns": {
        "r": 3,
        "lora_alpha": 7,
        "target_modules": ["v_proj", "down_proj"],
        "rank_pattern": {"down_proj": 6},
        "alpha_pattern": {r"layers\.1\.self_attn\.v_proj": 2},
    },
    "embeddings": {"r": 5, "lora_alpha": 9, "target_modules": ["embed_tokens", "q_proj"]},
}
NEW = 20


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """PEFT's model with all adapters, and the folder that holds its base and each adapter, written by transformers and PEFT."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("peft")
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(**SIZES)).float().eval()
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    base.save_pretrained(folder / "base")
    configs = {name: LoraConfig(task_type="CAUSAL_LM", **options) for name, options in CHOICES.items()}
    (first, config), *others = configs.items()
    model = get_peft_model(base, config, adapter_name=first).eval()
    for name, config in others:
        model.add_adapter(name, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn_like(parameter) / 4)
    model.save_pretrained(folder)
    return model, folder


def prompts() -> list[list[int]]:
    source = random.Random(2)
    return [[source.randrange(1, 97) for _ in range(length)] for length in (1, 30, 7, 19, 1, 1, 12, 1)]


def chosen(count: int) -> list[str | None]:
    names: list[str | None] = [*CHOICES, None]
    return [names[index % len(names)] for index in range(count)]


def theirs(model: Any, name: str | None) -> Any:
    """The context in which PEFT's model computes with one adapter, or with none."""
    if name is None:
        return model.disable_adapter()
    model.set_adapter(name)
    return nullcontext()


@torch.no_grad()
def test_logits_are_pefts(peers: tuple[Any, Path]) -> None:
    model, folder = peers
    built = open_any(Registry.discover(), str(folder / "base")).build(Registry.discover(), dtype="float32")
    slots = LoraAdapter.serving(built.model, num_slots=4, max_rank=8, dtype=torch.float32)
    for slot, name in enumerate(CHOICES):
        adapter, tensors = open_adapter(folder / name)
        slots.load(slot, tensors, adapter.config("base"))
    given = prompts()
    names, lens = chosen(len(given)), [len(prompt) for prompt in given]
    ctx = built.context(lens, torch.cat([torch.arange(length) for length in lens]))
    which = torch.tensor([-1 if name is None else list(CHOICES).index(name) for name in names])
    ctx.adapter_slots = which.repeat_interleave(torch.tensor(lens))
    out = built.model.head(built.model(torch.cat([torch.tensor(prompt) for prompt in given]), ctx)).split(lens)
    for name, prompt, mine in zip(names, given, out, strict=True):
        with theirs(model, name):
            right = model(input_ids=torch.tensor([prompt])).logits[0]
        torch.testing.assert_close(mine, right, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"max_num_tokens": 9, "max_num_seqs": 3, "page_size": 4}], ids=str)
def test_greedy_tokens_are_pefts(peers: tuple[Any, Path], options: dict[str, Any]) -> None:
    model, folder = peers
    registry = Registry.discover()
    engine = PagedEngine(EngineOptions(max_model_len=64, **options))
    engine.load(open_any(registry, str(folder / "base")).prepare(registry, dtype="float32"), None, registry)
    for name in CHOICES:
        engine.load_adapter(name, str(folder / name))
    given = prompts()
    names = chosen(len(given))
    params = SamplingParams(temperature=0.0, max_tokens=NEW, ignore_eos=True)
    for number, (prompt, name) in enumerate(zip(given, names, strict=True)):
        engine.add_request(str(number), prompt, params, RequestOptions(adapter=name))
    found: dict[str, list[int]] = {str(number): [] for number in range(len(given))}
    while engine.has_unfinished():
        for output in engine.step():
            found[output.request_id] += output.token_ids
    engine.close()
    for number, (prompt, name) in enumerate(zip(given, names, strict=True)):
        ids = torch.tensor([prompt])
        with theirs(model, name):
            right = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False
            )
        assert found[str(number)] == right[0, len(prompt) :].tolist(), (number, name)
