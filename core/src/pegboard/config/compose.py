"""Finding config files and putting them together: `extends`, then overrides. Nothing is validated here."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pegboard.config.overrides import apply_overrides, merge
from pegboard.config.text import MAX_BYTES, parse_config
from pegboard.errors import ConfigError, nearest
from pegboard.plugins.spec import RecipeSpec

DEFAULT = "default"


def configs_folder(spec: RecipeSpec) -> Path:
    """Return the folder of a recipe's configs, which lies in the package that holds its implementation.

    The package is not imported.
    """
    package = spec.target.partition(":")[0].partition(".")[0]
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ConfigError(f"the package {package} of the recipe is not installed", fix="re-install the recipe")
    return Path(next(iter(found.submodule_search_locations))) / spec.configs


def list_configs(folder: Path) -> dict[str, Path]:
    """Return the configs of a recipe by name."""
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def compose(folder: Path, config: str | Path | None = None, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """Return a config with everything that it extends and the overrides merged, `${...}` and `???` still in it.

    folder: the recipe's configs. config: a name in it, or a file; None means `default`.
    """
    path = find_config(folder, DEFAULT if config is None else str(config), Path.cwd())
    return apply_overrides(_read(folder, path, ()), overrides)


def find_config(folder: Path, name: str, beside: Path) -> Path:
    """Return the file that `name` means.

    A config of the recipe, or a file relative to `beside`. Raises ConfigError naming what there is.
    """
    known = list_configs(folder)
    if name in known:
        return known[name]
    path = beside / Path(name).expanduser()
    if path.is_file():
        return path
    if path.suffix in (".yaml", ".yml") or "/" in name:
        raise ConfigError(
            f"there is no config file {path}", fix=f"check the path, or name a config of the recipe: {', '.join(known)}"
        )
    raise ConfigError(
        f"the recipe has no config {name!r}{nearest(name, known)}",
        fix=f"use one of: {', '.join(known) or 'none'}; or a file (FILE.yaml)",
    )


def _read(folder: Path, path: Path, chain: tuple[Path, ...]) -> dict[str, Any]:
    """Return a file's content on top of what it extends. `chain` is the way here, to find circles."""
    resolved = path.resolve()
    if resolved in chain:
        circle = " -> ".join(str(p) for p in (*chain[chain.index(resolved) :], resolved))
        raise ConfigError(f"configs extend each other in a circle: {circle}", fix="remove one `extends`")
    own = parse_config(_text(path), str(path))
    merged: dict[str, Any] = {}
    for name in _parents(own.pop("extends", None), path):
        parent = find_config(folder, name, path.parent)
        merged = merge(merged, _read(folder, parent, (*chain, resolved)))
    return merge(merged, own)


def _parents(value: Any, path: Path) -> Iterator[str]:
    names = value if isinstance(value, list) else [] if value is None else [value]
    for name in names:
        if not isinstance(name, str):
            raise ConfigError(f"{path}: extends holds {name!r}", fix="write a config's name or file, or a list of them")
        yield name


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path} is larger than {MAX_BYTES} bytes", fix="a config holds settings, not data")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no UTF-8 text (byte {error.start})", fix="save it as UTF-8") from None
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}", fix="check the file and its permissions"
        ) from None
