"""/score: how well documents answer a query, by what the model says when it is asked."""

from __future__ import annotations

import asyncio
import math
import re
import time

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from pegboard.interfaces.engine import RequestOptions
from pegboard.types import Message, SamplingParams
from pegboard_server import limits
from pegboard_server.answers import Count, new_id
from pegboard_server.errors import bad_request, internal, of_output
from pegboard_server.labels import labelled
from pegboard_server.loop import Job
from pegboard_server.schemas.embeddings import ScoreList, ScoreRequest
from pegboard_server.served import Served, ServedDep
from pegboard_server.sse import while_connected

router = APIRouter()

QUESTION = 'Does the document answer the query? Say "{yes}" or "{no}" and nothing else.\n\nQuery: {query}\n\nDocument: {document}'
"""What is asked where the server was given no template of its own."""


@router.post("/score", response_model=ScoreList)
async def score(body: ScoreRequest, request: Request, served: ServedDep) -> Response:
    """Return for each document how probable the model finds "yes" against "no"."""
    return JSONResponse(await while_connected(request, _score(served, body, request)))


async def _score(served: Served, body: ScoreRequest, request: Request) -> dict[str, object]:
    served.check_open()
    served.check_fields(body)
    pairs = _pairs(body, served.options.limits.prompts)
    options = RequestOptions(
        priority=body.priority or 0,
        deadline=served.options.deadline,
        queue_timeout=served.options.queue_timeout,
        adapter=served.adapter(body.model),
    )
    labels = label_ids(served)
    prompts = await asyncio.gather(*(prompt(served, *pair) for pair in pairs))
    limits.answer_tokens(
        1, list(map(len, prompts)), 1, max_model_len=served.max_model_len, limit=served.options.limits, default=None
    )
    name = new_id("score")
    params = SamplingParams(max_tokens=1, temperature=0.0, logprob_ids=labels, logprobs=0, detokenize=False)
    jobs = [Job(f"{name}-{number}", ids, params, options) for number, ids in enumerate(prompts)]
    jobs = [labelled(job, request, "score", body.model or served.options.names[0]) for job in jobs]
    scores: dict[int, float] = {}
    count = Count()
    async with served.stream(jobs) as stream:
        async for output in stream:
            if output.finish_reason not in (None, "stop", "length"):
                raise of_output(output)
            count.add(output)
            for entry in output.logprobs or ():
                scores[int(output.request_id.rpartition("-")[2])] = _share(entry.extra[0][1], entry.extra[1][1])
    if len(scores) < len(jobs):
        raise internal("the engine ended a request without its log-probabilities")
    return {
        "id": name,
        "object": "list",
        "created": int(time.time()),
        "model": body.model or served.options.names[0],
        "data": [{"index": index, "object": "score", "score": scores[index]} for index in range(len(jobs))],
        "usage": {**count.usage, "completion_tokens": 0, "total_tokens": count.usage["prompt_tokens"]},
    }


def label_ids(served: Served) -> tuple[int, int]:
    """Return the first token of each label. Raises ApiError when the two begin alike."""
    first, second = (served.tokenizer.encode(label, special=False)[:1] for label in served.options.score_labels)
    if not first or not second or first == second:
        raise bad_request("the server's labels of yes and no begin with the same token", code="unsupported")
    return first[0], second[0]


async def prompt(served: Served, query: str, document: str) -> list[int]:
    """Return the ids of the question: the server's template as it is, or the built-in one as a chat where there is a template."""
    yes, no = served.options.score_labels
    values = {"query": query, "document": document, "yes": yes, "no": no}

    def filled(template: str) -> str:  # in one pass, so that a document cannot name the query
        return re.sub(r"\{(query|document|yes|no)\}", lambda found: values[found[1]], template)

    if served.options.score_template is not None:
        return await served.renderer.encode(filled(served.options.score_template))
    if not served.tokenizer.has_chat_template:
        return await served.renderer.encode(filled(QUESTION + "\n\nAnswer:\n"))
    return await served.renderer.chat([Message("user", filled(QUESTION))], None, generation_prompt=True)


def _pairs(body: ScoreRequest, most: int) -> list[tuple[str, str]]:
    documents = [body.documents] if isinstance(body.documents, str) else body.documents
    queries = [body.query] * len(documents) if isinstance(body.query, str) else body.query
    if len(queries) == 1:
        queries = queries * len(documents)
    if len(queries) != len(documents):
        raise bad_request(f"query: {len(queries)} for {len(documents)} documents; give one, or one for each", "query")
    if len(documents) > most:
        raise bad_request(f"documents: {len(documents)} are too many, at most {most} are allowed", "documents")
    return list(zip(queries, documents, strict=True))


def _share(yes: float, no: float) -> float:
    """Return the softmax of two log-probabilities, of the first."""
    return 1 / (1 + math.exp(min(no - yes, 700.0)))
