from __future__ import annotations

import torch

from pegboard_rollouts.samples import Sample, from_tensors, to_tensors
from pegboard_trainer.collate import collate


def samples() -> list[Sample]:
    first = Sample([5, 6, 7, 8, 9], 2, (0, 3, 0), True, 0.25)
    second = Sample([5, 4], 1, (1, 2, 1), False, -1.5, learned=False)
    for sample, values in ((first, [-1.0, -2.0, -3.0]), (second, [-4.0])):
        sample.numbers = {"old_logps": torch.tensor(values)}
        sample.extras = {"advantage": 0.1 * values[0]}
    return [first, second]


def test_tensors_hold_all_of_it() -> None:
    before = samples()
    after = from_tensors(to_tensors(before))
    assert [s.row() for s in after] == [s.row() for s in before]
    assert [(s.key, s.finished, s.learned, s.reward) for s in after] == [
        ((0, 3, 0), True, True, 0.25),
        ((1, 2, 1), False, False, -1.5),
    ]
    assert to_tensors([]) == {}
    assert from_tensors({"other": torch.zeros(1)}) == []


def test_a_batch_has_numbers_where_tokens_are_predicted() -> None:
    batch = collate([sample.row() for sample in samples()])
    assert batch.target_rows.tolist() == [1, 2, 3]
    assert batch.targets[batch.target_rows].tolist() == [7, 8, 9]
    assert batch.extras["old_logps"][batch.target_rows].tolist() == [-1.0, -2.0, -3.0]
    torch.testing.assert_close(batch.extras["advantage"], torch.tensor([-0.1, -0.4]))
    assert batch.parts["answer"].tolist() == [0, 1]
