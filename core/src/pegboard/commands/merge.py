"""`peg merge`: an adapter and its base as one model."""

from __future__ import annotations

from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pegboard.commands.convert import refuse_taken
from pegboard.errors import ModelError

if TYPE_CHECKING:
    import torch


@click.command()
@click.argument("source")
@click.argument("target", type=click.Path(path_type=Path))
@click.option(
    "--dtype", default="auto", show_default=True, help="Dtype of the written weights; auto takes the base's own."
)
@click.option("--revision", metavar="REV", help="Branch, tag or commit of a base that is a hub id.")
def merge(source: str, target: Path, dtype: str, revision: str | None) -> None:
    """Write the adapter in the folder SOURCE, merged with its base, to the new folder TARGET.

    The folder is complete: it needs neither the adapter nor the base. Sums are made in float32 before they are rounded. A base that is
    stored quantised is dequantised.
    """
    refuse_taken(target)
    import torch

    from pegboard.build import parse_dtype
    from pegboard.opened import open_any
    from pegboard.plugins.load import Registry
    from pegboard.quantised import full_precision
    from pegboard.weights import write_model

    registry = Registry.discover()
    wanted = None if dtype == "auto" else parse_dtype(dtype)
    opened = open_any(registry, source, revision)
    if opened.adapted is None:
        raise ModelError(f"{source} is a complete model: there is nothing to merge", fix="name an adapter's folder")
    plain_config, tensors = full_precision(registry, opened.files)
    own = {tensor.dtype for tensor in tensors.values() if tensor.dtype.is_floating_point}
    if not own:
        raise ModelError(f"the base of {source} holds no tensors", fix="name an adapter of a whole model")
    widest = reduce(torch.promote_types, own)
    written = wanted or widest
    # Built as wide as either: narrowing the base before the sum would round twice.
    built = opened.build(registry, dtype=_name(torch.promote_types(widest, written)))
    if built.quantizer is not None:
        built.quantizer.restore(built.model)
    weights = ((name, weight.detach().to("cpu", written)) for name, weight in built.model.named_parameters())
    config = {**plain_config, "dtype": _name(written), "torch_dtype": _name(written)}
    generation_config = opened.files.generation_config or None
    write_model(target, config, weights, opened.files.files, generation_config=generation_config)
    click.echo(f"{target}: a complete model in {_name(written)}")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
