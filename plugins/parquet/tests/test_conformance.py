from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pegboard_parquet.plugin import SOURCE
from pegboard_sdk.conformance import SourceSuite


class TestParquet(SourceSuite):
    spec = SOURCE

    def write(self, folder: Path, rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
        pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), folder / "rows.parquet")
        return {"path": str(folder / "rows.parquet")}
