"""A recipe's ready configs, as `peg run` reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pegboard.config import list_configs, load_config
from pegboard.config.resolve import configs_folder
from pegboard.plugins.doors import import_object
from pegboard.plugins.load import Registry


def ready_configs(recipe: str, given: Sequence[str]) -> dict[str, Any]:
    """Return every config of an installed recipe by name, in their order, as its schema has it. given: overrides, for its paths.

    Raises ConfigError, or pydantic's ValidationError, for one that is not valid.
    """
    registry = Registry.discover()
    schema = import_object(registry.spec("recipe", recipe).schema or "")
    names = list_configs(configs_folder(registry, recipe))
    return {name: schema.model_validate(load_config(registry, recipe, name, given)) for name in names}
