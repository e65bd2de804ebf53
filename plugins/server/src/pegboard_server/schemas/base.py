"""What requests have in common."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Ids = list[Annotated[int, Field(ge=0, lt=2**31)]]
Prompt = Annotated[str, Field(min_length=1)] | Annotated[Ids, Field(min_length=1)]
Prompts = (
    Prompt
    | Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]
    | Annotated[list[Annotated[Ids, Field(min_length=1)]], Field(min_length=1)]
)
"""A text, a list of token ids, or a list of either."""

Probability = Annotated[float, Field(ge=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]


class Body(BaseModel):
    """A request. Fields that it does not know are kept apart, so that a server may be told to ignore them."""

    model_config = ConfigDict(
        extra="allow",
        strict=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        json_schema_extra={"additionalProperties": False},
    )

    def unknown(self) -> list[str]:
        """Return the names of fields that it does not know."""
        return sorted(self.model_extra or ())


class Part(BaseModel):
    """A part of a request or an answer, of which further fields are kept."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False, protected_namespaces=())


class StreamOptions(Part):
    """include_usage: end the stream with a chunk that counts the tokens."""

    include_usage: bool = False


class JsonSchemaFormat(Part):
    """A schema under a name, as OpenAI wraps it."""

    name: str = Field(default="", max_length=256)
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class TextFormat(Part):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(Part):
    """Any JSON object."""

    type: Literal["json_object"]


class SchemaFormat(Part):
    """JSON of a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchemaFormat


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | SchemaFormat, Field(discriminator="type")]


class StructuredOutputs(Part):
    """What an answer must match: one of these."""

    json_: str | dict[str, Any] | None = Field(default=None, alias="json")
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None


class Sampling(Body):
    """Fields of every request that generates; those after `user` are not OpenAI's but common among servers."""

    model: str | None = Field(default=None, max_length=1024)
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    n: int | None = Field(default=None, ge=1)
    presence_penalty: Penalty | None = None
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(default=None, ge=0, le=1000)
    top_p: float | None = Field(default=None, ge=0, le=1)
    user: str | None = None

    top_k: int | None = Field(default=None, ge=-1, lt=2**31)
    min_p: Probability | None = None
    typical_p: float | None = Field(default=None, gt=0, le=1)
    repetition_penalty: float | None = Field(default=None, gt=0, le=1000)
    min_tokens: int | None = Field(default=None, ge=0)
    ignore_eos: bool | None = None
    stop_token_ids: Ids | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    allowed_token_ids: Ids | None = None
    bad_words: list[str] | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: str | dict[str, Any] | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    priority: int | None = Field(default=None, ge=-(2**31), lt=2**31)
    cache_salt: str | None = Field(default=None, max_length=256)


class PromptDetails(Part):
    """cached_tokens: of the prompt, found in the cache."""

    cached_tokens: int = 0


class Usage(Part):
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int = 0
    total_tokens: int
    prompt_tokens_details: PromptDetails | None = None


class ErrorDetail(Part):
    """param: the field at fault. code: for programs."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(Part):
    """What every answer that is no success holds."""

    error: ErrorDetail
