"""What the conformance suite of attention backends does not ask: codes, one pass over the projection, chunks that merge."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from pegboard import reference
from pegboard.nn.rotary import Rotary
from pegboard.ops import offset_rms_norm, rms_norm, rotary
from pegboard.reference.attention import token
from pegboard.types import AttentionInputs, AttentionSpec, HeadNorms, KVCache, KVLayout
from pegboard_triton.attention.backend import TritonAttention
from pegboard_triton.attention.plan import FEW, CachedPlan

BACKEND = TritonAttention()
CODES = (torch.int8, torch.float8_e4m3fn)
SPEC = AttentionSpec(1, 4, 2, 16, 0.31)
PAGE = 16


def normal(*shape: int, seed: int = 0, device: torch.device) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)


class Step:
    """Sequences of old[i] cached and new[i] new tokens, their pages in no order; places of no token are poison."""

    def __init__(
        self, spec: AttentionSpec, old: list[int], new: list[int], device: torch.device, cells: Any = None, **pads: int
    ) -> None:
        layout = BACKEND.layout(spec, 2, PAGE, cells or torch.float32)
        counts = [-(-(o + n) // PAGE) for o, n in zip(old, new, strict=True)]
        order = torch.randperm(sum(counts) + 3, generator=torch.Generator().manual_seed(1)).add(1).tolist()
        self.table = [[order.pop() for _ in range(count)] for count in counts]
        self.cache = KVCache.allocate(layout, sum(counts) + 4, device)
        for tensors in (self.cache.k, self.cache.v, self.cache.k_scale, self.cache.v_scale):
            for x in tensors or ():
                if x.dtype.is_floating_point and x.element_size() > 1:
                    x.fill_(math.nan)
        # What the caches of codes hold, as the numbers that they stand for.
        wide = replace_layout(layout, "float32")
        self.exact = KVCache.allocate(wide, sum(counts) + 4, device)
        for index, count in enumerate(old):
            for t in range(count):
                for name, heads in (("k", 5), ("v", 6)):
                    row = normal(spec.num_kv_heads, spec.head_dim, seed=1000 * heads + 100 * index + t, device=device)
                    self.put(name, spec.layer, index, t, row)
        lens = [o + n for o, n in zip(old, new, strict=True)]
        slots = [
            self.table[i][t // PAGE] * PAGE + t % PAGE
            for i, (o, n) in enumerate(zip(old, new, strict=True))
            for t in range(o, o + n)
        ]
        self.inputs = AttentionInputs(new, lens, self.table, torch.tensor(slots), 0, **pads)
        self.spec, self.rows = spec, sum(new)

    def put(self, name: str, layer: int, index: int, t: int, row: Tensor) -> None:
        """Write a token's row [heads, D], coded by torch where the cache holds codes."""
        cells, exact = getattr(self.cache, name)[layer], getattr(self.exact, name)[layer]
        scales = getattr(self.cache, name + "_scale")
        at = (self.table[index], t)
        if scales is None:
            token(cells, self.cache.layout, *at).copy_(row)
        else:
            codes, factors = coded(row, cells.dtype)
            raw = cells.view(torch.uint8)
            token(raw, self.cache.layout, *at).copy_(codes.view(torch.uint8))
            scales[layer][self.table[index][t // PAGE], :, t % PAGE] = factors
            row = codes.float() * factors[:, None]
        token(exact, self.exact.layout, *at).copy_(row)


def replace_layout(layout: KVLayout, dtype: str) -> KVLayout:
    return replace(layout, dtype=dtype)


def coded(rows: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The rule of KVLayout by torch's own conversions."""
    largest = 127.0 if dtype == torch.int8 else 448.0
    # On the host: a GPU divides by a number as it multiplies by its inverse.
    wide = rows.float().cpu()
    factors = wide.abs().amax(-1) / largest
    steps = wide / torch.where(factors > 0, factors, 1.0)[..., None]
    return (steps.round() if dtype == torch.int8 else steps).to(dtype).to(rows.device), factors.to(rows.device)


def qkv(spec: AttentionSpec, rows: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    q = normal(rows, spec.num_heads, spec.head_dim, seed=7, device=device)
    k, v = (normal(rows, spec.num_kv_heads, spec.head_dim, seed=seed, device=device) for seed in (8, 9))
    return q, k, v


@pytest.mark.parametrize("cells", CODES)
@pytest.mark.parametrize("new", [[1, 1], [FEW + 2, 3]])
def test_a_cache_of_codes(cells: torch.dtype, new: list[int], device: torch.device) -> None:
    """A step over codes is one over the numbers that they stand for, new rows coded as torch codes them."""
    step = Step(SPEC, [19, 3], new, device, cells)
    q, k, v = qkv(SPEC, step.rows, device)
    held_k, held_v = (codes.float() * factors[..., None] for codes, factors in (coded(x, cells) for x in (k, v)))
    wanted = reference.paged_attention(q, held_k, held_v, SPEC, step.inputs, step.exact)
    out = BACKEND.attend(q, k, v, SPEC, BACKEND.plan(step.inputs, device, step.cache.layout), step.cache)
    torch.testing.assert_close(out.double(), wanted, rtol=3e-5, atol=3e-5)
    codes, factors = coded(k, cells)
    row, index = 0, 0
    for index, count in enumerate(new):
        for t in range(step.inputs.seq_lens[index] - count, step.inputs.seq_lens[index]):
            mine = token(step.cache.k[1].view(torch.uint8), step.cache.layout, step.table[index], t)
            assert torch.equal(mine, codes[row].view(torch.uint8))
            assert torch.equal(step.cache.k_scale[1][step.table[index][t // PAGE], :, t % PAGE], factors[row])  # type: ignore[index]
            row += 1


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cells", [*CODES, torch.bfloat16])
@pytest.mark.parametrize("new", [[1, 1], [FEW + 200, 3]])
def test_halves_of_a_real_shape(dtype: torch.dtype, cells: torch.dtype, new: list[int], device: torch.device) -> None:
    """Where the interpreter does not go: products of half precision, codes by their bits, heads of 128, many chunks."""
    for heads in ((16, 8), (32, 4), (28, 4)):
        spec = AttentionSpec(1, *heads, 128, 128**-0.5)
        step = Step(spec, [700, 3], new, device, cells)
        q, k, v = (x.to(dtype) for x in qkv(spec, step.rows, device))
        plan = BACKEND.plan(step.inputs, device, step.cache.layout)
        out = BACKEND.attend(q, k, v, spec, plan, step.cache)
        past = step.exact
        if cells in CODES:
            k, v = (codes.float() * factors[..., None] for codes, factors in (coded(x, cells) for x in (k, v)))
        elif cells != dtype:
            k, v = (x.to(cells) for x in (k, v))
        if cells == torch.bfloat16:
            past = step.cache
        wanted = exact_rows(q, k, v, spec, step, past)
        assert (out.double() - wanted).norm() / wanted.norm() < 1e-2


def exact_rows(q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, step: Step, past: KVCache) -> Tensor:
    """Paged attention in float64 by whole matrices."""
    parts, start = [], 0
    for index, (new, length) in enumerate(zip(step.inputs.query_lens, step.inputs.seq_lens, strict=True)):
        slots = torch.tensor([p * PAGE + t for p in step.table[index] for t in range(PAGE)], device=q.device)[
            : length - new
        ]
        rows = slice(start, start + new)
        held = []
        for cells, fresh in ((past.k[1], k), (past.v[1], v)):
            old = cells.transpose(1, 2).flatten(0, 1)[slots].double()
            held.append(
                torch.cat([old, fresh[rows].double()]).repeat_interleave(spec.num_heads // spec.num_kv_heads, 1)
            )
        logits = torch.einsum("qhd,khd->hqk", q[rows].double(), held[0]) * spec.scale
        places = torch.arange(length, device=q.device)
        logits = logits.masked_fill(places[None, :] > places[length - new :, None], -math.inf)
        parts.append(torch.einsum("hqk,khd->qhd", logits.softmax(-1), held[1]))
        start += new
    return torch.cat(parts)


@pytest.mark.parametrize("new", [[1, 1], [FEW + 2, 3]])
def test_a_cache_of_another_float(new: list[int], device: torch.device) -> None:
    """A cache may be wider or narrower than what is computed in."""
    step = Step(SPEC, [19, 3], new, device, torch.float16)
    q, k, v = qkv(SPEC, step.rows, device)
    wanted = reference.paged_attention(q, k.half(), v.half(), SPEC, step.inputs, step.cache)
    out = BACKEND.attend(q, k, v, SPEC, BACKEND.plan(step.inputs, device, step.cache.layout), step.cache)
    torch.testing.assert_close(out.double(), wanted, rtol=3e-5, atol=3e-5)


def test_every_code_of_fp8_is_read(device: torch.device) -> None:
    """All finite codes of e4m3, subnormal ones too, as values of one key each."""
    codes = torch.tensor([c for c in range(256) if c & 0x7F != 0x7F], dtype=torch.uint8, device=device)
    codes = torch.cat([codes, codes[:2]]).view(16, 1, 16)
    spec = AttentionSpec(0, 1, 1, 16, 1.0)
    layout = BACKEND.layout(spec, 1, PAGE, torch.float8_e4m3fn)
    for t in range(16):
        cache = KVCache.allocate(layout, 3, device)
        cache.v[0].view(torch.uint8)[1, :, 0] = codes[t]
        assert cache.v_scale is not None and cache.k_scale is not None
        cache.v_scale[0].fill_(1.0)
        # The new token's key is far smaller than the old one's: all weight is on the old one.
        cache.k[0].view(torch.uint8)[1, :, 0] = 0x38
        cache.k_scale[0].fill_(1.0)
        plan = BACKEND.plan(AttentionInputs([1], [2], [[1]], torch.tensor([PAGE + 1]), 1), device, layout)
        q = torch.full((1, 1, 16), 30.0, device=device)
        new = torch.full((1, 1, 16), -1.0, device=device)
        out = BACKEND.attend(q, new, new, spec, plan, cache)
        assert torch.equal(out[0, 0], codes[t, 0].view(torch.float8_e4m3fn).float())


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("cells", CODES)
def test_what_is_not_finite_makes_its_scale_nan(cells: torch.dtype, device: torch.device) -> None:
    step = Step(SPEC, [0], [1], device, cells)
    q, k, v = qkv(SPEC, 1, device)
    v[0, 1, 3], k[0, 0, 2], k[0, 1] = math.inf, math.nan, 0.0
    BACKEND.attend(q, k, v, SPEC, BACKEND.plan(step.inputs, device, step.cache.layout), step.cache)
    assert step.cache.k_scale is not None and step.cache.v_scale is not None
    page = step.table[0][0]
    assert step.cache.v_scale[1][page, :, 0].isnan().tolist() == [False, True]
    assert step.cache.k_scale[1][page, :, 0].tolist()[1] == 0.0 and step.cache.k_scale[1][page, 0, 0].isnan()


@pytest.mark.parametrize("changes", [{}, {"window": 150}, {"softcap": 0.7}])
def test_chunks_are_merged(changes: dict[str, Any], device: torch.device) -> None:
    """Sequences of several chunks, with several new tokens, beside ones of one chunk; counters are zero afterwards."""
    spec = AttentionSpec(1, 6, 2, 16, 0.31, **changes)
    step = Step(spec, [409, 2, 270], [3, 1, 2], device)
    q, k, v = qkv(spec, step.rows, device)
    wanted = reference.paged_attention(q, k, v, spec, step.inputs, step.exact)
    plan = BACKEND.plan(step.inputs, device, step.cache.layout)
    assert isinstance(plan, CachedPlan) and plan.num_items > 5
    for _ in range(2):
        out = BACKEND.attend(q, k, v, spec, plan, step.cache)
        torch.testing.assert_close(out.double(), wanted, rtol=2e-5, atol=2e-5)
        assert not plan.counters.any()


@pytest.mark.parametrize("kind", ["plain", "normed", "offset", "partly", "int8"])
@pytest.mark.parametrize("new", [[1, 1], [FEW + 1, 2]])
def test_one_pass_over_the_projection(kind: str, new: list[int], device: torch.device) -> None:
    """Norm, rotation and write in one kernel do what the ops do one after another."""
    step = Step(SPEC, [5, 17], new, device, torch.int8 if kind == "int8" else None)
    heads, kv_heads = SPEC.num_heads, SPEC.num_kv_heads
    x = normal(step.rows, heads + 2 * kv_heads, SPEC.head_dim, seed=3, device=device)
    table = Rotary(8 if kind == "partly" else 16, 100.0)
    table.materialise(device)
    positions = torch.cat([torch.arange(end - n, end) for n, end in zip(new, step.inputs.seq_lens, strict=True)])
    cos, sin = table(positions.to(device), torch.float32)
    q, k, v = x.split([heads, kv_heads, kv_heads], 1)
    norms = None
    if kind in ("normed", "offset"):
        weights = [normal(16, seed=seed, device=device) for seed in (21, 22)]
        norms = HeadNorms(*weights, 1e-6, float(kind == "offset"))
        norm = offset_rms_norm if kind == "offset" else rms_norm
        q, k = norm(q, weights[0], 1e-6), norm(k, weights[1], 1e-6)
    plan = BACKEND.plan(step.inputs, device, step.cache.layout)
    wanted = BACKEND.attend(rotary(q, cos, sin), rotary(k, cos, sin), v, SPEC, plan, step.cache)
    written = [x.clone() for x in (step.cache.k[1], step.cache.v[1])]
    again = Step(SPEC, [5, 17], new, device, torch.int8 if kind == "int8" else None)
    out = BACKEND.attend_qkv(x, cos, sin, norms, SPEC, plan, again.cache)
    assert out is not None
    torch.testing.assert_close(out, wanted, rtol=2e-5, atol=2e-5)
    for mine, right in zip((again.cache.k[1], again.cache.v[1]), written, strict=True):
        if kind == "int8":
            assert (mine.int() - right.int()).abs().max() <= 1
        else:
            torch.testing.assert_close(mine, right, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_what_is_attended_for_elsewhere(device: torch.device) -> None:
    """A prompt that is apart is written with the others, in one pass, which hands its queries, keys and values on."""
    old, new = [5, 0, 17], [1, FEW + 3, FEW + 1]
    spec, x = replace(SPEC, window=11), normal(sum(new), 8, 16, seed=3, device=device)
    table = Rotary(16, 100.0)
    table.materialise(device)
    cos, sin = table(torch.cat([torch.arange(o, o + n) for o, n in zip(old, new, strict=True)]).to(device), x.dtype)
    steps = [Step(spec, old, new, device) for _ in range(2)]
    plan = BACKEND.plan(steps[0].inputs, device, steps[0].cache.layout)
    wanted = BACKEND.attend_qkv(x, cos, sin, None, spec, plan, steps[0].cache)
    rest = BACKEND.plan(replace(steps[1].inputs, apart=[1]), device, steps[1].cache.layout)
    assert isinstance(rest, CachedPlan) and len(rest.tiles(1)[0]) == FEW + 1 and rest.few
    kept = BACKEND.attend_qkv_kept(x, cos, sin, None, spec, rest, steps[1].cache)
    assert wanted is not None and kept is not None
    out, q, k, v = kept
    for name in ("k", "v"):
        assert torch.equal(
            getattr(steps[0].cache, name)[1].nan_to_num(9), getattr(steps[1].cache, name)[1].nan_to_num(9)
        )
    turned = rotary(x[:, :6], cos, sin)
    torch.testing.assert_close(q, turned[:, :4], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(k, turned[:, 4:], rtol=1e-6, atol=1e-6)
    assert torch.equal(v, x[:, 6:]) and k.is_contiguous()
    own = [0, *range(1 + new[1], sum(new))]
    assert torch.equal(out[own], wanted[own])
    rows = slice(1, 1 + new[1])
    exact = reference.ragged_attention(q[rows], k[rows], v[rows], spec, [new[1]])
    torch.testing.assert_close(wanted[rows].double(), exact, rtol=2e-5, atol=2e-5)
    assert BACKEND.attend_qkv_kept(x, cos, sin, None, spec, rest, None) is None


@pytest.mark.parametrize("changes", [{}, {"window": 140}])
def test_one_pass_by_chunks(changes: dict[str, Any], device: torch.device) -> None:
    """Proposed tokens on both sides of a chunk's end are written by the programs that read them; one in page 0 is read where it is."""
    spec = AttentionSpec(1, 4, 2, 16, 0.31, **changes)
    old, new = [126, 270, 31], [4, 1, 1]
    table = Rotary(16, 100.0)
    table.materialise(device)
    places = [torch.arange(o, o + n) for o, n in zip(old, new, strict=True)]
    cos, sin = table(torch.cat(places).to(device), torch.float32)
    x = normal(sum(new), 8, 16, seed=3, device=device)
    q, k, v = x.split([4, 2, 2], 1)
    outs = []
    for fused in (False, True):
        step = Step(spec, old, new, device)
        for name, row in (("k", rotary(k, cos, sin)), ("v", v)):
            step.put(name, 1, 2, 31, row[5] + 1)  # which is in the cache already
        assert step.inputs.slot_mapping is not None
        step.inputs.slot_mapping[-1] = 31 % PAGE
        plan = BACKEND.plan(step.inputs, device, step.cache.layout)
        if fused:
            out = BACKEND.attend_qkv(x, cos, sin, None, spec, plan, step.cache)
        else:
            out = BACKEND.attend(rotary(q, cos, sin), rotary(k, cos, sin), v, spec, plan, step.cache)
        assert out is not None
        outs.append((out, step.cache.k[1], step.cache.v[1]))
    for mine, right in zip(outs[1], outs[0], strict=True):
        torch.testing.assert_close(mine, right, rtol=2e-5, atol=2e-5, equal_nan=True)
    assert outs[0][0].isfinite().all()


def test_wide_and_odd_shapes(device: torch.device) -> None:
    """Heads that no power of two counts, sizes that none measures, tiles with rows to spare."""
    spec = AttentionSpec(1, 21, 3, 20, 0.2)
    step = Step(spec, [9, 0, 33], [1, FEW + 3, 2], device)
    q, k, v = qkv(spec, step.rows, device)
    wanted = reference.paged_attention(q, k, v, spec, step.inputs, step.exact)
    out = BACKEND.attend(q, k, v, spec, BACKEND.plan(step.inputs, device, step.cache.layout), step.cache)
    torch.testing.assert_close(out.double(), wanted, rtol=2e-5, atol=2e-5)


def test_a_table_of_one_width_with_rows_elsewhere(device: torch.device) -> None:
    """As an engine keeps it: a host tensor of all slots, of which a batch names rows; few long ones among short ones too."""
    step = Step(SPEC, [150, 3, 1, 9, 2, 4], [1] * 6, device)
    width = 30
    table = torch.full((9, width), -7, dtype=torch.int32)
    rows = [4, 0, 8, 2, 1, 6]
    for row, pages in zip(rows, step.table, strict=True):
        table[row, : len(pages)] = torch.tensor(pages)
    q, k, v = qkv(SPEC, step.rows, device)
    wanted = reference.paged_attention(q, k, v, SPEC, step.inputs, step.exact)
    inputs = AttentionInputs([1] * 6, step.inputs.seq_lens, table, step.inputs.slot_mapping, 6, table_rows=rows)
    plan = BACKEND.plan(inputs, device, step.cache.layout)
    torch.testing.assert_close(BACKEND.attend(q, k, v, SPEC, plan, step.cache).double(), wanted, rtol=2e-5, atol=2e-5)
    inputs.pad_to, inputs.pad_pages = 8, 0
    static = BACKEND.plan(inputs, device, step.cache.layout)
    assert isinstance(static, CachedPlan) and len(static.pages) == 1 + 8 * width
    pad = torch.zeros(2, *q.shape[1:], device=device)
    padded = [torch.cat([x, pad[:, : x.shape[1]]]) for x in (q, k, v)]
    out = BACKEND.attend(*padded, SPEC, static, step.cache)[:6]
    torch.testing.assert_close(out.double(), wanted, rtol=2e-5, atol=2e-5)


def test_a_table_that_is_on_the_device_is_read_there(device: torch.device) -> None:
    """It changes in place; a plan of a static shape sees that, and its padding reads the last row."""
    step = Step(SPEC, [40, 3, 1], [1] * 3, device)
    table = torch.full((5, 4), -7, dtype=torch.int32)
    table[-1] = 0
    rows = [2, 0, 3]
    for row, pages in zip(rows, step.table, strict=True):
        table[row, : len(pages)] = torch.tensor(pages)
    lying = torch.full_like(table, -7, device=device)
    lens, slots = step.inputs.seq_lens, step.inputs.slot_mapping
    inputs = AttentionInputs([1] * 3, lens, torch.full_like(table, -9), slots, 3, table_rows=rows, device_table=lying)
    plan = BACKEND.plan(inputs, device, step.cache.layout)
    static = BACKEND.plan(replace(inputs, pad_to=4, pad_pages=0), device, step.cache.layout)
    lying.copy_(table)
    q, k, v = qkv(SPEC, step.rows, device)
    wanted = reference.paged_attention(q, k.double(), v.double(), SPEC, step.inputs, step.exact)
    torch.testing.assert_close(BACKEND.attend(q, k, v, SPEC, plan, step.cache).double(), wanted, rtol=2e-5, atol=2e-5)
    padded = [torch.cat([x, torch.zeros_like(x[:1])]) for x in (q, k, v)]
    out = BACKEND.attend(*padded, SPEC, static, step.cache)[:3]
    torch.testing.assert_close(out.double(), wanted, rtol=2e-5, atol=2e-5)
    with pytest.raises(ValueError, match="room for 4"):
        BACKEND.plan(replace(inputs, seq_lens=[1, 80, 1]), device, step.cache.layout)


def test_what_does_not_fit_is_said(device: torch.device) -> None:
    step = Step(SPEC, [3], [2], device)
    with pytest.raises(ValueError, match="one of a sequence"):
        BACKEND.plan(replace(step.inputs, pad_to=2, pad_pages=2), device, step.cache.layout)
    with pytest.raises(ValueError, match="room for"):
        BACKEND.plan(Step(SPEC, [90], [1], device, pad_to=1, pad_pages=2).inputs, device, step.cache.layout)
    with pytest.raises(ValueError, match="pad_pages"):
        BACKEND.plan(replace(step.inputs, pad_to=2), device, step.cache.layout)
    plan = BACKEND.plan(step.inputs, device, step.cache.layout)
    q, k, v = qkv(SPEC, 3, device)
    with pytest.raises(ValueError, match="the plan and the layer want"):
        BACKEND.attend(q, k, v, SPEC, plan, step.cache)
    with pytest.raises(ValueError, match="there is none"):
        BACKEND.attend(q[:2], k[:2], v[:2], SPEC, plan, None)
    assert "float64" in str(BACKEND.unsupported(SPEC, torch.float64))
    assert "wider" in str(BACKEND.unsupported(replace(SPEC, head_dim=512), torch.float32))
