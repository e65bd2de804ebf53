"""/v1/chat/completions"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from pegboard.types import SamplingParams
from pegboard_server import chat, limits, sampling
from pegboard_server.answers import ChatAnswer, Count, Envelope, TokenTexts, new_id
from pegboard_server.calls import call_grammar
from pegboard_server.errors import bad_request
from pegboard_server.labels import labelled
from pegboard_server.loop import Job
from pegboard_server.parsing import AnswerParser, ToolUse
from pegboard_server.schemas.chat import ChatCompletion, ChatRequest
from pegboard_server.served import Served, ServedDep
from pegboard_server.sse import EventStream, data, while_connected

router = APIRouter()

PROMPT_END = 64
"""Tokens at the end of a prompt that a parser is shown: templates may begin an answer themselves."""


@dataclass(slots=True)
class Conversation:
    """A checked request: the prompt (token ids too), how it is answered, and how the answer is read."""

    served: Served
    job: Job
    prompt: list[int]
    use: ToolUse
    model: str
    top: int | None
    usage: bool
    created: int = field(default_factory=lambda: int(time.time()))

    async def whole(self) -> dict[str, Any]:
        """Return the complete answer."""
        answers, count, texts = self.answers(), Count(), TokenTexts(self.served.tokenizer)
        async with self.served.stream([self.job]) as stream:
            async for output in stream:
                answer = answers[output.index]
                answer.take(output)
                count.add(output)
                if self.top is not None:
                    answer.logprobs += texts.chat(output.logprobs or (), self.top)
        choices = [
            {
                "index": index,
                "message": answer.message,
                "logprobs": None if self.top is None else {"content": answer.logprobs},
                "finish_reason": answer.finish,
            }
            for index, answer in enumerate(answers)
        ]
        return Envelope(self.job.request_id, "chat.completion", self.model).chunk(choices, count.usage)

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Yield the answer as it comes."""
        answers, count, texts = self.answers(), Count(), TokenTexts(self.served.tokenizer)
        envelope = Envelope(self.job.request_id, "chat.completion.chunk", self.model)
        begun: set[int] = set()
        async with self.served.stream([self.job]) as stream:
            async for output in stream:
                answer = answers[output.index]
                deltas = answer.deltas(answer.take(output))
                count.add(output)
                entries = None if self.top is None else texts.chat(output.logprobs or (), self.top)
                if output.index not in begun:
                    begun.add(output.index)
                    deltas.insert(0, {"role": "assistant", "content": ""})
                if entries and not deltas:
                    deltas.append({"content": ""})
                for number, delta in enumerate(deltas):
                    choice: dict[str, Any] = {"index": output.index, "delta": delta, "finish_reason": None}
                    if entries and number == len(deltas) - 1:
                        choice["logprobs"] = {"content": entries}
                    yield data(envelope.chunk([choice]))
                if answer.finish is not None:
                    yield data(envelope.chunk([{"index": output.index, "delta": {}, "finish_reason": answer.finish}]))
        if self.usage:
            yield data(envelope.chunk([], count.usage))

    def answers(self) -> Sequence[ChatAnswer]:
        """Return the answers, empty."""
        return [ChatAnswer(self.parser()) for _ in range(self.job.params.n)]

    def parser(self) -> AnswerParser:
        """Return a parser for one answer."""
        end = self.served.tokenizer.decode(self.prompt[-PROMPT_END:], skip_special=False)
        return self.served.parsers.parser(self.use, end)


@router.post("/v1/chat/completions", response_model=ChatCompletion)
async def create_chat_completion(body: ChatRequest, request: Request, served: ServedDep) -> Response:
    """Answer a conversation. With `stream`, events of chunks; the last one is `[DONE]`."""
    conversation = await while_connected(request, prepare(served, body))
    conversation.job = labelled(conversation.job, request, "chat", conversation.model)
    if body.stream:
        return EventStream(conversation.chunks(), served.options.keep_alive)
    return JSONResponse(await while_connected(request, conversation.whole()))


async def prepare(served: Served, body: ChatRequest) -> Conversation:
    """Check a request and render its prompt. Raises ApiError, or DataError for a conversation that the template refuses."""
    served.check_open()
    served.check_fields(body)
    limit = served.options.limits
    options = sampling.options(served, body)
    use = chat.tool_use(served, body)
    grammar = sampling.grammar(served, body, body.response_format)
    if use.forced:
        if grammar is not None:
            raise bad_request("tool_choice: an answer that must be a call cannot have another format", "tool_choice")
        grammar = call_grammar(use.tools, use.choice, parallel=use.parallel)
    limits.check_logprobs(body.top_logprobs, limit, "top_logprobs")
    if body.top_logprobs and not body.logprobs:
        raise bad_request("top_logprobs: `logprobs` must be true for it", "top_logprobs")
    limits.check_sampling(body, limit, served.vocab_size)
    variables = dict(body.chat_template_kwargs or {})
    if body.reasoning_effort is not None:
        variables.setdefault("reasoning_effort", body.reasoning_effort)
    ids = await chat.prompt_ids(
        served,
        body.messages,
        body.tools if use.choice != "none" else None,
        generation_prompt=body.add_generation_prompt,
        variables=variables or None,
    )
    asked = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    (longest,) = limits.answer_tokens(
        asked, [len(ids)], body.n or 1, max_model_len=served.max_model_len, limit=limit, default=None
    )
    top = (body.top_logprobs or 0) if body.logprobs else None
    params: SamplingParams = sampling.sampling(served, body, max_tokens=longest, logprobs=top, grammar=grammar)
    job = Job(new_id("chatcmpl"), ids, params, options)
    usage = bool(body.stream_options and body.stream_options.include_usage)
    return Conversation(served, job, ids, use, body.model or served.options.names[0], top, usage)
