"""What observers of a request are told beside what the engine knows."""

from __future__ import annotations

from dataclasses import replace

from fastapi import Request

from pegboard_server.loop import Job

CONTEXT = ("traceparent", "tracestate")
"""Headers of W3C Trace Context, by which a caller's trace goes on here."""
LONGEST = 512
"""Characters; what is longer is no such header."""


def labels(request: Request, operation: str, model: str) -> dict[str, str]:
    """Return the labels of a request's jobs. operation: as OpenTelemetry names it. model: as the client did."""
    found = {"operation": operation, "model": model}
    return found | {name: text for name in CONTEXT if 0 < len(text := request.headers.get(name, "")) <= LONGEST}


def labelled(job: Job, request: Request, operation: str, model: str) -> Job:
    """Return the job with the labels of its request, and apart from those of other keys where the server is told so."""
    options = replace(job.options, labels=labels(request, operation, model))
    if request.app.state.served.options.cache_per_key:
        # Which key it is, and not the key: observers see a request's options.
        options = replace(options, salt=f"key {request.state.key}, {options.salt}")
    return replace(job, options=options)
