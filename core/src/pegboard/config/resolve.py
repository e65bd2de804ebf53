"""From a composed config to the resolved one.

Missing values, references, and validation by the recipe and its plugins.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from pegboard.config.compose import Composed, compose
from pegboard.config.errors import config_error
from pegboard.config.text import MISSING
from pegboard.errors import ConfigError, PluginError
from pegboard.plugins.spec import RecipeSpec

if TYPE_CHECKING:
    from pegboard.plugins.load import Registry


def recipe_spec(registry: Registry, recipe: str) -> RecipeSpec:
    """Return the front door of a recipe. Raises PluginError when it is unknown or holds no RecipeSpec."""
    spec = registry.spec("recipe", recipe)
    if not isinstance(spec, RecipeSpec):
        raise PluginError(
            f"the front door of recipe {recipe!r} is a {type(spec).__name__}",
            fix="it must be a RecipeSpec; tell its authors",
        )
    return spec


def configs_folder(registry: Registry, recipe: str) -> Path:
    """Return the folder of a recipe's configs, which lies in the package of its front door.

    The implementation may be in another distribution. Without an entry point (`Registry.of`), its package counts.
    """
    spec = recipe_spec(registry, recipe)
    door = registry.record("recipe", recipe).value or spec.target
    package = door.partition(":")[0].rpartition(".")[0]
    try:
        folder = files(package) / spec.configs if package else None
    except ImportError:
        folder = None
    if not isinstance(folder, Path):
        raise PluginError(
            f"recipe {recipe!r}: the configs of the package {package!r} cannot be read as files",
            fix="re-install the recipe",
        )
    return folder


def load_config(
    registry: Registry, recipe: str, config: str | Path | None = None, overrides: Iterable[str] = ()
) -> dict[str, Any]:
    """Return the resolved config of a recipe as plain JSON values.

    config: a config's name or file; None means `default`. Raises ConfigError naming every wrong or missing key at once.
    `plugins.disabled` of the config is applied to what the sections may use; the caller applies it to its own
    registry with `registry.without(disabled_plugins(config))`.
    """
    composed = compose(configs_folder(registry, recipe), config, tuple(overrides))
    values = resolve_references(composed, f"{recipe}: {config or 'default'}")
    return validate_config(registry.without(disabled_plugins(values)), recipe, values, composed)


def disabled_plugins(config: Mapping[str, Any]) -> list[str]:
    """Return `plugins.disabled` of a config. Raises ConfigError when the section holds anything else."""
    section = config.get("plugins")
    if section is None:
        return []
    if not isinstance(section, Mapping) or set(section) - {"disabled"}:
        raise ConfigError(f"plugins is {section!r}", fix="write plugins: {disabled: [NAME, ...]}")
    disabled = section.get("disabled", [])
    if not isinstance(disabled, list) or not all(isinstance(name, str) for name in disabled):
        raise ConfigError(
            f"plugins.disabled is {disabled!r}", fix="write a list of names: plugins.disabled=[NAME, ...]"
        )
    return list(disabled)


def resolve_references(composed: Composed, where: str) -> dict[str, Any]:
    """Return the tree with `${...}` replaced. Raises ConfigError naming all values that are still `???`."""
    tree = composed.tree
    missing = missing_values(tree)
    if missing:
        raise ConfigError(
            f"{where}: {'this key needs' if len(missing) == 1 else 'these keys need'} a value: {', '.join(missing)}",
            fix="add " + " ".join(f"{key}=…" for key in missing),
        )
    if not _has_reference(tree):
        return tree
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        values = OmegaConf.to_container(OmegaConf.create(tree), resolve=True)
    except (OmegaConfBaseException, RecursionError) as error:
        key = str(getattr(error, "full_key", None) or "")
        origin = composed.origin([int(part) if part.isdigit() else part for part in re.findall(r"[^.\[\]]+", key)])
        line = str(error).splitlines()[0] if str(error) else "the references never end"
        raise ConfigError(
            f"{where}: {key or 'a value'}: {line}" + (f" (in {origin})" if origin else ""),
            fix="write ${section.key} with a key that exists, or \\${ for the characters",
        ) from None
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def missing_values(tree: Any, prefix: str = "") -> list[str]:
    """Return the keys whose value is `???`."""
    if tree == MISSING:
        return [prefix.rstrip(".")]
    items = tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, list) else ()
    return [key for name, value in items for key in missing_values(value, f"{prefix}{name}.")]


def validate_config(registry: Registry, recipe: str, values: Mapping[str, Any], composed: Composed) -> dict[str, Any]:
    """Return the config validated and completed by the recipe's schema and by those of its plugins.

    composed: tells which file or override said what is wrong.
    """
    schema = registry.schema("recipe", recipe)
    own = {key: value for key, value in values.items() if key != "plugins"}
    if schema is None:
        raise PluginError(f"recipe {recipe!r} declares no schema", fix="its RecipeSpec needs schema=; tell its authors")
    try:
        model: BaseModel = schema.model_validate(own, context={"registry": registry})
    except ValidationError as error:
        fix = f"correct the keys named above; `peg config show {recipe}` shows those there are"
        raise config_error(error, schema, f"config of {recipe}", composed, fix) from None
    kept = {"plugins": values["plugins"]} if disabled_plugins(values) else {}
    return {**model.model_dump(mode="json"), **kept}


def _has_reference(tree: Any) -> bool:
    if isinstance(tree, str):
        return "${" in tree
    items = tree.values() if isinstance(tree, Mapping) else tree if isinstance(tree, list) else ()
    return any(_has_reference(item) for item in items)
