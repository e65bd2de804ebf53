"""`peg run grpo` and `peg run ppo` on a toy whose reward is easy to raise: the share of the letter "e" in an answer."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from pegboard.cli import run_cli
from pegboard.weights import read_folder, read_safetensors, write_safetensors

Group = Callable[[int, Sequence[Sequence[str]]], None]

REWARD = """
def share(answers, letter="e"):
    return [answer.text.count(letter) / max(len(answer.token_ids), 1) for answer in answers]


def broken(answers):
    return [float("nan")] * len(answers)
"""
TOY = [
    "model.dtype=float32",
    "model.platform=cpu",
    "loggers=[jsonl]",
    "batch.size=32",
    "batch.accumulate=1",
    "batch.length=64",
    "rollout.prompts=4",
    "rollout.answers=8",
    "rollout.max_tokens=8",
    "schedule.warmup=0",
]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sums: list[dict[str, str]]) -> Path:
    """A folder with prompts and a module of rewards, which is the working directory."""
    (tmp_path / "letters.py").write_text(REWARD)
    rows = [{"prompt": row["instruction"]} for row in sums]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def other_toy(toy_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the same tokenizer with other weights."""
    path = tmp_path_factory.mktemp("other") / "model"
    shutil.copytree(toy_model, path)
    tensors = {name: tensor.load() for name, tensor in read_folder(toy_model).items()}
    generator = torch.Generator().manual_seed(5)
    changed = {
        name: t + 0.2 * torch.randn(t.shape, generator=generator) if t.dim() == 2 else t for name, t in tensors.items()
    }
    (path / "model.safetensors").unlink()
    write_safetensors(path / "model.safetensors", changed.items())
    return path


def run(recipe: str, config: str, model: Path, output: str, *more: str) -> int:
    paths = [f"model={model}", "data.path=prompts.jsonl", f"output={output}"]
    return run_cli(["run", recipe, "--config", config, *paths, *TOY, 'rewards=[{use: "letters:share"}]', *more])


def lines(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(output, "metrics.jsonl").read_text().splitlines()]


def column(output: str, name: str) -> list[float]:
    return [line[name] for line in lines(output) if name in line]


@pytest.mark.parametrize("config", [pytest.param("full", marks=pytest.mark.slow), "lora"])
def test_the_reward_rises(place: Path, toy_model: Path, config: str) -> None:
    rate = {"full": 0.01, "lora": 0.03}[config]
    assert run("grpo", config, toy_model, "run", "steps=20", f"optimizer.lr={rate}") == 0
    rewards = column("run", "reward")
    assert len(rewards) == 20
    first, last = sum(rewards[:5]) / 5, sum(rewards[-5:]) / 5
    assert last > max(3 * first, 0.3), rewards
    assert max(column("run", "sampling_gap")) < 1e-4
    final = {path.name for path in Path("run", "final").iterdir()}
    assert ("adapter_model.safetensors" if config == "lora" else "model.safetensors") in final


def weights(output: str) -> dict[str, torch.Tensor]:
    final = Path(output, "final")
    adapter = final / "adapter_model.safetensors"
    found = read_safetensors(adapter) if adapter.is_file() else read_folder(final)
    return {name: tensor.load() for name, tensor in found.items()}


@pytest.mark.parametrize("recipe", ["grpo", "ppo"])
def test_a_run_resumed_inside_a_rollout_is_the_run_that_went_on(place: Path, toy_model: Path, recipe: str) -> None:
    more = ["rollout.epochs=2", "rollout.prompts=2", "batch.size=8", "optimizer.lr=0.003", "checkpoint.every=3"]
    own = {"grpo": "objective.beta=0.05", "ppo": "objective.kl_target=0.01"}[recipe]
    more += ["reference={}", own]
    assert run(recipe, "full", toy_model, "whole", "steps=7", *more) == 0
    assert run(recipe, "full", toy_model, "part", "steps=3", *more) == 0
    assert run(recipe, "full", toy_model, "part", "steps=7", "resume=auto", *more) == 0
    whole, part = weights("whole"), weights("part")
    assert all(torch.equal(whole[name], part[name]) for name in whole)
    assert [line["loss"] for line in lines("whole")] == [line["loss"] for line in lines("part")]


@pytest.mark.parametrize(("config", "more"), [("full", ["reference={}"]), ("lora", [])])
def test_the_policy_moves_away_from_its_reference(place: Path, toy_model: Path, config: str, more: list[str]) -> None:
    more = [*more, "objective.beta=0.01", "optimizer.lr=0.01", "steps=4", "data.validation=4", "validation.every=2"]
    assert run("grpo", config, toy_model, "run", *more) == 0
    divergences = column("run", "kl")
    assert divergences[0] == pytest.approx(0, abs=1e-6)
    assert divergences[-1] > 1e-4
    assert len(column("run", "validation/reward")) == 3


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["rewards=[]"], "there is no reward"),
        (["batch.size=24"], "they do not divide"),
        (["rollout.answers=1", "batch.size=4"], "an answer alone"),
        (["objective.beta=0.1"], "no reference"),
        (["objective.temperature=0.5"], "rollout.temperature is 1.0"),
        (["mesh.shard=2"], "processes"),
        (["rollout.engine.executor=multiproc"], "would not see a change"),
        (['rewards=[{use: "letters:broken"}]'], "gave nan"),
        (["data.format=text", "data.format.field=prompt"], "the data are not prompts"),
        (["rollout.max_tokens=60", "objective.max_tokens=60"], "no further prompt has at most 4 tokens"),
    ],
)
def test_mistakes_are_told(
    place: Path, toy_model: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert run("grpo", "full", toy_model, "run", "steps=1", *more) != 0
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("config", [pytest.param("full", marks=pytest.mark.slow), "lora"])
def test_the_reward_rises_with_a_value_model(place: Path, toy_model: Path, config: str) -> None:
    rate, steps = {"full": (0.005, 80), "lora": (0.02, 36)}[config]
    more = ["rollout.epochs=2", "objective.kl=0.01", "checkpoint.keep=1", f"optimizer.lr={rate}"]
    assert run("ppo", config, toy_model, "run", f"steps={steps}", *more) == 0
    rewards = [value for value in column("run", "reward") if value is not None][::2]
    first, last = sum(rewards[:5]) / 5, sum(rewards[-5:]) / 5
    assert last > max(3 * first, 0.3), rewards
    assert column("run", "kl")[-1] > 0
    losses = column("run", "value_loss")
    assert all(math.isfinite(loss) for loss in losses)
    value = {path.name for path in next(Path("run").glob("step-*/value")).iterdir()}
    assert ("adapter_model.safetensors" if config == "lora" else "model.safetensors") in value


def test_a_model_gives_rewards(place: Path, toy_model: Path) -> None:
    pairs = [{"prompt": "what?", "chosen": "e" * (3 + i % 4), "rejected": "no " * (1 + i % 3)} for i in range(16)]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    small = ["model.dtype=float32", "model.platform=cpu", "loggers=[jsonl]", "batch.length=64", "steps=6"]
    judge = ["run", "reward", "--config", "lora", f"model={toy_model}", "data.path=pairs.jsonl", "output=judge"]
    assert run_cli([*judge, *small, "optimizer.lr=0.01"]) == 0
    more = [
        "rewards=[]",
        "reward=judge/final",
        "steps=4",
        "optimizer.lr=0.005",
        "data.validation=4",
        "validation.every=4",
    ]
    assert run("ppo", "lora", toy_model, "run", *more) == 0
    assert column("run", "reward/model") == column("run", "reward")
    assert len(column("run", "validation/reward")) == 2


OWN = ["rollout.max_tokens=12", "batch.pack=false", "batch.size=6", "batch.length=64", "objective.weight=1"]


def distill(student: Path, teacher: Path, rows: Path, output: str, *more: str) -> int:
    paths = [f"model={student}", f"teacher={teacher}", f"data.path={rows}", f"output={output}"]
    small = [
        "model.dtype=float32",
        "model.platform=cpu",
        "loggers=[jsonl]",
        "data.format=instruct",
        "schedule.warmup=0",
    ]
    return run_cli(["run", "distill", "--config", "lora", *paths, *small, *OWN, *more])


def test_a_student_learns_from_its_own_answers(place: Path, toy_model: Path, other_toy: Path, data: Path) -> None:
    more = ["objective.divergence=reverse_kl", "optimizer.lr=0.02", "steps=12"]
    assert distill(toy_model, other_toy, data, "run", *more, "rollout.share=1") == 0
    divergences = column("run", "divergence")
    assert divergences[-1] < 0.8 * divergences[0]
    assert set(column("run", "own_batches")) == {1.0}
    assert all(1 <= tokens <= 12 for tokens in column("run", "answer_tokens"))


def test_on_policy_distillation_resumes_and_mixes(place: Path, toy_model: Path, other_toy: Path, data: Path) -> None:
    more = ["optimizer.lr=0.01", "rollout.share=0.5", "schedule.use=constant"]
    assert distill(toy_model, other_toy, data, "whole", "steps=8", *more) == 0
    assert distill(toy_model, other_toy, data, "part", "steps=3", *more) == 0
    assert distill(toy_model, other_toy, data, "part", "steps=8", "resume=auto", *more) == 0
    assert set(column("whole", "own_batches")) == {0.0, 1.0}
    whole, part = weights("whole"), weights("part")
    assert all(torch.equal(whole[name], part[name]) for name in whole)


def test_own_answers_need_batches_with_room(
    place: Path, toy_model: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert distill(toy_model, toy_model, data, "run", "steps=1", "rollout.share=1", "batch.pack=true") != 0
    assert "set batch.pack=false" in capsys.readouterr().err


def words(recipe: str, config: str, model: Path, output: str, *more: str) -> list[str]:
    paths = [f"model={model}", "data.path=prompts.jsonl", f"output={output}"]
    return ["run", recipe, "--config", config, *paths, *TOY, 'rewards=[{use: "letters:share"}]', *more]


def same_run(one: str, other: str) -> None:
    for name in ("reward", "answer_tokens", "loss", "grad_norm", "logp"):
        assert column(other, name) == pytest.approx(column(one, name), rel=1e-4, abs=1e-5), name
    ours, theirs = weights(other), weights(one)
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=1e-4)


def test_an_engine_over_weights_that_are_divided(place: Path, toy_model: Path, group: Group) -> None:
    """Each process answers with a copy that it gathers: the answers, and what is learned from them, are those of one process."""
    more = ["steps=2", "optimizer.lr=0.01", "optimizer.eps=1e-4", "batch.size=8", "rollout.prompts=2"]
    more += ["data.validation=3", "validation.every=2"]
    assert run_cli(words("grpo", "full", toy_model, "one", *more, "batch.accumulate=2")) == 0
    group(2, [words("grpo", "full", toy_model, "shard", *more, "mesh.shard=2")])
    same_run("one", "shard")
    assert column("shard", "validation/reward") == pytest.approx(column("one", "validation/reward"), rel=1e-4)


@pytest.mark.slow
def test_adapters_values_and_rewards_that_are_divided(place: Path, toy_model: Path, group: Group) -> None:
    pairs = [{"prompt": "what?", "chosen": "e" * (3 + i % 4), "rejected": "no " * (1 + i % 3)} for i in range(16)]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    judge = ["run", "reward", "--config", "full", f"model={toy_model}", "data.path=pairs.jsonl", "output=judge"]
    small = ["model.dtype=float32", "model.platform=cpu", "loggers=[jsonl]", "batch.length=64", "steps=2"]
    assert run_cli([*judge, *small]) == 0
    more = ["steps=4", "optimizer.lr=0.01", "optimizer.eps=1e-4", "batch.size=16"]
    judged = ["rewards=[]", "reward=judge/final", "data.validation=3", "validation.every=2"]
    kinds = {
        "grpo-full": ("grpo", "full", []),
        "grpo-lora": ("grpo", "lora", ["objective.beta=0.05"]),
        "ppo-lora": ("ppo", "lora", judged),
        "ppo-full": ("ppo", "full", [*judged, "reference={}"]),
    }
    for name, (recipe, config, own) in kinds.items():
        assert run_cli(words(recipe, config, toy_model, f"{name}-one", *more, *own, "batch.accumulate=2")) == 0
    meshes = {"shard": ["mesh.shard=2"], "tensor": ["mesh.tensor=2", "batch.accumulate=2"]}
    group(
        2,
        [
            words(recipe, config, toy_model, f"{name}-{mesh}", *more, *own, *division)
            for name, (recipe, config, own) in kinds.items()
            for mesh, division in meshes.items()
        ],
    )
    for name in kinds:
        for mesh in meshes:
            same_run(f"{name}-one", f"{name}-{mesh}")


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["grpo", "ppo"])
def test_two_processes_share_the_prompts(place: Path, toy_model: Path, recipe: str) -> None:
    more = ["steps=4", "optimizer.lr=0.01", "rollout.epochs=1"]
    assert run(recipe, "lora", toy_model, "one", *more, "batch.size=16", "batch.accumulate=2") == 0
    paths = [f"model={toy_model}", "data.path=prompts.jsonl", "output=two"]
    rest = [*TOY, 'rewards=[{use: "letters:share"}]', *more, "batch.size=16", "mesh.replicate=2"]
    with pytest.raises(SystemExit) as stop:
        run_cli(["run", "--nproc", "2", recipe, "--config", "lora", *paths, *rest])
    assert not stop.value.code
    for name in ("reward", "loss", "grad_norm"):
        assert column("one", name) == pytest.approx(column("two", name), rel=1e-4, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["grpo", "ppo"])
def test_smollm2(place: Path, smollm2: Path, recipe: str) -> None:
    """Steps over one rollout of the real weights: the answers that are worth more become more likely."""
    more = ["steps=3", "rollout.epochs=3", "rollout.prompts=2", "rollout.answers=4", "batch.size=8", "batch.length=48"]
    more += [
        "optimizer.lr=0.001",
        "schedule=constant",
        "checkpoint.last=false",
        *(["objective.kl=0"] * (recipe == "ppo")),
    ]
    assert run(recipe, "lora", smollm2, "run", *more) == 0
    losses = column("run", "loss" if recipe == "grpo" else "policy_loss")
    assert len(losses) == 3 and losses[-1] < losses[0]
    assert max(column("run", "sampling_gap")) < 1e-3
