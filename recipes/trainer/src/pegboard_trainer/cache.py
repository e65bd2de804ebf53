"""Token ids on disk, so that a second pass over the same data does not tokenize."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
import weakref
from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pegboard.errors import ConfigError
from pegboard.types import Example, Row

if TYPE_CHECKING:
    from pegboard.interfaces.source import Source
    from pegboard.interfaces.tokenizer import Tokenizer

VERSION = 1
"""Of what is written. Files of another version have other names."""

PENDING = 500
"""Rows that are written at once."""


class TokenCache:
    """The examples of each row of a source, in one SQLite file that several processes may read while one writes it.

    Filled while rows are first used, so that a run begins at once. writes: whether this process is the one.
    """

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        """Open or make the file. Raises ConfigError where that cannot be."""
        self.path, self._writes = path, writes
        self._pending: dict[int, str] = {}
        # Validation reads while a thread makes batches ahead.
        self._lock = threading.RLock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._base = sqlite3.connect(path, timeout=60, check_same_thread=False)
            weakref.finalize(self, _close, self._base, self._pending)
            with self._base:
                self._base.execute("CREATE TABLE IF NOT EXISTS rows (number INTEGER PRIMARY KEY, examples TEXT)")
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(
                f"{path} cannot be used as a cache: {error}", fix="correct data.cache, or remove the file"
            ) from error

    def get(self, index: int) -> list[Example] | None:
        """Return the examples of a row, None where they are not known."""
        with self._lock:
            text = self._pending.get(index)
            if text is None:
                found = self._base.execute("SELECT examples FROM rows WHERE number = ?", (index,)).fetchone()
                if found is None:
                    return None
                (text,) = found
        return [tuple(_row(row) for row in example) for example in json.loads(text)]

    def put(self, index: int, examples: Iterable[Example]) -> None:
        """Keep the examples of a row, unless they hold what JSON cannot say."""
        if not self._writes:
            return
        try:
            text = json.dumps([[_plain(row) for row in example] for example in examples])
        except TypeError:
            return
        with self._lock:
            self._pending[index] = text
            if len(self._pending) >= PENDING:
                self.flush()

    def flush(self) -> None:
        """Write what is held back. A disk that takes nothing more costs time, not the run."""
        with self._lock:
            try:
                _write(self._base, self._pending)
            except sqlite3.Error:
                self._writes = False
                self._pending.clear()


def cache_path(folder: str, source: Source, choice: Mapping[str, Any], tokenizer: Tokenizer) -> Path | None:
    """Return the file for the examples of a source: its name is a hash of all that decides them. None where the source cannot say.

    choice: of the transform, with its options.
    """
    content = source.fingerprint()
    if content is None:
        return None
    files = {name: hashlib.sha256(data).hexdigest() for name, data in sorted(tokenizer.files().items())}
    decides = json.dumps([VERSION, content, choice, files], sort_keys=True)
    return Path(folder).expanduser() / f"{hashlib.sha256(decides.encode()).hexdigest()[:32]}.sqlite"


def _write(base: sqlite3.Connection, pending: dict[int, str]) -> None:
    if pending:
        with base:
            base.executemany("INSERT OR REPLACE INTO rows VALUES (?, ?)", pending.items())
        pending.clear()


def _close(base: sqlite3.Connection, pending: dict[int, str]) -> None:
    with suppress(sqlite3.Error):
        _write(base, pending)
    base.close()


def _plain(row: Row) -> dict[str, Any]:
    """Return a row as JSON values, its mask as lengths of runs that are False and True in turn."""
    runs = [len(list(run)) for _, run in groupby(row.mask)]
    known = {"ids": row.input_ids, "mask": [0, *runs] if row.mask and row.mask[0] else runs}
    more = {"part": row.part, "extras": row.extras, "per_token": row.per_token}
    return known | {name: value for name, value in more.items() if value}


def _row(value: Mapping[str, Any]) -> Row:
    mask = [bool(number % 2) for number, length in enumerate(value["mask"]) for _ in range(length)]
    return Row(value["ids"], mask, value.get("extras", {}), value.get("part", ""), value.get("per_token", {}))
