"""Every architecture at toy size against transformers: logits, gradients, ragged batches and the paged cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from pegboard.build import BuiltModel, build_model
from pegboard.interfaces.format import ModelFiles
from pegboard.nn.loss import cross_entropy_sum
from pegboard.plugins.load import Registry
from pegboard.types import AttentionInputs, ForwardContext, KVCache
from pegboard_sdk.toys.model import UNEVEN

pytestmark = pytest.mark.peers

SIZES: dict[str, Any] = dict(UNEVEN)
THETA = {"rope_theta": 10000.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 7}
LONGROPE = {
    **THETA,
    "rope_type": "longrope",
    "short_factor": [1.0, 1.5, 2.0],
    "long_factor": [2.0, 4.0, 9.0],
    "partial_rotary_factor": 0.75,
}
MIXED = {"num_experts_per_tok": 2}
QWEN_MIXED = {**MIXED, "num_experts": 6, "moe_intermediate_size": 12}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma2": ("gemma2", GEMMA),
    "gemma2-low-caps": ("gemma2", {**GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "gemma3": ("gemma3_text", {**GEMMA, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}),
    "gemma3-linear": (
        "gemma3_text",
        {
            **GEMMA,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        },
    ),
    "llama": ("llama", {}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-head-dim": ("llama", {"head_dim": 12}),
    "llama-linear": ("llama", {"rope_parameters": {**THETA, "rope_type": "linear", "factor": 2.0}}),
    "llama-llama3": ("llama", {"rope_parameters": {**THETA, **LLAMA3}}),
    "llama-yarn": ("llama", {"rope_parameters": {**THETA, **YARN}}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral-window": ("mistral", {"sliding_window": 7}),
    "mixtral": ("mixtral", {**MIXED, "num_local_experts": 5}),
    "mixtral-window": ("mixtral", {**MIXED, "num_local_experts": 5, "sliding_window": 7, "head_dim": 12}),
    "olmoe": ("olmoe", {**MIXED, "num_experts": 6, "norm_topk_prob": True}),
    "olmoe-clip": ("olmoe", {**MIXED, "num_experts": 6, "clip_qkv": 0.7, "attention_bias": True}),
    "phi3": ("phi3", {}),
    "phi3-window": ("phi3", {"sliding_window": 7}),
    "phi4-partial": ("phi3", {"rope_parameters": {**THETA, "rope_type": "default", "partial_rotary_factor": 0.75}}),
    "phi4-short": ("phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 64}),
    "phi4-long": ("phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 16}),
    "phi4-short-and-long": ("phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 24}),
    "qwen2": ("qwen2", {}),
    "qwen2-window": ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "qwen2-moe": ("qwen2_moe", {**QWEN_MIXED, "shared_expert_intermediate_size": 20, "norm_topk_prob": True}),
    "qwen2-moe-dense-layer": (
        "qwen2_moe",
        {
            **QWEN_MIXED,
            "shared_expert_intermediate_size": 20,
            "mlp_only_layers": [1],
            "use_sliding_window": True,
            "sliding_window": 5,
            "qkv_bias": False,
        },
    ),
    "qwen3-moe": ("qwen3_moe", {**QWEN_MIXED, "head_dim": 16, "norm_topk_prob": True}),
    "qwen3-moe-sparse": (
        "qwen3_moe",
        {
            **QWEN_MIXED,
            "decoder_sparse_step": 2,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 6,
        },
    ),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "qwen3-bias": ("qwen3", {"head_dim": 16, "attention_bias": True}),
    "qwen3-window": (
        "qwen3",
        {"head_dim": 16, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2},
    ),
}
LENGTH = 33


@dataclass
class Held:
    """A tensor in memory, as a format hands it out."""

    name: str
    value: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.value.dtype

    def load(self) -> Tensor:
        return self.value

    def rows(self, start: int, stop: int) -> Tensor:
        return self.value[start:stop]


class PeerFiles(ModelFiles):
    """The weights and config of a model of transformers, without a folder."""

    location = "memory"
    generation_config: Mapping[str, Any] = {}
    files: Mapping[str, bytes] = {}
    portable = False

    def __init__(self, peer: Any) -> None:
        self._peer = peer

    @property
    def config(self) -> Mapping[str, Any]:
        return {**self._peer.config.to_dict(), "architectures": [type(self._peer).__name__]}

    @property
    def tensors(self) -> Mapping[str, Held]:
        held = on_disk(self._peer, self._peer.state_dict())
        return {name: Held(name, value.detach().clone()) for name, value in held.items()}


def on_disk(peer: Any, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return tensors named as in memory under the names that checkpoints have: experts lie in one tensor in memory alone."""
    from transformers.core_model_loading import revert_weight_conversion

    found: Mapping[str, Tensor] = revert_weight_conversion(peer, dict(tensors))
    return found


@pytest.fixture(params=sorted(CASES))
def peer(request: pytest.FixtureRequest) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    model_type, options = CASES[request.param]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **SIZES, **options)).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(0, SIZES["vocab_size"], (2, LENGTH), generator=torch.Generator().manual_seed(1))


def build(peer: Any, phase: Any = "decode") -> BuiltModel:
    return build_model(Registry.discover(), PeerFiles(peer), platform="cpu", dtype="float32", phase=phase)


def test_logits(peer: Any, ids: Tensor) -> None:
    built = build(peer)
    with torch.inference_mode():
        wanted = peer(ids).logits.flatten(0, 1)
        hidden = built.model(ids.flatten(), built.context([LENGTH] * 2, torch.arange(LENGTH).repeat(2)))
        torch.testing.assert_close(built.model.head(hidden), wanted, atol=1e-4, rtol=0)


def test_ragged_batch(peer: Any, ids: Tensor) -> None:
    built = build(peer)
    flat = torch.cat([ids[0, :20], ids[1]])
    positions = torch.cat([torch.arange(20), torch.arange(LENGTH)])
    with torch.inference_mode():
        wanted = torch.cat([peer(ids[:1, :20]).logits[0], peer(ids[1:]).logits[0]])
        logits = built.model.head(built.model(flat, built.context([20, LENGTH], positions)))
    torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=0)


def test_chunked_prefill_then_cached_decode(peer: Any, ids: Tensor) -> None:
    built, size = build(peer), 4
    specs = built.model.attention_specs
    layout = built.attention.layout(specs[0], len(specs), size, torch.float32)
    cache = KVCache.allocate(layout, 30, built.device)
    # One sequence lies in consecutive pages, the other is scattered.
    table = [[1, 2, 3, 4, 5, 6, 7, 8, 9], [20, 18, 16, 14, 12, 11, 25, 27, 29]]

    def step(start: int, stop: int) -> Tensor:
        slots = [pages[t // size] * size + t % size for pages in table for t in range(start, stop)]
        count = stop - start
        inputs = AttentionInputs([count] * 2, [stop] * 2, table, torch.tensor(slots), 2 if count == 1 else 0)
        plan = built.attention.plan(inputs, built.device, layout)
        extents = torch.full((2 * count,), LENGTH)
        ctx = ForwardContext(torch.arange(start, stop).repeat(2), [plan] * 2, cache, extents=extents)
        logits: Tensor = built.model.head(built.model(ids[:, start:stop].flatten(), ctx))
        return logits.view(2, count, -1)

    with torch.inference_mode():
        steps = [step(0, 20), step(20, 24), *(step(t, t + 1) for t in range(24, LENGTH))]
        torch.testing.assert_close(torch.cat(steps, 1), peer(ids).logits, atol=1e-4, rtol=0)


def test_loss_and_gradients(peer: Any, ids: Tensor) -> None:
    built = build(peer, phase="train")
    targets = torch.full_like(ids, -100)
    targets[:, :-1] = ids[:, 1:]
    rows = (targets.flatten() != -100).nonzero().squeeze(1)
    hidden = built.model(ids.flatten(), built.context([LENGTH] * 2, torch.arange(LENGTH).repeat(2)))
    loss = cross_entropy_sum(hidden, built.model.head, targets.flatten(), rows, chunk=10) / len(rows)
    loss.backward()
    wanted = peer(ids, labels=ids).loss
    wanted.backward()
    torch.testing.assert_close(loss, wanted, atol=1e-5, rtol=1e-5)
    gradients = {name: parameter.grad for name, parameter in built.model.named_parameters()}
    for name, gradient in on_disk(peer, {n: p.grad for n, p in peer.named_parameters()}).items():
        torch.testing.assert_close(gradients[name], gradient, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
