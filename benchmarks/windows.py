"""Windows of text that accuracy is measured on; imported by the scripts beside it."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from pegboard.build import load_tokenizer, open_model
from pegboard.interfaces.format import ModelFiles
from pegboard.plugins.load import Registry


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what says which model reads which text."""
    parser.add_argument("model")
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--dtype", default="float32")


def read_windows(registry: Registry, arguments: argparse.Namespace) -> tuple[ModelFiles, Tensor]:
    """Return the model's files and the windows [count, length] of token ids. Exits when the text is shorter than one."""
    files = open_model(registry, arguments.model)
    text = "\n".join(path.read_text(encoding="utf-8") for path in arguments.files)
    ids = load_tokenizer(registry, files).encode(text)
    count = min(arguments.windows, len(ids) // arguments.length)
    if count == 0:
        raise SystemExit(f"the files hold {len(ids)} tokens, fewer than one window of {arguments.length}")
    return files, torch.tensor(ids[: count * arguments.length]).view(count, arguments.length)
