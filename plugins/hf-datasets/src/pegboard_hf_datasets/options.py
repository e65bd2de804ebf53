"""Options of the sources."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class HubOptions(BaseModel):
    """A data set of the Hugging Face Hub, or a folder laid out as one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(description="OWNER/NAME or a folder; OWNER/NAME@SPLIT names a split, as for data.validation")
    name: str | None = Field(default=None, description="configuration of the data set, where it has several")
    split: str = Field(default="train", description='split, or a part of one such as "train[:1000]"')
    revision: str | None = Field(default=None, description="branch, tag or commit")
    cache: str | None = Field(default=None, description="folder for downloads; the datasets library's own when null")
