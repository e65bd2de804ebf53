"""Greedy tokens of the engine against transformers' `generate`, and of an adapter folder against PEFT."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from pegboard.opened import open_any
from pegboard.plugins.load import Registry
from pegboard.types import SamplingParams
from pegboard_engine import EngineOptions, PagedEngine
from pegboard_engine.memory import plan_memory
from pegboard_sdk.toys.model import UNEVEN

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("default")]

SIZES: dict[str, Any] = {**UNEVEN, "bos_token_id": None, "eos_token_id": None}
# Of four prompts and their answers one stays below the pretrained length, one is beyond it, two grow over it.
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.5, 2.0],
    "long_factor": [2.0, 4.0, 9.0],
    "partial_rotary_factor": 0.75,
}
GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 7}
MIXED = {"num_experts_per_tok": 2}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma2": ("gemma2", {**GEMMA, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 30.0}),
    "gemma3": ("gemma3_text", {**GEMMA, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}),
    "phi3": ("phi3", {}),
    "phi4-longrope": ("phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 28}),
    "llama": ("llama", {}),
    "mistral-window": ("mistral", {"sliding_window": 7}),
    "mixtral": ("mixtral", {**MIXED, "num_local_experts": 5}),
    "olmoe": ("olmoe", {**MIXED, "num_experts": 6, "clip_qkv": 0.9, "norm_topk_prob": True}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2-moe": (
        "qwen2_moe",
        {**MIXED, "num_experts": 6, "moe_intermediate_size": 12, "shared_expert_intermediate_size": 20},
    ),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "qwen3-moe": ("qwen3_moe", {**MIXED, "num_experts": 6, "moe_intermediate_size": 12, "mlp_only_layers": [1]}),
}
LENGTHS, NEW = (1, 40, 7, 23), 24
# A tiny cache: 30 pages of 4 tokens for 168 that all four have in the end.
TIGHT = {"page_size": 4, "max_model_len": 80, "max_num_tokens": 16, "max_num_seqs": 4, "watermark": 0.0}
OPTIONS: dict[str, dict[str, Any]] = {
    "whole": {},
    "chunks": {"max_num_tokens": 9, "max_num_seqs": 3, "page_size": 4},
    "torch's attention, no graphs": {"attention": "sdpa", "graphs": False},
    "preempted": {**TIGHT, "kv_pages": 30},
    "another process": {"executor": "multiproc", "max_num_tokens": 16, "max_num_seqs": 4},
    "guessed at": {"speculator": "ngram"},
}


def prompts() -> list[list[int]]:
    source = random.Random(2)
    return [[source.randrange(1, 97) for _ in range(length)] for length in LENGTHS]


def peer(name: str) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    model_type, options = CASES[name]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **SIZES, **options)).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def theirs(model: Any, **options: Any) -> list[list[int]]:
    """One prompt at a time, so that no padding takes part."""
    found = []
    for prompt in prompts():
        out = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=NEW,
            do_sample=False,
            **options,
        )
        found.append(out[0, len(prompt) :].tolist())
    return found


def ours(
    folder: Path, *, penalty: float = 1.0, kv_pages: int = 0, attention: str = "auto", **options: Any
) -> list[list[int]]:
    """All prompts together, twice: the second time beginnings are found in the cache; and each with a second answer."""
    registry = Registry.discover()
    built = open_any(registry, str(folder)).prepare(registry, platform="cpu", dtype="float32", attention=attention)
    if kv_pages:
        options["kv_memory"] = (1 + kv_pages) * plan_memory(built, EngineOptions(**options)).layout.page_bytes
    engine = PagedEngine(EngineOptions(**options))
    engine.load(built, None, registry)
    params = SamplingParams(max_tokens=NEW, temperature=0.0, repetition_penalty=penalty, n=2)
    found = []
    for _ in range(2):
        for number, prompt in enumerate(prompts()):
            engine.add_request(str(number), prompt, params)
        tokens: dict[tuple[str, int], list[int]] = {}
        while engine.has_unfinished():
            for output in engine.step():
                tokens.setdefault((output.request_id, output.index), []).extend(output.token_ids)
        found += [[tokens[str(number), index] for number in range(len(LENGTHS))] for index in range(2)]
    stats = engine.stats()
    assert stats.held_pages == 0
    assert stats.prefix_hits > 0
    assert not kv_pages or stats.preemptions > 0
    engine.close()
    assert all(tokens == found[0] for tokens in found)
    return found[0]


@pytest.mark.parametrize("name", CASES)
def test_greedy_tokens_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    model = peer(name)
    model.save_pretrained(tmp_path)
    wanted = theirs(model)
    assert len({tuple(tokens) for tokens in wanted}) == len(wanted)
    for options in OPTIONS.values():
        assert ours(tmp_path, **options) == wanted, options


def test_repetition_penalty_is_that_of_transformers(tmp_path: Path) -> None:
    model = peer("llama")
    model.save_pretrained(tmp_path)
    wanted = theirs(model, repetition_penalty=1.3)
    assert wanted != theirs(model)
    assert ours(tmp_path, penalty=1.3) == wanted


@pytest.mark.parametrize("dora", [False, True])
def test_an_adapter_folder_gives_the_tokens_of_peft(dora: bool, tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    model = peer("llama")
    model.save_pretrained(tmp_path / "base")
    plain = theirs(model)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "up_proj"], use_dora=dora)
    adapted = get_peft_model(base, config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3)
    adapted.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    wanted = theirs(loaded.eval())
    assert wanted != plain
    assert ours(tmp_path / "adapter") == wanted
