"""What is told about a platform: alike devices once, phases that compute alike in one line, what is passed by with its reason."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch

from pegboard.errors import DeviceError
from pegboard.interfaces.attention import AttentionBackend
from pegboard.interfaces.platform import DeviceInfo, Phase, Platform, PromptChoice
from pegboard.plugins.load import Registry
from pegboard.plugins.spec import PluginSpec
from pegboard.survey import survey
from pegboard.types import AttentionSpec

GIB = 1 << 30


def wide_norm(x: Any) -> Any:
    return x


class Cards(Platform):
    """Three cards, the last of which is of another kind, and one that is too old."""

    old: int | None = None

    def devices(self) -> list[DeviceInfo]:
        return [DeviceInfo(index, f"Card {index}", 8 * GIB, 6 * GIB) for index in range(3)]

    def device(self, index: int = 0) -> torch.device:
        if index == self.old:
            raise DeviceError(f"card {index} cannot be used: it is too old", fix="use another one")
        return torch.device("cpu")

    def capabilities(self, index: int = 0) -> frozenset[str]:
        return frozenset({"pinned", "bf16"} if index < 2 else ())

    def default_dtype(self, index: int = 0) -> torch.dtype:
        return torch.bfloat16 if index < 2 else torch.float32

    def attention_preference(self, phase: Phase, spec: AttentionSpec) -> tuple[str, ...]:
        return ("plain",) if phase == "train" else ("absent", "quick", "plain")

    def attention_reason(self, phase: Phase, spec: AttentionSpec) -> str:
        return "it has a backward pass" if phase == "train" else "it is quick"

    def kernels(self, phase: Phase, dtype: torch.dtype, index: int = 0) -> Mapping[str, Callable[..., Any]]:
        mine = {"rms_norm": wide_norm}
        return mine if phase == "train" else {**mine, "silu_mul": functools.partial(wide_norm), "linear": torch.matmul}

    def synchronize(self, index: int = 0) -> None:
        """Nothing runs behind the caller's back."""

    def notes(self, index: int = 0) -> list[str]:
        return [f"compiler 3 for kind {index // 2}"]


class Old(Cards):
    old = 1


class Plain(AttentionBackend):
    def unsupported(self, spec: AttentionSpec, dtype: torch.dtype) -> str | None:
        return None

    def layout(self, *args: Any, **options: Any) -> Any:
        raise AssertionError("nothing is laid out")

    plan = attend = layout


class Quick(Plain):
    def unsupported(self, spec: AttentionSpec, dtype: torch.dtype) -> str | None:
        return "no soft caps" if spec.softcap else None


def registry(*names: str) -> Registry:
    targets = {"plain": "Plain", "quick": "Quick", "packed": "Plain"}
    return Registry.of(
        {("attention", n): PluginSpec(kind="attention", target=f"{__name__}:{targets.get(n, n)}") for n in names}
    )


def told(platform: Platform, *names: str) -> list[str]:
    return survey(registry(*names), platform)


def test_alike_devices_are_described_once() -> None:
    assert told(Cards(), "plain", "quick")[:7] == [
        "0 Card 0, 6.0 of 8.0 GiB available",
        "1 Card 1, 6.0 of 8.0 GiB available",
        "  bf16, pinned; dtype auto is bfloat16",
        "  compiler 3 for kind 0",
        "2 Card 2, 6.0 of 8.0 GiB available",
        "  nothing beyond plain computing; dtype auto is float32",
        "  compiler 3 for kind 1",
    ]


def test_attention_and_kernels_by_phase() -> None:
    owner = __name__.partition(".")[0].replace("_", "-")
    assert told(Cards(), "plain", "quick")[7:] == [
        "  attention: train: plain (it has a backward pass)",
        "  attention: prefill, decode: quick (absent: not installed); with a soft cap plain (absent: not installed; quick: no soft caps)",
        f"  kernels: train: rms_norm by {owner}",
        f"  kernels: prefill, decode: linear by torch; rms_norm, silu_mul by {owner}",
    ]


class Prompts(Cards):
    def prompt_attention(self, spec: AttentionSpec, dtype: torch.dtype, index: int = 0) -> list[PromptChoice]:
        choices = [
            PromptChoice("packed", 2048, True, "580 TFLOP/s"),
            PromptChoice("plain", 1024, False, "not measured"),
        ]
        return choices if dtype == torch.bfloat16 else []


def test_what_computes_fresh_prompts() -> None:
    start = "  attention of prompts with nothing cached:"
    assert f"{start} as others; packed: not installed; plain: only by name, not measured" in told(Prompts(), "plain")
    assert f"{start} packed from 2,048 tokens on (580 TFLOP/s)" in told(Prompts(), "plain", "packed")
    assert not any(start in line for line in told(Cards(), "plain"))


def test_the_first_choice_is_given_a_reason() -> None:
    lines = told(Cards(), "absent", "plain", "quick")
    assert any("prefill, decode: quick (absent: attention 'absent'" in line for line in lines)  # it does not load
    assert not any("it is quick" in line for line in lines)
    assert "  attention: train: plain (it has a backward pass)" in lines


def test_nothing_that_attends() -> None:
    lines = told(Cards(), "quick")
    assert "  attention: train: none (plain: not installed)" in lines


def test_a_device_that_cannot_be_used() -> None:
    lines = told(Old(), "plain", "quick")
    assert lines[3:5] == ["1 Card 1, 6.0 of 8.0 GiB available", "  card 1 cannot be used: it is too old"]


def test_no_devices(monkeypatch) -> None:
    monkeypatch.setattr(Cards, "devices", lambda self: [])
    assert told(Cards(), "plain") == []
