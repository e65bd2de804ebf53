"""What a step of the engine gives a device and waits for, launch by launch: a table for each family, with a reason for each row.

Models compute on a simulated device with these kernels, which are counted and not run. Numbers of a layer are the difference between two
models, one of them twice as deep; the others are those of the step, however many layers there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, ClassVar

import pytest
import torch

from backends.triton.tests.counting import kernels_on
from pegboard.build import BuiltModel, build_model
from pegboard.plugins.load import Registry
from pegboard.plugins.spec import PluginSpec
from pegboard.types import SamplingParams, StepPlan
from pegboard_engine import EngineOptions, PagedEngine
from pegboard_engine.plugin import UNIPROC
from pegboard_sdk.simulated import Counted, SimulatedDevice, SimulatedPlatform
from pegboard_sdk.simulated.counted import by_layer, difference
from pegboard_sdk.toys.model import RandomFiles
from pegboard_triton import linear_small
from pegboard_triton.plugin import ATTENTION
from pegboard_triton.table import replacements

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="launches are those of Triton's interpreter")

DEVICE = SimulatedDevice(dry=True)


class Platform(SimulatedPlatform):
    simulated: ClassVar[SimulatedDevice] = DEVICE

    def kernels(self, phase: Any, dtype: torch.dtype, index: int = 0) -> Mapping[str, Callable[..., Any]]:
        return replacements(phase, dtype)


FAMILIES = {name: import_module(f"pegboard_{name}.plugin").SPEC for name in ("llama", "qwen", "gemma")}
REGISTRY = Registry.of(
    {
        ("platform", "simulated"): PluginSpec(kind="platform", target=f"{__name__}:Platform"),
        ("attention", "triton"): ATTENTION,
        ("executor", "uniproc"): UNIPROC,
        **{("model", name): spec for name, spec in FAMILIES.items()},
    }
)
SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "norm_topk_prob": True}
WINDOW = {"query_pre_attn_scalar": 16, "sliding_window": 16}

Counts = dict[str, int]

DENSE: Counts = {
    "rms_norm_forward": 2,  # each with the addition in front of it, but for the first one
    "mm": 4,  # q, k and v as one; o; gate and up as one; down
    "gated_forward": 1,
}
DECODES: Counts = {"decode_kernel": 1}  # norms of heads, rotation, the write to the cache and attention in one
PROMPTS: Counts = {
    "prepare_kernel": 1,  # norms of heads, rotation and the write to the cache
    "prefill_kernel": 1,
}
MIXED: Counts = {
    **PROMPTS,
    "decode_kernel": 1,  # those that decode, beside a prompt
}
EDGES: Counts = {
    "embedding": 1,
    "index_select": 1,  # angles: cos and sin from one table
    "rms_norm_forward": 1,  # the last one, with the last addition
    "mm": 1,  # the head
    "_sample": 1,
    "tell": 1,  # keeps each slot's last token and marks logits that are not finite
}
ROWS: Counts = {"index_select": 2}  # of both summands, the rows to sample from, before the last norm
UNKNOWN: Counts = {"fill_in": 1}  # tokens that the step before sampled, which the host does not know yet
TOLD: Counts = {"to the host": 1}
FED: Counts = {"to the device": 2}  # ids, positions and slots; the attention's plan


@dataclass(frozen=True)
class Family:
    """layer: launches of `layers` layers in every kind of step, beside attention; experts: by kind, of its mixture. once: of a step beside
    those of all families. summands: whether the last norm adds.
    """

    config: dict[str, Any]
    layer: Counts
    layers: int = 1
    prompt: Counts = field(default_factory=dict)
    decode: Counts = field(default_factory=dict)
    once: Counts = field(default_factory=dict)
    summands: int = 2

    def expected(self, attention: Counts, kind: Counts, *once: Counts) -> dict[str, tuple[int, int]]:
        """Return launches and copies by name as `by_layer` does."""
        layer = added(self.layer, kind, {name: self.layers * count for name, count in attention.items()})
        beside = added(EDGES, self.once, *once)
        return {name: (layer.get(name, 0), beside.get(name, 0)) for name in {*layer, *beside}}


def added(*parts: Counts) -> Counts:
    """Return the sums by name."""
    return {name: sum(part.get(name, 0) for part in parts) for name in {name for part in parts for name in part}}


TABLE = {
    "llama": Family({"architectures": ["LlamaForCausalLM"], "model_type": "llama", **SIZES}, DENSE),
    "qwen3": Family({"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", **SIZES}, DENSE),
    "qwen3-moe": Family(
        {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", **SIZES, **EXPERTS},
        {
            "rms_norm_forward": 2,
            "mm": 3,  # q, k and v as one; o; the router
            "choose_experts": 1,
        },
        prompt={"gate_up": 1, "down": 1, "combine": 1},
        decode={"single_gate_up": 1, "single_down": 1},
    ),
    # Two layers: one that slides and one that does not.
    "gemma2": Family(
        {"architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", **SIZES, **WINDOW},
        {
            "rms_norm_forward": 8,  # before and behind each half
            "add": 4,  # norms that count from 1 add nothing in front of them
            "mm": 8,
            "gated_forward": 2,
        },
        layers=2,
        once={"mul": 2, "div": 1, "tanh": 1},  # embeddings are scaled; the head's logits capped
        summands=1,
    ),
}


@pytest.fixture(scope="module", autouse=True)
def counted() -> Iterator[None]:
    with DEVICE, kernels_on(DEVICE):
        yield


@pytest.fixture(autouse=True)
def known_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside of graphs, a product of few rows runs once to be compiled, and then never again: let that be over."""

    class Everything(set[Any]):
        def __contains__(self, item: object) -> bool:
            return True

    monkeypatch.setattr(linear_small, "_compiled", Everything())


class Run:
    """An engine whose steps are counted one by one."""

    def __init__(self, name: str, times: int, *, graphs: bool = False) -> None:
        family = TABLE[name]
        config = {**family.config, "num_hidden_layers": times * family.layers}
        built: BuiltModel = build_model(
            REGISTRY,
            RandomFiles(REGISTRY.create("model", name.partition("-")[0].rstrip("23")), config),
            platform="simulated",
            attention="triton",
            dtype="bfloat16",
            phase="decode",
        )
        options = {"page_size": 16, "max_model_len": 64, "max_num_seqs": 2, "max_num_tokens": 24, "kv_memory": "1MiB"}
        self.engine = PagedEngine(EngineOptions(**options, graphs=graphs))
        self.engine.load(built, None, REGISTRY)
        self.steps: list[tuple[StepPlan, Counted]] = []
        runner: Any = self.engine._executor._runner  # type: ignore[union-attr]
        start = runner.start

        def counting(plan: StepPlan) -> Any:
            with DEVICE.count() as found:
                started = start(plan)
            self.steps.append((plan, found))
            return started

        runner.start = counting

    def add(self, request: str, tokens: int = 8, temperature: float = 0) -> None:
        """Queue a prompt of ten tokens."""
        params = SamplingParams(max_tokens=tokens, temperature=temperature, ignore_eos=True, seed=1)
        self.engine.add_request(request, list(range(2, 12)), params)

    def step(self, times: int = 1) -> None:
        """Take steps, in which nothing may fail."""
        for _ in range(times):
            assert not [output for output in self.engine.step() if output.error]

    def last(self) -> Counted:
        """Return the numbers of the step that was given last, which has to have waited for nothing."""
        found = self.steps[-1][1]
        assert not found.waits
        return found


def compare(family: Family, found: list[Counted], wanted: dict[str, tuple[int, int]]) -> None:
    assert not list(difference(by_layer(*found, layers=family.layers), wanted))


@pytest.mark.parametrize("name", TABLE)
def test_a_prompt_and_a_mixed_step(name: str) -> None:
    family = TABLE[name]
    rows = {"index_select": family.summands}
    prompts, decodes, mixed = [], [], []
    for times in (1, 2):
        run = Run(name, times)
        run.add("first")
        run.step()
        # Two steps are in flight: the second one was given before the first one was read.
        assert [plan.num_decodes for plan, _ in run.steps] == [0, 1]
        prompts.append(run.steps[0][1])
        decodes.append(run.last())
        run.add("second", temperature=0.7)
        run.step()
        plan, _ = run.steps[-1]
        assert (plan.num_decodes, len(plan.slots)) == (1, 2)
        mixed.append(run.last())
    changed = {"index_copy_": 1}  # pages of a new request, in the block table
    tiles = {"to the device": 1}  # tiles of queries
    compare(family, prompts, family.expected(PROMPTS, family.prompt, rows, changed, FED, tiles, TOLD))
    compare(family, decodes, family.expected(DECODES, family.decode, UNKNOWN, FED, TOLD))
    sampled = {"to the device": 1, "copy_": 1}  # temperatures and uniform numbers; what was filled in goes to its place
    wanted = family.expected(MIXED, family.prompt, rows, changed, UNKNOWN, FED, tiles, sampled, TOLD)
    compare(family, mixed, wanted)


@pytest.mark.parametrize("name", TABLE)
def test_captured_steps(name: str) -> None:
    """What is in the graphs of one and of two sequences, and what the host gives beside one."""
    family = TABLE[name]
    captured: list[list[Counted]] = []
    for times in (1, 2):
        before = len(DEVICE.graphs)
        run = Run(name, times, graphs=True)
        while run.engine.prepare():
            pass
        captured.append([graph.counted for graph in DEVICE.graphs[before:]])
        run.add("first")
        run.step(3)
        found = run.last()
        # One copy each of inputs, plan and result.
        assert (found.launches, found.copies) == ({"graph": 1}, {"to the device": 2, "to the host": 1})
        run.engine.abort("first")
        run.add("second", temperature=0.7)
        run.step(3)
        found = run.last()
        # Drawn from the logits, behind the graph; temperatures and uniform numbers are one more copy.
        assert found.launches == {"graph": 1, "_sample": 1, "tell": 1}
        assert found.copies == {"to the device": 3, "to the host": 1}
    single, double = zip(*captured, strict=True)
    wanted = family.expected(DECODES, family.decode, UNKNOWN)
    compare(family, list(double), wanted)
    # One row is multiplied by a kernel that reads a matrix at the speed of memory.
    wanted["few_rows"] = wanted.pop("mm")
    compare(family, list(single), wanted)


def test_the_host_waits_for_nothing_while_the_device_stands_still() -> None:
    """The next step is given to the device before the one before is read: wherever the host waits, the device has work."""
    run = Run("llama", 1, graphs=True)
    while run.engine.prepare():
        pass
    run.add("first", tokens=30)
    run.add("second", tokens=30)
    run.step(4)
    with DEVICE.count() as found:
        run.step(12)
    assert found.waits == {"event": 12}
    # Behind each step that is waited for lie the three copies and the graph of the next one; once, both sequences get a page.
    assert found.launches == {"graph": 12, "index_copy_": 1}
    assert min(found.behind) == 4, found.behind
    # A request that ends, and one that comes, let the device have work too.
    run.engine.abort("second")
    run.add("third", tokens=3)
    with DEVICE.count() as found:
        run.step(10)
    assert set(found.waits) == {"event"}
    assert min(found.behind) >= 4, found.behind
