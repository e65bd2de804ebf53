from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pegboard.types import AttentionInputs, AttentionSpec, KVCache, KVLayout
from pegboard_sdpa.backend import SdpaAttention

BACKEND = SdpaAttention()
CPU = torch.device("cpu")
HEADS, KV_HEADS, DIM, PAGE, PAGES = 4, 2, 8, 4, 24


def spec(window: int | None = None) -> AttentionSpec:
    return AttentionSpec(0, HEADS, KV_HEADS, DIM, 0.3, window)


def oracle(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
    """One sequence whose last len(q) tokens ask, in plain loops of float64."""
    out = torch.empty_like(q)
    for i in range(len(q)):
        end = len(k) - len(q) + i + 1
        begin = 0 if window is None else max(0, end - window)
        for head in range(HEADS):
            keys, values = (x[begin:end, head // (HEADS // KV_HEADS)] for x in (k, v))
            out[i, head] = (keys @ q[i, head] * 0.3).softmax(0) @ values
    return out


def random_qkv(tokens: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(tokens, heads, DIM) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    q, k, v = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return q, k, v


@settings(deadline=None, max_examples=40)
@given(
    lens=st.lists(st.integers(1, 40), min_size=1, max_size=7),
    window=st.one_of(st.none(), st.integers(1, 12)),
    seed=st.integers(0, 99),
)
def test_whole_sequences(lens: list[int], window: int | None, seed: int) -> None:
    q, k, v = random_qkv(sum(lens), seed)
    plan = BACKEND.plan(AttentionInputs(lens, lens), CPU, None)
    out = BACKEND.attend(q, k, v, spec(window), plan, None)
    wanted = [oracle(*parts, window) for parts in zip(q.split(lens), k.split(lens), v.split(lens), strict=True)]
    torch.testing.assert_close(out, torch.cat(wanted))


def test_empty_batch() -> None:
    q, k, v = random_qkv(0, 0)
    plan = BACKEND.plan(AttentionInputs([], []), CPU, None)
    assert BACKEND.attend(q, k, v, spec(), plan, None).shape == (0, HEADS, DIM)


class Paged:
    """Sequences in a paged cache whose past is already written."""

    def __init__(self, query_lens: list[int], seq_lens: list[int], seed: int, consecutive: bool) -> None:
        self.query_lens, self.seq_lens = query_lens, seq_lens
        self.layout = BACKEND.layout(spec(), 1, PAGE, torch.float64)
        shape = (PAGES, PAGE, KV_HEADS, DIM)
        self.cache = KVCache(self.layout, [torch.zeros(shape).double()], [torch.zeros(shape).double()])
        free = torch.randperm(PAGES - 1, generator=torch.Generator().manual_seed(seed)).add(1).tolist()
        order = list(range(1, PAGES)) if consecutive else free
        self.table, self.slots, self.sequences = [], [], []
        for index, (count, length) in enumerate(zip(query_lens, seq_lens, strict=True)):
            pages = [order.pop(0) for _ in range(-(-length // PAGE))]
            q, k, v = random_qkv(length, 1000 * seed + index)
            slots = [pages[t // PAGE] * PAGE + t % PAGE for t in range(length)]
            past = torch.tensor(slots[: length - count], dtype=torch.int64)
            self.cache.k[0].flatten(0, 1)[past] = k[: length - count]
            self.cache.v[0].flatten(0, 1)[past] = v[: length - count]
            self.table.append(pages)
            self.slots += slots[length - count :]
            self.sequences.append((q[length - count :], k, v))

    def inputs(self, **padding: int) -> AttentionInputs:
        return AttentionInputs(self.query_lens, self.seq_lens, self.table, torch.tensor(self.slots), **padding)

    def new(self) -> tuple[Tensor, Tensor, Tensor]:
        counts = self.query_lens
        q = torch.cat([q for q, _, _ in self.sequences])
        k = torch.cat([k[-n:] for (_, k, _), n in zip(self.sequences, counts, strict=True)])
        v = torch.cat([v[-n:] for (_, _, v), n in zip(self.sequences, counts, strict=True)])
        return q, k, v

    def wanted(self, window: int | None) -> Tensor:
        return torch.cat([oracle(q, k, v, window) for q, k, v in self.sequences])


@settings(deadline=None, max_examples=40)
@given(
    lens=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=4),
    window=st.one_of(st.none(), st.integers(1, 12)),
    seed=st.integers(0, 99),
    consecutive=st.booleans(),
)
def test_paged(lens: list[tuple[int, int]], window: int | None, seed: int, consecutive: bool) -> None:
    batch = Paged([new for new, _ in lens], [new + old for new, old in lens], seed, consecutive)
    plan = BACKEND.plan(batch.inputs(), CPU, batch.layout)
    out = BACKEND.attend(*batch.new(), spec(window), plan, batch.cache)
    torch.testing.assert_close(out, batch.wanted(window))


@pytest.mark.parametrize("window", [None, 5])
def test_static_plan_is_refilled_in_place(window: int | None) -> None:
    first = Paged([1, 1, 1], [3, 9, 17], 1, False)
    plan = BACKEND.plan(first.inputs(pad_to=4, pad_pages=6), CPU, first.layout)
    buffers = None
    for batch in (first, Paged([1], [21], 2, False), Paged([1, 1, 1, 1], [1, 2, 4, 5], 3, True)):
        plan.update_(batch.inputs(pad_to=4, pad_pages=6))
        q, k, v = (torch.cat([x, x.new_zeros(4 - len(x), *x.shape[1:])]) for x in batch.new())
        out = BACKEND.attend(q, k, v, spec(window), plan, batch.cache)
        torch.testing.assert_close(out[: len(batch.query_lens)], batch.wanted(window))
        assert out.isfinite().all()
        addresses = [t.data_ptr() for t in (plan._reads, plan._lens, plan._slots, *plan._masks.values())]  # type: ignore[union-attr]
        assert buffers in (None, addresses)
        buffers = addresses


def test_padded_rows_touch_only_the_reserved_page() -> None:
    batch = Paged([1], [6], 1, False)
    before = batch.cache.k[0].clone()
    plan = BACKEND.plan(batch.inputs(pad_to=3, pad_pages=2), CPU, batch.layout)
    q, k, v = (torch.cat([x, torch.ones_like(x), torch.ones_like(x)]) for x in batch.new())
    BACKEND.attend(q, k, v, spec(), plan, batch.cache)
    changed = (batch.cache.k[0] != before).any(-1).any(-1).nonzero().tolist()
    assert changed == [[0, 0], [batch.table[0][1], 1]]


def test_static_plan_reads_nothing_that_an_earlier_owner_left() -> None:
    batch = Paged([1, 1], [6, 1], 1, False)
    for tensor in (*batch.cache.k, *batch.cache.v):
        tensor[tensor == 0] = float("nan")
    plan = BACKEND.plan(batch.inputs(pad_to=3, pad_pages=3), CPU, batch.layout)
    q, k, v = (torch.cat([x, torch.ones_like(x[:1])]) for x in batch.new())
    torch.testing.assert_close(BACKEND.attend(q, k, v, spec(), plan, batch.cache)[:2], batch.wanted(None))


@pytest.mark.parametrize(
    ("query_lens", "seq_lens", "message"),
    [([2], [6], "decode batches only"), ([1, 1, 1], [1, 1, 1], "3 new tokens"), ([1], [12], "of up to 3 pages")],
)
def test_static_plan_refuses_what_does_not_fit(query_lens: list[int], seq_lens: list[int], message: str) -> None:
    batch = Paged(query_lens, seq_lens, 1, False)
    with pytest.raises(ValueError, match=message):
        BACKEND.plan(batch.inputs(pad_to=2, pad_pages=2), CPU, batch.layout)


def test_unsupported_says_why() -> None:
    assert "causal" in (BACKEND.unsupported(AttentionSpec(0, 1, 1, 8, 1.0, causal=False), torch.float32) or "")
    assert BACKEND.unsupported(spec(3), torch.float32) is None


def test_layout_counts_bytes() -> None:
    layout = BACKEND.layout(spec(), 3, 16, torch.bfloat16)
    assert layout == KVLayout(16, 3, KV_HEADS, DIM, "bfloat16", "PSHD", (0, 1))
    assert layout.page_bytes == 2 * 3 * 16 * KV_HEADS * DIM * 2
