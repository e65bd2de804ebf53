"""NEFTune: noise on the embeddings of training examples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pegboard.nn import CausalLM
from pegboard.nn.parallel import own_rows


class EmbeddingNoise:
    """Adds uniform noise of at most alpha / sqrt(L · H) to the embeddings of a sequence of L tokens (arXiv:2310.05914).

    Only while the model is in training mode and gradients are computed.
    """

    def __init__(self, model: CausalLM, alpha: float) -> None:
        self._model, self._alpha = model, alpha
        self._lengths: Tensor | None = None
        model.register_forward_pre_hook(self._look)
        model.model.embed_tokens.register_forward_hook(self._add)

    def _look(self, model: nn.Module, arguments: tuple[Any, ...]) -> None:
        """Note the length of each token's sequence, without asking the device: a position of 0 begins one."""
        self._lengths = None
        if model.training and torch.is_grad_enabled():
            positions = arguments[1].positions
            sequence = (positions == 0).cumsum(0) - 1
            counts = torch.zeros_like(positions).scatter_add_(0, sequence, torch.ones_like(positions))
            self._lengths = counts[sequence]

    def _add(self, module: nn.Module, arguments: tuple[Any, ...], x: Tensor) -> Tensor:
        if self._lengths is None:
            return x
        limit = self._alpha / (self._lengths * x.shape[-1]).to(torch.promote_types(x.dtype, torch.float32)).sqrt()
        noise = torch.rand(len(limit), x.shape[-1], device=x.device, dtype=limit.dtype).mul_(2).sub_(1) * limit[:, None]
        region = self._model.region
        if region is not None and region.sequence:
            noise = own_rows(noise, region.group)
        return x + noise.to(x.dtype)
