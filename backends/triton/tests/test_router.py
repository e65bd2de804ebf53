"""Op `moe_route`: experts and their weights, beside the oracle in float64."""

from __future__ import annotations

import pytest
import torch

from pegboard import reference
from pegboard.nn import grouped
from pegboard_triton.moe import replacements, router

CASES = [(1, 8, 2), (1, 128, 8), (5, 60, 4), (3, 7, 7), (33, 16, 1), (300, 12, 3)]


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize(("tokens", "experts", "k"), CASES)
def test_experts_and_weights(
    tokens: int, experts: int, k: int, renormalise: bool, dtype: torch.dtype, device: torch.device
) -> None:
    # Rows of numbers that all differ, so that there is one right answer, with a stride of their own.
    wide = torch.stack([torch.randperm(experts + 3) for _ in range(tokens)]) * 0.25 - 2
    logits = wide.to(device, dtype)[:, :experts]
    ids, weights = router.moe_route(logits, k, renormalise)
    wanted_ids, wanted = reference.OPS["moe_route"](logits.cpu().double(), k, renormalise)
    assert ids.dtype == torch.int64 and weights.dtype == torch.float32
    assert torch.equal(ids.cpu(), wanted_ids)
    torch.testing.assert_close(weights.cpu().double(), wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.usefixtures("poisoned")
def test_of_equal_ones_the_lower_id(device: torch.device) -> None:
    ids, weights = router.moe_route(torch.tensor([[1.0, 3, 3, 1, 3]], device=device), 4, True)
    assert ids.tolist() == [[1, 2, 4, 0]]
    assert weights[0, 0] == weights[0, 1] == weights[0, 2] > weights[0, 3]


@pytest.mark.usefixtures("poisoned")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_what_is_no_number_shows_in_the_weights_alone(device: torch.device) -> None:
    logits = torch.zeros(3, 5, device=device)
    logits[1, 2] = float("nan")
    logits[2, 3] = float("-inf")
    ids, weights = router.moe_route(logits, 5, True)
    assert [sorted(row) for row in ids.tolist()] == [[0, 1, 2, 3, 4]] * 3
    assert weights[1].isnan().all()
    assert weights[2].tolist() == [0.25] * 4 + [0] and ids[2, 4] == 3


def test_no_tokens(device: torch.device) -> None:
    ids, weights = router.moe_route(torch.zeros(0, 4, device=device), 2, True)
    assert ids.shape == weights.shape == (0, 2)


def test_what_it_does_not_take_is_torchs(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    asked: list[torch.Size] = []

    def note(logits: torch.Tensor, k: int, renormalise: bool) -> tuple[torch.Tensor, torch.Tensor]:
        asked.append(logits.shape)
        return plain(logits, k, renormalise)

    plain = grouped.moe_route
    monkeypatch.setattr(grouped, "moe_route", note)
    for logits in (
        torch.randn(2, 4, device=device, requires_grad=True),
        torch.randn(2, 4, device=device, dtype=torch.float64),
        torch.randn(2, 2000, device=device),
        torch.randn(4, 2, device=device).t(),
    ):
        router.moe_route(logits, 2, True)
    assert len(asked) == 4


def test_models_get_it() -> None:
    assert replacements("decode", torch.bfloat16)["moe_route"] is router.moe_route
