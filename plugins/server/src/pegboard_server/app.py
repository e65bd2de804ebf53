"""The ASGI application."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from pegboard import __version__
from pegboard_server import errors
from pegboard_server.guard import Guard
from pegboard_server.routes import chat, completions, health, models
from pegboard_server.schemas.base import ErrorBody
from pegboard_server.security import Keys
from pegboard_server.served import Served

ROUTERS = (chat.router, completions.router, models.router, health.router)
OPEN = ("/health", "/ready")
"""Routes that need no key."""


def create_app(served: Served) -> ASGIApp:
    """Return the application around `served`, whose loop it starts and stops with its lifespan."""
    options = served.options

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        served.loop.start()
        try:
            yield
        finally:
            served.loop.end_all("the server is shutting down")
            await served.loop.stop()
            served.renderer.close()

    app = _fastapi(served, "Pegboard", lifespan=lifespan)
    for router in ROUTERS:
        app.include_router(router)
    guarded: ASGIApp = Guard(
        app,
        keys=Keys(options.keys),
        limits=options.limits,
        metrics=served.metrics,
        open_paths=OPEN,
        hosts=options.hosts,
    )
    if options.origins:
        return CORSMiddleware(
            guarded,
            allow_origins=list(options.origins),
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type"],
            expose_headers=["x-request-id", "retry-after"],
        )
    return guarded


def _fastapi(served: Served, title: str, **settings: object) -> FastAPI:
    codes = (400, 401, 403, 404, 408, 413, 429, 500, 503, 504)
    app = FastAPI(
        title=title,
        version=__version__,
        docs_url=None,
        redoc_url=None,
        responses={code: {"model": ErrorBody, "description": "No success"} for code in codes},
        **settings,  # type: ignore[arg-type]
    )
    app.state.served = served
    errors.install(app)
    return app
