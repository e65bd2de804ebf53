"""Writing safetensors files: tensor by tensor, whole or not at all."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from uuid import uuid4

import torch
from torch import Tensor

from pegboard.errors import ModelError, PegboardError
from pegboard.weights.header import METADATA_KEY
from pegboard.weights.read import TORCH_DTYPES, SafetensorsTensor

if TYPE_CHECKING:
    from pegboard.interfaces.format import LazyTensor

FORMAT_METADATA = {"format": "pt"}
"""What transformers wants to find in a header."""

_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True, slots=True)
class Room:
    """Space in a file for a tensor whose values come later, by `overwrite`; zeros until then, which take no place on most disks."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def write_safetensors(
    path: Path, tensors: Iterable[tuple[str, Tensor | LazyTensor | Room]], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a file that appears, or replaces an older one, whole or not at all.

    The shapes are taken first, then each tensor is loaded (a lazy one), brought to host memory and written, one at a
    time.
    Raises ModelError for a name that occurs twice or a dtype that the format lacks, PegboardError when the disk is
    full.
    """
    pairs = list(tensors)
    header = encode_header([(name, t.dtype, tuple(t.shape)) for name, t in pairs], metadata or FORMAT_METADATA)
    temporary = path.parent / temporary_name(path.name)
    with writing(path):
        try:
            with temporary.open("xb") as file:
                file.write(header)
                for _, tensor in pairs:
                    write_data(file, tensor if isinstance(tensor, Tensor | Room) else tensor.load())
                sync(file)
            temporary.replace(path)
            sync_folder(path.parent)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def encode_header(
    entries: Sequence[tuple[str, torch.dtype, tuple[int, ...]]], metadata: Mapping[str, str], *, size: int | None = None
) -> bytes:
    """Return length and JSON for tensors that follow in this order; padded with spaces to `size` bytes, else to a
    multiple of 8.
    """
    content: dict[str, object] = {METADATA_KEY: dict(metadata)}
    offset = 0
    for name, dtype, shape in entries:
        if name in content:
            raise ModelError(f"the tensor {name} is to be written twice", fix="give each tensor a name of its own")
        if dtype not in _NAMES:
            raise ModelError(
                f"{name} is of {dtype}, which safetensors files cannot hold",
                fix="known: " + ", ".join(map(str, _NAMES)),
            )
        begin, offset = offset, offset + torch.Size(shape).numel() * dtype.itemsize
        content[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [begin, offset]}
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    length = len(text) + -len(text) % 8 if size is None else size - 8
    return length.to_bytes(8, "little") + text.ljust(length)


def write_data(file: BinaryIO, tensor: Tensor | Room) -> None:
    """Append the values of a tensor of any device and layout, row-major and little-endian."""
    if isinstance(tensor, Room):
        if size := torch.Size(tensor.shape).numel() * tensor.dtype.itemsize:
            file.seek(size - 1, os.SEEK_CUR)
            file.write(b"\0")
        return
    file.write(_bytes(tensor))


def overwrite(parts: Iterable[tuple[SafetensorsTensor, Sequence[int], Tensor]]) -> None:
    """Put values into files, each block of them (of the file's dtype) where it begins in a tensor that is there.

    What was written is on the disk on return. Several processes may write different parts of one tensor at a time. Raises PegboardError
    where a file cannot be written.
    """
    files: dict[Path, int] = {}
    try:
        for target, start, values in parts:
            with writing(target.path):
                if target.path not in files:
                    files[target.path] = os.open(target.path, os.O_WRONLY)
                for offset, run in target.runs(start, values):
                    data = memoryview(_bytes(run))
                    while data:
                        count = os.pwrite(files[target.path], data, offset)
                        data, offset = data[count:], offset + count
        for path, file in files.items():
            with writing(path):
                os.fsync(file)
    finally:
        for file in files.values():
            os.close(file)


def _bytes(tensor: Tensor) -> memoryview | bytes:
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else b""


def temporary_name(name: str) -> str:
    """Return a hidden name beside `name` that nobody else uses."""
    return f".{name}.{uuid4().hex[:8]}.tmp"


def sync(file: BinaryIO) -> None:
    """Make what was written survive a power cut."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut, where the system has such a thing."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turn the system's errors into ones that say what could not be written and why."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise PegboardError(
                f"no space left to write {target} ({error.strerror}); nothing was left behind",
                fix="free some space or choose another disk",
            ) from error
        raise PegboardError(
            f"{target} cannot be written: {error.strerror or error}", fix="choose another place"
        ) from error
