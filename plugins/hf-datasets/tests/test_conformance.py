from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from pegboard_hf_datasets.plugin import SOURCE, STREAM
from pegboard_sdk.conformance import SourceSuite

pytestmark = pytest.mark.filterwarnings("default")


class TestHub(SourceSuite):
    spec = SOURCE
    # The library's hash is of the files' paths and times.
    fingerprinted = False

    def write(self, folder: Path, rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
        lines = "".join(json.dumps(dict(row)) + "\n" for row in rows)
        (folder / "train.jsonl").write_text(lines, encoding="utf-8")
        return {"path": str(folder), "cache": str(folder / ".cache")}


class TestStream(TestHub):
    spec = STREAM
    indexed = False
