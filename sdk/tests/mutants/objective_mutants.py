"""Objectives that are broken, each in one way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pegboard_acme.objective import AcmeObjective
from pegboard_acme.options import Options
from torch import Tensor

from pegboard.interfaces.objective import Objective
from pegboard.nn.loss import token_logps as chunked_logps
from pegboard.reference import token_logps
from pegboard.types import LossOutput
from pegboard_sdk.conformance import ObjectiveSuite


class Mutant(ObjectiveSuite):
    __test__ = False
    caught_by: ClassVar[tuple[str, ...]] = ()
    broken: ClassVar[type[AcmeObjective]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.__test__ = True

    def create(self, **options: Any) -> Objective:
        return self.broken(Options(**options))

    def expected(self, roles: Mapping[str, Any], batch: Any) -> Tensor:
        policy = roles["policy"]
        logps = token_logps(policy.hidden(batch), policy.head.matrix, batch.targets, batch.target_rows)
        return -sum((1 - logp.exp()) ** 2 * logp for logp in logps)


class Changed(AcmeObjective):
    """The loss with `change(sum, batch)` in place of the sum."""

    def __call__(self, roles, batch):
        out = super().__call__(roles, batch)
        return LossOutput(self.change(out.sum, batch), out.metrics)


class TestMean(Mutant):
    caught_by = ("test_loss_is_a_sum_over_the_batch",)

    class broken(Changed):
        def change(self, total, batch):
            return total / batch.target_rows.numel()


class TestCountsSequences(Mutant):
    caught_by = ("test_loss_is_a_sum_over_the_batch",)

    class broken(AcmeObjective):
        def denominator(self, batch):
            return torch.ones((), dtype=torch.float64, device=batch.input_ids.device)


class TestNarrowDenominator(Mutant):
    caught_by = ("test_denominator",)

    class broken(AcmeObjective):
        def denominator(self, batch):
            return super().denominator(batch).float()


class TestDenominatorOnTheHost(Mutant):
    caught_by = ("test_denominator",)

    class broken(AcmeObjective):
        def denominator(self, batch):
            return torch.tensor(float(batch.target_rows.numel()), dtype=torch.float64)


class TestNarrowSum(Mutant):
    caught_by = ("test_sum_is_a_scalar",)

    class broken(Changed):
        def change(self, total, batch):
            return total.bfloat16()


class TestDetachedSum(Mutant):
    caught_by = ("test_sum_is_a_scalar",)

    class broken(Changed):
        def change(self, total, batch):
            return total.detach()


class TestMeanMetric(Mutant):
    caught_by = ("test_metrics_are_sums_and_counts",)

    class broken(AcmeObjective):
        def __call__(self, roles, batch):
            out = super().__call__(roles, batch)
            total, count = out.metrics["probability"]
            return LossOutput(out.sum, {"probability": (total / count, count)})


class TestOtherFormula(Mutant):
    caught_by = ("test_value",)

    class broken(Changed):
        def change(self, total, batch):
            return total * 1.001


class TestDividesByZero(Mutant):
    caught_by = ("test_zero_denominator",)

    class broken(Changed):
        def change(self, total, batch):
            return (
                total / batch.target_rows.numel() * batch.target_rows.numel() if len(batch.target_rows) else total / 0
            )


class TestLearnsFromNothing(Mutant):
    caught_by = ("test_zero_denominator",)

    class broken(AcmeObjective):
        def __call__(self, roles, batch):
            out = super().__call__(roles, batch)
            regular = roles["policy"].head.matrix.square().sum()
            return LossOutput(out.sum + regular - regular.detach(), out.metrics)


class TestHoldsTheWeightConstant(Mutant):
    caught_by = ("test_gradient_equals_finite_differences",)

    class broken(AcmeObjective):
        def __call__(self, roles, batch):
            policy = roles["policy"]
            logits = policy.hidden(batch)[batch.target_rows] @ policy.head.matrix.detach().t()
            logps = logits.log_softmax(-1).gather(1, batch.targets[batch.target_rows][:, None])
            return LossOutput(-logps.sum() + policy.head.matrix.sum() * 0)


class _OwnGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, total):
        return total.clone()

    @staticmethod
    def backward(ctx, grad):
        return torch.ones_like(grad)


class TestIgnoresWhatComesFromBehind(Mutant):
    caught_by = ("test_gradient_scales_with_what_comes_from_behind",)

    class broken(Changed):
        def change(self, total, batch):
            return _OwnGradient.apply(total)


class TestMakesLogitsTwice(Mutant):
    caught_by = ("test_logits_are_made_once",)
    single_pass = True

    class broken(AcmeObjective):
        def __call__(self, roles, batch):
            policy = roles["policy"]
            return LossOutput(-chunked_logps(policy.hidden(batch), policy.head, batch.targets, batch.target_rows).sum())


class TestTotalsAreMeans(Mutant):
    caught_by = ("test_loss_is_a_sum_over_the_batch",)

    class broken(AcmeObjective):
        def totals(self, roles, batch):
            return roles["policy"].hidden(batch).detach().mean().reshape(1)


class TestExponentiatesLogits(Mutant):
    caught_by = ("test_extreme_logits_stay_finite",)

    class broken(AcmeObjective):
        def __call__(self, roles, batch):
            policy = roles["policy"]
            weights = (policy.hidden(batch)[batch.target_rows] @ policy.head.matrix.t()).exp()
            chosen = weights.gather(1, batch.targets[batch.target_rows][:, None])
            return LossOutput(-(chosen[:, 0] / weights.sum(-1)).log().sum())


class TestTrainsTheReference(Mutant):
    caught_by = ("test_only_the_first_role_is_trained",)
    roles = ("policy", "reference")

    class broken(AcmeObjective):
        def __call__(self, roles, batch):
            out = super().__call__(roles, batch)
            return LossOutput(out.sum + roles["reference"].hidden(batch).square().sum())


class TestLooksAtTheLoss(Mutant):
    caught_by = ("test_never_synchronises",)

    class broken(Changed):
        def change(self, total, batch):
            return total if total.item() > 0 else total * 1.0


class TestCountsOnTheDevice(Mutant):
    caught_by = ("test_never_synchronises",)

    class broken(Changed):
        def change(self, total, batch):
            return total * len((batch.targets != -100).nonzero()) / batch.target_rows.numel()
