"""`peg data reference` against the log-probabilities of the model itself, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pegboard.opened import open_any
from pegboard.plugins.load import Registry
from pegboard_sdk.toys.folder import SMALL, write_folder

LLAMA: dict[str, Any] = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **SMALL, "rope_theta": 10000.0}
ROWS = [
    {"prompt": "hello", "chosen": "world", "rejected": "there, there", "id": 7},
    {"prompt": "hello there", "chosen": "hello", "rejected": "w", "id": 8},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("toy") / "model", LLAMA)


@pytest.fixture
def command(tmp_path: Path, model: Path) -> Callable[..., list[str]]:
    def make(rows: list[dict[str, Any]], *more: str) -> list[str]:
        path = tmp_path / "pairs.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        paths = [f"model={model}", f"data.path={path}", f"output={tmp_path / 'out.jsonl'}"]
        return ["data", "reference", *paths, "model.dtype=float64", "model.platform=cpu", "batch.length=64", *more]

    return make


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("size", [2, 8])
def test_columns_are_the_models_own_values(
    tmp_path: Path, model: Path, command: Callable[..., list[str]], peg: Any, size: int
) -> None:
    said = peg(*command(ROWS, f"batch.size={size}", "batch.length=32"))
    assert said.status == 0, said.err
    registry = Registry.discover()
    opened = open_any(registry, str(model))
    built, tokenizer = opened.build(registry, dtype="float64", platform="cpu"), opened.tokenizer(registry)
    written = read(tmp_path / "out.jsonl")
    assert [row["id"] for row in written] == [7, 8]
    for row, given in zip(written, ROWS, strict=True):
        for part in ("chosen", "rejected"):
            prompt = f"<|user|>{given['prompt']}<|end|><|assistant|>"
            ids = tokenizer.encode(f"{prompt}{given[part]}<|end|>")
            start = len(tokenizer.encode(prompt))
            states = built.model(torch.tensor(ids), built.context([len(ids)], torch.arange(len(ids))))
            logps = built.model.head(states).log_softmax(-1)
            wanted = sum(float(logps[t - 1, ids[t]].detach()) for t in range(start, len(ids)))
            assert row[f"reference_{part}_logps"] == pytest.approx(wanted, rel=1e-9)


def test_pairs_that_training_leaves_out_keep_their_place(
    tmp_path: Path, command: Callable[..., list[str]], peg: Any
) -> None:
    long = {"prompt": "x" * 100, "chosen": "a", "rejected": "b"}
    said = peg(*command([ROWS[0], long, ROWS[1]], "batch.overlong=drop"))
    assert said.status == 0 and "2 pairs" in said.out
    first, dropped, last = read(tmp_path / "out.jsonl")
    assert dropped == long
    assert {"reference_chosen_logps", "reference_rejected_logps"} <= first.keys() & last.keys()


def test_columns_are_called_as_the_format_calls_them(
    tmp_path: Path, command: Callable[..., list[str]], peg: Any
) -> None:
    said = peg(*command(ROWS, "data.format.reference_chosen=better", "data.format.reference_rejected=worse"))
    assert said.status == 0, said.err
    assert {"better", "worse"} <= read(tmp_path / "out.jsonl")[0].keys()


@pytest.mark.parametrize(
    ("rows", "more", "message"),
    [
        ([{"prompt": "hello"}], [], "pairs.jsonl, line 1: no field 'chosen'"),
        ([{"text": "hello"}], ["data.format={use: text}"], "line 1: the row is no pair"),
        (ROWS, ["output=/nowhere/out.jsonl"], "there is no folder /nowhere"),
        (ROWS, ["data.mix=[{path: a.jsonl}]", "data.path=null"], "data.mix has several sources"),
    ],
)
def test_mistakes_are_told_and_leave_nothing_behind(
    tmp_path: Path, command: Callable[..., list[str]], peg: Any, rows: list[Any], more: list[str], message: str
) -> None:
    said = peg(*command(rows, *more))
    assert said.status != 0 and message in said.err and "Traceback" not in said.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pairs.jsonl"]
