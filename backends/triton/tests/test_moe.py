from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import triton.language as tl
from torch import Tensor

from pegboard import reference
from pegboard.nn import grouped as core
from pegboard_triton.kernel import kernel
from pegboard_triton.moe import forward as launches
from pegboard_triton.moe import moe, order, replacements
from pegboard_triton.moe.forward import FEW, SINGLE, SORTED
from pegboard_triton.moe.grouped import _place, _rows_from
from pegboard_triton.moe.packed_forward import Experts, packed_forward
from pegboard_triton.quantized.packed import FLOAT8, INT4, INT8

ROW = {"BLOCK_N": 16, "BLOCK_K": 32, "STAGES": 2, "num_warps": 4}
TILE = {
    "BLOCK_M": 16,
    "BLOCK_N": 16,
    "BLOCK_K": 16,
    "GROUP": 2,
    "DESCRIBED": 0,
    "TAIL": 0,
    "num_warps": 4,
    "num_stages": 2,
}
TOLERANCES = {torch.float32: 1e-6, torch.bfloat16: 1.5e-2}

# What the interpreter computes with says so where a sigmoid is 0 or 1.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")


def draw(
    tokens: int, experts: int, top_k: int, hidden: int, inner: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    x = torch.randn(tokens, hidden, generator=generator)
    gate_up = torch.randn(experts, 2 * inner, hidden, generator=generator) * 0.3
    down = torch.randn(experts, hidden, inner, generator=generator) * 0.3
    weights, ids = torch.randn(tokens, experts, generator=generator).softmax(-1).topk(top_k)
    return x.to(device, dtype), gate_up.to(device, dtype), down.to(device, dtype), ids.to(device), weights.to(device)


def close(out: Tensor, exact: Tensor, tolerance: float) -> None:
    assert out.shape == exact.shape
    assert bool(out.isfinite().all())
    assert float((out.double() - exact).norm()) <= tolerance * float(exact.norm())


def launched(
    way: int, use: dict[str, int], x: Tensor, gate_up: Tensor, down: Tensor, ids: Tensor, weights: Tensor
) -> Tensor:
    routing = launches.route(ids, gate_up.shape[0], way)
    return launches.down(launches.gate_up(x, gate_up, routing, "silu", use), down, routing, weights, use)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("way", "use", "sizes"),
    [
        (SINGLE, ROW, (1, 5, 2, 24, 12)),
        (SINGLE, ROW, (3, 3, 2, 40, 28)),
        (FEW, TILE, (1, 5, 2, 24, 12)),
        (FEW, TILE, (9, 3, 2, 40, 28)),
        (SORTED, TILE, (1, 5, 2, 24, 12)),
        (SORTED, TILE, (21, 4, 3, 40, 28)),
        (SORTED, TILE | {"DESCRIBED": 1}, (21, 4, 3, 24, 32)),
        (SORTED, TILE | {"DESCRIBED": 1, "TAIL": 16}, (45, 4, 3, 24, 32)),
        (SORTED, TILE | {"DESCRIBED": 1, "TAIL": 16}, (19, 4, 3, 40, 27)),
        (SORTED, TILE | {"BLOCK_M": 32, "TAIL": 16}, (60, 3, 2, 40, 27)),
    ],
    ids=lambda value: str(value) if isinstance(value, int | tuple) else "",
)
def test_every_way_equals_the_reference(
    way: int, use: dict[str, int], sizes: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> None:
    tokens, experts, top_k, hidden, inner = sizes
    inputs = draw(tokens, experts, top_k, hidden, inner, dtype, device)
    close(launched(way, use, *inputs), reference.OPS["moe"](*inputs), TOLERANCES[dtype])


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("way", [SINGLE, FEW, SORTED])
def test_all_tokens_to_one_expert_and_pairs_of_none(way: int, device: torch.device) -> None:
    x, gate_up, down, ids, weights = draw(17, 4, 2, 16, 8, torch.float32, device)
    ids[:, 0], ids[:, 1] = 2, -1
    ids[3, 1] = 4
    exact = reference.OPS["moe"](x, gate_up, down, ids[:, :1], weights[:, :1])
    use = ROW if way == SINGLE else TILE
    close(launched(way, use, x, gate_up, down, ids, weights), exact, 1e-6)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(
    ("activation", "inner", "dtype"),
    [("silu", 12, torch.float32), ("gelu_tanh", 12, torch.float32), ("silu", 16, torch.bfloat16)],
)
def test_op_with_gradients(activation: str, inner: int, dtype: torch.dtype, device: torch.device) -> None:
    inputs = draw(9, 5, 2, 16, inner, dtype, device)
    mine = [x.requires_grad_() if x.is_floating_point() else x for x in inputs]
    exact = [x.detach().double().requires_grad_() if x.is_floating_point() else x for x in inputs]
    out, right = moe(*mine, activation), core.moe(*exact, activation)
    close(out.detach(), right.detach(), TOLERANCES[dtype])
    upstream = torch.randn(right.shape, generator=torch.Generator().manual_seed(3)).to(device, dtype)
    got = torch.autograd.grad(out, [x for x in mine if x.requires_grad], upstream)
    wanted = torch.autograd.grad(right, [x for x in exact if x.requires_grad], upstream.double())
    for found, expected in zip(got, wanted, strict=True):
        close(found, expected, 2 * TOLERANCES[dtype])


def test_only_the_gradients_that_are_wanted(device: torch.device) -> None:
    x, gate_up, down, ids, weights = draw(3, 4, 2, 16, 8, torch.float32, device)
    (grad,) = torch.autograd.grad(moe(x.requires_grad_(), gate_up, down, ids, weights).sum(), [x])
    exact = x.detach().double().requires_grad_()
    right = core.moe(exact, gate_up.double(), down.double(), ids, weights.double())
    close(grad, torch.autograd.grad(right.sum(), [exact])[0], 2e-6)


def test_stored_settings_and_no_tokens(device: torch.device) -> None:
    for tokens in (0, 1, 10):
        inputs = draw(tokens, 4, 2, 32, 16, torch.float32, device)
        with torch.no_grad():
            close(moe(*inputs), reference.OPS["moe"](*inputs), 1e-6)


def test_same_bits_again(device: torch.device) -> None:
    inputs = draw(5, 4, 2, 32, 16, torch.bfloat16, device)
    for way in (SINGLE, FEW, SORTED):
        use = ROW if way == SINGLE else TILE
        assert torch.equal(launched(way, use, *inputs), launched(way, use, *inputs))


@pytest.mark.parametrize("way", [order.CHUNKS, order.RANKS])
@pytest.mark.parametrize(("pairs", "experts", "few"), [(1, 1, 64), (300, 5, 4096), (700, 6, 16), (50, 128, 16)])
def test_order(
    pairs: int, experts: int, few: int, way: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order, "choice", lambda *_, **__: {"way": way})
    monkeypatch.setattr(order, "_FEW", few)
    monkeypatch.setattr(order, "_RANKED", 64)
    monkeypatch.setattr(order, "_PART", 64)
    monkeypatch.setattr(order, "_MOST_CHUNKS", 5)
    ids = torch.randint(-1, experts + 1, (pairs, 1), generator=torch.Generator().manual_seed(1)).to(device)
    places = torch.full((pairs,), -1, dtype=torch.int32, device=device)
    found, offsets = order.order_pairs(ids, experts, places)
    flat = ids.view(-1)
    wanted = [i for e in range(experts) for i in range(pairs) if flat[i] == e]
    assert found[: len(wanted)].tolist() == wanted
    assert offsets.tolist() == [int(((flat >= 0) & (flat < e)).sum()) for e in range(experts + 1)]
    assert all(places[pair] == place for place, pair in enumerate(wanted))
    assert int((places >= 0).sum()) == len(wanted)


def test_what_kernels_do_not_take_goes_to_torch(device: torch.device, compare: Callable[..., None]) -> None:
    inputs = [x.double() if x.is_floating_point() else x for x in draw(3, 4, 2, 8, 4, torch.float32, device)]
    close(moe(*inputs), reference.OPS["moe"](*inputs), 1e-12)


PACKED = {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 32, "GROUP": 1, "num_warps": 4, "num_stages": 2}


def pack(name: str, weight: Tensor, device: torch.device, halves: int = 1) -> tuple[Experts, Tensor]:
    """Return a weight [E, N, K] in a format and what it stands for, float64. halves: 2 for gate and up, whose scales begin anew."""
    experts, rows, columns = weight.shape
    if name == "int8":
        scales = weight.abs().amax(2, keepdim=True) / 127
        codes = (weight / scales).round().to(torch.int8)
        return Experts(INT8, codes.to(device), scales.to(device), columns, 1, columns), codes.double() * scales.double()
    if name == "float8":
        codes, high = weight.to(torch.float8_e4m3fn), -(-rows // halves // 24)
        scales = torch.rand(experts, halves, high, columns // 32, generator=torch.Generator().manual_seed(0)) + 0.5
        wide = scales.double().repeat_interleave(24, 2)[:, :, : rows // halves].flatten(1, 2).repeat_interleave(32, 2)
        packed = Experts(FLOAT8, codes.view(torch.uint8).to(device), scales.flatten(1, 2).to(device), columns, 24, 32)
        return packed, codes.double() * wide
    stored = pytest.importorskip("pegboard_int4.stored")
    codes, scales = stored.finite_codes("x", weight.flatten(0, 1), 32)
    words = stored.pack(codes)
    values = stored.dequantise(words, scales, torch.float64).view(weight.shape)
    codes = words.view(torch.uint8).view(experts, rows, columns // 2)
    return Experts(INT4, codes.to(device), scales.view(experts, rows, -1).to(device), columns, 1, 32), values


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("name", ["int8", "float8", "int4"])
@pytest.mark.parametrize(
    ("tokens", "way", "dtype"), [(1, FEW, torch.bfloat16), (5, FEW, torch.float32), (19, SORTED, torch.float32)]
)
def test_packed_experts(name: str, tokens: int, way: int, dtype: torch.dtype, device: torch.device) -> None:
    x, gate_up, down, ids, weights = draw(tokens, 3, 2, 64, 32, dtype, torch.device("cpu"))
    packed_up, wide_up = pack(name, gate_up.float(), device, 2)
    packed_down, wide_down = pack(name, down.float(), device)
    settings = {"way": {"way": way}, "gate_up": PACKED, "down": PACKED}
    out = packed_forward(x.to(device), packed_up, packed_down, ids.to(device), weights.to(device), "silu", settings)
    close(out.cpu(), reference.OPS["moe"](x, wide_up, wide_down, ids, weights), TOLERANCES[dtype])


@pytest.mark.parametrize("block", [None, 128])
def test_op_of_fp8_experts(block: int | None, device: torch.device) -> None:
    fp8 = pytest.importorskip("pegboard_fp8.ops")
    x, gate_up, down, ids, weights = draw(3, 3, 2, 160, 40, torch.float32, torch.device("cpu"))
    halves = [fp8.quantise(half, block) for weight in gate_up for half in weight.chunk(2)]
    lows = [fp8.quantise(weight, block) for weight in down]
    up = torch.stack([codes for codes, _ in halves]).view(3, 80, 160), torch.cat([s for _, s in halves]).view(3, 2, -1)
    low = torch.stack([codes for codes, _ in lows]), torch.stack([scales for _, scales in lows])
    wide_up = torch.stack([fp8.dequantise(*half, block, torch.float64) for half in halves]).view(3, 80, 160)
    wide_down = torch.stack([fp8.dequantise(*one, block, torch.float64) for one in lows])
    op = replacements("decode", torch.float32)["fp8_moe"]
    inputs = [t.to(device) for t in (*up, *low)]
    out = op(*inputs, block, x.to(device), ids.to(device), weights.to(device), "silu")
    close(out.cpu(), reference.OPS["moe"](x, wide_up, wide_down, ids, weights), 1e-6)


def test_ops_of_packed_experts(device: torch.device) -> None:
    """Those that are registered are replaced, where no gradient is asked for and inputs are not rounded."""
    pytest.importorskip("pegboard_int8.ops")
    x, gate_up, down, ids, weights = (t.to(device) for t in draw(4, 3, 2, 64, 32, torch.float32, device))
    up, wide_up = pack("int8", gate_up.cpu(), device)
    low, wide_down = pack("int8", down.cpu(), device)
    op = replacements("decode", torch.float32)["int8_moe"]
    exact = reference.OPS["moe"](x.cpu(), wide_up, wide_down, ids.cpu(), weights.cpu())
    for wanted in (False, True):
        x = x.detach().requires_grad_(wanted)
        out = op(up.codes, up.scales.squeeze(2), low.codes, low.scales.squeeze(2), x, ids, weights)
        close(out.detach().cpu(), exact, 1e-5)
        assert out.requires_grad == wanted


@pytest.mark.parametrize(("size", "tail"), [(16, 0), (16, 16), (32, 16), (16, 8)])
@pytest.mark.parametrize("rows", [(0, 1, 16), (17, 31, 32), (33, 48, 49), (64, 65, 80)])
def test_blocks_have_every_row_once(size: int, tail: int, rows: tuple[int, ...], device: torch.device) -> None:
    """Each block's rows, told by a kernel that finds its rows as the products do: no row twice, none left out, few blocks."""
    ids = torch.repeat_interleave(torch.arange(3), torch.tensor(rows))[torch.randperm(sum(rows))][:, None].to(device)
    routing = launches.route(ids, 3, SORTED)
    blocks = routing.blocks(size)
    seen = torch.zeros(sum(rows), dtype=torch.int32, device=device)
    used = torch.zeros(blocks, dtype=torch.int32, device=device)
    _tell[(blocks,)](ids, routing.order, routing.offsets, seen, used, sum(rows), blocks, SIZE=size, TAIL=tail)
    assert seen.tolist() == [1] * sum(rows)
    wanted = sum(max(-(-(count - tail) // size), int(count > 0)) for count in rows)
    assert int((used > 0).sum()) == wanted and int(used.max()) <= size + tail


@kernel
def _tell(ids, order, offsets, seen, used, pairs, blocks, SIZE: tl.constexpr, TAIL: tl.constexpr):  # type: ignore[no-untyped-def]
    _, _, _, row, there, any_there, begin, first, stop = _place(
        ids, order, offsets, pairs, blocks, 1, 3, 4, 0, SIZE, TAIL, 1
    )
    if any_there:
        tl.atomic_add(seen + row, 1, mask=there)
        count = tl.sum(there.to(tl.int32), 0)
        if TAIL > 0:
            _, more, left = _rows_from(order, begin, first + SIZE, stop, TAIL)
            tl.atomic_add(seen + more, 1, mask=left)
            count += tl.sum(left.to(tl.int32), 0)
        tl.store(used + tl.program_id(0), count)


def nf4(weight: Tensor, parts: int, double: bool) -> tuple[list[Tensor | None], Tensor]:
    """Return weights [E, N, K] of `parts` matrices as op `nf4_moe` takes them, and what they stand for, float64."""
    matrix = pytest.importorskip("pegboard_nf4.matrix")
    found = [[matrix.quantise(part, double=double) for part in each.float().chunk(parts)] for each in weight]
    names = ("packed", "scales", "nested", "offset")
    fields = [[[getattr(part, name) for part in each] for each in found] for name in names]
    tensors = [
        None if field[0][0] is None else torch.stack([torch.cat([t.view(-1) for t in each]) for each in field])
        for field in fields
    ]
    return tensors, torch.stack([torch.cat([part.dequantise(torch.float64) for part in each]) for each in found])


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize(("tokens", "dtype"), [(1, torch.bfloat16), (5, torch.float32)])
def test_nf4_experts(tokens: int, dtype: torch.dtype, double: bool, device: torch.device) -> None:
    pytest.importorskip("pegboard_nf4.experts")
    x, gate_up, down, ids, weights = draw(tokens, 3, 2, 192, 64, dtype, torch.device("cpu"))
    stored_up, wide_up = nf4(gate_up, 2, double)
    stored_down, wide_down = nf4(down, 1, double)
    tensors = [t if t is None else t.to(device) for t in (*stored_up, *stored_down)]
    op = replacements("decode", dtype)["nf4_moe"]
    with torch.no_grad():
        out = op(*tensors, x.to(device), ids.to(device), weights.to(device), "silu")
    close(out.cpu(), reference.OPS["moe"](x, wide_up, wide_down, ids, weights), TOLERANCES[dtype])


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("double", [True, False])
def test_grouped_nf4_and_its_gradient(double: bool, device: torch.device) -> None:
    """Blocks of scales that lie in two matrices' storage would be those of the wrong one: 96 a matrix, of 256 that share."""
    pytest.importorskip("pegboard_nf4.experts")
    weight = torch.randn(3, 64, 192, generator=torch.Generator().manual_seed(5))
    stored, wide = nf4(weight, 2, double)
    ends = torch.tensor([2, 2, 7], dtype=torch.int32)
    x = torch.randn(7, 192).to(device).requires_grad_()
    op = replacements("train", torch.float32)["nf4_grouped"]
    tensors = [t if t is None else t.to(device) for t in stored]
    out = op(x, *tensors, 2, ends.to(device), core.grouped_linear)
    upstream = torch.randn(7, 64)
    (grad,) = torch.autograd.grad(out, [x], upstream.to(device))
    exact = x.detach().cpu().double().requires_grad_()
    right = core.grouped_linear(exact, wide, ends)
    close(out.detach().cpu(), right.detach(), 1e-6)
    close(grad.cpu(), torch.autograd.grad(right, [exact], upstream.double())[0], 1e-6)
