"""Fresh prompts computed apart: what is handed to whom, and what comes of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from pegboard import reference
from pegboard.errors import ConfigError, PluginError
from pegboard.fresh import FreshPlan, FreshPrompts, named, offered
from pegboard.interfaces.platform import PromptChoice
from pegboard.packed import PackedAttention, PackedPlan
from pegboard.plugins.load import Registry
from pegboard.plugins.spec import PluginSpec, Probe
from pegboard.types import AttentionInputs, AttentionSpec
from pegboard_sdk.conformance import AttentionSuite
from pegboard_sdk.conformance.batches import PagedBatch
from pegboard_sdk.toys.attention import ReferenceAttention

SPEC = AttentionSpec(1, 4, 2, 16, 0.31)
CPU = torch.device("cpu")


class Packed(PackedAttention):
    """The oracle over cu_seqlens, as a library's function would be; keeps the lengths that it was called with."""

    label = "packed"

    def __init__(self) -> None:
        self.calls: list[list[int]] = []

    def unsupported(self, spec: AttentionSpec, dtype: torch.dtype) -> str | None:
        return "no soft caps" if spec.softcap is not None else None

    def packed(self, q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, plan: PackedPlan) -> Tensor:
        lens = plan.cu_seqlens.diff().tolist()
        assert (max(lens), sum(lens)) == (plan.longest, len(q))
        self.calls.append(lens)
        return reference.ragged_attention(q, k, v, spec, lens).to(q.dtype)


class Apart(ReferenceAttention):
    """Spoils what it need not compute."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, plan: Any, cache: Any) -> Tensor:
        out = super().attend(q, k, v, spec, plan, cache)
        ends = torch.tensor([0, *plan.inputs.query_lens]).cumsum(0).tolist()
        for index in plan.inputs.apart:
            out[ends[index] : ends[index + 1]] = torch.nan
        return out


class Composed(FreshPrompts):
    def __init__(self) -> None:
        super().__init__(Apart(), Packed(), 3)


class TestComposed(AttentionSuite):
    spec = PluginSpec(kind="attention", target=f"{__name__}:Composed")
    installed = False
    gradients = False
    softcap = False


def step(old: Sequence[int], new: Sequence[int], tokens: int = 3) -> list[list[int]]:
    """Attend in a step and compare; return the lengths that were computed apart, call by call."""
    whole = Packed()
    backend = FreshPrompts(Apart(), whole, tokens)
    batch = PagedBatch(SPEC, backend.layout(SPEC, 2, 4, torch.float32), old, new, CPU)
    wanted, cache = batch.expected(), batch.expected_cache()
    plan = backend.plan(batch.inputs, CPU, batch.layout)
    assert isinstance(plan, FreshPlan) == any(o == 0 and n >= tokens for o, n in zip(old, new, strict=True))
    for _ in range(2):  # a plan serves all layers
        out = backend.attend(batch.q, batch.k, batch.v, SPEC, plan, batch.cache)
        torch.testing.assert_close(out.double(), wanted, rtol=2e-5, atol=2e-5)
    for mine, right in zip((*batch.cache.k, *batch.cache.v), (*cache.k, *cache.v), strict=True):
        torch.testing.assert_close(mine, right, rtol=0, atol=0, equal_nan=True)
    return whole.calls[: len(whole.calls) // 2]


def test_adjacent_prompts_are_one_call() -> None:
    assert step([9, 0, 0, 6, 0], [1, 7, 4, 5, 3]) == [[7, 4], [3]]
    assert step([0, 0], [7, 4]) == [[7, 4]]


def test_what_stays() -> None:
    """Short prompts, prompts over a cached beginning, decodes, and the first token of a prompt of one."""
    assert step([9, 5, 0, 0], [1, 6, 2, 1]) == []
    assert step([0, 0], [1, 2], tokens=0) == [[2]]


def test_a_batch_without_a_cache() -> None:
    backend, lens = Composed(), [2, 5, 1]
    q, k, v = (torch.randn(8, heads, 16) for heads in (4, 2, 2))
    plan = backend.plan(AttentionInputs([4, 4], [4, 4]), CPU, None)
    plan.update_(AttentionInputs(lens, lens))
    out = backend.attend(q, k, v, SPEC, plan, None)
    torch.testing.assert_close(out.double(), reference.ragged_attention(q, k, v, SPEC, lens), rtol=2e-5, atol=2e-5)


def test_what_packed_attention_refuses() -> None:
    backend, q = Packed(), torch.zeros(2, 4, 16, requires_grad=True)
    with pytest.raises(PluginError, match="'packed' computes whole sequences and has no cache"):
        backend.layout(SPEC, 1, 4, torch.float32)
    with pytest.raises(PluginError, match="has no cache"):
        backend.plan(AttentionInputs([2], [2]), CPU, ReferenceAttention().layout(SPEC, 1, 4, torch.float32))
    plan = backend.plan(AttentionInputs([2], [2]), CPU, None)
    with pytest.raises(ConfigError, match="no gradients"):
        backend.attend(q, q[:, :2], q[:, :2], SPEC, plan, None)
    nothing = torch.zeros(0, 4, 16)
    assert backend.attend(
        nothing, nothing, nothing, SPEC, backend.plan(AttentionInputs([], []), CPU, None), None
    ).shape == (0, 4, 16)


def lacking() -> Probe:
    return Probe(False, False, "its wheel is not installed")


def raising() -> Probe:
    raise OSError("no driver")


class Board:
    """What a platform says of fresh prompts."""

    def __init__(self, *choices: PromptChoice) -> None:
        self._choices = choices

    def prompt_attention(self, spec: AttentionSpec, dtype: torch.dtype, index: int = 0) -> Sequence[PromptChoice]:
        return self._choices


CHOICES = (
    PromptChoice("away", 512, True, "900 TFLOP/s"),
    PromptChoice("broken", 512, True, "800 TFLOP/s"),
    PromptChoice("raises", 512, True, "700 TFLOP/s"),
    PromptChoice("gone", 512, True, "600 TFLOP/s"),
    PromptChoice("slow", 512, False, "it plans each length anew"),
    PromptChoice("packed", 1024, True, "580 TFLOP/s"),
)
REGISTRY = Registry.of(
    {
        ("attention", name): PluginSpec(kind="attention", target=f"{__name__}:{target}", probe=probe)
        for name, target, probe in (
            ("cached", "Apart", None),
            ("packed", "Packed", None),
            ("slow", "Packed", None),
            ("gone", "NoSuchClass", None),
            ("raises", "Packed", f"{__name__}:raising"),
            ("broken", "Packed", f"{__name__}:lacking"),
        )
    }
)


def test_the_first_that_can_is_offered() -> None:
    chosen, passed = offered(REGISTRY, Board(*CHOICES), [SPEC], torch.float32, 0)  # type: ignore[arg-type]
    assert chosen is not None and chosen.name == "packed"
    assert passed[:3] == [
        "away: not installed",
        "broken: its wheel is not installed",
        "raises: its probe raises OSError: no driver",
    ]
    assert passed[3].startswith("gone: attention 'gone'") and "NoSuchClass" in passed[3]
    assert passed[4:] == ["slow: only by name, it plans each length anew"]
    capped = [SPEC, AttentionSpec(2, 4, 2, 16, 0.31, softcap=1.0)]
    chosen, passed = offered(REGISTRY, Board(*CHOICES), capped, torch.float32, 0)  # type: ignore[arg-type]
    assert chosen is None and passed[-1] == "packed: no soft caps"


def test_by_name() -> None:
    board: Any = Board(*CHOICES)
    assert isinstance(named(REGISTRY, "cached", board, SPEC, torch.float32, 0), Apart)
    both = named(REGISTRY, "cached+packed", board, SPEC, torch.float32, 0)
    assert isinstance(both, FreshPrompts) and both.tokens == 1024
    unknown = named(REGISTRY, "cached+packed", Board(), SPEC, torch.float32, 0)  # type: ignore[arg-type]
    assert isinstance(unknown, FreshPrompts) and unknown.tokens == 2
    with pytest.raises(PluginError, match="'broken' of 'cached\\+broken' cannot be used here: its wheel"):
        named(REGISTRY, "cached+broken", board, SPEC, torch.float32, 0)
    with pytest.raises(PluginError, match="'packed' has no cache") as raised:
        named(REGISTRY, "packed+cached", board, SPEC, torch.float32, 0)
    assert raised.value.fix == "use cached+packed"
