"""Greedy tokens of every family with these kernels in Triton's interpreter are the host's, in float32: prompts and decodes mixed, captured
or not, and with preemption.

The check is that of `tests/e2e/test_accelerator_tokens.py`, with fewer tokens, on a simulated device: what it captured is done again on
the memory of the first time, no line of Python is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch

from backends.triton.tests.counting import kernels_on
from pegboard.types import AttentionSpec
from pegboard_engine import PagedEngine
from pegboard_sdk.simulated import SimulatedDevice, SimulatedPlatform
from pegboard_triton.table import replacements
from tests.e2e.tokens import FAMILIES, Load, answers, engine_on, exact, of_the_host, replayed

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled here: they cannot compute on the host"),
]

LOAD = Load(
    requests=5,
    head=18,
    own=9,
    most=5,
    sizes={"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 32, "moe_intermediate_size": 16},
    options={"max_num_seqs": 4, "max_num_tokens": 22, "max_model_len": 64},
)


class Interpreted(SimulatedPlatform):
    """A device that computes with these kernels."""

    def kernels(self, phase: Any, dtype: torch.dtype, index: int = 0) -> Mapping[str, Callable[..., Any]]:
        return replacements(phase, dtype)

    def attention_preference(self, phase: Any, spec: AttentionSpec) -> tuple[str, ...]:
        return ("triton",)


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., PagedEngine]]:
    """Return a function that makes an engine on a simulated device, which runs kernels by the interpreter."""
    with SimulatedDevice() as device, kernels_on(device), exact():
        monkeypatch.setattr(Interpreted, "simulated", device, raising=False)

        def make(family: str, *, pages: int = 16, page_size: int = 16, **options: Any) -> PagedEngine:
            # The interpreter copies all of a cache for every launch. Keys and values, two heads of 16, float32.
            memory = pages * page_size * 2 * 2 * 16 * 4 * LOAD.sizes["num_hidden_layers"]
            more = {"page_size": page_size, "kv_memory": memory, "watermark": 0, **options}
            return engine_on(f"{__name__}:Interpreted", family, LOAD, **more)

        yield make


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_those_of_the_host(family: str, on: Callable[..., PagedEngine]) -> None:
    engine = on(family)
    for _ in range(3):
        engine.prepare()
    assert answers(engine, LOAD) == of_the_host(family, LOAD)
    assert (replayed(engine) or 0) > 1


@pytest.mark.parametrize("family", ["gemma3_text", "qwen3", "qwen2_moe"])
def test_those_without_graphs_are_too(family: str, on: Callable[..., PagedEngine]) -> None:
    assert answers(on(family, graphs=False), LOAD) == of_the_host(family, LOAD)


def test_those_of_preempted_requests_are_too(on: Callable[..., PagedEngine]) -> None:
    engine = on("qwen3", pages=10, page_size=4, max_model_len=36)
    assert answers(engine, LOAD) == of_the_host("qwen3", LOAD)
    assert engine.stats().preemptions > 0
