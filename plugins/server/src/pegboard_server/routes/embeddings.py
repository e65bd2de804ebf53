"""/v1/embeddings"""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Sequence
from struct import pack

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from pegboard.interfaces.engine import RequestOptions
from pegboard.types import SamplingParams
from pegboard_server import limits
from pegboard_server.answers import Count, new_id
from pegboard_server.errors import bad_request, internal, of_output
from pegboard_server.labels import labelled
from pegboard_server.loop import Job
from pegboard_server.prompts import prompt_ids, prompt_list
from pegboard_server.schemas.embeddings import EmbeddingList, EmbeddingRequest
from pegboard_server.served import Served, ServedDep
from pegboard_server.sse import while_connected

router = APIRouter()


@router.post("/v1/embeddings", response_model=EmbeddingList)
async def create_embeddings(body: EmbeddingRequest, request: Request, served: ServedDep) -> Response:
    """Return a vector of length 1 for each input."""
    return JSONResponse(await while_connected(request, _embed(served, body, request)))


async def _embed(served: Served, body: EmbeddingRequest, request: Request) -> dict[str, object]:
    served.check_open()
    served.check_fields(body)
    adapter = served.adapter(body.model)
    prompts = await prompt_ids(served, prompt_list(served, body.input), "input")
    lengths = list(map(len, prompts))
    limits.answer_tokens(1, lengths, 1, max_model_len=served.max_model_len, limit=served.options.limits, default=None)
    options = RequestOptions(
        priority=body.priority or 0,
        deadline=served.options.deadline,
        queue_timeout=served.options.queue_timeout,
        adapter=adapter,
        task="embed",
        pooling="mean" if served.options.pooling == "mean" else "last",
    )
    name = new_id("embd")
    jobs = [
        Job(f"{name}-{number}", ids, SamplingParams(max_tokens=1, detokenize=False), options)
        for number, ids in enumerate(prompts)
    ]
    model = body.model or served.options.names[0]
    jobs = [labelled(job, request, "embeddings", model) for job in jobs]
    vectors: dict[int, Sequence[float]] = {}
    count = Count()
    async with served.stream(jobs) as stream:
        async for output in stream:
            if output.finish_reason not in (None, "stop", "length"):
                raise of_output(output)
            count.add(output)
            if output.embedding is not None:
                vectors[int(output.request_id.rpartition("-")[2])] = output.embedding
    if len(vectors) < len(jobs):
        raise internal("the engine ended a request without its embedding")
    usage = {**count.usage, "completion_tokens": 0, "total_tokens": count.usage["prompt_tokens"]}
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": _encoded(_unit(vectors[index], body), body.encoding_format),
        }
        for index in range(len(jobs))
    ]
    return {"object": "list", "data": data, "model": model, "usage": usage}


def _unit(vector: Sequence[float], body: EmbeddingRequest) -> list[float]:
    """Return the vector, cut to `dimensions`, at length 1."""
    if body.dimensions is not None and body.dimensions > len(vector):
        raise bad_request(f"dimensions: the model's embeddings have {len(vector)}", "dimensions")
    kept = list(vector[: body.dimensions])
    length = math.sqrt(sum(value * value for value in kept))
    if not math.isfinite(length):
        raise internal("an embedding is not finite")
    return [value / length for value in kept] if length else kept


def _encoded(vector: Sequence[float], encoding: str) -> list[float] | str:
    return b64encode(pack(f"<{len(vector)}f", *vector)).decode() if encoding == "base64" else list(vector)
