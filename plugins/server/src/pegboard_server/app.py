"""The ASGI application."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from pegboard import __version__
from pegboard_server import errors
from pegboard_server.guard import Guard
from pegboard_server.routes import admin, chat, completions, embeddings, health, models, page, responses, score, tokens
from pegboard_server.schemas.base import ErrorBody
from pegboard_server.security import Keys
from pegboard_server.served import Served

ROUTERS = tuple(
    family.router for family in (chat, completions, responses, embeddings, models, tokens, score, health, page)
)
OPEN = ("/health", "/ready", *page.PAGES)
"""Routes that need no key."""


def create_app(served: Served) -> FastAPI:
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
    _guard(served, app, OPEN)
    if options.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(options.origins),
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type"],
            expose_headers=["x-request-id", "retry-after"],
        )
    return app


def create_admin_app(served: Served) -> FastAPI:
    """Return the application of those who run the server; its keys are those of the other one."""
    app = _fastapi(served, "Pegboard administration")
    app.include_router(admin.router)
    _guard(served, app, ())
    return app


def _guard(served: Served, app: FastAPI, open_paths: Sequence[str]) -> None:
    options = served.options
    app.add_middleware(
        Guard,
        keys=Keys(options.keys),
        limits=options.limits,
        metrics=served.metrics,
        open_paths=open_paths,
        hosts=options.hosts,
    )


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
