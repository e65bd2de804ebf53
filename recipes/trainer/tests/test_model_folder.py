"""Where other tools find the base of an adapter."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pegboard.errors import PegboardError
from pegboard.interfaces.format import LazyTensor, ModelFiles
from pegboard.weights import read_folder
from pegboard_trainer.model_folder import portable_base


class Held:
    """A tensor in memory, as a format hands it out."""

    def __init__(self, name: str, value: Tensor) -> None:
        self.name, self.value, self.shape, self.dtype = name, value, tuple(value.shape), value.dtype

    def load(self) -> Tensor:
        return self.value

    def rows(self, start: int, stop: int) -> Tensor:
        return self.value[start:stop]


class Single(ModelFiles):
    """A model in one file of a format that others cannot read, or that they can."""

    config: Mapping[str, Any] = {"model_type": "toy", "dtype": "bfloat16"}
    generation_config: Mapping[str, Any] = {"do_sample": False}
    files: Mapping[str, bytes] = {"tokenizer.json": b"{}"}
    tensors: Mapping[str, LazyTensor] = {}
    portable = False

    def __init__(self, location: str, *, portable: bool = False, value: float = 1.0, broken: bool = False) -> None:
        self.location, self.portable = location, portable
        held = Held("a.weight", torch.full((2, 3), value))
        if broken:
            held.load = lambda: (_ for _ in ()).throw(OSError(28, "No space left on device"))  # type: ignore[method-assign]
        self.tensors = {"a.weight": held}
        self._value = value

    def fingerprint(self) -> str:
        return f"{self._value:.0f}abc"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("PEGBOARD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "bases"


def test_a_folder_or_id_that_others_read_is_named_as_it_is(tmp_path: Path, cache: Path) -> None:
    assert portable_base(Single("owner/name", portable=True)) == "owner/name"
    (tmp_path / "model").mkdir()
    assert portable_base(Single(str(tmp_path / "x" / ".." / "model"), portable=True)) != "model"
    assert portable_base(Single(str(tmp_path / "model"), portable=True)) == str((tmp_path / "model").resolve())
    assert not cache.exists()


def test_another_format_is_written_once_as_a_folder(cache: Path) -> None:
    folder = Path(portable_base(Single("some/where/tiny.gguf")))
    assert folder == cache / "tiny-1abc"
    names = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"
    assert read_folder(folder)["a.weight"].load().equal(torch.ones(2, 3))
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert portable_base(Single("else/where/tiny.gguf")) == str(folder)
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    assert portable_base(Single("tiny.gguf", value=2.0)) == str(cache / "tiny-2abc")


def test_a_full_disk_leaves_nothing_in_the_cache(cache: Path) -> None:
    with pytest.raises(PegboardError, match="no space left"):
        portable_base(Single("tiny.gguf", broken=True))
    assert list(cache.iterdir()) == []
