from __future__ import annotations

from pegboard_olmoe.plugin import SPEC
from pegboard_sdk.conformance import ModelSuite

OLMOE = {
    "architectures": ["OlmoeForCausalLM"],
    "model_type": "olmoe",
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "num_experts_per_tok": 3,
    "num_experts": 4,
}
CONFIGS = {
    "olmoe": {**OLMOE, "clip_qkv": 1.5},
    "olmoe-sum": {**OLMOE, "norm_topk_prob": True, "attention_bias": True, "tie_word_embeddings": True},
}


class TestOlmoe(ModelSuite):
    spec = SPEC
    configs = CONFIGS
