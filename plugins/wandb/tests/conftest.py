"""Runs are recorded offline, and read back from what W&B would send."""

from __future__ import annotations

import json
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from wandb.proto.wandb_internal_pb2 import Record

BLOCK = 32768
HEADER = struct.Struct("<IHB")
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4

Records = Callable[[Path], list[Record]]


@pytest.fixture(autouse=True)
def offline(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("SILENT", "DISABLE_GIT", "X_DISABLE_STATS"):
        monkeypatch.setenv(f"WANDB_{name}", "true")
    for name in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path_factory.mktemp(name.lower())))


def blocks(data: bytes) -> Iterator[bytes]:
    """Yield the records of a .wandb file, which is a log as LevelDB's: fragments that never cross a block of 32 KiB."""
    assert data[:4] == b":W&B"
    at, whole = 7, b""
    while at + HEADER.size <= len(data):
        if BLOCK - at % BLOCK < HEADER.size:
            at += BLOCK - at % BLOCK
            continue
        checksum, length, kind = HEADER.unpack_from(data, at)
        part = data[at + HEADER.size : at + HEADER.size + length]
        if len(part) < length:
            return
        assert zlib.crc32(part, zlib.crc32(bytes([kind]))) == checksum
        at += HEADER.size + length
        whole = part if kind in (FULL, FIRST) else whole + part
        if kind in (FULL, LAST):
            yield whole


@pytest.fixture(scope="session")
def records() -> Records:
    """Return every record of a run's folder, in the order in which they were written."""

    def whole(file: Path) -> list[Record]:
        """Read a file that W&B's own process may still be writing, a moment after the run has finished."""
        while True:
            found = [Record.FromString(data) for data in blocks(file.read_bytes())]
            if found[-1:] and found[-1].WhichOneof("record_type") == "exit":
                return found
            time.sleep(0.02)

    def read(folder: Path) -> list[Record]:
        files = sorted((folder / "wandb").glob("offline-run-*/run-*.wandb"))
        return [record for file in files for record in whole(file)]

    return read


@pytest.fixture(scope="session")
def history(records: Records) -> Callable[[Path], list[dict[str, Any]]]:
    """Return what was logged, one dict a call."""

    def read(folder: Path) -> list[dict[str, Any]]:
        rows = [r.history for r in records(folder) if r.WhichOneof("record_type") == "history"]
        return [{"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in row.item} for row in rows]

    return read
