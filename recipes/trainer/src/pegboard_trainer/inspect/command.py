"""`peg data preview` and `peg data stats`."""

from __future__ import annotations

import json
import sys

import click

config_option = click.option("--config", metavar="NAME|FILE", help="A config of the recipe, or a YAML file.")
overrides_argument = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")


@click.command("preview")
@click.argument("recipe")
@config_option
@click.option("--examples", default=3, show_default=True, type=click.IntRange(min=0), help="How many to show.")
@click.option("--batches", default=3, show_default=True, type=click.IntRange(min=0), help="How many to show, packed.")
@click.option("--tokens", is_flag=True, help="A line for each token, in place of the text.")
@click.option(
    "--color/--no-color", default=None, help="Colours, or marks in their place; by default as the terminal can."
)
@overrides_argument
def preview(
    recipe: str,
    config: str | None,
    examples: int,
    batches: int,
    tokens: bool,
    color: bool | None,
    overrides: tuple[str, ...],
) -> None:
    """Show the first examples and batches of `peg run RECIPE`: their tokens, which of them are learned, and how they are packed.

    RECIPE, --config and KEY=VALUE are those of the run; only model and data need to be given.
    """
    from itertools import islice

    from pegboard_trainer.inspect.opened import open_run
    from pegboard_trainer.inspect.preview import Painter
    from pegboard_trainer.packer import Batches

    opened = open_run(recipe, config, overrides)
    painter = Painter(opened.tokenizer, sys.stdout.isatty() if color is None else color)
    for key, example in islice(opened.examples, examples):
        click.echo(painter.title(opened.examples.describe(key), example), color=painter.color)
        for row in example:
            click.echo(painter.tokens(row) if tokens else painter.text(row), color=painter.color)
    opened.examples.next_key = (0, 0, 0)
    packer = opened.packer()
    packed = Batches(opened.examples, packer)
    for number in range(1, batches + 1):
        click.echo(painter.batch(number, packed.next_bin(), packer.capacity), color=painter.color)
    if examples and not tokens:
        click.echo(painter.legend, color=painter.color)


@click.command("stats")
@click.argument("recipe")
@config_option
@click.option("--rows", type=click.IntRange(min=1), metavar="N", help="Only the first N rows in the order of training.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@overrides_argument
def stats(recipe: str, config: str | None, rows: int | None, as_json: bool, overrides: tuple[str, ...]) -> None:
    """Tell how long the examples of `peg run RECIPE` are, what is cut or left out, how full batches are, and which rows are bad.

    Reads one epoch as training does. Exits with 1 where a row is bad.
    """
    from pegboard_trainer.inspect.opened import open_run
    from pegboard_trainer.inspect.report import render
    from pegboard_trainer.inspect.stats import collect

    opened = open_run(recipe, config, overrides)
    total = rows if opened.examples.rows is None else min(rows or opened.examples.rows, opened.examples.rows)
    with click.progressbar(length=total or 0, label="rows", file=sys.stderr, hidden=not sys.stderr.isatty()) as bar:
        found = collect(opened, rows, lambda: bar.update(1))
    click.echo(json.dumps(found, indent=1) if as_json else render(found))
    click.get_current_context().exit(1 if found["bad"] else 0)
