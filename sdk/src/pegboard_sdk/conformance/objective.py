"""The suite of kind `objective`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from pegboard.interfaces.objective import Role
from pegboard.ops import kernel_table
from pegboard.types import Batch, LossOutput
from pegboard_sdk.conformance.guard import standard
from pegboard_sdk.conformance.suite import PluginSuite
from pegboard_sdk.toys.roles import VOCABULARY, ToyRole, join_batches, pack

EXACT = 1e-9


@standard
class ObjectiveSuite(PluginSuite):
    """Losses over toy roles in float64, whose states follow from id and position alone, so that batches can be split.

    roles: the roles that the objective asks for, of which the first is trained.
    differentiable: whether the loss is differentiable at random parameters, as finite differences assume.
    single_pass: whether its gradient by the logits is there beside the loss, since no token's loss depends on other tokens.
    """

    kind = "objective"
    roles: ClassVar[Sequence[str]] = ("policy",)
    differentiable: ClassVar[bool] = True
    single_pass: ClassVar[bool] = False

    def batch(self, seed: int, *, learned: bool = True) -> Batch:
        """Return a batch of a few sequences; `learned=False`: none of its tokens counts. Override it to fill `extras`."""
        generator = torch.Generator().manual_seed(seed)
        sequences = []
        for length in (7, 1, 4, 9):
            ids = torch.randint(VOCABULARY, (length,), generator=generator).tolist()
            sequences.append((ids, [learned and i > length // 3 for i in range(length)]))
        return pack(sequences)

    def join(self, a: Batch, b: Batch) -> Batch:
        """Return both batches as one. Override it where `extras` must change when they are joined."""
        return join_batches(a, b)

    def expected(self, roles: Mapping[str, ToyRole], batch: Batch) -> Tensor | None:
        """Return the summed loss by an independent formula, from `role.hidden(batch)` and `role.head.matrix`; None for none."""
        return None

    def models(
        self, *, device: str = "cpu", dtype: torch.dtype = torch.float64, scale: float = 1.0
    ) -> dict[str, ToyRole]:
        """Return a toy for each role; the first takes gradients. scale: of the logits, roughly."""
        return {
            name: ToyRole(seed=10 + i, trained=i == 0, device=device, dtype=dtype, scale=scale)
            for i, name in enumerate(self.roles)
        }

    def loss(self, models: Mapping[str, Role], batch: Batch) -> LossOutput:
        """Return what a new objective gives."""
        out: LossOutput = self.create()(models, batch)
        return out

    def share_totals(self, models: Mapping[str, Role], *batches: Batch) -> None:
        """Hand batches, of which the last one may be the others as one, what the loop would if they were a step."""
        found = [self.create().totals(models, batch) for batch in batches]
        parts = [sums for sums in (found[:-1] if len(found) > 1 else found) if sums is not None]
        if parts:
            assert len(parts) == max(len(found) - 1, 1), "totals is None for a loss, not for a batch"
            total = torch.stack(parts).sum(0)
            assert not total.requires_grad
            if found[-1] is not None:
                _close(found[-1], total)
            for batch in batches:
                batch.extras["totals"] = total

    def test_denominator(self) -> None:
        """A finite float64 scalar on the batch's device, more than zero when something counts."""
        denominator = self.create().denominator(self.batch(1))
        assert denominator.dtype == torch.float64 and denominator.shape == ()
        assert denominator.isfinite() and denominator > 0
        assert self.create().denominator(self.batch(1).to(torch.device("meta"))).is_meta

    def test_sum_is_a_scalar(self) -> None:
        """The sum is a scalar of at least float32, attached to the graph, also of half-precision states."""
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            out = self.loss(self.models(dtype=dtype), self.batch(1)).sum
            assert out.shape == () and out.requires_grad and out.isfinite()
            assert out.dtype in (torch.float32, torch.float64)

    def test_loss_is_a_sum_over_the_batch(self) -> None:
        """Sum and denominator of two batches as one are the two added: never a mean, whatever the split."""
        a, b, models, objective = self.batch(1), self.batch(2), self.models(), self.create()
        both = self.join(a, b)
        self.share_totals(models, a, b, both)
        _close(self.loss(models, both).sum, self.loss(models, a).sum + self.loss(models, b).sum)
        _close(objective.denominator(both), objective.denominator(a) + objective.denominator(b))

    def test_metrics_are_sums_and_counts(self) -> None:
        """Each metric is (sum, count), and those of two batches as one are the two added."""
        a, b, models = self.batch(1), self.batch(2), self.models()
        both = self.join(a, b)
        self.share_totals(models, a, b, both)
        whole, *parts = (self.loss(models, batch).metrics for batch in (both, a, b))
        for name, pair in whole.items():
            assert isinstance(name, str) and len(pair) == 2
            for side in (0, 1):
                added = sum(float(torch.as_tensor(part[name][side]).detach()) for part in parts)
                assert float(torch.as_tensor(pair[side]).detach()) == pytest.approx(added, rel=1e-6), name

    def test_value(self) -> None:
        """The sum equals the independent formula of `expected`."""
        models, batch = self.models(), self.batch(3)
        wanted = self.expected(models, batch)
        if wanted is None:
            self.skip("expected() gives no independent formula")
        _close(self.loss(models, batch).sum, wanted)

    def test_zero_denominator(self) -> None:
        """A batch in which nothing counts has the sum 0, the denominator 0, and gradients of zeros."""
        models, batch = self.models(), self.batch(1, learned=False)
        assert self.create().denominator(batch) == 0
        out = self.loss(models, batch)
        assert out.sum == 0
        grads = torch.autograd.grad(
            out.sum, models[self.roles[0]].parameters(), allow_unused=True, materialize_grads=True
        )
        assert not any(grad.any() for grad in grads)  # NaN counts as any

    def test_gradient_equals_finite_differences(self) -> None:
        """Along random directions through hidden states and head of the trained role."""
        self.needs("differentiable")
        models, batch = self.models(), self.batch(1)
        self.share_totals(models, batch)
        parameters = models[self.roles[0]].parameters()
        grads = torch.autograd.grad(self.loss(models, batch).sum, parameters)
        for seed in range(3):
            generator = torch.Generator().manual_seed(seed)
            ways = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
            slope = sum(float((grad * way).sum()) for grad, way in zip(grads, ways, strict=True))
            values = [self._moved(models, batch, ways, step) for step in (1e-5, -1e-5)]
            assert (values[0] - values[1]) / 2e-5 == pytest.approx(slope, rel=1e-4, abs=1e-6)

    def test_gradient_scales_with_what_comes_from_behind(self) -> None:
        """The loop divides the sum: gradients of sum / 7 are those of the sum, divided by 7."""
        models, batch = self.models(), self.batch(1)
        parameters = models[self.roles[0]].parameters()
        whole = torch.autograd.grad(self.loss(models, batch).sum, parameters)
        part = torch.autograd.grad(self.loss(models, batch).sum / 7, parameters)
        for a, b in zip(whole, part, strict=True):
            _close(b, a / 7)

    def test_logits_are_made_once(self) -> None:
        """Nothing is multiplied with the trained head in the backward pass: logits and their gradient are of one pass."""
        self.needs("single_pass")
        models, batch = self.models(), self.batch(1)
        head, calls = models[self.roles[0]].head, 0

        def counted(function: Callable[..., Any]) -> Callable[..., Any]:
            def count(*arguments: Any) -> Any:
                nonlocal calls
                calls += 1
                return function(*arguments)

            return count

        head.kernels = kernel_table({op: counted(getattr(head.kernels, op)) for op in ("linear", "add_product_")})
        total = self.loss(models, batch).sum
        assert calls == 3  # logits, and their gradient with the head and with the states
        total.backward()
        assert calls == 3

    def test_extreme_logits_stay_finite(self) -> None:
        """Logits in the thousands, in float32, give a finite sum and finite gradients."""
        models, batch = self.models(dtype=torch.float32, scale=1000.0), self.batch(1)
        out = self.loss(models, batch).sum
        assert out.isfinite()
        assert all(g.isfinite().all() for g in torch.autograd.grad(out, models[self.roles[0]].parameters()))

    def test_only_the_first_role_is_trained(self) -> None:
        """No gradient reaches another role, even where its states would take one."""
        if len(self.roles) == 1:
            self.skip("there is one role")
        models = self.models()
        others = [p.requires_grad_() for name in self.roles[1:] for p in models[name].parameters()]
        grads = torch.autograd.grad(self.loss(models, self.batch(1)).sum, others, allow_unused=True)
        assert all(grad is None or not grad.any() for grad in grads)

    def test_never_synchronises(self) -> None:
        """Loss, metrics and backward are computed without looking at a value: on tensors that have none."""
        models, batch = self.models(device="meta"), self.batch(1).to(torch.device("meta"))
        out = self.loss(models, batch)
        out.sum.backward()
        assert out.sum.is_meta

    def _moved(self, models: Mapping[str, ToyRole], batch: Batch, ways: Sequence[Tensor], step: float) -> float:
        parameters = models[self.roles[0]].parameters()
        with torch.no_grad():
            for parameter, way in zip(parameters, ways, strict=True):
                parameter.add_(way, alpha=step)
        value = float(self.loss(models, batch).sum.detach())
        with torch.no_grad():
            for parameter, way in zip(parameters, ways, strict=True):
                parameter.sub_(way, alpha=step)
        return value


def _close(mine: Tensor, right: Any) -> None:
    torch.testing.assert_close(mine.double(), right.double(), rtol=EXACT, atol=EXACT)
