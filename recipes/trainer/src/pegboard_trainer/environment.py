"""What a run was made with, for env.json."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch

from pegboard.build import BuiltModel
from pegboard_trainer.git import git_state

LIBRARIES = ("torch", "numpy", "safetensors", "tokenizers")


def environment(built: BuiltModel) -> dict[str, Any]:
    """Return versions, choices, the device and the state of git where the run was started, as JSON values."""
    versions = {}
    for dist in distributions():
        name = (dist.metadata["Name"] or "").lower()
        if name in LIBRARIES or name.startswith("pegboard"):
            versions[name] = dist.version
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "command": sys.argv,
        "git": git_state(Path.cwd()),
        "versions": dict(sorted(versions.items())),
        "platform": built.platform_name,
        "device": str(built.device),
        "dtype": str(built.dtype).removeprefix("torch."),
        "attention": built.attention_name,
        "threads": torch.get_num_threads(),
    }
