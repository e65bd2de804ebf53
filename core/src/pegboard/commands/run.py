"""`peg run`: train."""

from __future__ import annotations

import click


@click.command()
@click.argument("recipe")
@click.option(
    "--config", metavar="NAME|FILE", help="A config of the recipe, or a YAML file; without it, the recipe's default."
)
@click.option(
    "--nproc", type=click.IntRange(min=1), metavar="N", help="Start N processes; the config's mesh divides the work."
)
@click.option(
    "--launcher", default="local", metavar="NAME", help="What starts them: a launcher plugin.", show_default=True
)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def run(recipe: str, config: str | None, nproc: int | None, launcher: str, overrides: tuple[str, ...]) -> None:
    """Run RECIPE. Overrides: section.key=value sets, ~section.key deletes.

    `peg config list RECIPE` names the configs, `peg config show RECIPE` prints every key. Processes that torchrun or another launcher of
    that kind has started find each other by themselves.
    """
    from pegboard.garbage import uncollected

    with uncollected():
        from pegboard.config import load_config
        from pegboard.config.resolve import disabled_plugins, recipe_spec
        from pegboard.plugins.load import Registry

        registry = Registry.discover()
        resolved = load_config(registry, recipe, config, overrides)
        registry = registry.without(disabled_plugins(resolved))
        if nproc is not None:
            chosen = [] if config is None else ["--config", config]
            raise SystemExit(registry.create("launcher", launcher).launch(["run", recipe, *chosen, *overrides], nproc))
        spec = recipe_spec(registry, recipe)
        loaded = registry.load("recipe", recipe)()
    loaded.run(spec, resolved, registry)
