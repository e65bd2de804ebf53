"""/v1/completions"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from pegboard.interfaces.engine import RequestOutput, TokenLogprobs
from pegboard_server import limits, sampling
from pegboard_server.answers import Count, Envelope, TokenTexts, new_id
from pegboard_server.errors import bad_request, of_output
from pegboard_server.labels import labelled
from pegboard_server.loop import Job
from pegboard_server.prompts import prompt_ids, prompt_list
from pegboard_server.schemas.completions import Completion, CompletionRequest
from pegboard_server.served import Served, ServedDep
from pegboard_server.sse import EventStream, data, while_connected

router = APIRouter()

DEFAULT_TOKENS = 16
"""max_tokens where a request has none, as OpenAI has it for this endpoint."""


@dataclass(slots=True)
class Text:
    """One answer while it comes. text: begins with the prompt's where that is repeated. silent: no generated token is wanted.

    prompted: whether `tokens` and `entries` hold the prompt's. sent, sent_tokens, offset: characters and tokens that a stream has
    sent, and the characters of those tokens.
    """

    text: str
    silent: bool
    tokens: list[int] = field(default_factory=list)
    entries: list[TokenLogprobs | None] = field(default_factory=list)
    finish: str | None = None
    prompted: bool = False
    sent: int = 0
    sent_tokens: int = 0
    offset: int = 0


@dataclass(slots=True)
class Texts:
    """A checked request: one job a prompt, n answers each; choice i belongs to prompt i // n."""

    served: Served
    jobs: Sequence[Job]
    prompts: Sequence[Sequence[int]]
    echoed: Sequence[str | None]
    model: str
    silent: bool
    top: int | None
    usage: bool

    async def whole(self) -> dict[str, Any]:
        """Return all answers, complete."""
        count, texts = Count(), TokenTexts(self.served.tokenizer)
        answers = self.answers()
        async with self.served.stream(self.jobs) as stream:
            async for output in stream:
                self.take(answers, output)
                count.add(output)
        choices = []
        for index, answer in enumerate(answers):
            choices.append({"index": index, "text": answer.text, "logprobs": None, "finish_reason": answer.finish})
            if self.top is not None:
                choices[-1]["logprobs"] = texts.completion(answer.tokens, answer.entries, self.top, 0)
        return Envelope(self.id, "text_completion", self.model).chunk(choices, self.counted(count))

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Yield the answers as they come."""
        count, texts = Count(), TokenTexts(self.served.tokenizer)
        answers = self.answers()
        envelope = Envelope(self.id, "text_completion", self.model)
        async with self.served.stream(self.jobs) as stream:
            async for output in stream:
                index = self.take(answers, output)
                count.add(output)
                if (choice := self.unsent(answers[index], texts)) is not None:
                    yield data(envelope.chunk([{"index": index, **choice}]))
        if self.usage:
            yield data(envelope.chunk([], self.counted(count)))

    @property
    def id(self) -> str:
        """The request's id; those of its jobs have a number behind it."""
        return self.jobs[0].request_id.rpartition("-")[0]

    def counted(self, count: Count) -> dict[str, Any]:
        """Return the usage. A token that was generated only since there must be one does not count."""
        usage = count.usage
        if self.silent:
            usage |= {"completion_tokens": 0, "total_tokens": usage["prompt_tokens"]}
        return usage

    def answers(self) -> list[Text]:
        """Return the answers, empty, in the order of their choices."""
        return [
            Text(echoed or "", self.silent)
            for job, echoed in zip(self.jobs, self.echoed, strict=True)
            for _ in range(job.params.n)
        ]

    def unsent(self, answer: Text, texts: TokenTexts) -> dict[str, Any] | None:
        """Return what a stream has not sent of an answer yet, None for nothing."""
        piece, answer.sent = answer.text[answer.sent :], len(answer.text)
        logprobs = None
        if self.top is not None and len(answer.tokens) > answer.sent_tokens:
            new = slice(answer.sent_tokens, None)
            logprobs = texts.completion(answer.tokens[new], answer.entries[new], self.top, answer.offset)
            answer.offset += sum(map(len, logprobs["tokens"]))
            answer.sent_tokens = len(answer.tokens)
        if not piece and logprobs is None and answer.finish is None:
            return None
        return {"text": piece, "logprobs": logprobs, "finish_reason": answer.finish}

    def choice(self, output: RequestOutput) -> int:
        """Return the index of the choice that an output belongs to."""
        prompt = int(output.request_id.rpartition("-")[2])
        return prompt * self.jobs[prompt].params.n + output.index

    def take(self, answers: Sequence[Text], output: RequestOutput) -> int:
        """Add an output and return its choice. Raises ApiError for an answer that failed."""
        if output.finish_reason not in (None, "stop", "length"):
            raise of_output(output)
        index = self.choice(output)
        answer = answers[index]
        first = index - output.index
        if output.prompt_logprobs is not None and not answers[first].prompted:  # they come once, for all answers
            for each in answers[first : first + self.jobs[0].params.n]:
                each.prompted = True
                each.tokens[:0] = self.prompts[first // self.jobs[0].params.n]
                each.entries[:0] = output.prompt_logprobs
        if not answer.silent:
            answer.text += output.text
            if output.logprobs is not None:
                answer.tokens += output.token_ids
                answer.entries += output.logprobs
        if output.finish_reason is not None:
            answer.finish = "length" if answer.silent else output.finish_reason
        return index


@router.post("/v1/completions", response_model=Completion)
async def create_completion(body: CompletionRequest, request: Request, served: ServedDep) -> Response:
    """Continue texts, or lists of token ids. With `stream`, events of chunks; the last one is `[DONE]`."""
    texts = await while_connected(request, prepare(served, body))
    texts.jobs = [labelled(job, request, "text_completion", texts.model) for job in texts.jobs]
    if body.stream:
        return EventStream(texts.chunks(), served.options.keep_alive)
    return JSONResponse(await while_connected(request, texts.whole()))


async def prepare(served: Served, body: CompletionRequest) -> Texts:
    """Check a request and encode its prompts. Raises ApiError."""
    served.check_open()
    served.check_fields(body)
    limit = served.options.limits
    if body.suffix:
        raise bad_request("suffix: text cannot be filled in between two others", "suffix", "unsupported")
    answers = body.n or 1
    if body.best_of is not None and body.best_of != answers:
        raise bad_request("best_of: only as many as `n` can be made", "best_of", "unsupported")
    limits.check_logprobs(body.logprobs, limit, "logprobs")
    options = sampling.options(served, body)
    grammar = sampling.grammar(served, body, body.response_format)
    limits.check_sampling(body, limit, served.vocab_size)
    prompts = await prompt_ids(served, prompt_list(served, body.prompt), "prompt")
    silent = body.max_tokens == 0
    if silent and not body.echo:
        raise bad_request("max_tokens: at least 1 is needed, or `echo`", "max_tokens")
    asked = DEFAULT_TOKENS if body.max_tokens is None else max(body.max_tokens, 1)
    if body.max_tokens is None:
        asked = max(min(asked, served.max_model_len - max(map(len, prompts))), 1)
    longest = limits.answer_tokens(
        asked, list(map(len, prompts)), answers, max_model_len=served.max_model_len, limit=limit, default=None
    )
    name = new_id("cmpl")
    jobs = []
    for number, (ids, tokens) in enumerate(zip(prompts, longest, strict=True)):
        told = body.logprobs if body.echo else None
        params = sampling.sampling(
            served, body, max_tokens=tokens, logprobs=body.logprobs, prompt_logprobs=told, grammar=grammar
        )
        jobs.append(Job(f"{name}-{number}", ids, params, options))
    echoed: Sequence[str | None] = await served.renderer.decode_all(prompts) if body.echo else [None] * len(prompts)
    usage = bool(body.stream_options and body.stream_options.include_usage)
    model = body.model or served.options.names[0]
    return Texts(served, jobs, prompts, echoed, model, silent, body.logprobs, usage)
