"""Tensor names: GGUF's to Hugging Face's, and the order of rows where the two differ.

To add an architecture, give it an entry in `ARCHITECTURES` (names here), in `hparams.py` (its class) and `families.py` (its own keys).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Architecture:
    """How one GGUF architecture names its tensors.

    blocks: names inside a layer. permuted: rows of q and k are stored with the two halves of each head interleaved.
    norm_offset: what the weights of norms have more than Hugging Face's. ignored: top-level tensors that are not weights.
    """

    blocks: Mapping[str, str]
    permuted: bool = False
    norm_offset: float = 0.0
    ignored: tuple[str, ...] = (FACTORS,)


ARCHITECTURES = {
    "llama": Architecture(_BLOCK, permuted=True),
    "qwen2": Architecture(_BLOCK),
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


def map_tensors(container: Container, config: Mapping[str, Any]) -> dict[str, GgufTensor]:
    """Return the tensors under their Hugging Face names.

    config: the config.json made from the same file. Raises ModelError listing every tensor that is unknown,
    missing or of a wrong shape.
    """
    architecture = ARCHITECTURES[architecture_of(container)]
    found: dict[str, GgufTensor] = {}
    unknown: list[str] = []
    for name, info in container.tensors.items():
        if name in architecture.ignored:
            continue
        target = _target(name, architecture)
        if target is None:
            unknown.append(name)
            continue
        order = _row_order(name, info, config, container.where) if architecture.permuted else None
        offset = architecture.norm_offset if target.endswith("norm.weight") else 0.0
        found[target] = GgufTensor(target, info, container.buffer, order, offset)
    if unknown:
        shown = ", ".join(unknown[:8]) + (f" and {len(unknown) - 8} more" if len(unknown) > 8 else "")
        raise ModelError(
            f"{container.where} holds tensors that a plain {architecture_of(container)} model has not: {shown}",
            fix="mixtures of experts and models with extra inputs are not read: use the Hugging Face folder",
        )
    _check_complete(found, architecture, config, container.where)
    return found


def _check_complete(
    found: Mapping[str, GgufTensor], architecture: Architecture, config: Mapping[str, Any], where: str
) -> None:
    layers = config["num_hidden_layers"]
    if layers * len(architecture.blocks) > len(found):
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
        "self_attn.q_norm": (width,),
        "self_attn.k_norm": (width,),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.gate_up_proj": (2 * inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    embedding = (config["vocab_size"], hidden)
    expected: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": embedding, "model.norm.weight": (hidden,)}
    if not config["tie_word_embeddings"]:
        expected["lm_head.weight"] = embedding
    for layer in range(layers):
        expected |= {f"model.layers.{layer}.{n}.weight": block.get(n, (hidden,)) for n in architecture.blocks.values()}
    for name in found:
        stem, _, leaf = name.rpartition(".")
        if leaf == "bias" and f"{stem}.weight" in expected:
            expected[name] = expected[f"{stem}.weight"][:1]
    compare_names_shapes(expected, {name: tensor.shape for name, tensor in found.items()}, where=where)


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
