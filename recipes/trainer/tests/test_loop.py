from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pegboard.interfaces.objective import Objective, Role
from pegboard.types import Batch, LossOutput, Row
from pegboard_trainer.adamw import AdamWFactory
from pegboard_trainer.callbacks import Callbacks
from pegboard_trainer.collate import collate
from pegboard_trainer.loop import NotFinite, Trainer, check_finite
from pegboard_trainer.meter import Meter, Single
from pegboard_trainer.options import AdamWOptions, ConstantOptions
from pegboard_trainer.schedules import Constant
from pegboard_trainer.update import Update

CPU = torch.device("cpu")


class Policy:
    """A role whose hidden states are a table of numbers, one for each id."""

    head = None

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(2)
        self.table = nn.Parameter(torch.randn(10, dtype=torch.float64, generator=generator))

    def hidden(self, batch: Batch) -> Tensor:
        return self.table[batch.input_ids]


class Squares(Objective):
    """Sum of (table[id] - target)² over the rows that count."""

    def denominator(self, batch: Batch) -> Tensor:
        return torch.full((), float(batch.target_rows.numel()), dtype=torch.float64)

    def __call__(self, roles: Mapping[str, Role], batch: Batch) -> LossOutput:
        wrong = (roles["policy"].hidden(batch) - batch.targets)[batch.target_rows]
        return LossOutput((wrong**2).sum(), {"worst": (wrong.detach().abs().max() if len(wrong) else 0.0, 1)})


def trainer_of(policy: Policy, batches: Any = None, **options: Any) -> Trainer:
    optimizer = options.pop("optimizer", None) or torch.optim.SGD([policy.table], lr=1.0)
    return Trainer(
        objective=Squares(),
        roles={"policy": policy},  # type: ignore[dict-item]
        update=Update([("table", policy.table)], optimizer, options.pop("clip", None)),
        schedule=Constant(ConstantOptions()),
        source=batches,
        device=CPU,
        reducer=Single(),
        callbacks=Callbacks(),
        **options,
    )


def batch_of(*lengths: int) -> Batch:
    return collate(
        [Row([(7 * n + i) % 10 for i in range(length)], [True] * length) for n, length in enumerate(lengths)]
    )


def keyed(batches: list[Batch]) -> list[Any]:
    return [([(0, i, 0)], batch) for i, batch in enumerate(batches)]


def gradient_of(group: list[Batch]) -> Tensor:
    """The gradient of one mean over all rows of the group."""
    policy = Policy()
    terms = [(policy.hidden(batch) - batch.targets)[batch.target_rows] ** 2 for batch in group]
    torch.cat(terms).mean().backward()
    assert policy.table.grad is not None
    return policy.table.grad


@pytest.mark.parametrize("group", [[(5, 3)], [(5,), (3,)], [(9,), (2,), (4, 4, 3)]])
def test_a_step_follows_the_mean_over_all_rows_of_its_group(group: list[tuple[int, ...]]) -> None:
    policy = Policy()
    before = policy.table.detach().clone()
    batches = [batch_of(*lengths) for lengths in group]
    meter = Meter(CPU, Single())
    norm = trainer_of(policy).step(keyed(batches), 0.5, meter)
    expected = gradient_of(batches)
    torch.testing.assert_close(policy.table.detach(), before - 0.5 * expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(norm, expected.norm(), rtol=1e-12, atol=0)
    loss = sum(float(((before[b.input_ids] - b.targets)[b.target_rows] ** 2).sum()) for b in batches)
    assert meter.take()["loss"] == pytest.approx(loss / sum(len(b.target_rows) for b in batches))


def test_a_batch_without_keys_counts_for_nothing() -> None:
    first, second = Policy(), Policy()
    meters = [Meter(CPU, Single()), Meter(CPU, Single())]
    trainer_of(first).step(keyed([batch_of(5)]), 1.0, meters[0])
    trainer_of(second).step([*keyed([batch_of(5)]), ([], batch_of(9))], 1.0, meters[1])
    assert first.table.equal(second.table)
    assert meters[0].take() == meters[1].take()


class FromTheMean(Squares):
    """Squares of distances from the mean of the step's values, which no gradient flows through."""

    def totals(self, roles: Mapping[str, Role], batch: Batch) -> Tensor:
        values = roles["policy"].hidden(batch)
        assert not values.requires_grad
        return torch.stack([values.sum(), values.new_full((), len(values))])

    def __call__(self, roles: Mapping[str, Role], batch: Batch) -> LossOutput:
        total, count = batch.extras["totals"]
        return LossOutput(((roles["policy"].hidden(batch) - total / count) ** 2)[batch.target_rows].sum())


def test_what_a_loss_knows_of_its_step_does_not_depend_on_how_that_is_divided() -> None:
    tables = []
    for group in ([batch_of(5, 3, 4)], split(batch_of(5, 3, 4))):
        policy = Policy()
        trainer = trainer_of(policy)
        trainer.objective = FromTheMean()
        trainer.step([*keyed(group), ([], batch_of(9))], 1.0, Meter(CPU, Single()))
        tables.append(policy.table.detach())
    torch.testing.assert_close(tables[0], tables[1], rtol=1e-12, atol=0)


def split(batch: Batch) -> list[Batch]:
    return [batch.sequences(0, 1), batch.sequences(1, len(batch.seq_lens))]


def test_a_group_without_anything_to_learn_changes_nothing() -> None:
    policy = Policy()
    before = policy.table.detach().clone()
    empty = collate([Row([1, 2], [True, False])])
    norm = trainer_of(policy, clip=1.0).step(keyed([empty]), 1.0, Meter(CPU, Single()))
    assert policy.table.equal(before)
    assert norm == 0


def test_the_gradient_is_clipped_and_its_norm_before_that_returned() -> None:
    policy = Policy()
    before = policy.table.detach().clone()
    batch = batch_of(8)
    norm = trainer_of(policy, clip=0.01).step(keyed([batch]), 1.0, Meter(CPU, Single()))
    assert norm > 0.01
    assert (policy.table.detach() - before).norm() == pytest.approx(0.01, rel=1e-3)


def test_the_rate_is_the_factors_share_of_the_peak() -> None:
    policy = Policy()
    trainer = trainer_of(policy, optimizer=torch.optim.SGD([policy.table], lr=0.3))
    for factor in (0.5, 1.0, 0.1):
        trainer.step(keyed([batch_of(4)]), factor, Meter(CPU, Single()))
        assert trainer.update.optimizer.param_groups[0]["lr"] == pytest.approx(0.3 * factor)


class Reads(TorchDispatchMode):
    """Counts the operations that make the host wait for a device."""

    WAITING = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "unique")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(name in func.name() for name in self.WAITING):
            self.found.append(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("rounding", ["master", "stochastic"])
def test_a_step_never_waits_for_the_device(rounding: str) -> None:
    policy = Policy()
    policy.table = nn.Parameter(policy.table.detach().to(torch.bfloat16))
    options = AdamWOptions(lr=0.1, rounding=rounding)  # type: ignore[arg-type]
    trainer = trainer_of(policy, optimizer=AdamWFactory(options).build([("table", policy.table)]), clip=1.0)
    meter = Meter(CPU, Single())
    taken = keyed([batch_of(4), batch_of(3)])
    with Reads() as reads:
        for _ in range(3):
            trainer.step(taken, 0.5, meter)
    assert reads.found == []
    with Reads() as reads:
        torch.ones(()).item()
    assert len(reads.found) == 1


def test_the_objective_of_real_models_does_not_wait_either(tiny_model: Any) -> None:
    """Forward, chunked loss and backward of a model from `pegboard.nn`."""
    from pegboard.nn.loss import cross_entropy_sum

    batch = batch_of(6, 4)
    with Reads() as reads:
        hidden = tiny_model.model(batch.input_ids, tiny_model.context(batch.seq_lens, batch.positions))
        cross_entropy_sum(hidden, tiny_model.model.head, batch.targets, batch.target_rows).backward()
    assert reads.found == []


def test_the_first_step_that_is_not_finite_is_told() -> None:
    good, bad = torch.tensor(1.0), torch.tensor(math.nan)
    check_finite([])
    check_finite([(1, good, [(0, 0, 0)])])
    with pytest.raises(NotFinite, match="gradient of step 2 is not finite") as caught:
        check_finite([(1, good, [(0, 0, 0)]), (2, bad, [(0, 1, 0)]), (3, torch.tensor(math.inf), [(0, 2, 0)])])
    assert (caught.value.step, caught.value.keys) == (2, [(0, 1, 0)])


def test_batches_stop_where_their_epochs_do(batches: Callable[..., Any]) -> None:
    from pegboard_trainer.packer import Packer

    made = batches([[4]] * 5, Packer(100, limit=2, window=1), epochs=1)
    assert [len(keys) for keys, _ in made] == [2, 2, 1]
