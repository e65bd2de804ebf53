"""Tensor names: GGUF's to Hugging Face's, and the order of rows where the two differ.

To add an architecture, give it an entry in `ARCHITECTURES` (names here), in `hparams.py` (its class) and `families.py` (its own keys).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pegboard.errors import ModelError, nearest
from pegboard.weights import compare_names_shapes
from pegboard_gguf.container import Container, TensorInfo
from pegboard_gguf.rope import FACTORS, LONG_FACTORS, SHORT_FACTORS
from pegboard_gguf.tensors import GgufTensor

_LAYER = re.compile(r"blk\.(0|[1-9]\d{0,5})\.(.+)\.(weight|bias)")

_TOP = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_QK_NORM = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_SANDWICH = _BLOCK | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_FUSED = {
    "attn_norm": "input_layernorm",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.gate_up_proj",
    "ffn_down": "mlp.down_proj",
}
_MIXED = {name: target for name, target in _BLOCK.items() if not name.startswith("ffn_") or name == "ffn_norm"}
_GATES = {"ffn_gate_inp": "mlp.gate"}
_EXPERTS = {
    "ffn_gate_exps": "mlp.experts.{}.gate_proj",
    "ffn_up_exps": "mlp.experts.{}.up_proj",
    "ffn_down_exps": "mlp.experts.{}.down_proj",
}
_SHARED = {
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
_MIXTRAL = {
    "ffn_gate_exps": "block_sparse_moe.experts.{}.w1",
    "ffn_up_exps": "block_sparse_moe.experts.{}.w3",
    "ffn_down_exps": "block_sparse_moe.experts.{}.w2",
}


@dataclass(frozen=True, slots=True)
class Architecture:
    """How one GGUF architecture names its tensors.

    blocks: names inside a layer. permuted: rows of q and k are stored with the two halves of each head interleaved.
    norm_offset: what the weights of norms have more than Hugging Face's. ignored: top-level tensors that are not weights.
    experts: those inside a layer that hold all experts in one tensor, and what each of them is called.
    """

    blocks: Mapping[str, str]
    permuted: bool = False
    norm_offset: float = 0.0
    ignored: tuple[str, ...] = (FACTORS,)
    experts: Mapping[str, str] = field(default_factory=dict)


MIXTRAL = "llama, a mixture of experts"
"""Files call it `llama`; that it has experts tells it."""

ARCHITECTURES = {
    "llama": Architecture(_BLOCK, permuted=True),
    MIXTRAL: Architecture(_MIXED | {"ffn_gate_inp": "block_sparse_moe.gate"}, permuted=True, experts=_MIXTRAL),
    "olmoe": Architecture(_MIXED | _QK_NORM | _GATES, experts=_EXPERTS),
    "qwen2": Architecture(_BLOCK),
    "qwen2moe": Architecture(_MIXED | _GATES | _SHARED, experts=_EXPERTS),
    "qwen3moe": Architecture(_MIXED | _QK_NORM | _GATES, experts=_EXPERTS),
    "qwen3": Architecture(_BLOCK | _QK_NORM),
    "gemma2": Architecture(_SANDWICH, norm_offset=1.0),
    "gemma3": Architecture(_SANDWICH | _QK_NORM, norm_offset=1.0),
    "phi3": Architecture(_FUSED, ignored=(FACTORS, LONG_FACTORS, SHORT_FACTORS)),
}


def architecture_of(container: Container) -> str:
    """Return `general.architecture`. Raises ModelError when it is absent or not supported."""
    name = container.metadata.text("general.architecture")
    if name is None:
        raise ModelError(
            f"{container.where} lacks the metadata key general.architecture",
            fix="use a file that holds a language model",
        )
    if name not in ARCHITECTURES:
        raise ModelError(
            f"{container.where} holds a model of architecture {name!r}, "
            f"which is not supported{nearest(name, ARCHITECTURES)}",
            fix=f"supported: {', '.join(ARCHITECTURES)}",
        )
    return name


def kind_of(container: Container) -> str:
    """Return the key of `ARCHITECTURES` that a file's model has."""
    name = architecture_of(container)
    return MIXTRAL if name == "llama" and container.metadata.integer("llama.expert_count") else name


def map_tensors(container: Container, config: Mapping[str, Any]) -> dict[str, GgufTensor]:
    """Return the tensors under their Hugging Face names.

    config: the config.json made from the same file. Raises ModelError listing every tensor that is unknown,
    missing or of a wrong shape.
    """
    architecture = ARCHITECTURES[kind_of(container)]
    found: dict[str, GgufTensor] = {}
    unknown: list[str] = []
    for name, info in container.tensors.items():
        if name in architecture.ignored:
            continue
        experts = _experts(name, info, architecture, config, container.where)
        if experts is not None:
            found |= {target: GgufTensor(target, part, container.buffer) for target, part in experts}
            continue
        target = _target(name, architecture)
        if target is None:
            unknown.append(name)
            continue
        order = _row_order(name, info, config, container.where) if architecture.permuted else None
        offset = architecture.norm_offset if target.endswith("norm.weight") else 0.0
        if target.endswith("shared_expert_gate.weight") and len(info.shape) == 1:
            info = replace(info, shape=(1, *info.shape))  # a matrix of one row is written as that row
        found[target] = GgufTensor(target, info, container.buffer, order, offset)
    if unknown:
        shown = ", ".join(unknown[:8]) + (f" and {len(unknown) - 8} more" if len(unknown) > 8 else "")
        raise ModelError(
            f"{container.where} holds tensors that a plain {architecture_of(container)} model has not: {shown}",
            fix="models with extra inputs, and experts in a tensor each, are not read: use the Hugging Face folder",
        )
    _check_complete(found, architecture, config, container.where)
    return found


def _check_complete(
    found: Mapping[str, GgufTensor], architecture: Architecture, config: Mapping[str, Any], where: str
) -> None:
    layers = config["num_hidden_layers"]
    experts = expert_count(config) if architecture.experts else 0
    if layers * (len(architecture.blocks) + len(architecture.experts) * experts) > len(found):
        raise ModelError(
            f"{where} should have {layers} layers, but holds only {len(found)} tensors",
            fix="convert or download it again",
        )
    hidden, inner, width = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    query, key = config["num_attention_heads"] * width, config["num_key_value_heads"] * width
    block = {
        "self_attn.q_proj": (query, hidden),
        "self_attn.k_proj": (key, hidden),
        "self_attn.v_proj": (key, hidden),
        "self_attn.qkv_proj": (query + 2 * key, hidden),
        "self_attn.o_proj": (hidden, query),
        "self_attn.q_norm": (query,) if config["model_type"] == "olmoe" else (width,),
        "self_attn.k_norm": (key,) if config["model_type"] == "olmoe" else (width,),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.gate_up_proj": (2 * inner, hidden),
        "mlp.down_proj": (hidden, inner),
        "mlp.gate": (experts, hidden),
        "block_sparse_moe.gate": (experts, hidden),
        "mlp.shared_expert_gate": (1, hidden),
    }
    each, shared = config.get("moe_intermediate_size", inner), config.get("shared_expert_intermediate_size", inner)
    block |= {f"mlp.shared_expert.{n}_proj": (shared, hidden) for n in ("gate", "up")}
    block |= {"mlp.shared_expert.down_proj": (hidden, shared)}
    of_experts = {
        target.format(number): (hidden, each) if name == "ffn_down_exps" else (each, hidden)
        for name, target in architecture.experts.items()
        for number in range(experts)
    }
    embedding = (config["vocab_size"], hidden)
    expected: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": embedding, "model.norm.weight": (hidden,)}
    if not config["tie_word_embeddings"]:
        expected["lm_head.weight"] = embedding
    for layer in range(layers):
        expected |= {f"model.layers.{layer}.{n}.weight": block.get(n, (hidden,)) for n in architecture.blocks.values()}
        expected |= {f"model.layers.{layer}.{n}.weight": shape for n, shape in of_experts.items()}
    for name in found:
        stem, _, leaf = name.rpartition(".")
        if leaf == "bias" and f"{stem}.weight" in expected:
            expected[name] = expected[f"{stem}.weight"][:1]
    compare_names_shapes(expected, {name: tensor.shape for name, tensor in found.items()}, where=where)


def expert_count(config: Mapping[str, Any]) -> int:
    """Return how many experts each layer of a config made from a file has."""
    count: int = config.get("num_experts") or config["num_local_experts"]
    return count


def _experts(
    name: str, info: TensorInfo, architecture: Architecture, config: Mapping[str, Any], where: str
) -> list[tuple[str, TensorInfo]] | None:
    """Return each expert's name and part of a tensor that holds them all; None for any other tensor."""
    layer = _LAYER.fullmatch(name)
    target = architecture.experts.get(layer[2]) if layer is not None and layer[3] == "weight" else None
    if layer is None or target is None:
        return None
    count = expert_count(config)
    if len(info.shape) != 3 or info.shape[0] != count or info.nbytes % count:
        raise ModelError(
            f"{where}: the tensor {name} has shape {info.shape}; expected matrices of {count} experts",
            fix="convert or download it again",
        )
    size = info.nbytes // count
    return [
        (
            f"model.layers.{layer[1]}.{target.format(number)}.weight",
            replace(info, shape=info.shape[1:], offset=info.offset + number * size, nbytes=size),
        )
        for number in range(count)
    ]


def _target(name: str, architecture: Architecture) -> str | None:
    layer = _LAYER.fullmatch(name)
    if layer is not None:
        inside = architecture.blocks.get(layer[2])
        return f"model.layers.{layer[1]}.{inside}.{layer[3]}" if inside else None
    stem, _, leaf = name.rpartition(".")
    return f"{_TOP[stem]}.{leaf}" if stem in _TOP and leaf in ("weight", "bias") else None


def _row_order(name: str, info: TensorInfo, config: Mapping[str, Any], where: str) -> np.ndarray | None:
    """Return the stored row of each wanted row of a q or k projection, None for other tensors.

    Stored row h * d + 2 j + s is row h * d + s * d / 2 + j of Hugging Face's, for head h of width d, j < d / 2 and
    s in {0, 1}.
    """
    layer = _LAYER.fullmatch(name)
    if layer is None or layer[2] not in ("attn_q", "attn_k"):
        return None
    count: int = config["num_attention_heads" if layer[2] == "attn_q" else "num_key_value_heads"]
    rows = info.shape[0]
    if rows % (2 * count):
        raise ModelError(f"{where}: the tensor {name} has {rows} rows, which {count} heads of even width cannot share")
    stored = np.arange(rows).reshape(count, rows // count // 2, 2)
    return stored.swapaxes(1, 2).reshape(rows)
