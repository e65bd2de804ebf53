"""Finding config files and putting them together: `extends`, then overrides. Nothing is validated here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pegboard.config.overrides import apply_overrides, merge, parse_override
from pegboard.config.text import MAX_BYTES, parse_config
from pegboard.errors import ConfigError, nearest

DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class Composed:
    """A config with everything that it extends and the overrides merged, `${...}` and `???` still in it.

    layers: what each file and each override says, with its name, the later over the earlier.
    """

    tree: dict[str, Any]
    layers: tuple[tuple[str, Mapping[str, Any]], ...] = ()

    def origin(self, path: Sequence[int | str]) -> str:
        """Return the file or override that set the value at `path` or nearest above it; empty when none did."""
        for length in range(len(path), 0, -1):
            for name, layer in self.layers[::-1]:
                if _holds(layer, path[:length]):
                    return name
        return ""


def list_configs(folder: Path) -> dict[str, Path]:
    """Return the configs of a recipe by name."""
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def compose(folder: Path, config: str | Path | None = None, overrides: Sequence[str] = ()) -> Composed:
    """Return a config of the recipe whose configs are in `folder`, or a file; None means `default`."""
    path = find_config(folder, DEFAULT if config is None else str(config), Path.cwd())
    layers: list[tuple[str, Mapping[str, Any]]] = []
    tree = apply_overrides(_read(folder, path, (), layers), overrides)
    said = [(override, parse_override(override)) for override in overrides if not override.startswith("~")]
    return Composed(tree, (*layers, *said))


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


def _read(
    folder: Path, path: Path, chain: tuple[Path, ...], layers: list[tuple[str, Mapping[str, Any]]]
) -> dict[str, Any]:
    """Return a file's content on top of what it extends, and add each file to `layers`.

    chain: the way here, to find circles.
    """
    resolved = path.resolve()
    if resolved in chain:
        circle = " -> ".join(str(p) for p in (*chain[chain.index(resolved) :], resolved))
        raise ConfigError(f"configs extend each other in a circle: {circle}", fix="remove one `extends`")
    own = parse_config(_text(path), str(path))
    merged: dict[str, Any] = {}
    for name in _parents(own.pop("extends", None), path):
        try:
            parent = find_config(folder, name, path.parent)
        except ConfigError as error:
            raise ConfigError(f"{path} extends {name!r}: {error.message}", fix=error.fix) from None
        merged = merge(merged, _read(folder, parent, (*chain, resolved), layers))
    layers.append((str(path), own))
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


def _holds(layer: Any, path: Sequence[int | str]) -> bool:
    for part in path:
        if isinstance(layer, Mapping) and str(part) in layer:
            layer = layer[str(part)]
        elif isinstance(layer, list) and isinstance(part, int) and part < len(layer):
            layer = layer[part]
        else:
            return False
    return True
