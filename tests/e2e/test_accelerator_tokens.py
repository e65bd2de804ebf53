"""Greedy tokens of an accelerator are those of the host in float32, for every family: prompts and decodes mixed, captured or not.

The same checks run on the host with the kernels in Triton's interpreter: `backends/triton/tests/test_families.py`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from pegboard.build import choose_platform
from tests.e2e.tokens import FAMILIES, Load, answers, engine_on, exact, of_the_host, registry, replayed, write_adapter

pytestmark = pytest.mark.gpu

LOAD = Load()


@pytest.fixture(autouse=True)
def accelerator() -> str:
    name, platform = choose_platform(registry())
    if platform.device().type == "cpu":
        pytest.skip("no accelerator is here")
    return name


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_those_of_the_host(family: str, accelerator: str) -> None:
    with exact():
        captured = engine_on(accelerator, family, LOAD)
        while captured.prepare():
            pass
        assert answers(captured, LOAD) == of_the_host(family, LOAD)
        served = replayed(captured)
        assert served is None or served > 20
        plain = engine_on(accelerator, family, LOAD, graphs=False)
        assert answers(plain, LOAD) == of_the_host(family, LOAD)


def test_those_of_preempted_requests_are_too(accelerator: str) -> None:
    with exact():
        page = engine_on(accelerator, "qwen3", LOAD).memory.layout.page_bytes
        few = engine_on(accelerator, "qwen3", LOAD, kv_memory=26 * page, watermark=0)
        assert answers(few, LOAD) == of_the_host("qwen3", LOAD)
        assert few.stats().preemptions > 0


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
@pytest.mark.parametrize("graphs", [True, False])
def test_those_of_adapters_are_too(family: str, graphs: bool, accelerator: str, tmp_path: Path) -> None:
    folders = {
        name: write_adapter(tmp_path / name, family, LOAD, rank=rank, targets=targets, seed=rank)
        for name, rank, targets in (("wide", 8, ["q_proj", "v_proj", "o_proj"]), ("narrow", 3, "all-linear"))
    }
    found = []
    with exact():
        for platform in ("cpu", accelerator):
            engine = engine_on(platform, family, LOAD, graphs=graphs, max_adapters=2, max_adapter_rank=8)
            for name, folder in folders.items():
                engine.load_adapter(name, folder)
            found.append(answers(engine, LOAD, ("wide", None, "narrow")))
    assert found[0] == found[1]
    assert found[0] != of_the_host(family, LOAD)
