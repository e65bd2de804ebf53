"""The Python interface: load a model once, generate for many prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from pegboard.build import BuiltModel
from pegboard.errors import ConfigError
from pegboard.interfaces.engine import Engine, FinishReason, RequestOutput
from pegboard.interfaces.tokenizer import Tokenizer
from pegboard.opened import open_any
from pegboard.plugins.load import Registry
from pegboard.types import Message, SamplingParams

Prompt = str | Sequence[int]
Conversation = Sequence[Message | Mapping[str, Any]]


@dataclass(slots=True)
class Completion:
    """One answer. error: a line for people when finish_reason is "error"."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    error: str | None = None


@dataclass(slots=True)
class Generation:
    """A prompt with its answers. prompt: the text, None where ids were given."""

    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[Completion]


class LLM:
    """A model behind an engine.

    model: a folder (of a model, or of an adapter beside its base), a file or a hub id. Options beside the named ones are the
    engine's own: `LLM("model.gguf", kv_memory="1GiB", max_model_len=4096)`.
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
        engine: str = "paged",
        registry: Registry | None = None,
        **options: Any,
    ) -> None:
        self.registry = registry or Registry.discover()
        # Options first: a wrong one is told before a model is read.
        self.engine: Engine = self.registry.create("engine", {"use": engine, **options})
        opened = open_any(self.registry, model, revision)
        self.tokenizer: Tokenizer = opened.tokenizer(self.registry)
        self.built: BuiltModel = opened.build(
            self.registry, platform=platform, device=device, dtype=dtype, attention=attention
        )
        self.registry.hooks.call("model_built", role="engine", model=self.built.model)
        self.engine.load(self.built, self.tokenizer, self.registry)
        self._count = 0

    def generate(
        self, prompts: Prompt | Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> list[Generation]:
        """Return the answers in the order of the prompts.

        prompts: a text or a list of token ids, or a list of such. params: for all, or one for each; None for the model's own.
        """
        listed = _listed(prompts)
        return self._run([self._encoded(prompt) for prompt in listed], [_text(p) for p in listed], params)

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
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
        return self._run(tokens, [self.tokenizer.chat_text(m, variables=template) for m in turns], params)

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[RequestOutput]:
        """Yield what each step adds to one answer; leaving the loop early ends the request."""
        request_id = self._add(self._encoded(prompt), params or self.default_params())
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
    ) -> list[Generation]:
        each = [params or self.default_params()] * len(prompts) if not isinstance(params, Sequence) else list(params)
        if len(each) != len(prompts):
            raise ConfigError(f"{len(prompts)} prompts, {len(each)} params", fix="give one for all, or one for each")
        ids: list[str] = []
        answers: dict[str, Completion] = {}
        try:
            for prompt, one in zip(prompts, each, strict=True):
                ids.append(self._add(prompt, one))
                answers[ids[-1]] = Completion(0)
            while any(answer.finish_reason is None for answer in answers.values()):
                for output in self.engine.step():
                    answer = answers.get(output.request_id)
                    if answer is None:
                        continue
                    answer.text += output.text
                    answer.token_ids += output.token_ids
                    answer.finish_reason, answer.error = output.finish_reason, output.error
        except BaseException:
            for request_id in ids:
                self.engine.abort(request_id)
            raise
        rows = zip(texts, prompts, ids, strict=True)
        return [Generation(text, prompt, [answers[request_id]]) for text, prompt, request_id in rows]

    def _add(self, prompt: list[int], params: SamplingParams) -> str:
        self._count += 1
        request_id = f"llm-{self._count}"
        self.engine.add_request(request_id, prompt, params)
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
