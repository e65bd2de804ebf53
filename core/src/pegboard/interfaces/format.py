"""Kind `format`: files that hold a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class LazyTensor(Protocol):
    """A tensor that is still on disk."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    def load(self) -> Tensor:
        """Read the whole tensor into host memory, in `dtype`."""

    def rows(self, start: int, stop: int) -> Tensor:
        """Read rows start … stop - 1 of the first dimension only."""


class ModelFiles(ABC):
    """An opened model. Names and layout of everything are Hugging Face's, whatever the file's own."""

    location: str
    """What the user named: a folder, a file or a hub id."""

    @property
    @abstractmethod
    def config(self) -> Mapping[str, Any]:
        """The parsed config.json."""

    @property
    @abstractmethod
    def generation_config(self) -> Mapping[str, Any]:
        """The parsed generation_config.json, or an empty mapping."""

    @property
    @abstractmethod
    def tensors(self) -> Mapping[str, LazyTensor]:
        """Tensors by Hugging Face name."""

    @property
    @abstractmethod
    def files(self) -> Mapping[str, bytes]:
        """Small files that travel with the model: tokenizer.json, tokenizer_config.json, chat_template.jinja …"""

    @property
    @abstractmethod
    def portable(self) -> bool:
        """Whether other tools can load `location` as it is, by path or id (true of an HF folder and of a hub id)."""

    def fingerprint(self) -> str:
        """Return a short hash that changes when the weights may have changed; made from sizes and names unless a format does better."""
        import hashlib

        digest = hashlib.sha256()
        for name, tensor in sorted(self.tensors.items()):
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        return digest.hexdigest()[:16]


class ModelFormat(ABC):
    """Opens and, where it can, writes one format.

    The front door says in its capabilities how a location is recognised without importing the implementation:
    {"suffixes": [".acme"]} for files, {"markers": ["config.json"]} for folders that hold such a file, {"ids": true} for hub ids.
    """

    @abstractmethod
    def open(self, location: str, *, revision: str | None = None) -> ModelFiles:
        """Open a model. Raises ModelError naming what is missing or damaged; never reads a whole tensor."""

    def write(
        self,
        folder: Path,
        config: Mapping[str, Any],
        tensors: Iterable[tuple[str, Tensor]],
        files: Mapping[str, bytes],
        *,
        generation_config: Mapping[str, Any] | None = None,
    ) -> None:
        """Write a model tensor by tensor into `folder`, which appears whole or not at all."""
        from pegboard.errors import ModelError

        raise ModelError(f"{type(self).__name__} can read models but not write them", fix="convert with --to hf")
