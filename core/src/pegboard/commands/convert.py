"""`peg convert`: a model in another format."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pegboard.errors import ConfigError, ModelError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pegboard.interfaces.format import LazyTensor
    from pegboard.plugins.load import Registry


@click.command()
@click.argument("source")
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--to", "format_name", required=True, metavar="FORMAT", help="A plugin of kind format that can write.")
@click.option(
    "--dtype", default="auto", show_default=True, help="Dtype of the floating-point weights; auto keeps each."
)
@click.option(
    "--quantizer", metavar="NAME", help="A plugin of kind quantizer: its form of the weights is written (--to hf)."
)
@click.option("--revision", metavar="REV", help="Branch, tag or commit of a hub id.")
def convert(
    source: str, target: Path, format_name: str, dtype: str, quantizer: str | None, revision: str | None
) -> None:
    """Read the model SOURCE (file, folder or hub id) and write it to TARGET, one tensor in memory at a time.

    Weights that SOURCE holds quantised are written in full precision. With --quantizer the whole model is built first, an adapter's
    folder with the adapter merged in.
    """
    refuse_taken(target)
    from pegboard.build import open_model, parse_dtype
    from pegboard.plugins.load import Registry
    from pegboard.quantised import full_precision

    registry = Registry.discover()
    writer = registry.create("format", format_name)
    wanted = None if dtype == "auto" else parse_dtype(dtype)
    if quantizer is not None:
        if format_name != "hf":
            raise ConfigError(f"--quantizer writes Hugging Face folders, not {format_name}", fix="give --to hf")
        _quantise(registry, source, revision, quantizer, target, wanted)
        return
    files = open_model(registry, source, revision)
    config, tensors = full_precision(registry, files)
    if not tensors:
        raise ModelError(f"{source} holds no tensors", fix="name a whole model")
    with click.progressbar(
        length=len(tensors), label="tensors", file=sys.stderr, hidden=not sys.stderr.isatty()
    ) as bar:
        writer.write(
            target,
            _config(config, tensors, wanted),
            _tensors(tensors, wanted, bar),
            files.files,
            generation_config=files.generation_config or None,
        )
    click.echo(f"{target}: {len(tensors)} tensors")


def _quantise(
    registry: Registry, source: str, revision: str | None, quantizer: str, target: Path, dtype: torch.dtype | None
) -> None:
    """Write the model with a quantizer's weights; what is not quantised in `dtype`, or the dtype that most weights have."""
    from pegboard.build import parse_dtype
    from pegboard.opened import open_any
    from pegboard.quantised import SETTINGS, write_quantised

    made = registry.create("quantizer", quantizer)
    opened = open_any(registry, source, revision)
    if SETTINGS in opened.files.config:
        raise ConfigError(f"the weights of {source} are quantised already", fix="name the model in full precision")
    name = _config(opened.files.config, opened.files.tensors, dtype).get("dtype", "float32")
    built = opened.build(registry, dtype="float32")
    write_quantised(built, made, target, opened.files.files, parse_dtype(name))
    click.echo(f"{target}: a complete model, its weights as {quantizer}")


def refuse_taken(target: Path) -> None:
    """Raise ConfigError when a folder `target` exists already, or cannot be made where it should be."""
    if os.path.lexists(target):
        raise ConfigError(f"{target} exists", fix="name a new folder, or remove that one first")
    if not target.absolute().parent.is_dir():
        raise ConfigError(f"the folder {target.absolute().parent} does not exist", fix="make it first")


def _tensors(tensors: Mapping[str, LazyTensor], dtype: torch.dtype | None, bar: Any) -> Iterator[tuple[str, Tensor]]:
    for name, lazy in tensors.items():
        yield name, _load(lazy, dtype)  # kept by no variable here, so that it is gone before the next is read
        bar.update(1)


def _load(lazy: LazyTensor, dtype: torch.dtype | None) -> Tensor:
    tensor = lazy.load()
    return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor


def _config(config: Mapping[str, Any], tensors: Mapping[str, LazyTensor], dtype: torch.dtype | None) -> dict[str, Any]:
    """Return the config with the dtype that most of the written numbers have."""
    counts: dict[torch.dtype, int] = {}
    for lazy in tensors.values():
        if lazy.dtype.is_floating_point:
            counts[lazy.dtype] = counts.get(lazy.dtype, 0) + math.prod(lazy.shape)
    if not counts:
        return dict(config)
    name = str(dtype or max(counts, key=lambda kind: counts[kind])).removeprefix("torch.")
    return {**config, "dtype": name, "torch_dtype": name}
