"""`peg config`: the configs of recipes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pegboard.cli import LazyGroup
from pegboard.errors import ConfigError, PluginError

if TYPE_CHECKING:
    from pegboard.plugins.load import Registry

overrides_argument = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
config_option = click.option("--config", "name", metavar="NAME|FILE", help="A config of the recipe, or a YAML file.")


@click.group(cls=LazyGroup, prefix="config.")
def config() -> None:
    """List, show, check and copy the configs of recipes."""


@config.command("list")
@click.argument("recipe", required=False)
def list_(recipe: str | None) -> None:
    """List the configs of RECIPE, or of all recipes; the first comment line of a config is its summary."""
    from pegboard.config import list_configs
    from pegboard.config.resolve import configs_folder

    registry = _registry()
    for name in [recipe] if recipe else sorted({r.name for r in registry.records("recipe") if r.status != "blocked"}):
        try:
            configs = list_configs(configs_folder(registry, name))
        except PluginError as error:
            if recipe:
                raise
            click.echo(f"{name}: {error.message}", err=True)
            continue
        for config_name, path in configs.items():
            first = path.read_text(encoding="utf-8").partition("\n")[0]
            click.echo(f"{name}  {config_name}" + (f"  {first.lstrip('# ')}" if first.startswith("#") else ""))


@config.command("show")
@click.argument("recipe")
@config_option
@overrides_argument
def show(recipe: str, name: str | None, overrides: tuple[str, ...]) -> None:
    """Print the config that a run would have, defaults included. Values that are still to be given show as ???."""
    from pegboard.config import compose, dump_config, load_config
    from pegboard.config.resolve import configs_folder, missing_values
    from pegboard.config.text import dump_tree

    registry = _registry()
    tree = compose(configs_folder(registry, recipe), name, overrides).tree
    missing = missing_values(tree)
    if missing:
        click.echo(dump_tree(tree), nl=False)
        click.echo(f"still to be given (defaults of plugins are filled in after that): {', '.join(missing)}", err=True)
    else:
        click.echo(dump_config(load_config(registry, recipe, name, overrides)), nl=False)


@config.command("validate")
@click.argument("recipe")
@config_option
@overrides_argument
def validate(recipe: str, name: str | None, overrides: tuple[str, ...]) -> None:
    """Check a config as `peg run` does, and run nothing."""
    from pegboard.config import load_config

    load_config(_registry(), recipe, name, overrides)
    click.echo(f"{recipe}: {name or 'default'} is valid")


@config.command("copy")
@click.argument("recipe")
@click.argument("name")
@click.argument("target", required=False, type=click.Path(path_type=Path))
def copy(recipe: str, name: str, target: Path | None) -> None:
    """Copy a config of RECIPE to TARGET (default: RECIPE-NAME.yaml here) to make it yours;
    what it extends stays with the recipe.
    """
    from pegboard.config.compose import find_config
    from pegboard.config.resolve import configs_folder

    source = find_config(configs_folder(_registry(), recipe), name, Path.cwd())
    goal = target or Path(f"{recipe}-{source.stem}.yaml")
    goal = goal / f"{recipe}-{source.stem}.yaml" if goal.is_dir() else goal
    try:
        with goal.open("x", encoding="utf-8") as file:
            file.write(source.read_text(encoding="utf-8"))
    except FileExistsError:
        raise ConfigError(f"{goal} exists", fix="name another file") from None
    except FileNotFoundError:
        raise ConfigError(f"the folder {goal.parent} does not exist", fix="make it first") from None
    click.echo(f"{goal}: run it with `peg run {recipe} --config {goal}`")


def _registry() -> Registry:
    from pegboard.plugins.load import Registry

    return Registry.discover()
