"""What is asked for and computed step by step: conversations, sampling, grammars, and the steps of an executor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. role: system, user, assistant or tool."""

    role: str
    content: str
    extras: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GrammarSpec:
    """What an output must match. kind: "json_schema", "json_object", "regex", "choice" or "ebnf". value: the schema as JSON text, the
    expression, the choices as a JSON list, or the grammar; empty for "json_object".
    """

    kind: Literal["json_schema", "json_object", "regex", "choice", "ebnf"]
    value: str = ""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one request is sampled and when it ends. Validated by the engine when the request is added.

    max_tokens, min_tokens: bounds of the output; before min_tokens neither an end id nor a stop text ends it.
    n: answers to one prompt; answer i draws from a stream of its own.
    temperature: 0 is greedy. top_k: 0 is off. top_p, min_p, typical_p: nucleus, relative and typical (arXiv:2202.00666) cut-offs.
    repetition_penalty: logits of ids already in prompt or output are divided (positive) or multiplied (negative) by it; 1 is off.
    presence_penalty, frequency_penalty: subtracted from the logits of ids already in the output, once and once per occurrence.
    logit_bias: id -> added to its logit. allowed_ids: the only ids that may come; None for all. bad_words: texts that must not come.
    seed: the random stream depends only on seed, answer and output position; None draws one at random.
    stop: texts that end the output (part of it only with include_stop); stop_ids: ids that end it, beside the tokenizer's own unless
    ignore_eos.
    logprobs, prompt_logprobs: for each token of output or prompt its log-probability and that many most probable ids; None for none.
    prompt_logprobs_start: place of the first prompt token that they are told for; what lies before may be found in the cache.
    logprob_ids: ids whose log-probabilities are told as well. They are those of the model's own logits, before any of the above.
    grammar: what the output must match. processors: (plugin of kind logits_processor, its options), in order.
    skip_special: leave special tokens out of the text. detokenize: False where no text is wanted.
    """

    max_tokens: int = 128
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    n: int = 1
    typical_p: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    allowed_ids: tuple[int, ...] | None = None
    bad_words: tuple[str, ...] = ()
    include_stop: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logprob_ids: tuple[int, ...] = ()
    grammar: GrammarSpec | None = None
    processors: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    skip_special: bool = True
    detokenize: bool = True
    prompt_logprobs_start: int = 0


@dataclass(slots=True)
class StepPlan:
    """One forward pass that an executor is asked for: a ragged batch of sequences and how to sample from it.

    Plain values and numpy arrays on the host, so that it can be sent to another process. Executors keep, by slot, the block table and
    the token sampled last; a slot belongs to one sequence from the step that first names it until another one is put there.

    step: increasing number. input_ids, positions: [T] int64; an id of -1 stands for the token sampled last for that sequence.
    slots: [N] int32, the slot of each sequence. query_lens, seq_lens: [N] int32. slot_mapping: [T] int64.
    num_decodes: the first so many sequences have one new token each.
    table: three int32 arrays (slots, columns, pages): what changes in the block table before this step.
    logits_indices: [M] int64 rows of T to sample from. logits_slots: [M] int32 slot of each.
    sampling: how, a value of the engine that is opaque to the transport; None for the greatest logit everywhere.
    adapters: [N] int32 adapter of each sequence, -1 for none; None when no sequence has one.
    extras: further arrays by name, of the engine.
    """

    step: int
    input_ids: Any
    positions: Any
    slots: Any
    query_lens: Any
    seq_lens: Any
    slot_mapping: Any
    num_decodes: int
    table: tuple[Any, Any, Any]
    logits_indices: Any
    logits_slots: Any
    sampling: Any = None
    adapters: Any = None
    extras: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class StepResult:
    """What a step gave: token_ids [M] int64, a numpy array on the host; extras such as log-probabilities by name."""

    step: int
    token_ids: Any
    extras: dict[str, Any] = field(default_factory=dict)
