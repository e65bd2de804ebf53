"""What the server may be told."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may ask for, checked before anything is allocated for it.

    body_bytes, body_seconds: of the body, and until it is there. held_bytes: of all bodies that are here at once. prompts: prompts
    or inputs of one request. messages, tools: of a conversation. answers: n. tokens: of all prompts with all their answers at their
    longest; None for 16 full contexts, and at least 2**20. stop, stop_chars: number and length of stop texts. ids: entries of
    logit_bias, allowed_token_ids and stop_token_ids, characters of bad_words. logprobs: most probable tokens of a position.
    schema_bytes, schema_depth: of a JSON schema or grammar, and of all tools together.
    template_seconds: until a conversation is rendered. inside: prompts that may be in the server at once, those that run included;
    whoever comes then is told to come again later.
    """

    body_bytes: int = 8 << 20
    body_seconds: float = 30.0
    held_bytes: int = 512 << 20
    prompts: int = 2048
    messages: int = 1024
    tools: int = 128
    answers: int = 64
    tokens: int | None = None
    stop: int = 16
    stop_chars: int = 1024
    ids: int = 4096
    logprobs: int = 20
    schema_bytes: int = 64 << 10
    schema_depth: int = 32
    template_seconds: float = 5.0
    inside: int = 1024


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """keys: texts of which a request must show one; empty for none. origins: that a browser may call from. hosts: names that a browser
    may call us by when no key guards us; None for those of the loopback device. cache_per_key: whether requests share cached
    prefixes only with those of the same key.

    names: that requests may call the model by. unknown: whether fields that no endpoint knows are refused or ignored.
    tool_parser, reasoning_parser: a parser plugin, "auto" (by the chat template) or "none". pooling: of embeddings.
    score_template: text with {query} and {document}, None for the built-in question. score_labels: the answers that mean yes and no.
    deadline, queue_timeout: seconds, None for none. grace: seconds that open streams get when the server stops.
    keep_alive: seconds between two comments in a stream.
    """

    names: tuple[str, ...] = ("model",)
    keys: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] | None = None
    cache_per_key: bool = False
    unknown: str = "reject"
    tool_parser: str = "auto"
    reasoning_parser: str = "auto"
    pooling: str = "last"
    score_template: str | None = None
    score_labels: tuple[str, str] = ("yes", "no")
    deadline: float | None = None
    queue_timeout: float | None = None
    grace: float = 30.0
    keep_alive: float = 15.0
    limits: Limits = field(default_factory=Limits)
