"""Models that are damaged, incomplete or hostile, and plugins that cannot be had, through the command: a few lines, status 2."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pegboard.weights import read_safetensors, write_safetensors
from pegboard_sdk.peg import Said
from pegboard_sdk.site import Site

Spoil = Callable[[Path], None]


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def shard_is_missing(folder: Path) -> None:
    """Two shards are named by the index, one is there."""
    tensors = {name: lazy.load() for name, lazy in read_safetensors(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    write_safetensors(folder / first, [(name, tensors[name]) for name in names[:5]])
    weight_map = {name: first if number < 5 else second for number, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


FOLDERS: dict[str, tuple[Spoil, tuple[str, ...]]] = {
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), ("no tokenizer", "tokenizer.json")),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), ("holds no weights",)),
    "a shard is missing": (shard_is_missing, ("model-00002-of-00002.safetensors",)),
    "truncated": (lambda f: cut(f / "model.safetensors"), ("model.safetensors is truncated",)),
    "config is no JSON": (lambda f: (f / "config.json").write_text("{bad"), ("config.json, line 1", "not JSON")),
    "other shapes": (
        lambda f: edit(f / "config.json", hidden_size=64, num_hidden_layers=3),
        ("do not fit its config", "9 missing", "of a wrong shape", "model.layers.2.self_attn.q_proj.weight [64, 64]"),
    ),
    "fewer layers": (lambda f: edit(f / "config.json", num_hidden_layers=1), ("9 unexpected", "model.layers.1.")),
    "unknown architecture": (
        lambda f: edit(f / "config.json", architectures=["AcmeForCausalLM"]),
        ("no installed plugin builds the architecture AcmeForCausalLM",),
    ),
    "a number that is none": (lambda f: edit(f / "config.json", rms_norm_eps="x"), ("rms_norm_eps is 'x'",)),
}


@pytest.mark.parametrize("case", sorted(FOLDERS))
def test_a_folder(toy_model: Path, tmp_path: Path, peg: Callable[..., Said], case: str) -> None:
    spoil, told = FOLDERS[case]
    folder = tmp_path / "model"
    shutil.copytree(toy_model, folder)
    spoil(folder)
    refused(peg("generate", folder, "hello", "--max-tokens", "2"), *told)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is empty"),
        (b"GGUF", "ends at byte 4"),
        (b"NOPE" + bytes(100), "not a GGUF file"),
        (b"GGUF" + b"\x03\0\0\0" + b"\xff" * 16, "tensors"),
        (b"GGUF" + b"\x09\0\0\0" + bytes(16), "GGUF version 9"),
    ],
)
def test_a_gguf_file(tmp_path: Path, peg: Callable[..., Said], content: bytes, told: str) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    refused(peg("generate", path, "hello"), "bad.gguf")
    said = peg("convert", path, tmp_path / "out", "--to", "hf")
    refused(said, told)
    assert not (tmp_path / "out").exists()


def test_places_that_hold_no_model(tmp_path: Path, peg: Callable[..., Said], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # read from there when it was imported
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    refused(peg("generate", tmp_path / "nowhere", "hello"), "there is no file or folder")
    refused(peg("generate", tmp_path, "hello"), "holds no model")
    refused(peg("generate", tmp_path / "x.bin", "hello"), "there is no file or folder")


def test_a_conversion_that_fails_leaves_nothing(toy_model: Path, tmp_path: Path, peg: Callable[..., Said]) -> None:
    folder = tmp_path / "model"
    shutil.copytree(toy_model, folder)
    refused(peg("convert", folder, folder, "--to", "hf"), "exists")
    refused(peg("convert", folder, tmp_path / "a" / "b", "--to", "hf"), "does not exist")
    refused(peg("convert", folder, tmp_path / "out", "--to", "hff"), "format 'hff' (did you mean 'hf'?)")
    refused(peg("merge", folder, tmp_path / "out"), "complete model: there is nothing to merge")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


DOORS = {
    "raises": ("raise RuntimeError('out of cork')", "RuntimeError: out of cork"),
    "no target": ("SPEC = spec(target='broken.door:Nothing')", "broken.door has no 'Nothing'"),
    "other kind": ("SPEC = spec(kind='logger', target='broken.door:spec')", "says that it is of kind 'logger'"),
    "other version": ("SPEC = spec(target='broken.door:spec', interface=99)", "follows version 99 of the attention"),
    "no spec": ("SPEC = 3", "is a int, expected a PluginSpec"),
}


@pytest.mark.parametrize("case", sorted(DOORS))
def test_a_broken_plugin_stops_whoever_names_it(
    plugin_site: Site, toy_model: Path, peg: Callable[..., Said], monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    source, told = DOORS[case]
    head = "from functools import partial\nfrom pegboard.plugins.spec import PluginSpec\n"
    head += "spec = partial(PluginSpec, kind='attention')\n" if case != "other kind" else "spec = PluginSpec\n"
    plugin_site.add("acme-broken", {("attention", "broken"): "broken.door:SPEC"}, {"broken.door": head + source})
    first_party = "pegboard-cpu pegboard-llama pegboard-hub pegboard-tokenizers pegboard-engine pegboard-sdpa"
    monkeypatch.setenv("PEGBOARD_PLUGINS", f"acme-broken {first_party}")
    refused(peg("generate", toy_model, "hello", "--attention", "broken"), told)
    # Nobody asks for it: the run goes on.
    assert peg("generate", toy_model, "hello", "--max-tokens", "1").status == 0


def test_a_name_that_two_offer_is_an_error_only_when_it_is_asked_for(
    plugin_site: Site, toy_model: Path, peg: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = "pegboard_sdpa.backend:SdpaAttention"
    door = f"from pegboard.plugins.spec import PluginSpec\nSPEC = PluginSpec(kind='attention', target={target!r})\n"
    for dist in ("acme-one", "acme-two"):
        plugin_site.add(dist, {("attention", "twin"): f"{dist[5:]}_door:SPEC"}, {f"{dist[5:]}_door": door})
    first_party = "pegboard-cpu pegboard-llama pegboard-hub pegboard-tokenizers pegboard-engine pegboard-sdpa"
    monkeypatch.setenv("PEGBOARD_PLUGINS", f"acme-one acme-two {first_party}")
    refused(peg("generate", toy_model, "hello", "--attention", "twin"), "acme-one 1.0 and acme-two 1.0")
    assert peg("generate", toy_model, "hello", "--max-tokens", "1", "--attention", "acme-two:twin").status == 0
    assert peg("generate", toy_model, "hello", "--max-tokens", "1").status == 0


def refused(said: Said, *told: str) -> None:
    """Check that `peg` refused, in a few lines, with a fix and without a traceback."""
    assert said.status == 2, said
    for part in told:
        assert part in said.err, said.err
    assert "Traceback" not in said.err
    assert "fix: " in said.err
    assert len(said.err.splitlines()) <= 40
