"""The data of a run as its configuration says, without a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from pegboard_trainer.config import TrainConfig
from pegboard_trainer.data import Opener, packer_of
from pegboard_trainer.examples import Examples
from pegboard_trainer.feed import make_feed
from pegboard_trainer.packer import Packer

if TYPE_CHECKING:
    from pegboard.interfaces.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Opened:
    """examples: one epoch or endless, in the order of training. tokenizer: the model's own."""

    config: TrainConfig
    tokenizer: Tokenizer
    examples: Examples

    def packer(self) -> Packer:
        """Return an empty packer as the run has it."""
        return packer_of(self.config.batch)


def open_run(recipe: str, name: str | None, overrides: Sequence[str]) -> Opened:
    """Return the data of `peg run RECIPE --config NAME OVERRIDES`. Validation rows are not taken out of it."""
    from pegboard.build import load_tokenizer, open_model
    from pegboard.config import load_config
    from pegboard.config.resolve import disabled_plugins, recipe_spec
    from pegboard.plugins.doors import import_object
    from pegboard.plugins.load import Registry

    registry = Registry.discover()
    # Nothing is written, so that the folder of the run need not be named.
    resolved = load_config(registry, recipe, name, ("output=unused", *overrides))
    registry = registry.without(disabled_plugins(resolved))
    schema = import_object(recipe_spec(registry, recipe).schema or "pegboard_trainer.config:TrainConfig")
    config = cast(TrainConfig, schema.model_validate({k: v for k, v in resolved.items() if k != "plugins"}))
    tokenizer = load_tokenizer(registry, open_model(registry, config.model.path, config.model.revision))
    opener = Opener(config, registry, tokenizer, writes=True)
    feed = make_feed(opener.parts(), config.seed, shuffle=config.data.shuffle)
    return Opened(config, tokenizer, opener.examples(feed, None))
