"""Steps on a device that computes apart: inputs in one copy, decode steps captured by batch size; the same tokens as on the host."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

from pegboard.build import BuiltModel, build_model
from pegboard.errors import ConfigError
from pegboard.plugins.load import Registry
from pegboard.plugins.spec import PluginSpec
from pegboard.types import SamplingParams
from pegboard_engine import EngineOptions, PagedEngine
from pegboard_engine.buckets import Buckets
from pegboard_engine.memory import plan_memory
from pegboard_engine.plugin import UNIPROC
from pegboard_sdk.toys.model import TINY, RandomFiles
from plugins.engine.tests.recorded import Counting

FAMILY = PluginSpec(
    kind="model",
    target="pegboard_sdk.toys.model:TinyFamily",
    capabilities={"architectures": ["TinyForCausalLM"], "model_types": ["tiny"]},
)
REGISTRY = Registry.of(
    {
        ("platform", "apart"): PluginSpec(kind="platform", target="plugins.engine.tests.recorded:Apart"),
        ("platform", "host"): PluginSpec(kind="platform", target="pegboard_sdk.toys.platform:HostPlatform"),
        ("attention", "static"): PluginSpec(kind="attention", target="plugins.engine.tests.recorded:StaticAttention"),
        ("model", "tiny"): FAMILY,
        ("executor", "uniproc"): UNIPROC,
    }
)


def model(platform: str) -> BuiltModel:
    files = RandomFiles(REGISTRY.create("model", "tiny"), TINY, seed=5)
    return build_model(REGISTRY, files, platform=platform, attention="static", phase="decode")


@pytest.fixture(scope="module")
def models() -> dict[str, BuiltModel]:
    return {name: model(name) for name in ("host", "apart")}


@pytest.fixture(autouse=True)
def no_shortcuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """numpy looks into the host's memory behind a recorder's back, as it cannot on a device."""
    monkeypatch.setattr("pegboard_engine.sampling.blocks.on_host", lambda values: False)


def engine_of(built: BuiltModel, **options: Any) -> PagedEngine:
    engine = PagedEngine(EngineOptions(**{"page_size": 4, "max_model_len": 64, "max_num_seqs": 6, **options}))
    engine.load(built, None, REGISTRY)
    return engine


def answers(engine: PagedEngine, **params: Any) -> list[list[int]]:
    """Requests that come one after another while others run, some with a beginning in common."""
    source = random.Random(2)
    head = [source.randrange(260) for _ in range(9)]
    found: dict[str, list[int]] = {}
    for number in range(9):
        prompt = (head if number % 3 == 0 else []) + [source.randrange(260) for _ in range(1 + 5 * (number % 4))]
        options = {"temperature": 0, "max_tokens": 6 + 3 * (number % 5), "ignore_eos": True, "seed": number, **params}
        engine.add_request(str(number), prompt, SamplingParams(**options))
        take(engine, found, steps=2)
    take(engine, found)
    return [found[str(number)] for number in range(9)]


def take(engine: PagedEngine, found: dict[str, list[int]], steps: int | None = None) -> None:
    while engine.has_unfinished() and steps != 0:
        for output in engine.step():
            assert output.error is None
            found.setdefault(output.request_id, []).extend(output.token_ids)
        steps = None if steps is None else steps - 1


@pytest.mark.parametrize("params", [{}, {"temperature": 0.9, "top_p": 0.9}, {"repetition_penalty": 1.3}], ids=str)
def test_the_tokens_are_those_of_the_host(models: dict[str, BuiltModel], params: dict[str, Any]) -> None:
    plain = answers(engine_of(models["host"]), **params)
    engine = engine_of(models["apart"])
    assert engine._executor.depth == 2  # type: ignore[union-attr]
    captured = engine._executor._runner._captured  # type: ignore[union-attr]
    # Twice: the second time most steps are replayed from the beginning.
    assert [answers(engine, **params) for _ in range(2)] == [plain] * 2
    assert captured.num_captured >= 2
    assert captured.num_replayed > 20


def test_without_graphs_they_are_too(models: dict[str, BuiltModel]) -> None:
    engine = engine_of(models["apart"], graphs=False)
    assert answers(engine) == answers(engine_of(models["host"]))
    assert engine._executor._runner._captured is None  # type: ignore[union-attr]


def test_preempted_requests_have_their_tokens(models: dict[str, BuiltModel]) -> None:
    plain = answers(engine_of(models["host"]))
    page = engine_of(models["host"]).memory.layout.page_bytes
    engine = engine_of(models["apart"], kv_memory=18 * page, watermark=0)
    assert answers(engine) == plain
    assert engine.stats().preemptions > 0


def test_a_moment_without_requests_is_used(models: dict[str, BuiltModel]) -> None:
    engine = engine_of(models["apart"])
    captured = engine._executor._runner._captured  # type: ignore[union-attr]
    while engine.prepare():
        pass
    assert captured.num_captured == 4  # 1, 2, 4, and 6 for whatever is more
    calls: list[int] = []
    assert answers(engine) == answers(engine_of(models["host"]))
    assert captured.num_captured == 4
    engine.add_request("later", [1, 2, 3], SamplingParams(max_tokens=9, temperature=0, ignore_eos=True))
    engine.step()
    assert not engine.prepare()
    hook = models["apart"].model.register_forward_pre_hook(lambda *_: calls.append(1))
    take(engine, {})
    hook.remove()
    assert not calls


@pytest.fixture
def running(models: dict[str, BuiltModel]) -> Iterator[PagedEngine]:
    engine = engine_of(models["apart"])
    while engine.prepare():
        pass
    params = SamplingParams(max_tokens=40, temperature=0, ignore_eos=True)
    for number in range(3):
        engine.add_request(str(number), [number + 1] * 6, params)
    for _ in range(3):
        engine.step()
    yield engine
    engine.close()


def test_a_captured_step_asks_the_device_for_a_few_things_and_waits_for_none(running: PagedEngine) -> None:
    with Counting() as counted:
        for _ in range(8):
            running.step()
    waits = [name for name in counted.calls if any(w in name for w in ("local_scalar", "nonzero", "unique", "item"))]
    assert not waits
    per_step = {name: count / 8 for name, count in counted.calls.items()}
    # The block of inputs and its copy, a change of the block table every fourth step, the told ids on their way back.
    assert sum(per_step.values()) < 14, per_step
    assert not any("mm" in name or "linear" in name for name in per_step)


def test_sizes_are_captured_when_their_turn_comes() -> None:
    buckets = Buckets.up_to(20, lambda count: count if count < 3 else -(-count // 8) * 8)
    assert buckets.sizes == [1, 2, 8, 16, 20]
    assert [buckets.size(count) for count in (1, 3, 17, 20, 21)] == [1, 8, 20, 20, None]
    assert buckets.serving(5) is None and buckets.due() is None
    buckets.serving(5), buckets.serving(6)
    assert buckets.due() == 8
    buckets.done.add(8)
    assert buckets.serving(1) == 8
    for _ in range(4):
        buckets.serving(12)
    assert buckets.due() is None  # the last one is not long ago
    for _ in range(4):
        assert buckets.serving(12) is None
    assert buckets.due() == 16
    buckets.done.add(16)
    for _ in range(14):
        assert buckets.serving(1) == 8
        assert buckets.due() is None
    for _ in range(3):
        buckets.serving(2)
    assert buckets.due() is None
    while (due := buckets.due()) is None:
        assert buckets.serving(1) == 8
    assert due == 1
    assert buckets.next() == 1
    buckets.done.add(1)
    assert [buckets.next(), buckets.done.add(2), buckets.next()] == [2, None, 20]


def test_a_device_of_its_own_gives_most_of_its_memory(models: dict[str, BuiltModel]) -> None:
    long = {"page_size": 4, "max_model_len": None, "max_num_seqs": 2048, "max_num_tokens": 2048}
    plan, host = (plan_memory(models[name], EngineOptions(**long)) for name in ("apart", "host"))
    assert host.bytes < plan.bytes < 0.9 * (plan.available - plan.workspace - plan.graphs)
    sizes = [1 << bit for bit in range(12)]
    assert plan.graphs == sum(sizes) * 260 * 8
    assert host.graphs == 0
    assert "graphs" in plan.table()
    assert "graphs" not in plan_memory(models["apart"], EngineOptions(graphs=False, **long)).table()


def test_what_does_not_fit_is_told_with_what_would(
    models: dict[str, BuiltModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pegboard_engine.memory._available", lambda built: 40 << 20)
    with pytest.raises(ConfigError, match="do not fit") as caught:
        plan_memory(models["apart"], EngineOptions(kv_memory="2GiB", max_num_seqs=2048, max_num_tokens=2048))
    lines = caught.value.message.splitlines()
    assert [line.split()[0] for line in lines[1:5]] == ["weights", "workspace", "graphs", "cache"]
    assert "as it is" in lines[-3]
    assert "int8" in lines[-2]
    assert "int4" in lines[-1]
    assert "tokens" in lines[-1]
    assert "kv_memory" in str(caught.value.fix)
    monkeypatch.setattr("pegboard_engine.memory._available", lambda built: 1000)
    with pytest.raises(ConfigError, match="do not fit") as caught:
        plan_memory(models["apart"], EngineOptions())
    assert "quantizer" in str(caught.value.fix)
