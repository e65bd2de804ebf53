"""`peg convert`: a model in another format."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pegboard.errors import ModelError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pegboard.interfaces.format import ModelFiles


@click.command()
@click.argument("source")
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--to", "format_name", required=True, metavar="FORMAT", help="A plugin of kind format that can write.")
@click.option(
    "--dtype", default="auto", show_default=True, help="Dtype of the floating-point weights; auto keeps each."
)
def convert(source: str, target: Path, format_name: str, dtype: str) -> None:
    """Read the model SOURCE (file, folder or hub id) and write it to TARGET, tensor by tensor."""
    if target.exists():
        raise ModelError(f"{target} exists", fix="name a new folder, or remove that one first")
    if not target.absolute().parent.is_dir():
        raise ModelError(f"the folder {target.absolute().parent} does not exist", fix="make it first")
    from pegboard.build import open_model, parse_dtype
    from pegboard.plugins.load import Registry

    registry = Registry.discover()
    writer = registry.create("format", format_name)
    wanted = None if dtype == "auto" else parse_dtype(dtype)
    files = open_model(registry, source)
    writer.write(
        target, files.config, _tensors(files, wanted), files.files, generation_config=files.generation_config or None
    )
    click.echo(f"{target}: {len(files.tensors)} tensors")


def _tensors(files: ModelFiles, dtype: torch.dtype | None) -> Iterator[tuple[str, Tensor]]:
    for name, lazy in files.tensors.items():
        tensor = lazy.load()
        yield name, tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
