"""Plans of mixtures name experts for an expert-parallel group, and for a tensor-parallel one as well."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import pytest
import torch

from pegboard.build import find_family
from pegboard.plugins.load import Registry
from pegboard_sdk.toys.model import MIXTURE

CONFIGS: dict[str, dict[str, Any]] = {
    "MixtralForCausalLM": {"model_type": "mixtral", "num_local_experts": 4},
    "Qwen2MoeForCausalLM": {"model_type": "qwen2_moe", "shared_expert_intermediate_size": 32},
    "Qwen3MoeForCausalLM": {"model_type": "qwen3_moe"},
    "OlmoeForCausalLM": {"model_type": "olmoe"},
}


@pytest.mark.parametrize("architecture", CONFIGS)
def test_experts_and_nothing_else_are_named(architecture: str) -> None:
    config = {**MIXTURE, "architectures": [architecture], **CONFIGS[architecture]}
    family = find_family(Registry.discover(), config)
    with torch.device("meta"):
        names = [name for name, _ in family.build(config).named_parameters()]
    plan = family.parallel_plan(config)
    whole = {n for n in names if any(r.style == "expert" and fnmatchcase(n, r.pattern) for r in plan)}
    assert whole == {name for name in names if ".experts." in name} and whole
    for name in whole:
        style = next(r.style for r in plan if r.style != "expert" and fnmatchcase(name, r.pattern))
        assert style == ("row" if name.endswith(("w2.weight", "down_proj.weight")) else "column")
