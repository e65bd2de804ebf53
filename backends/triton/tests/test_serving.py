"""An engine whose model computes with these kernels: tokens are those of torch's own functions."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

from pegboard.build import BuiltModel, build_model
from pegboard.fresh import FreshPrompts
from pegboard.plugins.load import Registry
from pegboard.plugins.spec import PluginSpec
from pegboard.types import SamplingParams
from pegboard_engine import EngineOptions, PagedEngine
from pegboard_engine.plugin import UNIPROC
from pegboard_sdk.toys.model import TINY, RandomFiles
from pegboard_sdk.toys.platform import HostPlatform
from pegboard_triton.plugin import ATTENTION
from pegboard_triton.table import replacements

pytestmark = pytest.mark.slow


class Interpreted(HostPlatform):
    """The host as a device that computes apart, with the kernels in Triton's interpreter."""

    def capabilities(self, index: int = 0) -> frozenset[str]:
        return frozenset({"apart"})

    def kernels(self, phase: Any, dtype: torch.dtype, index: int = 0) -> Mapping[str, Callable[..., Any]]:
        return replacements(phase, dtype)


REGISTRY = Registry.of(
    {
        ("platform", "interpreted"): PluginSpec(kind="platform", target=f"{__name__}:Interpreted"),
        ("platform", "host"): PluginSpec(kind="platform", target="pegboard_sdk.toys.platform:HostPlatform"),
        ("attention", "triton"): ATTENTION,
        ("attention", "sdpa"): PluginSpec(kind="attention", target="pegboard_sdpa.backend:SdpaAttention"),
        ("model", "tiny"): PluginSpec(
            kind="model",
            target="pegboard_sdk.toys.model:TinyFamily",
            capabilities={"architectures": ["TinyForCausalLM"], "model_types": ["tiny"]},
        ),
        ("executor", "uniproc"): UNIPROC,
    }
)


def model(platform: str, attention: str) -> BuiltModel:
    config = {**TINY, "hidden_size": 64, "head_dim": 16, "intermediate_size": 48}
    files = RandomFiles(REGISTRY.create("model", "tiny"), config, seed=5)
    return build_model(REGISTRY, files, platform=platform, attention=attention, dtype="float32", phase="decode")


def tokens(built: BuiltModel, **params: Any) -> list[list[int]]:
    engine = PagedEngine(EngineOptions(page_size=16, max_model_len=64, max_num_seqs=3, max_num_tokens=24))
    engine.load(built, None, REGISTRY)
    source = random.Random(2)
    found: dict[str, list[int]] = {}
    for number in range(4):
        prompt = [source.randrange(260) for _ in range(3 + 9 * number)]
        options = {"temperature": 0, "max_tokens": 4 + number, "ignore_eos": True, "seed": number, **params}
        engine.add_request(str(number), prompt, SamplingParams(**options))
    while engine.has_unfinished():
        for output in engine.step():
            assert output.error is None, output.error
            found.setdefault(output.request_id, []).extend(output.token_ids)
    engine.close()
    return [found[str(number)] for number in range(4)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled here: they cannot compute on the host")
@pytest.mark.parametrize("params", [{}, {"temperature": 0.9, "top_p": 0.9}], ids=str)
def test_tokens(params: dict[str, Any]) -> None:
    assert tokens(model("interpreted", "triton"), **params) == tokens(model("host", "sdpa"), **params)


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled here: they cannot compute on the host")
def test_fresh_prompts_apart() -> None:
    """Prompts that begin in a step are computed by another attention, chunks that go on by the kernels, from what they wrote for both."""
    built = model("interpreted", "triton+sdpa")
    assert built.attention_name == "triton+sdpa" and isinstance(built.attention, FreshPrompts)
    assert tokens(built) == tokens(model("host", "sdpa"))
