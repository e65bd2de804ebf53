"""Adapters beside the model, in float64: each request's tokens are those of the model with its adapter merged, alone."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pegboard.build import BuiltModel
from pegboard.errors import ConfigError, ModelError
from pegboard.interfaces.engine import RequestOptions, RequestOutput
from pegboard.plugins.load import Registry
from pegboard.types import SamplingParams
from pegboard_engine import LLM, EngineOptions, PagedEngine
from pegboard_engine.plugin import UNIPROC
from pegboard_lora import LoraAdapter
from pegboard_lora.options import LoraOptions
from pegboard_lora.plugin import LORA
from pegboard_sdk.toys.model import logits, random_model

GREEDY: dict[str, Any] = {"temperature": 0.0, "ignore_eos": True}
CHOICES: dict[str, dict[str, Any]] = {
    "wide": {"rank": 4, "alpha": 9, "targets": ["q_proj", "v_proj", "down_proj"]},
    "all": {"rank": 2, "alpha": 6, "targets": "all-linear", "rslora": True, "rank_pattern": {"o_proj": 5}},
    "few": {"rank": 1, "alpha": 8, "targets": ["layers.1.mlp.up_proj", "k_proj"]},
    "other": {"rank": 3, "alpha": 9, "targets": ["gate_proj", "o_proj"]},
}
Start = Callable[..., PagedEngine]


class Kept:
    """The adapters as folders, and models that have each merged; `models[None]` is the plain one."""

    def __init__(self, folder: Path) -> None:
        self.folders: dict[str, str] = {}
        self.models: dict[str | None, BuiltModel] = {None: random_model(phase="decode", seed=3)}
        for seed, (name, options) in enumerate(CHOICES.items()):
            adapter = LoraAdapter(LoraOptions(dtype="float64", **options))
            built = random_model(phase="decode", seed=3, adapter=adapter)
            generator = torch.Generator().manual_seed(seed)
            for tensor in adapter.tensors(built.model).values():
                tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=torch.float64) / 2)
            (folder / name).mkdir()
            (folder / name / "adapter_config.json").write_text(json.dumps(adapter.config("toy")))
            save_file(dict(adapter.tensors(built.model)), folder / name / "adapter_model.safetensors")
            adapter.merge(built.model)
            self.folders[name], self.models[name] = str(folder / name), built

    def check(self, name: str | None, prompt: list[int], tokens: list[int], count: int) -> None:
        """Each of `count` tokens must be the greatest logit of one model alone, behind the prompt and those before it."""
        with torch.inference_mode():
            rows = logits(self.models[name], torch.tensor([*prompt, *tokens]))[len(prompt) - 1 : -1]
        assert len(tokens) == count
        assert tokens == rows.argmax(-1).tolist()


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    return Kept(tmp_path_factory.mktemp("adapters"))


@pytest.fixture
def start() -> Iterator[Start]:
    """Return a function that makes an engine over the plain model; afterwards none may hold a page."""
    made = []
    registry = Registry.of({("executor", "uniproc"): UNIPROC, ("adapter", "lora"): LORA})

    def make(**options: Any) -> PagedEngine:
        engine = PagedEngine(EngineOptions(**{"page_size": 4, "max_model_len": 64, **options}))
        engine.load(random_model(phase="decode", seed=3), None, registry)
        made.append(engine)
        return engine

    yield make
    for engine in made:
        engine.close()
        assert engine.num_held_pages == 0


Outputs = dict[str, RequestOutput]


def step(engine: PagedEngine, joined: Outputs) -> None:
    """Run a step and join what it gave to what each request had."""
    for output in engine.step():
        first = joined.setdefault(output.request_id, output)
        if first is not output:
            first.token_ids += output.token_ids
            first.finish_reason, first.error = output.finish_reason, output.error


def run(engine: PagedEngine, joined: Outputs | None = None) -> Outputs:
    """Step until nothing is left."""
    joined = {} if joined is None else joined
    for _ in range(1000):
        if not engine.has_unfinished():
            return joined
        step(engine, joined)
    raise AssertionError("it does not end")


def ask(engine: PagedEngine, request: str, prompt: list[int], adapter: str | None, count: int = 8, **more: Any) -> None:
    params = SamplingParams(max_tokens=count, **{**GREEDY, **more})
    engine.add_request(request, prompt, params, RequestOptions(adapter=adapter))


def test_the_adapters_differ(kept: Kept) -> None:
    with torch.inference_mode():
        answers = {tuple(logits(built, torch.arange(20)).argmax(-1).tolist()) for built in kept.models.values()}
    assert len(answers) == len(kept.models)


@pytest.mark.parametrize(
    "options",
    [{}, {"max_num_tokens": 7, "max_num_seqs": 5}, {"page_size": 1}, {"prefix_caching": False}],
    ids=str,
)
def test_any_schedule_gives_the_tokens_of_the_merged_model(start: Start, kept: Kept, options: dict[str, Any]) -> None:
    engine, source = start(**options), random.Random(2)
    for name in ("wide", "all", "few"):
        engine.load_adapter(name, kept.folders[name])
    shared = [source.randrange(256) for _ in range(13)]
    asked, outputs = {}, Outputs()
    for number in range(12):
        adapter = ("wide", "all", None, "few")[number % 4]
        # Some prompts are the same for all, some begin alike.
        tail = [source.randrange(256) for _ in range(number % 3 * 5)]
        asked[str(number)] = adapter, shared[: 13 - number % 2 * 4] + tail, 4 + number % 4
        ask(engine, str(number), asked[str(number)][1], adapter, asked[str(number)][2])
        if number % 5 == 4:
            step(engine, outputs)
    run(engine, outputs)
    for request, (adapter, prompt, count) in asked.items():
        kept.check(adapter, prompt, outputs[request].token_ids, count)


def test_preemption_changes_no_token(start: Start, kept: Kept) -> None:
    engine = start(kv_memory=start().memory.layout.page_bytes * 14, max_model_len=36)
    for name in ("wide", "few"):
        engine.load_adapter(name, kept.folders[name])
    prompts = [[7 + number] * 9 for number in range(4)]
    chosen = ["wide", None, "few", "wide"]
    for number, (prompt, adapter) in enumerate(zip(prompts, chosen, strict=True)):
        ask(engine, str(number), prompt, adapter, 20)
    outputs = run(engine)
    assert engine.stats().preemptions > 0
    for number, (prompt, adapter) in enumerate(zip(prompts, chosen, strict=True)):
        kept.check(adapter, prompt, outputs[str(number)].token_ids, 20)


def test_pages_are_shared_within_an_adapter_and_never_across(start: Start, kept: Kept) -> None:
    engine, prompt = start(), list(range(40, 57))
    for name in ("wide", "all"):
        engine.load_adapter(name, kept.folders[name])
    cached = {}
    for request, adapter in [("1", None), ("2", "wide"), ("3", "all"), ("4", "wide"), ("5", None), ("6", "all")]:
        ask(engine, request, prompt, adapter)
        output = run(engine)[request]
        kept.check(adapter, prompt, output.token_ids, 8)
        cached[request] = output.num_cached_tokens
    assert cached == {"1": 0, "2": 0, "3": 0, "4": 16, "5": 16, "6": 16}


def test_another_adapter_under_the_same_name_finds_no_pages_of_the_first(start: Start, kept: Kept) -> None:
    engine, prompt = start(), list(range(40, 57))
    for number, name in enumerate(("wide", "other", "wide")):
        engine.load_adapter("mine", kept.folders[name])
        ask(engine, str(number), prompt, "mine")
        output = run(engine)[str(number)]
        kept.check(name, prompt, output.token_ids, 8)
        assert output.num_cached_tokens == 0
        engine.unload_adapter("mine")
    assert engine.adapters() == {}


def test_loading_and_unloading_while_others_run(start: Start, kept: Kept) -> None:
    engine, prompt = start(max_adapters=2), list(range(90, 103))
    engine.load_adapter("wide", kept.folders["wide"])
    ask(engine, "long", prompt, "wide", 30)
    ask(engine, "plain", prompt, None, 30)
    outputs = Outputs()
    for number, name in enumerate(("few", "all", "other", "few")):
        request = f"short {number}"
        engine.load_adapter(name, kept.folders[name])
        ask(engine, request, prompt, name, 4)
        with pytest.raises(ConfigError, match=f"'{name}' is used by 1 unfinished request\n"):
            engine.unload_adapter(name)
        while request not in outputs or outputs[request].finish_reason is None:
            step(engine, outputs)
        kept.check(name, prompt, outputs[request].token_ids, 4)
        engine.unload_adapter(name)
        assert engine.adapters() == {"wide": kept.folders["wide"]}
    run(engine, outputs)
    for request, adapter in (("long", "wide"), ("plain", None)):
        kept.check(adapter, prompt, outputs[request].token_ids, 30)


def test_every_end_of_a_request_lets_its_adapter_go(start: Start, kept: Kept) -> None:
    engine = start()
    engine.load_adapter("few", kept.folders["few"])
    ask(engine, "three", [1, 2, 3], "few", 20, n=3)
    ask(engine, "waits", [1, 2, 3], "few", 20)
    with pytest.raises(ConfigError, match="used by 4 unfinished requests"):
        engine.unload_adapter("few")
    engine.step()
    engine.abort("three")
    with pytest.raises(ConfigError, match="used by 1 unfinished"):
        engine.unload_adapter("few")
    engine.abort("waits")
    engine.abort("waits")
    engine.unload_adapter("few")
    with pytest.raises(ConfigError, match="no adapter 'few' is loaded"):
        ask(engine, "late", [1], "few")
    assert not any(output.finish_reason is None for output in engine.step())


def test_a_refused_request_uses_nothing(start: Start, kept: Kept) -> None:
    engine = start()
    engine.load_adapter("few", kept.folders["few"])
    for prompt, said in (([], "empty"), ([1] * 99, "the prompt has 99")):
        with pytest.raises(ConfigError, match=said):
            ask(engine, "x", prompt, "few")
    with pytest.raises(ConfigError, match=r"no adapter 'fex' is loaded.*few"):
        ask(engine, "x", [1], "fex")
    assert not engine.has_unfinished()
    engine.unload_adapter("few")


def test_what_cannot_be_loaded_is_told_and_leaves_nothing(start: Start, kept: Kept, tmp_path: Path) -> None:
    engine = start(max_adapters=2, max_adapter_rank=4)
    few = kept.folders["few"]
    engine.load_adapter("few", few)

    def refuse(name: str, folder: str, said: str, error: type[Exception] = ConfigError) -> None:
        with pytest.raises(error, match=said):
            engine.load_adapter(name, folder)
        assert engine.adapters() == {"few": few}

    refuse("few", kept.folders["wide"], "an adapter 'few' is loaded already")
    refuse("", few, "no name")
    refuse("x", str(tmp_path), "is no folder of an adapter")
    refuse("x", str(tmp_path / "nowhere"), "is no folder of an adapter")
    refuse("x", kept.folders["all"], "rank for .*o_proj is 5, above max_adapter_rank, 4")
    (tmp_path / "adapter_config.json").write_text("{")
    refuse("x", str(tmp_path), "adapter_model.safetensors is missing", ModelError)
    engine.load_adapter("wide", kept.folders["wide"])
    with pytest.raises(ConfigError, match=r"2 adapters are loaded already \(few, wide\)"):
        engine.load_adapter("x", few)
    with pytest.raises(ConfigError, match="max_adapters is 0"):
        start(max_adapters=0).load_adapter("x", few)
    with pytest.raises(ConfigError, match="no adapter 'x' is loaded"):
        engine.unload_adapter("x")


def test_embeddings_and_log_probabilities_are_of_the_adapter(start: Start, kept: Kept) -> None:
    engine, prompt = start(), [3, 1, 4, 1, 5, 9, 2, 6]
    engine.load_adapter("all", kept.folders["all"])
    engine.add_request("e", prompt, SamplingParams(), RequestOptions(adapter="all", task="embed"))
    ask(engine, "p", prompt, "all", 1, prompt_logprobs=0)
    outputs = run(engine)
    with torch.inference_mode():
        table = logits(kept.models["all"], torch.tensor(prompt)).log_softmax(-1)
        merged = kept.models["all"]
        hidden = merged.model(torch.tensor(prompt), merged.context([8], torch.arange(8)))[-1]
    told = outputs["p"].prompt_logprobs
    assert told is not None
    found = [entry.logprob for entry in told if entry is not None]
    assert found == pytest.approx([float(table[row, prompt[row + 1]]) for row in range(7)], rel=1e-6)
    assert outputs["e"].embedding == pytest.approx(hidden.tolist(), rel=1e-5)


def test_llm_takes_adapters_by_name(folder: Path, tuned: Path) -> None:
    params = SamplingParams(max_tokens=9, **GREEDY)
    with LLM(str(tuned), dtype="float64") as merged, LLM(str(folder), dtype="float64") as plain:
        wanted = [llm.generate("hello there", params)[0].outputs[0].token_ids for llm in (merged, plain)]
        embeddings = [llm.embed("hello there")[0] for llm in (merged, plain)]
        scores = [llm.score(["hello there"], ("h", "t"))[0] for llm in (merged, plain)]
    assert embeddings[0] != pytest.approx(embeddings[1], rel=1e-3)
    with LLM(str(folder), dtype="float64", adapters={"tuned": str(tuned)}) as llm:
        options = [RequestOptions(adapter="tuned"), RequestOptions()]
        found = llm.generate(["hello there"] * 2, params, options)
        assert [one.outputs[0].token_ids for one in found] == wanted
        streamed = llm.stream("hello there", params, RequestOptions(adapter="tuned"))
        assert [token for output in streamed for token in output.token_ids] == wanted[0]
        for adapter, embedding, score in zip(("tuned", None), embeddings, scores, strict=True):
            assert llm.embed("hello there", adapter=adapter)[0] == pytest.approx(embedding, rel=1e-5)
            assert llm.score(["hello there"], ("h", "t"), adapter=adapter) == pytest.approx([score], rel=1e-5)
        with pytest.raises(ConfigError, match="2 prompts, 1 options"):
            llm.generate(["a", "b"], params, options[:1])
    with pytest.raises(ConfigError, match="is no folder of an adapter"):
        LLM(str(folder), dtype="float64", adapters={"tuned": str(folder)})
