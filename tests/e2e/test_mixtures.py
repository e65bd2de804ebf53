"""A mixture of experts from a folder to a trained, served and quantised one."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from pegboard.interfaces.engine import RequestOptions
from pegboard.opened import open_any
from pegboard.plugins.load import Registry
from pegboard.types import SamplingParams
from pegboard.weights import read_folder, read_safetensors
from pegboard_engine import LLM
from pegboard_engine.graphs import usable
from pegboard_sdk.toys.folder import SMALL, write_folder

Train = Callable[..., Path]
Losses = Callable[[Path], dict[int, float]]

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen2MoeForCausalLM"],
    "model_type": "qwen2_moe",
    **SMALL,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 24,
    "norm_topk_prob": True,
    "router_aux_loss_coef": 0.01,
    "eos_token_id": 2,
}
EXPERTS = "model.layers.1.mlp.experts.3"
SETTINGS: dict[str, Any] = {"dtype": "float32", "page_size": 4, "max_model_len": 96}


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(
        tmp_path_factory.mktemp("mixture") / "model", CONFIG, text="what is two and three? five " * 9, norm_spread=0
    )


def lines(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def answers(location: Path, **options: Any) -> list[list[int]]:
    """Greedy tokens; decode steps are captured where the platform captures, and the same without."""
    source = random.Random(3)
    prompts = [[source.randrange(4, 260) for _ in range(length)] for length in (3, 17, 40, 1, 9)]
    params = [SamplingParams(temperature=0, max_tokens=12, ignore_eos=True) for _ in prompts]
    found = []
    for graphs in (False, True):
        with LLM(str(location), graphs=graphs, **SETTINGS, **options) as llm:
            for _ in range(2):
                found.append([one.outputs[0].token_ids for one in llm.generate(prompts, params)])
            captured = llm.engine._executor._runner._graphs  # type: ignore[attr-defined]
            if graphs and usable(llm.built):
                assert captured.num_replayed > 5
    assert all(tokens == found[0] for tokens in found)
    return found[0]


def test_experts_are_trained_and_served(tmp_path: Path, train: Train, losses: Losses, mixture: Path) -> None:
    run = train(tmp_path / "run", f"model={mixture}", "steps=12", "routing.balance=config", "routing.z=0.001")
    found = losses(run)
    assert found[12] < 0.9 * found[1]
    line = lines(run)[-1]
    assert {key for key in line if key.startswith("router/")} == {
        f"router/{name}" for name in ("balance", "z", "max_load", "entropy", "unused")
    }
    assert 1.5 < line["router/balance"] < 4.1  # 2 experts a token: 2 where all are used alike
    before, after = read_folder(mixture), read_folder(run / "final")
    assert {n: t.shape for n, t in before.items()} == {n: t.shape for n, t in after.items()}
    for name in (f"{EXPERTS}.gate_proj.weight", f"{EXPERTS}.down_proj.weight", "model.layers.0.mlp.gate.weight"):
        assert not torch.equal(before[name].load(), after[name].load())
    answers(run / "final")


def test_routers_may_stay(tmp_path: Path, train: Train, mixture: Path) -> None:
    run = train(tmp_path / "run", f"model={mixture}", "routing.freeze=true")
    before, after = (
        read_folder(folder)["model.layers.0.mlp.gate.weight"].load() for folder in (mixture, run / "final")
    )
    assert torch.equal(before, after)


@pytest.mark.parametrize("config", ["lora", "qlora", "dora"])
def test_adapters_on_experts(tmp_path: Path, train: Train, losses: Losses, mixture: Path, config: str) -> None:
    more = ["adapter.targets=[q_proj, gate_proj, up_proj, down_proj]", "steps=12", "optimizer.lr=0.02"]
    run = train(tmp_path / "run", f"model={mixture}", *more, config=config)
    found = losses(run)
    assert found[12] < 0.9 * found[1]
    tensors = read_safetensors(run / "final" / "adapter_model.safetensors")
    ups = [name for name in tensors if name.endswith("lora_B.weight") and ".experts." in name]
    assert len(ups) == 2 * 4 * 3
    assert all(tensors[name].load().any() for name in ups)
    if config != "lora":
        return
    merged = answers(run / "final")
    assert answers(mixture) != merged
    with LLM(str(mixture), **SETTINGS, max_adapters=1) as llm:
        llm.engine.load_adapter("trained", str(run / "final"))
        source = random.Random(3)
        prompts = [[source.randrange(4, 260) for _ in range(length)] for length in (3, 17, 40, 1, 9)]
        params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
        outputs = llm.generate(prompts, params, options=RequestOptions(adapter="trained"))
        assert [one.outputs[0].token_ids for one in outputs] == merged


@pytest.mark.slow
def test_two_processes_are_one(
    tmp_path: Path,
    mixture: Path,
    group: Callable[[int, Sequence[Sequence[str]]], None],
    arguments: Callable[..., list[str]],
    train: Train,
) -> None:
    """Replicated, sharded and split. A batch of each rank is one of the accumulation group, and the z loss a mean over all tokens."""
    exact = [f"model={mixture}", "model.dtype=float64", "steps=3", "routing.z=0.01", "optimizer.eps=1e-6"]
    meshes = {"replicate": 1, "shard": 1, "tensor": 2}
    # The balance loss is that of each forward pass: the same where the passes are.
    more = [*exact, "routing.balance=0.02"]
    one = train(tmp_path / "one", *more, "batch.accumulate=2")
    group(
        2,
        [
            arguments(tmp_path / name, *more, f"batch.accumulate={accumulate}", f"mesh.{name}=2")
            for name, accumulate in meshes.items()
        ],
    )
    for name in meshes:
        wanted, found = lines(one), lines(tmp_path / name)
        for left, right in zip(wanted, found, strict=True):
            kept = [key for key in left if key in ("loss", "grad_norm") or key.startswith("router/")]
            own = [key for key in kept if key not in ("router/max_load", "router/entropy", "router/unused")]
            assert [right[key] for key in own] == pytest.approx([left[key] for key in own], rel=1e-6)
        ours, theirs = read_folder(tmp_path / name / "final"), read_folder(one / "final")
        for key in theirs:
            torch.testing.assert_close(ours[key].load(), theirs[key].load(), rtol=0, atol=1e-9)


def test_a_dense_model_has_no_router(tmp_path: Path, arguments: Callable[..., list[str]], capsys: Any) -> None:
    from pegboard.cli import run_cli

    assert run_cli(arguments(tmp_path / "run", "routing.balance=0.1")) != 0
    assert "routing.balance is about a mixture of experts" in capsys.readouterr().err


def test_weights_are_views_of_one_storage(mixture: Path) -> None:
    registry = Registry.discover()
    built = open_any(registry, str(mixture)).build(registry, dtype="float32", platform="cpu")
    experts = built.model.model.layers[0].mlp.experts  # type: ignore[union-attr]
    stacked = experts.gate_up.stacked()
    assert stacked is not None and stacked.shape == (4, 32, 32)
    wanted = read_folder(mixture)["model.layers.0.mlp.experts.2.up_proj.weight"].load()
    assert torch.equal(stacked[2, 16:], wanted)


def test_tokens_of_experts_are_counted(mixture: Path) -> None:
    """k of each token and layer; the run that captures a step counts too."""
    found = []
    for graphs in (False, True):
        with LLM(str(mixture), graphs=graphs, count_experts=True, **SETTINGS) as llm:
            llm.generate([[5, 6, 7, 8]], SamplingParams(temperature=0, max_tokens=12, ignore_eos=True))
            found.append(llm.engine.stats().expert_tokens)
    # The last token is told, and not computed.
    assert [sum(layer) for layer in found[0]] == [2 * (4 + 11)] * 2
    assert [sum(layer) for layer in found[1]] in ([30, 30], [32, 32])
    with LLM(str(mixture), **SETTINGS) as llm:
        assert llm.engine.stats().expert_tokens == ()


@pytest.mark.parametrize("quantizer", ["int8", "int4", "nf4", "fp8"])
def test_fewer_bits_are_served(mixture: Path, quantizer: str) -> None:
    choice: Any = {"use": quantizer, "group": 8} if quantizer == "int4" else quantizer
    found = answers(mixture, quantizer=choice)
    assert len({tuple(tokens) for tokens in found}) == len(found)
