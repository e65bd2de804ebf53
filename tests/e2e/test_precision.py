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
    # Steps of few rows: torch has no vector instructions for more of them in bfloat16 on some processors, ours has for so many.
    steps = {"max_num_tokens": 128, "max_num_seqs": 8} if platform == "cpu" else {}
    with LLM(str(model), platform=platform, dtype=dtype, max_model_len=512, kv_memory="64MB", **steps) as llm:
        found = perplexity(llm, TEXT[:CHARACTERS])
    assert found.tokens > 500
    return found.figures()["perplexity"]


@pytest.mark.slow
def test_on_the_host(smollm2: Path) -> None:
    assert measured(smollm2, "cpu", "bfloat16") == pytest.approx(measured(smollm2, "cpu", "float32"), rel=0.005)


@pytest.mark.gpu
def test_on_an_accelerator(smollm2: Path) -> None:
    name, platform = choose_platform(Registry.discover())
    if platform.device().type == "cpu":
        pytest.skip("no accelerator is here")
    exact = measured(smollm2, "cpu", "float32")
    assert measured(smollm2, name, "float32") == pytest.approx(exact, rel=1e-4)
    assert measured(smollm2, name, "bfloat16") == pytest.approx(exact, rel=0.005)
