from __future__ import annotations

from pegboard_qwen.plugin import SPEC
from pegboard_sdk.conformance import ModelSuite

SIZES = {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
QWEN2 = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", **SIZES}
QWEN3 = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", **SIZES, "head_dim": 8}
MIXED = {**SIZES, "num_experts": 4, "num_experts_per_tok": 3, "moe_intermediate_size": 12}
QWEN2_MOE = {
    "architectures": ["Qwen2MoeForCausalLM"],
    "model_type": "qwen2_moe",
    **MIXED,
    "shared_expert_intermediate_size": 20,
}
QWEN3_MOE = {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", **MIXED, "norm_topk_prob": True}
CONFIGS = {
    "qwen2": {**QWEN2, "tie_word_embeddings": True},
    "qwen2-window": {**QWEN2, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    "qwen2-moe": QWEN2_MOE,
    "qwen3": QWEN3,
    "qwen3-moe": {**QWEN3_MOE, "mlp_only_layers": [1]},
    "qwen3-bias": {**QWEN3, "attention_bias": True, "tie_word_embeddings": True},
}


class TestQwen(ModelSuite):
    spec = SPEC
    configs = CONFIGS
