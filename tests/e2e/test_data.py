"""Data of every kind through `peg run`, `peg data preview` and `peg data stats`."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pegboard_sdk.peg import Said

Peg = Callable[..., Said]
Train = Callable[..., Path]
Losses = Callable[[Path], dict[int, float]]
Rows = list[dict[str, str]]


def write_csv(path: Path, rows: Rows) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_parquet(path: Path, rows: Rows) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path)


def write_json(path: Path, rows: Rows) -> None:
    path.write_text(json.dumps(rows))


@pytest.mark.parametrize(
    ("use", "write"),
    [("csv", write_csv), ("parquet", write_parquet), ("json", write_json)],
    ids=["csv", "parquet", "json"],
)
def test_the_kind_of_file_changes_nothing(
    tmp_path: Path, train: Train, losses: Losses, sums: Rows, use: str, write: Callable[[Path, Rows], None]
) -> None:
    write(tmp_path / f"sums.{use}", sums)
    other = train(tmp_path / "other", f"data.use={use}", f"data.path={tmp_path}/sums.{use}", "steps=2")
    assert losses(other) == losses(train(tmp_path / "lines", "steps=2"))


def mix(data: Path, folder: Path) -> str:
    second = folder / "chats.jsonl"
    turns = [{"from": "human", "value": "what is one?"}, {"from": "gpt", "value": "five"}]
    second.write_text(json.dumps({"conversations": turns}) + "\n")
    return f"data.mix=[{{path: '{data}', weight: 3}}, {{path: '{second}', weight: 1, format: sharegpt}}]"


def test_a_mix_is_resumed_to_the_sample_with_its_token_ids_kept(
    tmp_path: Path, train: Train, losses: Losses, data: Path
) -> None:
    shared = ["data.path=null", mix(data, tmp_path), f"data.cache={tmp_path}/cache"]
    half = train(tmp_path / "half", *shared, "steps=3", "schedule=constant")
    train(half, *shared, "steps=6", "schedule=constant", "resume=auto")
    straight = train(tmp_path / "straight", *shared, "steps=6", "schedule=constant")
    assert losses(half) == losses(straight)
    assert len(list((tmp_path / "cache").glob("*.sqlite"))) == 2


def test_preview_shows_what_is_learned_and_how_it_is_packed(peg: Peg, toy_model: Path, data: Path) -> None:
    run = ("sft", f"model={toy_model}", f"data.path={data}", "data.format=instruct", "batch.size=2", "batch.length=48")
    said = peg("data", "preview", *run, "data.shuffle=false", "--examples", 1, "--batches", 2)
    assert (said.status, said.err) == (0, "")
    title, *text = said.out.strip().split("\n")
    assert title.startswith(f"{data}, line 1: ")
    assert text[:4] == [
        "<|im_start|>user",
        "what is zero and zero?<|im_end|>",
        "<|im_start|>assistant",
        "«five, zero<|im_end|>»",
    ]
    batches = [line for line in text if line.startswith("batch ")]
    assert len(batches) == 2
    assert all("/96 tokens" in line for line in batches)
    tokens = peg("data", "preview", *run, "--tokens", "--examples", 1, "--batches", 0, "--color")
    assert "\x1b[32m" in tokens.out
    assert "learned '<|im_end|>'" in tokens.out


def test_stats_count_the_steps_of_the_run_and_name_bad_rows(
    tmp_path: Path, peg: Peg, train: Train, losses: Losses, toy_model: Path, data: Path
) -> None:
    run = ("sft", f"model={toy_model}", "data.format=instruct", "batch.size=2", "batch.length=64", "batch.accumulate=2")
    said = peg("data", "stats", *run, f"data.path={data}", "--json")
    assert said.status == 0
    found = json.loads(said.out)
    assert (found["rows"], found["examples"], found["bad"]) == (30, 30, 0)
    assert found["steps"] == len(losses(train(tmp_path / "run", "~steps", "batch.accumulate=2")))
    bad = tmp_path / "bad.jsonl"
    bad.write_text(data.read_text() + '{"instruction": 3, "response": "x"}\n{"instruction"\n')
    said = peg("data", "stats", *run, f"data.path={bad}")
    assert said.status == 1
    assert "32, 2 of them bad" in said.out
    assert f"{bad}, line 31: field 'instruction' must be text, found int 3" in said.out
    assert f"{bad}, line 32: not valid JSON" in said.out


@pytest.mark.parametrize("command", ["preview", "stats"])
def test_mistakes_are_answered_with_a_fix(peg: Peg, toy_model: Path, command: str) -> None:
    said = peg("data", command, "sft", f"model={toy_model}", "data.path=nowhere.jsonl")
    assert (said.status, said.out) == (2, "")
    assert "there is no data file nowhere.jsonl" in said.err
    missing: Any = peg("data", command, "sft")
    assert missing.status == 2
    assert "model.path, data.path" in missing.err
