"""What families of mixtures share: the keys of a Hugging Face config that count experts, and how those split."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pegboard.errors import ModelError
from pegboard.nn.dense import positive
from pegboard.types import ParallelRule

MOST_EXPERTS = 1 << 16
"""Of all layers together: they are modules, which a hostile config must not make millions of."""


def expert_counts(config: Mapping[str, Any], count: int, k: int) -> tuple[int, int]:
    """Return how many experts each layer of a config has and how many of them a row uses; count, k: where it is silent.

    Raises ModelError for more than there are, or than are believed.
    """
    # The same number has two names, of which transformers reads either.
    key = "num_experts" if config.get("num_experts") is not None else "num_local_experts"
    count, k = positive(config, key, count), positive(config, "num_experts_per_tok", k)
    layers = positive(config, "num_hidden_layers")
    if k > count:
        raise ModelError(
            f"the config's num_experts_per_tok is {k}, more than its {key}, {count}",
            fix="mend the model's config.json",
        )
    if count * layers > MOST_EXPERTS:
        raise ModelError(
            f"the config has {layers} layers of {count} experts; at most {MOST_EXPERTS} of all layers are believed",
            fix="mend the model's config.json",
        )
    return count, k


def expert_rules(names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")) -> tuple[ParallelRule, ...]:
    """Return how mixtures split: each expert by its inner size over a tensor-parallel group, whole ones over an expert-parallel one.

    names: what checkpoints call an expert's gate, up and down.
    """
    gate, up, down = names
    return (
        ParallelRule(f"*.experts.*.{gate}.weight", "column"),
        ParallelRule(f"*.experts.*.{up}.weight", "column"),
        ParallelRule(f"*.experts.*.{down}.weight", "row"),
        ParallelRule("*.shared_expert.gate_proj.weight", "column"),
        ParallelRule("*.shared_expert.up_proj.weight", "column"),
        ParallelRule("*.shared_expert.down_proj.weight", "row"),
        ParallelRule("*.experts.*", "expert"),
    )
