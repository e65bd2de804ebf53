"""Options of the source."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class ParquetOptions(BaseModel):
    """Parquet files."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(description="a file, a folder (all .parquet files in it) or a pattern such as parts/*.parquet")
    columns: list[str] | None = Field(default=None, description="the only columns to read; all when null")
