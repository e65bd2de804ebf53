"""The format itself: a Hugging Face folder, on disk or in the hub's cache, opened as a model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pegboard.errors import ModelError
from pegboard.interfaces.format import LazyTensor, ModelFiles, ModelFormat
from pegboard.weights import read_folder, write_model
from pegboard.weights.read import read_json
from pegboard_hub.names import COMPANIONS, CONFIG, GENERATION

if TYPE_CHECKING:
    from torch import Tensor

MAX_COMPANION = 64 << 20
"""Bytes of the largest such file that is read."""


class HfFiles(ModelFiles):
    """An opened folder. location: what the user named; folder: where the files are."""

    def __init__(self, location: str, folder: Path) -> None:
        self.location = location
        self.folder = folder
        if not (folder / CONFIG).is_file():
            raise _no_config(location, folder)
        self._config = read_json(folder / CONFIG)
        self._tensors = read_folder(folder)

    @property
    def config(self) -> Mapping[str, Any]:
        """The parsed config.json."""
        return self._config

    @cached_property
    def generation_config(self) -> Mapping[str, Any]:
        """The parsed generation_config.json, or an empty mapping. Raises ModelError when it is damaged."""
        path = self.folder / GENERATION
        return read_json(path) if path.is_file() else {}

    @property
    def tensors(self) -> Mapping[str, LazyTensor]:
        """Tensors by name, read from disk when loaded."""
        return self._tensors

    @property
    def weight_files(self) -> list[Path]:
        """The files that hold the tensors."""
        return sorted({tensor.path for tensor in self._tensors.values()})

    @cached_property
    def files(self) -> Mapping[str, bytes]:
        """Contents of the files that match `COMPANIONS`, by name relative to the folder."""
        return {name: path.read_bytes() for name, path in _companions(self.folder)}

    @property
    def portable(self) -> bool:
        """True: other tools load the folder, or the id, as it is."""
        return True

    def fingerprint(self) -> str:
        """Return a hash of names, shapes and the identity of the weight files: content addresses in the hub's cache, sizes
        and times of change elsewhere.
        """
        digest = hashlib.blake2b(digest_size=8)
        digest.update(repr([_identity(path) for path in self.weight_files]).encode())
        shapes = ((name, tensor.shape, str(tensor.dtype)) for name, tensor in self._tensors.items())
        digest.update(repr(sorted(shapes)).encode())
        return digest.hexdigest()


class HfFormat(ModelFormat):
    """Reads and writes Hugging Face folders; reads hub ids."""

    def open(self, location: str, *, revision: str | None = None) -> HfFiles:
        """Open a folder, or download the model of a hub id first. revision: branch, tag or commit of a hub id.

        Raises ModelError naming what is missing or damaged, or why the hub does not give the model.
        """
        path = Path(location).expanduser()
        if path.is_dir():
            return HfFiles(location, path)
        from pegboard_hub.download import download_model

        return HfFiles(location, download_model(location, revision))

    def write(
        self,
        folder: Path,
        config: Mapping[str, Any],
        tensors: Iterable[tuple[str, Tensor]],
        files: Mapping[str, bytes],
        *,
        generation_config: Mapping[str, Any] | None = None,
    ) -> None:
        """Write a complete folder tensor by tensor; see `pegboard.weights.write_model`."""
        write_model(folder, config, tensors, files, generation_config=generation_config)


def _companions(folder: Path) -> list[tuple[str, Path]]:
    found = []
    for path in sorted([*folder.iterdir(), *folder.glob("additional_chat_templates/*")]):
        name = path.relative_to(folder).as_posix()
        if any(fnmatch(name, pattern) for pattern in COMPANIONS) and path.is_file():
            size = path.stat().st_size
            if size > MAX_COMPANION:
                raise ModelError(
                    f"{path} has {size} bytes; at most {MAX_COMPANION} are read",
                    fix="download it again, or leave it out",
                )
            found.append((name, path))
    return found


def _identity(path: Path) -> tuple[str, str, int, int]:
    """Name and state of a file. A link of the hub's cache leads to a file that is called after its content."""
    real = path.resolve()
    if real.parent.name == "blobs":
        return path.name, real.name, 0, 0
    state = path.stat()
    return path.name, "", state.st_size, state.st_mtime_ns


def _no_config(location: str, folder: Path) -> ModelError:
    if (folder / "adapter_config.json").is_file():
        base = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
        return ModelError(f"{location} holds an adapter, not a whole model", fix=f"name its base model, {base}")
    ggufs = sorted(path.name for path in folder.glob("*.gguf"))
    if ggufs:
        return ModelError(f"{location} holds GGUF files and no {CONFIG}", fix=f"name one of them: {folder / ggufs[0]}")
    return ModelError(f"{location} has no {CONFIG}", fix="name the folder or id of a model in Hugging Face's format")
