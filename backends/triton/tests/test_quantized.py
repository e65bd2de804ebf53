from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pegboard.ops import linear, registered
from pegboard_triton.quantized import ops
from pegboard_triton.quantized.packed import FLOAT8
from pegboard_triton.quantized.rows import Packed, product

int8 = pytest.importorskip("pegboard_int8.ops")
int4 = pytest.importorskip("pegboard_int4.stored")
pytest.importorskip("pegboard_int4.ops")
nf4 = pytest.importorskip("pegboard_nf4.matrix")
pytest.importorskip("pegboard_nf4.ops")

TOLERANCES = {torch.float32: 1e-6, torch.bfloat16: 1e-2}
DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCES))


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def close(out: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    assert out.dtype == dtype
    assert out.shape == exact.shape
    assert bool(out.isfinite().all())
    assert float((out.cpu().double() - exact).norm()) <= TOLERANCES[dtype] * float(exact.norm())


def replaced(name: str, dtype: torch.dtype = torch.bfloat16) -> object:
    return ops.replacements("decode", dtype)[name]


def never(*arguments: object) -> Tensor:
    raise AssertionError("few rows are multiplied by a kernel")


@pytest.mark.usefixtures("poisoned")
@DTYPES
@pytest.mark.parametrize(("m", "n", "k"), [(1, 37, 40), (5, 20, 256), (20, 7, 33)])
def test_int8(m: int, n: int, k: int, dtype: torch.dtype, device: torch.device) -> None:
    x, bias = draw(m, k, dtype=dtype), draw(n, dtype=dtype, seed=1)
    weight, scales = torch.empty(n, k, dtype=torch.int8), torch.empty(n)
    int8.quantise_(weight, scales, draw(n, k, seed=2))
    exact = x.double() @ (weight.double() * scales.double()[:, None]).T + bias.double()
    product_of = ops._int8_linear(never)
    close(product_of(x.to(device), weight.to(device), scales.to(device), bias.to(device)), exact, dtype)


@pytest.mark.usefixtures("poisoned")
@DTYPES
@pytest.mark.parametrize("split", [1, 3])
def test_float8_and_parts_of_the_inputs(split: int, dtype: torch.dtype, device: torch.device) -> None:
    """Every value of e4m3 that is a number, in any dtype of x."""
    codes = torch.arange(256, dtype=torch.uint8).repeat(3, 1)[:, [c for c in range(256) if c & 127 != 127]]
    x, scales, bias = draw(2, 254, dtype=dtype), draw(3).abs(), draw(3, dtype=dtype)
    exact = x.double() @ (codes.view(torch.float8_e4m3fn).double() * scales.double()[:, None]).T + bias.double()
    weight = Packed(FLOAT8, (3, 254), codes.to(device), scales.to(device), 254)
    use = {"BLOCK_N": 16, "BLOCK_K": 32, "SPLIT": split, "num_warps": 4, "num_stages": 2}
    close(product(x.to(device), weight, bias.to(device), use), exact, dtype)


@pytest.mark.usefixtures("poisoned")
@DTYPES
@pytest.mark.parametrize("m", [2, 3])
@pytest.mark.parametrize("block", [None, 32, 128])
def test_fp8(block: int | None, m: int, dtype: torch.dtype, device: torch.device) -> None:
    fp8 = pytest.importorskip("pegboard_fp8.ops")
    x, (weight, scales) = draw(m, 80, dtype=dtype), fp8.quantise(draw(40, 80, seed=1), block)
    exact = x.double() @ fp8.dequantise(weight, scales, block, torch.float64).T
    product_of = ops._fp8_linear(never)
    close(product_of(x.to(device), weight.to(device), scales.to(device), block, None, never), exact, dtype)


@pytest.mark.usefixtures("poisoned")
@DTYPES
@pytest.mark.parametrize("group", [32, 128])
@pytest.mark.parametrize("m", [1, 17])
def test_int4(m: int, group: int, dtype: torch.dtype, device: torch.device) -> None:
    x = draw(m, 256, dtype=dtype)
    codes, scales = int4.finite_codes("x", draw(19, 256, seed=1), group)
    words = int4.pack(codes)
    weight = int4.dequantise(words, scales, torch.float64)
    found = ops.replacements("decode", dtype)
    out = found["int4_linear"](x.to(device), words.to(device), scales.to(device), never)
    close(out, x.double() @ weight.T, dtype)
    full = found["int4_values"](words.to(device), scales.to(device), torch.float32)
    assert torch.equal(full.cpu(), weight.float())


def test_int4_groups_of_any_size_and_many_rows(device: torch.device) -> None:
    for m, group in ((2, 24), (40, 32)):
        x, (codes, scales) = draw(m, 96), int4.finite_codes("x", draw(5, 96, seed=1), group)
        words = int4.pack(codes)
        out = ops._int4_linear(never)(x.to(device), words.to(device), scales.to(device), linear)
        close(out, x.double() @ int4.dequantise(words, scales, torch.float64).T, torch.float32)


def place(matrix: object, device: torch.device) -> object:
    tensors = (matrix.packed, matrix.scales, matrix.nested, matrix.offset)  # type: ignore[attr-defined]
    return nf4.Nf4Matrix(matrix.shape, *(t if t is None else t.to(device) for t in tensors))  # type: ignore[attr-defined]


@pytest.mark.usefixtures("poisoned")
@DTYPES
@pytest.mark.parametrize("double", [False, True])
def test_nf4(double: bool, dtype: torch.dtype, device: torch.device) -> None:
    """One or two rows of whole blocks by the kernel, all else by the widened weight; a stack is its members side by side."""
    alone = never if dtype.itemsize == 2 else linear
    for m, k, by in ((1, 128, alone), (2, 192, alone), (40, 128, linear), (1, 70, linear)):
        x, bias = draw(m, k, dtype=dtype), draw(30, dtype=dtype)
        matrices = [nf4.quantise(draw(n, k, seed=n), double=double) for n in (20, 10)]
        exact = torch.cat([x.double() @ matrix.dequantise(torch.float64).T for matrix in matrices], 1) + bias.double()
        placed = [place(matrix, device) for matrix in matrices]
        stack = nf4.Nf4Stack((30, k), placed[0].packed, placed[0].scales, members=tuple(placed))  # type: ignore[attr-defined]
        close(ops._nf4_linear(never)(x.to(device), stack, bias.to(device), by), exact, dtype)


@pytest.mark.parametrize("double", [False, True])
def test_nf4_gradient_and_values(double: bool, device: torch.device) -> None:
    matrix = nf4.quantise(draw(9, 70), double=double)
    x = draw(4, 70, seed=1).to(device).requires_grad_()
    out = ops._nf4_linear(never)(x, place(matrix, device), None, linear)
    (grad,) = torch.autograd.grad(out, x, torch.ones_like(out))
    close(grad, torch.ones(4, 9).double() @ matrix.dequantise(torch.float64), torch.float32)
    placed = [place(matrix, device), place(nf4.quantise(draw(5, 70, seed=2), double=double), device)]
    stack = nf4.Nf4Stack((14, 70), placed[0].packed, placed[0].scales, members=tuple(placed))  # type: ignore[attr-defined]
    exact = torch.cat([one.dequantise(torch.float64) for one in placed])  # type: ignore[attr-defined]
    close(ops._nf4_values(never)(stack, torch.float32), exact, torch.float32)
    part = ops._nf4(place(matrix, device))
    assert part is not None
    # A scale of two steps may be rounded once on a device.
    close(ops.values(part, torch.float32), matrix.dequantise(torch.float64), torch.float32)


def test_what_kernels_do_not_take_goes_to_the_ops(device: torch.device) -> None:
    x = draw(2, 16).double().to(device)
    weight, scales = torch.ones(3, 16, dtype=torch.int8, device=device), torch.ones(3, device=device)
    found = ops.replacements("decode", torch.bfloat16)
    names = {"int8_linear", "int4_linear", "int4_values", "nf4_linear", "nf4_values", "fp8_linear"}
    assert set(found) == names & set(registered())
    torch.testing.assert_close(found["int8_linear"](x, weight, scales), x.sum(1, keepdim=True).expand(2, 3))
