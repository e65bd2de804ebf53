"""On a real GPU: kernels that are made ready while weights are read are those of the first steps, and change nothing of what comes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pegboard.build import prepare_model
from pegboard.plugins.load import Registry
from pegboard.plugins.spec import PluginSpec
from pegboard.types import SamplingParams
from pegboard_cuda.plugin import SPEC
from pegboard_engine import EngineOptions, PagedEngine
from pegboard_engine.plugin import UNIPROC
from pegboard_sdk.toys.model import MIXTURE, TINY, RandomFiles, TinyFamily
from pegboard_triton.plugin import ATTENTION

pytestmark = pytest.mark.gpu

REGISTRY = Registry.of(
    {
        ("platform", "cuda"): SPEC,
        ("attention", "triton"): ATTENTION,
        ("executor", "uniproc"): UNIPROC,
        ("model", "tiny"): PluginSpec(
            kind="model",
            target="pegboard_sdk.toys.model:TinyFamily",
            capabilities={"architectures": ["TinyForCausalLM"], "model_types": ["tiny"]},
        ),
    }
)

CONFIGS: dict[str, dict[str, Any]] = {
    "dense": {**TINY, "hidden_size": 128, "head_dim": 64, "intermediate_size": 256, "num_hidden_layers": 3},
    "mixture": {**MIXTURE, "hidden_size": 128, "head_dim": 64, "moe_intermediate_size": 128},
}


def tokens(engine: PagedEngine) -> list[int]:
    """Return what comes after a prompt, whose steps are few enough that none is captured."""
    engine.add_request("one", [7] * 16, SamplingParams(temperature=0, max_tokens=3, ignore_eos=True))
    found: list[int] = []
    while engine.has_unfinished():
        for output in engine.step():
            assert output.error is None, output.error
            found += output.token_ids
    return found


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_first_steps_compile_nothing(name: str) -> None:
    import triton

    from pegboard_triton.kernel import settle

    files = RandomFiles(TinyFamily(), CONFIGS[name], seed=3)
    compiled: list[str] = []

    def note(*, fn: Any, **others: Any) -> None:
        compiled.append(fn.name)

    def start(*, ahead: bool) -> tuple[PagedEngine, int]:
        built = prepare_model(REGISTRY, files, platform="cuda", attention="triton", dtype="bfloat16")
        engine = PagedEngine(
            EngineOptions(page_size=16, max_model_len=64, max_num_seqs=4, kv_memory="16MiB", rehearse=True)
        )
        engine.load(built if ahead else built.load(), None, REGISTRY)
        settle()
        return engine, len(compiled)

    with triton.knobs.runtime.scope():
        triton.knobs.runtime.jit_post_compile_hook = note
        engine, before = start(ahead=True)
        first = tokens(engine)
        engine.close()
        assert before > 0
        assert compiled[before:] == []
        again, _ = start(ahead=False)
    assert tokens(again) == first
    again.close()
    torch.cuda.synchronize()
