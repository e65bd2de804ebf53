"""One step of a model on its device: tensors only, no requests."""

from __future__ import annotations

import torch

from pegboard.build import BuiltModel
from pegboard.types import ForwardContext, KVCache, KVLayout, StepPlan, StepResult
from pegboard_engine.sampler import sample


class Runner:
    """A model with its cache. `layout` is what the attention backend wants; `num_pages` counts the reserved page 0."""

    def __init__(self, built: BuiltModel, layout: KVLayout, num_pages: int) -> None:
        self._built = built
        self._groups = 1 + max(spec.group for spec in built.model.attention_specs)
        self.cache = _allocate(layout, num_pages, built.device)

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> StepResult:
        """Run a step. extras["valid"]: [M] bool, False for a row whose logits are not finite."""
        built, device = self._built, self._built.device
        attention = built.attention.plan(plan.attention, device, self.cache.layout)
        all_rows = plan.logits_indices.numel() == plan.input_ids.numel()
        ctx = ForwardContext(
            positions=plan.positions.to(device),
            plans=[attention] * self._groups,
            cache=self.cache,
            logits_indices=None if all_rows else plan.logits_indices.to(device),
        )
        hidden = built.model(plan.input_ids.to(device), ctx)
        if hidden.shape[0] == 0:
            return StepResult(plan.step, plan.logits_indices, {"valid": torch.ones(0, dtype=torch.bool)})
        ids, valid = sample(built.model.head(hidden), plan.sampling)
        return StepResult(plan.step, ids.cpu(), {"valid": valid.cpu()})

    def update_weights(self, version: int) -> None:
        """Refresh what was derived from the weights."""
        with torch.no_grad():
            self._built.model.refresh_derived(version)


def _allocate(layout: KVLayout, num_pages: int, device: torch.device) -> KVCache:
    """Zeros, since a masked read of garbage that happens to be NaN would spread."""
    shape = {
        "PSHD": (num_pages, layout.page_size, layout.num_kv_heads, layout.head_dim),
        "PHSD": (num_pages, layout.num_kv_heads, layout.page_size, layout.head_dim),
    }[layout.order]
    dtype: torch.dtype = getattr(torch, layout.dtype)
    keys, values = (
        [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layout.num_layers)] for _ in range(2)
    )
    return KVCache(layout, keys, values)
