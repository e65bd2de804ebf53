from __future__ import annotations

from pegboard_llama.plugin import SPEC
from pegboard_sdk.conformance import ModelSuite

SIZES = {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **SIZES}
MISTRAL = {"architectures": ["MistralForCausalLM"], "model_type": "mistral", **SIZES}
SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
CONFIGS = {
    "llama2": {**LLAMA, "num_key_value_heads": 4},
    "llama3": {**LLAMA, "rope_theta": 500000.0, "rope_scaling": SCALING},
    "smollm2": {**LLAMA, "tie_word_embeddings": True},
    "biases": {**LLAMA, "attention_bias": True, "mlp_bias": True, "head_dim": 8},
    "mistral": {**MISTRAL, "sliding_window": None},
    "mistral-window": {**MISTRAL, "sliding_window": 5},
}


class TestLlama(ModelSuite):
    spec = SPEC
    configs = CONFIGS
