"""Options of the sources and transforms."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Options(BaseModel):
    """What every schema here shares: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class JsonlOptions(Options):
    """A file with one JSON object a line."""

    path: str = Field(description="the file, UTF-8; empty lines are passed over")


class TextOptions(Options):
    """A file of plain text, cut into rows `{"text": …}`."""

    path: str = Field(description="the file, UTF-8")
    split: Literal["paragraph", "line", "file"] = Field(
        default="paragraph",
        description="where a row ends: at an empty line, at every line, or only at the end of the file",
    )
    characters: int = Field(
        default=4000, ge=1, description="rows are cut here at the latest, at the end of a line where there is one"
    )


class ChatOptions(Options):
    """Rows that hold a conversation: `{"messages": [{"role": "user", "content": "…"}, …]}`."""

    messages: str = Field(default="messages", description="field that holds the list of messages")
    tools: str = Field(default="tools", description="field that holds tool descriptions, if a row has it")
    learn: Literal["assistant", "last", "all"] = Field(
        default="assistant", description="tokens to learn: every assistant turn, the last one only, or all"
    )


class InstructOptions(Options):
    """Rows of a question and its answer, rendered with the model's chat template."""

    prompt: str = Field(default="instruction", description="field of the request")
    context: str = Field(default="input", description="field that is added below the request, if a row has it")
    response: str = Field(default="response", description="field of the answer")
    system: str | None = Field(default=None, description="system message of every row; the template's own when absent")
    learn: Literal["assistant", "all"] = Field(default="assistant", description="learn the answer only, or all tokens")


class PlainOptions(Options):
    """Rows of plain text, every token of which is learned."""

    field: str = Field(default="text", description="field of the text")
    end: bool = Field(default=True, description="add the tokenizer's end-of-text token")
