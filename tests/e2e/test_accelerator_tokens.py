"""Greedy tokens of an accelerator are those of the host in float32, for every family: prompts and decodes mixed, captured or not."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import pytest
import torch

from pegboard.build import build_model, choose_platform, find_family
from pegboard.interfaces.engine import RequestOptions
from pegboard.plugins.load import Registry
from pegboard.types import SamplingParams
from pegboard_engine import EngineOptions, PagedEngine
from pegboard_sdk.toys.model import UNEVEN, RandomFiles

pytestmark = pytest.mark.gpu

MIXED = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True}
SIZES = {**UNEVEN, "hidden_size": 96, "intermediate_size": 160, "num_attention_heads": 6, "head_dim": 16}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {"tie_word_embeddings": True}),
    "mistral": ("MistralForCausalLM", {"sliding_window": 21}),
    "qwen2": ("Qwen2ForCausalLM", {}),
    "qwen3": ("Qwen3ForCausalLM", {}),
    "gemma2": (
        "Gemma2ForCausalLM",
        {
            "query_pre_attn_scalar": 24,
            "sliding_window": 13,
            "attn_logit_softcapping": 20.0,
            "final_logit_softcapping": 9.0,
            "hidden_activation": "gelu_pytorch_tanh",
        },
    ),
    "phi3": ("Phi3ForCausalLM", {}),
    "mixtral": ("MixtralForCausalLM", {"num_local_experts": 5, "num_experts_per_tok": 2}),
    "qwen2_moe": ("Qwen2MoeForCausalLM", {**MIXED, "shared_expert_intermediate_size": 32}),
    "qwen3_moe": ("Qwen3MoeForCausalLM", MIXED),
    "olmoe": ("OlmoeForCausalLM", {"num_experts": 6, "num_experts_per_tok": 2, "norm_topk_prob": True}),
}


@cache
def registry() -> Registry:
    return Registry.discover()


def config_of(name: str) -> dict[str, Any]:
    architecture, own = FAMILIES[name]
    return {**SIZES, "architectures": [architecture], "model_type": name, "eos_token_id": 0, **own}


def engine_on(platform: str, name: str, *, seed: int = 1, **options: Any) -> PagedEngine:
    config = config_of(name)
    files = RandomFiles(find_family(registry(), config), config, seed=seed)
    built = build_model(registry(), files, platform=platform, dtype="float32", phase="decode")
    engine = PagedEngine(EngineOptions(**{"max_num_seqs": 12, "max_num_tokens": 96, "max_model_len": 200, **options}))
    engine.load(built, None, registry())
    return engine


def tokens(engine: PagedEngine) -> list[list[int]]:
    """Twenty requests, which come while others run; some begin alike."""
    source = random.Random(4)
    head = [source.randrange(1, 97) for _ in range(37)]
    found: dict[str, list[int]] = {str(number): [] for number in range(20)}

    def step() -> None:
        for output in engine.step():
            assert output.error is None, output.error
            found[output.request_id] += output.token_ids

    for number in range(20):
        own = [source.randrange(1, 97) for _ in range(source.randrange(1, 60))]
        params = SamplingParams(temperature=0, ignore_eos=True, max_tokens=source.randrange(3, 40))
        engine.add_request(str(number), head * (number % 3 == 0) + own, params, RequestOptions())
        step()
    while engine.has_unfinished():
        step()
    return list(found.values())


@cache
def wanted(name: str) -> list[list[int]]:
    return tokens(engine_on("cpu", name))


def accelerator() -> str:
    name, platform = choose_platform(registry())
    if platform.device().type == "cpu":
        pytest.skip("no accelerator is here")
    return name


@pytest.fixture(autouse=True)
def exact() -> None:
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("name", FAMILIES)
def test_tokens_are_those_of_the_host(name: str) -> None:
    captured = engine_on(accelerator(), name)
    while captured.prepare():
        pass
    steps = captured._executor._runner._captured  # type: ignore[union-attr]
    assert tokens(captured) == wanted(name)
    assert steps is None or steps.num_replayed > 20
    plain = engine_on(accelerator(), name, graphs=False)
    assert tokens(plain) == wanted(name)


def test_those_of_preempted_requests_are_too() -> None:
    engine = engine_on(accelerator(), "qwen3")
    page = engine.memory.layout.page_bytes
    few = engine_on(accelerator(), "qwen3", kv_memory=26 * page, watermark=0)
    assert tokens(few) == wanted("qwen3")
    assert few.stats().preemptions > 0
