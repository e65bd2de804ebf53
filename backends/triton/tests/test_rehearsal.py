"""Kernels that are made ready ahead: which they are, and that nothing is computed for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

from pegboard.build import prepare_model
from pegboard.interfaces.platform import Rehearsal as Begun
from pegboard.plugins.load import Registry
from pegboard.plugins.spec import PluginSpec
from pegboard.types import SamplingParams
from pegboard_engine import EngineOptions, PagedEngine
from pegboard_engine.plugin import UNIPROC
from pegboard_sdk.toys.model import MIXTURE, TINY, RandomFiles
from pegboard_sdk.toys.platform import HostPlatform
from pegboard_triton import kernel
from pegboard_triton.catalogue import variants
from pegboard_triton.kernel import InterpretedKernel, Kernel, Rehearsal
from pegboard_triton.norm import rms_norm
from pegboard_triton.plugin import ATTENTION
from pegboard_triton.table import replacements

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled here, and cannot be looked at")

BEGUN: list[Rehearsal] = []


class Rehearsed(HostPlatform):
    """The host as a device that computes apart, with the kernels in Triton's interpreter."""

    def capabilities(self, index: int = 0) -> frozenset[str]:
        return frozenset({"apart"})

    def kernels(self, phase: Any, dtype: torch.dtype, index: int = 0) -> Mapping[str, Callable[..., Any]]:
        return replacements(phase, dtype)

    def rehearse(self, work: Callable[[], None], index: int = 0) -> Begun | None:
        BEGUN.append(Rehearsal(self.device(index)))
        return BEGUN[-1].begin(work)


REGISTRY = Registry.of(
    {
        ("platform", "rehearsed"): PluginSpec(kind="platform", target=f"{__name__}:Rehearsed"),
        ("attention", "triton"): ATTENTION,
        ("model", "tiny"): PluginSpec(
            kind="model",
            target="pegboard_sdk.toys.model:TinyFamily",
            capabilities={"architectures": ["TinyForCausalLM"], "model_types": ["tiny"]},
        ),
        ("executor", "uniproc"): UNIPROC,
    }
)


def test_every_kernel_that_is_launched_can_be_noted() -> None:
    others = [variant.name for variant in variants() if not isinstance(variant.kernel, (Kernel, InterpretedKernel))]
    assert others == []


SIZES = {"hidden_size": 32, "head_dim": 16, "num_attention_heads": 2, "num_key_value_heads": 1}


def loaded(dtype: str, config: Mapping[str, Any] = TINY) -> tuple[PagedEngine, dict[tuple[Any, Any], None]]:
    """Return an engine with a tiny model, and what was noted while its weights were read."""
    config = {**config, **SIZES}
    files = RandomFiles(REGISTRY.create("model", "tiny"), config, seed=5)
    engine = PagedEngine(
        EngineOptions(page_size=16, max_model_len=64, max_num_seqs=3, max_num_tokens=64, rehearse=True)
    )
    built = prepare_model(REGISTRY, files, platform="rehearsed", attention="triton", dtype=dtype, phase="decode")
    engine.load(built, None, REGISTRY)
    return engine, BEGUN.pop().noted


def test_a_model_is_rehearsed_before_it_serves() -> None:
    engine, noted = loaded("bfloat16")
    engine.close()
    names = [one.fn.__name__ for one, _ in noted]
    first = names.index("decode_kernel")
    assert {"prefill_kernel", "prepare_kernel", "gated_forward", "_sample"} <= set(names[:first])
    assert {"few_rows", "fill_in", "tell"} <= set(names)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "config"), [("bfloat16", TINY), ("float32", TINY), ("float32", MIXTURE)], ids=["half", "full", "mixture"]
)
def test_first_steps_launch_what_was_noted(
    dtype: str, config: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, noted = loaded(dtype, config)
    launched = Rehearsal(torch.device("cpu"))
    run = InterpretedKernel.run

    def watched(self: InterpretedKernel, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        launched.note(self, args, kwargs)
        return run(self, *args, grid=grid, warmup=warmup, **kwargs)

    monkeypatch.setattr(InterpretedKernel, "run", watched)
    params = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
    for length in (16, 21):
        engine.add_request(str(length), [length] * length, params)
        while engine.has_unfinished():
            for output in engine.step():
                assert output.error is None, output.error
    engine.close()
    launched.close()
    missed = [one.fn.__name__ for one, way in launched.noted if (one, way) not in noted]
    assert launched.noted
    assert missed == []


def test_rehearsed_work_launches_nothing(poisoned: None) -> None:
    rehearsal = Rehearsal(torch.device("cpu"))
    seen: list[torch.Tensor] = []
    rehearsal.run(lambda: seen.append(rms_norm(torch.ones(4, 64), torch.ones(64), 1e-6)))
    assert seen[0].isnan().all()
    assert len(rehearsal.noted) == 1
    assert not kernel.rehearsing()


def test_work_that_raises_ends_the_rehearsal_alone() -> None:
    rehearsal = Rehearsal(torch.device("cpu"))

    def broken() -> None:
        raise RuntimeError("no")

    rehearsal.begin(broken).watched()
    rehearsal.close()
    assert not rehearsal.noted
