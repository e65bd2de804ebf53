"""The Python interface: load a model once, generate for many prompts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Literal

from pegboard.build import BuiltModel
from pegboard.errors import ConfigError, PegboardError
from pegboard.interfaces.engine import Engine, FinishReason, Pooling, RequestOptions, RequestOutput, TokenLogprobs
from pegboard.interfaces.tokenizer import Tokenizer
from pegboard.opened import open_any
from pegboard.plugins.load import Registry
from pegboard.types import Message, SamplingParams
from pegboard_engine.sampling.beam import Beam, BeamOptions, beam_search

Prompt = str | Sequence[int]
Conversation = Sequence[Message | Mapping[str, Any]]


@dataclass(slots=True)
class Completion:
    """One answer. error: a line for people when finish_reason is "error". stop_reason: the stop text or id that ended it. logprobs:
    one entry a token, where asked for. cumulative_logprob: their sum.
    """

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    error: str | None = None
    stop_reason: str | int | None = None
    logprobs: list[TokenLogprobs] | None = None

    @property
    def cumulative_logprob(self) -> float | None:
        """Sum of the log-probabilities of its tokens; None where they were not asked for."""
        return None if self.logprobs is None else sum(entry.logprob for entry in self.logprobs)

    def add(self, output: RequestOutput) -> None:
        """Take what a step added."""
        self.text += output.text
        self.token_ids += output.token_ids
        self.finish_reason, self.error, self.stop_reason = output.finish_reason, output.error, output.stop_reason
        if output.logprobs is not None:
            self.logprobs = [*(self.logprobs or ()), *output.logprobs]


@dataclass(slots=True)
class Generation:
    """A prompt with its answers. prompt: the text, None where ids were given. num_cached_tokens: of the prompt, found in the cache.

    embedding: of the prompt, from `LLM.embed`.
    """

    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[Completion]
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    num_cached_tokens: int = 0
    embedding: list[float] | None = None

    def add(self, output: RequestOutput) -> bool:
        """Take what a step added; return whether the answer it belongs to is complete."""
        self.outputs[output.index].add(output)
        if output.prompt_logprobs is not None:
            self.prompt_logprobs = output.prompt_logprobs
        if output.embedding is not None:
            self.embedding = output.embedding
        if output.num_cached_tokens and output.index == 0:
            self.num_cached_tokens = output.num_cached_tokens
        return output.finish_reason is not None


class LLM:
    """A model behind an engine.

    model: a folder (of a model, or of an adapter beside its base), a file or a hub id. quantizer: name of a plugin that stores the
    weights in fewer bits, or a mapping with "use" and its options. adapters: name -> folder of adapters to load beside the model, which
    requests choose with `RequestOptions(adapter=name)`. Options beside the named ones are the engine's own:
    `LLM("model.gguf", kv_memory="1GiB", max_model_len=4096)`.
    """

    def __init__(
        self,
        model: str,
        *,
        revision: str | None = None,
        platform: str = "auto",
        device: int = 0,
        dtype: str = "auto",
        attention: str = "auto",
        quantizer: str | Mapping[str, Any] | None = None,
        engine: str = "paged",
        adapters: Mapping[str, str] | None = None,
        registry: Registry | None = None,
        **options: Any,
    ) -> None:
        self.registry = registry or Registry.discover()
        # Options first: a wrong one is told before a model is read.
        self.engine: Engine = self.registry.create("engine", {"use": engine, **options})
        opened = open_any(self.registry, model, revision)
        self.tokenizer: Tokenizer = opened.tokenizer(self.registry)
        self.built: BuiltModel = opened.prepare(
            self.registry, platform=platform, device=device, dtype=dtype, attention=attention, quantizer=quantizer
        )
        self.registry.hooks.call("model_built", role="engine", model=self.built.model)
        self.engine.load(self.built, self.tokenizer, self.registry)
        self._count = 0
        try:
            for name, folder in (adapters or {}).items():
                self.engine.load_adapter(name, folder)
        except BaseException:
            self.close()
            raise

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        options: RequestOptions | Sequence[RequestOptions] | None = None,
    ) -> list[Generation]:
        """Return the answers in the order of the prompts.

        prompts: a text or a list of token ids, or a list of such. params: for all, or one for each; None for the model's own.
        options: priority, adapter and the like, for all or for each.
        """
        listed = _listed(prompts)
        return self._run([self._encoded(prompt) for prompt in listed], [_text(p) for p in listed], params, options)

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        options: RequestOptions | Sequence[RequestOptions] | None = None,
        **template: Any,
    ) -> list[Generation]:
        """As `generate`, for conversations through the model's chat template.

        messages: [{"role": …, "content": …}, …] or a list of such; template: variables of the template.
        """
        conversations = list(messages)
        if conversations and isinstance(conversations[0], (Message, Mapping)):
            conversations = [messages]  # type: ignore[list-item]
        turns = [as_messages(conversation) for conversation in conversations]  # type: ignore[arg-type]
        tokens = [self.tokenizer.chat(messages, variables=template) for messages in turns]
        texts = [self.tokenizer.chat_text(messages, variables=template) for messages in turns]
        return self._run(tokens, texts, params, options)

    def embed(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        pooling: Pooling = "last",
        normalize: bool = True,
        adapter: str | None = None,
    ) -> list[list[float]]:
        """Return an embedding of each prompt, [H] floats: the last hidden state of its last token, or the mean over all.

        normalize: divide by the Euclidean length. adapter: name of a loaded one.
        """
        listed = _listed(prompts)
        options = RequestOptions(task="embed", pooling=pooling, adapter=adapter)
        found = self._run([self._encoded(p) for p in listed], [_text(p) for p in listed], SamplingParams(), options)
        return [_unit(one.embedding or []) if normalize else one.embedding or [] for one in found]

    def score(
        self, prompts: Sequence[Prompt], labels: tuple[str, str] = ("yes", "no"), *, adapter: str | None = None
    ) -> list[float]:
        """Return how much more the model would answer each prompt with the first label than with the second, from 0 to 1.

        The way to rank documents with a decoder: a prompt holds a query and a document and asks whether they match. Each label
        counts with its first token. adapter: name of a loaded one.
        """
        ids = tuple(self.tokenizer.encode(label, special=False)[0] for label in labels)
        if ids[0] == ids[1]:
            raise ConfigError(f"the labels {labels} begin with the same token", fix="choose labels that differ earlier")
        params = SamplingParams(max_tokens=1, temperature=0, logprob_ids=ids, logprobs=0)
        options = RequestOptions(adapter=adapter)
        found = self._run([self._encoded(p) for p in prompts], [_text(p) for p in prompts], params, options)
        pairs = [dict(one.outputs[0].logprobs[0].extra) for one in found if one.outputs[0].logprobs]
        return [1 / (1 + math.exp(pair[ids[1]] - pair[ids[0]])) for pair in pairs]

    def beam_search(
        self,
        prompts: Prompt | Sequence[Prompt],
        num_beams: int,
        max_tokens: int = 128,
        *,
        length_penalty: float = 1.0,
        early_stopping: bool | Literal["never"] = False,
    ) -> list[list[Beam]]:
        """Return the `num_beams` best outputs of each prompt, best first, as Hugging Face's `generate(num_beams=…)` finds them.

        A step of the search is a batch of requests of one token each, whose beginnings are found in the cache.
        """
        ends = self.tokenizer.eos_ids
        options = BeamOptions(num_beams, max_tokens, ends, length_penalty, early_stopping)
        return beam_search(self._next_logprobs, [self._encoded(prompt) for prompt in _listed(prompts)], options)

    def _next_logprobs(self, sequences: Sequence[Sequence[int]], count: int) -> list[list[tuple[int, float]]]:
        params = SamplingParams(
            max_tokens=1, temperature=0, logprobs=min(count, self.engine.vocab_size), detokenize=False
        )
        found = self._run([list(ids) for ids in sequences], [None] * len(sequences), params)
        if (failed := next((one.outputs[0] for one in found if one.outputs[0].logprobs is None), None)) is not None:
            raise PegboardError(f"a step of the search failed: {failed.error}", fix="look at the log")
        return [list(one.outputs[0].logprobs[0].top) for one in found if one.outputs[0].logprobs]

    def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, options: RequestOptions | None = None
    ) -> Iterator[RequestOutput]:
        """Yield what each step adds to one answer; leaving the loop early ends the request."""
        params = params or self.default_params()
        if params.n != 1:
            raise ConfigError("a stream is of one answer", fix="leave n at 1, or use `generate`")
        request_id = self._add(self._encoded(prompt), params, options)
        finished = False
        try:
            while not finished:
                for output in self.engine.step():
                    if output.request_id == request_id:
                        finished = output.finish_reason is not None
                        yield output
        finally:
            self.engine.abort(request_id)

    def default_params(self, **changes: Any) -> SamplingParams:
        """Return the model's own sampling (generation_config.json), with `changes`."""
        return default_params(self.built.files.generation_config, **changes)

    def close(self) -> None:
        """Free the cache. Safe to call twice."""
        self.engine.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(
        self,
        prompts: Sequence[list[int]],
        texts: Sequence[str | None],
        params: SamplingParams | Sequence[SamplingParams] | None,
        options: RequestOptions | Sequence[RequestOptions] | None = None,
    ) -> list[Generation]:
        each = [params or self.default_params()] * len(prompts) if not isinstance(params, Sequence) else list(params)
        chosen = list(options) if isinstance(options, Sequence) else [options] * len(prompts)
        for what, given in (("params", each), ("options", chosen)):
            if len(given) != len(prompts):
                raise ConfigError(
                    f"{len(prompts)} prompts, {len(given)} {what}", fix="give one for all, or one for each"
                )
        found: dict[str, Generation] = {}
        try:
            for text, prompt, one, option in zip(texts, prompts, each, chosen, strict=True):
                # Nobody sees its parts, so that they need not be made.
                request_id = self._add(prompt, one, replace(option or RequestOptions(), whole=True))
                found[request_id] = Generation(text, prompt, [Completion(index) for index in range(one.n)])
            left = sum(one.n for one in each)
            while left:
                for output in self.engine.step():
                    generation = found.get(output.request_id)
                    left -= generation is not None and generation.add(output)
        except BaseException:
            for request_id in found:
                self.engine.abort(request_id)
            raise
        return list(found.values())

    def _add(self, prompt: list[int], params: SamplingParams, options: RequestOptions | None = None) -> str:
        self._count += 1
        request_id = f"llm-{self._count}"
        self.engine.add_request(request_id, prompt, params, options)
        return request_id

    def _encoded(self, prompt: Prompt) -> list[int]:
        return self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)


def as_messages(conversation: Conversation) -> list[Message]:
    """Return messages, given as such or as mappings. Raises ConfigError for one without role or content."""
    found = []
    for number, message in enumerate(conversation):
        if isinstance(message, Message):
            found.append(message)
            continue
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or not isinstance(content, str):
            raise ConfigError(
                f"message {number} needs a role and a content of text, found {dict(message)!r}",
                fix='write {"role": "user", "content": "…"}',
            )
        found.append(Message(role, content, {k: v for k, v in message.items() if k not in ("role", "content")}))
    return found


def default_params(generation_config: Mapping[str, Any], **changes: Any) -> SamplingParams:
    """Return sampling as a generation_config.json asks for it, with `changes`; None among them means not given."""
    own: dict[str, Any] = {}
    for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty"):
        value = generation_config.get(name)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            own[name] = value
    if generation_config.get("do_sample") is not True:
        # Without do_sample its file means greedy decoding, whatever the temperature that stands beside it.
        own = {"temperature": 0.0, **{k: v for k, v in own.items() if k == "repetition_penalty"}}
    return SamplingParams(**{**own, **{k: v for k, v in changes.items() if v is not None}})


def _listed(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str) or (prompts and isinstance(prompts[0], int)):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]


def _text(prompt: Prompt) -> str | None:
    return prompt if isinstance(prompt, str) else None


def _unit(vector: list[float]) -> list[float]:
    length = math.sqrt(sum(x * x for x in vector))
    return [x / length for x in vector] if length else vector
