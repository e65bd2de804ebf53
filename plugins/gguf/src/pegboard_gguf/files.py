"""The format itself: a .gguf file opened as a model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from pegboard.errors import ModelError
from pegboard.interfaces.format import LazyTensor, ModelFiles, ModelFormat
from pegboard_gguf.container import Container, open_container
from pegboard_gguf.hparams import generation_config, model_config
from pegboard_gguf.names import map_tensors
from pegboard_gguf.tokenizer import tokenizer_files


class GgufFiles(ModelFiles):
    """An opened GGUF file. The tokenizer is built when `files` is first asked for."""

    def __init__(self, location: str, container: Container) -> None:
        self.location = location
        self._container = container
        self._config = model_config(container)
        self._tensors = map_tensors(container, self._config)

    @property
    def config(self) -> Mapping[str, Any]:
        """config.json, made from the metadata."""
        return self._config

    @cached_property
    def generation_config(self) -> Mapping[str, Any]:
        """generation_config.json, made from the metadata."""
        return generation_config(self._container)

    @property
    def tensors(self) -> Mapping[str, LazyTensor]:
        """Tensors by Hugging Face name, dequantised when loaded."""
        return self._tensors

    @cached_property
    def files(self) -> Mapping[str, bytes]:
        """tokenizer.json, tokenizer_config.json and chat_template.jinja. Raises ModelError when the tokenizer is
        unknown.
        """
        return tokenizer_files(self._container)

    @property
    def portable(self) -> bool:
        """False: adapters name a Hugging Face folder as their base."""
        return False

    def fingerprint(self) -> str:
        """Return a hash of the whole content (BLAKE2b, about a second a gigabyte), whatever the file is called."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        return hashlib.blake2b(self._container.buffer, digest_size=8).hexdigest()


class GgufFormat(ModelFormat):
    """Reads GGUF versions 2 and 3; `ModelFormat.write` says that it writes none."""

    def open(self, location: str, *, revision: str | None = None) -> GgufFiles:
        """Open a .gguf file: parses the header and checks names and shapes, reads no tensor but rotary factors."""
        path = Path(location).expanduser()
        if not path.is_file():
            raise ModelError(f"there is no file {location}", fix="check the path")
        container = open_container(path)
        parts = container.metadata.integer("split.count")
        if parts is not None and parts > 1:
            raise ModelError(f"{location} is one of {parts} parts of a model", fix="merge them into one file first")
        return GgufFiles(location, container)
