"""`peg run grpo` and `peg run ppo` on a toy whose reward is easy to raise: the share of the letter "e" in an answer."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from pegboard.cli import run_cli
from pegboard.weights import read_folder

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
    assert run("grpo", config, toy_model, "run", "steps=25", f"optimizer.lr={rate}") == 0
    rewards = column("run", "reward")
    assert len(rewards) == 25
    first, last = sum(rewards[:5]) / 5, sum(rewards[-5:]) / 5
    assert last > max(3 * first, 0.3), rewards
    assert max(column("run", "sampling_gap")) < 1e-4
    final = {path.name for path in Path("run", "final").iterdir()}
    assert ("adapter_model.safetensors" if config == "lora" else "model.safetensors") in final


def weights(folder: str) -> dict[str, torch.Tensor]:
    return {name: tensor.load() for name, tensor in read_folder(Path(folder, "final")).items()}


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
    rate = {"full": 0.005, "lora": 0.02}[config]
    more = ["rollout.epochs=2", "objective.kl=0.01", "checkpoint.keep=1", f"optimizer.lr={rate}"]
    assert run("ppo", config, toy_model, "run", "steps=50", *more) == 0
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
