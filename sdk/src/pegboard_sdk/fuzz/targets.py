"""What is fuzzed: how an input is made from a seed, and what reads it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING

from pegboard_sdk.fuzz.bytes import mutated
from pegboard_sdk.fuzz.configs import config_text, overrides
from pegboard_sdk.fuzz.samples import gguf_sample, safetensors_sample
from pegboard_sdk.fuzz.server import HttpServer
from pegboard_sdk.fuzz.target import Target as Target

if TYPE_CHECKING:
    pass

LARGEST = 1 << 20
"""Elements of the largest tensor that is read to the end: a hostile header must not make the fuzzer slow."""


class Safetensors(Target):
    """`read_safetensors`, and every tensor of what it accepts."""

    name, file = "safetensors", "model.safetensors"

    def make(self, seed: int) -> bytes:
        source = random.Random(seed)
        return mutated(safetensors_sample(source), source)

    def read(self, path: Path, seed: int) -> None:
        from pegboard.weights import read_safetensors

        for tensor in read_safetensors(path).values():
            loaded = tensor.load()
            if tuple(loaded.shape) != tuple(tensor.shape) or loaded.dtype != tensor.dtype:
                raise AssertionError(f"{tensor.name}: announced {tensor.shape}, read {tuple(loaded.shape)}")
            if loaded.dim():
                tensor.rows(0, min(1, loaded.shape[0]))


class Gguf(Target):
    """The format plugin that claims `.gguf`: config, tensors and tokenizer files."""

    name, file = "gguf", "model.gguf"

    def missing(self) -> str:
        return "" if self.registry.match("format", "suffixes", ".gguf") else "no plugin opens .gguf files"

    def make(self, seed: int) -> bytes:
        source = random.Random(seed)
        return mutated(gguf_sample(source), source)

    def read(self, path: Path, seed: int) -> None:
        from pegboard.build import open_model

        files = open_model(self.registry, str(path))
        json.dumps([dict(files.config), dict(files.generation_config)])
        for tensor in files.tensors.values():
            elements = 1
            for extent in tensor.shape:
                elements *= extent
            if elements <= LARGEST:
                tensor.load()
        list(files.files)


class Config(Target):
    """`load_config` of an installed recipe, with overrides."""

    name, file = "config", "config.yaml"

    def missing(self) -> str:
        return "" if self._recipe() else "no recipe is installed"

    def make(self, seed: int) -> bytes:
        return config_text(random.Random(seed))

    def read(self, path: Path, seed: int) -> None:
        from pegboard.config import dump_config, load_config

        json.dumps(load_config(self.registry, self._recipe(), str(path), overrides(random.Random(seed + 1))))
        dump_config(load_config(self.registry, self._recipe(), str(path), ()))

    def _recipe(self) -> str:
        return next((r.name for r in self.registry.records("recipe") if r.status == "ok"), "")


TARGETS: dict[str, type[Target]] = {target.name: target for target in (Safetensors, Gguf, Config, HttpServer)}


def target_of(name: str) -> type[Target]:
    """Return a target by its name, or by "module:Class" one of a plugin's own. Raises ConfigError when there is none."""
    from pegboard.errors import ConfigError, nearest
    from pegboard.plugins.doors import import_custom

    if ":" in name:
        target: type[Target] = import_custom("fuzz target", name)
        return target
    if name not in TARGETS:
        raise ConfigError(
            f"there is no fuzz target {name!r}{nearest(name, TARGETS)}",
            fix=f"use one of: {', '.join(TARGETS)}, or module:Class",
        )
    return TARGETS[name]
