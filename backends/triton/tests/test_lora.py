"""What adapters in slots add to the rows of a batch, against float64 products with each adapter alone."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from backends.triton.tests.conftest import TOLERANCES, draw, relative
from pegboard.ops import kernel_table, registered
from pegboard_lora.bank import Bank, EmbeddingBank, make_factors
from pegboard_lora.ops import lora_add_
from pegboard_lora.rows import Arranger, SlotRows
from pegboard_triton import lora
from pegboard_triton.lora import ops

# Ranks by slot, of each member in turn; 0 where it is not adapted. Slots 2 and 5 are empty.
RANKS: dict[int, Sequence[int]] = {0: (8, 16, 1), 1: (1, 0, 33), 3: (33, 33, 33), 4: (0, 16, 0)}
SLOTS = 6


class Layers:
    """Layers that read one input, with an adapter in some slots."""

    def __init__(self, inputs: int, outputs: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
        self.bank = Bank(SLOTS, inputs, outputs, max(max(ranks) for ranks in RANKS.values()))
        self.inputs, self.outputs, self.dtype, self.device = inputs, outputs, dtype, device
        for slot, ranks in RANKS.items():
            self.fill(slot, ranks)

    def fill(self, slot: int, ranks: Sequence[int] | None, seed: int = 0) -> None:
        if ranks is None or not any(ranks[: len(self.outputs)]):
            self.bank.put(slot, None)
            return
        numbers = iter(range(100 * slot + seed, 100 * slot + 100))

        def new(*shape: int) -> Tensor:
            return draw(*shape, dtype=self.dtype, device=self.device, seed=next(numbers)) / 4

        pairs = zip(ranks, self.outputs, strict=False)
        self.bank.put(slot, make_factors([(new(r, self.inputs), new(r, n)) if r else None for r, n in pairs]))

    def exact(self, out: Tensor, x: Tensor, slots: Tensor, members: Sequence[int], starts: Sequence[int]) -> Tensor:
        """The float64 oracle: row by row."""
        wanted = out.double().clone()
        for row, slot in enumerate(slots.tolist()):
            factors = self.bank.factors.get(slot)
            for member, start in zip(members, starts, strict=True):
                found = None if factors is None else factors.ups[member]
                if factors is None or found is None:
                    continue
                columns, up = found
                inner = x[row].double() @ factors.down[columns].double().T
                wanted[row, start : start + up.shape[1]] += inner @ up.double()
        return wanted


def rows_of(slots: Tensor, device: torch.device, *, known: bool = True) -> SlotRows:
    arranger = Arranger(device)
    return SlotRows(slots if known else None, slots.to(device), lambda rows: arranger.arrange(rows, RANKS))


def slots_of(count: int, seed: int = 0) -> Tensor:
    source = random.Random(seed)
    return torch.tensor([source.choice([-1, 0, 0, 0, 1, 2, 3, 4, 5]) for _ in range(count)])


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(
    ("count", "inputs", "outputs", "dtype"),
    [
        (1, 37, [5], torch.float32),
        (7, 64, [48, 16, 16], torch.bfloat16),
        (3, 1030, [24, 5, 3], torch.float16),
        (17, 40, [7], torch.float32),
        (31, 300, [32, 16], torch.bfloat16),
        (530, 24, [9, 3], torch.float32),
    ],
    ids=str,
)
def test_each_row_gets_what_its_slot_adds(
    count: int, inputs: int, outputs: list[int], dtype: torch.dtype, device: torch.device
) -> None:
    layers = Layers(inputs, outputs, dtype, device)
    x = draw(count, inputs + 5, dtype=dtype, device=device, seed=7)[:, :inputs] / inputs**0.5
    out = draw(count, sum(outputs) + 3, dtype=dtype, device=device, seed=8)
    slots = slots_of(count, seed=count)
    members = list(range(len(outputs)))
    starts = [sum(outputs[:member]) for member in members]
    wanted = layers.exact(out, x, slots, members, starts)
    again = out.clone()
    before = out.clone()
    assert ops.lora_add_(out, x, rows_of(slots, device, known=False), layers.bank, members, starts) is out
    assert relative(out, wanted) < 2 * TOLERANCES[dtype]
    plain = [row for row, slot in enumerate(slots.tolist()) if slot not in RANKS]
    assert torch.equal(out[plain], before[plain])
    assert torch.equal(out[:, sum(outputs) :], before[:, sum(outputs) :])
    ops.lora_add_(again, x, rows_of(slots, device), layers.bank, members, starts)
    assert torch.equal(again, out)


def test_some_members_and_slots_that_change(device: torch.device) -> None:
    """The table is written in place: what is launched finds what slots hold then."""
    layers = Layers(48, [32, 16], torch.float32, device)
    slots, x = slots_of(9, seed=3), draw(9, 48, dtype=torch.float32, device=device)
    table = layers.bank.table
    assert table is not None
    for change in ({}, {0: None}, {2: (5, 2), 0: (3, 0)}, {3: (1, 1)}):
        for slot, ranks in change.items():
            layers.fill(slot, ranks, seed=50)
        assert layers.bank.table is table
        out = torch.zeros(9, 16, device=device)
        wanted = layers.exact(out, x, slots, [1], [0])
        ops.lora_add_(out, x, rows_of(slots, device), layers.bank, [1], [0])
        assert relative(out, wanted) < 4e-6


def test_what_the_kernels_do_not_take_goes_to_torch(device: torch.device) -> None:
    layers = Layers(48, [32], torch.float64, device)
    slots, x = slots_of(9), draw(9, 48, dtype=torch.float64, device=device)
    out = torch.zeros(9, 32, device=device, dtype=torch.float64)
    wanted = layers.exact(out, x, slots, [0], [0])
    assert relative(ops.lora_add_(out, x, rows_of(slots, device), layers.bank, [0], [0]), wanted) < 1e-12
    with pytest.raises(RuntimeError, match="captured"):
        ops.lora_add_(out, x, rows_of(slots, device, known=False), layers.bank, [0], [0])
    empty = Bank(3, 48, [32], 8)
    untouched = out.float()
    assert torch.equal(ops.lora_add_(untouched.clone(), x.float(), rows_of(slots, device), empty, [0], [0]), untouched)
    nothing = out[:0].float()
    assert ops.lora_add_(nothing, x[:0].float(), rows_of(slots[:0], device), layers.bank, [0], [0]) is nothing


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(("columns", "dtype"), [(272, torch.bfloat16), (37, torch.float32)], ids=str)
def test_embeddings_get_what_their_slot_adds(columns: int, dtype: torch.dtype, device: torch.device) -> None:
    bank = EmbeddingBank(SLOTS, columns, 33)
    for slot, rank in ((0, 1), (1, 16), (3, 33)):
        down, up = (draw(rank, size, dtype=dtype, device=device, seed=size + slot) for size in (50, columns))
        bank.put(slot, (down, up / 4))
    bank.put(1, None)
    slots = slots_of(11)
    ids = torch.tensor([49, 0, 3, 3, 17, 20, 1, 49, 5, 6, 7], device=device)
    out = draw(11, columns, dtype=dtype, device=device)
    wanted, before = out.double().clone(), out.clone()
    for row, slot in enumerate(slots.tolist()):
        if slot in bank.factors:
            down, up = bank.factors[slot]
            wanted[row] += down[ids[row]].double() @ up.double()
    assert ops.lora_embed_(out, ids, rows_of(slots, device, known=False), bank) is out
    assert relative(out, wanted) < 2 * TOLERANCES[dtype]
    plain = [row for row, slot in enumerate(slots.tolist()) if slot not in bank.factors]
    assert torch.equal(out[plain], before[plain])
    wide = before.double()
    assert ops.lora_embed_(wide, ids, rows_of(slots, device), bank) is wide
    assert relative(wide, wanted) < 2 * TOLERANCES[dtype]


def test_the_rows_of_a_batch_are_ordered_once(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    order = ops.order_pairs
    monkeypatch.setattr(ops, "order_pairs", lambda *args: (calls.append(args), order(*args))[1])
    slots, x = slots_of(20), draw(20, 48, dtype=torch.float32, device=device)
    rows = rows_of(slots, device)
    for _ in range(3):
        layers = Layers(48, [32], torch.float32, device)
        ops.lora_add_(torch.zeros(20, 32, device=device), x, rows, layers.bank, [0], [0])
    assert len(calls) == 1


def test_offered_where_it_is_registered() -> None:
    assert registered()["lora_add_"].function is lora_add_
    assert set(lora.replacements("decode", torch.bfloat16)) == {"lora_add_", "lora_embed_"}
    assert not lora.replacements("train", torch.bfloat16)
    assert not lora.replacements("decode", torch.float64)
    assert kernel_table(lora.replacements("decode", torch.float32)).lora_add_ is ops.lora_add_
