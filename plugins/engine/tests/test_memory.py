from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pegboard.build import BuiltModel
from pegboard.errors import ConfigError
from pegboard.plugins.load import Registry
from pegboard.types import SamplingParams
from pegboard_engine import LLM, EngineOptions
from pegboard_engine.adapters import adapter_bytes
from pegboard_engine.memory import plan_memory
from pegboard_lora import LoraAdapter
from pegboard_lora.plugin import LORA


def test_the_plan_tells_what_goes_where(built: BuiltModel) -> None:
    plan = plan_memory(built, EngineOptions(page_size=4, max_model_len=64, max_num_seqs=8))
    assert plan.weights == sum(p.numel() * p.element_size() for p in built.model.parameters()) + sum(
        b.numel() * b.element_size() for b in built.model.buffers()
    )
    assert plan.bytes == plan.num_pages * plan.layout.page_bytes
    lines = plan.table().splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["weights", "workspace", "cache"]
    assert f"{plan.num_pages - 1:,} pages of 4 tokens" in lines[2]


def test_too_little_says_what_would_fit(built: BuiltModel) -> None:
    page = plan_memory(built, EngineOptions(page_size=4)).layout.page_bytes
    with pytest.raises(ConfigError, match="max_model_len 64 needs") as caught:
        plan_memory(built, EngineOptions(page_size=4, max_model_len=64, kv_memory=page * 10))
    assert caught.value.fix is not None and "at most 36" in caught.value.fix
    with pytest.raises(ConfigError, match="holds no page"):
        plan_memory(built, EngineOptions(page_size=4, kv_memory=page))


def test_adapters_are_counted_where_they_are_asked_for(built: BuiltModel) -> None:
    registry = Registry.of({("adapter", "lora"): LORA})
    needs = adapter_bytes(built, registry, 2, 8)
    assert needs == LoraAdapter.serving_bytes(built.model, num_slots=2, max_rank=8, dtype=built.dtype) > 0
    assert adapter_bytes(built, registry, 0, 8) == adapter_bytes(built, Registry.of({}), 2, 8) == 0
    given: dict[str, Any] = {"page_size": 4, "kv_memory": 1.0, "max_num_seqs": 2048, "max_num_tokens": 2048}
    allowed = plan_memory(built, EngineOptions(**given), needs)
    asked = plan_memory(built, EngineOptions(max_adapters=2, max_adapter_rank=8, **given), needs)
    assert allowed.adapters == 0
    assert allowed.adapters_most == needs
    assert asked.adapters == needs
    (line,) = (line for line in asked.table().splitlines() if line.startswith("adapters"))
    assert "2 of rank 8" in line
    assert "adapters" in allowed.table()
    assert "adapters" not in plan_memory(built, EngineOptions(**given)).table()


def test_the_room_of_adapters_is_not_the_caches(built: BuiltModel, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {"page_size": 4, "kv_memory": 1.0, "max_num_seqs": 2048, "max_num_tokens": 2048}
    plan = plan_memory(built, EngineOptions(**given))
    available, page = plan.workspace + 40 * plan.layout.page_bytes, plan.layout.page_bytes
    monkeypatch.setattr("pegboard_engine.memory._available", lambda built: available)
    assert plan_memory(built, EngineOptions(**given), 10 * page).num_pages == 40
    assert plan_memory(built, EngineOptions(max_adapters=4, **given), 10 * page).num_pages == 30


def test_weights_that_are_not_loaded_yet_are_left_room_for(built: BuiltModel, monkeypatch: pytest.MonkeyPatch) -> None:
    options = EngineOptions(page_size=4, kv_memory=1.0, max_num_seqs=2048, max_num_tokens=2048)
    loaded = plan_memory(built, options)
    available = loaded.workspace + loaded.weights + 40 * loaded.layout.page_bytes
    monkeypatch.setattr("pegboard_engine.memory._available", lambda built: available)
    assert plan_memory(built, options).num_pages == 40 + loaded.weights // loaded.layout.page_bytes
    monkeypatch.setattr(built, "pending", [lambda: None])
    assert plan_memory(built, options).num_pages == 40


@pytest.mark.parametrize(
    ("attention", "cells", "near_by"),
    [("sdpa", "int8", 0.2), ("auto", "int8", 0.2), ("sdpa", "float8_e4m3fn", 0.4)],
)
def test_a_cache_of_codes_is_smaller_and_nearly_as_good(
    folder: Path, attention: str, cells: str, near_by: float
) -> None:
    settings: dict[str, Any] = {"dtype": "float32", "page_size": 4, "max_model_len": 96, "attention": attention}
    params = SamplingParams(max_tokens=1, temperature=0, logprobs=5, ignore_eos=True)
    prompts = [[3 + i] * 5 + list(range(20, 50)) for i in range(4)]
    told = []
    for dtype in ("auto", cells):
        with LLM(str(folder), kv_dtype=dtype, **settings) as llm:
            layout = llm.engine.memory.layout  # type: ignore[attr-defined]
            # A prompt of which all but the last token is found: what is read comes from the cache alone.
            llm.generate(prompts, params)
            found = llm.generate(prompts, params)
            told.append((layout.page_bytes, [one.outputs[0].logprobs for one in found]))
    assert told[1][0] < 0.4 * told[0][0]
    for exact, near in zip(told[0][1], told[1][1], strict=True):
        assert exact and near
        assert near[0].logprob == pytest.approx(exact[0].logprob, abs=near_by)
