"""Greedy tokens of an engine under a mixed load, for every family: the check that an accelerator and the interpreter of kernels share."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from pegboard.build import build_model, find_family
from pegboard.interfaces.engine import RequestOptions
from pegboard.plugins.load import Registry
from pegboard.types import SamplingParams
from pegboard_engine import EngineOptions, PagedEngine
from pegboard_lora import LoraAdapter
from pegboard_lora.options import LoraOptions
from pegboard_sdk.toys.model import UNEVEN, RandomFiles

_MIXED = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True}
_SIZES = {**UNEVEN, "hidden_size": 96, "intermediate_size": 160, "num_attention_heads": 6, "head_dim": 16}
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
    "gemma3_text": (
        "Gemma3ForCausalLM",
        {"query_pre_attn_scalar": 24, "sliding_window": 13, "sliding_window_pattern": 2},
    ),
    "phi3": ("Phi3ForCausalLM", {"partial_rotary_factor": 0.5}),
    "mixtral": ("MixtralForCausalLM", {"num_local_experts": 5, "num_experts_per_tok": 2}),
    "qwen2_moe": ("Qwen2MoeForCausalLM", {**_MIXED, "shared_expert_intermediate_size": 32}),
    "qwen3_moe": ("Qwen3MoeForCausalLM", _MIXED),
    "olmoe": ("OlmoeForCausalLM", {"num_experts": 6, "num_experts_per_tok": 2, "norm_topk_prob": True}),
}


@dataclass(frozen=True, eq=False)
class Load:
    """What is asked of an engine, and of which model. Every third prompt has the same beginning, of `head` tokens.

    sizes: in place of those of the configs. own: most further tokens of a prompt. most: most tokens of an answer.
    """

    requests: int = 20
    head: int = 37
    own: int = 60
    most: int = 40
    sizes: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(
        default_factory=lambda: {"max_num_seqs": 12, "max_num_tokens": 96, "max_model_len": 200}
    )


@cache
def registry() -> Registry:
    """The plugins that are installed."""
    return Registry.discover()


def _files(family: str, load: Load) -> RandomFiles:
    architecture, own = FAMILIES[family]
    head = {"architectures": [architecture], "model_type": family, "eos_token_id": 0}
    config = {**_SIZES, **head, **own, **load.sizes}
    return RandomFiles(find_family(registry(), config), config, seed=1)


def engine_on(platform: str, family: str, load: Load, **options: Any) -> PagedEngine:
    """Return an engine in float32 whose weights depend on the family alone. options: of the engine, over those of the load."""
    built = build_model(registry(), _files(family, load), platform=platform, dtype="float32", phase="decode")
    engine = PagedEngine(EngineOptions(**{**load.options, **options}))
    engine.load(built, None, registry())
    return engine


def answers(engine: PagedEngine, load: Load, adapters: tuple[str | None, ...] = (None,)) -> list[list[int]]:
    """Return the tokens of requests that come while others run, so that steps mix prompts, parts of them and decodes.

    adapters: names of loaded ones, which requests use in turn.
    """
    source = random.Random(4)
    head = [source.randrange(1, 97) for _ in range(load.head)]
    found: dict[str, list[int]] = {str(number): [] for number in range(load.requests)}

    def step() -> None:
        for output in engine.step():
            assert output.error is None, output.error
            found[output.request_id] += output.token_ids

    for number in range(load.requests):
        own = [source.randrange(1, 97) for _ in range(source.randrange(1, load.own))]
        params = SamplingParams(temperature=0, ignore_eos=True, max_tokens=source.randrange(3, load.most))
        options = RequestOptions(adapter=adapters[number % len(adapters)])
        engine.add_request(str(number), head * (number % 3 == 0) + own, params, options)
        step()
    while engine.has_unfinished():
        step()
    return list(found.values())


def write_adapter(folder: Path, family: str, load: Load, *, rank: int, targets: Any, seed: int) -> str:
    """Write an adapter that changes what the model says, and return its folder."""
    adapter = LoraAdapter(LoraOptions(dtype="float32", rank=rank, alpha=2 * rank, targets=targets))
    options: dict[str, Any] = {"platform": "cpu", "dtype": "float32", "phase": "decode"}
    built = build_model(registry(), _files(family, load), adapter=adapter, **options)
    generator = torch.Generator().manual_seed(seed)
    tensors = {n: torch.randn(x.shape, generator=generator) / 4 for n, x in adapter.tensors(built.model).items()}
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(adapter.config("toy")))
    save_file(tensors, folder / "adapter_model.safetensors")
    return str(folder)


def replayed(engine: PagedEngine) -> int | None:
    """Return how many steps a captured one served; None where this platform captures none."""
    captured = engine._executor._runner._captured  # type: ignore[union-attr]
    return None if captured is None else captured.num_replayed


@contextmanager
def exact() -> Iterator[None]:
    """Products of float32 are of float32, whatever the process is set to."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@cache
def of_the_host(family: str, load: Load) -> list[list[int]]:
    """Return what the host answers, computed by torch's own functions and the reference of what it has none for."""
    return answers(engine_on("cpu", family, load, kv_memory="16MB"), load)
