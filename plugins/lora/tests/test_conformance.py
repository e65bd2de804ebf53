from __future__ import annotations

from pegboard_lora.plugin import DORA, LORA
from pegboard_sdk.conformance import AdapterSuite

TARGETS = ["q_proj", "v_proj", "down_proj"]
LORA_OPTIONS = {"rank": 3, "targets": TARGETS}
# A magnitude of float32 would start at the norm's nearest number, not at the norm.
DORA_OPTIONS = {"rank": 3, "targets": TARGETS, "dtype": "float64"}
NO_MATCH = {"targets": ["nothing_here"]}


class TestLora(AdapterSuite):
    spec = LORA
    options = LORA_OPTIONS
    no_match = NO_MATCH


class TestDora(AdapterSuite):
    spec = DORA
    options = DORA_OPTIONS
    no_match = NO_MATCH
    exact_gradients = False  # the norm of the direction
    servable = False
