"""What a run was made with, for env.json."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import distributions
from typing import Any

import torch

from pegboard.build import BuiltModel

LIBRARIES = ("torch", "numpy", "safetensors", "tokenizers")


def environment(built: BuiltModel) -> dict[str, Any]:
    """Return versions, choices and the device, as JSON values."""
    versions = {}
    for dist in distributions():
        name = (dist.metadata["Name"] or "").lower()
        if name in LIBRARIES or name.startswith("pegboard"):
            versions[name] = dist.version
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "command": sys.argv,
        "versions": dict(sorted(versions.items())),
        "platform": built.platform_name,
        "device": str(built.device),
        "dtype": str(built.dtype).removeprefix("torch."),
        "attention": built.attention_name,
        "threads": torch.get_num_threads(),
    }
