"""Folders on disk: what is opened, what is refused, what is written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pegboard.build import open_model
from pegboard.errors import ModelError, PegboardError
from pegboard.plugins.load import Registry
from pegboard_hub.files import MAX_COMPANION, HfFormat

MakeFolder = Callable[..., dict[str, torch.Tensor]]


def test_the_registry_finds_it_and_the_front_door_is_light(make_folder: MakeFolder, tmp_path: Path) -> None:
    make_folder(tmp_path / "m")
    assert open_model(Registry.discover(), str(tmp_path / "m")).config["model_type"] == "tiny"
    code = "import sys, pegboard_hub.plugin; print(*sorted(set(sys.argv[1:]) & set(sys.modules)))"
    heavy = ["torch", "huggingface_hub", "click"]
    done = subprocess.run([sys.executable, "-c", code, *heavy], check=True, capture_output=True, text=True)
    assert done.stdout == "\n"


@pytest.mark.parametrize("shards", [1, 3])
def test_a_folder(make_folder: MakeFolder, tmp_path: Path, shards: int) -> None:
    weights = make_folder(tmp_path / "m", shards=shards)
    (tmp_path / "m" / "pytorch_model.bin").write_bytes(b"never read")
    opened = HfFormat().open(str(tmp_path / "m"))
    assert opened.portable
    assert opened.location == str(tmp_path / "m")
    assert opened.config == {"model_type": "tiny", "hidden_size": 8}
    assert opened.generation_config == {"eos_token_id": [2, 5]}
    assert set(opened.tensors) == set(weights)
    for name, value in weights.items():
        lazy = opened.tensors[name]
        assert (lazy.name, lazy.shape, lazy.dtype) == (name, tuple(value.shape), value.dtype)
        assert torch.equal(lazy.load(), value)
        assert torch.equal(lazy.rows(2, 5), value[2:5])
    assert dict(opened.files) == {
        "LICENSE": b"terms",
        "additional_chat_templates/tool_use.jinja": b"tools",
        "chat_template.jinja": b"hello",
        "tokenizer.json": b"{}",
    }


def test_a_folder_without_generation_config(make_folder: MakeFolder, tmp_path: Path) -> None:
    make_folder(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    assert HfFormat().open(str(tmp_path)).generation_config == {}
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(ModelError, match=r"generation_config\.json, line 1: not JSON"):
        _ = HfFormat().open(str(tmp_path)).generation_config


@pytest.mark.parametrize(
    ("remove", "add", "message"),
    [
        ("config.json", {}, "has no config.json"),
        (
            "config.json",
            {"adapter_config.json": '{"base_model_name_or_path": "a/b"}'},
            r"(?s)an adapter.*base model, a/b",
        ),
        ("config.json", {"x.gguf": ""}, r"(?s)GGUF files.*x\.gguf"),
        ("config.json", {"config.json": "[1]"}, "holds a list instead of a JSON object"),
        ("model.safetensors", {}, "holds no weights"),
        ("model.safetensors", {"pytorch_model.bin": ""}, "only as pytorch_model.bin, a pickle"),
        ("model.safetensors", {"model.safetensors": "short"}, "too few for a safetensors file"),
    ],
)
def test_what_is_missing_or_damaged_is_named(
    make_folder: MakeFolder, tmp_path: Path, remove: str, add: dict[str, str], message: str
) -> None:
    make_folder(tmp_path)
    (tmp_path / remove).unlink()
    for name, content in add.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(ModelError, match=message):
        HfFormat().open(str(tmp_path))


def test_a_missing_shard_is_named(make_folder: MakeFolder, tmp_path: Path) -> None:
    make_folder(tmp_path, shards=3)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ModelError, match=r"lacks model-00002-of-00003\.safetensors \(1 of 3 shards\)"):
        HfFormat().open(str(tmp_path))


def test_a_huge_companion_is_refused(make_folder: MakeFolder, tmp_path: Path) -> None:
    make_folder(tmp_path)
    os.truncate(tmp_path / "tokenizer.json", MAX_COMPANION + 1)
    with pytest.raises(ModelError, match=r"tokenizer\.json has 67108865 bytes"):
        _ = HfFormat().open(str(tmp_path)).files


def test_the_fingerprint_follows_the_weights(make_folder: MakeFolder, tmp_path: Path) -> None:
    make_folder(tmp_path)

    def fingerprint() -> str:
        return HfFormat().open(str(tmp_path)).fingerprint()

    first = fingerprint()
    (tmp_path / "tokenizer.json").write_text('{"a": 1}')
    assert fingerprint() == first
    path = tmp_path / "model.safetensors"
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    assert fingerprint() != first


def test_the_fingerprint_in_the_cache_is_the_content(make_folder: MakeFolder, tmp_path: Path) -> None:
    make_folder(tmp_path / "snapshots" / "one")
    (tmp_path / "blobs").mkdir()
    link = tmp_path / "snapshots" / "one" / "model.safetensors"
    link.rename(tmp_path / "blobs" / "abc")
    link.symlink_to("../../blobs/abc")
    first = HfFormat().open(str(link.parent)).fingerprint()
    os.utime(tmp_path / "blobs" / "abc", ns=(0, 1))
    assert HfFormat().open(str(link.parent)).fingerprint() == first


def test_writing_gives_the_same_folder(make_folder: MakeFolder, tmp_path: Path) -> None:
    weights = make_folder(tmp_path / "m", shards=2)
    opened = HfFormat().open(str(tmp_path / "m"))
    pairs = ((name, lazy.load()) for name, lazy in opened.tensors.items())
    HfFormat().write(tmp_path / "n", opened.config, pairs, opened.files, generation_config=opened.generation_config)
    again = HfFormat().open(str(tmp_path / "n"))
    assert (again.config, again.generation_config, again.files) == (
        opened.config,
        opened.generation_config,
        opened.files,
    )
    found = load_file(tmp_path / "n" / "model.safetensors")
    assert all(torch.equal(found[name], value) for name, value in weights.items())
    with pytest.raises(PegboardError, match="exists already"):
        HfFormat().write(tmp_path / "n", opened.config, [], {})


class Held:
    """Bytes of loaded tensors that are still alive, and the most there were."""

    def __init__(self) -> None:
        self.now = self.peak = 0

    def watch(self, tensor: torch.Tensor) -> torch.Tensor:
        size = tensor.untyped_storage().nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(tensor.untyped_storage(), self._drop, size)
        return tensor

    def _drop(self, size: int) -> None:
        self.now -= size


TINY = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 260,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}


def test_a_model_is_built_from_one_tensor_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the model itself, no more than the largest tensor is held."""
    from pegboard.build import build_model, find_family
    from pegboard.weights.read import SafetensorsTensor

    registry = Registry.discover()
    with torch.device("meta"):
        empty = find_family(registry, TINY).build(TINY)

    def weights() -> Iterator[tuple[str, torch.Tensor]]:
        for name, parameter in empty.named_parameters():
            yield name, torch.randn(parameter.shape)

    HfFormat().write(tmp_path / "m", TINY, weights(), {})
    held, load = Held(), SafetensorsTensor.load
    monkeypatch.setattr(SafetensorsTensor, "load", lambda self: held.watch(load(self)))
    files = HfFormat().open(str(tmp_path / "m"))
    built = build_model(registry, files, platform="cpu", dtype="float32")
    largest = max(tensor.load().nbytes for tensor in files.tensors.values())
    assert largest <= held.peak < 2 * largest
    assert held.now == 0
    name, parameter = next(iter(built.model.named_parameters()))
    assert torch.equal(parameter, load(files.tensors[name]))


def test_a_config_that_is_not_of_the_weights(tmp_path: Path) -> None:
    """Missing, unexpected and mis-shaped tensors are listed together."""
    from pegboard.build import build_model

    tensors: list[tuple[str, Any]] = [
        ("model.embed_tokens.weight", torch.zeros(7, 64)),
        ("model.extra.weight", torch.zeros(1)),
    ]
    HfFormat().write(tmp_path / "m", TINY, tensors, {})
    with pytest.raises(ModelError, match=r"(?s)missing.*1 unexpected.*model\.extra.*1 of a wrong shape.*\[7, 64\]"):
        build_model(Registry.discover(), HfFormat().open(str(tmp_path / "m")), platform="cpu")
    assert json.loads((tmp_path / "m" / "config.json").read_text()) == TINY
