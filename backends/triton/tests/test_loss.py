from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pegboard import reference
from pegboard.nn import Head
from pegboard.nn.loss import cross_entropy_sum, token_logps
from pegboard.ops import kernel_table
from pegboard_triton import loss, tuning

SIZES = [(1, 3), (5, 97), (3, 1000), (2, 9001)]
TOLERANCES = {torch.float32: 3e-6, torch.bfloat16: 6e-3}


@pytest.fixture(params=TOLERANCES)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param  # type: ignore[no-any-return]


def chunk(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    logits = torch.randn(rows, columns, generator=generator, dtype=torch.float64) * 4
    return logits.to(device, dtype), torch.randint(columns, (rows,), generator=generator).to(device)


def close(out: Tensor, exact: Tensor, tolerance: float) -> None:
    assert out.shape == exact.shape and bool(out.isfinite().all())
    assert float((out.double() - exact).norm()) <= tolerance * max(1e-3, float(exact.norm()))


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_cross_entropy(
    poisoned: None, device: torch.device, dtype: torch.dtype, rows: int, columns: int, softcap: float | None
) -> None:
    logits, targets = chunk(rows, columns, dtype, device)
    logps, slope = reference.OPS["cross_entropy_"](logits, targets, softcap)
    found, written = loss.cross_entropy_(logits, targets, softcap)
    assert found.dtype == torch.float32 and written.data_ptr() == logits.data_ptr()
    close(found, logps, 3e-6)
    close(written, slope, TOLERANCES[dtype])


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("factor", [False, True])
@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_sums_and_slope_of_some_columns(
    poisoned: None,
    device: torch.device,
    dtype: torch.dtype,
    rows: int,
    columns: int,
    factor: bool,
    softcap: float | None,
) -> None:
    logits, targets = chunk(rows, columns, dtype, device)
    targets = targets - columns // 2
    found, wanted = (
        function(logits, targets, softcap) for function in (loss.logits_sums, reference.OPS["logits_sums"])
    )
    for mine, right in zip(found, wanted, strict=True):
        close(mine, right, 3e-6)
    norm = found[0] + 0.25
    by = torch.linspace(-1, 2, rows, device=device) if factor else None
    slope = reference.OPS["logits_slope_"](logits, targets, norm, by, softcap)
    close(loss.logits_slope_(logits, targets, norm, by, softcap), slope, TOLERANCES[dtype])


def test_parts_of_a_row_join(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rows are split, so that there is work for a whole device."""
    logits, targets = chunk(2, 9001, torch.float32, device)
    whole = reference.OPS["logits_sums"](logits, targets)[0]
    for parts in (1, 2, 7, 9001):
        monkeypatch.setattr(
            loss, "choice", lambda *_, parts=parts, **__: {"BLOCK": 512, "num_warps": 4, "parts": parts}
        )
        close(loss.logits_sums(logits, targets)[0], whole, 3e-6)
    assert tuning.choice is not loss.choice


@pytest.mark.filterwarnings("ignore:(overflow|divide by zero) encountered:RuntimeWarning")
@pytest.mark.parametrize("far", [50.0, 70.0, 3000.0, float("inf")])
def test_what_comes_late_and_is_great(device: torch.device, far: float) -> None:
    """The first block's greatest says little of the last one's; a first block may be -inf altogether."""
    logits = torch.zeros(3, 9000, device=device)
    logits[1, 8200:] = far if far < 1e9 else 4.0
    logits[2, :4096] = -far
    exact = logits.double().log_softmax(-1)
    targets = torch.tensor([0, 8300, 5000], device=device)
    close(loss.logits_sums(logits, targets)[0], logits.double().logsumexp(-1), 3e-6)
    found, slope = loss.cross_entropy_(logits.clone(), targets)
    close(found, exact.gather(1, targets[:, None]).squeeze(1), 3e-6)
    wanted = exact.exp()
    wanted[torch.arange(3), targets] -= 1
    close(slope, wanted, 3e-6)


def test_rows_beside_others_and_far_values(device: torch.device, dtype: torch.dtype) -> None:
    """Rows of a wider matrix, whose other columns stay as they are; logits that a single pass without the greatest would lose."""
    logits, targets = chunk(4, 120, dtype, device)
    logits[0, 70:], logits[1], logits[2, 41] = -1e4, 3e3, 500
    view, before = logits[:, 40:110], logits.clone()
    targets = targets % 70
    logps, slope = reference.OPS["cross_entropy_"](view - 0, targets)
    exact = view.double().log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
    found, _ = loss.cross_entropy_(view, targets)
    close(found, exact, 3e-6)
    assert logits[:, :40].equal(before[:, :40]) and logits[:, 110:].equal(before[:, 110:])
    close(view[3], slope[3], TOLERANCES[dtype])
    assert bool(view.isfinite().all()) and logps is not None


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("frozen", [False, True])
def test_losses_of_the_core(device: torch.device, softcap: float | None, frozen: bool) -> None:
    """Whole losses with these kernels in the place of torch's: in float64, which they leave to torch, and in float32."""
    found = {}
    for dtype in (torch.float64, torch.float32):
        torch.manual_seed(0)
        head = Head(6, 31, softcap=softcap).to(device, dtype)
        hidden = torch.randn(9, 6, dtype=torch.float64).to(device, dtype).requires_grad_()
        torch.nn.init.normal_(head.weight)
        with torch.no_grad():
            head.weight.copy_(torch.randn(31, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3)))
            hidden.copy_(torch.randn(9, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(4)))
        head.requires_grad_(not frozen)
        head.kernels = kernel_table(loss.replacements("train", dtype))
        targets, rows = torch.arange(9, device=device) * 3, torch.tensor([0, 2, 3, 7], device=device)
        leaves = [hidden] if frozen else [hidden, head.weight]
        total = cross_entropy_sum(hidden, head, targets, rows, chunk=3)
        logps = token_logps(hidden, head, targets, rows, chunk=3)
        both = total + (logps * torch.tensor([1.0, -2.0, 0.5, 3.0], device=device)).sum()
        found[dtype] = [total.detach(), logps.detach(), *torch.autograd.grad(both, leaves)]
    for mine, right in zip(found[torch.float32], found[torch.float64], strict=True):
        close(mine, right, 1e-5)


@pytest.mark.parametrize("odd", ["float64", "columns", "ids"])
def test_what_the_kernels_do_not_take_is_torchs(device: torch.device, odd: str) -> None:
    logits, targets = chunk(4, 20, torch.float64 if odd == "float64" else torch.float32, device)
    if odd == "columns":
        logits = logits.t().contiguous().t()
    if odd == "ids":
        targets = torch.stack((targets, targets), 1)[:, 0]
    wanted = reference.OPS["cross_entropy_"](logits, targets)
    assert torch.allclose(loss.logits_sums(logits, targets)[0].double(), logits.double().logsumexp(-1))
    for mine, right in zip(loss.cross_entropy_(logits, targets), wanted, strict=True):
        close(mine, right, 1e-5)


def test_a_product_is_added(device: torch.device, dtype: torch.dtype) -> None:
    a, b = chunk(9, 24, dtype, device)[0], chunk(9, 8, dtype, device)[0]
    total = torch.ones(24, 8, device=device)
    exact = reference.OPS["add_product_"](total, a, b)
    assert loss.add_product_(total, a, b).data_ptr() == total.data_ptr()
    # On the host torch rounds the product first; TF32 is off.
    close(total, exact, 1e-5 if dtype == torch.float32 or device.type != "cpu" else 6e-3)


def test_scaled(poisoned: None, device: torch.device, dtype: torch.dtype) -> None:
    factor = torch.tensor(0.3, device=device)
    for size in ((0, 3), (5, 7), (3, 1000)):
        for x in (
            chunk(*size, dtype, device)[0] if size[0] else torch.ones(size, device=device),
            torch.ones(size).double(),
        ):
            out = loss.scaled(x, factor.to(x.device), dtype)
            assert out.dtype == dtype
            close(out, x.double() * factor.double().to(x.device), TOLERANCES[dtype])


def test_rows_at_once() -> None:
    assert loss.loss_rows(32000, torch.bfloat16) == 4096
    assert loss.loss_rows(128256, torch.bfloat16) == 2048
    assert loss.loss_rows(1 << 30, torch.float32) == 256
