from __future__ import annotations

import json
from pathlib import Path

from pegboard_jsonl.plugin import SPEC
from pegboard_sdk.conformance import LoggerSuite


class TestJsonl(LoggerSuite):
    spec = SPEC

    def read(self, folder: Path) -> list[tuple[int, dict[str, float | None]]]:
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
        return [(line.pop("step"), line) for line in lines]
