"""A tiny model with random weights, built by the core as any other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from pegboard.build import BuiltModel, build_model
from pegboard.interfaces.adapter import Adapter
from pegboard.interfaces.format import LazyTensor, ModelFiles
from pegboard.interfaces.model import ModelFamily
from pegboard.interfaces.platform import Phase
from pegboard.interfaces.quantizer import Quantizer
from pegboard.nn import CausalLM, Experts, MoE, dense_causal_lm, dense_parallel_plan
from pegboard.nn.mixed import expert_rules
from pegboard.plugins.load import Registry
from pegboard.plugins.spec import PluginSpec
from pegboard.types import AttentionInputs, ForwardContext, KVCache, KVLayout, ParallelRule

TINY: Mapping[str, Any] = MappingProxyType(
    {
        "architectures": ["TinyForCausalLM"],
        "model_type": "tiny",
        "vocab_size": 260,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
    }
)
"""The config of the tiny model; its vocabulary is that of the tiny tokenizer."""

MIXTURE: Mapping[str, Any] = MappingProxyType(
    {**TINY, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "hidden_size": 32}
)
"""The config of a tiny mixture of experts; its first layer is dense."""

UNEVEN: Mapping[str, Any] = MappingProxyType(
    {
        "vocab_size": 97,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "pad_token_id": 0,
    }
)
"""Sizes of a config.json that differ from one another, so that what mixes them up fails: for comparisons with other projects."""

_PLATFORM = PluginSpec(kind="platform", target="pegboard_sdk.toys.platform:HostPlatform")
_ATTENTION = PluginSpec(kind="attention", target="pegboard_sdk.toys.attention:ReferenceAttention")
_FAMILY = PluginSpec(
    kind="model",
    target="pegboard_sdk.toys.model:TinyFamily",
    capabilities={"architectures": ["TinyForCausalLM"], "model_types": ["tiny"]},
)


class TinyFamily(ModelFamily):
    """The dense decoder of `pegboard.nn`; with `num_experts` in the config, a mixture in every layer but the first."""

    def build(self, config: Mapping[str, Any]) -> CausalLM:
        def mixture(layer: int) -> MoE | None:
            if "num_experts" not in config or layer == 0:
                return None
            hidden, inner = config["hidden_size"], config["moe_intermediate_size"]
            experts = Experts(config["num_experts"], hidden, inner)
            return MoE(hidden, experts, config["num_experts_per_tok"], renormalise=True, index=layer - 1)

        return dense_causal_lm(config, mixture=mixture)

    def parallel_plan(self, config: Mapping[str, Any]) -> Sequence[ParallelRule]:
        return (*expert_rules(), *dense_parallel_plan(config))


class Held:
    """A tensor in memory, as a format hands it out."""

    def __init__(self, name: str, value: Tensor) -> None:
        self.name, self.value = name, value
        self.shape, self.dtype = tuple(value.shape), value.dtype

    def load(self) -> Tensor:
        """Return the whole."""
        return self.value

    def rows(self, start: int, stop: int) -> Tensor:
        """Return a part of it."""
        return self.value[start:stop]


class RandomFiles(ModelFiles):
    """The files of a model whose weights are random, of the names and shapes that `family` builds; float64."""

    location = "random-weights"
    config: Mapping[str, Any] = MappingProxyType({})
    generation_config: Mapping[str, Any] = MappingProxyType({})
    files: Mapping[str, bytes] = MappingProxyType({})
    tensors: Mapping[str, LazyTensor] = MappingProxyType({})
    portable = False

    def __init__(self, family: ModelFamily, config: Mapping[str, Any], *, seed: int = 0) -> None:
        with torch.device("meta"):
            model = family.build(config)
        generator = torch.Generator().manual_seed(seed)
        tensors: dict[str, LazyTensor] = {}
        for name, parameter in model.named_parameters():
            value = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            # Norms near 1 and matrices that keep the scale: states stay of order 1 whatever the depth.
            scale = parameter.shape[-1] ** -0.5
            tensors[name] = Held(name, 1 + 0.1 * value if name.endswith("norm.weight") else value * scale)
        self.config, self.tensors = config, tensors


def random_model(
    family: PluginSpec = _FAMILY,
    config: Mapping[str, Any] = TINY,
    *,
    dtype: str = "float64",
    phase: Phase = "train",
    adapter: Adapter | None = None,
    quantizer: Quantizer | None = None,
    seed: int = 0,
) -> BuiltModel:
    """Build a model with random weights on the host, over the reference attention.

    family: front door of its model family. config: a toy-sized config.json. phase "train": its parameters take gradients.
    """
    registry = Registry.of(
        {("platform", "host"): _PLATFORM, ("attention", "reference"): _ATTENTION, ("model", "tested"): family}
    )
    files = RandomFiles(registry.create("model", "tested"), config, seed=seed)
    return build_model(registry, files, dtype=dtype, phase=phase, adapter=adapter, quantizer=quantizer, seed=seed)


def positions_of(lens: Sequence[int]) -> Tensor:
    """Return the positions of whole sequences laid end to end, [T] int64."""
    return torch.cat([torch.arange(length) for length in lens]) if lens else torch.zeros(0, dtype=torch.int64)


def hidden_states(built: BuiltModel, input_ids: Tensor, lens: Sequence[int] | None = None) -> Tensor:
    """Return the last hidden states of whole sequences without a cache: [T] ids -> [T, H]."""
    lens = [len(input_ids)] if lens is None else lens
    positions = positions_of(lens).to(built.device)
    out: Tensor = built.model(input_ids.to(built.device), built.context(lens, positions))
    return out


def logits(built: BuiltModel, input_ids: Tensor, lens: Sequence[int] | None = None) -> Tensor:
    """Return the logits of whole sequences: [T] ids -> [T, V]."""
    out: Tensor = built.model.head(hidden_states(built, input_ids, lens))
    return out


def cache_of(layout: KVLayout, pages: int, device: torch.device | None = None, fill: float = 0.0) -> KVCache:
    """Return a cache of `layout`, every element of which is `fill`."""
    sizes = {"P": pages, "S": layout.page_size, "H": layout.num_kv_heads, "D": layout.head_dim}
    shape = [sizes[axis] for axis in layout.order]
    dtype = getattr(torch, layout.dtype)
    k, v = ([torch.full(shape, fill, dtype=dtype, device=device) for _ in range(layout.num_layers)] for _ in "kv")
    return KVCache(layout, k, v)


def step_context(
    built: BuiltModel, cache: KVCache, old: Sequence[int], new: Sequence[int], pages: Sequence[Sequence[int]]
) -> ForwardContext:
    """Return the context of a step over a cache: sequence i has old[i] cached tokens, new[i] new ones, and the pages pages[i]."""
    size = cache.layout.page_size
    spans = [range(o, o + n) for o, n in zip(old, new, strict=True)]
    slots = [row[t // size] * size + t % size for row, span in zip(pages, spans, strict=True) for t in span]
    decodes = next((i for i, n in enumerate(new) if n != 1), len(new))
    inputs = AttentionInputs(list(new), [span.stop for span in spans], pages, torch.tensor(slots), num_decodes=decodes)
    plan = built.attention.plan(inputs, built.device, cache.layout)
    groups = 1 + max(spec.group for spec in built.model.attention_specs)
    positions = torch.cat([torch.arange(span.start, span.stop) for span in spans]).to(built.device)
    return ForwardContext(positions=positions, plans=[plan] * groups, cache=cache)
