"""Ragged batches against float64, for each instruction set that this processor has."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pegboard import reference
from pegboard.errors import ConfigError
from pegboard.types import AttentionInputs, AttentionSpec, KVCache, KVLayout
from pegboard_cpu_kernels.backend import CpuAttention
from pegboard_cpu_kernels.library import ISAS, find
from pegboard_cpu_kernels.threads import follow_torch
from pegboard_sdk.conformance.batches import PagedBatch, random_qkv
from pegboard_sdpa.rows import quantize

LIBRARY = find().library
pytestmark = pytest.mark.skipif(LIBRARY is None, reason=f"no library: {find().reason}")
CPU = torch.device("cpu")
BEST = LIBRARY.peg_isa() if LIBRARY else 0
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}


# With the last one there are three ways to multiply bfloat16: widened, by pairs, and by a matrix unit where there is one.
WAYS = [(isa, way) for isa in ISAS[: BEST + 1] for way in ((0, 1, 2) if isa == "avx512bf16" else (0,))]


@pytest.fixture(params=WAYS, ids=lambda way: f"{way[0]}-{way[1]}", autouse=True)
def instructions(request: pytest.FixtureRequest) -> Iterator[None]:
    assert isinstance(LIBRARY, ctypes.CDLL)
    isa, way = request.param
    LIBRARY.peg_set_isa(ISAS.index(isa))
    if LIBRARY.peg_attention_set_products(way) != way:
        pytest.skip("this processor has no matrix unit")
    yield
    follow_torch(LIBRARY)
    LIBRARY.peg_attention_set_products(-1)
    LIBRARY.peg_set_isa(-1)


def layer(heads: int = 6, kv_heads: int = 2, dim: int = 32, **more: object) -> AttentionSpec:
    return AttentionSpec(1, heads, kv_heads, dim, 0.31, **more)  # type: ignore[arg-type]


def run(batch: PagedBatch, backend: CpuAttention | None = None, **changes: object) -> torch.Tensor:
    backend = backend or CpuAttention()
    plan = backend.plan(batch.inputs, CPU, batch.layout)
    return backend.attend(batch.q, batch.k, batch.v, batch.spec, plan, batch.cache)


SPECS = st.builds(
    lambda groups, shared, dim, window, softcap: layer(groups * shared, groups, dim, window=window, softcap=softcap),
    groups=st.integers(1, 3),
    shared=st.sampled_from([1, 2, 3, 4, 5, 7, 8]),
    dim=st.sampled_from([8, 16, 24, 32, 40, 64, 80, 96, 128]),
    window=st.sampled_from([None, None, 1, 5, 70]),
    softcap=st.sampled_from([None, None, 0.7, 30.0]),
)
DTYPES = st.sampled_from(list(TOLERANCE))


@settings(deadline=None, max_examples=30)
@given(
    spec=SPECS,
    dtype=DTYPES,
    lens=st.lists(st.tuples(st.integers(0, 150), st.integers(1, 90)), min_size=1, max_size=3),
    decodes=st.lists(st.integers(0, 140), max_size=3),
    page=st.sampled_from([1, 3, 4, 16]),
    order=st.sampled_from(["PHSD", "PSHD"]),
    seed=st.integers(0, 9),
)
def test_paged(
    spec: AttentionSpec,
    dtype: torch.dtype,
    lens: list[tuple[int, int]],
    decodes: list[int],
    page: int,
    order: str,
    seed: int,
) -> None:
    layout = KVLayout(page, 2, spec.num_kv_heads, spec.head_dim, str(dtype).removeprefix("torch."), order)
    old, new = [*decodes, *(o for o, _ in lens)], [*(1 for _ in decodes), *(n for _, n in lens)]
    pages = 3 + sum(-(-(o + n) // page) for o, n in zip(old, new, strict=True))
    batch = PagedBatch(spec, layout, old, new, CPU, seed=seed, pages=pages)
    wanted, cache = fast_expected(batch), batch.expected_cache()
    torch.testing.assert_close(run(batch).double(), wanted, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    for mine, right in zip((*batch.cache.k, *batch.cache.v), (*cache.k, *cache.v), strict=True):
        torch.testing.assert_close(mine, right, rtol=0, atol=0, equal_nan=True)


def fast_expected(batch: PagedBatch) -> torch.Tensor:
    """The step in float64 by whole matrices, which is enough faster than the reference to try many shapes."""
    cache, inputs, spec = batch.expected_cache(), batch.inputs, batch.spec
    parts, start = [], 0
    for index, (new, length) in enumerate(zip(inputs.query_lens, inputs.seq_lens, strict=True)):
        pages = torch.tensor(inputs.pages(index, batch.layout.page_size))
        k, v = (
            (x[pages] if batch.layout.order == "PSHD" else x[pages].transpose(1, 2)).flatten(0, 1)[:length].double()
            for x in (cache.k[spec.layer], cache.v[spec.layer])
        )
        parts.append(dense(batch.q[start : start + new], k, v, spec))
        start += new
    return torch.cat(parts)


def dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spec: AttentionSpec) -> torch.Tensor:
    """[n, heads, D] float64: the last n queries of a sequence over all its keys."""
    shared = spec.num_heads // spec.num_kv_heads
    k, v = (x.double().repeat_interleave(shared, 1).transpose(0, 1) for x in (k, v))
    logits = q.double().transpose(0, 1) @ k.transpose(1, 2) * spec.scale
    if spec.softcap is not None:
        logits = spec.softcap * torch.tanh(logits / spec.softcap)
    at = torch.arange(k.shape[1] - len(q), k.shape[1])[:, None]
    keys = torch.arange(k.shape[1])[None]
    hidden = (keys > at) & spec.causal
    if spec.window is not None:
        hidden |= keys <= at - spec.window
    return (logits.masked_fill(hidden, -math.inf).softmax(-1) @ v).transpose(0, 1)


@settings(deadline=None, max_examples=15)
@given(
    spec=SPECS,
    causal=st.booleans(),
    dtype=DTYPES,
    lens=st.lists(st.integers(1, 150), min_size=1, max_size=4),
    fused=st.booleans(),
)
def test_whole_sequences(spec: AttentionSpec, causal: bool, dtype: torch.dtype, lens: list[int], fused: bool) -> None:
    spec = layer(
        spec.num_heads, spec.num_kv_heads, spec.head_dim, window=spec.window, softcap=spec.softcap, causal=causal
    )
    heads = (spec.num_heads, spec.num_kv_heads, spec.num_kv_heads)
    q, k, v = random_qkv(spec, sum(lens), dtype, CPU, seed=len(lens))
    if fused:  # the three as parts of one product's rows
        q, k, v = torch.cat([q, k, v], 1).split(heads, 1)
    backend = CpuAttention()
    out = backend.attend(q, k, v, spec, backend.plan(AttentionInputs(lens, lens), CPU, None), None)
    wanted = torch.cat([dense(*p, spec) for p in zip(q.split(lens), k.split(lens), v.split(lens), strict=True)])
    torch.testing.assert_close(out.double(), wanted, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_the_dense_oracle_is_the_reference() -> None:
    for more in ({}, {"window": 4, "softcap": 0.7}, {"causal": False}):
        spec = layer(**more)
        q, k, v = random_qkv(spec, 9, torch.float64, CPU, seed=1)
        torch.testing.assert_close(dense(q, k, v, spec), reference.ragged_attention(q, k, v, spec, [9]))


@pytest.mark.parametrize("dim", [32, 24])
@pytest.mark.parametrize("window", [None, 700])
def test_long_contexts_are_cut_and_joined(dim: int, window: int | None) -> None:
    """Over many chunks, on one thread and on three, also where the window leaves out the first chunks."""
    assert isinstance(LIBRARY, ctypes.CDLL)
    spec = layer(3, 1, dim, window=window)
    layout = CpuAttention().layout(spec, 2, 16, torch.float32)
    outs = []
    for threads in (1, 3):
        batch = PagedBatch(spec, layout, [5000, 9000, 4200], [1, 20, 70], CPU, seed=3, pages=1200)
        backend = CpuAttention()
        plan = backend.plan(batch.inputs, CPU, layout)
        LIBRARY.peg_set_threads(threads, None)
        outs.append(backend.attend(batch.q, batch.k, batch.v, spec, plan, batch.cache))
    torch.testing.assert_close(outs[0].double(), fast_expected(batch), rtol=1e-5, atol=1e-5)
    assert torch.equal(outs[0], outs[1])


def test_one_plan_serves_layers_that_see_different_keys() -> None:
    """Causal and not, over a context that is cut: the first queries of the second layer see a chunk more."""
    assert isinstance(LIBRARY, ctypes.CDLL)
    layout = CpuAttention().layout(layer(1, 1, 8), 2, 16, torch.float32)
    backend, batch = CpuAttention(), PagedBatch(layer(1, 1, 8), layout, [8136], [64], CPU, seed=3, pages=515)
    plan = backend.plan(batch.inputs, CPU, layout)
    LIBRARY.peg_set_threads(3, None)
    for causal in (True, False, True):
        batch.spec = layer(1, 1, 8, causal=causal)
        out = backend.attend(batch.q, batch.k, batch.v, batch.spec, plan, batch.cache)
        torch.testing.assert_close(out.double(), fast_expected(batch), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_is_the_same_in_any_company(dtype: torch.dtype) -> None:
    """A sequence's rows have the same bits alone and beside others, and a prompt's however it is cut in two."""
    spec = layer(dim=32)
    layout = CpuAttention().layout(spec, 2, 16, dtype)
    crowd = PagedBatch(spec, layout, [700, 30, 0], [1, 1, 100], CPU, seed=5, pages=90)
    together = run(crowd)
    start = 0
    for index, new in enumerate(crowd.inputs.query_lens):
        rows = slice(start, start + new)
        cuts = [(0, new)] if new == 1 else [(0, new), (0, 40), (40, new)]
        for begin, end in cuts:
            part = slice(start + begin, start + end)
            length = crowd.inputs.seq_lens[index] - new + end
            assert crowd.inputs.slot_mapping is not None
            inputs = AttentionInputs(
                [end - begin],
                [length],
                [crowd.inputs.block_table[index]],
                crowd.inputs.slot_mapping[part],  # type: ignore[index]
            )
            backend = CpuAttention()
            alone = backend.attend(
                crowd.q[part], crowd.k[part], crowd.v[part], spec, backend.plan(inputs, CPU, layout), crowd.cache
            )
            assert torch.equal(alone, together[rows][begin:end])
        start += new


def test_a_table_of_rows() -> None:
    """A block table as a tensor of more rows and columns than the batch uses, whose unused places hold nonsense."""
    spec = layer()
    layout = CpuAttention().layout(spec, 2, 4, torch.float32)
    batch = PagedBatch(spec, layout, [9, 2, 0], [1, 5, 7], CPU)
    wanted = batch.expected()
    table = torch.full((6, 9), 10**6, dtype=torch.int32)
    rows = [4, 1, 2]
    for row, pages in zip(rows, batch.inputs.block_table or [], strict=True):
        table[row, : len(pages)] = torch.tensor(pages, dtype=torch.int32)
    batch.inputs.block_table, batch.inputs.table_rows = table, rows
    torch.testing.assert_close(run(batch).double(), wanted, rtol=1e-5, atol=1e-5)


def test_a_token_that_is_cached_already_is_read_from_its_page() -> None:
    """Its slot lies in page 0, where its key is written; what it attends to is its own page."""
    spec = layer()
    layout = CpuAttention().layout(spec, 2, 4, torch.float32)
    batch = PagedBatch(spec, layout, [8], [1], CPU)
    before = batch.cache.k[1].clone()
    pages = batch.inputs.pages(0, 4)
    batch.inputs.seq_lens, batch.inputs.slot_mapping = [8], torch.tensor([2])
    k, v = (x[pages].transpose(1, 2).flatten(0, 1)[:8] for x in (batch.cache.k[1], batch.cache.v[1]))
    torch.testing.assert_close(run(batch).double(), dense(batch.q, k, v, spec), rtol=1e-5, atol=1e-5)
    assert torch.equal(batch.cache.k[1][0, :, 2], batch.k[0])
    torch.testing.assert_close(batch.cache.k[1][1:], before[1:], rtol=0, atol=0, equal_nan=True)


def test_padded_rows_use_page_0() -> None:
    """A row that belongs to no request is one token in page 0."""
    spec = layer()
    layout = CpuAttention().layout(spec, 2, 4, torch.float32)
    batch = PagedBatch(spec, layout, [6], [1], CPU)
    wanted = batch.expected()
    assert batch.inputs.slot_mapping is not None
    inputs = AttentionInputs(
        [1, 1],
        [7, 1],
        [*batch.inputs.block_table, [0]],
        torch.cat([batch.inputs.slot_mapping, torch.tensor([0])]),  # type: ignore[misc]
    )
    q, k, v = (torch.cat([x, x + 1]) for x in (batch.q, batch.k, batch.v))
    backend = CpuAttention()
    out = backend.attend(q, k, v, spec, backend.plan(inputs, CPU, layout), batch.cache)
    torch.testing.assert_close(out[:1].double(), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out[1], v[1].repeat_interleave(3, 0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dim", [32, 24])
@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_wrong_value_of_ones_own_shows_in_that_sequence_alone(dim: int, wrong: float) -> None:
    spec = layer(dim=dim)
    for cached in (torch.float32, torch.int8):
        layout = CpuAttention().layout(spec, 2, 4, cached)
        cache = KVCache.allocate(layout, 12, CPU)
        q, k, v = random_qkv(spec, 9, torch.float32, CPU, seed=2)
        k[1, 0, 3] = wrong
        inputs = AttentionInputs([1, 1, 7], [1, 1, 7], [[3], [5], [1, 2]], torch.tensor([12, 20, *range(4, 11)]))
        backend = CpuAttention()
        out = backend.attend(q, k, v, spec, backend.plan(inputs, CPU, layout), cache)
        assert not out[1, :3].isfinite().all()
        assert out[0].isfinite().all() and out[2:].isfinite().all()


@pytest.mark.parametrize("cached", [torch.bfloat16, torch.float16])
def test_a_cache_of_fewer_bits_holds_what_torch_rounds_to(cached: torch.dtype) -> None:
    """Ties, numbers too small and too large, infinities and NaN included."""
    spec = layer(dim=32)
    backend = CpuAttention()
    layout = backend.layout(spec, 2, 4, cached)
    cache = KVCache.allocate(layout, 60, CPU)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(200, heads, 32, generator=generator) for heads in (6, 2, 2))
    k *= 2.0 ** torch.randint(-140, 127, k.shape, generator=generator)
    v = v.to(cached).float() * (1 + 2.0**-8 + 2.0**-11)  # near and on the middle between two
    for place, value in enumerate([math.inf, -math.inf, math.nan, -0.0, 1.1754e-38, 3.4e38, 65519.9, 65520.0]):
        k[place, 1, place] = value
    inputs = AttentionInputs([200], [200], [list(range(1, 51))], torch.arange(4, 204))
    backend.attend(q, k, v, spec, backend.plan(inputs, CPU, layout), cache)
    for mine, rounded in ((cache.k[1], k), (cache.v[1], v)):
        rows = mine[1:51].transpose(1, 2).flatten(0, 1)
        torch.testing.assert_close(rows, rounded.to(cached), rtol=0, atol=0, equal_nan=True)


@settings(deadline=None, max_examples=15)
@given(
    dim=st.sampled_from([24, 32, 64]),
    dtype=DTYPES,
    old=st.lists(st.integers(0, 100), min_size=1, max_size=3),
    new=st.sampled_from([1, 2, 40]),
    order=st.sampled_from(["PHSD", "PSHD"]),
)
def test_int8(dim: int, dtype: torch.dtype, old: list[int], new: int, order: str) -> None:
    """What is written is what the oracle's quantization gives, bit for bit; what is read is attention over those values."""
    spec = layer(dim=dim)
    layout = KVLayout(4, 2, spec.num_kv_heads, dim, "int8", order)
    cache = KVCache.allocate(layout, 200, CPU)
    assert cache.k_scale is not None and cache.v_scale is not None
    backend, first, table = CpuAttention(), 1, []
    for length in old:
        count = -(-(length + new) // 4)
        table.append(list(range(first, first + count))[::-1])
        first += count
    slots = [[row[t // 4] * 4 + t % 4 for t in range(length + new)] for row, length in zip(table, old, strict=True)]
    wanted, tokens = [], []
    for index, length in enumerate(old):
        tokens.append(random_qkv(spec, length + new, dtype, CPU, seed=index))
        wide = [(values * scales[..., None]).double() for values, scales in map(quantize, tokens[-1][1:])]
        wanted.append(dense(tokens[-1][0][length:], *wide, spec))
    for part in (slice(None), slice(-new, None)):
        begins = [0 if part.start is None else length for length in old]
        counts = [n + new - b for n, b in zip(old, begins, strict=True)]
        if part.start is None:
            counts = [c - new for c in counts]
        keep = [(i, c) for i, c in enumerate(counts) if c]
        if not keep:
            continue
        rows = [[x[begins[i] : begins[i] + c] for x in tokens[i]] for i, c in keep]
        inputs = AttentionInputs(
            [c for _, c in keep],
            [begins[i] + c for i, c in keep],
            [table[i] for i, _ in keep],
            torch.tensor([s for i, c in keep for s in slots[i][begins[i] : begins[i] + c]]),
        )
        out = backend.attend(
            *(torch.cat(x) for x in zip(*rows, strict=True)), spec, backend.plan(inputs, CPU, layout), cache
        )
    torch.testing.assert_close(out.double(), torch.cat(wanted), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    for tensors, scales, which in ((cache.k, cache.k_scale, 1), (cache.v, cache.v_scale, 2)):
        values, factors = (x[1] if order == "PSHD" else x[1].transpose(1, 2) for x in (tensors, scales))
        for index, places in enumerate(slots):
            mine, right = torch.tensor(places), quantize(tokens[index][which])
            assert torch.equal(values.flatten(0, 1)[mine], right[0])
            assert torch.equal(factors.flatten(0, 1)[mine], right[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query_lens": [2], "seq_lens": [1]}, "more new tokens than tokens"),
        ({"query_lens": [-1]}, "negative number of new tokens"),
        ({"block_table": [[1]], "seq_lens": [5]}, "more tokens than its row"),
        ({"block_table": [[-1, 2]]}, "negative page"),
        ({"slot_mapping": torch.tensor([-1])}, "negative slot"),
        ({"slot_mapping": torch.tensor([1, 2])}, "slot_mapping does not have"),
        ({"table_rows": [3]}, "does not have"),
        ({"query_lens": [1, 1]}, "one a sequence"),
        ({"query_lens": [2], "slot_mapping": torch.tensor([8, 9]), "pad_to": 4, "pad_pages": 2}, "static shape"),
        ({"slot_mapping": None}, "slot mapping"),
    ],
)
def test_batches_that_do_not_fit_together(changes: dict[str, object], message: str) -> None:
    values = {"query_lens": [1], "seq_lens": [5], "block_table": [[1, 2]], "slot_mapping": torch.tensor([8])} | changes
    backend = CpuAttention()
    with pytest.raises(ValueError, match=message):
        backend.plan(AttentionInputs(**values), CPU, backend.layout(layer(), 2, 4, torch.float32))  # type: ignore[arg-type]


def test_pages_and_slots_behind_the_cache_are_refused() -> None:
    backend, spec = CpuAttention(), layer()
    layout = backend.layout(spec, 2, 4, torch.float32)
    cache = KVCache.allocate(layout, 3, CPU)
    q, k, v = random_qkv(spec, 1, torch.float32, CPU, seed=0)
    for table, slot in (([[1, 3]], 8), ([[1, 2]], 12)):
        plan = backend.plan(AttentionInputs([1], [5], table, torch.tensor([slot])), CPU, layout)
        with pytest.raises(ValueError, match="behind the 3 of the cache"):
            backend.attend(q, k, v, spec, plan, cache)


def test_tensors_that_do_not_fit_are_refused() -> None:
    backend, spec = CpuAttention(), layer()
    layout = backend.layout(spec, 2, 4, torch.float32)
    plan = backend.plan(AttentionInputs([1], [5], [[1, 2]], torch.tensor([8])), CPU, layout)
    q, k, v = random_qkv(spec, 1, torch.float32, CPU, seed=0)
    cache = KVCache.allocate(layout, 3, CPU)
    with pytest.raises(ValueError, match="want"):
        backend.attend(q[:, :4], k, v, spec, plan, cache)
    with pytest.raises(ValueError, match="one dtype"):
        backend.attend(q, k.double(), v, spec, plan, cache)
    with pytest.raises(ValueError, match="contiguous"):
        backend.attend(q, k, v, spec, plan, KVCache(layout, [x.half() for x in cache.k], cache.v))
    with pytest.raises(ValueError, match="k_scale"):
        eight = backend.layout(spec, 2, 4, torch.int8)
        other = KVCache.allocate(eight, 3, CPU)
        plan = backend.plan(AttentionInputs([1], [5], [[1, 2]], torch.tensor([8])), CPU, eight)
        backend.attend(q, k, v, spec, plan, KVCache(eight, other.k, other.v))


def test_a_gradient_is_refused() -> None:
    backend, spec = CpuAttention(), layer()
    q, k, v = random_qkv(spec, 3, torch.float32, CPU, seed=0)
    plan = backend.plan(AttentionInputs([3], [3]), CPU, None)
    with pytest.raises(ConfigError, match="no gradients") as caught:
        backend.attend(q.requires_grad_(), k, v, spec, plan, None)
    assert "sdpa" in (caught.value.fix or "")
    with torch.no_grad():
        assert backend.attend(q, k, v, spec, plan, None).shape == q.shape


def test_empty_batch() -> None:
    backend, spec = CpuAttention(), layer()
    q, k, v = random_qkv(spec, 0, torch.float32, CPU, seed=0)
    assert backend.attend(q, k, v, spec, backend.plan(AttentionInputs([], []), CPU, None), None).shape == q.shape


def test_unsupported_says_why() -> None:
    backend = CpuAttention()
    assert "float64" in (backend.unsupported(layer(), torch.float64) or "")
    assert "2048" in (backend.unsupported(layer(dim=2048), torch.float32) or "")
    with pytest.raises(ConfigError, match="float64"):
        backend.layout(layer(), 1, 4, torch.float64)
