"""What a forward pass keeps for the backward pass: recomputing it, keeping it on the host, compiling it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from pegboard.build import BuiltModel
from pegboard_trainer.config import MemorySection
from pegboard_trainer.recompute import Recomputed

PRODUCTS = ("mm", "addmm", "bmm", "_scaled_dot_product", "scaled_dot_product", "linear")
"""Beginnings of the names of operations that cost more to compute again than to keep."""


def save_memory(built: BuiltModel, section: MemorySection) -> None:
    """Wrap the layers of a model as the section says. Values and gradients stay what they are."""
    for index, layer in enumerate(built.model.model.layers):
        if section.compile:
            layer.compile(dynamic=True)
        if section.recompute is not None and index % section.every == 0:
            if section.recompute == "cheap" and not (section.compile or section.offload):
                again = Recomputed(layer)
                for name in ("forward", "chained"):
                    if hasattr(layer, name):
                        setattr(layer, name, again.wrap(getattr(layer, name)))
            else:
                contexts = _keep_products if section.recompute == "cheap" else None
                layer.forward = _recomputed(layer.forward, contexts)
        if section.offload:
            layer.forward = _offloaded(layer.forward, pinned=built.device.type != "cpu")


def _recomputed(forward: Callable[..., Any], contexts: Callable[[], Any] | None) -> Callable[..., Any]:
    """Return a forward pass of which the input alone is kept (arXiv:1604.06174), or what `contexts` says."""
    options: dict[str, Any] = {} if contexts is None else {"context_fn": contexts}

    def run(*arguments: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*arguments)
        return checkpoint(forward, *arguments, use_reentrant=False, **options)

    return run


def _keep_products() -> Any:
    return create_selective_checkpoint_contexts(_policy)


def _policy(context: Any, operation: Any, *arguments: Any, **options: Any) -> CheckpointPolicy:
    name = operation.name().rpartition("::")[2]
    return CheckpointPolicy.MUST_SAVE if name.startswith(PRODUCTS) else CheckpointPolicy.PREFER_RECOMPUTE


def _offloaded(forward: Callable[..., Any], *, pinned: bool) -> Callable[..., Any]:
    """Return a forward pass that keeps on the host what its backward pass needs."""

    def run(*arguments: Any) -> Any:
        with save_on_cpu(pin_memory=pinned):
            return forward(*arguments)

    return run
