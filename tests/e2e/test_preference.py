"""`peg run` of preference methods, reward models and distillation with their configs, on a toy and on SmolLM2."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pegboard.cli import run_cli
from pegboard.opened import open_any
from pegboard.plugins.load import Registry
from pegboard.weights import read_folder

SMALL = ["model.platform=cpu", "loggers=[jsonl]", "batch.size=4", "batch.length=64"]
TOY = ["model.dtype=float32", "steps=8", "validation.every=4", "data.validation=6", "checkpoint.keep=1"]
RATES = {"dpo": 3e-3, "kto": 3e-3, "orpo": 1e-2, "simpo": 3e-3, "reward": 5e-3, "distill": 1e-2}


@pytest.fixture(scope="module")
def pairs(sums: list[dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Answers that say the sum are better than answers that say "nine" over and over."""
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    rows = [
        {"prompt": row["instruction"], "chosen": row["response"], "rejected": "nine " * (1 + number % 3)}
        for number, row in enumerate(sums)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def chats(sums: list[dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in sums))
    return path


def run(recipe: str, config: str, model: Path, data: Path, output: Path, *more: str) -> list[dict[str, Any]]:
    """Run to the end; return the lines of metrics."""
    paths = [f"model={model}", f"data.path={data}", f"output={output}"]
    try:
        status = run_cli(["run", recipe, "--config", config, *paths, *SMALL, *more])
    except SystemExit as stop:  # of several processes
        status = stop.code
    assert status == 0
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def column(lines: list[dict[str, Any]], name: str) -> list[float]:
    return [line[name] for line in lines if name in line]


@pytest.mark.parametrize(
    ("recipe", "config"),
    [("dpo", "full"), ("dpo", "lora"), ("kto", "full"), ("orpo", "lora"), ("simpo", "lora"), ("reward", "full")],
)
def test_the_loss_falls_and_rewards_come_apart(
    tmp_path: Path, toy_model: Path, pairs: Path, recipe: str, config: str
) -> None:
    lines = run(recipe, config, toy_model, pairs, tmp_path / "run", *TOY, f"optimizer.lr={RATES[recipe]}")
    held_out = column(lines, "validation/loss")
    assert len(held_out) == 3
    assert held_out[2] < held_out[0]
    if recipe == "kto":
        good, bad = (column(lines, f"validation/rewards/{name}")[-1] for name in ("desirable", "undesirable"))
        assert good > bad
    else:
        accuracy = column(lines, "validation/rewards/accuracy")
        assert accuracy[2] > accuracy[0] or accuracy[2] == 1
        margin = column(lines, "validation/rewards/margin")
        assert margin[2] > margin[0]
    if recipe in ("dpo", "kto"):
        start = {"dpo": 0.6931471805599453, "kto": 0.5}[recipe]
        assert held_out[0] == pytest.approx(start, rel=1e-5)  # the policy is its reference before the first step
    final = {path.name for path in (tmp_path / "run" / "final").iterdir()}
    assert ("adapter_model.safetensors" if config == "lora" else "model.safetensors") in final


def test_another_loss_of_dpo(tmp_path: Path, toy_model: Path, pairs: Path) -> None:
    lines = run("dpo", "ipo", toy_model, pairs, tmp_path / "run", *TOY, "optimizer.lr=0.003")
    held_out = column(lines, "validation/loss")
    assert held_out[-1] < held_out[0]
    assert column(lines, "validation/rewards/accuracy")[-1] > 0.8


def test_a_frozen_copy_and_the_adapter_switched_off_are_the_same_reference(
    tmp_path: Path, toy_model: Path, pairs: Path
) -> None:
    more = ["model.dtype=float32", "steps=3", "optimizer.lr=0.003", "checkpoint.last=false"]
    off = run("dpo", "lora", toy_model, pairs, tmp_path / "off", *more)
    copy = run("dpo", "lora", toy_model, pairs, tmp_path / "copy", *more, "reference={}")
    assert column(off, "loss") == pytest.approx(column(copy, "loss"), rel=1e-5)


def test_a_reference_that_was_computed_before_the_run(
    tmp_path: Path, toy_model: Path, pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same losses as with a frozen copy, of which no trace is left; rows keep their fields and their order."""
    given = tmp_path / "with-reference.jsonl"
    paths = [f"model={toy_model}", f"data.path={pairs}", f"output={given}"]
    command = ["data", "reference", "--config", "full", *paths, *SMALL, "model.dtype=float32"]
    assert run_cli(command) == 0
    assert "30 pairs in" in capsys.readouterr().out
    rows = [json.loads(line) for line in given.read_text().splitlines()]
    columns = ("reference_chosen_logps", "reference_rejected_logps")
    plain = [{name: value for name, value in row.items() if name not in columns} for row in rows]
    assert plain == [json.loads(line) for line in pairs.read_text().splitlines()]
    assert all(row[name] < 0 for row in rows for name in columns)
    more = ["model.dtype=float32", "steps=3", "optimizer.lr=0.003", "checkpoint.last=false"]
    copied = run("dpo", "full", toy_model, pairs, tmp_path / "copied", *more)
    read = run("dpo", "full", toy_model, given, tmp_path / "read", *more, "reference=null")
    assert column(read, "loss") == pytest.approx(column(copied, "loss"), rel=1e-5)
    assert run_cli(command) == 2
    assert "exists" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_without_a_reference_the_fix_is_told(
    tmp_path: Path, toy_model: Path, pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [f"model={toy_model}", f"data.path={pairs}", f"output={tmp_path / 'run'}"]
    assert run_cli(["run", "dpo", "--config", "full", "reference=null", *paths, *SMALL, "steps=1"]) == 2
    said = capsys.readouterr().err
    assert "there is no reference" in said and "reference={}" in said and "Traceback" not in said


def test_a_reward_model_is_a_complete_classifier(tmp_path: Path, toy_model: Path, pairs: Path) -> None:
    run("reward", "full", toy_model, pairs, tmp_path / "run", *TOY)
    folder = tmp_path / "run" / "final"
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    tensors = read_folder(folder)
    assert tensors["score.weight"].shape == (1, config["hidden_size"])
    assert "lm_head.weight" not in tensors
    registry = Registry.discover()
    built = open_any(registry, str(folder)).build(registry, dtype="float32", platform="cpu")
    ids = torch.tensor([5, 6, 7])
    states = built.model(ids, built.context([3], torch.arange(3)))
    assert built.model.head(states).shape == (3, 1)


@pytest.fixture(scope="module")
def teacher(train: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy after it has learned the sums."""
    return train(tmp_path_factory.mktemp("teacher") / "run", "steps=20", "optimizer.lr=0.02") / "final"


@pytest.mark.parametrize("config", ["lora"])
def test_a_student_comes_closer_to_its_teacher(
    tmp_path: Path, toy_model: Path, chats: Path, teacher: Path, config: str
) -> None:
    more = [f"teacher={teacher}", "data.format=instruct", "optimizer.lr=0.01"]
    lines = run("distill", config, toy_model, chats, tmp_path / "run", *TOY, *more)
    for name in ("loss", "divergence", "cross_entropy"):
        values = column(lines, f"validation/{name}")
        assert values[2] < values[0]
    agreement = column(lines, "validation/agreement")
    assert agreement[2] > agreement[0]


def test_a_teacher_may_be_quantised(tmp_path: Path, toy_model: Path, chats: Path) -> None:
    more = [f"teacher.path={toy_model}", "teacher.quantizer=int8", "data.format=instruct", "objective.weight=1.0"]
    lines = run("distill", "lora", toy_model, chats, tmp_path / "run", *TOY, *more)
    assert 0 < column(lines, "validation/divergence")[0] < 0.01  # rounding is all that keeps them apart


def test_a_teacher_with_another_tokenizer_is_refused(
    tmp_path: Path, toy_model: Path, chats: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pegboard.weights import write_model

    config = json.loads((toy_model / "config.json").read_text())
    tensors = {name: lazy.load() for name, lazy in read_folder(toy_model).items()}
    vocabulary, width = tensors["model.embed_tokens.weight"].shape
    tensors["model.embed_tokens.weight"] = torch.zeros(vocabulary + 2000, width)
    files = {"tokenizer.json": (toy_model / "tokenizer.json").read_bytes()}
    write_model(tmp_path / "other", {**config, "vocab_size": vocabulary + 2000}, tensors.items(), files)
    paths = [f"model={toy_model}", f"teacher={tmp_path / 'other'}", f"data.path={chats}", f"output={tmp_path / 'run'}"]
    assert run_cli(["run", "distill", "--config", "lora", "data.format=instruct", *paths, *SMALL, "steps=1"]) == 2
    assert "their tokenizers differ" in capsys.readouterr().err


def test_a_resumed_run_may_not_change_its_objective(
    tmp_path: Path, toy_model: Path, pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("dpo", "lora", toy_model, pairs, tmp_path / "run", *TOY, "steps=2")
    paths = [f"model={toy_model}", f"data.path={pairs}", f"output={tmp_path / 'run'}", "resume=auto"]
    assert run_cli(["run", "dpo", "--config", "lora", *paths, *SMALL, *TOY, "steps=4", "objective.beta=0.5"]) == 2
    assert "other values of objective.beta" in capsys.readouterr().err


def test_ktos_step_does_not_depend_on_how_it_is_divided(
    tmp_path: Path, toy_model: Path, pairs: Path, group: Callable[..., None]
) -> None:
    """Which answers meet, and the mean of what they say, are of the data and of the whole step, in one process and in two."""
    more = ["model.dtype=float64", "steps=3", "optimizer.lr=0.003", "optimizer.eps=1e-6", "batch.pack=false"]
    more += ["checkpoint.last=false", "batch.length=128", "objective.undesirable_weight=0.01"]
    large = run("kto", "full", toy_model, pairs, tmp_path / "large", *more, "batch.size=8")
    assert max(column(large, "kl")) > 0
    small = run("kto", "full", toy_model, pairs, tmp_path / "small", *more, "batch.size=2", "batch.accumulate=4")
    paths = [f"model={toy_model}", f"data.path={pairs}", *SMALL, *more, "batch.size=2"]
    meshes = {"shard": ["mesh.shard=2", "batch.accumulate=2"], "tensor": ["mesh.tensor=2", "batch.accumulate=4"]}
    group(
        2,
        [
            ["run", "kto", "--config", "full", *paths, f"output={tmp_path / name}", *mesh]
            for name, mesh in meshes.items()
        ],
    )
    logged = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()] for name in meshes
    ]
    for lines in (small, *logged):
        for name in ("loss", "grad_norm", "kl"):
            assert column(lines, name) == pytest.approx(column(large, name), rel=1e-8), name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "mesh"), [("dpo", "shard"), ("dpo", "tensor"), ("reward", "replicate"), ("distill", "tensor")]
)
def test_two_processes_are_one(
    tmp_path: Path, toy_model: Path, pairs: Path, chats: Path, recipe: str, mesh: str
) -> None:
    """Losses and norms of the gradient in float64, whichever way models and batches are divided."""
    more = ["model.dtype=float64", "steps=3", "optimizer.lr=0.003", "batch.pack=false", "checkpoint.last=false"]
    data = pairs
    if recipe == "distill":
        more, data = [*more, f"teacher.path={toy_model}", "data.format=instruct"], chats
    alone = run(recipe, "full", toy_model, data, tmp_path / "alone", *more, "batch.accumulate=2")
    divided = ["--nproc", "2", f"mesh.{mesh}=2", f"batch.accumulate={2 if mesh == 'tensor' else 1}"]
    together = run(recipe, "full", toy_model, data, tmp_path / "together", *more, *divided)
    for name in ("loss", "grad_norm"):
        assert column(together, name) == pytest.approx(column(alone, name), rel=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "config"),
    [
        *((recipe, "lora") for recipe in ("dpo", "kto", "orpo", "simpo", "reward", "distill")),
        *((recipe, "full") for recipe in ("dpo", "reward", "distill")),
        *((recipe, "qlora") for recipe in ("dpo", "reward", "distill")),
    ],
)
def test_smollm2(tmp_path: Path, smollm2: Path, pairs: Path, chats: Path, recipe: str, config: str) -> None:
    """A few steps over the real weights: the loss falls, and the better answer's reward rises above the other's."""
    rate = 1e-5 if config == "full" else 1e-3
    more = ["steps=4", "schedule=constant", "checkpoint.last=false", f"optimizer.lr={rate}"]
    if recipe == "distill":
        more += [f"teacher.path={smollm2}", "data.format=instruct"]
    lines = run(recipe, config, smollm2, chats if recipe == "distill" else pairs, tmp_path / "run", *more)
    losses = column(lines, "loss")
    assert losses[-1] < losses[0]
    if recipe not in ("kto", "distill"):
        assert column(lines, "rewards/margin")[-1] > column(lines, "rewards/margin")[0]
        assert column(lines, "rewards/accuracy")[-1] > 0.6
