"""Options of the sources and transforms."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Options(BaseModel):
    """What every schema here shares: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


PATH = "a file, a folder (all files of the kind in it) or a pattern such as parts/*.gz; UTF-8, also gzipped"


class JsonlOptions(Options):
    """Files with one JSON object a line."""

    path: str = Field(description=PATH)


class JsonOptions(Options):
    """A file that is one list of JSON objects."""

    path: str = Field(description="the file, UTF-8; it is held in memory")
    field: str | None = Field(default=None, description="key of the list, where the file is an object that holds it")


class CsvOptions(Options):
    """Tables of text whose first line names the fields."""

    path: str = Field(description=PATH)
    delimiter: str | None = Field(
        default=None, min_length=1, max_length=1, description="between values; a tab in .tsv files, else a comma"
    )


class TextOptions(Options):
    """Plain text, cut into rows `{"text": …}`."""

    path: str = Field(description=PATH)
    split: Literal["paragraph", "line", "file"] = Field(
        default="paragraph",
        description="where a row ends: at an empty line, at every line, or only at the end of the file",
    )
    characters: int = Field(
        default=4000, ge=1, description="rows are cut here at the latest, at the end of a line where there is one"
    )


Learn = Literal["assistant", "last", "all"]
LEARN = "tokens to learn: every assistant turn, the last one only, or all"
CHAT = "render with the model's chat template; false joins the texts of prompt and answer as they are"
SYSTEM = "system message where a row has none of its own; the template's own when absent"


class ChatOptions(Options):
    """Rows that hold a conversation: `{"messages": [{"role": "user", "content": "…"}, …]}`."""

    messages: str = Field(default="messages", description="field that holds the list of messages")
    tools: str = Field(default="tools", description="field that holds tool descriptions, if a row has it")
    system: str | None = Field(default=None, description=SYSTEM)
    learn: Learn = Field(default="assistant", description=LEARN)


class ShareGptOptions(ChatOptions):
    """Rows that hold a conversation: `{"conversations": [{"from": "human", "value": "…"}, …]}`."""

    messages: str = Field(default="conversations", description="field that holds the list of turns")


class InstructOptions(Options):
    """Rows of a question and its answer, rendered with the model's chat template."""

    prompt: str = Field(default="instruction", description="field of the request")
    context: str = Field(default="input", description="field that is added below the request, if a row has it")
    response: str = Field(default="response", description="field of the answer")
    system: str | None = Field(default=None, description=SYSTEM)
    learn: Learn = Field(default="assistant", description=LEARN)
    chat: bool = Field(default=True, description=CHAT)


class PromptedOptions(Options):
    """What rows with a prompt and answers to it share."""

    prompt: str = Field(
        default="prompt", description="field of the prompt, a text or messages; may be absent where answers hold it"
    )
    chosen: str = Field(
        default="chosen", description="field of the better answer: a text, messages, or a dialogue as in hh-rlhf"
    )
    rejected: str = Field(default="rejected", description="field of the worse answer")
    system: str | None = Field(default=None, description=SYSTEM)
    chat: bool = Field(default=True, description=CHAT)
    columns: list[str] = Field(default_factory=list, description="further fields that the objective is given")


class PreferenceOptions(PromptedOptions):
    """Rows of two answers to one prompt, of which one is better."""

    margin: str = Field(default="margin", description="field of how much better it is, if a row has it")
    reference_chosen: str = Field(
        default="reference_chosen_logps",
        description="field of the better answer's log-probability under the reference model, if a row has it",
    )
    reference_rejected: str = Field(default="reference_rejected_logps", description="the same of the worse answer")


class LabelsOptions(PromptedOptions):
    """Rows of a prompt, an answer and whether it is desirable; or preference pairs, which give one of each."""

    completion: str = Field(default="completion", description="field of the answer, a text or messages")
    label: str = Field(default="label", description="field of the label, true or false")
    reference: str = Field(
        default="reference_logps",
        description="field of the answer's log-probability under the reference model, if a row has it",
    )
    mismatched: bool = Field(
        default=True, description="add each prompt with the answer to another one, as KTO's estimate of the KL needs"
    )


class PromptOptions(Options):
    """Rows of a prompt, which the policy answers itself."""

    prompt: str = Field(default="prompt", description="field of the prompt, a text or messages")
    tools: str = Field(default="tools", description="field that holds tool descriptions, if a row has it")
    system: str | None = Field(default=None, description=SYSTEM)
    chat: bool = Field(default=True, description=CHAT)
    columns: list[str] | None = Field(default=None, description="fields that rewards are given; all when null")


class PlainOptions(Options):
    """Rows of plain text, every token of which is learned."""

    field: str = Field(default="text", description="field of the text")
    end: bool = Field(default=True, description="add the tokenizer's end-of-text token")
