from __future__ import annotations

import pytest
import torch

from pegboard_engine import ops
from pegboard_triton import tokens
from pegboard_triton.table import replacements


def case(count: int, device: torch.device) -> tuple[torch.Tensor, ...]:
    draw = torch.Generator().manual_seed(count)
    slots = torch.randperm(count + 3, generator=draw)[:count]
    ids = torch.randint(-1, 4, (count,), generator=draw)
    last = torch.randint(5, 1 << 40, (count + 3,), generator=draw)
    return tuple(x.to(device) for x in (ids, last, slots))


@pytest.mark.parametrize("count", [0, 1, 7, 128, 300])
def test_unknown_ids_are_those_sampled_last(count: int, device: torch.device) -> None:
    ids, last, slots = case(count, device)
    assert torch.equal(tokens.known_ids(ids, last, slots), ops.known_ids(ids, last, slots))


@pytest.mark.parametrize("count", [0, 1, 7, 128, 300])
def test_what_is_told_is_kept(count: int, device: torch.device) -> None:
    ids, last, slots = case(count, device)
    ids = ids.abs() + (1 << 33)
    most = torch.randn(count, device=device)
    for place, value in enumerate((float("nan"), float("inf"), float("-inf"), -3e38)):
        most[place::9] = value
    mine, theirs = last.clone(), last.clone()
    assert torch.equal(tokens.keep_last(ids, most, mine, slots), ops.keep_last(ids, most, theirs, slots))
    assert torch.equal(mine, theirs)
    if count:
        assert tokens.keep_last(ids, most, mine, slots)[0] < 0


def test_a_platform_offers_them_where_steps_are_run() -> None:
    assert {"known_ids", "keep_last"} <= replacements("decode", torch.bfloat16).keys()
    assert not {"known_ids", "keep_last"} & replacements("train", torch.bfloat16).keys()
