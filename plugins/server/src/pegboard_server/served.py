"""What routes work with: one model behind its loop, and how the server was told to serve it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, Request

from pegboard.errors import PegboardError
from pegboard.interfaces.tokenizer import Tokenizer
from pegboard_server.admission import Admission
from pegboard_server.errors import ApiError, bad_request, of_user, unavailable
from pegboard_server.loop import EngineDead, EngineLoop, Job
from pegboard_server.metrics import Metrics
from pegboard_server.options import ServerOptions
from pegboard_server.parsing import Parsers
from pegboard_server.render import Renderer
from pegboard_server.schemas.base import Body
from pegboard_server.stream import Stream


@dataclass(slots=True)
class Served:
    """Belongs to the event loop.

    defaults: the model's generation_config.json. max_model_len, vocab_size: the engine's. ready: a first request has been answered.
    draining: no request is taken any more.
    """

    loop: EngineLoop
    tokenizer: Tokenizer
    options: ServerOptions
    metrics: Metrics
    admission: Admission
    renderer: Renderer
    parsers: Parsers
    max_model_len: int
    vocab_size: int
    defaults: Mapping[str, Any] = field(default_factory=dict)
    adapters: dict[str, str] = field(default_factory=dict)
    created: int = field(default_factory=lambda: int(time.time()))
    ready: bool = False
    draining: bool = False

    @asynccontextmanager
    async def stream(self, jobs: Sequence[Job]) -> AsyncIterator[Stream]:
        """Give requests to the engine; what is left of them when the block is left is ended.

        Raises ApiError when the server is full or has no engine, and for what the engine refuses.
        """
        self.check_open()
        with self.admission.admit(len(jobs)):
            try:
                stream = await self.loop.open(jobs)
            except EngineDead:
                raise unavailable("the engine has stopped") from None
            except PegboardError as error:
                raise of_user(error) from error
            try:
                yield stream
            except ApiError:
                self.loop.close(stream, "failure")  # one answer failed, and the others of its request with it
                raise
            finally:
                self.loop.close(stream)

    def adapter(self, model: str | None) -> str | None:
        """Return the adapter that a request's `model` means, None for the model itself. Raises ApiError for an unknown name."""
        if model is None or model in self.options.names:
            return None
        if model in self.adapters:
            return model
        known = ", ".join([*self.options.names, *self.adapters])
        raise ApiError(
            404, f"there is no model {model[:200]!r}; served: {known}", param="model", code="model_not_found"
        )

    def check_open(self) -> None:
        """Raise ApiError when no request is taken."""
        if self.draining:
            raise unavailable("the server is shutting down")
        if not self.loop.alive:
            raise unavailable("the engine has stopped")

    def check_fields(self, body: Body) -> None:
        """Raise ApiError for fields that nobody knows, unless they are to be ignored."""
        names = body.unknown() if self.options.unknown == "reject" else []
        if names:
            name = names[0][:100]
            raise bad_request(f"Unrecognized request argument supplied: {name}", name, "unknown_parameter")


def _served(request: Request) -> Served:
    served: Served = request.app.state.served
    return served


ServedDep = Annotated[Served, Depends(_served)]
