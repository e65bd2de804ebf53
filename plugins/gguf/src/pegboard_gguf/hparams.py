"""Hyper-parameters: metadata to Hugging Face's config.json and generation_config.json."""

from __future__ import annotations

from typing import Any

from pegboard.errors import ModelError
from pegboard_gguf.container import Container
from pegboard_gguf.families import ADDITIONS
from pegboard_gguf.metadata import Metadata
from pegboard_gguf.names import ARCHITECTURES, MIXTRAL, architecture_of, kind_of
from pegboard_gguf.rope import rope_scaling

_CLASSES = {
    "llama": ("LlamaForCausalLM", "llama"),
    MIXTRAL: ("MixtralForCausalLM", "mixtral"),
    "olmoe": ("OlmoeForCausalLM", "olmoe"),
    "qwen2": ("Qwen2ForCausalLM", "qwen2"),
    "qwen2moe": ("Qwen2MoeForCausalLM", "qwen2_moe"),
    "qwen3moe": ("Qwen3MoeForCausalLM", "qwen3_moe"),
    "qwen3": ("Qwen3ForCausalLM", "qwen3"),
    "gemma2": ("Gemma2ForCausalLM", "gemma2"),
    "gemma3": ("Gemma3ForCausalLM", "gemma3_text"),
    "phi3": ("Phi3ForCausalLM", "phi3"),
}
_PARTLY_TURNED = ("phi3",)
_END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")


def model_config(container: Container) -> dict[str, Any]:
    """Return config.json. Raises ModelError naming the key that is missing or has no Hugging Face counterpart."""
    metadata, prefix = container.metadata, architecture_of(container)
    kind = kind_of(container)
    if not ARCHITECTURES[kind].experts:
        _refuse_experts(metadata, prefix)
    class_name, model_type = _CLASSES[kind]
    hidden = _positive(metadata, f"{prefix}.embedding_length")
    heads = _uniform(metadata, f"{prefix}.attention.head_count")
    kv_heads = _uniform(metadata, f"{prefix}.attention.head_count_kv", default=heads)
    head_dim = _head_dim(metadata, prefix, hidden, heads)
    turned = _turned(metadata, prefix, head_dim)
    theta = metadata.number(f"{prefix}.rope.freq_base") or 10000.0
    if theta <= 1:
        raise ModelError(f"{container.where}: {prefix}.rope.freq_base is {theta}; expected more than 1, usually 10000")
    config: dict[str, Any] = {
        "architectures": [class_name],
        "model_type": model_type,
        "vocab_size": _vocabulary(container, hidden),
        "hidden_size": hidden,
        "intermediate_size": _uniform(metadata, f"{prefix}.feed_forward_length"),
        "num_hidden_layers": _positive(metadata, f"{prefix}.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": _positive(metadata, f"{prefix}.context_length"),
        "initializer_range": 0.02,
        "rms_norm_eps": _epsilon(metadata, prefix),
        "rope_theta": theta,
        "rope_scaling": rope_scaling(container, prefix, turned, theta),
        "attention_bias": "blk.0.attn_q.bias" in container.tensors,
        "attention_dropout": 0.0,
        "use_cache": True,
        "tie_word_embeddings": "output.weight" not in container.tensors,
        "torch_dtype": _dtype(container),
        **token_ids(metadata),
    }
    return config | ADDITIONS[kind](container, prefix, config)


def generation_config(container: Container) -> dict[str, Any]:
    """Return generation_config.json: the special ids, and the sampling that the file recommends, if it does."""
    metadata = container.metadata
    config: dict[str, Any] = dict(token_ids(metadata))
    sampling = {
        "temperature": metadata.number("general.sampling.temp"),
        "top_k": metadata.integer("general.sampling.top_k"),
        "top_p": metadata.number("general.sampling.top_p"),
        "min_p": metadata.number("general.sampling.min_p"),
        "repetition_penalty": metadata.number("general.sampling.penalty_repeat"),
    }
    given = {name: value for name, value in sampling.items() if value is not None}
    if given:
        config |= {"do_sample": True, **given}
    return config


def token_ids(metadata: Metadata) -> dict[str, Any]:
    """Return bos_token_id, eos_token_id (a list when several end a turn) and pad_token_id, as far as the file has
    them.
    """
    ids: dict[str, Any] = {}
    bos = metadata.integer("tokenizer.ggml.bos_token_id")
    if bos is not None:
        ids["bos_token_id"] = bos
    ends = list(dict.fromkeys(i for key in _END_KEYS if (i := metadata.integer(f"tokenizer.ggml.{key}")) is not None))
    if ends:
        ids["eos_token_id"] = ends[0] if len(ends) == 1 else ends
    pad = metadata.integer("tokenizer.ggml.padding_token_id")
    if pad is not None:
        ids["pad_token_id"] = pad
    return ids


def _refuse_experts(metadata: Metadata, prefix: str) -> None:
    experts = metadata.integer(f"{prefix}.expert_count")
    if experts:
        raise ModelError(
            f"{metadata.where} is a mixture of {experts} experts, which {prefix} models are not",
            fix="use the Hugging Face folder",
        )


def _positive(metadata: Metadata, key: str) -> int:
    value = metadata.need(key)
    if value < 1:
        raise ModelError(f"{metadata.where}: the metadata key {key} is {value}; expected at least 1")
    return value


def _uniform(metadata: Metadata, key: str, default: int | None = None) -> int:
    """Return a count that may be written once or once a layer. Raises ModelError when layers differ."""
    if key not in metadata and default is not None:
        return default
    if not hasattr(metadata.get(key), "dtype"):
        return _positive(metadata, key)
    values = metadata.numbers(key)
    distinct = sorted({int(v) for v in values}) if values is not None else []
    if len(distinct) != 1 or distinct[0] < 1:
        raise ModelError(
            f"{metadata.where}: {key} differs between layers ({distinct[:4]})",
            fix="only models whose layers are all alike are read: use the Hugging Face folder",
        )
    return distinct[0]


def _head_dim(metadata: Metadata, prefix: str, hidden: int, heads: int) -> int:
    head_dim = metadata.integer(f"{prefix}.attention.key_length")
    if head_dim is None:
        if hidden % heads:
            raise ModelError(f"{metadata.where}: {heads} heads cannot share an embedding length of {hidden}")
        head_dim = hidden // heads
    values = metadata.integer(f"{prefix}.attention.value_length")
    if values is not None and values != head_dim:
        raise ModelError(
            f"{metadata.where}: {prefix}.attention.value_length is {values} but heads are {head_dim} wide; they must be equal"
        )
    if head_dim < 2 or head_dim % 2:
        raise ModelError(f"{metadata.where}: heads are {head_dim} wide; expected an even width")
    return head_dim


def _turned(metadata: Metadata, prefix: str, head_dim: int) -> int:
    """Return how many dimensions of a head are turned: all but in architectures that may leave some."""
    turned = metadata.integer(f"{prefix}.rope.dimension_count")
    if turned is None or turned == head_dim:
        return head_dim
    if prefix not in _PARTLY_TURNED:
        raise ModelError(
            f"{metadata.where}: {prefix}.rope.dimension_count is {turned} but heads are {head_dim} wide; they must be equal"
        )
    if not 2 <= turned < head_dim or turned % 2:
        raise ModelError(
            f"{metadata.where}: {prefix}.rope.dimension_count is {turned}; expected an even number up to {head_dim}"
        )
    return turned


def _epsilon(metadata: Metadata, prefix: str) -> float:
    key = f"{prefix}.attention.layer_norm_rms_epsilon"
    value = metadata.number(key)
    if value is None or value <= 0:
        raise ModelError(f"{metadata.where}: the metadata key {key} is {value}; expected a small positive number")
    # Stored as float32: 9.9999997e-06 is the file's way to say 1e-05.
    return float(f"{value:.6g}")


def _vocabulary(container: Container, hidden: int) -> int:
    embedding = container.tensors.get("token_embd.weight")
    if embedding is None:
        raise ModelError(
            f"{container.where} lacks the tensor token_embd.weight", fix="use a file that holds a whole model"
        )
    if len(embedding.shape) != 2 or embedding.shape[1] != hidden:
        raise ModelError(
            f"{container.where}: token_embd.weight has shape {embedding.shape}; expected (vocabulary, {hidden})"
        )
    return embedding.shape[0]


def _dtype(container: Container) -> str:
    """Return the type that most matrices have once loaded: float32 for quantised ones."""
    stored = [info.type.dtype for info in container.tensors.values() if len(info.shape) > 1]
    return max(set(stored), key=stored.count)
