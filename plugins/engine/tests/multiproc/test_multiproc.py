"""The engine over a worker: what it gives is what the engine in one process gives, and a lost worker costs what ran and no more."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pegboard.errors import ModelError
from pegboard.interfaces.engine import RequestOptions, RequestOutput
from pegboard.types import SamplingParams
from pegboard_engine import LLM
from pegboard_engine.multiproc.executor import MultiprocExecutor
from pegboard_lora import LoraAdapter
from pegboard_lora.options import LoraOptions
from pegboard_sdk.peg import Said

OPTIONS: dict[str, Any] = {"dtype": "float32", "page_size": 4, "max_num_tokens": 24, "max_num_seqs": 6}
GREEDY: dict[str, Any] = {"temperature": 0.0, "ignore_eos": True}
PROMPTS = ["hello", "hello there, world", "w", "hello world, hello there, hello there", "there"]


@pytest.fixture(scope="module")
def one(folder: Path) -> Iterator[LLM]:
    """In one process."""
    with LLM(str(folder), **OPTIONS, max_adapters=2, max_adapter_rank=4) as llm:
        yield llm


@pytest.fixture(scope="module")
def two(folder: Path) -> Iterator[LLM]:
    """With a worker."""
    with LLM(str(folder), **OPTIONS, max_adapters=2, max_adapter_rank=4, executor="multiproc") as llm:
        yield llm


def executor(llm: LLM) -> MultiprocExecutor:
    found = llm.engine._executor  # type: ignore[attr-defined]
    assert isinstance(found, MultiprocExecutor)
    return found


def pid(llm: LLM) -> int:
    return executor(llm)._workers[0].pid


def same(one: LLM, two: LLM, params: SamplingParams | list[SamplingParams], prompts: list[str] = PROMPTS) -> None:
    expected, found = (llm.generate(prompts, params) for llm in (one, two))
    assert [g.outputs for g in found] == [g.outputs for g in expected]
    assert [g.prompt_logprobs for g in found] == [g.prompt_logprobs for g in expected]
    assert all(len(answer.token_ids) > 0 for g in found for answer in g.outputs)


def test_the_weights_are_in_the_worker_alone(two: LLM) -> None:
    assert all(parameter.is_meta for parameter in two.built.model.parameters())
    assert executor(two).depth == 2


def test_mixed_requests_give_the_same_tokens(one: LLM, two: LLM) -> None:
    same(one, two, SamplingParams(max_tokens=12, **GREEDY))
    lengths = [SamplingParams(max_tokens=3 + 5 * i, **GREEDY) for i in range(5)]
    same(one, two, lengths)


def test_sampling_gives_the_same_tokens(one: LLM, two: LLM) -> None:
    each = [
        SamplingParams(max_tokens=10, temperature=1.2, top_p=0.9, seed=1),
        SamplingParams(max_tokens=10, temperature=0.9, top_k=20, min_p=0.01, seed=2, n=3),
        SamplingParams(max_tokens=10, temperature=1.0, repetition_penalty=1.3, presence_penalty=0.5, seed=3),
        SamplingParams(max_tokens=10, temperature=1.5, typical_p=0.8, logit_bias={70: 4.0}, seed=4),
        SamplingParams(max_tokens=10, bad_words=("a", "b c"), seed=5, min_tokens=4),
    ]
    same(one, two, each)


def test_masks_hold_in_the_worker(one: LLM, two: LLM) -> None:
    allowed = (65, 66, 100, 101)
    same(one, two, SamplingParams(max_tokens=9, temperature=1.0, seed=1, allowed_ids=allowed, ignore_eos=True))
    found = two.generate("hello", SamplingParams(max_tokens=9, allowed_ids=allowed, ignore_eos=True))
    assert set(found[0].outputs[0].token_ids) <= set(allowed)


def test_logprobs_of_outputs_and_prompts_are_the_same(one: LLM, two: LLM) -> None:
    same(one, two, SamplingParams(max_tokens=6, logprobs=3, prompt_logprobs=2, logprob_ids=(5,), **GREEDY))
    same(one, two, SamplingParams(max_tokens=6, prompt_logprobs=0, temperature=1, seed=1))


def test_embeddings_and_scores_are_the_same(one: LLM, two: LLM) -> None:
    assert two.embed(PROMPTS) == one.embed(PROMPTS)
    assert two.embed(PROMPTS, pooling="mean") == one.embed(PROMPTS, pooling="mean")
    assert two.score(PROMPTS, ("a", "b")) == one.score(PROMPTS, ("a", "b"))


@pytest.mark.slow
def test_adapters_are_served_from_the_worker_and_come_back_with_a_new_one(one: LLM, two: LLM, tmp_path: Path) -> None:
    adapter = LoraAdapter(LoraOptions(rank=2, alpha=16, targets=["q_proj", "down_proj"]))
    model = one.built.model
    names = [name for name, _ in model.named_modules() if name.endswith(("q_proj", "down_proj"))]
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name in names:
        base = model.get_submodule(name)
        out, into = base.weight.shape  # type: ignore[misc]
        tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(2, into, generator=generator)
        tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(out, 2, generator=generator)
    (tmp_path / "adapter_config.json").write_text(json.dumps(adapter.config("toy")))
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    params = SamplingParams(max_tokens=8, **GREEDY)
    plain = two.generate(PROMPTS, params)
    found = []
    for llm in (one, two):
        llm.engine.load_adapter("style", str(tmp_path))
        found.append([g.outputs for g in llm.generate(PROMPTS, params, RequestOptions(adapter="style"))])
    assert found[0] == found[1] != [g.outputs for g in plain]
    os.kill(pid(two), signal.SIGKILL)
    assert {g.outputs[0].finish_reason for g in two.generate(PROMPTS, params)} == {"error"}
    again = two.generate(PROMPTS, params, RequestOptions(adapter="style"))
    assert [g.outputs for g in again] == found[0]
    save_file({name: tensor[:1] for name, tensor in tensors.items()}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ModelError):
        two.engine.load_adapter("bad", str(tmp_path))
    for llm in (one, two):
        llm.engine.unload_adapter("style")
    same(one, two, params)


def test_a_killed_worker_fails_what_ran_and_the_engine_goes_on(one: LLM, two: LLM) -> None:
    engine = two.engine
    params = SamplingParams(max_tokens=30, **GREEDY)
    for number in range(8):  # two more than may run
        engine.add_request(str(number), two.tokenizer.encode("hello"), params)
    outputs: list[RequestOutput] = []
    while len(outputs) < 12:
        outputs += engine.step()
    assert not any(output.finish_reason for output in outputs)
    killed = pid(two)
    os.kill(killed, signal.SIGKILL)
    while engine.has_unfinished():
        outputs += engine.step()
    ended = {output.request_id: output for output in outputs if output.finish_reason}
    failed = [output for output in ended.values() if output.finish_reason == "error"]
    assert len(failed) == 6
    assert all(f"worker 0 (process {killed}) was ended by SIGKILL" in (output.error or "") for output in failed)
    assert [output.finish_reason for output in ended.values() if output not in failed] == ["length"] * 2
    assert engine.num_held_pages == 0  # type: ignore[attr-defined]
    same(one, two, params)


def test_new_weights_are_read_from_where_the_old_ones_came_from(folder: Path, two: LLM) -> None:
    path = folder / "model.safetensors"
    kept = path.read_bytes()
    params = SamplingParams(max_tokens=8, **GREEDY)
    before = two.generate(PROMPTS, params)
    try:
        changed = {name: tensor * 1.5 for name, tensor in load_file(path).items()}
        path.unlink()  # the worker has it mapped
        save_file(changed, path)
        assert [g.outputs for g in two.generate(PROMPTS, params)] == [g.outputs for g in before]
        two.engine.update_weights(1)
        with LLM(str(folder), **OPTIONS) as fresh:
            expected = [g.outputs for g in fresh.generate(PROMPTS, params)]
        assert [g.outputs for g in two.generate(PROMPTS, params)] == expected != [g.outputs for g in before]
        path.unlink()
        with pytest.raises(ModelError):
            two.engine.update_weights(2)
        assert [g.outputs for g in two.generate(PROMPTS, params)] == expected
    finally:
        path.unlink(missing_ok=True)
        path.write_bytes(kept)
    two.engine.update_weights(3)
    assert [g.outputs for g in two.generate(PROMPTS, params)] == [g.outputs for g in before]


@pytest.mark.slow
def test_from_the_command(peg: Callable[..., Said], folder: Path) -> None:
    tiny = ("--dtype", "float32", "--max-tokens", "6", "--temperature", "0")
    said = peg("generate", folder, "hello", *tiny, "--set", "executor=multiproc", "--threads", "1")
    assert (said.status, said.out) == (0, peg("generate", folder, "hello", *tiny).out)
    wrong = '{"use": "multiproc", "step_timeout": -1}'
    said = peg("generate", folder, "hello", *tiny, "--set", f"executor={wrong}")
    assert said.status == 2
    assert "step_timeout" in said.err
    assert "greater than 0" in said.err
