"""/health, /ready, /metrics"""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import PlainTextResponse

from pegboard_server.errors import unavailable
from pegboard_server.metrics import CONTENT_TYPE
from pegboard_server.schemas.base import Part
from pegboard_server.served import ServedDep

router = APIRouter()


class Status(Part):
    """A word for people; the HTTP status is what counts."""

    status: str


@router.get("/health")
async def health(served: ServedDep) -> Status:
    """200 while the engine runs."""
    if not served.loop.alive:
        raise unavailable("the engine has stopped")
    return Status(status="ok")


@router.get("/ready")
async def ready(served: ServedDep) -> Status:
    """200 when a request would be taken: the engine is warm, and the server not about to stop."""
    served.check_open()
    if not served.ready:
        raise unavailable("the engine is warming up")
    return Status(status="ready")


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(served: ServedDep) -> PlainTextResponse:
    """Numbers for Prometheus."""
    return PlainTextResponse(served.metrics.text(served.loop.stats()), media_type=CONTENT_TYPE)
