from __future__ import annotations

import pytest
from pydantic import ValidationError

from pegboard.errors import ConfigError
from pegboard_engine.memory import plan_memory
from pegboard_engine.options import EngineOptions, parse_memory
from pegboard_sdk.toys.model import random_model


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (536870912, 536870912),
        (0.5, 0.5),
        ("50%", 0.5),
        ("0.25", 0.25),
        ("512MB", 512 * 10**6),
        ("512M", 512 * 10**6),
        ("1GiB", 2**30),
        ("1.5Gi", 3 * 2**29),
        (" 64 KiB ", 2**16),
        ("1000", 1000),
    ],
)
def test_memory(text: int | float | str, value: int | float) -> None:
    assert parse_memory(text) == value


@pytest.mark.parametrize("text", ["", "much", "-1GB", "1TB", "1.5", 0, 0.0, -3, 1.2, True, "150%", "1 2"])
def test_no_memory(text: int | float | str) -> None:
    with pytest.raises(ValueError, match=r"memory|fraction|little"):
        parse_memory(text)


def test_options_agree_with_each_other() -> None:
    with pytest.raises(ValidationError, match=r"max_num_tokens \(8\) is below max_num_seqs \(9\)"):
        EngineOptions(max_num_tokens=8, max_num_seqs=9)
    with pytest.raises(ValidationError, match="no amount of memory"):
        EngineOptions(kv_memory="lots")


def test_a_step_is_as_large_as_its_device_likes() -> None:
    assert [EngineOptions().tokens_a_step(apart) for apart in (False, True)] == [2048, 8192]
    assert EngineOptions(max_num_seqs=9000).tokens_a_step(False) == 9000
    assert EngineOptions(max_num_tokens=300).tokens_a_step(True) == 300


def test_memory_plan() -> None:
    built = random_model(phase="decode")
    plan = plan_memory(built, EngineOptions(page_size=8, kv_memory=40_000, max_model_len=20))
    # 2 layers, keys and values, 8 tokens of 2 heads of 6 numbers of 8 bytes.
    assert plan.layout.page_bytes == 2 * 2 * 8 * 2 * 6 * 8
    assert plan.num_pages == 40_000 // plan.layout.page_bytes == 13
    assert plan.longest == 20
    assert plan.bytes <= 40_000
    unlimited = plan_memory(built, EngineOptions(page_size=8))
    assert unlimited.longest == 128
    assert unlimited.num_pages == 1 + 4 * 16


def test_too_little_memory_says_what_fits() -> None:
    built = random_model(phase="decode")
    page = 2 * 2 * 8 * 2 * 6 * 8
    with pytest.raises(ConfigError, match="max_model_len 64 needs") as caught:
        plan_memory(built, EngineOptions(page_size=8, kv_memory=4 * page, max_model_len=64))
    assert "at most 24" in str(caught.value.fix)
    with pytest.raises(ConfigError, match="holds no page"):
        plan_memory(built, EngineOptions(page_size=8, kv_memory=page))
    with pytest.raises(ConfigError, match="positions end at 128"):
        plan_memory(built, EngineOptions(max_model_len=129))
    fits = plan_memory(built, EngineOptions(page_size=8, kv_memory=4 * page))
    assert fits.longest == 24
