"""/v1/embeddings, /score"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AliasChoices, Field

from pegboard_server.schemas.base import Body, Part, Prompts, Usage

Text = Annotated[str, Field(min_length=1)]


class EmbeddingRequest(Body):
    """dimensions: keep the first so many and bring them to length 1 again."""

    model: str | None = Field(default=None, max_length=1024)
    input: Prompts
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(default=None, ge=1)
    user: str | None = None
    priority: int | None = Field(default=None, ge=-(2**31), lt=2**31)


class Embedding(Part):
    """embedding: numbers, or base64 of them as little-endian float32."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingList(Part):
    """One embedding an input, in their order."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage


class ScoreRequest(Body):
    """One query for all documents, or one for each."""

    model: str | None = Field(default=None, max_length=1024)
    query: Text | Annotated[list[Text], Field(min_length=1)] = Field(validation_alias=AliasChoices("query", "text_1"))
    documents: Text | Annotated[list[Text], Field(min_length=1)] = Field(
        validation_alias=AliasChoices("documents", "text_2")
    )
    priority: int | None = Field(default=None, ge=-(2**31), lt=2**31)


class Score(Part):
    """score: between 0 and 1, how probable "yes" is against "no"."""

    index: int
    object: Literal["score"] = "score"
    score: float


class ScoreList(Part):
    """One score a document, in their order."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[Score]
    usage: Usage
