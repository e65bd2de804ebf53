"""What training does about the routers of mixtures of experts: losses over their choices, and statistics of them.

Two losses, of each forward pass of a trained model, over all its routers and all N pairs of a router and a token:

- balance (Switch, arXiv:2101.03961, equations 4 to 6, as transformers' load_balancing_loss_func has it):
  E * sum over experts e of F_e * P_e, with F_e the tokens of e / N and P_e the sum of e's probabilities / N.
  It is k, the experts a token uses, where all have as many tokens;
- z (ST-MoE, arXiv:2202.08906, equation 5): the mean of logsumexp(logits)^2.

A step's loss has coefficient * the mean of the passes' losses, each weighted by its tokens, over the accumulation group and all ranks. The
z loss is a mean over tokens and the same however they are divided. The balance loss is a product of means: it is that of each pass by
itself, as in transformers, and depends on what is computed together.

Its gradient is added to that of the logits while it passes through the router, since that is when a layer's weights are at hand in
every kind of run (recomputed, sharded, split).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pegboard.errors import ConfigError
from pegboard.nn.moe import MoE, mixtures
from pegboard.types import Batch
from pegboard_trainer.callbacks import Callback
from pegboard_trainer.config import RoutingSection
from pegboard_trainer.meter import Reducer


@dataclass(slots=True, eq=False)
class _Pass:
    """What the routers did in one forward pass. counts, probs: [E] sums over routers and tokens. pairs: how many of both there are."""

    share: Tensor
    balance: float
    z: float
    counts: Tensor
    probs: Tensor
    squares: Tensor
    rows: int = 0
    pairs: int = 0

    def losses(self) -> tuple[Tensor, Tensor]:
        """Return the balance loss and the z loss, not yet times their coefficients."""
        pairs = max(self.pairs, 1)
        return len(self.counts) * (self.counts / pairs * (self.probs / pairs)).sum(), self.squares / pairs


class Watch:
    """Follows the routers of one model, where gradients are computed. See `pegboard.nn.moe.RouterWatch`."""

    def __init__(self, layers: Sequence[MoE], *, balance: float, z: float) -> None:
        device = layers[0].gate.weight.device
        self._balance, self._z = balance, z
        self._experts = max(layer.experts.count for layer in layers)
        self._share = torch.zeros((), device=device)
        self.load = torch.zeros(len(layers), self._experts, device=device)
        self.passes: list[_Pass] = []
        for layer in layers:
            layer.watch = self

    def begin(self, share: Tensor) -> None:
        """Hear that the passes of another batch follow, and which share of the step's tokens it has."""
        self._share = share

    def weigh(self, layer: int, logits: Tensor, *, share: float) -> Tensor:
        """Return the logits, with the losses' gradient in theirs."""
        if not torch.is_grad_enabled():
            return logits
        if not _in_backward():
            self._see(layer, logits.detach())
        if not logits.requires_grad or (self._balance == 0 and self._z == 0):
            return logits
        weighed: Tensor = _Weighed.apply(logits, self.passes[-1], share)
        return weighed

    def count(self, layer: int, ids: Tensor) -> None:
        """Count the tokens of each expert."""
        if torch.is_grad_enabled() and not _in_backward():
            flat = ids.detach().reshape(-1).long()
            counts = torch.zeros_like(self.load[0]).scatter_add_(0, flat, torch.ones_like(flat, dtype=torch.float32))
            self.load[layer] += counts
            self.passes[-1].counts += counts

    def _see(self, layer: int, logits: Tensor) -> None:
        if layer == 0 or not self.passes:
            zeros = torch.zeros_like(self.load[0])
            self.passes.append(
                _Pass(self._share, self._balance, self._z, zeros, zeros.clone(), zeros.new_zeros(()), len(logits))
            )
        passing, wide = self.passes[-1], logits.to(torch.promote_types(logits.dtype, torch.float32))
        passing.probs += wide.softmax(-1).sum(0)
        passing.squares += wide.logsumexp(-1).square().sum()
        passing.pairs += len(logits)


def _in_backward() -> bool:
    """Whether this forward is one that a backward pass computes again: what it chooses was counted before."""
    return torch._C._current_graph_task_id() != -1


class _Weighed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, passing: _Pass, share: float) -> Tensor:
        ctx.save_for_backward(logits)
        ctx.passing, ctx.share = passing, share
        return logits.view_as(logits)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        # All routers were seen when the first backward pass begins, so that F_e is that of the whole pass.
        (logits,) = ctx.saved_tensors
        passing: _Pass = ctx.passing
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        probs, pairs = wide.softmax(-1), max(passing.pairs, 1)
        slope = passing.balance * len(passing.counts) * passing.counts.to(wide.dtype) / pairs**2
        found = probs * (slope - (probs * slope).sum(-1, keepdim=True))
        found += probs * wide.logsumexp(-1, keepdim=True) * (2 * passing.z / pairs)
        return grads[0] + (found * (passing.share.to(wide.dtype) * ctx.share)).to(grads[0].dtype), None, None


class Routing(Callback):
    """The watches of a run, and their metrics:

    router/balance, router/z: the losses, without coefficients. router/max_load: tokens of the expert that has most / their mean,
    router/entropy: of the tokens' distribution over experts / that of an even one, router/unused: share of experts without a token;
    each a mean over layers of what happened since the last line. router/load/N: share of the tokens that used expert N.
    """

    def __init__(self, watches: Sequence[Watch], *, experts: bool) -> None:
        self._watches, self._experts = watches, experts

    def shares(self, group: Sequence[tuple[Batch, float]], reducer: Reducer) -> list[Tensor]:
        """Return the share of a step's tokens that each batch has; group: batches with their weights."""
        tokens = [b.target_rows.new_full((), sum(b.seq_lens), dtype=torch.float64) * w for b, w in group]
        total = reducer.sum(torch.stack(tokens).sum())
        return [count / total for count in tokens]

    def begin(self, share: Tensor) -> None:
        """Hear that a batch follows."""
        for watch in self._watches:
            watch.begin(share)

    def metrics(self) -> Mapping[str, tuple[Any, Any]]:
        """Return the statistics since the last call."""
        found: dict[str, tuple[Any, Any]] = {}
        for watch in self._watches[:1]:
            load, width = watch.load.double(), watch.load.shape[1]
            mean = load.mean(1, keepdim=True).clamp(min=1e-9)
            share = load / load.sum(1, keepdim=True).clamp(min=1e-9)
            entropy = -torch.special.xlogy(share, share).sum(1) / math.log(max(width, 2))
            each = {"max_load": load.amax(1) / mean[:, 0], "entropy": entropy, "unused": (load == 0).double().mean(1)}
            found |= {f"router/{name}": (values.sum(), len(values)) for name, values in each.items()}
            pairs = [(passing.rows, *passing.losses()) for passing in watch.passes]
            rows = sum(count for count, _, _ in pairs)
            for name, values in (("balance", [b * n for n, b, _ in pairs]), ("z", [z * n for n, _, z in pairs])):
                found[f"router/{name}"] = (torch.stack(values).sum() if values else 0.0, rows)
            if self._experts:
                total = load.sum() / load.shape[0]
                found |= {f"router/load/{n}": (load[:, n].mean(), total) for n in range(width)}
            watch.load.zero_()
        for watch in self._watches:
            watch.passes.clear()
        return found


def follow(models: Iterable[nn.Module], config: Mapping[str, Any], section: RoutingSection) -> Routing | None:
    """Watch the routers of trained models; None where there are none. config: of the first model, for `balance: config`.

    Raises ConfigError where the section asks something of a model without experts.
    """
    found = [layers for model in models if (layers := mixtures(model))]
    asked = [name for name in ("balance", "z", "freeze", "experts") if getattr(section, name)]
    if not found:
        if asked:
            raise ConfigError(
                f"routing.{asked[0]} is about a mixture of experts, which the model is not",
                fix=f"drop routing.{asked[0]}, or choose a model with experts",
            )
        return None
    balance = section.balance
    if balance == "config":
        balance = float(config.get("router_aux_loss_coef") or 0.0)
    return Routing([Watch(layers, balance=balance, z=section.z) for layers in found], experts=section.experts)


def freeze_routers(model: nn.Module) -> None:
    """Train no router of a model."""
    for layer in mixtures(model):
        layer.gate.requires_grad_(False)
