"""`peg download`: a model or a data set into the hub's cache."""

from __future__ import annotations

from pathlib import Path

import click

from pegboard.errors import ConfigError


@click.command()
@click.argument("model", required=False)
@click.option("--dataset", metavar="NAME", help="Fetch this data set instead of a model.")
@click.option("--revision", metavar="REV", help="Branch, tag or commit; the main branch if not given.")
@click.option(
    "--include", multiple=True, metavar="PATTERN", help="Fetch only matching files of a data set; may be repeated."
)
def download(model: str | None, dataset: str | None, revision: str | None, include: tuple[str, ...]) -> None:
    """Fetch MODEL (owner/name) from the hub, check it and print its folder. A download that was cut off continues."""
    if (model is None) == (dataset is None):
        raise ConfigError("name one thing to download", fix="peg download MODEL, or peg download --dataset NAME")
    if dataset is not None:
        from pegboard_hub.download import download_dataset

        click.echo(download_dataset(dataset, revision, include))
        return
    if include:
        raise ConfigError(
            "--include is for data sets: of a model exactly what it needs is fetched", fix="leave --include out"
        )
    assert model is not None
    if Path(model).expanduser().exists():
        raise ConfigError(f"{model} is here already", fix="name a hub id, such as owner/name")
    from pegboard_hub.download import download_model

    folder = download_model(model, revision)
    from pegboard_hub.files import HfFiles

    files = HfFiles(model, folder)
    size = sum(path.stat().st_size for path in files.weight_files)
    click.echo(f"{len(files.tensors)} tensors, {size / 1e9:.2f} GB", err=True)
    click.echo(folder)
