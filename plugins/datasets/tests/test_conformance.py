"""The standard tests of sources and transforms."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pegboard_datasets import plugin
from pegboard_sdk.conformance import SourceSuite, TransformSuite

Rows = Sequence[Mapping[str, Any]]
ASK, ANSWER, OTHER = (
    {"role": role, "content": text} for role, text in (("user", "2+2?"), ("assistant", "4"), ("assistant", "5"))
)


class TestJsonl(SourceSuite):
    spec = plugin.JSONL
    rows = (*SourceSuite.rows, {"number": 1, "list": [None, 2.5, {"a": True}]})

    def write(self, folder: Path, rows: Rows) -> dict[str, str]:
        (folder / "rows.jsonl").write_text("\n".join(json.dumps(dict(row)) for row in rows), encoding="utf-8")
        return {"path": str(folder / "rows.jsonl")}


class TestSeveralFiles(TestJsonl):
    def write(self, folder: Path, rows: Rows) -> dict[str, str]:
        for number, row in enumerate(rows):
            (folder / f"{number}.jsonl").write_text(json.dumps(dict(row)) + "\n", encoding="utf-8")
        return {"path": str(folder)}


class TestJson(SourceSuite):
    spec = plugin.JSON

    def write(self, folder: Path, rows: Rows) -> dict[str, str]:
        (folder / "rows.json").write_text(json.dumps([dict(row) for row in rows]), encoding="utf-8")
        return {"path": str(folder / "rows.json")}


class TestCsv(SourceSuite):
    spec = plugin.CSV

    def write(self, folder: Path, rows: Rows) -> dict[str, str]:
        with (folder / "rows.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        return {"path": str(folder / "rows.csv")}


class TestText(SourceSuite):
    spec = plugin.TEXT
    rows = tuple({"text": f"é {number}\n日"} for number in range(5))

    def write(self, folder: Path, rows: Rows) -> dict[str, str]:
        (folder / "book.txt").write_text("\n\n".join(row["text"] for row in rows), encoding="utf-8")
        return {"path": str(folder / "book.txt")}


class TestChat(TransformSuite):
    spec = plugin.CHAT
    rows = ({"messages": [ASK, ANSWER]}, {"messages": [ASK, OTHER, ASK, ANSWER]})
    bad = ({}, {"messages": []}, {"messages": [ASK]}, {"messages": [{"role": "user"}]})


class TestShareGpt(TransformSuite):
    spec = plugin.SHAREGPT
    rows = ({"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]},)
    bad = ({}, {"conversations": [{"from": "nobody", "value": "x"}]})


class TestInstruct(TransformSuite):
    spec = plugin.INSTRUCT
    rows = ({"instruction": "add", "input": "2, 2", "response": "4"}, {"instruction": "2+2?", "response": "4"})
    bad = ({}, {"instruction": 1, "response": "4"})


class TestPreference(TransformSuite):
    spec = plugin.PREFERENCE
    rows = (
        {"prompt": "2+2?", "chosen": "4", "rejected": "5", "margin": 1.0},
        {"chosen": [ASK, ANSWER], "rejected": [ASK, OTHER]},
    )
    bad = ({}, {"prompt": "2+2?", "chosen": "4"}, {"chosen": "4", "rejected": "5"})
    parts = (("chosen", "rejected"),)


class TestLabels(TransformSuite):
    spec = plugin.LABELS
    rows = (
        {"prompt": "2+2?", "completion": "4", "label": True},
        {"prompt": "2+3?", "completion": "4", "label": "false"},
        {"prompt": "1+1?", "chosen": "2", "rejected": "3"},
    )
    bad = ({}, {"prompt": "2+2?", "completion": "4", "label": "perhaps"})
    parts = (("desirable",), ("undesirable",))


class TestPrompt(TransformSuite):
    spec = plugin.PROMPT
    rows = ({"prompt": "2+2?", "answer": "4"}, {"prompt": [ASK]})
    parts = (("prompt",),)


class TestPlain(TransformSuite):
    spec = plugin.PLAIN
    rows = ({"text": "two and two"}, {"text": "é"})
    bad = ({}, {"text": 4})
