"""What half precision costs SmolLM2: its perplexity in bfloat16 is that in float32, to half a percent."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from pegboard.build import choose_platform
from pegboard.plugins.load import Registry
from pegboard_engine import LLM
from pegboard_evaluate.perplexity import perplexity

TEXT = (Path(__file__).parents[2] / "LICENSE").read_text()
CHARACTERS = 6_000  # 1,200 tokens or so


@cache
def measured(model: Path, platform: str, dtype: str) -> float:
    with LLM(str(model), platform=platform, dtype=dtype, max_model_len=512, kv_memory="64MB") as llm:
        found = perplexity(llm, TEXT[:CHARACTERS])
    assert found.tokens > 500
    return found.figures()["perplexity"]


@pytest.mark.gpu
def test_on_an_accelerator(smollm2: Path) -> None:
    name, platform = choose_platform(Registry.discover())
    if platform.device().type == "cpu":
        pytest.skip("no accelerator is here")
    exact = measured(smollm2, "cpu", "float32")
    assert measured(smollm2, name, "float32") == pytest.approx(exact, rel=1e-4)
    assert measured(smollm2, name, "bfloat16") == pytest.approx(exact, rel=0.005)
