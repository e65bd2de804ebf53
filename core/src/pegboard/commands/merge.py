"""`peg merge`: an adapter and its base as one model."""

from __future__ import annotations

from pathlib import Path

import click

from pegboard.commands.convert import refuse_taken
from pegboard.errors import ModelError


@click.command()
@click.argument("source")
@click.argument("target", type=click.Path(path_type=Path))
@click.option(
    "--dtype", default="auto", show_default=True, help="Dtype of the written weights; auto takes the base's own."
)
@click.option("--revision", metavar="REV", help="Branch, tag or commit of a base that is a hub id.")
def merge(source: str, target: Path, dtype: str, revision: str | None) -> None:
    """Write the adapter in the folder SOURCE, merged with its base, to the new folder TARGET.

    The folder is complete: it needs neither the adapter nor the base. Sums are made in float32 before they are rounded.
    """
    refuse_taken(target)
    from pegboard.build import parse_dtype
    from pegboard.opened import open_any
    from pegboard.plugins.load import Registry
    from pegboard.weights import write_model

    registry = Registry.discover()
    wanted = None if dtype == "auto" else parse_dtype(dtype)
    opened = open_any(registry, source, revision)
    if opened.adapted is None:
        raise ModelError(f"{source} is a complete model: there is nothing to merge", fix="name an adapter's folder")
    name = str(wanted or max((t.dtype for t in opened.files.tensors.values()), key=lambda d: d.itemsize))
    name = name.removeprefix("torch.")
    built = opened.build(registry, dtype=name)
    weights = ((key, parameter.detach().cpu()) for key, parameter in built.model.named_parameters())
    config = {**built.config, "dtype": name, "torch_dtype": name}
    generation_config = opened.files.generation_config or None
    write_model(target, config, weights, opened.files.files, generation_config=generation_config)
    click.echo(f"{target}: a complete model in {name}")
