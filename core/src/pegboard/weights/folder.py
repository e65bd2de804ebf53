"""Writing a model: a complete Hugging Face folder that appears by one rename."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

import torch
from torch import Tensor

from pegboard.errors import ModelError, PegboardError
from pegboard.weights.read import INDEX_NAME, WEIGHTS_NAME
from pegboard.weights.write import (
    FORMAT_METADATA,
    Room,
    encode_header,
    sync,
    sync_folder,
    temporary_name,
    write_data,
    writing,
)

if TYPE_CHECKING:
    from pegboard.interfaces.format import LazyTensor

HEADER_ROOM = 512 << 10
"""Bytes kept free for the header at the start of a shard whose tensors are not known yet: about 4,000 tensors."""
COMPACT_BELOW = 32 << 20
"""A file with less data is written again without the room that its header did not need."""


def write_model(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Iterable[tuple[str, Tensor | LazyTensor | Room]],
    files: Mapping[str, bytes],
    *,
    generation_config: Mapping[str, Any] | None = None,
    max_shard_bytes: float = 5e9,
) -> None:
    """Write config.json, generation_config.json, the weights and `files` (relative name -> content) into a new
    `folder`.

    tensors: taken once, in order, each let go of before the next is asked for; their shapes need not be known before.
    Under a config with `tie_word_embeddings` the head is the embedding, so `lm_head.weight` is left out.
    The folder appears whole or not at all. Raises PegboardError when it exists already or the disk is full,
    ModelError for a tensor name that occurs twice and for a file name that leaves the folder or is one of the model's
    own.
    """
    if os.path.lexists(folder):
        raise PegboardError(f"{folder} exists already", fix="choose another folder, or remove this one")
    contents = _contents(config, files, generation_config)
    tied = bool(config.get("tie_word_embeddings", False))
    temporary = folder.parent / temporary_name(folder.name)
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        try:
            with _Shards(temporary, max_shard_bytes) as shards:
                for name, tensor in tensors:
                    if not (tied and name == "lm_head.weight"):
                        shards.add(name, tensor if isinstance(tensor, Tensor | Room) else tensor.load())
                    del tensor  # else it would live on while the next one is made
            contents |= shards.index()
            for name, content in contents.items():
                target = temporary / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("xb") as file:
                    file.write(content)
                    sync(file)
            for inner in {(temporary / name).parent for name in contents}:
                sync_folder(inner)
            temporary.rename(folder)
            sync_folder(folder.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def _contents(
    config: Mapping[str, Any], files: Mapping[str, bytes], generation_config: Mapping[str, Any] | None
) -> dict[str, bytes]:
    """Return the small files of the folder by relative name."""
    contents = {"config.json": _json(config)}
    if generation_config:
        contents["generation_config.json"] = _json(generation_config)
    for name, content in files.items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or not path.parts:
            raise ModelError(
                f"the file name {name!r} does not stay inside the model's folder", fix="use a relative name"
            )
        if str(path) in contents or path.name.endswith(".safetensors") or str(path) == INDEX_NAME:
            raise ModelError(
                f"{name} is written with the model and cannot be one of its extra files", fix="leave it out"
            )
        contents[str(path)] = bytes(content)
    return contents


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


class _Shards:
    """The weight files of a folder that is being written: the data goes out as it comes, each header when its file is
    full.
    """

    def __init__(self, folder: Path, max_bytes: float) -> None:
        self._folder, self._max_bytes = folder, max_bytes
        self._shards: list[list[str]] = []
        self._seen: set[str] = set()
        self._total = 0
        self._file: BinaryIO | None = None
        self._entries: list[tuple[str, torch.dtype, tuple[int, ...]]] = []
        self._data_bytes = self._header_bytes = 0

    def __enter__(self) -> _Shards:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._finish()
        elif self._file is not None:
            self._file.close()

    def add(self, name: str, tensor: Tensor | Room) -> None:
        """Append a tensor to the open file, or to a new one when that would grow too large."""
        if name in self._seen:
            raise ModelError(f"the tensor {name} is to be written twice", fix="give each tensor a name of its own")
        entry = (name, tensor.dtype, tuple(tensor.shape))
        size, header = torch.Size(tensor.shape).numel() * tensor.dtype.itemsize, len(encode_header([entry], {})) + 16
        full = self._data_bytes + size > self._max_bytes or self._header_bytes + header > HEADER_ROOM - 256
        if self._file is not None and full and self._entries:
            self._finish()
        if self._file is None:
            self._file = self._path(len(self._shards)).open("x+b")
            self._file.seek(HEADER_ROOM)
        write_data(self._file, tensor)
        self._entries.append(entry)
        self._seen.add(name)
        self._data_bytes += size
        self._header_bytes += header
        self._total += size

    def index(self) -> dict[str, bytes]:
        """Give the files their final names; return the index's name and content if there are several."""
        count = len(self._shards)
        if count == 1:
            self._path(0).rename(self._folder / WEIGHTS_NAME)
            return {}
        weight_map: dict[str, str] = {}
        for number, names in enumerate(self._shards):
            final = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
            self._path(number).rename(self._folder / final)
            weight_map |= dict.fromkeys(names, final)
        return {
            INDEX_NAME: _json({"metadata": {"total_size": self._total}, "weight_map": dict(sorted(weight_map.items()))})
        }

    def _path(self, number: int) -> Path:
        return self._folder / f"shard-{number}"

    def _finish(self) -> None:
        file = self._file if self._file is not None else self._path(0).open("x+b")
        with file:
            room = HEADER_ROOM
            exact = encode_header(self._entries, FORMAT_METADATA)
            if self._data_bytes < COMPACT_BELOW or len(exact) > room:
                file.seek(room)
                data = file.read()
                file.seek(0)
                file.write(exact + data)
                file.truncate()
            else:
                file.seek(0)
                file.write(encode_header(self._entries, FORMAT_METADATA, size=room))
            sync(file)
        self._shards.append([name for name, _, _ in self._entries])
        self._file, self._entries, self._data_bytes, self._header_bytes = None, [], 0, 0
