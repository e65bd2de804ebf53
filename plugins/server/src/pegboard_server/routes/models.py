"""/v1/models"""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter

from pegboard_server.errors import ApiError
from pegboard_server.schemas.base import Part
from pegboard_server.served import Served, ServedDep

router = APIRouter()


class ModelCard(Part):
    """A name that `model` may have. parent: the base of an adapter."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "pegboard"
    parent: str | None = None
    max_model_len: int


class ModelList(Part):
    """The base under each of its names, then the adapters."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


@router.get("/v1/models")
async def list_models(served: ServedDep) -> ModelList:
    """List what requests may name as their model."""
    return ModelList(data=_cards(served))


@router.get("/v1/models/{model:path}")
async def retrieve_model(model: str, served: ServedDep) -> ModelCard:
    """Tell of one model."""
    for card in _cards(served):
        if card.id == model:
            return card
    raise ApiError(404, f"there is no model {model[:200]!r}", param="model", code="model_not_found")


def _cards(served: Served) -> list[ModelCard]:
    common: dict[str, Any] = {"created": served.created, "max_model_len": served.max_model_len}
    base = [ModelCard(id=name, **common) for name in served.options.names]
    return base + [ModelCard(id=name, parent=served.options.names[0], **common) for name in served.adapters]
