"""The fixtures of the pytest plugin, and the toys behind them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from pegboard.build import BuiltModel
from pegboard.interfaces.platform import Platform
from pegboard.plugins.load import Registry
from pegboard.plugins.spec import PluginSpec
from pegboard.types import Message
from pegboard_sdk.site import Site
from pegboard_sdk.toys.model import hidden_states, logits, random_model
from pegboard_sdk.toys.roles import join_batches, pack
from pegboard_sdk.toys.tokenizer import BOS, EOS, TURN, TinyTokenizer


def test_pytest_plugin_is_light() -> None:
    """It is imported by every pytest of an environment that has the SDK."""
    code = "import json, sys, pegboard_sdk.pytest_plugin; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout))
    assert not loaded & {"torch", "pydantic", "numpy", "pegboard.plugins.load", "pegboard_sdk.conformance.suite"}


def test_no_plugins_blocks_what_is_installed(no_plugins: None) -> None:
    records = Registry.discover().records()
    assert records and {record.status for record in records} == {"blocked"}


def test_registry_has_what_it_is_given(plugin_registry: Callable[..., Registry]) -> None:
    spec = PluginSpec(kind="platform", target="pegboard_sdk.toys.platform:HostPlatform")
    registry = plugin_registry({("platform", "mine"): spec})
    assert [record.name for record in registry.records()] == ["mine"]
    assert registry.create("platform", "mine").default_dtype() == torch.float64


def test_site_is_discovered_and_forgotten(plugin_site: Site) -> None:
    door = "from pegboard.plugins.spec import PluginSpec\nS = PluginSpec(kind='logger', target='lion_door:Lion')\n"
    plugin_site.add("lion-peg", {("logger", "lion"): "lion_door:S"}, {"lion_door": door + "class Lion: ...\n"})
    registry = Registry.discover()
    assert [record.name for record in registry.records() if record.status == "ok"] == ["lion"]
    assert plugin_site.imported() == []
    assert type(registry.create("logger", "lion")).__name__ == "Lion"
    assert plugin_site.imported() == ["lion_door"]
    plugin_site.forget()
    assert "lion_door" not in sys.modules


def test_tiny_model_is_random_but_fixed(tiny_model: BuiltModel) -> None:
    ids = torch.tensor([1, 2, 259])
    out = logits(tiny_model, ids)
    assert out.shape == (3, 260) and out.dtype == torch.float64 and out.requires_grad
    assert torch.equal(out, logits(random_model(), ids))
    assert not torch.allclose(out, logits(random_model(seed=1), ids))
    assert hidden_states(tiny_model, ids).std() > 0.1


def test_host_platform_is_the_host(host_platform: Platform) -> None:
    assert host_platform.device().type == "cpu" and len(host_platform.devices()) == 1


@pytest.mark.parametrize("text", ["", "plain", "größer 大 🎉", "a\nb"])
def test_tiny_tokenizer_round_trip(tiny_tokenizer: TinyTokenizer, text: str) -> None:
    ids = tiny_tokenizer.encode(text)
    assert ids[0] == BOS and tiny_tokenizer.decode(ids) == text
    stream = tiny_tokenizer.stream()
    pieces = [stream.push(token) for token in ids]
    assert "".join(pieces) + stream.flush() == text
    assert all("�" not in piece for piece in pieces)


def test_tiny_tokenizer_chat(tiny_tokenizer: TinyTokenizer) -> None:
    turns = [Message("user", "hi"), Message("assistant", "yo"), Message("user", "?"), Message("assistant", "!")]
    ids, mask = tiny_tokenizer.chat_with_mask(turns)
    assert ids == tiny_tokenizer.chat(turns, generation_prompt=False)
    assert (
        tiny_tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if m], skip_special=False) == "yo<eos>!<eos>"
    )
    last = tiny_tokenizer.chat_with_mask(turns, roles="last")[1]
    assert tiny_tokenizer.chat_with_mask(turns, start=len(turns) - 1)[1] == last
    assert sum(last) == 2 and tiny_tokenizer.chat_with_mask(turns, roles="all")[1] == [True] * len(ids)
    assert tiny_tokenizer.chat(turns)[-11:] == [TURN, *b"assistant\n"]
    assert ids.count(EOS) == 4 and "<turn>user\nhi<eos>" in tiny_tokenizer.chat_text(turns)


def test_batches_are_packed_and_joined() -> None:
    a, b = pack([([5, 6, 7], [True, False, True])]), pack([([8], [True]), ([9, 3], [True, True])])
    assert a.targets.tolist() == [-100, 7, -100] and a.target_rows.tolist() == [1]
    both: Any = join_batches(a, b)
    assert both.input_ids.tolist() == [5, 6, 7, 8, 9, 3] and both.positions.tolist() == [0, 1, 2, 0, 0, 1]
    assert both.target_rows.tolist() == [1, 4] and both.seq_lens == [3, 1, 2]
    assert both.targets[both.target_rows].tolist() == [7, 3]
