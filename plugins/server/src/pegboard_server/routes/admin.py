"""Adapters and the cache, on a listener of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter
from pydantic import Field

from pegboard.errors import PegboardError
from pegboard.interfaces.engine import Engine
from pegboard_server.errors import bad_request, of_user, unavailable
from pegboard_server.loop import EngineDead
from pegboard_server.schemas.base import Body, Part
from pegboard_server.served import Served, ServedDep

router = APIRouter()

Name = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_.\-/]+$")]


class LoadAdapter(Body):
    """folder: on the server's machine."""

    name: Name
    folder: Annotated[str, Field(min_length=1, max_length=4096)]


class UnloadAdapter(Body):
    """An adapter that no request uses."""

    name: Name


class Adapters(Part):
    """Name -> folder."""

    adapters: dict[str, str]


@router.get("/adapters")
async def list_adapters(served: ServedDep) -> Adapters:
    """List the loaded adapters."""
    return Adapters(adapters=served.adapters)


@router.post("/adapters/load")
async def load_adapter(body: LoadAdapter, served: ServedDep) -> Adapters:
    """Load an adapter; requests name it as their model."""
    served.check_fields(body)
    if body.name in served.options.names:
        raise bad_request(f"name: {body.name!r} is the model's own", "name")
    await _run(served, lambda engine: engine.load_adapter(body.name, body.folder))
    return Adapters(adapters=served.adapters)


@router.post("/adapters/unload")
async def unload_adapter(body: UnloadAdapter, served: ServedDep) -> Adapters:
    """Forget an adapter that no request uses."""
    served.check_fields(body)
    await _run(served, lambda engine: engine.unload_adapter(body.name))
    return Adapters(adapters=served.adapters)


@router.post("/cache/reset")
async def reset_cache(served: ServedDep) -> Adapters:
    """Forget every cached prefix; what runs goes on."""
    await _run(served, lambda engine: engine.reset_cache())
    return Adapters(adapters=served.adapters)


async def _run(served: Served, change: Callable[[Engine], None]) -> None:
    """Change the engine between two steps, and take over which adapters it has then."""

    def both(engine: Engine) -> dict[str, str]:
        change(engine)
        return dict(engine.adapters())

    try:
        served.adapters = await served.loop.call(both)
    except EngineDead:
        raise unavailable("the engine has stopped") from None
    except PegboardError as error:
        raise of_user(error) from error
