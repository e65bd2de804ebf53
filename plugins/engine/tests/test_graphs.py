"""Captured decode steps, on the host where the compiled kernels are: the same tokens, the model not called again."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pegboard.interfaces.engine import RequestOptions
from pegboard.types import SamplingParams
from pegboard_engine import LLM
from pegboard_engine.graphs import usable

SETTINGS: dict[str, Any] = {"dtype": "float32", "page_size": 4, "max_model_len": 96}


def generate(llm: LLM, **params: Any) -> list[list[int]]:
    source = random.Random(3)
    prompts = [[source.randrange(1, 260) for _ in range(length)] for length in (3, 17, 40, 1, 9)]
    each = [
        SamplingParams(**{"max_tokens": 10 + 2 * number, "ignore_eos": True, "seed": number, **params})
        for number in range(len(prompts))
    ]
    return [one.outputs[0].token_ids for one in llm.generate(prompts, each)]


@pytest.mark.parametrize("params", [{"temperature": 0}, {"temperature": 0.9, "top_p": 0.9}], ids=str)
def test_the_tokens_are_the_same(folder: Path, params: dict[str, Any]) -> None:
    with LLM(str(folder), graphs=False, **SETTINGS) as llm:
        plain = generate(llm, **params)
    with LLM(str(folder), **SETTINGS) as llm:
        if not usable(llm.built):
            pytest.skip("this platform captures nothing")
        graphs = llm.engine._executor._runner._graphs  # type: ignore[attr-defined]
        assert generate(llm, **params) == plain
        assert 0 < graphs.num_captured <= 5
        assert graphs.num_replayed > 5
        calls: list[int] = []
        hook = llm.built.model.register_forward_pre_hook(lambda *_: calls.append(1))
        replayed = graphs.num_replayed
        assert generate(llm, **params) == plain
        hook.remove()
        # The prompts, and no decode step of a shape that was captured before.
        assert len(calls) < 8
        assert graphs.num_replayed - replayed >= 17


def adapted(llm: LLM, adapters: Sequence[str | None]) -> list[list[int]]:
    """What requests of these adapters get, all at once."""
    params = SamplingParams(max_tokens=14, temperature=0, ignore_eos=True)
    found: dict[str, list[int]] = {str(number): [] for number in range(len(adapters))}
    for number, adapter in enumerate(adapters):
        llm.engine.add_request(str(number), [5, 6 + number, 7], params, RequestOptions(adapter=adapter))
    while llm.engine.has_unfinished():
        for output in llm.engine.step():
            found[output.request_id] += output.token_ids
    return list(found.values())


def test_rows_with_adapters_are_captured_by_which_they_have(folder: Path, tuned: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tuned, other)
    settings = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps({**settings, "lora_alpha": 20}))
    mixed, turned = ["a", None, "b", "a"], ["b", "b", None]
    found: list[list[list[list[int]]]] = []
    for graphs in (False, True):
        with LLM(str(folder), graphs=graphs, **SETTINGS) as llm:
            if graphs and not usable(llm.built):
                pytest.skip("this platform captures nothing")
            steps = llm.engine._executor._runner._graphs  # type: ignore[attr-defined]
            llm.engine.load_adapter("a", str(tuned))
            llm.engine.load_adapter("b", str(other))
            runs = [adapted(llm, mixed), adapted(llm, turned), adapted(llm, mixed)]
            if graphs:
                assert {slots for _, _, slots in steps._graphs} == {(0, -1, 1, 0), (1, 1, -1)}
                assert steps.num_replayed > 25
            for name in "ab":
                llm.engine.unload_adapter(name)
            llm.engine.load_adapter("b", str(tuned))
            llm.engine.load_adapter("a", str(other))
            runs += [adapted(llm, mixed), adapted(llm, [None] * 4)]
            found.append(runs)
    plain, captured = found
    assert captured == plain
    assert plain[0] == plain[2] != plain[3]


def test_what_cannot_be_captured_runs_without(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pegboard.errors import DeviceError

    with LLM(str(folder), **SETTINGS) as llm:
        if not usable(llm.built):
            pytest.skip("this platform captures nothing")
        plain = generate(llm, temperature=0)
    with LLM(str(folder), **SETTINGS) as llm:

        def refuse(*_: Any) -> None:
            raise DeviceError("no")

        monkeypatch.setattr(type(llm.built.platform), "capture", refuse)
        assert generate(llm, temperature=0) == plain
        assert llm.engine._executor._runner._graphs.num_replayed == 0  # type: ignore[attr-defined]
