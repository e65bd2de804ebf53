from __future__ import annotations

from pegboard_phi.plugin import SPEC
from pegboard_sdk.conformance import ModelSuite

PHI = {
    "architectures": ["Phi3ForCausalLM"],
    "model_type": "phi3",
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
# Of the suite's 21 tokens, sequences on both sides of the limit are computed where it says how long they are.
LONGROPE = {"type": "longrope", "short_factor": [1.0, 1.5, 2.0], "long_factor": [2.0, 3.0, 6.0]}
CONFIGS = {
    "phi3": {**PHI, "num_key_value_heads": 4},
    "phi3-window": {**PHI, "sliding_window": 5},
    "phi4-mini": {
        **PHI,
        "tie_word_embeddings": True,
        "partial_rotary_factor": 0.75,
        "original_max_position_embeddings": 16,
        "rope_scaling": LONGROPE,
    },
}


class TestPhi(ModelSuite):
    spec = SPEC
    configs = CONFIGS
