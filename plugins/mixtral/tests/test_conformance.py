from __future__ import annotations

from pegboard_mixtral.plugin import SPEC
from pegboard_sdk.conformance import ModelSuite

MIXTRAL = {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "num_experts_per_tok": 3,
    "num_local_experts": 4,
}
CONFIGS = {
    "mixtral": MIXTRAL,
    "mixtral-window": {**MIXTRAL, "sliding_window": 5, "head_dim": 12},
}


class TestMixtral(ModelSuite):
    spec = SPEC
    configs = CONFIGS
