"""`peg data reference`: what the reference model gives the answers of a data set, computed once and for all."""

from __future__ import annotations

import click


@click.command()
@click.option("--config", metavar="NAME|FILE", help="A config of the recipe dpo; without it, its default.")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def reference(config: str | None, overrides: tuple[str, ...]) -> None:
    """Write the preference pairs of `data` to the JSONL file `output`, each with the reference's log-probabilities of its two answers.

    A run over that file, with reference=null, needs no reference model.
    """
    from pegboard.config import load_config
    from pegboard.config.resolve import disabled_plugins
    from pegboard.plugins.load import Registry
    from pegboard_dpo.config import ReferenceConfig
    from pegboard_dpo.precompute import write_reference

    registry = Registry.discover()
    resolved = load_config(registry, "dpo", config, overrides)
    registry = registry.without(disabled_plugins(resolved))
    typed = ReferenceConfig.model_validate({key: value for key, value in resolved.items() if key != "plugins"})
    written = write_reference(typed, registry)
    click.echo(f"{written:,} pairs in {typed.output}")
