"""Models as objectives see them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from pegboard.build import BuiltModel
from pegboard.interfaces.adapter import Adapter
from pegboard.nn import Head
from pegboard.types import Batch


@dataclass(frozen=True, slots=True)
class ModelRole:
    """One built model. trained: whether gradients flow. within: a context to compute in, such as adapters off.

    adapter: what was attached to the model, None without one. base: what files of the adapter name as its base.
    again: builds the model once more, to generate with: whole, for this process alone, with the weights that the run began with.
    """

    built: BuiltModel
    trained: bool
    within: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext
    adapter: Adapter | None = None
    base: str = ""
    again: Callable[[], BuiltModel] | None = None

    def hidden(self, batch: Batch) -> Tensor:
        """Return the last hidden states [T, H]."""
        with self.within(), torch.set_grad_enabled(self.trained and torch.is_grad_enabled()):
            out: Tensor = self.built.model(batch.input_ids, self.built.context(batch.seq_lens, batch.positions))
            return out

    @property
    def head(self) -> Head:
        """The output head."""
        return self.built.model.head


def reference_of(policy: ModelRole) -> ModelRole:
    """Return the policy with its adapter off: a reference that takes no memory."""
    built, adapter = policy.built, policy.adapter
    assert adapter is not None
    return ModelRole(built, trained=False, within=lambda: adapter.disabled(built.model))
