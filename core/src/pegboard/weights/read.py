"""Reading safetensors: files and folders as lazy tensors. Data is read with plain reads into the tensor that is
returned.

A memory map would count every page once more while a tensor is copied, and would kill the process if the file shrank.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pegboard.errors import ModelError
from pegboard.weights.header import Entry, Header, read_header

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"

TORCH_DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "C64": torch.complex64,
}


class SafetensorsTensor:
    """A tensor in a safetensors file. Holds no open file; safe to load from several threads."""

    def __init__(self, path: Path, entry: Entry) -> None:
        self.name, self.shape = entry.name, entry.shape
        self.dtype = TORCH_DTYPES[entry.dtype]
        self.path = path
        self._begin = entry.begin

    def load(self) -> Tensor:
        """Read the whole tensor into new memory. Raises ModelError when the file is gone or has become shorter."""
        return self._read(self._begin, self.shape)

    def read_into(self, out: Tensor) -> None:
        """Read the whole tensor into a dense one of its shape and dtype on the host, without a copy between. Raises as `load`."""
        if out.shape != torch.Size(self.shape) or out.dtype != self.dtype or not out.is_contiguous():
            raise ValueError(
                f"{self.name} is {self.shape} of {self.dtype}: {tuple(out.shape)} of {out.dtype} cannot take it"
            )
        self._fill(self._begin, out)

    def read_bytes(self, start: int, out: Tensor) -> None:
        """Read bytes of the tensor's data from `start` on into `out`, a dense uint8 tensor on the host. Raises as `load`."""
        self._fill(self._begin + start, out)

    def rows(self, start: int, stop: int) -> Tensor:
        """Read rows start … stop - 1 into new memory. Raises IndexError outside the tensor, else as `load`."""
        if not self.shape or not 0 <= start <= stop <= self.shape[0]:
            raise IndexError(f"rows {start}:{stop} of {self.name}, whose shape is {self.shape}")
        row_bytes = prod(self.shape[1:]) * self.dtype.itemsize
        return self._read(self._begin + start * row_bytes, (stop - start, *self.shape[1:]))

    def runs(self, start: Sequence[int], values: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield values that begin at `start` in this tensor as runs that lie in one piece in the file: (where, in bytes; values).

        Raises ValueError for values that do not fit there.
        """
        ends = [first + size for first, size in zip(start, values.shape, strict=True)]
        inside = len(ends) == len(self.shape) and all(end <= size for end, size in zip(ends, self.shape, strict=True))
        if values.dtype != self.dtype or not inside:
            raise ValueError(
                f"{self.name} is {self.shape} of {self.dtype}: {tuple(values.shape)} of {values.dtype} at {tuple(start)} do not fit"
            )
        if not values.numel():
            return
        strides = [prod(self.shape[dim + 1 :]) for dim in range(len(self.shape))]
        # Dimensions from `whole` on are there in full: they lie together, with those of the one before.
        whole = len(self.shape)
        while whole > 1 and values.shape[whole - 1] == self.shape[whole - 1]:
            whole -= 1
        outer = [range(size) for size in values.shape[: max(whole - 1, 0)]]
        for index in product(*outer):
            place = [first + at for first, at in zip(start, index, strict=False)] + list(start[len(index) :])
            offset = sum(at * stride for at, stride in zip(place, strides, strict=True))
            yield self._begin + offset * self.dtype.itemsize, values[index]

    def _read(self, offset: int, shape: tuple[int, ...]) -> Tensor:
        out = torch.empty(shape, dtype=self.dtype)
        self._fill(offset, out)
        return out

    def _fill(self, offset: int, out: Tensor) -> None:
        left = out.detach().reshape(-1).view(torch.uint8).numpy().data
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(offset)
                while left:
                    count = file.readinto(left)
                    if not count:
                        raise ModelError(
                            f"{self.path} became shorter since it was opened: {self.name} is cut off",
                            fix="download or write it again",
                        )
                    left = left[count:]
        except OSError as error:
            raise ModelError(f"{self.path} cannot be read: {error.strerror or error}") from error


def read_safetensors(path: Path) -> dict[str, SafetensorsTensor]:
    """Open a file: name -> lazy tensor, in the order of the file. Raises ModelError naming the file when it is
    damaged.
    """
    return {name: SafetensorsTensor(path, entry) for name, entry in _header(path).entries.items()}


def read_metadata(path: Path) -> Mapping[str, str]:
    """Return the texts that the file's author added to its header."""
    return _header(path).metadata


def read_folder(folder: Path) -> dict[str, SafetensorsTensor]:
    """Open the weights of a Hugging Face folder: model.safetensors, or the shards that its index names.

    Raises ModelError naming the file that is missing or damaged, and every tensor that the index promises and its
    shard lacks. A tensor that a shard holds and the index does not name is kept, as other readers do.
    """
    single, index = folder / WEIGHTS_NAME, folder / INDEX_NAME
    if single.is_file():
        return read_safetensors(single)
    if not index.is_file():
        raise _no_weights(folder)
    weight_map = _read_index(index)
    tensors: dict[str, SafetensorsTensor] = {}
    for shard in sorted(set(weight_map.values())):
        for name, tensor in read_safetensors(folder / shard).items():
            if name in tensors:
                raise ModelError(
                    f"{folder}: {tensors[name].path.name} and {shard} both hold {name}",
                    fix="download or write the model again",
                )
            tensors[name] = tensor
    wrong = [name for name, shard in weight_map.items() if name not in tensors or tensors[name].path.name != shard]
    if wrong:
        listed = ", ".join(f"{name} (in {weight_map[name]})" for name in wrong[:8]) + (
            f" and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        )
        raise ModelError(
            f"{index} promises tensors that are not there: {listed}", fix="download or write the model again"
        )
    return tensors


def _header(path: Path) -> Header:
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            return read_header(file, size, str(path))
    except FileNotFoundError:
        raise ModelError(f"there is no file {path}", fix="check the path, or download the model again") from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error


def _no_weights(folder: Path) -> ModelError:
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    if pickled:
        return ModelError(
            f"{folder} holds its weights only as {pickled[0]}, a pickle, which can run code when it is read",
            fix="use a revision of the model with .safetensors files, or convert it with safetensors' own conversion",
        )
    shards = sorted(path.name for path in folder.glob("*.safetensors"))
    beside = f" (it does hold {shards[0]}, which no index names)" if shards else ""
    return ModelError(
        f"{folder} holds no weights: neither {WEIGHTS_NAME} nor {INDEX_NAME}{beside}", fix="download the model again"
    )


def _read_index(path: Path) -> dict[str, str]:
    """Return tensor name -> shard, every shard being a file beside the index."""
    weight_map = read_json(path).get("weight_map")
    if (
        not isinstance(weight_map, dict)
        or not weight_map
        or not all(isinstance(shard, str) for shard in weight_map.values())
    ):
        raise ModelError(
            f"{path} has no weight_map from tensor names to files", fix="download or write the model again"
        )
    shards = sorted(set(weight_map.values()))
    for shard in shards:
        if Path(shard).name != shard or "\\" in shard:
            raise ModelError(
                f"{path} names {shard!r}, which is not a file beside it",
                fix="do not use this model: its index is not to be trusted",
            )
    missing = [shard for shard in shards if not (path.parent / shard).is_file()]
    if missing:
        raise ModelError(
            f"{path.parent} lacks {', '.join(missing[:8])}{' …' if len(missing) > 8 else ''} ({len(missing)} of {len(shards)} shards)",
            fix="download the model again; a finished part is not fetched twice",
        )
    return weight_map


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in `path`. Raises ModelError naming the file, and the line of an error."""
    try:
        content = json.loads(path.read_bytes().decode())
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error
    except json.JSONDecodeError as error:
        raise ModelError(
            f"{path}, line {error.lineno}: not JSON ({error.msg})", fix="mend it, or download it again"
        ) from error
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise ModelError(
            f"{path} is not JSON text ({type(error).__name__})", fix="mend it, or download it again"
        ) from error
    if not isinstance(content, dict):
        raise ModelError(
            f"{path} holds a {type(content).__name__} instead of a JSON object", fix="mend it, or download it again"
        )
    return content
