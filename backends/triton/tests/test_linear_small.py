from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pegboard_triton import linear_small

USE = {"BLOCK_N": 8, "BLOCK_K": 32, "STAGES": 2, "num_warps": 4}


def draw(*shape: int, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 8e-3), (torch.float16, 1e-3)])
@pytest.mark.parametrize(("m", "n", "k"), [(1, 37, 40), (1, 8, 64), (2, 3, 5), (3, 16, 33), (7, 9, 32)])
@pytest.mark.parametrize("biased", [False, True])
def test_values(
    m: int, n: int, k: int, biased: bool, dtype: torch.dtype, tolerance: float, device: torch.device
) -> None:
    """Rows of either factor may lie apart."""
    x = draw(m, k + 3, dtype=dtype, device=device)[:, :k]
    weight = draw(n, k + 8, dtype=dtype, device=device, seed=1)[:, :k]
    bias = draw(n, dtype=dtype, device=device, seed=2) if biased else None
    exact = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    out = linear_small.launch(x, weight, bias, USE)
    assert float((out.double() - exact).norm()) <= tolerance * float(exact.norm())
    assert torch.equal(out, linear_small.launch(x, weight, bias, USE))


def test_op_takes_few_rows_and_leaves_the_rest(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[tuple[int, ...]] = []
    launch = linear_small.launch
    monkeypatch.setattr(linear_small, "launch", lambda x, *rest: (launched.append(x.shape), launch(x, *rest))[1])
    monkeypatch.setattr(linear_small, "_compiled", set())
    weight = draw(6, 48, dtype=torch.bfloat16, device=device)
    for rows in (1, 40, 0):
        x = draw(rows, 48, dtype=torch.bfloat16, device=device)
        torch.testing.assert_close(linear_small.linear(x, weight), x @ weight.T, rtol=2e-2, atol=6e-2)
    assert launched == [(1, 48)]
    x = draw(1, 48, dtype=torch.bfloat16, device=device)
    linear_small.linear(x.requires_grad_(), weight).sum().backward()
    linear_small.linear(x.detach().float(), weight.float())
    assert x.grad is not None
    # Compiled once, it waits for a graph.
    linear_small.linear(x.detach(), weight)
    assert launched == [(1, 48)]


def test_offered_for_decoding_in_half_precision() -> None:
    assert set(linear_small.replacements("decode", torch.bfloat16)) == {"linear"}
    assert not linear_small.replacements("train", torch.bfloat16)
    assert not linear_small.replacements("decode", torch.float32)
