"""Which attention computes fresh prompts, by shape: data, kept with what was measured."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

import torch

from pegboard.interfaces.platform import PromptChoice
from pegboard.types import AttentionSpec


def choices(spec: AttentionSpec, dtype: torch.dtype, capability: tuple[int, int]) -> tuple[PromptChoice, ...]:
    """Return what `prompts.json` says for such layers, best first, each plugin once.

    An entry holds for the capabilities, dtypes, widths of heads and numbers of heads that share a key head that it lists, for any where it
    lists none. Of several entries of a plugin the first that holds counts.
    """
    shape = {
        "capability": "{}.{}".format(*capability),
        "dtype": str(dtype).removeprefix("torch."),
        "head_dim": spec.head_dim,
        "group": spec.num_heads // spec.num_kv_heads,
    }
    found: dict[str, PromptChoice] = {}
    for entry in _entries():
        if entry["plugin"] not in found and all(shape[key] in held for key, held in entry.get("when", {}).items()):
            name = entry["plugin"]
            found[name] = PromptChoice(name, entry["tokens"], entry["default"], entry["reason"])
    return tuple(sorted(found.values(), key=lambda choice: not choice.default))


@cache
def _entries() -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads((files(__package__) / "prompts.json").read_text())
    return entries
