"""What the suites do not see: where the reference comes from, KTO's baseline, data of the wrong kind."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from pegboard.errors import ConfigError, DataError
from pegboard.types import Batch, Row
from pegboard_dpo.answers import answer_logps
from pegboard_dpo.kto import KahnemanTversky
from pegboard_dpo.losses import kto
from pegboard_dpo.options import DpoOptions, KtoOptions, OrpoOptions
from pegboard_dpo.pairs import DirectPreference, OddsRatio
from pegboard_sdk.toys.roles import ToyRole
from pegboard_trainer.collate import collate


def row(ids: list[int], prompt: int, part: str, **extras: Any) -> Row:
    return Row(ids, [i >= prompt for i in range(len(ids))], extras, part)


def pairs(**reference: float) -> Batch:
    extras = {"reference_logps": reference} if reference else {}
    return collate(
        [
            tuple(
                row(ids, 2, part, **{name: values[part] for name, values in extras.items()})
                for part, ids in (("chosen", [1, 2, 3, 4]), ("rejected", [1, 2, 5]))
            )
        ]
    )


class Counted(ToyRole):
    """A role that remembers how many tokens it saw, with and without gradients."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.seen: list[tuple[bool, int]] = []

    def hidden(self, batch: Batch) -> Tensor:
        self.seen.append((torch.is_grad_enabled(), len(batch.input_ids)))
        return super().hidden(batch)


def test_log_probabilities_in_the_data_make_the_reference_unneeded() -> None:
    policy, reference = ToyRole(seed=1), Counted(seed=2, trained=False)
    objective = DirectPreference(DpoOptions())
    by_model = objective({"policy": policy, "reference": reference}, pairs()).sum
    chosen, rejected = answer_logps(reference, pairs()).tolist()
    given = pairs(chosen=chosen, rejected=rejected)
    reference.seen.clear()
    for roles in ({"policy": policy}, {"policy": policy, "reference": reference}):
        torch.testing.assert_close(objective(roles, given).sum, by_model, rtol=1e-6, atol=0)
    assert reference.seen == []


def test_without_any_reference_the_fix_is_told() -> None:
    with pytest.raises(ConfigError, match="no reference") as caught:
        DirectPreference(DpoOptions())({"policy": ToyRole()}, pairs())
    assert "reference={}" in (caught.value.fix or "")


def test_the_reference_is_computed_before_the_policy_keeps_activations() -> None:
    order: list[str] = []

    class Named(ToyRole):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def hidden(self, batch: Batch) -> Tensor:
            order.append(self.name)
            return super().hidden(batch)

    DirectPreference(DpoOptions())({"policy": Named("policy"), "reference": Named("reference")}, pairs())
    assert order == ["reference", "policy"]


def test_at_the_reference_rewards_are_zero_and_the_loss_is_log_2() -> None:
    policy = ToyRole(seed=1)
    out = DirectPreference(DpoOptions())({"policy": policy, "reference": policy}, pairs())
    assert out.sum.item() == pytest.approx(0.6931471805599453)
    total, number = out.metrics["rewards/margin"]
    assert (float(total), number) == (0, 1)


def test_data_of_another_kind_is_refused() -> None:
    plain = collate([Row([1, 2, 3], [False, True, True])])
    with pytest.raises(DataError, match="no pairs"):
        OddsRatio(OrpoOptions()).denominator(plain)
    with pytest.raises(DataError, match="good answers from bad"):
        KahnemanTversky(KtoOptions()).denominator(plain)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"loss": "exo"}, "needs label_smoothing"), ({"loss": "hinge", "label_smoothing": 0.1}, "no label_smoothing")],
)
def test_options_that_contradict_each_other(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        DpoOptions(**options)


GOOD, BAD = row([1, 2, 3, 4], 2, "desirable"), row([6, 7, 5], 2, "undesirable")
OTHERS = [row([1, 2, 5], 2, "mismatched"), row([6, 7, 3, 4], 2, "mismatched")]


def test_ktos_baseline_is_the_mean_log_ratio_of_mismatched_answers() -> None:
    policy, reference = Counted(seed=4), ToyRole(seed=5, trained=False)
    batch = collate([GOOD, BAD, *OTHERS])
    out = KahnemanTversky(KtoOptions(beta=0.5))({"policy": policy, "reference": reference}, batch)
    assert policy.seen == [(False, 7), (True, 7)]
    ratios = (answer_logps(policy, batch) - answer_logps(reference, batch)).detach()
    baseline = ratios[2:].mean().clamp(min=0)
    assert baseline > 0
    wanted = kto(ratios[0], baseline, 0.5, desirable=True) + kto(ratios[1], baseline, 0.5, desirable=False)
    torch.testing.assert_close(out.sum.detach(), wanted)
    assert float(out.metrics["kl"][0]) / out.metrics["kl"][1] == pytest.approx(float(baseline))
    without = KahnemanTversky(KtoOptions(beta=0.5, loss="apo_zero"))({"policy": policy, "reference": reference}, batch)
    wanted = kto(ratios[0], 0.0, 0.5, desirable=True) + kto(ratios[1], 0.0, 0.5, desirable=False)
    torch.testing.assert_close(without.sum.detach(), wanted)


def test_no_gradient_flows_through_the_baseline() -> None:
    policy, reference = ToyRole(seed=4), ToyRole(seed=5, trained=False)
    out = KahnemanTversky(KtoOptions())({"policy": policy, "reference": reference}, collate([GOOD, BAD, *OTHERS]))
    total, number = out.metrics["kl"]
    assert total > 0
    alone = collate([GOOD, BAD])
    ratios = answer_logps(policy, alone) - answer_logps(reference, alone).detach()
    good, bad = (kto(ratios[i], total / number, 0.1, desirable=i == 0) for i in range(2))
    wanted = torch.autograd.grad(good + bad, policy.parameters())
    for mine, right in zip(torch.autograd.grad(out.sum, policy.parameters()), wanted, strict=True):
        torch.testing.assert_close(mine, right)


def test_ktos_baseline_needs_a_model_whatever_the_data_holds() -> None:
    policy, reference = ToyRole(seed=4), ToyRole(seed=5, trained=False)
    rows = [replace(row, extras={"reference_logps": -1.5}) for row in (GOOD, BAD)]
    objective = KahnemanTversky(KtoOptions())
    out = objective({"policy": policy}, collate(rows)).sum.detach()
    ratios = answer_logps(policy, collate([GOOD, BAD])).detach() + 1.5
    torch.testing.assert_close(
        out, kto(ratios[0], 0.0, 0.1, desirable=True) + kto(ratios[1], 0.0, 0.1, desirable=False)
    )
    with pytest.raises(ConfigError, match="mismatched answers need one"):
        objective({"policy": policy}, collate([*rows, *OTHERS]))
    both = {"policy": policy, "reference": reference}
    by_model = objective(both, collate([GOOD, BAD, *OTHERS])).sum
    torch.testing.assert_close(objective(both, collate([*rows, *OTHERS])).sum, by_model)
