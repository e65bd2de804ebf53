"""Captured steps beyond plain decodes: rows with adapters, several tokens a sequence; the same tokens as on the host without graphs."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pegboard.build import BuiltModel, build_model
from pegboard.interfaces.engine import RequestOptions
from pegboard.interfaces.platform import Phase
from pegboard.ops import registered
from pegboard.plugins.load import Registry
from pegboard.plugins.spec import PluginSpec
from pegboard.types import SamplingParams
from pegboard_engine import EngineOptions, PagedEngine
from pegboard_engine.captured import CapturedSteps, Kind
from pegboard_engine.draft import DraftOptions, DraftSpeculator
from pegboard_engine.plugin import UNIPROC
from pegboard_lora import LoraAdapter
from pegboard_lora.options import LoraOptions
from pegboard_lora.plugin import LORA
from pegboard_sdk.toys.model import TINY, RandomFiles
from plugins.engine.tests.recorded import Apart
from plugins.engine.tests.test_captured import FAMILY, take
from plugins.engine.tests.test_proposals import Told

LIBRARY = torch.library.Library("pegboard_engine_tests", "FRAGMENT")
LIBRARY.define(
    "add_by_table(Tensor(a!) out, Tensor x, Tensor slots, Tensor table, int[] members, int[] starts, int[] widths) -> ()"
)


def lying_at(address: int, *shape: int) -> Tensor:
    """Return the float64 numbers at an address."""
    pointer = ctypes.cast(address, ctypes.POINTER(ctypes.c_double))
    return torch.from_numpy(np.ctypeslib.as_array(pointer, shape))


def add_by_table(
    out: Tensor, x: Tensor, slots: Tensor, table: Tensor, members: list[int], starts: list[int], widths: list[int]
) -> None:
    """What `lora_add_` says, from the numbers that a device has: each row's slot, and the table of where factors lie."""
    for row, slot in enumerate(slots.tolist()):
        record = table[slot].tolist() if slot >= 0 else [0, 0]
        if not record[1]:
            continue
        inner = lying_at(record[0], record[1], x.shape[1]) @ x[row]
        for member, start in zip(members, starts, strict=True):
            address, first, ranks = record[2 + 3 * member : 5 + 3 * member]
            if ranks:
                own = lying_at(address, ranks, widths[member])
                out[row, start : start + widths[member]] += inner[first : first + ranks] @ own


LIBRARY.impl("add_by_table", add_by_table, "CPU")


def lora_add_(out: Tensor, x: Tensor, rows: Any, bank: Any, members: Sequence[int], starts: Sequence[int]) -> Tensor:
    if bank.table is not None:
        where = rows.on(x.device), bank.table
        torch.ops.pegboard_engine_tests.add_by_table(out, x, *where, list(members), list(starts), list(bank.outputs))
    return out


class Adapting(Apart):
    """A device that has the op of adapters, once somebody registers it."""

    def kernels(self, phase: Phase, dtype: torch.dtype, index: int = 0) -> Mapping[str, Callable[..., Any]]:
        return {"lora_add_": lora_add_} if "lora_add_" in registered() else {}


class OwnDraft(DraftSpeculator):
    """A draft model that is the model itself, or another one: `seed`."""

    seed = 5

    def __init__(self) -> None:
        super().__init__(DraftOptions(model="none", most=3))

    def load(self, built: BuiltModel, tokenizer: object, registry: Registry) -> None:
        self.use(model(built.platform_name, self.seed))


REGISTRY = Registry.of(
    {
        ("platform", "apart"): PluginSpec(kind="platform", target=f"{__name__}:Adapting"),
        ("platform", "bare"): PluginSpec(kind="platform", target="plugins.engine.tests.recorded:Apart"),
        ("platform", "host"): PluginSpec(kind="platform", target="pegboard_sdk.toys.platform:HostPlatform"),
        ("attention", "static"): PluginSpec(kind="attention", target="plugins.engine.tests.recorded:StaticAttention"),
        ("model", "tiny"): FAMILY,
        ("executor", "uniproc"): UNIPROC,
        ("adapter", "lora"): LORA,
        ("speculator", "told"): PluginSpec(kind="speculator", target="plugins.engine.tests.test_proposals:Told"),
        ("speculator", "own"): PluginSpec(kind="speculator", target=f"{__name__}:OwnDraft"),
    }
)


def model(platform: str, seed: int = 5, adapter: LoraAdapter | None = None) -> BuiltModel:
    files = RandomFiles(REGISTRY.create("model", "tiny"), TINY, seed=seed)
    return build_model(REGISTRY, files, platform=platform, attention="static", phase="decode", adapter=adapter)


def engine_of(platform: str, **options: Any) -> PagedEngine:
    engine = PagedEngine(EngineOptions(**{"page_size": 4, "max_model_len": 64, "max_num_seqs": 6, **options}))
    engine.load(model(platform), None, REGISTRY)
    return engine


def captured_of(engine: PagedEngine) -> CapturedSteps:
    found = engine._executor._runner._captured  # type: ignore[union-attr]
    assert found is not None
    return found


@pytest.fixture(autouse=True)
def no_shortcuts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pegboard_engine.sampling.blocks.on_host", lambda values: False)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Adapters with random values; "first" and "second" are of the same layers, "more" of others too."""
    found: dict[str, str] = {}
    choices: dict[str, dict[str, Any]] = {
        "first": {"rank": 3, "alpha": 9, "targets": ["q_proj", "v_proj", "down_proj"]},
        "second": {"rank": 5, "alpha": 20, "targets": ["q_proj", "v_proj", "down_proj"]},
        "more": {"rank": 2, "alpha": 8, "targets": "all-linear"},
    }
    for seed, (name, options) in enumerate(choices.items()):
        adapter = LoraAdapter(LoraOptions(dtype="float64", **options))
        built = model("host", adapter=adapter)
        generator = torch.Generator().manual_seed(seed)
        for tensor in adapter.tensors(built.model).values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=torch.float64) / 2)
        folder: Path = tmp_path_factory.mktemp("adapters") / name
        folder.mkdir()
        (folder / "adapter_config.json").write_text(json.dumps(adapter.config("toy")))
        save_file(dict(adapter.tensors(built.model)), folder / "adapter_model.safetensors")
        found[name] = str(folder)
    return found


def answers(engine: PagedEngine, adapters: Sequence[str | None], **params: Any) -> list[list[int]]:
    """One request for each entry, which come while others run."""
    found: dict[str, list[int]] = {}
    for number, adapter in enumerate(adapters):
        prompt = [(7 * number + place * place) % 250 for place in range(3 + 4 * (number % 3))]
        options = {"temperature": 0, "max_tokens": 10 + number % 4, "ignore_eos": True, "seed": number, **params}
        engine.add_request(str(number), prompt, SamplingParams(**options), RequestOptions(adapter=adapter))
        take(engine, found, steps=1)
    take(engine, found)
    return [found[str(number)] for number in range(len(adapters))]


MIXED = ("a", None, "b", "a", "b", None, "b")


def test_steps_with_adapters_are_captured_once_whatever_slots_hold(folders: dict[str, str]) -> None:
    plain, engine = engine_of("host"), engine_of("apart")
    steps = captured_of(engine)
    for one in (plain, engine):
        one.load_adapter("a", folders["first"])
        one.load_adapter("b", folders["second"])
    wanted = answers(plain, MIXED)
    assert answers(engine, MIXED) == wanted
    assert answers(engine, MIXED) == wanted
    assert steps._kinds[Kind(1, True)].graphs
    while engine.prepare():
        pass
    made, replayed = steps.num_captured, steps.num_replayed
    calls: list[int] = []
    hook = engine._executor._runner._built.model.register_forward_pre_hook(lambda *_: calls.append(1))  # type: ignore[union-attr]
    for one in (plain, engine):
        one.unload_adapter("a")
        one.unload_adapter("b")
        answers(one, [None] * 2)
        one.load_adapter("b", folders["first"])
        one.load_adapter("a", folders["second"])
    turned = answers(plain, MIXED)
    assert turned != wanted
    assert answers(engine, MIXED) == turned
    hook.remove()
    assert len(calls) <= len(MIXED) + 2, "only prompts are run without a graph"
    assert steps.num_captured == made and steps.num_replayed - replayed > 15


def test_other_layers_are_captured_anew_and_none_is_as_before(folders: dict[str, str]) -> None:
    plain, engine = engine_of("host"), engine_of("apart")
    steps = captured_of(engine)
    without = answers(plain, [None] * 5)
    for one in (plain, engine):
        one.load_adapter("a", folders["first"])
    assert answers(engine, ["a"] * 5) == answers(plain, ["a"] * 5)
    while engine.prepare():
        pass
    before = dict(steps._kinds[Kind(1, True)].graphs)
    for one in (plain, engine):
        one.load_adapter("b", folders["more"])
    assert answers(engine, MIXED) == answers(plain, MIXED)
    while engine.prepare():
        pass
    after = steps._kinds[Kind(1, True)].graphs
    assert before.keys() == after.keys() and not set(map(id, before.values())) & set(map(id, after.values()))
    assert answers(engine, [None] * 5) == without


def test_without_the_op_they_run_without_graphs(folders: dict[str, str]) -> None:
    plain, engine = engine_of("host"), engine_of("bare")
    for one in (plain, engine):
        one.load_adapter("a", folders["first"])
        one.load_adapter("b", folders["second"])
    assert answers(engine, MIXED) == answers(plain, MIXED)
    assert Kind(1, True) not in captured_of(engine)._kinds


@pytest.mark.parametrize(
    "params", [{}, {"temperature": 0.9, "top_p": 0.9}, {"repetition_penalty": 1.3}, {"logprobs": 1}], ids=str
)
def test_checks_of_proposals_are_captured(
    folders: dict[str, str], params: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = (None, "a", None, "b", None) if not params else (None,) * 5
    plain, engine = engine_of("host"), engine_of("apart", speculator="told")
    for one in (plain, engine):
        one.load_adapter("a", folders["first"])
        one.load_adapter("b", folders["more"])
    wanted = answers(plain, asked, **params)
    prompts = [[(7 * number + place * place) % 250 for place in range(3 + 4 * (number % 3))] for number in range(5)]
    monkeypatch.setattr(Told, "continuations", {tuple(p): w for p, w in zip(prompts, wanted, strict=True)})
    monkeypatch.setattr(Told, "spoil", 3)
    steps = captured_of(engine)
    while engine.prepare():
        pass
    assert {kind.queries for kind in steps._kinds} == {1, 1 + Told.most}
    replayed = steps.num_replayed
    assert answers(engine, asked, **params) == wanted
    stats = engine.stats()
    assert 0 < stats.accepted < stats.proposed
    # All but the prompts, some of which are short enough for one too.
    assert stats.steps - len(asked) <= steps.num_replayed - replayed <= stats.steps


@pytest.mark.parametrize("seed", [5, 6])
def test_draft_models_take_captured_steps(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = answers(engine_of("host"), [None] * 5)
    monkeypatch.setattr(OwnDraft, "seed", seed)
    engine = engine_of("apart", speculator="own")
    draft = engine._proposals._speculator._runner  # type: ignore[union-attr]
    while engine.prepare() | draft.prepare():
        pass
    assert answers(engine, [None] * 5) == wanted
    stats = engine.stats()
    assert stats.accepted == stats.proposed > 0 if seed == 5 else stats.accepted < stats.proposed
    assert {kind.queries for kind, sizes in draft._captured._kinds.items() if sizes.graphs} == {1, 2}
    assert draft._captured.num_replayed > 0.7 * engine._proposals._speculator._steps  # type: ignore[union-attr]


def test_backends_that_plan_for_one_token_check_without_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plugins.engine.tests.recorded.StaticAttention.static_queries", 1)
    wanted = answers(engine_of("host"), [None] * 5)
    engine = engine_of("apart", speculator="own")
    while engine.prepare():
        pass
    assert answers(engine, [None] * 5) == wanted
    assert set(captured_of(engine)._kinds) == {Kind(1, False)}
