"""What a user names as a model: a complete one, or an adapter folder with the base that it belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pegboard.build import BuiltModel, load_tokenizer, markers_of, open_model, prepare_model
from pegboard.classifier import SCORE, HeadKind
from pegboard.errors import ModelError
from pegboard.interfaces.adapter import AdapterFiles
from pegboard.interfaces.format import LazyTensor, ModelFiles

if TYPE_CHECKING:
    from pegboard.interfaces.platform import Phase
    from pegboard.interfaces.tokenizer import Tokenizer
    from pegboard.nn.parallel import Region
    from pegboard.plugins.load import Registry

TEXT_FILES = ("tokenizer", "chat_template", "special_tokens", "added_tokens", "vocab", "merges")
"""Beginnings of the names of files that make a tokenizer; those beside an adapter count more than its base's."""


class AdaptedFiles(ModelFiles):
    """The files of a base model, with the tokenizer that stands beside the adapter."""

    def __init__(self, folder: Path, base: ModelFiles) -> None:
        self.location = str(folder)
        self._base = base
        beside = [p for p in folder.iterdir() if p.is_file() and p.name.startswith(TEXT_FILES)]
        own = {path.name: path.read_bytes() for path in beside}
        has_tokenizer = any(name.startswith("tokenizer") for name in own)
        kept = {n: c for n, c in base.files.items() if not (has_tokenizer and n.startswith(TEXT_FILES))}
        self._files = {**kept, **own}

    @property
    def config(self) -> Mapping[str, Any]:
        """The base's."""
        return self._base.config

    @property
    def generation_config(self) -> Mapping[str, Any]:
        """The base's."""
        return self._base.generation_config

    @property
    def tensors(self) -> Mapping[str, LazyTensor]:
        """The base's."""
        return self._base.tensors

    @property
    def files(self) -> Mapping[str, bytes]:
        """The base's, its tokenizer replaced by the adapter's where there is one."""
        return self._files

    @property
    def portable(self) -> bool:
        """False: the folder holds no whole model."""
        return False


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """files: of the model, or of the base. adapted: the adapter that belongs on it, None for a complete model.

    location, revision: what it was opened from.
    """

    files: ModelFiles
    adapted: AdapterFiles | None = None
    location: str = ""
    revision: str | None = None

    def build(self, registry: Registry, **options: Any) -> BuiltModel:
        """Return the model, loaded, with its adapter merged in; `options` as for `prepare`."""
        return self.prepare(registry, **options).load()

    def prepare(
        self,
        registry: Registry,
        *,
        platform: str = "auto",
        device: int = 0,
        dtype: str = "auto",
        attention: str = "auto",
        quantizer: str | Mapping[str, Any] | None = None,
        phase: Phase = "decode",
        head: HeadKind = "auto",
        region: Region | None = None,
        seed: int = 0,
    ) -> BuiltModel:
        """Return the model without weights; `load()` brings them and merges the adapter in.

        Merged, since a merged model computes exactly what a plain one does, at its speed, and can be written as one. Options as for
        `prepare_model`; quantizer: name of a plugin, or a mapping with its options and "use". The result's `source` holds all of
        this with the choices made: `open_any(registry, source["location"], source["revision"]).prepare(registry,
        **source["options"])` builds the same model in another process.
        """
        built = prepare_model(
            registry,
            self.files,
            platform=platform,
            device=device,
            dtype=dtype,
            attention=attention,
            adapter=None if self.adapted is None else self.adapted.adapter,
            quantizer=None if quantizer is None else registry.create("quantizer", quantizer),
            phase=phase,
            head="scalar" if head == "auto" and self.adapted is not None and SCORE in self.adapted.whole else head,
            region=region,
            seed=seed,
        )
        if self.adapted is not None:
            built.pending.append(partial(_merge, built, self.adapted))
        chosen = {
            "platform": built.platform_name,
            "device": device,
            "dtype": str(built.dtype).removeprefix("torch."),
            "attention": built.attention_name,
            "quantizer": quantizer if quantizer is None or isinstance(quantizer, str) else dict(quantizer),
            "phase": phase,
            "head": head,
        }
        built.source = {"location": self.location, "revision": self.revision, "options": chosen}
        return built

    def tokenizer(self, registry: Registry, name: str = "auto") -> Tokenizer:
        """Return the tokenizer. Raises ModelError when the model has none."""
        return load_tokenizer(registry, self.files, name)


def open_any(registry: Registry, location: str, revision: str | None = None) -> OpenedModel:
    """Open a file, a folder (of a model or of an adapter) or a hub id.

    Raises ModelError naming what is missing, the base model of an adapter included.
    """
    folder = Path(location).expanduser()
    names = adapter_plugins(registry, folder)
    if not names:
        return OpenedModel(open_model(registry, location, revision), None, location, revision)
    _, adapted = open_adapter(registry, folder, names)
    if not adapted.base:
        raise ModelError(
            f"the adapter in {location} names no base model", fix="write the id or folder of its base into its config"
        )
    beside = folder / adapted.base
    base = str(beside) if beside.exists() else adapted.base
    try:
        files = open_model(registry, base, revision)
    except ModelError as error:
        raise ModelError(
            f"the base model of the adapter in {location} cannot be opened: {error.message}",
            fix=f"bring {base} back, or correct the name of the base in the adapter's config",
        ) from error
    return OpenedModel(AdaptedFiles(folder, files), adapted, location, revision)


def _merge(built: BuiltModel, adapted: AdapterFiles) -> None:
    adapted.adapter.load(built.model, adapted.tensors)
    with torch.no_grad():
        for name, tensor in adapted.whole.items():
            built.model.get_parameter(name).copy_(tensor)
        adapted.adapter.merge(built.model)
    built.adapted = ()
    built.model.requires_grad_(False)


def adapter_plugins(registry: Registry, folder: Path) -> list[str]:
    """Return the plugins of kind `adapter` that claim a folder by one of their marker files."""
    if not folder.is_dir():
        return []
    return [
        record.name
        for record, spec in registry.candidates("adapter")
        if any((folder / marker).is_file() for marker in markers_of(spec))
    ]


def open_adapter(registry: Registry, folder: Path, names: list[str]) -> tuple[str, AdapterFiles]:
    """Open an adapter folder by one of the plugins `names` that claim it; return which it was, and what it read.

    Several methods share a marker file: the first that can read the folder does, else the first one's error counts.
    """
    refusals: list[ModelError] = []
    for name in names:
        try:
            opened: AdapterFiles = registry.load("adapter", name).open(folder)
            return name, opened
        except ModelError as error:
            refusals.append(error)
    raise refusals[0]
