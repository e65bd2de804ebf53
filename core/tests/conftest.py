"""A toy platform, attention backend and family: what the core needs around it to build a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from pegboard.interfaces.attention import AttentionBackend
from pegboard.interfaces.format import ModelFiles
from pegboard.interfaces.model import ModelFamily
from pegboard.interfaces.platform import DeviceInfo, Phase, Platform
from pegboard.nn import CausalLM, dense_causal_lm, dense_parallel_plan
from pegboard.plugins.load import Registry
from pegboard.plugins.spec import PluginSpec
from pegboard.types import AttentionInputs, AttentionSpec, KVCache, KVLayout, ParallelRule

CONFIG: dict[str, Any] = {
    "architectures": ["ToyForCausalLM"],
    "vocab_size": 31,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


class ToyPlatform(Platform):
    """The host, with nothing of its own."""

    def devices(self) -> list[DeviceInfo]:
        return [DeviceInfo(0, "toy", 1 << 30, 1 << 30)]

    def device(self, index: int = 0) -> torch.device:
        return torch.device("cpu")

    def capabilities(self, index: int = 0) -> frozenset[str]:
        return frozenset()

    def default_dtype(self, index: int = 0) -> torch.dtype:
        return torch.float64

    def attention_preference(self, phase: Phase, spec: AttentionSpec) -> tuple[str, ...]:
        return ("absent", "toy")

    def kernels(self, phase: Phase, dtype: torch.dtype, index: int = 0) -> Mapping[str, Callable[..., Any]]:
        return {}

    def synchronize(self, index: int = 0) -> None:
        """Nothing runs behind the caller's back."""


class ToyAttention(AttentionBackend):
    """Attention of whole sequences, head by head."""

    def unsupported(self, spec: AttentionSpec, dtype: torch.dtype) -> str | None:
        return "no sliding windows" if spec.window is not None else None

    def layout(
        self, spec: AttentionSpec, num_layers: int, page_size: int, dtype: torch.dtype, shard: tuple[int, int] = (0, 1)
    ) -> KVLayout:
        return KVLayout(page_size, num_layers, spec.num_kv_heads, spec.head_dim, str(dtype).removeprefix("torch."))

    def plan(self, inputs: AttentionInputs, device: torch.device, layout: KVLayout | None) -> Any:
        return list(inputs.query_lens)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, plan: Any, cache: KVCache | None) -> Tensor:
        group = spec.num_heads // spec.num_kv_heads
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        parts = []
        for a, b, c in zip(q.split(plan), k.split(plan), v.split(plan), strict=True):
            scores = torch.einsum("qhd,khd->hqk", a, b) * spec.scale
            future = torch.ones(scores.shape[1:]).triu(1).bool()
            parts.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(future, float("-inf")).softmax(-1), c))
        return torch.cat(parts)


class ToyFamily(ModelFamily):
    """The dense decoder as it is."""

    def build(self, config: Mapping[str, Any]) -> CausalLM:
        return dense_causal_lm(config, qkv_bias=True, qk_norm=True, window=lambda layer: config.get("window"))

    def parallel_plan(self, config: Mapping[str, Any]) -> Sequence[ParallelRule]:
        return dense_parallel_plan(config)

    def rename(self, name: str) -> str | None:
        return None if name.endswith("stale") else name


class Held:
    """A tensor in memory, as a format hands it out; counts how often it was read."""

    def __init__(self, name: str, value: Tensor) -> None:
        self.name, self.value = name, value
        self.shape, self.dtype = tuple(value.shape), value.dtype
        self.loads = 0

    def load(self) -> Tensor:
        self.loads += 1
        return self.value

    def rows(self, start: int, stop: int) -> Tensor:
        return self.value[start:stop]


class ToyFiles(ModelFiles):
    """Random weights for a config."""

    location = "toy-model"
    generation_config: Mapping[str, Any] = {}
    files: Mapping[str, bytes] = {}
    portable = False
    config: Mapping[str, Any] = {}
    tensors: dict[str, Held] = {}  # type: ignore[assignment]  # noqa: RUF012  # set per instance

    def __init__(self, **changes: Any) -> None:
        self.config = {**CONFIG, **changes}
        generator = torch.Generator().manual_seed(3)
        with torch.device("meta"):
            model = ToyFamily().build(self.config)
        self.tensors = {
            name: Held(name, torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3)
            for name, parameter in model.named_parameters()
        }


def toy_registry(**changes: PluginSpec) -> Registry:
    """A registry of the toys; `changes` replace or add front doors by kind."""
    doors = {
        "platform": PluginSpec(kind="platform", target=f"{__name__}:ToyPlatform"),
        "attention": PluginSpec(kind="attention", target=f"{__name__}:ToyAttention"),
        "model": PluginSpec(
            kind="model",
            target=f"{__name__}:ToyFamily",
            capabilities={"architectures": ["ToyForCausalLM"], "model_types": ["toy"]},
        ),
        **changes,
    }
    return Registry.of({(kind, "toy"): spec for kind, spec in doors.items()})


@pytest.fixture
def registry() -> Registry:
    return toy_registry()


@pytest.fixture
def toy_files() -> Callable[..., ToyFiles]:
    return ToyFiles
